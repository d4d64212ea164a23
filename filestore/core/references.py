"""References to stored files and URLs, and the values that pipelines pass: File, Directory, FileURL."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, fields, replace
from dataclasses import field as data_field
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from filestore.core.digest import Digest
from filestore.core.names import checked_name, plain_name
from filestore.core.paths import FILES_PREFIX, RUN_FILES_PREFIX, file_path, parse_file_path, parse_run_path
from filestore.core.records import FILE_ID_PATTERN, Record
from filestore.errors import InvalidDigest, InvalidName, InvalidReference

_SHA256 = re.compile(r"sha256:[0-9a-fA-F]{64}\Z")
_USER = re.compile(r"\A([a-z]+://)[^/]*@", re.IGNORECASE)


@runtime_checkable
class PathLike(Protocol):
    """A path of this machine, such as a `pathlib.Path`."""

    def __fspath__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Reference:
    """How a user names a stored file: exactly one of the three is given, or `digest` and `name` together (a path)."""

    id: str | None = None
    """The id of a record: `file_` and 32 hexadecimal digits."""
    digest: Digest | None = None
    """The digest of the content."""
    name: str | None = None
    """The name of the newest file of that name; with `digest`, the name of a stored path."""
    _: KW_ONLY
    name_otherwise: str | None = data_field(default=None, compare=False)
    """The name that is meant where nothing is stored under `id` or `digest`: a name may look like either."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """An id, a digest, a path or a name, tried in this order. Raises InvalidReference.

        What looks like an id or a digest may also be the name of a file, as in the caches of some model hubs.
        """
        if FILE_ID_PATTERN.match(text):
            return cls(id=text, name_otherwise=text)
        try:
            return cls(digest=Digest.parse(text), name_otherwise=text)
        except InvalidDigest:
            pass
        if "/" in text:
            return cls.parse_path(text)
        try:
            return cls(name=checked_name(text))
        except InvalidName as error:
            raise InvalidReference(text, str(error)) from None

    @classmethod
    def parse_path(cls, path: str) -> Reference:
        """What a path names: of a record (`run_files/...`) its id, else digest and name. Raises InvalidReference."""
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
        """Whether that record has the id, the digest and the name that are given here; `name_otherwise` does not count."""
        return self.id in {None, record.id} and self.digest in {None, record.digest} and self.name in {None, record.name}

    def __str__(self) -> str:
        if self.digest is not None and self.name is not None:
            return file_path(self.digest, self.name)
        return str(self.id or self.digest or self.name)


@dataclass(frozen=True, slots=True, repr=False)
class FileURL:
    """A file at the URL of another server, which `Cache.resolve` downloads.

    >>> FileURL("https://example.org/weights/model.safetensors")
    >>> FileURL("https://example.org/model.bin", digest="sha256:0123...")
    >>> FileURL("https://example.org/labels.json", max_age_seconds=3600, stale_ok=True)

    `url`: an http or https URL without a user name or a password.
    `digest`: the digest that the bytes must have: `sha256:` and 64 hexadecimal digits, as publishers print it, or a digest of
        filestore. With it, a file that the cache has is used and no server is asked. Without it, the server is asked each time
        whether the file has changed.
    `max_age_seconds`: how long after such a question the server is not asked again.
    `stale_ok`: use the file that the server gave last where the server cannot be reached.

    Does no I/O. Neither `repr` nor an error shows the query of a URL, since it may hold a signature.

    Raises InvalidReference for another kind of URL, for a user name or a password in it, and for a malformed digest.
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
            raise InvalidReference(self.shown, "its digest is neither sha256: nor nothing before 64 hexadecimal digits")
        age = self.max_age_seconds
        if age is not None and not (isinstance(age, int | float) and age >= 0):
            raise InvalidReference(self.shown, "its max_age_seconds is no span of time")

    def __repr__(self) -> str:
        return _printed(self)

    @property
    def shown(self) -> str:
        """The URL as it may be printed: without its query."""
        return redact_url(self.url)

    @property
    def name(self) -> str:
        """The name of the file in the cache: the last part of the URL's path, decoded, and changed where it cannot be a name."""
        return plain_name(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def expected(self) -> Digest | str | None:
        """The digest that is expected: one of ours, or a SHA-256 as 64 lower-case hexadecimal digits."""
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
    """What `File` and `Directory` share: one of `path`, `id`, `digest` and `url`, or `digest` beside `url`.

    Values of two classes are never equal.
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
        """What stands behind its URL; None for what is named otherwise."""
        if self.url is None:
            return None
        return FileURL(self.url, digest=self.digest, max_age_seconds=self.max_age_seconds, stale_ok=self.stale_ok)

    @property
    def reference(self) -> Reference:
        """What a repository is asked for. Raises InvalidReference for a local path and for a URL, which no repository knows."""
        if self.path is not None:
            return _stored(self.path)
        if self.url is not None:
            raise InvalidReference(redact_url(self.url), "it is a URL, which a cache resolves and no repository knows")
        given = self.id or self.digest or ""
        reference = Reference.parse(given)
        if (self.id is None) != (reference.id is None) or (self.digest is None) != (reference.digest is None):
            raise InvalidReference(given, "an id is file_ and 32 hexadecimal digits, a digest 64 of them")
        # Whoever gives a digest or an id as such never means a name.
        return replace(reference, name_otherwise=None)

    def _check(self) -> None:
        names = {"path": self.path, "id": self.id, "url": self.url, "digest": self.digest}
        given = [name for name, value in names.items() if value is not None]
        if given not in (["path"], ["id"], ["digest"], ["url"], ["url", "digest"]):
            raise InvalidReference(repr(self), "give one of path, id, digest and url, or digest beside url")
        for name in given:
            if not isinstance(names[name], str):
                raise InvalidReference(f"{type(self).__name__}({name}={type(names[name]).__name__})", f"its {name} is no text")
        if self.url is not None:
            _ = self.origin
        elif self.max_age_seconds is not None or self.stale_ok:
            raise InvalidReference(repr(self), "max_age_seconds and stale_ok are for what stands behind a URL")
        elif self.path is None:
            _ = self.reference
        elif not self.path:
            raise InvalidReference(repr(self), "its path is empty")


class File(_NamedContent):
    """A file: a stored one, a file of this machine that is to be pushed, or a file at a URL.

    Give exactly one of these, or `digest` with `url`:

    `path`: a stored path, such as `Record.path`, or the path of a file of this machine.
    `id`: the id of a record.
    `digest`: the digest of the content; with `url` as in `FileURL`.
    `url`: an http or https URL; `max_age_seconds` and `stale_ok` belong to it, see `FileURL`.

    >>> File(id="file_0123...")
    >>> File("pipeline_files/ab/cd/<digest>/model.safetensors")
    >>> File("./model.safetensors")
    >>> File(url="https://example.org/model.safetensors")

    Does no I/O. A `File` and a `Directory` are never equal.

    Raises InvalidReference where none or several are given, or where one of them is malformed.
    """

    __slots__ = ()


class Directory(_NamedContent):
    """A directory: the tree of a stored zip file, a directory of this machine, or the tree of a zip file at a URL.

    Its arguments are those of `File`: `path`, `id`, `digest`, `url`, `max_age_seconds` and `stale_ok`. Any zip file can be one.

    >>> Directory(id="file_0123...")
    >>> Directory("./my_model")
    >>> Directory(url="https://example.org/my_model.zip", digest="sha256:0123...")

    Does no I/O. Raises InvalidReference as `File` does.
    """

    __slots__ = ()


def redact_url(url: str) -> str:
    """A URL as it may be printed. Its query may hold a signature, and what stands before an `@` a password."""
    head, mark, _ = url.partition("#")[0].partition("?")
    return _USER.sub(r"\1", head) + (mark and "?...")


def _redact_if_needed(url: object) -> str:
    """What may be printed of something that is no URL of ours, where a password may stand in an unexpected place."""
    if not isinstance(url, str):
        return type(url).__name__
    return f"{url.partition(':')[0]}:..." if "@" in url else redact_url(url)


def _url_problem(url: object) -> str | None:
    """Why something is no URL that is downloaded from; None where it is one."""
    if not isinstance(url, str):
        return "a URL is a text"
    if not url.isprintable() or url != url.strip() or "\\" in url:
        return "it holds control characters, backslashes or blanks around it"
    try:
        parts = urlsplit(url)
        is_complete = parts.hostname and parts.port != 0
    except ValueError:
        return "its host or port is malformed"
    if parts.scheme not in {"http", "https"}:
        return "only http and https URLs are downloaded"
    if "@" in parts.netloc:
        return "a user name or password in a URL is neither kept nor sent; leave it out"
    return None if is_complete else "it names no host, or a port that nothing listens on"


def _printed(value: File | Directory | FileURL | _NamedContent) -> str:
    """The call that makes a value, without what it leaves at its default, and without what must not be printed."""
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
    """What a stored path names. Raises InvalidReference."""
    if not path.removeprefix("/").startswith((f"{FILES_PREFIX}/", f"{RUN_FILES_PREFIX}/")):
        raise InvalidReference(path, "it is a local path; push it first, and use the id that the push prints")
    return Reference.parse_path(path)
