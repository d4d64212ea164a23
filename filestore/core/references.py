"""References to stored files, URLs and pipelines. `File`, `Directory` and `FileURL` are also the values of pipelines.

The grammar of references is in `docs/references.md`. This module has its only parser.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, fields, replace
from dataclasses import field as data_field
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from filestore.core.digest import Digest
from filestore.core.names import (
    OWNER_REASON,
    checked_name,
    checked_pipeline_name,
    full_name,
    is_owner,
    plain_name,
    split_full_name,
)
from filestore.core.paths import FILES_PREFIX, RUN_FILES_PREFIX, file_path, parse_file_path, parse_run_path
from filestore.core.records import FILE_ID_PATTERN, Record
from filestore.errors import InvalidDigest, InvalidName, InvalidReference, redact_signature

PIPELINE_ID_PATTERN = re.compile(r"pipeline_[0-9a-f]{32}\Z")

_POINTER = re.compile(r"(.*):(latest|v[1-9][0-9]*)\Z", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REVISION_LIMIT = 255
"""The largest size of a revision in bytes."""
_SHA256 = re.compile(r"sha256:[0-9a-fA-F]{64}\Z")
_VERSIONS_BACK = re.compile(r"~(0|[1-9][0-9]{0,8})\Z")
_DIGITS = re.compile(r"[0-9a-f]{7,64}\Z")
_USER = re.compile(r"\A([a-z]+://)[^/]*@", re.IGNORECASE)


@runtime_checkable
class PathLike(Protocol):
    """An object that is a path on this machine, such as a `pathlib.Path`."""

    def __fspath__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to a stored file, or to an entry of a stored directory.

    Exactly one of `id`, `digest` and `name` is given, or `digest` and `name` together (a stored path).

    id: The id of a record: `file_` and 32 hexadecimal digits.
    digest: The digest of the content.
    name: The name, which means the newest file with that name. If `digest` is also given, the name in a stored
        path.
    owner: What is before the slash of a name that has an owner. Only for a name without a digest.
    revision: Which version of `name` is meant, if it is not the newest one: a tag, a branch, `~N` for N versions before the
        newest one, the id of a commit, or at least 7 of the first digits of such an id or of the digest of a version. Only
        for a name without a digest.
    entry_path: A path inside a directory. An empty path means the directory itself.
    name_otherwise: The name to look for if no file has this `id` or `digest`. A file name may look like an id or a
        digest.
    """

    id: str | None = None
    digest: Digest | None = None
    name: str | None = None
    _: KW_ONLY
    owner: str | None = None
    revision: str | None = None
    entry_path: str | None = None
    name_otherwise: str | None = data_field(default=None, compare=False)

    def __post_init__(self) -> None:
        is_of_name = self.name is not None and self.digest is None and self.id is None
        if self.revision is not None and not is_of_name:
            raise InvalidReference(str(self), "a revision can only follow a name")
        if self.owner is not None and not is_of_name:
            raise InvalidReference(str(self), "an owner can only stand before a name")

    @classmethod
    def of_name(cls, name: str, revision: str | None = None) -> Reference:
        """Return the reference to a name, with or without an owner before it. Nothing is checked."""
        owner, name = split_full_name(name)
        return cls(name=name, owner=owner, revision=revision)

    @property
    def full_name(self) -> str | None:
        """The name with its owner. None if no name is given."""
        return None if self.name is None else full_name(self.owner, self.name)

    @property
    def without_entry(self) -> Reference:
        """The reference to the directory itself, if this one has a path inside it."""
        return replace(self, entry_path=None)

    @property
    def versions_back(self) -> int | None:
        """How many versions before the newest one the revision `~N` means. None for another revision."""
        return versions_back(self.revision)

    @property
    def digits(self) -> str | None:
        """The first digits of a digest or of the id of a commit. None if the revision is not of this kind."""
        return digits_in(self.revision)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a stored path, an id, a digest or a name. They are tried in this order.

        A text that looks like an id or a digest may also be the name of a file, as in the caches of some model hubs:
        `name_otherwise` keeps it. Raises InvalidReference if the text is not a reference.
        """
        if text.removeprefix("/").startswith((f"{FILES_PREFIX}/", f"{RUN_FILES_PREFIX}/")):
            return cls.parse_path(text)
        if not text:
            raise InvalidReference(text, "it is empty; give a name, an id, a digest or a stored path")
        if text.startswith(_LOCAL_BEGINNINGS):
            raise InvalidReference(text, "a path of this machine names no stored file; store it with a push first")
        head, colon, inner = text.partition(":")
        entry_path = _checked_entry_path(inner, text) if colon else None
        base, at, after = head.partition("@")
        revision = _checked_revision(after, text) if at else None
        file_id = base if FILE_ID_PATTERN.match(base) else None
        digest = _digest(base)
        if file_id is not None or digest is not None:
            if revision is not None:
                raise InvalidReference(text, "an id or a digest means one state of a file, so a revision cannot follow it")
            return cls(id=file_id, digest=digest, entry_path=entry_path, name_otherwise=base)
        owner, slash, name = base.rpartition("/")
        if "/" in owner:
            raise InvalidReference(text, f"only one owner can stand before a name; {_STORED_PATH_REASON}")
        if slash and not is_owner(owner):
            raise InvalidReference(text, _OWNER_REASON)
        if not name:
            where = "after its '/'" if slash else f"before its '{at or colon}'"
            raise InvalidReference(text, f"the name is missing {where}")
        try:
            checked_name(name)
        except InvalidName as error:
            raise InvalidReference(text, error.reason) from None
        return cls(owner=owner if slash else None, name=name, revision=revision, entry_path=entry_path)

    @classmethod
    def parse_path(cls, path: str) -> Reference:
        """Parse a stored path.

        The result for the path of a record (`run_files/...`) has only an id. The result for any other stored path has a
        digest and a name. Raises InvalidReference if `path` is not a stored path.
        """
        try:
            if path.removeprefix("/").startswith(f"{RUN_FILES_PREFIX}/"):
                file_id, name = parse_run_path(path)
                checked_name(name)
                return cls(id=file_id)
            digest, name = parse_file_path(path)
            return cls(digest=digest, name=checked_name(name))
        except InvalidName as error:
            raise InvalidReference(path, str(error)) from None

    def means(self, record: Record) -> bool:
        """Return whether `record` has the id, the digest, the name and the owner that this reference gives.

        `name_otherwise` and the revision are not compared. In a stored path, a name is meant whatever its owner.
        """
        is_name = self.name is None or (self.name == record.name and (self.digest is not None or self.owner == record.owner))
        return self.id in {None, record.id} and self.digest in {None, record.digest} and is_name

    def __str__(self) -> str:
        if self.digest is not None and self.name is not None:
            return file_path(self.digest, self.name)
        revision = "" if self.revision is None else f"@{self.revision}"
        entry_path = "" if self.entry_path is None else f":{self.entry_path}"
        return f"{self.id or self.digest or self.full_name}{revision}{entry_path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineReference:
    """A reference to a pipeline: its id, or its name. A pointer to one of its versions may follow the name."""

    id: str | None = None
    name: str | None = None
    pointer: str | None = None
    """The version: `latest`, or `v` and a number."""

    @classmethod
    def parse(cls, text: str) -> PipelineReference:
        """Parse an id, or `NAME[:vN|:latest]`. Raises InvalidInput if the name is not valid.

        If the text after a colon is neither `latest` nor `v` and a number, the colon belongs to the name.
        """
        if PIPELINE_ID_PATTERN.match(text):
            return cls(id=text)
        found = _POINTER.match(text)
        name, pointer = (found[1], found[2]) if found is not None else (text, None)
        return cls(name=checked_pipeline_name(name), pointer=pointer)

    def __str__(self) -> str:
        return str(self.id or self.name) + ("" if self.pointer is None else f":{self.pointer}")


@dataclass(frozen=True, slots=True, repr=False)
class FileURL:
    """A file at the URL of another server, which `Cache.resolve` downloads.

    >>> FileURL("https://example.org/weights/model.safetensors")
    >>> FileURL("https://example.org/model.bin", digest="sha256:0123...")
    >>> FileURL("https://example.org/labels.json", max_age_seconds=3600, stale_ok=True)

    `url`: an http or https URL without a user name or a password.
    `digest`: the digest that the bytes must have: `sha256:` and 64 hexadecimal digits, as publishers print it, or a digest of
        filestore. With a digest, a file that is in the cache is used without a request to the server. Without a digest,
        each call asks the server whether the file has changed.
    `max_age_seconds`: for this time after the last request, the server is not asked again.
    `stale_ok`: if the server cannot be reached, use the file of the last download.

    Making the object does no I/O. `repr` and errors never show the query of the URL, because it may contain a
    signature.

    Raises InvalidReference if the URL is not http or https or contains a user name or a password, or if the digest is
    malformed.
    """

    url: str
    _: KW_ONLY
    digest: str | None = None
    max_age_seconds: float | None = None
    stale_ok: bool = False

    def __post_init__(self) -> None:
        reason = _url_problem(self.url)
        if reason is not None:
            raise InvalidReference(_redact_if_needed(self.url), reason)
        if self.digest is not None and self.expected is None:
            raise InvalidReference(
                self.redacted_url, "its digest is not 64 hexadecimal digits, with or without sha256: before them"
            )
        age = self.max_age_seconds
        if age is not None and not (isinstance(age, int | float) and age >= 0):
            raise InvalidReference(self.redacted_url, "its max_age_seconds is not a number of seconds")

    def __repr__(self) -> str:
        return _printed(self)

    @property
    def redacted_url(self) -> str:
        """The URL without its query, so that it may be printed."""
        return redact_url(self.url)

    @property
    def name(self) -> str:
        """The name of the file in the cache: the last part of the URL's path, decoded and changed to a valid name."""
        return plain_name(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def expected(self) -> Digest | str | None:
        """The digest that the download must have: a filestore digest, a SHA-256 as 64 lower-case hexadecimal digits, or None."""
        if not isinstance(self.digest, str):
            return None
        if _SHA256.match(self.digest):
            return self.digest.rpartition(":")[2].lower()
        try:
            return Digest.parse(self.digest)
        except InvalidDigest:
            return None


@dataclass(frozen=True, slots=True, repr=False, init=False)
class _NamedContent:
    """The base class of `File` and `Directory`.

    One of `path`, `id`, `digest` and `url` is given, or `digest` together with `url`. Values of different classes are
    never equal.
    """

    path: str | None
    id: str | None
    digest: str | None
    url: str | None
    max_age_seconds: float | None
    stale_ok: bool

    def __init__(
        self,
        path: str | PathLike | None = None,
        *,
        id: str | None = None,  # noqa: A002  # the name that users know it by
        digest: str | None = None,
        url: str | None = None,
        max_age_seconds: float | None = None,
        stale_ok: bool = False,
    ) -> None:
        path = path.__fspath__() if isinstance(path, PathLike) else path
        values = (path, id, digest, url, max_age_seconds, stale_ok)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        self._check()

    def __repr__(self) -> str:
        return _printed(self)

    @property
    def origin(self) -> FileURL | None:
        """The URL with its options, as a `FileURL`. None if no URL was given."""
        if self.url is None:
            return None
        return FileURL(self.url, digest=self.digest, max_age_seconds=self.max_age_seconds, stale_ok=self.stale_ok)

    @property
    def reference(self) -> Reference:
        """The reference by which a repository finds the content.

        Raises InvalidReference if a local path or a URL was given, because no repository can find these.
        """
        if self.path is not None:
            return _stored(self.path)
        if self.url is not None:
            raise InvalidReference(redact_url(self.url), "it is a URL, which a cache resolves and no repository knows")
        given = self.id or self.digest or ""
        reference = Reference.parse(given)
        if (self.id is None) != (reference.id is None) or (self.digest is None) != (reference.digest is None):
            raise InvalidReference(given, "an id is file_ and 32 hexadecimal digits, a digest 64 of them")
        # A value that was given as a digest or an id never means a name.
        return replace(reference, name_otherwise=None)

    def _check(self) -> None:
        names = {"path": self.path, "id": self.id, "url": self.url, "digest": self.digest}
        given = [name for name, value in names.items() if value is not None]
        if given not in (["path"], ["id"], ["digest"], ["url"], ["url", "digest"]):
            raise InvalidReference(repr(self), "give one of path, id, digest and url, or digest together with url")
        for name in given:
            if not isinstance(names[name], str):
                raise InvalidReference(f"{type(self).__name__}({name}={type(names[name]).__name__})", f"its {name} is not a text")
        if self.url is not None:
            _ = self.origin
        elif self.max_age_seconds is not None or self.stale_ok:
            raise InvalidReference(repr(self), "max_age_seconds and stale_ok are only for a URL")
        elif self.path is None:
            _ = self.reference
        elif not self.path:
            raise InvalidReference(repr(self), "its path is empty")


class File(_NamedContent):
    """A stored file, a file on this machine that is to be pushed, or a file at a URL.

    Give exactly one of these arguments, or `digest` together with `url`:

    `path`: a stored path, such as `Record.path`, or the path of a file on this machine.
    `id`: the id of a record.
    `digest`: the digest of the content. Together with `url`, it means the same as in `FileURL`.
    `url`: an http or https URL. Only with a URL, `max_age_seconds` and `stale_ok` may be given: see `FileURL`.

    >>> File(id="file_0123...")
    >>> File("pipeline_files/ab/cd/<digest>/model.safetensors")
    >>> File("./model.safetensors")
    >>> File(url="https://example.org/model.safetensors")

    Making the object does no I/O. A `File` and a `Directory` are never equal.

    Raises InvalidReference if none or too many of these arguments are given, or if one of them is malformed.
    """

    __slots__ = ()


class Directory(_NamedContent):
    """A stored directory, a directory on this machine that is to be pushed, or a directory in a zip file at a URL.

    The arguments are the same as for `File`: `path`, `id`, `digest`, `url`, `max_age_seconds` and `stale_ok`. Any zip
    file can be used as a directory.

    >>> Directory(id="file_0123...")
    >>> Directory("./my_model")
    >>> Directory(url="https://example.org/my_model.zip", digest="sha256:0123...")

    Making the object does no I/O. Raises InvalidReference in the same cases as `File`.
    """

    __slots__ = ()


_LOCAL_BEGINNINGS = ("/", "./", "../", "~/")
_STORED_PATH_REASON = f"a stored path begins with {FILES_PREFIX}/ or {RUN_FILES_PREFIX}/"
_OWNER_REASON = (
    f"what is before its last '/' is neither an owner nor the folder of a stored path; {OWNER_REASON}; {_STORED_PATH_REASON}"
)


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidDigest:
        return None


def digits_in(revision: str | None) -> str | None:
    """Return a revision that is the first digits of a digest or of the id of a commit. None for another revision."""
    return revision if revision is not None and _DIGITS.match(revision) else None


def versions_back(revision: str | None) -> int | None:
    """Return N of a revision `~N`. None for another revision."""
    found = _VERSIONS_BACK.match(revision or "")
    return None if found is None else int(found[1])


def _checked_revision(revision: str, text: str) -> str:
    reason = _text_problem(revision)
    if reason is None and not revision:
        reason = "it is empty"
    if reason is None and "@" in revision:
        reason = "it contains a second '@'"
    if reason is None and len(revision.encode()) > _REVISION_LIMIT:
        reason = f"it has more than {_REVISION_LIMIT} bytes"
    if reason is not None:
        raise InvalidReference(text, f"what follows its '@' is not a revision: {reason}")
    return revision


def _checked_entry_path(path: str, text: str) -> str:
    reason = _text_problem(path)
    if reason is None and path and not {"", ".", ".."}.isdisjoint(path.split("/")):
        reason = "one of its parts between slashes is empty, '.' or '..'"
    if reason is not None:
        raise InvalidReference(text, f"what follows its ':' is not a path inside a directory: {reason}")
    return path


def _text_problem(text: str) -> str | None:
    if _CONTROL.search(text):
        return "it contains a control character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    return None


def redact_url(url: str) -> str:
    """Return `url` in a form that may be printed: without its query, its user name, its password and a signature.

    The query may contain a signature too.
    """
    head, mark, _ = url.partition("#")[0].partition("?")
    return redact_signature(_USER.sub(r"\1", head)) + (mark and "?...")


def _redact_if_needed(url: object) -> str:
    """Return the part of an invalid URL that may be printed. Such a text may have a password at an unexpected place."""
    if not isinstance(url, str):
        return type(url).__name__
    return f"{url.partition(':')[0]}:..." if "@" in url else redact_url(url)


def _url_problem(url: object) -> str | None:
    """Return the reason why `url` cannot be downloaded from. Return None if it can."""
    if not isinstance(url, str):
        return "a URL is a text"
    if not url.isprintable() or url != url.strip() or "\\" in url:
        return "it has control characters or backslashes, or blanks around it"
    try:
        parts = urlsplit(url)
        is_complete = parts.hostname and parts.port != 0
    except ValueError:
        return "its host or port is malformed"
    if parts.scheme not in {"http", "https"}:
        return "only http and https URLs are downloaded"
    if "@" in parts.netloc:
        return "a user name or password in a URL is neither kept nor sent; leave it out"
    return None if is_complete else "it has no host, or its port is 0"


def _printed(value: File | Directory | FileURL | _NamedContent) -> str:
    """Return the text for `repr`: the call that makes `value`. Default values and secret parts of URLs are left out."""
    shown = []
    for field in fields(value):
        given = getattr(value, field.name)
        if given is None or given is False:
            continue
        if field.name == "url":
            given = redact_url(given) if _url_problem(given) is None else _redact_if_needed(given)
        shown.append(f"{field.name}={given!r}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _stored(path: str) -> Reference:
    """Return the reference for a stored path. Raises InvalidReference if `path` is a local path."""
    if not path.removeprefix("/").startswith((f"{FILES_PREFIX}/", f"{RUN_FILES_PREFIX}/")):
        raise InvalidReference(path, "it is a local path; push it first, and use the id that the push prints")
    return Reference.parse_path(path)
