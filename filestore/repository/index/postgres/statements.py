"""Statements of PostgreSQL about any number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from filestore.core.digest import DIGEST_SIZE
from filestore.repository.index.postgres.connection import Connection

T = TypeVar("T")

GIVEN = (
    f"ANY(ARRAY(SELECT substr($2::bytea, 1 + {DIGEST_SIZE} * number, {DIGEST_SIZE})"
    f" FROM generate_series(0, length($2::bytea) / {DIGEST_SIZE} - 1) AS number))"
)
"""What a column with digests is compared with in a statement whose second parameter is of `packed_batches`."""
_AT_ONCE = 16384
"""The most rows of one statement. To encode and decode them takes the event loop some milliseconds."""


async def read(connection: Connection, statement: str, namespace: str, digests: Sequence[bytes], *others: object) -> list[Any]:
    """Return the rows of `statement`, whose parameters are the namespace, a batch of packed digests, and `others`."""
    rows: list[Any] = []
    for packed in packed_batches(digests):
        rows += await connection.fetch(statement, namespace, packed, *others)
    return rows


def packed_batches(digests: Sequence[bytes]) -> Iterator[bytes]:
    """Yield digests of 32 bytes one after the other, without repeats, each batch for one statement.

    To encode an array of them takes the client five times as long. And PostgreSQL would make a plan for the values of an array in
    each of the first statements of a connection, which takes some milliseconds for thousands.
    """
    for batch in batches(list(dict.fromkeys(digests))):
        packed = b"".join(batch)
        if len(packed) != DIGEST_SIZE * len(batch):
            raise ValueError(f"a digest has {DIGEST_SIZE} bytes")
        yield packed


def batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the rows in parts, each for one statement."""
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
