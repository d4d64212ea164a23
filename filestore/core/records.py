"""Records: a stored file under a name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from filestore.core.digest import Digest
from filestore.core.names import checked_name, checked_namespace
from filestore.core.paths import file_path, run_path
from filestore.core.timestamps import format_timestamp, parse_timestamp
from filestore.errors import InvalidReference

FILE_ID_PATTERN = re.compile(r"file_[0-9a-f]{32}\Z")
_LAST_MOMENT = 253_402_300_800_000_000
"""Microseconds from 1970 to the year 10000."""


class Kind(StrEnum):
    """What a record is. The content of both kinds is the bytes of a file; for a directory, this file is a zip."""

    FILE = "file"
    """Its content is that of the file."""
    DIRECTORY = "directory"
    """Its content is a zip file of the directory."""


@dataclass(frozen=True, slots=True)
class Record:
    """A stored file or directory under a name, as a repository lists it.

    Times are microseconds since 1970 in UTC; `updated_at` orders records of one name.
    """

    id: str
    """`file_` and 32 hexadecimal digits. It never names another file."""
    name: str
    """What the file was called when it was pushed; that of a directory ends in `.zip`. Records may share a name."""
    digest: Digest
    """The digest of the content. Equal content has equal digests, on every machine."""
    size: int
    """Bytes of content: those of the file, or those of the zip that a directory is stored as."""
    kind: Kind
    """Whether it was pushed as a file or as a directory."""
    namespace: str
    """The part of the repository that it belongs to; a token sees one namespace."""
    created_at: int
    """When this record was made, in microseconds since 1970 in UTC."""
    updated_at: int
    """When the same content was last pushed under this name. The newest of several records of one name has the latest time."""

    @property
    def path(self) -> str:
        """The stored path by digest: `pipeline_files/ab/cd/<64 hex>/<name>`."""
        return file_path(self.digest, self.name)

    @property
    def run_path(self) -> str:
        """The stored path by id: `run_files/31/7e/<the id as a UUID>/<name>`."""
        return run_path(self.id, self.name)

    def as_json(self) -> dict[str, str | int]:
        """Return the form in which records are sent and printed. `record_from_json` is the inverse."""
        return {
            "id": self.id,
            "name": self.name,
            "digest": str(self.digest),
            "path": self.path,
            "size": self.size,
            "kind": self.kind.value,
            "namespace": self.namespace,
            "created_at": format_timestamp(self.created_at),
            "updated_at": format_timestamp(self.updated_at),
        }


def record_from_json(values: dict[str, str | int]) -> Record:
    """Invert `Record.as_json`. Each value is checked, since ids and names become paths (I4).

    Raises KeyError, TypeError, ValueError or a FilestoreError for anything else.
    """
    size = values["size"]
    texts = {name: values[name] for name in ("id", "name", "digest", "kind", "namespace", "created_at", "updated_at")}
    if type(size) is not int or not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("its size is not a number, or another value is not a text")
    return checked_record(
        Record(
            id=str(texts["id"]),
            name=str(texts["name"]),
            digest=Digest.parse(str(texts["digest"])),
            size=size,
            kind=Kind(str(texts["kind"])),
            namespace=str(texts["namespace"]),
            created_at=parse_timestamp(str(texts["created_at"])),
            updated_at=parse_timestamp(str(texts["updated_at"])),
        )
    )


def checked_record(record: Record) -> Record:
    """Return `record` if its values are valid. Ids and names become paths (I4).

    Raises ValueError or a FilestoreError.
    """
    checked_file_id(record.id)
    checked_name(record.name)
    checked_namespace(record.namespace)
    if not 0 <= record.size < 1 << 63:
        raise ValueError("its size is not a number of bytes")
    if not all(0 <= moment < _LAST_MOMENT for moment in (record.created_at, record.updated_at)):
        raise ValueError("its times are out of range")
    return record


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text. Raises ValueError for any other text, and for a text that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def checked_file_id(text: str) -> str:
    """Return `text` if it is the id of a record. Raises InvalidReference."""
    if not FILE_ID_PATTERN.match(text):
        raise InvalidReference(text, "an id is file_ and 32 hexadecimal digits")
    return text
