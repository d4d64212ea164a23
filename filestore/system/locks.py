"""File locks. `FileLock` wraps `flock`. `Lock` is the lock of a cache entry while it is being fetched.

This module uses `flock`, and not the locks of `fcntl`, for four reasons. The kernel releases the lock whenever its
process ends. The lock works on folders. It stays when another descriptor of the same file is closed. It also works
between containers that share a folder.
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
from filestore.system.owners import PRIVATE_FILE, make_private, tighten_descriptor
from filestore.system.threads import in_disk_thread, task_group

STALE_SECONDS = 60
"""A lock is ignored if its holder has not updated the lock file for this time."""
BEAT_SECONDS = 5
CLAIM_SECONDS = 1
"""How long `claim` waits while another process is removing the staging folder."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.05
"""The first and the longest pause between two tries to take a lock. Most locks are held for a moment only."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLDER = re.compile(r"FLOCK +\w+ +\w+ +([1-9][0-9]*) ([0-9a-f]+:[0-9a-f]+:[0-9]+) ")


class FileLock:
    """The lock of an open file or folder. This object owns the descriptor, and `release` closes it.

    `is_required` decides what happens on a file system without locks. If it is true, `try_acquire` and `acquire` raise
    StorageError: use this if data could be lost or mixed without the lock. If it is false, the lock counts as taken:
    use this if the lock only saves two processes from doing the same work. The caller must then explain why that is
    safe.
    """

    def __init__(self, descriptor: int, path: Path, *, is_required: bool) -> None:
        self.descriptor = descriptor
        self._path = path
        self._is_required = is_required
        self._pid = os.getpid()

    @classmethod
    def of_file(cls, path: Path, *, is_required: bool) -> Self:
        """Open the lock file at `path`, and make it if it does not exist. The lock is not taken.

        No other user may open it, because whoever has opened it can take the lock. Blocks. Raises OSError, also if `path`
        is a link.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
        tighten_descriptor(descriptor)
        return cls(descriptor, path, is_required=is_required)

    @classmethod
    def of_folder(cls, path: Path, *, is_required: bool) -> Self:
        """Open the folder at `path`, which is locked itself, without a lock file. The lock is not taken.

        Blocks. Raises OSError, also if `path` is a link.
        """
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

        If this object already holds the lock, it is changed to shared or exclusive. If that fails, the lock may be
        lost.
        Raises StorageError if the file system has no locks and the lock is required.
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
        """Wait at most `limit_seconds` for the lock. Return whether it was taken. Blocks.

        Raises StorageError as `try_acquire` does.
        """
        pauses = _pauses(limit_seconds)
        while not self.try_acquire(is_shared=is_shared):
            pause = next(pauses, None)
            if pause is None:
                return False
            time.sleep(pause)
        return True

    async def acquire_soon(self, *, limit_seconds: float, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the lock as `acquire` does, without blocking the event loop.

        `is_done` is called in a thread after each pause. When it returns True, the wait ends and the result is False.
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

    def is_removed(self) -> bool:
        """Return whether `remove` removed the lock file, so that others lock another one. Blocks."""
        return os.fstat(self.descriptor).st_nlink == 0

    def remove(self) -> None:
        """Remove the lock file, if that is possible. Only the holder may, while it holds the lock. Blocks.

        Whoever waited for the lock gets one of a file that is gone. So everybody who takes it must ask `is_removed` then, and if
        so open the file again.
        """
        with suppress(OSError):
            self._path.unlink()

    def holder(self) -> str:
        """Return a text for the process that holds the lock. It has the process id if the operating system shows it."""
        with suppress(OSError):
            status = os.fstat(self.descriptor)
            # Some file systems have other device numbers here: then nobody is named, rather than somebody else.
            file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
            for line in Path("/proc/locks").read_text().splitlines():
                found = _HOLDER.search(line)
                if found is not None and found[2] == file:
                    return f"process {found[1]}"
        return "another process"

    def unlock(self) -> None:
        """Release the lock, and keep the file open. Only the process that opened it may call this."""
        with suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def release(self) -> None:
        """Release the lock, and close the file. This may be called more than once.

        The lock is released explicitly, because a forked child may have a copy of the descriptor, and the lock would
        stay until the child closes its copy. In such a child, this method only closes the copy: the lock belongs to the
        parent.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        if self._pid == os.getpid():
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _pauses(limit_seconds: float, *, first: float = _FIRST_PAUSE_SECONDS) -> Iterator[float]:
    """Yield the seconds to wait before each new try. End when `limit_seconds` have passed."""
    deadline = time.monotonic() + limit_seconds
    pause = first
    while time.monotonic() < deadline:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def claim(lock: FileLock) -> None:
    """Mark a staging folder as used by this process. Blocks.

    Several processes can mark the same folder, because the lock is shared. A process that removes the folder holds the
    lock exclusively. This function waits a short time for such a process; after that, the folder may no longer exist.
    If the file system has no locks, this function does nothing: a folder that was written to recently is never removed.
    """
    with suppress(StorageError):
        lock.acquire(limit_seconds=CLAIM_SECONDS, is_shared=True)


def is_claimed(lock: FileLock) -> bool:
    """Return whether another process uses a staging folder. If none does, this takes the lock exclusively.

    No other process can then mark the folder with `claim` until the lock is released. Raises StorageError if the file
    system has no locks, so that the answer is not known.
    """
    return not lock.try_acquire()


class Lock:
    """The lock of a cache entry, with its state: `is_held`, `passes_by`, or neither.

    The holder regularly updates the modification time of the lock file. So others see that it still works.
    """

    def __init__(self, lock: FileLock | None) -> None:
        self.is_held = False
        """True if this process has the lock. Then only a process whose lock was ignored may also work on the entry."""
        self.passes_by = False
        """True if the lock of another process is ignored, because it has not updated the lock file for a minute."""
        self._lock = lock

    async def acquire(self, is_done: Callable[[], bool]) -> None:
        """Wait until the lock is held, until its holder is ignored, or until `is_done` returns True.

        Without locks, return at once.
        """
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
        """Update the modification time of the lock file every `beat_seconds`, until cancelled.

        This does not hide a transfer that hangs: each transfer has its own time limits.
        """
        while self._lock is not None:
            with suppress(OSError):
                await in_disk_thread(os.utime, self._lock.descriptor)
            await asyncio.sleep(beat_seconds)


@asynccontextmanager
async def locked(path: Path, is_done: Callable[[], bool], *, beat_seconds: float = BEAT_SECONDS) -> AsyncIterator[Lock]:
    """Hold the lock file at `path` during the block, with a sign of life every `beat_seconds`.

    In three cases the block runs without the lock, and `is_held` is false. Locks may not work on this file system.
    `is_done`, which is called in a thread, may return True while this waits. Or the holder may not have updated the
    lock file for a minute, because it is stopped or its machine is gone. Without the lock, the block must use its own
    files.
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
        make_private(path.parent)
        return FileLock.of_file(path, is_required=True)
    except OSError:
        return None


def _age(descriptor: int) -> float:
    """Return the seconds since the holder last updated the lock file. If this is not known, return 0."""
    try:
        return time.time() - os.fstat(descriptor).st_mtime
    except OSError:
        return 0
