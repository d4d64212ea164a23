"""A listing: all records of a namespace as they were at one moment, the newest first, as lines of JSON in a file.

So memory does not grow with the number of records, and no record is left out or comes twice because it is stored again
meanwhile. A slow reader holds no transaction of the index open.

A line is `Record.as_json` with the position of the record, by which a reader checks the order. A line of blanks says nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.records import Kind, Record, parse_json, record_from_json
from filestore.errors import FilestoreError
from filestore.repository.index.protocol import ListingGrowth, PositionedRecord
from filestore.system.files import storage_errors
from filestore.system.threads import in_disk_thread

LINE_LIMIT = 16 << 10
"""Bytes of the longest line that a reader accepts."""
_FAR_FUTURE = 1 << 62
LINES_AT_ONCE = 500
_SECONDS_AT_ONCE = 1.0
"""Lines wait in memory for at most this time, if another line comes."""

listing_errors = partial(storage_errors, "the folder for temporary files")
"""A block that uses the file of a listing. Errors of the operating system are raised as StorageFull or StorageError."""


@contextmanager
def listing_file(folder: Path | None = None) -> Iterator[BinaryIO]:
    """Make an empty file without a name for a block, in `folder` or in the folder for temporary files of this system."""
    with listing_errors():
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed below
    try:
        yield file
    finally:
        # What could not be written before cannot be written now.
        with suppress(OSError):
            file.close()


def line(position: int, record: Record) -> bytes:
    """Return the line of a record."""
    return json.dumps({"position": position, **record.as_json()}).encode() + b"\n"


def size_limit(namespace: str, *, count: int, names_size: int) -> int:
    """Return how many bytes `count` records can have as lines. `names_size` is that of their names in JSON, at most."""
    # A line has the name twice. The record is in no other value shorter than any other.
    longest = Record(
        id="file_" + 32 * "0",
        name="",
        digest=Digest(bytes(DIGEST_SIZE)),
        size=_FAR_FUTURE,
        kind=Kind.DIRECTORY,
        namespace=namespace,
        created_at=1,
        updated_at=1,
        owner="",
    )
    return count * len(line(_FAR_FUTURE, longest)) + 2 * names_size


def write_lines(file: BinaryIO, records: Iterator[PositionedRecord], growth: ListingGrowth) -> None:
    """Replace the content of `file` by the lines of `records`. Blocks. Raises StorageFull, StorageError."""
    clear(file, growth)
    append_lines(file, records, growth)


def clear(file: BinaryIO, growth: ListingGrowth) -> None:
    """Remove the content of `file`. Blocks. Raises StorageError."""
    with listing_errors():
        file.seek(0)
        file.truncate()
    growth.size = 0


def append_lines(file: BinaryIO, records: Iterable[PositionedRecord], growth: ListingGrowth) -> None:
    """Write the lines of `records` behind those that `file` has. Blocks. Raises StorageFull, StorageError."""
    lines: list[bytes] = []
    due = 0.0

    def write() -> None:
        growth.writes(sum(map(len, lines)))
        with listing_errors():
            file.write(b"".join(lines))
            file.flush()
        growth.size += sum(map(len, lines))
        lines.clear()

    for position, record, _ in records:
        lines.append(line(position, record))
        if len(lines) == LINES_AT_ONCE or time.monotonic() >= due:
            write()
            due = time.monotonic() + _SECONDS_AT_ONCE
    write()


async def read_lines(file: BinaryIO) -> AsyncIterator[Record]:
    """Yield the records of a listing, from its beginning.

    Raises ValueError if a line is not one of a record, or if they are not in order.
    """
    with listing_errors():
        await in_disk_thread(file.seek, 0)
    last, namespace = 1 << 63, None
    while found := await in_disk_thread(_next_records, file):
        for position, record, _ in found:
            if not 0 <= position < last:
                raise ValueError("its list of files is not in order")
            if namespace not in {None, record.namespace}:
                raise ValueError("its list of files is of several namespaces")
            last, namespace = position, record.namespace
            yield record


def _next_records(file: BinaryIO) -> list[PositionedRecord]:
    records: list[PositionedRecord] = []
    while len(records) < LINES_AT_ONCE:
        with listing_errors():
            found = file.readline(LINE_LIMIT)
        if not found:
            break
        if not (found.startswith(b" ") and found.isspace()):
            records.append(_record(found))
    return records


def _record(found: bytes) -> PositionedRecord:
    try:
        values = parse_json(found)
        if found.endswith(b"\n") and isinstance(values, dict) and type(values.get("position")) is int:
            return PositionedRecord(values["position"], record_from_json(values))
    except (FilestoreError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        "its list of files is not in a form that is known here; if it is an older version of filestore, update the server"
    )
