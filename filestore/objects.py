"""The values that go between rooms and that pipelines pass around: frozen, without I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from filestore.digest import Buffer, Digest
from filestore.errors import InvalidDigest, InvalidName, InvalidReference
from filestore.layout import FILES_PREFIX, file_path, parse_file_path

DEFAULT_NAMESPACE = "default"
NAME_LIMIT = 255

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_FILE_ID = re.compile(r"file_[0-9a-f]{32}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Kind(StrEnum):
    """What a record stands for. The bytes of both are a file; a directory's are a zip."""

    FILE = "file"
    DIRECTORY = "directory"


class Frame(NamedTuple):
    """An encoded chunk on its way. `data` is a whole frame, its header included; who made it owns its memory."""

    digest: Digest
    data: Buffer


class Progress(NamedTuple):
    """How far a push or a fetch is, in bytes."""

    total: int
    """Decoded bytes in all."""
    done: int
    """Decoded bytes that are dealt with."""
    moved: int
    """Encoded bytes of frames that went over the wire."""
    shared: int
    """Decoded bytes of `done` that did not have to move."""
    read: int
    """Decoded bytes read so far from the source of a push, or from what a fetch found here already."""
    file_count: int = 1
    """Files in all: those of a tree, or one."""
    files_done: int = 0
    """Files that are dealt with as a whole."""


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Record:
    """A file under a name. Times are microseconds since 1970 in UTC; `updated_at` orders records of one name."""

    id: str
    name: str
    digest: Digest
    size: int
    kind: Kind
    namespace: str
    created_at: int
    updated_at: int

    @property
    def path(self) -> str:
        """`pipeline_files/ab/cd/<64 hex>/<name>`."""
        return file_path(self.digest, self.name)

    def as_json(self) -> dict[str, str | int]:
        """The form in which records cross the wire and are printed; `record_from_json` is the inverse."""
        return {
            "id": self.id,
            "name": self.name,
            "digest": str(self.digest),
            "path": self.path,
            "size": self.size,
            "kind": self.kind.value,
            "namespace": self.namespace,
            "created_at": _timestamp(self.created_at),
            "updated_at": _timestamp(self.updated_at),
        }


def record_from_json(values: dict[str, str | int]) -> Record:
    """The inverse of `Record.as_json`. Raises KeyError, TypeError or ValueError for anything else."""
    return Record(
        id=str(values["id"]),
        name=checked_name(str(values["name"])),
        digest=Digest.parse(str(values["digest"])),
        size=int(values["size"]),
        kind=Kind(str(values["kind"])),
        namespace=checked_namespace(str(values["namespace"])),
        created_at=_microseconds(str(values["created_at"])),
        updated_at=_microseconds(str(values["updated_at"])),
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """How a user names a stored file: exactly one of the four is given, or `digest` and `name` together (a path)."""

    id: str | None = None
    digest: Digest | None = None
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """An id, a digest, a path or a name, tried in this order. Raises InvalidReference."""
        if _FILE_ID.match(text):
            return cls(id=text)
        try:
            return cls(digest=Digest.parse(text))
        except InvalidDigest:
            pass
        if "/" in text:
            digest, name = parse_file_path(text)
            return cls(digest=digest, name=name)
        try:
            return cls(name=checked_name(text))
        except InvalidName as error:
            raise InvalidReference(text, str(error)) from None

    def __str__(self) -> str:
        if self.digest is not None and self.name is not None:
            return file_path(self.digest, self.name)
        return str(self.id or self.digest or self.name)


@dataclass(frozen=True, slots=True, repr=False)
class _Named:
    """What `File` and `Directory` share: exactly one of `path`, `id` and `digest`. Values of two classes are never equal."""

    path: str | None = None
    id: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            raise InvalidReference(repr(self), "give exactly one of path, id and digest")
        if self.path is None:
            _ = self.reference
        elif not self.path:
            raise InvalidReference(repr(self), "its path is empty")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{field}={value!r}' for field, value in self._given().items())})"

    @property
    def reference(self) -> Reference:
        """What a repository is asked for. Raises InvalidReference for a local path, which no repository knows."""
        if self.path is not None:
            return _stored(self.path)
        (given,) = self._given().values()
        reference = Reference.parse(given)
        if (self.id is None) != (reference.id is None) or (self.digest is None) != (reference.digest is None):
            raise InvalidReference(given, "an id is file_ and 32 hexadecimal digits, a digest 64 of them")
        return reference

    def _given(self) -> dict[str, str]:
        fields = {"path": self.path, "id": self.id, "digest": self.digest}
        return {field: value for field, value in fields.items() if value is not None}


class File(_Named):
    """A file as pipelines pass it around: a stored one, named by `path`, `id` or `digest`, or a local one to be pushed.

    >>> File(id="file_0123...")
    >>> File("pipeline_files/ab/cd/<digest>/model.safetensors")
    >>> File("./model.safetensors")

    Raises InvalidReference when none or several are given, or an id or a digest is malformed. Does no I/O.
    """

    __slots__ = ()


class Directory(_Named):
    """A directory, given as a `File` is: of what is stored, any zip file serves, and stands for its tree.

    >>> Directory(id="file_0123...")
    >>> Directory("./my_model")

    Raises InvalidReference as `File` does. Does no I/O.
    """

    __slots__ = ()


def _stored(path: str) -> Reference:
    """What a stored path names. Raises InvalidReference, InvalidName."""
    if not path.removeprefix("/").startswith(f"{FILES_PREFIX}/"):
        raise InvalidReference(path, "it is a local path; push it first, and use the id that the push prints")
    digest, name = parse_file_path(path)
    return Reference(digest=digest, name=checked_name(name))


def checked_name(name: str) -> str:
    """`name`, if a file can be kept under it on any machine. Raises InvalidName."""
    if not name or name in (".", ".."):
        raise InvalidName(name, "it is empty, or stands for a folder")
    if "/" in name or _CONTROL.search(name):
        raise InvalidName(name, "it holds a slash or a control character")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(ascii(name), "it is not valid UTF-8") from None
    if length > NAME_LIMIT:
        raise InvalidName(name, f"it has {length} bytes, allowed are {NAME_LIMIT}")
    return name


def archive_name(folder: str) -> str:
    """The name that a folder is kept under where nobody says another, as the Pipeline SDK names it. Raises InvalidName."""
    return checked_name(f"{folder}.zip")


def tree_name(name: str) -> str:
    """The name of the folder that a zip file called `name` unpacks to. Where `name` can be kept, so can that (I4)."""
    stem = name.removesuffix(".zip")
    return name if stem in ("", ".", "..") else stem


def checked_namespace(namespace: str) -> str:
    """`namespace`, if it is one. Raises InvalidName."""
    if not _NAMESPACE.match(namespace):
        raise InvalidName(namespace, "a namespace is 1 to 63 lower-case letters, digits, '-' and '_'")
    return namespace


def _timestamp(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _microseconds(timestamp: str) -> int:
    moment = datetime.fromisoformat(timestamp)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond
