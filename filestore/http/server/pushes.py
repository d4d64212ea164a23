"""Storing what clients uploaded as it is, by pushes that share one budget of a server process."""

from __future__ import annotations

from pathlib import Path

from aiofiles.threadpool.binary import AsyncFileIO

from filestore.core.records import Record
from filestore.http.server.context import RequestContext
from filestore.repository.local import LocalRepository
from filestore.transfer.push import WINDOWS_IN_FLIGHT, push
from filestore.transfer.sources.file import WINDOW_SIZE

PUSHES_LIMIT = 2 * WINDOWS_IN_FLIGHT * WINDOW_SIZE
"""Bytes of memory for these pushes: one large file at a time, or some small ones, as each push uses all cores."""


def push_memory(size: int) -> int:
    """Bytes of memory that pushing a file of `size` bytes takes: windows of it, and as much for their frames."""
    return 2 * min(size, WINDOWS_IN_FLIGHT * WINDOW_SIZE)


async def push_spool(context: RequestContext, repository: LocalRepository, spool: AsyncFileIO, *, size: int, name: str) -> Record:
    """Store what a form brought, as `push` does."""
    async with context.push_budget.take(push_memory(size)):
        return (await push(repository, Path(f"/dev/fd/{spool.fileno()}"), name=name)).record
