"""Statements of PostgreSQL about any number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from filestore.repository.index.postgres.connection import Connection

T = TypeVar("T")

_AT_ONCE = 16384
"""The most rows of one statement. To encode and decode them takes the event loop some milliseconds."""


async def read(connection: Connection, statement: str, namespace: str, digests: Sequence[bytes], *others: object) -> list[Any]:
    """Return the rows of `statement`, whose parameters are the namespace, the digests, and `others`."""
    rows: list[Any] = []
    for batch in batches(sorted(set(digests))):
        rows += await connection.fetch(statement, namespace, batch, *others)
    return rows


def batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the rows in parts, each for one statement."""
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
