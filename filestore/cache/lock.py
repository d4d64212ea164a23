"""The lock of an entry that is being fetched: it saves work and nothing more."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from filestore.aio import in_disk_thread, task_group

LOCK_POLL_SECONDS = 0.05
STALE_SECONDS = 60
"""A holder that was not seen alive for this long is passed by."""
BEAT_SECONDS = 5


class Lock:
    """A lock that is held, or could not be had. Its file's mtime says when its holder was last seen alive."""

    def __init__(self, descriptor: int) -> None:
        self.is_held = False
        """No other process works on the entry, but for one that was passed by."""
        self.passes_by = False
        """Its holder was not seen alive for a minute."""
        self._descriptor = descriptor

    async def acquire(self, is_done: Callable[[], bool]) -> None:
        """Wait until it is held, or until there is no point in waiting."""
        try:
            while not await in_disk_thread(try_lock, self._descriptor):
                await asyncio.sleep(LOCK_POLL_SECONDS)
                # Asked after a while, so that whoever has only just got the lock has said so.
                self.passes_by = await in_disk_thread(_age, self._descriptor) > STALE_SECONDS
                if self.passes_by or await in_disk_thread(is_done):
                    break
            else:
                self.is_held = True
        except (OSError, ValueError):  # it cannot be had on this file system; ValueError: it could not even be opened
            return

    async def keep_fresh(self) -> None:
        """Say again and again that this process goes on, until cancelled. What hangs on a network ends by itself."""
        while self._descriptor >= 0:
            with suppress(OSError):
                await in_disk_thread(os.utime, self._descriptor)
            await asyncio.sleep(BEAT_SECONDS)


@asynccontextmanager
async def locked(path: Path, is_done: Callable[[], bool]) -> AsyncIterator[Lock]:
    """Hold the lock whose file is at `path`.

    Goes on without it where locks do not work, where `is_done` says in a thread that there is nothing left to wait for, and
    where its holder was not seen alive for a minute: it is stopped, or its machine is gone.
    """
    descriptor = await in_disk_thread(_open, path)
    lock = Lock(descriptor)
    try:
        await lock.acquire(is_done)
        async with task_group() as group:
            beating = group.create_task(lock.keep_fresh())
            try:
                yield lock
            finally:
                beating.cancel()
    finally:
        if descriptor >= 0:
            unlock(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return -1


def try_lock(descriptor: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock is held now; False: someone else has it. Raises OSError where locks do not work."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give a lock back, and the descriptor. Closing alone would leave the lock with a child that was forked meanwhile."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _age(descriptor: int) -> float:
    """Seconds since its holder was last seen alive."""
    try:
        return time.time() - os.fstat(descriptor).st_mtime
    except OSError:
        return 0
