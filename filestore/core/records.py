"""Records: a stored file under a name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from filestore.core.digest import Digest
from filestore.core.names import checked_name, checked_namespace
from filestore.core.paths import file_path, run_path
from filestore.errors import InvalidReference

FILE_ID_PATTERN = re.compile(r"file_[0-9a-f]{32}\Z")
_LAST_MOMENT = 253_402_300_800_000_000
"""Microseconds from 1970 to the year 10000."""


class Kind(StrEnum):
    """What a record stands for. The bytes of both are a file; a directory's are a zip."""

    FILE = "file"
    DIRECTORY = "directory"


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

    @property
    def run_path(self) -> str:
        """`run_files/31/7e/<the id as a UUID>/<name>`."""
        return run_path(self.id, self.name)

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
    """The inverse of `Record.as_json`: each value is checked, since ids and names become paths (I4).

    Raises KeyError, TypeError, ValueError or a FilestoreError for anything else.
    """
    size = values["size"]
    texts = {name: values[name] for name in ("id", "name", "digest", "kind", "namespace", "created_at", "updated_at")}
    if type(size) is not int or not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("its size is no number, or another of its values no text")
    return checked_record(
        Record(
            id=str(texts["id"]),
            name=str(texts["name"]),
            digest=Digest.parse(str(texts["digest"])),
            size=size,
            kind=Kind(str(texts["kind"])),
            namespace=str(texts["namespace"]),
            created_at=_microseconds(str(texts["created_at"])),
            updated_at=_microseconds(str(texts["updated_at"])),
        )
    )


def checked_record(record: Record) -> Record:
    """`record`, if its values can be those of one: ids and names become paths (I4). Raises ValueError or a FilestoreError."""
    checked_file_id(record.id)
    checked_name(record.name)
    checked_namespace(record.namespace)
    if not 0 <= record.size < 1 << 63:
        raise ValueError("its size is no number of bytes")
    if not all(0 <= moment < _LAST_MOMENT for moment in (record.created_at, record.updated_at)):
        raise ValueError("its times are out of range")
    return record


def parse_json(text: bytes | str) -> Any:
    """The value that a JSON text stands for. Raises ValueError for anything else, also for what is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def checked_file_id(text: str) -> str:
    """`text`, if it is the id of a record. Raises InvalidReference."""
    if not FILE_ID_PATTERN.match(text):
        raise InvalidReference(text, "an id is file_ and 32 hexadecimal digits")
    return text


def _timestamp(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _microseconds(timestamp: str) -> int:
    moment = datetime.fromisoformat(timestamp)
    if moment.tzinfo is None:
        raise ValueError("a time has a time zone")
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond
