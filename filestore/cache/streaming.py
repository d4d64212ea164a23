"""Read a file of the cache by ranges while it is still being fetched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from filestore.errors import InvalidRange, StorageError
from filestore.system.files import read_at, storage_errors
from filestore.system.threads import in_disk_thread, shield_until_done, task_group
from filestore.transfer.partial_file import PartialFile

READ_SIZE = 64 << 20
"""Bytes of one read. A cancelled call waits for the end of such a read."""


class StreamingFile:
    """A file of a cache whose ranges can be read while the rest of it is fetched. `Cache.open` gives it.

    Any number of tasks may read at the same time. All bytes that are read were verified.
    """

    def __init__(self, partial_file: PartialFile) -> None:
        """The caller closes it."""
        self._partial_file = partial_file
        self._path: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self._descriptor = -1
        self._size = 0
        self._reads = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._size if self._path.done() else self._partial_file.size

    async def read(self, start: int, stop: int) -> bytearray:
        """Return the bytes from `start` up to and without `stop`. Chunks of them that are missing are fetched first.

        The returned memory belongs to the caller. A fetch that fails cancels the block, which then raises the error of the fetch.

        Raises InvalidRange where the range is not inside the file, StorageError.
        """
        self._check(start, stop)
        memory = bytearray(stop - start)
        await self.read_into(memoryview(memory), start)
        return memory

    async def read_into(self, memory: memoryview, start: int) -> None:
        """Fill `memory` with the bytes from `start` on, as `read` returns them. Do not use `memory` before the call has ended.

        A cancelled call first waits for the read of at most 64 MiB that is in progress.

        Raises InvalidRange, StorageError.
        """
        memory = memory.cast("B")
        self._check(start, start + len(memory))
        if not self._path.done():
            await self._partial_file.have(start, start + len(memory))
        for done in range(0, len(memory), READ_SIZE):
            await self._read(memory[done : done + READ_SIZE], start + done)

    async def whole(self) -> Path:
        """Wait until the whole file is in the cache, and return its path, as `Cache.resolve` does."""
        return await asyncio.shield(self._path)

    async def complete(self, path: Path) -> None:
        """Take note that the whole file is at `path`; `Cache.open` calls this. Raises StorageError."""
        descriptor, size = await in_disk_thread(_open, path)
        self._descriptor, self._size = descriptor, size
        self._path.set_result(path)
        self._partial_file.finish()

    async def ready(self) -> None:
        """Wait until there is a file to read from; `Cache.open` calls this."""
        began = asyncio.ensure_future(self._partial_file.began.wait())
        try:
            waiting: list[asyncio.Future[Any]] = [began, self._path]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            began.cancel()

    async def close(self) -> None:
        """Wait for reads in progress, and close the files; the end of the block calls this."""
        self._is_closed = True
        await self._idle.wait()
        self._partial_file.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def _read(self, memory: memoryview, start: int) -> None:
        if self._is_closed:
            raise ValueError("the file was closed at the end of its block")
        descriptor = self._descriptor if self._descriptor >= 0 else self._partial_file.descriptor
        self._reads += 1
        self._idle.clear()
        try:
            await in_disk_thread(_read_exactly, descriptor, memory, start)
        finally:
            self._reads -= 1
            if not self._reads:
                self._idle.set()

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise InvalidRange(f"{start}-{stop}", self.size)


@asynccontextmanager
async def opened_while(resolve: Callable[[PartialFile], Awaitable[Path]]) -> AsyncIterator[StreamingFile]:
    """Yield a file that `resolve` fetches in the background. The block ends after the fetch has ended."""
    partial_file = PartialFile()
    opened = StreamingFile(partial_file)

    async def fill() -> None:
        await opened.complete(await resolve(partial_file))

    try:
        async with task_group() as group:
            group.create_task(fill())
            await opened.ready()
            yield opened
    finally:
        await shield_until_done(opened.close())


def _open(path: Path) -> tuple[int, int]:
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor, os.fstat(descriptor).st_size


def _read_exactly(descriptor: int, memory: memoryview, offset: int) -> None:
    with storage_errors("the cache"):
        size = read_at(descriptor, memory, offset)
    if size < len(memory):
        reason = f"a file of it ended at byte {offset + size}; check the files of the cache"
        raise StorageError("the cache", reason, hint="verify-cache")
