"""A listing of the records in an index in PostgreSQL, as they are at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from filestore.repository.index.postgres import records, uses
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.protocol import ListingGrowth, PositionedRecord
from filestore.repository.index.rows import Row, record_of
from filestore.repository.listing import LINES_AT_ONCE, append_lines, clear, size_limit
from filestore.system.threads import in_disk_thread

# JSON writes most names as they are, and a byte of any other one as six characters at most.
_NAMES_SIZE = (
    "SELECT count(*), coalesce(sum(CASE WHEN name ~ '[^-a-zA-Z0-9._/ ]' THEN 6 ELSE 1 END * octet_length(name)), 0)::bigint"
    " FROM records WHERE namespace = $1 AND starts_with(name, $2)"
)
_LISTING = (
    f"SELECT position, {records.COLUMNS} FROM records WHERE namespace = $1 AND starts_with(name, $2) AND {uses.IS_LISTED}"
    " ORDER BY position DESC"
)


async def write_listing(
    connection: Connection, namespace: str, file: BinaryIO, growth: ListingGrowth, *, prefix: str = ""
) -> None:
    """Write a listing of all records to `file`. One transaction reads them, so that all are of the same moment."""
    await in_disk_thread(clear, file, growth)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        count, names_size = await connection.fetchrow(_NAMES_SIZE, namespace, prefix)
        growth.limit = size_limit(namespace, count=count, names_size=names_size)
        cursor = await connection.cursor(_LISTING, namespace, prefix)
        while rows := await cursor.fetch(LINES_AT_ONCE):
            await in_disk_thread(_append, file, rows, growth)


def _append(file: BinaryIO, rows: Sequence[Row], growth: ListingGrowth) -> None:
    append_lines(file, _records(rows), growth)


def _records(rows: Sequence[Row]) -> Iterator[PositionedRecord]:
    for position, *row in rows:
        yield PositionedRecord(position, record_of(tuple(row)))
