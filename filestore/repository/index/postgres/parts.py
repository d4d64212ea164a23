"""Reads about many digests, in parts that PostgreSQL looks up side by side.

One process of PostgreSQL looks the digests of one statement up one after the other, and waits for memory most of the time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from filestore.system.threads import task_group

K = TypeVar("K")
R = TypeVar("R")
T = TypeVar("T")

_LEAST = 1024
"""The fewest rows of a part. To look them up takes some milliseconds, and a round trip a tenth of that."""
_COUNT = 4
"""The most parts, so that a caller leaves connections for others."""


async def read_parts(read: Callable[[Sequence[R]], Awaitable[T]], rows: Sequence[R]) -> list[T]:
    """Call `read` for parts of `rows` side by side, or once if these are few. Return what it returns, in the order of parts."""
    size = max(_LEAST, -(-len(rows) // _COUNT))
    if len(rows) <= size:
        return [await read(rows)]

    async def read_part(start: int) -> T:
        return await read(rows[start : start + size])

    async with task_group() as group:
        tasks = [group.create_task(read_part(start)) for start in range(0, len(rows), size)]
    return [task.result() for task in tasks]


def joined(found: Iterable[Iterable[T]]) -> list[T]:
    """Return what the parts have found, in order."""
    return list(chain.from_iterable(found))


def merged(found: Iterable[Mapping[K, T]]) -> dict[K, T]:
    """Return the values of all keys that the parts have found."""
    values: dict[K, T] = {}
    for each in found:
        values.update(each)
    return values
