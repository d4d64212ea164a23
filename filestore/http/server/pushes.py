"""Store uploaded files by pushes that share one budget of a server process."""

from __future__ import annotations

from pathlib import Path

from aiofiles.threadpool.binary import AsyncFileIO

from filestore.core.records import Record
from filestore.http.server.context import RequestContext
from filestore.repository.local import LocalRepository
from filestore.transfer.push import WINDOWS_IN_FLIGHT, push
from filestore.transfer.sources.file import WINDOW_SIZE

PUSHES_LIMIT = 2 * WINDOWS_IN_FLIGHT * WINDOW_SIZE
"""Bytes of memory for these pushes. They allow one large file at a time, or several small ones. More would not help,
since each push uses all cores."""


def push_memory(size: int) -> int:
    """Return how many bytes of memory the push of `size` bytes takes.

    Half is for its windows, and half for their frames.
    """
    return 2 * min(size, WINDOWS_IN_FLIGHT * WINDOW_SIZE)


async def push_spool(context: RequestContext, repository: LocalRepository, spool: AsyncFileIO, *, size: int, name: str) -> Record:
    """Store the file that a form sent, as `push` does."""
    async with context.push_budget.take(push_memory(size)):
        return (await push(repository, Path(f"/dev/fd/{spool.fileno()}"), name=name)).record
