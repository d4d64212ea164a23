"""Remove files from a repository whose disk is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from filestore.errors import StorageError, StorageFull
from filestore.repository.stores.protocol import ChunkStore

T = TypeVar("T")


async def with_reserve(store: ChunkStore, removal: Callable[[], Awaitable[T]]) -> T:
    """Return what `removal` returns. If the disk is full, release the reserve, and call `removal` a second time.

    The first call must leave nothing that hinders the second one. The reserve is made again as soon as there is space:
    here, by the next push, and by a server.
    """
    try:
        return await removal()
    except StorageFull:
        if not await store.release_reserve():
            raise
    try:
        return await removal()
    finally:
        with suppress(StorageError):
            await store.make_reserve()
