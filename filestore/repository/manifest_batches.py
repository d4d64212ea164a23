"""Read many manifests, several at a time: an object store takes milliseconds to answer, however small one is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import TypeVar

from filestore.core.batches import batched_by_size
from filestore.core.digest import DIGEST_AND_NUMBER, Digest
from filestore.core.manifest import HEADER_SIZE, MANIFEST_LIMIT
from filestore.core.records import Record
from filestore.repository.index.protocol import PositionedRecord
from filestore.repository.manifest_check import count_limit
from filestore.system.threads import task_group

T = TypeVar("T")
R = TypeVar("R")

TOGETHER = 8
"""How many manifests are read at the same time. Each read takes a connection of the index and one of the store."""
SIZE_TOGETHER = 4 << 20
"""The most bytes of them. A larger manifest is read alone (I6)."""


async def read_together(
    items: Iterable[T],
    read: Callable[[T], Coroutine[None, None, R]],
    *,
    size: Callable[[T], int],
    size_limit: int = SIZE_TOGETHER,
) -> AsyncIterator[list[tuple[T, R]]]:
    """Yield each item with what `read` returns for it, in batches that are read together. The order stays the same.

    `size` returns the bytes of the manifest of an item. An error of `read` is raised after the batches before it.
    """
    for batch in batched_by_size(items, size, limit=size_limit, count_limit=TOGETHER):
        async with task_group() as group:
            tasks = [group.create_task(read(item)) for item in batch]
        yield [(item, task.result()) for item, task in zip(batch, tasks, strict=True)]


def manifest_size(found: PositionedRecord) -> int:
    """Return the bytes of the manifest of a record, or a bound of them where the index does not know them."""
    entries_size = DIGEST_AND_NUMBER.size * count_limit(found.record.size)
    return found.manifest_size or min(HEADER_SIZE + entries_size, MANIFEST_LIMIT)


def read_of_records(
    records: Iterable[PositionedRecord],
    read: Callable[[Record], Coroutine[None, None, R]],
    *,
    chunk_limit: float = math.inf,
) -> AsyncIterator[list[tuple[PositionedRecord, R]]]:
    """Do what `read_together` does for the manifests of records. Of records with the same manifest, only the first one is read.

    A batch has about `chunk_limit` chunks at the most, or one manifest.
    """
    first: dict[Digest, PositionedRecord] = {}
    for found in records:
        first.setdefault(found.record.digest, found)
    limit = int(min(chunk_limit * DIGEST_AND_NUMBER.size, SIZE_TOGETHER))
    return read_together(first.values(), lambda found: read(found.record), size=manifest_size, size_limit=limit)
