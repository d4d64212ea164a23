"""Every error that this library raises on purpose.

FilestoreError
├── InvalidInput              the caller gave something that cannot be right
│   ├── InvalidDigest
│   ├── InvalidName
│   ├── InvalidReference
│   ├── InvalidRange
│   ├── InvalidUrl
│   ├── OtherRepository       two URLs of one repository lead to two
│   ├── DownloadRefused
│   ├── NothingMatches
│   ├── InvalidParts
│   └── InvalidSetting
├── InvalidContent            bytes that are not what they should be
│   ├── InvalidFrame
│   ├── InvalidBatch
│   ├── InvalidManifest
│   ├── InvalidArchive
│   │   └── NotAnArchive
│   ├── InvalidTensors        of a safetensors or GGUF file
│   ├── DamagedChunk
│   ├── DamagedRecord
│   ├── ObjectMismatch        of an LFS object
│   └── UnexpectedContent
│       └── UnexpectedRecord
├── NotFound
│   ├── RevisionNotFound      of a name that exists
│   ├── EntryNotFound         in a directory that exists
│   ├── RecordChanged         a record that is not removed, because it has changed since it was chosen
│   └── UploadNotFound
├── ChunksMissing
├── PartRefused               a part of an upload that arrived before with other bytes
├── PartDiffers               bytes of a stored file that are not those of a part
├── FileInUse                 a file that pipelines need is not removed
├── VersionLabelled           a version with a tag or a branch is not removed
├── HeadMoved                 a commit that was made for another state of its branch
├── LabelExists
├── NameExists                a repository that is created, and is there
├── OwnerTaken                by another namespace
├── LimitExceeded
│   ├── TooManyUploads
│   └── UploadsTooLarge       of one namespace
├── NotARepository
├── NotABackup
├── ReadOnly
├── RepositoryMoved           to another place, so that nothing more is written here
├── UsedAfterFork
├── BlockingCallRefused       a call of `filestore.blocking`
├── UnknownFormat
├── MissingCompiledPart
├── MissingPackage
├── Unauthorized
│   ├── TokenMissing
│   └── TokenExpired
├── UrlRefused
├── TooManyGuesses
├── QuotaExceeded
├── RateLimited
├── Forbidden
├── UpstreamGated             a repository of the upstream that the caller may not read
├── UpstreamUnauthorized      one that it shows to no caller without a right token
├── UpstreamFailed
├── ScopeMissing
├── OutsidePrefix             of a token that sees only some names
├── SourceError               what is pushed
│   ├── SourceUnreadable
│   ├── SourceChanged
│   └── SourceRefused
├── TargetError               where a fetch writes
├── StorageError              the disk under a repository, a cache or a target
│   ├── NotPermitted
│   ├── StoreRefused
│   ├── IndexUnreadable
│   ├── IndexDamaged
│   ├── IndexReplaced
│   ├── LinkedDatabase
│   └── StorageFull
│       ├── MinFreeReached
│       └── CacheFull
├── CollectionHeld            files lost their names, and their content may be the only copy
├── Busy
├── Unhealthy                 a part of a server failed its own check
├── AddressError              where a server listens
│   └── AddressInUse
└── TransferError          the way to a server
    ├── Unreachable
    │   ├── HostUnknown
    │   ├── NoServerLeft      of several servers
    │   ├── OriginUnreachable
    │   └── ProxyUnreachable
    ├── Stalled
    ├── Interrupted
    ├── WorkerEnded            of several processes that share a transfer
    └── ServerError
        └── ForeignAnswer     not from a filestore server

The errors of pipelines and runs are in `filestore.runtime.errors`.

Each error has a fixed `slug`, by which the wire names it, and named facts; the message is built from the facts, and says what
happened, why, and what to do. `hint` is a key: the command line has a sentence for each, which names its commands and options.
`retryable` is decided where an error is made: the modules that retry (the HTTP client, `download`, the client of object stores)
ask nothing else.
"""

from __future__ import annotations

import errno
import re
from http import HTTPStatus
from typing import ClassVar

Fact = str | int | float
Names = tuple[str, ...]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRYABLE_STATUSES = (408, 429, 502, 503, 504)


_SIGNATURE = re.compile(r"(signed(?:/|%2F)[^/\s%]+(?:/|%2F)[0-9]+(?:/|%2F))[0-9a-f]{8,64}", re.IGNORECASE)


def redact_signature(text: str) -> str:
    """Return a text without the signatures of signed URLs in it.

    Who reads an error or a log must not be able to use such a URL.
    """
    return _SIGNATURE.sub(r"\1...", text)


_TOKEN = re.compile(r"(\bbearer\s+|token['\"]?\s*[=:]\s*['\"]?)[^\s'\"&;,]+", re.IGNORECASE)


def redact_secrets(text: str) -> str:
    """Return a text without the signatures and the tokens in it.

    A token is recognised by what is before it: `Bearer`, as in the header Authorization, or `token=`.
    """
    return _TOKEN.sub(r"\1...", redact_signature(text))


class FilestoreError(Exception):
    """The root of the tree. An error consists of facts, which are JSON values, so that it can cross the wire.

    The constructor takes the facts in the order of `facts`, and raises TypeError for a wrong number of them. Each becomes an
    attribute of its name; `args` holds all of them, so that a pickle makes the same error. A fact that the class has a value for
    may be left out. `hint` is the key of an advice that depends on how the library is used; `hint=` replaces that of the class.
    """

    slug: ClassVar[str] = "failed"
    """Names the error on the wire. It never changes, whatever the class is called."""
    facts: ClassVar[Names] = ("reason",)
    """The names of the facts, in the order of the constructor. A fact is a text where the class does not say another type."""
    sentence: ClassVar[str] = "{reason}"
    hint: str = ""
    retryable: bool = False
    retry_after_seconds: float | None = None
    """How long the peer asks to wait before the next try; None where it does not say."""
    request_id: str = ""
    """The id of the request that failed at a server by a fault of the server. Its log has the cause under this id."""
    is_retried_once: bool = False
    """Whether a second try is also the last one, however much time is left."""
    pauses_all: bool = False
    """Whether all requests to the peer wait for `retry_after_seconds`, and not only the one that failed."""
    wait_reason: str = ""
    """Why the peer asks to wait, in words for a display of progress."""

    def __init__(self, *facts: Fact, hint: str = "") -> None:
        kind = type(self)
        left_out = self.facts[len(facts) :]
        if len(facts) > len(self.facts) or not all(hasattr(kind, name) for name in left_out):
            raise TypeError(f"{kind.__name__} takes the facts {', '.join(self.facts)}, and was given {len(facts)}")
        given = (redact_signature(fact) if isinstance(fact, str) else fact for fact in facts)
        values = (*given, *(getattr(kind, name) for name in left_out))
        super().__init__(*values)
        for name, value in zip(self.facts, values, strict=True):
            setattr(self, name, value)
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        return self.sentence.format_map(self.named_facts())

    def named_facts(self) -> dict[str, object]:
        """The facts by their names."""
        return {name: getattr(self, name) for name in self.facts}


class InvalidInput(FilestoreError):
    """The caller gave something that cannot be right."""

    slug = "invalid-input"


class InvalidDigest(InvalidInput):
    """A text or a byte string is not a digest."""

    slug = "invalid-digest"
    facts = ("text",)
    sentence = "{text!r} is not a digest: 64 lower-case hexadecimal digits are expected"


class InvalidName(InvalidInput):
    """A file cannot be stored under this name."""

    slug = "invalid-name"
    facts = ("name", "reason")
    sentence = "the name {name!r} cannot be kept: {reason}"
    reason: str


class InvalidReference(InvalidInput):
    """A text that should name a stored file does not name one."""

    slug = "invalid-reference"
    facts = ("reference", "reason")
    sentence = "{reference!r} names no file: {reason}"
    reason: str


class InvalidRange(InvalidInput):
    """A range of bytes is not inside the file."""

    slug = "invalid-range"
    facts = ("range", "size")
    sentence = "the range {range!r} lies outside the file, which has {size} bytes"
    size: int


class InvalidUrl(InvalidInput):
    """A URL that names no repository."""

    slug = "invalid-url"
    facts = ("url", "reason")
    sentence = "{url!r} names no repository: {reason}"


class OtherRepository(InvalidInput):
    """A server that is given together with others serves another repository than they do."""

    slug = "other-repository"
    facts = ("url", "other")
    sentence = "{url} serves another repository than {other}; give only servers of one repository, or one URL"


class DownloadRefused(InvalidInput):
    """A URL that nothing is downloaded from, because of where it leads to."""

    slug = "download-refused"
    facts = ("url", "reason")
    sentence = "nothing is downloaded from {url}: {reason}"


class NothingMatches(InvalidInput):
    """Globs that match nothing in a directory."""

    slug = "nothing-matches"
    facts = ("path", "globs")
    sentence = "nothing in {path} matches {globs}; give globs for paths inside it, such as '*.safetensors'"


class InvalidParts(InvalidInput):
    """The parts of an upload do not make up a file."""

    slug = "invalid-parts"
    sentence = (
        "the upload cannot be finished: {reason}; send that part again, and list each part with the ETag that its upload gave"
    )


class InvalidSetting(InvalidInput):
    """A setting has a value that cannot be used; `source` names where it is set. The value may be a secret."""

    slug = "invalid-setting"
    facts = ("source", "reason")
    sentence = "{source} cannot be used: {reason}"
    source: str
    reason: str


class InvalidContent(FilestoreError):
    """Bytes that are not what they should be."""

    slug = "invalid-content"


class InvalidFrame(InvalidContent):
    """A frame does not decode to its chunk."""

    slug = "invalid-frame"
    facts = ("digest", "reason")
    sentence = "the frame of chunk {digest} was refused: {reason}"
    digest: str
    reason: str


class InvalidBatch(InvalidContent):
    """A batch of frames whose own structure is broken."""

    slug = "invalid-batch"
    sentence = "the batch of frames was refused: {reason}"


class InvalidManifest(InvalidContent):
    """Bytes that are not a canonical manifest."""

    slug = "invalid-manifest"
    sentence = "the manifest was refused: {reason}"


class InvalidArchive(InvalidContent):
    """A zip file, or one entry of it, cannot be unpacked. `entry` is empty where the whole file is wrong."""

    slug = "invalid-archive"
    facts = ("entry", "reason")
    sentence = "the entry {entry!r} of the archive was refused: {reason}"
    entry: str = ""
    reason: str

    def __str__(self) -> str:
        return super().__str__() if self.args[0] else f"the archive was refused: {self.reason}"


class NotAnArchive(InvalidArchive):
    """A file that should be unpacked is not a zip file."""

    slug = "not-an-archive"
    facts = ("name", "reason")
    sentence = "{name!r} cannot be unpacked: {reason}; fetch it as a single file"


class InvalidTensors(InvalidContent):
    """A file has no tensors that can be listed: it is not a safetensors or GGUF file, or its header breaks a rule."""

    slug = "invalid-tensors"
    facts = ("name", "reason")
    sentence = "the tensors of {name!r} cannot be read: {reason}"
    name: str
    reason: str


class DamagedChunk(InvalidContent):
    """A stored frame no longer decodes to its chunk."""

    slug = "damaged-chunk"
    facts = ("digest", "reason")
    sentence = "chunk {digest} is damaged in the repository: {reason}; push the file that holds it again"


class DamagedRecord(InvalidContent):
    """The manifest of a record cannot be read, so that nobody knows which chunks the record needs."""

    slug = "damaged-record"
    facts = ("file_id", "name", "reason")
    sentence = (
        "the record {file_id} ({name!r}) is damaged in the repository: {reason}, so that nobody can tell which chunks it needs,"
        " and nothing was removed; push its file again, or remove that record"
    )
    hint = "remove-record"


class ObjectMismatch(InvalidContent):
    """The bytes that arrived as an LFS object do not have its SHA-256 or its size."""

    slug = "object-mismatch"
    facts = ("oid", "found")
    sentence = "the bytes that arrived for the LFS object {oid} are {found}; nothing of them is used, send the file again"


class UnexpectedContent(InvalidContent):
    """The content of a URL has another digest than the expected one."""

    slug = "unexpected-content"
    facts = ("url", "found", "expected")
    sentence = (
        "{url} gave bytes with the digest {found}, not {expected}; nothing was kept, "
        "compare what is expected with what its publisher says"
    )


class UnexpectedRecord(UnexpectedContent):
    """A server answered with another record than the requested one."""

    slug = "unexpected-record"
    sentence = (
        "{url} answered with {found} when it was asked for {expected}; nothing was kept, "
        "check that this is the URL of your server"
    )


class NotFound(FilestoreError):
    """Nothing is stored under a reference."""

    slug = "not-found"
    facts: ClassVar[Names] = ("reference",)
    sentence = "nothing is stored under {reference!r}"
    hint = "list-files"


class RevisionNotFound(NotFound):
    """A name exists, but not the version of it that a revision names."""

    slug = "revision-not-found"
    facts = ("reference", "revision")
    sentence = "{reference!r} has no version {revision!r}"
    hint = "list-versions"
    reference: str
    revision: str


class EntryNotFound(NotFound):
    """A stored directory exists, but has nothing at a path inside it."""

    slug = "entry-not-found"
    facts = ("reference", "path")
    sentence = "{reference!r} has no entry {path!r}"
    hint = "list-entries"
    reference: str
    path: str


class RecordChanged(NotFound):
    """A record is not removed, because it is not in the state in which it was chosen for the removal."""

    slug = "record-changed"
    facts = ("reference", "reason")
    sentence = "{reference} was not removed: {reason}; look at it again, and then remove it if that is still right"
    hint = ""


class UploadNotFound(NotFound):
    """No upload in parts has this id."""

    slug = "upload-not-found"
    sentence = "no upload {reference!r} is under way here: it is unknown, has expired or is finished; begin another one"
    hint = ""


class ChunksMissing(FilestoreError):
    """Chunks that a manifest names are not in the repository. `digests` holds them, 64 hex digits each.

    There are at most `limit` of them. If there are as many, `is_full` is true, and more chunks may be missing: ask the
    repository about all chunks with `missing`.
    """

    slug = "chunks-missing"
    facts = ("digests",)
    limit: ClassVar[int] = 4096
    digests: tuple[str, ...]

    def __init__(self, *digests: str) -> None:
        self.digests = digests[: self.limit]
        Exception.__init__(self, *self.digests)

    @property
    def is_full(self) -> bool:
        """Whether more chunks may be missing than `digests` has."""
        return len(self.digests) >= self.limit

    def __str__(self) -> str:
        count = f"at least {self.limit}" if self.is_full else f"{len(self.digests)} in all"
        return f"chunks are missing in the repository, {count}, the first is {self.digests[0]}; push the file again"


class PartRefused(FilestoreError):
    """A part of an upload arrived before with other bytes. A part never changes."""

    slug = "part-refused"
    facts = ("number",)
    sentence = (
        "part {number} of the upload arrived before with other bytes, and stays; send the same bytes again, or begin another"
        " upload"
    )
    number: int


class PartDiffers(FilestoreError):
    """Bytes of a stored file are not those of a part of an upload, so the part is not made of them."""

    slug = "part-differs"
    facts = ("number", "file_id", "offset")
    sentence = (
        "part {number} of the upload is not what {file_id} has from byte {offset} on, so nothing was copied; send the bytes of"
        " the part"
    )
    number: int
    file_id: str
    offset: int


class FileInUse(FilestoreError):
    """A file is not removed, because pipelines need it. `pipelines` has their names."""

    slug = "file-in-use"
    facts = ("file_id", "pipelines")
    sentence = "{file_id} is needed by the pipeline {pipelines}; delete each pipeline that needs it first, or remove it by force"
    hint = "remove-anyway"
    file_id: str
    pipelines: str


class VersionLabelled(FilestoreError):
    """A version is not removed, because a tag or a branch names it. `labels` has their names."""

    slug = "version-labelled"
    facts = ("file_id", "labels")
    sentence = "{file_id} has the label {labels}; remove each label that names it first, or remove it by force"
    hint = "remove-labelled"
    file_id: str
    labels: str


class HeadMoved(FilestoreError):
    """A commit is not made, because the newest commit of its branch is not the one that it was made for."""

    slug = "head-moved"
    facts = ("name", "branch", "parent", "head")
    sentence = (
        "the newest commit of {name!r} on {branch!r} is {head!r} and not {parent!r}, for which this one was made;"
        " read the newest one, and try again"
    )
    head: str


class LabelExists(FilestoreError):
    """A tag or a branch is not made, because another commit has it."""

    slug = "label-exists"
    facts = ("name", "label", "commit_id")
    sentence = "{name!r} has the label {label!r} already, at the commit {commit_id}; remove it first, or move it by force"
    hint = "move-label"
    commit_id: str


class NameExists(FilestoreError):
    """A repository is not created, because something is stored under its name."""

    slug = "name-exists"
    facts = ("name",)
    sentence = "{name!r} exists already; upload to it, or choose another name"


class OwnerTaken(FilestoreError):
    """A name cannot be stored, because its owner belongs to another namespace."""

    slug = "owner-taken"
    facts = ("owner",)
    sentence = "the owner {owner!r} belongs to another namespace of this repository; choose another owner"
    hint = "show-owners"


class LimitExceeded(FilestoreError):
    """Something is larger than a limit allows. `setting` names the setting of that limit; empty where there is none."""

    slug = "limit-exceeded"
    facts = ("what", "found", "limit", "setting")
    sentence = "{what} is {found}, more than the limit of {limit}"
    what: str
    found: int
    limit: int
    setting: str = ""

    def __init__(self, *facts: Fact) -> None:
        super().__init__(*facts)
        self.hint = "raise-setting" if self.setting else ""

    def __str__(self) -> str:
        return super().__str__() + (f"; if you trust it, raise the setting {self.setting}" if self.setting else "")


class TooManyUploads(LimitExceeded):
    """Another upload would be more than may be in progress."""

    slug = "too-many-uploads"
    sentence = "{what} is {found}, and the limit is {limit}; finish some, or wait until abandoned ones are removed"


class UploadsTooLarge(LimitExceeded):
    """The unfinished uploads of a namespace would take more of a server's disk than its share."""

    slug = "uploads-too-large"
    sentence = "{what} is {found}, and the limit is {limit}; finish some, or wait until abandoned ones are removed"


class NotARepository(FilestoreError):
    """A folder that is not a repository; `found` says what is there, `advice` what to do."""

    slug = "not-a-repository"
    facts = ("folder", "found", "advice")
    sentence = "{folder} is not a repository: {found}; {advice}"
    folder: str
    found: str


class NotABackup(FilestoreError):
    """A folder that is not a backup, or that a backup cannot be made in; `found` says what is there, `advice` what to do."""

    slug = "not-a-backup"
    facts = ("folder", "found", "advice")
    sentence = "{folder} is not a backup: {found}; {advice}"
    folder: str
    found: str


class ReadOnly(FilestoreError):
    """A write to a repository that was opened for reading only."""

    slug = "read-only"
    facts = ("where",)
    sentence = "{where} was opened for reading only; open it without read_only to write to it"


class RepositoryMoved(FilestoreError):
    """A write to a folder whose repository has moved to another place."""

    slug = "repository-moved"
    facts = ("where", "new_place")
    sentence = "{where} is not written to any more: the repository has moved to {new_place}; use it there"


class UnknownFormat(FilestoreError):
    """A repository or a cache has a version that this program does not know."""

    slug = "unknown-format"
    facts = ("where", "found", "known")
    sentence = "{where} has format {found}, this program knows {known}; use the version of filestore that made it, or a newer one"


class MissingCompiledPart(FilestoreError):
    """A required package was installed without its compiled part."""

    slug = "missing-compiled-part"
    facts = ("package",)
    sentence = "{package} was installed without its compiled part and would be a hundred times slower; reinstall it from a wheel"


class MissingPackage(FilestoreError):
    """A function needs an optional package that is not installed."""

    slug = "missing-package"
    facts = ("package", "what", "extra")
    sentence = "{package} is not installed, and {what} needs it; `pip install '.[{extra}]'` in filestore's folder installs it"


class Unauthorized(FilestoreError):
    """No token, or a token that the server does not know."""

    slug = "unauthorized"
    facts = ("where",)
    sentence = "{where} refused the token; give a token of that server"
    hint = "check-token"


class TokenMissing(Unauthorized):
    """A server that needs a token was asked without one."""

    slug = "token-missing"
    sentence = "{where} needs a token, and none was given; give a token of that server"
    hint = "give-token"


class TokenExpired(Unauthorized):
    """A token whose time is over."""

    slug = "token-expired"
    sentence = "{where} refused the token, because it has expired; give a valid token of that server"
    hint = "renew-token"


class UrlRefused(FilestoreError):
    """A signed URL that is not valid."""

    slug = "url-refused"
    sentence = "the URL was refused: {reason}; ask for a new one where it came from"


class TooManyGuesses(FilestoreError):
    """A client whose address has sent too many wrong tokens or signatures. With the right one it is not refused."""

    slug = "too-many-guesses"
    facts = ("where", "limit")
    sentence = (
        "{where} refused the token or the signed URL, and answers at most {limit} wrong ones of an address in a minute; "
        "use the right one, which is accepted at once"
    )
    hint = "check-token"
    limit: int


class QuotaExceeded(FilestoreError):
    """A namespace would keep more than its quota permits."""

    slug = "quota-exceeded"
    facts = ("what", "used", "limit")
    sentence = (
        "{what} would be {used}, and its quota is {limit}; remove files, whose content counts until the next collection, or ask"
        " whoever runs the server for more"
    )
    hint = "free-quota"
    used: int
    limit: int


class RateLimited(FilestoreError):
    """A namespace or a token does more at the moment than its quota permits."""

    slug = "rate-limited"
    facts = ("what", "limit", "wait_seconds")
    retryable = True
    sentence = "{what} would be more than the quota of {limit}; try again in {wait_seconds} s"
    limit: int
    wait_seconds: int


class Forbidden(FilestoreError):
    """The token is valid, but its namespace may not do this."""

    slug = "forbidden"
    facts = ("where", "namespace")
    sentence = "{where} allows this only with a token of the namespace {namespace!r}; use one of those"


class UpstreamGated(FilestoreError):
    """The upstream gives the files of a repository only to those whom it has permitted to read them."""

    slug = "upstream-gated"
    facts = ("name",)
    sentence = (
        "{name!r} is gated at the upstream, which does not give it to the caller; ask for access there, and send a token of the"
        " upstream in the header X-Upstream-Authorization"
    )


class UpstreamUnauthorized(FilestoreError):
    """The upstream shows a repository to nobody without one of its tokens, or does not accept the caller's. It may not exist."""

    slug = "upstream-unauthorized"
    facts = ("name", "reason")
    sentence = "the upstream does not show {name!r} to the caller: {reason}"
    reason: str


class UpstreamFailed(FilestoreError):
    """The upstream cannot be asked for a repository now, or its answer cannot be used."""

    slug = "upstream-failed"
    facts = ("name", "reason")
    sentence = "the upstream gives nothing for {name!r} that can be used: {reason}"
    retryable = True
    reason: str


class ScopeMissing(FilestoreError):
    """The token is valid, but its scope does not permit this."""

    slug = "scope-missing"
    facts = ("where", "needed", "scope")
    sentence = "{where} allows this only with a token of the scope {needed!r} or a higher one; this token has {scope!r}"
    hint = "give-scope"


class OutsidePrefix(FilestoreError):
    """The token is valid, but sees only the names that begin with its prefix."""

    slug = "outside-prefix"
    facts = ("what", "prefix")
    sentence = "this token is only for names that begin with {prefix!r}, and not for {what}"


class UsedAfterFork(FilestoreError):
    """An object that a process opened is used in a child that was forked from it."""

    slug = "used-after-fork"
    facts = ("what", "parent")
    sentence = (
        "{what} was open in process {parent} when this process was forked from it, and cannot be used here;"
        " open it after the fork, and close it before, or start processes by spawn or forkserver"
    )
    parent: int


class BlockingCallRefused(FilestoreError):
    """A call of `filestore.blocking` where none can be made, such as in the thread of its event loop."""

    slug = "blocking-call-refused"
    sentence = "a call of filestore.blocking was refused: {reason}"


class SourceError(FilestoreError):
    """A push cannot use its source."""

    slug = "source-error"
    facts = ("path", "reason")
    sentence = "{path} cannot be pushed: {reason}"


class SourceUnreadable(SourceError):
    """A file that is pushed cannot be read."""

    slug = "source-unreadable"
    sentence = "{path} cannot be read: {reason}"


class SourceChanged(SourceError):
    """A file changed while it was pushed."""

    slug = "source-changed"
    sentence = "{path} changed while it was pushed ({reason}); nothing was recorded, push it again when nobody writes to it"


class SourceRefused(SourceError):
    """Something in a directory cannot be pushed."""

    slug = "source-refused"
    sentence = "{path} was refused: {reason}"


class TargetError(FilestoreError):
    """A fetch cannot write to its target."""

    slug = "target-error"
    facts = ("path", "reason")
    sentence = "{path} cannot be written: {reason}"


class StorageError(FilestoreError):
    """The disk of a repository, a cache or a target failed."""

    slug = "storage-error"
    facts: ClassVar[Names] = ("path", "reason")
    sentence = "{path} failed: {reason}"


class NotPermitted(StorageError):
    """Files of a repository belong to another user, and this user may not use them."""

    slug = "not-permitted"
    sentence = "{path} failed: {reason}; ask its owner for the right to use it, or for the URL of a server that serves it"


class StoreRefused(StorageError):
    """An object store does not accept the credentials, or they do not permit what was asked for."""

    slug = "store-refused"
    sentence = "{path} refused a request: {reason}; check the credentials, and what they permit in the bucket"


class IndexUnreadable(StorageError):
    """The index of a repository is intact, but cannot be read from here."""

    slug = "index-unreadable"
    facts = ("path", "reason", "advice")
    sentence = "{path} cannot be read: {reason}; {advice}"


class CollectionHeld(FilestoreError):
    """Nothing may be removed from a namespace, because its content may be the only copy of files that lost their names."""

    slug = "collection-held"
    facts = ("namespace", "reason", "manifest_count")
    manifest_count: int
    sentence = (
        "the collection of the namespace {namespace} is held: {reason}, so that manifests without a name ({manifest_count}) may"
        " be those of the only copies of files; push these files again or restore a newer backup, and then end the hold"
    )
    hint = "end-hold"


class IndexDamaged(StorageError):
    """The index of a repository is damaged, empty, older than the last commit to the repository, or that of another one."""

    slug = "index-damaged"
    sentence = "{path} cannot be used: {reason}; restore it from a backup, or repair the repository"
    hint = "repair-index"


class IndexReplaced(StorageError):
    """A file of an index was replaced or removed while this process had it open."""

    slug = "index-replaced"
    sentence = (
        "{path} is not written to any more: {reason}, so that a write would be lost or damage the new file; "
        "stop this process, check that the right file is in its place, and start again"
    )


class LinkedDatabase(StorageError):
    """The file of an index or of a runtime has more than one name, so that it would have more than one log."""

    slug = "linked-database"
    facts = ("path", "count")
    sentence = (
        "{path} is not opened: its file has {count} names (hard links, as after `cp -l`), and processes that use different ones"
        " lose what the others write; remove the other names, or end all processes that use it, copy the file, and rename the"
        " copy to this name"
    )
    hint = "copy-repository"
    count: int


class StorageFull(StorageError):
    """No space is left."""

    slug = "storage-full"
    sentence = "{path} is full: {reason}; free some space and try again, what is there already is not sent again"


class MinFreeReached(StorageFull):
    """A write that would leave less space free than the setting `setting` demands."""

    slug = "min-free-reached"
    facts = ("path", "needed", "free", "limit", "setting")
    sentence = (
        "{path} is full: {needed} bytes are needed, {free} are free, and {limit} of these stay free by the"
        " setting {setting}; remove files, which works on a full disk, or lower that setting; what is there already is not sent"
        " again"
    )
    hint = "free-repository"
    needed: int
    free: int
    limit: int
    setting: str = "min_free"


class CacheFull(StorageFull):
    """A cache has no room within its limits, and nothing in it can be removed."""

    slug = "cache-full"
    sentence = "the cache {path} has no room: {reason}"


class Busy(FilestoreError):
    """Another process holds a lock for longer than this one waits."""

    slug = "busy"
    facts = ("where", "reason")
    retryable = True
    sentence = "{where} is busy: {reason}; try again"


class Unhealthy(FilestoreError):
    """A part of a server does not work, by its own check."""

    slug = "unhealthy"
    facts = ("part", "reason")
    sentence = "the {part} of the server failed its check: {reason}; the log of the server may say more"


class AddressError(FilestoreError):
    """A server cannot listen at its address."""

    slug = "address-error"
    facts = ("address", "reason")
    sentence = "nothing can listen at {address}: {reason}; give another address"
    hint = "choose-address"


class AddressInUse(AddressError):
    """Another process listens at that address."""

    slug = "address-in-use"
    sentence = "{address} is taken: {reason}; stop the server that listens there, or give another port (0: any free one)"
    hint = "choose-port"


class TransferError(FilestoreError):
    """The connection to a server failed."""

    slug = "transfer-error"
    facts: ClassVar[Names] = ("url", "reason")
    sentence = "the transfer with {url} failed: {reason}"
    retryable = True


class Unreachable(TransferError):
    """No connection could be made."""

    slug = "unreachable"
    sentence = "{url} cannot be reached: {reason}; check that a filestore server runs there"
    hint = "start-server"


class HostUnknown(Unreachable):
    """The host of a URL has no address."""

    slug = "host-unknown"
    sentence = "{url} cannot be reached: {reason}; check the host name"
    hint = ""


class NoServerLeft(Unreachable):
    """None of the servers of a repository can be used."""

    slug = "no-server-left"
    facts = ("reason",)
    sentence = "none of the servers can be used: {reason}"
    hint = ""


class OriginUnreachable(Unreachable):
    """No connection could be made to the third-party server of a URL."""

    slug = "origin-unreachable"
    sentence = "{url} cannot be reached: {reason}"
    hint = ""


class ProxyUnreachable(Unreachable):
    """No connection could be made to the proxy that leads to a server."""

    slug = "proxy-unreachable"
    facts = ("url", "proxy", "source", "reason")
    sentence = (
        "{url} cannot be reached: the proxy {proxy}, which {source} names, gave no connection ({reason}); "
        "correct {source}, or name the host in NO_PROXY to reach it without the proxy"
    )
    hint = ""


class Stalled(TransferError):
    """A peer moved no byte for too long, or too few bytes."""

    slug = "stalled"
    facts = ("url", "seconds")
    sentence = "{url} moved no byte for {seconds:g} seconds, or too few; try again"
    seconds: float


class Interrupted(TransferError):
    """A connection was cut in the middle of an answer or a request."""

    slug = "interrupted"
    sentence = "{url} cut the connection: {reason}; try again"


class WorkerEnded(TransferError):
    """A worker process of a transfer ended before its work was done."""

    slug = "worker-ended"
    sentence = "a worker process of the transfer with {url} ended: {reason}; try again, what has arrived is not moved again"
    retryable = False


class ServerError(TransferError):
    """A server answered with a status that no other error covers. The standard phrase stands for an empty `reason`."""

    slug = "server-error"
    facts: ClassVar[Names] = ("url", "status_code", "reason")
    sentence = "{url} answered {status_code}: {reason}"
    status_code: int
    reason: str

    def __init__(self, *facts: Fact, hint: str = "") -> None:
        super().__init__(*facts, hint=hint)
        self.retryable = self.status_code in _RETRYABLE_STATUSES

    def __str__(self) -> str:
        wait = self.retry_after_seconds
        return self._explanation() + ("" if wait is None else f"; it asks to wait {wait:g} seconds before the next try")

    def _explanation(self) -> str:
        reason = _without_status(self.reason, self.status_code) or _phrase(self.status_code)
        return self.sentence.format_map(self.named_facts() | {"reason": reason})


class ForeignAnswer(ServerError):
    """The answer came from a proxy, or from another server than filestore. `server` may be empty."""

    slug = "foreign-answer"
    facts = ("url", "status_code", "server", "advice")
    sentence = (
        "{url} answered {status_code}, and this answer was not made by filestore but by {server}: {advice}"
        " (docs/behind-a-proxy.md says more)"
    )
    server: str
    through = ""
    """The proxy that the request went through, and who names it."""

    def _explanation(self) -> str:
        name = f"a server that calls itself {self.server!r}" if self.server else "a server that does not say its name"
        through = f"; the request went through {self.through}" if self.through else ""
        return self.sentence.format_map(self.named_facts() | {"server": name}) + through


def _without_status(reason: str, status: int) -> str:
    """The reason without the status and a colon at its beginning, which many servers write there; "" for the status alone."""
    reason = reason.strip()
    while reason.startswith(f"{status}:"):
        reason = reason.partition(":")[2].strip()
    return "" if reason == str(status) else reason


def _phrase(status: int) -> str:
    """The standard words for a status."""
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else "no explanation"


def storage_error(where: str, error: OSError) -> StorageError:
    """What an operating system's error means for who stores something in `where`; a file that it names is named."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.EFBIG:
        reason = (
            "a file there may not have that many bytes, by the limit of its file system or by that of this process"
            " (`ulimit -f`); use another file system, or raise that limit"
        )
    return StorageFull(where, reason) if error.errno in _FULL else StorageError(str(error.filename or where), reason)
