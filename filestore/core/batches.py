"""Batches of neighbouring items, by their size in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batched_by_size(
    items: Iterable[T], size: Callable[[T], int], *, limit: int, count_limit: int | None = None
) -> Iterator[list[T]]:
    """Yield items in their order, in batches of at most `limit` bytes and `count_limit` items.

    `size` returns the bytes of an item. An item above the limit is a batch of its own. A batch is as full as possible,
    so one item more than the batch has was taken from `items` when it is given.
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
