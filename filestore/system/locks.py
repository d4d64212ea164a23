"""File locks: one wrapper around `flock`, and the lock of a cache entry that is being fetched.

`flock` is used, and not the locks of `fcntl`. The kernel releases it at every death of its process. It works on
folders, it survives the close of another descriptor of the same file, and it means the same in containers that share a
folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

from filestore.errors import StorageError
from filestore.system.threads import in_disk_thread, task_group

STALE_SECONDS = 60
"""A lock is ignored if its holder showed no sign of life for this long."""
BEAT_SECONDS = 5
CLAIM_SECONDS = 1
"""How long a claim on staging waits for the process that removes it."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.05
"""A lock that a thread waits for is mostly held only for a moment, so the first pauses are short."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLDER = re.compile(r"FLOCK +\w+ +\w+ +([1-9][0-9]*) ([0-9a-f]+:[0-9a-f]+:[0-9]+) ")


class FileLock:
    """The lock of a file or a folder that is open here. The lock owns the descriptor, and `release` closes it.

    `is_required` says what happens where the file system has no locks. A lock without which data could be lost or mixed is
    required: taking it raises StorageError. A lock that only keeps two processes from doing the same work twice is not: it
    counts as taken, and the place that makes it says why that is safe.
    """

    def __init__(self, descriptor: int, path: Path, *, is_required: bool) -> None:
        self.descriptor = descriptor
        self._path = path
        self._is_required = is_required
        self._pid = os.getpid()

    @classmethod
    def of_file(cls, path: Path, *, is_required: bool, mode: int = 0o600) -> Self:
        """Open the lock file at `path`, which is made if it does not exist. Blocks. Raises OSError."""
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode), path, is_required=is_required)

    @classmethod
    def of_folder(cls, path: Path, *, is_required: bool) -> Self:
        """Open the lock of a folder itself. Blocks. Raises OSError, also if `path` is a link."""
        return cls(os.open(path, _FOLDER), path, is_required=is_required)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        # If a call is cancelled while its thread opens a lock, nothing else releases that lock.
        self.release()

    def try_acquire(self, *, is_shared: bool = False) -> bool:
        """Try to take the lock, without waiting. Return False if another process has it.

        A lock that is held already is converted. If that is not possible, it is lost. Raises StorageError if the file
        system has no locks and the lock is required.
        """
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._is_required:
                return True
            reason = f"file locks do not work there ({error.strerror or error}), and processes know of each other by them"
            advice = "mount its file system with locks, or use a local disk"
            raise StorageError(str(self._path), f"{reason}; {advice}") from None
        return True

    def acquire(self, *, limit_seconds: float, is_shared: bool = False) -> bool:
        """Wait for the lock, at most `limit_seconds`. Return whether it is held. Blocks. Raises StorageError."""
        pauses = _pauses(limit_seconds)
        while not self.try_acquire(is_shared=is_shared):
            pause = next(pauses, None)
            if pause is None:
                return False
            time.sleep(pause)
        return True

    async def acquire_soon(self, *, limit_seconds: float, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Do `acquire` in the event loop.

        Also return False when `is_done`, which is called in a thread after each pause.
        """
        pauses = _pauses(limit_seconds, first=_LONGEST_PAUSE_SECONDS)
        while not await in_disk_thread(self.try_acquire):
            pause = next(pauses, None)
            if pause is None:
                return False
            await asyncio.sleep(pause)
            if await in_disk_thread(is_done):
                return False
        return True

    def holder(self) -> str:
        """Return the holder of the lock in words: with its process id, if the operating system shows that."""
        with suppress(OSError):
            status = os.fstat(self.descriptor)
            # Some file systems have other device numbers here: then nobody is named, rather than somebody else.
            file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
            for line in Path("/proc/locks").read_text().splitlines():
                found = _HOLDER.search(line)
                if found is not None and found[2] == file:
                    return f"process {found[1]}"
        return "another process"

    def release(self) -> None:
        """Release the lock, and close the file. It may be called more than once.

        A close alone would leave the lock with a child that was forked meanwhile and has a copy of the descriptor. Such
        a child only closes its copy, since the lock belongs to its parent.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        if self._pid == os.getpid():
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _pauses(limit_seconds: float, *, first: float = _FIRST_PAUSE_SECONDS) -> Iterator[float]:
    """Yield the pause before each next try, until the limit is over."""
    deadline = time.monotonic() + limit_seconds
    pause = first
    while time.monotonic() < deadline:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def claim(lock: FileLock) -> None:
    """Mark staging as used by this process, with a lock that other processes can share. Blocks.

    A process that removes staging holds the lock alone meanwhile. This function waits a little for it; a process that
    is too late finds no staging. Without locks, staging that was written to lately is never removed.
    """
    with suppress(StorageError):
        lock.acquire(limit_seconds=CLAIM_SECONDS, is_shared=True)


def is_claimed(lock: FileLock) -> bool:
    """Return whether another process uses staging. If not, no process begins before the lock is released.

    Raises StorageError if this is not known, because there are no locks.
    """
    return not lock.try_acquire()


class Lock:
    """A lock that is held, or that could not be taken. The mtime of its file is the last sign of life of its holder."""

    def __init__(self, lock: FileLock | None) -> None:
        self.is_held = False
        """No other process works on the entry, except one whose lock was ignored."""
        self.passes_by = False
        """The lock is ignored, because its holder showed no sign of life for a minute."""
        self._lock = lock

    async def acquire(self, is_done: Callable[[], bool]) -> None:
        """Wait until it is held, or until there is nothing to wait for."""
        lock = self._lock
        if lock is None:
            return

        def is_pointless() -> bool:
            # Called after a pause, so that a process that has just taken the lock has given its first sign of life.
            self.passes_by = _age(lock.descriptor) > STALE_SECONDS
            return self.passes_by or is_done()

        with suppress(StorageError):  # there are no locks on this file system
            self.is_held = await lock.acquire_soon(limit_seconds=math.inf, is_done=is_pointless)

    async def keep_fresh(self, beat_seconds: float) -> None:
        """Give a sign of life every `beat_seconds`, until cancelled.

        A transfer that hangs on the network ends by itself.
        """
        while self._lock is not None:
            with suppress(OSError):
                await in_disk_thread(os.utime, self._lock.descriptor)
            await asyncio.sleep(beat_seconds)


@asynccontextmanager
async def locked(path: Path, is_done: Callable[[], bool], *, beat_seconds: float = BEAT_SECONDS) -> AsyncIterator[Lock]:
    """Hold the lock file at `path` during the block, with a sign of life every `beat_seconds`.

    The block also runs without the lock in three cases: locks do not work; `is_done`, which is called in a thread, says
    that there is nothing left to wait for; or the holder showed no sign of life for a minute, because it is stopped or
    its machine is gone. Without the lock, the block must work at a place of its own.
    """
    file_lock = await in_disk_thread(_open, path)
    lock = Lock(file_lock)
    try:
        await lock.acquire(is_done)
        async with task_group() as group:
            beating = group.create_task(lock.keep_fresh(beat_seconds))
            try:
                yield lock
            finally:
                beating.cancel()
    finally:
        if file_lock is not None:
            file_lock.release()


def _open(path: Path) -> FileLock | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock.of_file(path, is_required=True, mode=0o666)
    except OSError:
        return None


def _age(descriptor: int) -> float:
    """Return the seconds since the last sign of life of the holder."""
    try:
        return time.time() - os.fstat(descriptor).st_mtime
    except OSError:
        return 0
