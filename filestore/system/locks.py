"""File locks: how they are taken and given back, and the lock of a cache entry that is being fetched."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from filestore.errors import StorageError
from filestore.system.threads import in_disk_thread, task_group

LOCK_POLL_SECONDS = 0.05
STALE_SECONDS = 60
"""A holder that was not seen alive for this long is passed by."""
BEAT_SECONDS = 5
CLAIM_SECONDS = 1


def try_flock(descriptor: int, path: Path) -> bool:
    """Whether this process has the lock of an open file now; False: another one has it. Blocks for no time.

    Raises StorageError, which names `path`, where the file system has no file locks.
    """
    try:
        return try_lock(descriptor)
    except OSError as error:
        reason = f"file locks do not work there ({error.strerror or error}), and processes know of each other by them"
        raise StorageError(str(path), f"{reason}; mount its file system with locks, or use a local disk") from None


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


def claim(descriptor: int) -> None:
    """Say that this process works on staging, by a lock that others may share. Blocks.

    Who removes staging takes the lock alone, for as long as that lasts: this waits for it a little, and who is too late finds
    that the staging is gone. Without locks nobody removes what was written to lately.
    """
    patience = time.monotonic() + CLAIM_SECONDS
    with suppress(OSError):
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > patience:
                    return
                time.sleep(0.001)
            else:
                return


def is_claimed(descriptor: int) -> bool:
    """Whether another process works on staging; if not, none begins before the descriptor is closed. Raises OSError."""
    return not try_lock(descriptor)
