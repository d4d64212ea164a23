"""Records. A record gives a stored file or directory an id and a name."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from filestore.core.digest import Digest
from filestore.core.names import checked_name, checked_namespace, full_name, is_owner
from filestore.core.paths import file_path, run_path
from filestore.core.timestamps import LAST_MOMENT, format_timestamp, parse_timestamp
from filestore.errors import InvalidReference

FILE_ID_PATTERN = re.compile(r"file_[0-9a-f]{32}\Z")
_DIGITS_LIMIT = 300
"""The most digits of a whole number in JSON. Such a number can be converted to a float, and printed, without an error."""


class Kind(StrEnum):
    """Whether a record is a file or a directory. A directory is stored as one zip file.

    FILE: The content of the record is the content of the file.
    DIRECTORY: The content of the record is a zip file of the directory.
    """

    FILE = "file"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class Record:
    """A stored file or directory under a name, as a repository lists it.

    Times are in microseconds since 1970 in UTC. Several records may have the same name. The newest one is the record
    that was stored last.

    id: `file_` and 32 hexadecimal digits. An id is never used again for another file.
    name: The name that the file got when it was pushed. The name of a directory ends in `.zip`, unless another one was given.
    digest: The digest of the content. The same content has the same digest on every machine.
    size: The size of the content in bytes. For a directory, this is the size of its zip file.
    kind: Whether a file or a directory was pushed.
    namespace: The part of the repository to which the record belongs. A token gives access to one namespace.
    created_at: When this record was made, in microseconds since 1970 in UTC.
    updated_at: When the same content was last pushed under this name, in microseconds since 1970 in UTC.
    owner: What is before the slash of a name such as `team/my_model`. None for a name without a slash. Paths do not have it.
    """

    id: str
    name: str
    digest: Digest
    size: int
    kind: Kind
    namespace: str
    created_at: int
    updated_at: int
    owner: str | None = None

    @property
    def full_name(self) -> str:
        """The name with its owner, such as `team/my_model`: what a reference has."""
        return full_name(self.owner, self.name)

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
            **({} if self.owner is None else {"owner": self.owner}),
        }


def record_from_json(values: dict[str, str | int]) -> Record:
    """Make a record from the JSON form that `Record.as_json` returns.

    Each value is checked, because ids and names become parts of paths (I4). Raises KeyError, TypeError, ValueError or a
    FilestoreError if a value is missing or not valid.
    """
    size = values["size"]
    texts = {name: values[name] for name in ("id", "name", "digest", "kind", "namespace", "created_at", "updated_at")}
    owner = values.get("owner")
    if type(size) is not int or not all(isinstance(text, str) for text in texts.values()) or not isinstance(owner, str | None):
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
            owner=owner,
        )
    )


def checked_record(record: Record) -> Record:
    """Return `record` if its values are valid. They are checked because ids and names become parts of paths (I4).

    Raises ValueError or a FilestoreError if a value is not valid.
    """
    checked_file_id(record.id)
    checked_name(record.name)
    if record.owner is not None and not is_owner(record.owner):
        raise ValueError("its owner is not one")
    checked_namespace(record.namespace)
    if not 0 <= record.size < 1 << 63:
        raise ValueError("its size is not a number of bytes")
    if not all(0 <= moment < LAST_MOMENT for moment in (record.created_at, record.updated_at)):
        raise ValueError("its times are out of range")
    return record


def parse_json(text: bytes | str, *, any_number: bool = False) -> Any:
    """Parse a JSON text from outside (I4).

    Raises ValueError if it is not JSON, if it is nested too deep, or if it has a number that is not finite or out of the
    range of a double. Python itself accepts NaN, reads 1e400 as infinity, and makes integers of thousands of digits, which
    fail where they are used. With `any_number`, they are accepted: the inputs of a run may be such.
    """
    try:
        if any_number:
            return json.loads(text)
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it has a number that is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS_LIMIT:
        raise ValueError("it has a number that is too large")
    return int(text)


def value_count(document: bytes) -> int:
    """Return a number that a JSON text has at most as many values as, without parsing it.

    An empty list takes 20 times its bytes in memory. So check the count before a text of a client is parsed.
    """
    return 1 + document.count(b",") + document.count(b"[") + document.count(b"{")


def checked_file_id(text: str) -> str:
    """Return `text` if it has the form of a record's id. Raises InvalidReference otherwise."""
    if not FILE_ID_PATTERN.match(text):
        raise InvalidReference(text, "an id is file_ and 32 hexadecimal digits")
    return text
