"""Take turns between processes, by two lock files in one folder.

SQLite's lock goes to whoever asks first after it is free. That is mostly the process that has just had it, so another one
can wait for very long. Here a process takes the first lock, then the second one, and releases the first one. It works
while it holds the second one. A process that waits holds the first lock, or is about to get it. So the one that has
just worked finds it taken, and comes after the one that waits.

The turnstile only makes the order fair. Nothing depends on it: after a few seconds a process goes on without it, as it
does where a folder is read-only or has no locks.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from filestore.system.locks import FileLock
from filestore.system.threads import tell_of_forks

FILE_NAMES = ("turn.lock", "write.lock")
PATIENCE_SECONDS = 5.0
"""How long a process waits for others. A process that was stopped in its turn delays each other one once."""

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0001, 0.002
_PAUSE_SHARE = 1 / 16
"""A pause takes this share of the time that was waited so far. So little time is lost between two turns, short or long."""


class Turnstile:
    """The place of one process in the turnstile of `folder`. All methods block. Only one thread at a time may call them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._pid = os.getpid()
        self._locks: tuple[FileLock, FileLock] | None = None
        self._is_usable = True
        self._is_first_held = False
        self._is_inside = False
        self._waits_since: float | None = None
        self._patience_seconds = PATIENCE_SECONDS
        tell_of_forks(self)

    def try_enter(self, limit_seconds: float) -> bool:
        """Wait at most `limit_seconds` for the turn of this process. Return False if it has not come yet.

        The place stays, so call this again. It returns True at once in a turn, and when the patience is at its end.
        """
        locks = None if self._is_inside else self._opened()
        if locks is None:
            return True
        first, second = locks
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        deadline = time.monotonic() + min(limit_seconds, self._patience_seconds)
        self._is_first_held = self._is_first_held or _acquire(first, deadline)
        if self._is_first_held and _acquire(second, deadline):
            self._is_inside = True
            first.unlock()
            self._is_first_held = False
            self._patience_seconds = PATIENCE_SECONDS
            return True
        if time.monotonic() - self._waits_since < self._patience_seconds:
            return False
        # It may be stopped for long. The next turns do not wait for it again.
        self.leave()
        self._patience_seconds = 0.0
        return True

    def leave(self) -> None:
        """End the turn, or give up the place. Without either, do nothing."""
        if self._locks is not None and self._pid == os.getpid():
            first, second = self._locks
            if self._is_inside:
                second.unlock()
            if self._is_first_held:
                first.unlock()
        self._is_inside = self._is_first_held = False
        self._waits_since = None

    def close(self) -> None:
        """Leave, and close the lock files."""
        self.leave()
        self._is_usable = False
        locks, self._locks = self._locks, None
        for lock in locks or ():
            lock.release()

    def after_fork(self) -> None:
        """Close the copies of the parent's lock files, which keep the locks of a parent that is killed."""
        self.close()

    def _opened(self) -> tuple[FileLock, FileLock] | None:
        if self._locks is None and self._is_usable:
            self._is_usable = False
            with suppress(OSError):
                # They are not required: SQLite's own lock keeps the writes apart.
                first, second = (FileLock.of_file(self._folder / name, is_required=False) for name in FILE_NAMES)
                self._locks = first, second
                self._is_usable = True
        return self._locks


def _acquire(lock: FileLock, deadline: float) -> bool:
    # A wait inside the kernel could not be cancelled. The pauses are short, because all others wait meanwhile.
    began = None
    while not lock.try_acquire():
        now = time.monotonic()
        if now >= deadline:
            return False
        began = now if began is None else began
        time.sleep(min(max((now - began) * _PAUSE_SHARE, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS))
    return True
