"""Statements of SQLite about any number of digests, of whatever kind, and the rows that they return."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from filestore.core.unlocked import unlocked
from filestore.errors import StorageError
from filestore.repository.index.rows import DamagedRow, Row

T = TypeVar("T")

_PARAMETERS = 500
"""The largest number of digests in one statement. SQLite before 3.32 allows 999 parameters."""


def read(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...], digests: Iterable[bytes]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `statement` for all `digests`. The digests replace `{}` in it, and follow `parameters`."""
    for batch in _batches(digests):
        cursor = unlocked(connection.execute, statement.format(",".join("?" * len(batch))), (*parameters, *batch))
        yield from unlocked(cursor.fetchall)


def write(connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...], digests: Iterable[bytes]) -> None:
    """Execute `statement` for all `digests`, as `read` does."""
    for batch in _batches(digests):
        unlocked(connection.execute, statement.format(",".join("?" * len(batch))), (*parameters, *batch))


def parsed(connection: sqlite3.Connection, convert: Callable[[Row], T], row: Row) -> T:
    """Convert a row. Raises StorageError if it is not valid."""
    try:
        return convert(row)
    except DamagedRow as damage:
        _, _, path = connection.execute("PRAGMA database_list").fetchone()
        raise StorageError(path, f"{damage}; restore the index from a backup") from None


def _batches(digests: Iterable[bytes]) -> Iterator[list[bytes]]:
    # In the order of the table, so that each page is visited once, even with many millions of rows.
    ordered = sorted(digests)
    for start in range(0, len(ordered), _PARAMETERS):
        yield ordered[start : start + _PARAMETERS]
