"""Share parsed manifests between the readers of a server process, within a limit of memory (I6)."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from filestore.core.digest import Digest
from filestore.core.manifest import HEADER_SIZE, Manifest
from filestore.errors import Busy, InvalidManifest
from filestore.repository.local import LocalRepository
from filestore.repository.manifest_check import damaged_manifest
from filestore.system.metrics import Event, count
from filestore.system.threads import in_cpu_thread, in_disk_thread

MANIFESTS_LIMIT = 80 << 20
"""Bytes of memory for the manifests of a process. The largest manifest has 64 MiB, and its offsets have 15 MiB."""
_ENTRY_SIZE = 36
_OFFSET_SIZE = 8
_OBJECTS_SIZE = 2048
"""Bytes of the objects of one manifest, apart from its table and offsets."""

_Key = tuple[str, Digest]


@dataclass(frozen=True, slots=True)
class Layout:
    """A manifest, and where its chunks begin in the file. The offsets have 8 bytes each."""

    manifest: Manifest
    offsets: Sequence[int]


class _Entry:
    """A manifest in memory, or one that is being read."""

    def __init__(self, size: int, loading: asyncio.Task[Layout]) -> None:
        self.size = size
        self.loading = loading
        self.users = 1
        """Its readers, and the task that reads it. An entry without users may be removed."""


class SharedManifests:
    """The parsed manifests of one process. Readers of the same file use one copy, which is read once.

    A manifest stays in memory while a reader uses it. Manifests without a reader stay until their memory is needed, the one
    that was used last the longest. If the readers in progress use all memory, a further one waits. It holds up no reader
    whose manifest fits.
    """

    def __init__(self, *, wait_seconds: float, limit: int = MANIFESTS_LIMIT) -> None:
        """`wait_seconds` is how long a reader waits for memory."""
        self._wait_seconds = wait_seconds
        self._limit = limit
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._waiting: set[asyncio.Future[None]] = set()
        self.size = 0
        """Bytes of memory that all manifests take."""

    @asynccontextmanager
    async def reading(self, repository: LocalRepository, digest: Digest) -> AsyncIterator[Layout]:
        """Give the layout of a file during the block.

        Raises NotFound, StorageError, InvalidManifest if the stored manifest is damaged, and Busy if other readers use all
        memory for too long.
        """
        entry = await self._entry_of(repository, digest)
        try:
            # Shielded, since other readers may wait for it too.
            yield await asyncio.shield(entry.loading)
        finally:
            self._release(entry)

    async def _entry_of(self, repository: LocalRepository, digest: Digest) -> _Entry:
        """Return an entry of which the caller is a user."""
        key = (repository.namespace, digest)
        count(Event.CACHE_LOOKUPS, "manifests", "hit" if key in self._entries else "miss")
        try:
            async with asyncio.timeout(self._wait_seconds):
                while (entry := self._entries.get(key)) is None and (entry := await self._new_entry(repository, key)) is None:
                    await self._released()
        except TimeoutError:
            raise Busy("the server", "readers of other large files use all memory for lists of chunks") from None
        self._entries.move_to_end(key)
        entry.users += 1
        return entry

    async def _new_entry(self, repository: LocalRepository, key: _Key) -> _Entry | None:
        """Begin to read a manifest. Return None if it does not fit into the memory now."""
        file = await repository.open_manifest(key[1], is_verified=False)
        size = file.seek(0, os.SEEK_END)
        size += max(size - HEADER_SIZE, 0) // _ENTRY_SIZE * _OFFSET_SIZE + _OBJECTS_SIZE
        if (entry := self._entries.get(key)) is not None or not self._make_room(size):
            file.close()
            return entry
        entry = self._entries[key] = _Entry(size, asyncio.create_task(_load(file, key[1])))
        self.size += size
        entry.loading.add_done_callback(lambda loading: self._loaded(key, entry, loading))
        return entry

    def _loaded(self, key: _Key, entry: _Entry, loading: asyncio.Task[Layout]) -> None:
        if loading.cancelled() or loading.exception() is not None:
            del self._entries[key]
            self.size -= entry.size
        self._release(entry)

    def _release(self, entry: _Entry) -> None:
        entry.users -= 1
        if not entry.users:
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def _released(self) -> None:
        """Wait until an entry has no users any more."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def _make_room(self, size: int) -> bool:
        """Remove unused entries until `size` more bytes fit. Return False, and remove nothing, if that is not possible."""
        unused = [(key, entry) for key, entry in self._entries.items() if not entry.users]
        if self.size - sum(entry.size for _, entry in unused) + size > self._limit:
            return False
        for key, entry in unused:
            if self.size + size <= self._limit:
                break
            del self._entries[key]
            self.size -= entry.size
        return True


async def _load(file: BinaryIO, digest: Digest) -> Layout:
    return await in_cpu_thread(_layout, await in_disk_thread(_content, file), digest)


def _content(file: BinaryIO) -> bytes:
    with file:
        file.seek(0)
        return file.read()


def _layout(encoded: bytes, digest: Digest) -> Layout:
    try:
        manifest = Manifest.parse(encoded)
    except InvalidManifest:
        raise damaged_manifest(digest) from None
    if manifest.digest != digest:
        raise damaged_manifest(digest)
    return Layout(manifest, manifest.offset_table())
