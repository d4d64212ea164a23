"""Divide a sequence of items into batches of limited size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batched_by_size(
    items: Iterable[T], size: Callable[[T], int], *, limit: int, count_limit: int | None = None
) -> Iterator[list[T]]:
    """Yield the items in batches of at most `limit` bytes and at most `count_limit` items. The order stays the same.

    `size` returns the number of bytes of an item. An item that is larger than `limit` is alone in its batch.
    Each batch is as full as possible. To know that a batch is full, this function reads the next item before it yields.
    """
    batch: list[T] = []
    held = 0
    for item in items:
        item_size = size(item)
        if batch and (held + item_size > limit or len(batch) == count_limit):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += item_size
    if batch:
        yield batch


async def in_batches(items: AsyncIterator[T], count: int) -> AsyncIterator[list[T]]:
    """Yield all items in lists of `count`. The last one may be shorter."""
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch
