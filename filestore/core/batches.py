"""Batches of neighbouring items, by their size in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batched_by_size(
    items: Iterable[T], size: Callable[[T], int], *, limit: int, count_limit: int | None = None
) -> Iterator[list[T]]:
    """Items in their order, in batches of at most `limit` bytes and `count_limit` items; a larger item is a batch alone.

    `size` tells the bytes of an item. A batch is as full as it can be. One item more than the batches have is taken from `items`.
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
