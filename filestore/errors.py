"""Every error that this library raises on purpose.

FilestoreError
├── InvalidInput              what the caller gave cannot be right
│   ├── InvalidDigest
│   ├── InvalidName
│   ├── InvalidReference
│   ├── InvalidRange
│   ├── InvalidUrl
│   ├── DownloadRefused
│   ├── NothingMatches
│   ├── InvalidParts
│   ├── InvalidRun
│   └── InvalidSetting
├── InvalidContent            bytes that are not what they say
│   ├── InvalidFrame
│   ├── InvalidBatch
│   ├── InvalidManifest
│   ├── InvalidArchive
│   │   └── NotAnArchive
│   ├── DamagedChunk
│   ├── DamagedRecord
│   └── UnexpectedContent
│       └── UnexpectedRecord
├── NotFound
│   ├── UploadNotFound
│   ├── UnknownPipeline
│   └── UnknownRun
├── ChunksMissing
├── LimitExceeded
├── NotARepository
├── ReadOnly
├── UsedAfterFork
├── BlockingCallRefused       a call of `filestore.blocking`
├── UnknownFormat
├── MissingCompiledPart
├── MissingPackage
├── Unauthorized
├── UrlRefused
├── RunFailed                 what a pipeline did, or did not do
│   ├── RunTimedOut
│   └── PipelineEnded
├── TooManyRuns
├── Forbidden
├── SourceError               what is pushed
│   ├── SourceUnreadable
│   ├── SourceChanged
│   └── SourceRefused
├── TargetError               where a fetch writes
├── StorageError              the disk under a repository, a cache or a target
│   ├── NotPermitted
│   ├── IndexUnreadable
│   └── StorageFull
│       └── CacheFull
├── Busy
├── AddressError              where a server listens
│   └── AddressInUse
└── TransferError          the way to a server
    ├── Unreachable
    │   ├── OriginUnreachable
    │   └── ProxyUnreachable
    ├── Stalled
    ├── Interrupted
    └── ServerError
        └── ForeignAnswer     what filestore did not make

The arguments are the facts, in the order of the constructor; the message is built from them, and is one sentence:
what happened, why, and what to do. `retryable` is decided where an error is born: the two rooms that retry (the HTTP
client, an object store) ask nothing else.
"""

from __future__ import annotations

import errno
from typing import ClassVar

Fact = str | int | float

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRYABLE_STATUSES = (408, 429, 502, 503, 504)


class FilestoreError(Exception):
    """The root of the tree. `args` hold the facts as JSON values, so that an error can cross the wire.

    `args` are the arguments of the constructor, so that a pickle and a wire's end make the same error. A class with other facts
    than its parent therefore calls the constructor of this class, and not that of its parent.
    """

    retryable: bool = False
    retry_after_seconds: float | None = None
    """How long whoever answered with this asks to wait before the next try; None where nobody said."""
    sentence: ClassVar[str] = "{0}"

    def __init__(self, *facts: Fact) -> None:
        super().__init__(*facts)

    def __str__(self) -> str:
        return self.sentence.format(*self.args)


class InvalidInput(FilestoreError):
    """What the caller gave cannot be right."""


class InvalidDigest(InvalidInput):
    """A text or a byte string is no digest."""

    sentence = "{0!r} is no digest: 64 lower-case hexadecimal digits are expected"

    def __init__(self, text: str) -> None:
        super().__init__(text)


class InvalidName(InvalidInput):
    """A file's name cannot be kept."""

    sentence = "the name {0!r} cannot be kept: {1}"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)


class InvalidReference(InvalidInput):
    """What should name a file names none."""

    sentence = "{0!r} names no file: {1}"

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(reference, reason)


class InvalidRange(InvalidInput):
    """A range of bytes does not lie in the file."""

    sentence = "the range {0!r} lies outside the file, which has {1} bytes"

    def __init__(self, asked: str, size: int) -> None:
        super().__init__(asked, size)
        self.size = size


class InvalidUrl(InvalidInput):
    """A URL that names no repository."""

    sentence = "{0!r} names no repository: {1}"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)


class DownloadRefused(InvalidInput):
    """A URL that nothing is downloaded from, for what it leads to."""

    sentence = "nothing is downloaded from {0}: {1}"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)


class NothingMatches(InvalidInput):
    """Globs that take nothing of a directory."""

    sentence = "nothing in {0} matches {1}; give globs for paths inside it, such as '*.safetensors'"

    def __init__(self, path: str, globs: str) -> None:
        super().__init__(path, globs)


class InvalidParts(InvalidInput):
    """The parts of an upload do not make up a file."""

    sentence = "the upload cannot be finished: {0}; send that part again, and list each part with the ETag that its upload gave"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class InvalidRun(InvalidInput):
    """Something of a run's request, or of what a pipeline returned; `where` says which, as one would write it in code."""

    sentence = "{0} of the run cannot be used: {1}"

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason


class InvalidSetting(InvalidInput):
    """A setting has a value that cannot be used; `source` names where it stands. The value may be a secret."""

    sentence = "{0} cannot be used: {1}"

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason


class InvalidContent(FilestoreError):
    """Bytes that are not what they say."""


class InvalidFrame(InvalidContent):
    """A frame does not decode to the chunk that it is given for."""

    sentence = "the frame of chunk {0} was refused: {1}"

    def __init__(self, digest: str, reason: str) -> None:
        super().__init__(digest, reason)
        self.digest = digest
        self.reason = reason


class InvalidBatch(InvalidContent):
    """A batch of frames whose own structure is broken."""

    sentence = "the batch of frames was refused: {0}"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class InvalidManifest(InvalidContent):
    """Bytes that are no canonical manifest."""

    sentence = "the manifest was refused: {0}"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class InvalidArchive(InvalidContent):
    """A zip file, or one entry of it, that is not unpacked. `entry` is empty where the file as a whole is at fault."""

    sentence = "the entry {0!r} of the archive was refused: {1}"

    def __init__(self, entry: str, reason: str) -> None:
        super().__init__(entry, reason)
        self.entry = entry
        self.reason = reason

    def __str__(self) -> str:
        return super().__str__() if self.args[0] else f"the archive was refused: {self.reason}"


class NotAnArchive(InvalidArchive):
    """A file that should be unpacked and is no zip file."""

    sentence = "{0!r} cannot be unpacked: {1}; fetch it as the file that it is"

    def __init__(self, name: str, reason: str) -> None:
        FilestoreError.__init__(self, name, reason)
        self.entry = ""
        self.reason = reason


class DamagedChunk(InvalidContent):
    """A kept frame no longer decodes to its digest."""

    sentence = "chunk {0} is damaged in the repository: {1}; push the file that holds it again"

    def __init__(self, digest: str, reason: str) -> None:
        super().__init__(digest, reason)


class DamagedRecord(InvalidContent):
    """A record whose manifest cannot be read, so that nobody knows which chunks it needs."""

    sentence = (
        "the record {0} ({1!r}) is damaged in the repository: {2}, so that nobody can tell which chunks it needs, and nothing was"
        " removed; push its file again, or remove that record by `filestore rm {0}`"
    )

    def __init__(self, file_id: str, name: str, reason: str) -> None:
        super().__init__(file_id, name, reason)


class UnexpectedContent(InvalidContent):
    """What a URL gave has another digest than it was to have."""

    sentence = (
        "{0} gave bytes with the digest {1}, not {2}; nothing was kept, compare what is expected with what its publisher says"
    )

    def __init__(self, url: str, found: str, expected: str) -> None:
        super().__init__(url, found, expected)


class UnexpectedRecord(UnexpectedContent):
    """A server answered with another record than the one that was asked for."""

    sentence = "{0} answered with {1} when it was asked for {2}; nothing was kept, check that this is the URL of your server"


class NotFound(FilestoreError):
    """Nothing is stored under a reference."""

    sentence = "nothing is stored under {0!r}; `filestore ls` shows what is"

    def __init__(self, reference: str) -> None:
        super().__init__(reference)


class UploadNotFound(NotFound):
    """No upload in parts is under way by that id."""

    sentence = "no upload {0!r} is under way here: it was never begun, lay still for too long, or is finished; begin another one"


class UnknownPipeline(NotFound):
    """No pipeline was uploaded under an id or a name."""

    sentence = "no pipeline is known as {0!r}; upload it, and run it by the id that the upload prints, or by its name"


class UnknownRun(NotFound):
    """No run has an id, or it was long ago."""

    sentence = "no run is known as {0!r}; only the latest ones are kept, and none when the server was started anew"


class ChunksMissing(FilestoreError):
    """Chunks that a manifest names are not in the repository. `digests` holds them, 64 hex digits each."""

    def __init__(self, *digests: str) -> None:
        super().__init__(*digests)
        self.digests = digests

    def __str__(self) -> str:
        count = len(self.digests)
        return f"chunks are missing in the repository, {count} in all, the first is {self.digests[0]}; push the file again"


class LimitExceeded(FilestoreError):
    """Something is larger than a limit allows. `setting` names the one that is the limit; empty where none is."""

    sentence = "{0} is {1}, more than the limit of {2}"

    def __init__(self, what: str, found: int, limit: int, setting: str = "") -> None:
        super().__init__(what, found, limit, setting)
        self.setting = setting

    def __str__(self) -> str:
        what_to_do = f"; if you trust it, raise the setting {self.setting} (FILESTORE_{self.setting.upper()})"
        return super().__str__() + (what_to_do if self.setting else "")


class NotARepository(FilestoreError):
    """A folder in which there is no repository; `found` says what is there, `advice` what to do."""

    sentence = "{0} is not a repository: {1}; {2}"

    def __init__(self, folder: str, found: str, advice: str) -> None:
        super().__init__(folder, found, advice)
        self.folder = folder
        self.found = found


class ReadOnly(FilestoreError):
    """A repository that was opened for reading only is asked to write."""

    sentence = "{0} was opened for reading only; open it without read_only to write to it"

    def __init__(self, where: str) -> None:
        super().__init__(where)


class UnknownFormat(FilestoreError):
    """A repository or a cache of a version that this program does not know."""

    sentence = "{0} has format {1}, this program knows {2}; use the version of filestore that made it, or a newer one"

    def __init__(self, where: str, found: str, known: str) -> None:
        super().__init__(where, found, known)


class MissingCompiledPart(FilestoreError):
    """A package that we depend on was installed without its compiled part."""

    sentence = "{0} was installed without its compiled part and would be a hundred times slower; reinstall it from a wheel"

    def __init__(self, package: str) -> None:
        super().__init__(package)


class MissingPackage(FilestoreError):
    """A command needs a package that is not among those that everybody gets."""

    sentence = "{0} is not installed, and {1} needs it; `pip install 'filestore[{2}]'` brings it"

    def __init__(self, package: str, what: str, extra: str) -> None:
        super().__init__(package, what, extra)


class Unauthorized(FilestoreError):
    """No token, or one that the server does not know."""

    sentence = "{0} refused the token; give the one that `filestore serve` printed, by --token or FILESTORE_TOKEN"

    def __init__(self, where: str) -> None:
        super().__init__(where)


class UrlRefused(FilestoreError):
    """A signed URL that lets nobody in."""

    sentence = "the URL was refused: {0}; ask for a new one where it came from"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class RunFailed(FilestoreError):
    """A pipeline could not be loaded or started, or a run of it failed. `traceback` is empty where no code of its own did."""

    traceback: str = ""

    def __init__(self, exception: str, traceback: str = "") -> None:
        super().__init__(exception, traceback)
        self.traceback = traceback


class RunTimedOut(RunFailed):
    """A pipeline took too long."""

    sentence = "{0} took longer than {1:g} seconds and was ended; the setting run_seconds (FILESTORE_RUN_SECONDS) allows more"

    def __init__(self, what: str, seconds: float) -> None:
        FilestoreError.__init__(self, what, seconds)


class PipelineEnded(RunFailed):
    """The process of a pipeline is gone."""

    sentence = "the process of the pipeline {0} in the middle of {1}; the next run is given a new one"

    def __init__(self, how: str, what: str) -> None:
        FilestoreError.__init__(self, how, what)


class TooManyRuns(FilestoreError):
    """More runs wait than a server keeps waiting."""

    retryable = True
    sentence = "{0} runs wait already, as many as may; try again when some have ended"

    def __init__(self, count: int) -> None:
        super().__init__(count)


class Forbidden(FilestoreError):
    """A token that is known, and whose namespace may not ask for this."""

    sentence = "{0} tells that to tokens of the namespace {1!r} alone; use one of those"

    def __init__(self, where: str, namespace: str) -> None:
        super().__init__(where, namespace)


class UsedAfterFork(FilestoreError):
    """Something that a process has opened is used in a child that was forked from it."""

    sentence = (
        "{0} was open in process {1} when this process was forked from it, and cannot be used here;"
        " open it after the fork, and close it before, or start processes by spawn or forkserver"
    )

    def __init__(self, what: str, parent: int) -> None:
        super().__init__(what, parent)


class BlockingCallRefused(FilestoreError):
    """A call of `filestore.blocking` where none can be made, such as in the thread of its event loop."""

    sentence = "a call of filestore.blocking was refused: {0}"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class SourceError(FilestoreError):
    """What is pushed."""


class SourceUnreadable(SourceError):
    """A file that is pushed cannot be read."""

    sentence = "{0} cannot be read: {1}"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)


class SourceChanged(SourceError):
    """A file was written to while it was pushed."""

    sentence = "{0} changed while it was pushed ({1}); nothing was recorded, push it again when nobody writes to it"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)


class SourceRefused(SourceError):
    """Something in a directory cannot be pushed."""

    sentence = "{0} was refused: {1}"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)


class TargetError(FilestoreError):
    """A fetch cannot write where it was told to."""

    sentence = "{0} cannot be written: {1}"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)


class StorageError(FilestoreError):
    """The disk under a repository, a cache or a target failed."""

    sentence = "{0} failed: {1}"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)


class NotPermitted(StorageError):
    """Files of a repository belong to another user, who does not let this one use them."""

    sentence = "{0} failed: {1}; ask its owner for the right to use it, or for the URL of a server that serves it"


class IndexUnreadable(StorageError):
    """The index of a repository is sound, and cannot be read from here."""

    sentence = "{0} cannot be read: {1}; {2}"

    def __init__(self, path: str, reason: str, advice: str) -> None:
        FilestoreError.__init__(self, path, reason, advice)


class StorageFull(StorageError):
    """No space is left."""

    sentence = "{0} is full: {1}; free some space and run the same command again, what is there already is not sent again"


class CacheFull(StorageFull):
    """A cache has no room within its limits, and nothing in it may go."""

    sentence = "the cache {0} has no room: {1}"


class Busy(FilestoreError):
    """Another process holds what this one needs for longer than it waits."""

    retryable = True
    sentence = "{0} is busy: {1}; try again"

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)


class AddressError(FilestoreError):
    """A server cannot listen where it was told to."""

    sentence = "nothing can listen at {0}: {1}; give another address by --host and --port"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)


class AddressInUse(AddressError):
    """Another process listens there."""

    sentence = "{0} is taken: {1}; stop the server that listens there, or give another --port (0: any free one)"


class TransferError(FilestoreError):
    """The way to a server failed."""

    retryable = True


class Unreachable(TransferError):
    """No connection could be made."""

    sentence = "{0} cannot be reached: {1}; is `filestore serve` running there?"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)


class OriginUnreachable(Unreachable):
    """No connection could be made to the server behind a URL of someone else's."""

    sentence = "{0} cannot be reached: {1}"


class ProxyUnreachable(Unreachable):
    """No connection could be made to the proxy by which a server is reached."""

    sentence = (
        "{0} cannot be reached: the proxy {1}, which {2} names, gave no connection ({3}); "
        "correct {2}, or name the host in NO_PROXY to reach it without the proxy"
    )

    def __init__(self, url: str, proxy: str, source: str, reason: str) -> None:
        FilestoreError.__init__(self, url, proxy, source, reason)


class Stalled(TransferError):
    """A peer moved no byte for too long."""

    sentence = "{0} moved no byte for {1:g} seconds; run the same command again, what is there already is not sent again"

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(url, seconds)


class Interrupted(TransferError):
    """A connection was cut in the middle of an answer or a request."""

    sentence = "{0} cut the connection: {1}; run the same command again, what is there already is not sent again"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)


class ServerError(TransferError):
    """A server answered with a status that no other error stands for."""

    sentence = "{0} answered {1}: {2}"
    _asks_to_wait = "{0}; it asks to wait {1:g} seconds before the next try"

    def __init__(self, url: str, status: int, detail: str) -> None:
        super().__init__(url, status, detail)
        self.status = status
        self.retryable = status in _RETRYABLE_STATUSES

    def __str__(self) -> str:
        return self._with_wait(super().__str__())

    def _with_wait(self, sentence: str) -> str:
        wait = self.retry_after_seconds
        return sentence if wait is None else self._asks_to_wait.format(sentence, wait)


class ForeignAnswer(ServerError):
    """Something between this machine and the server answered, or another server than filestore. `server` may be empty."""

    sentence = "{0} answered {1}, and this answer was not made by filestore but by {2}: {3} (docs/behind-a-proxy.md says more)"

    through: str = ""
    """The proxy that the request went through, and who names it."""

    def __init__(self, url: str, status: int, server: str, advice: str) -> None:
        FilestoreError.__init__(self, url, status, server, advice)
        self.status = status
        self.retryable = status in _RETRYABLE_STATUSES

    def __str__(self) -> str:
        url, status, server, advice = self.args
        name = f"a server that calls itself {server!r}" if server else "a server that does not say its name"
        through = f"; the request went through {self.through}" if self.through else ""
        return self._with_wait(self.sentence.format(url, status, name, advice) + through)


def storage_error(where: str, error: OSError) -> StorageError:
    """What an operating system's error means for who stores something in `where`; a file that it names is named."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.EFBIG:
        reason = (
            "a file there may not have that many bytes, by the limit of its file system or by that of this process"
            " (`ulimit -f`); use another file system, or raise that limit"
        )
    return StorageFull(where, reason) if error.errno in _FULL else StorageError(str(error.filename or where), reason)
