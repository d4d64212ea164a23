"""The folder for the staging files of one process, which holds a lock on it until it ends.

The lock shows other processes that this process is running. A process id would be less reliable. The kernel releases
the lock whenever the process ends. The lock also works between containers that share the folder. A process id may
belong to another process after a restart.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

from filestore.core.unlocked import unlocked
from filestore.errors import StorageError
from filestore.repository.stores.protocol import NOTHING_REMOVED, Removed
from filestore.system.files import remove_if_possible
from filestore.system.locks import FileLock

_NAME_BYTES = 16
_NAME_PATTERN = "[0-9a-f]" * 2 * _NAME_BYTES
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StagingFolder:
    """A locked folder with a random name in the folder `tmp` of a store. Its methods block, and raise OSError.

    If somebody removes the folder, or `tmp`, while this process runs, the next staging file makes it again.
    """

    def __init__(self, tmp: Path) -> None:
        self._tmp = tmp
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._pid = os.getpid()
        self._numbers = count()
        self._changing = threading.Lock()
        self._swept = NOTHING_REMOVED
        """What was removed when this process entered."""

    def enter(self) -> None:
        """Make the folder. On a full disk, the first staging file does it. Raises StorageError if there are no locks."""
        self._swept = sweep(self._tmp)
        try:
            self._claim()
        except OSError as error:
            # Removing files, which a full disk needs, uses no staging file.
            if error.errno not in _FULL:
                raise

    def take_swept(self) -> Removed:
        """Return, once, what `enter` removed of processes that have ended."""
        swept, self._swept = self._swept, NOTHING_REMOVED
        return swept

    def open_new(self) -> tuple[int, str]:
        """Make a staging file. Return its descriptor for writing, and its path. This is a text: a Path takes as long as the file.

        The folder has a random name and only its owner can use it, so a number is enough inside.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        number = next(self._numbers)
        folder = self._folder
        if folder is not None:
            path = f"{folder}/{number}"
            with suppress(FileNotFoundError):
                return unlocked(os.open, path, flags, 0o600), path
        path = f"{self._made_again(folder)}/{number}"
        return unlocked(os.open, path, flags, 0o600), path

    def close(self) -> None:
        """Remove the folder, and release its lock. In a forked child, both belong to the parent."""
        with self._changing:
            folder, lock = self._folder, self._lock
            self._folder = self._lock = None
        if lock is None:
            return
        if folder is not None and self._pid == os.getpid():
            # In this order: a folder without a lock is swept by others at the same time.
            remove_if_possible(folder)
        lock.release()

    def _made_again(self, lost: Path | None) -> Path:
        with self._changing:
            if self._folder is None or self._folder == lost:
                lock, self._lock = self._lock, None
                if lock is not None:
                    lock.release()
                return self._claim()
            return self._folder  # another thread was faster

    def _claim(self) -> Path:
        while True:
            # Not its parents: without the folder of the repository there is nothing to write to.
            self._tmp.mkdir(0o700, exist_ok=True)
            folder = self._tmp / secrets.token_hex(_NAME_BYTES)
            folder.mkdir(0o700)
            lock = _locked(folder)
            if lock is not None:
                self._folder, self._lock = folder, lock
                return folder


def sweep(tmp: Path, *, is_dry: bool = False) -> Removed:
    """Remove the folders in `tmp` that belonged to processes that have ended. Blocks. Raises OSError, StorageError.

    Return how many files they have, and their bytes. With `is_dry`, remove nothing.
    """
    total = size = 0
    for folder in tmp.glob(_NAME_PATTERN):
        lock = _locked(folder)
        if lock is None:
            continue
        with suppress(OSError):
            sizes = [path.lstat().st_size for path in folder.iterdir()]
            total, size = total + len(sizes), size + sum(sizes)
        if not is_dry:
            # In this order: a folder without a lock is swept by others at the same time.
            remove_if_possible(folder)
        lock.release()
    return Removed(total, size)


def _locked(folder: Path) -> FileLock | None:
    """Lock `folder`, and return its lock. Return None if another process has the lock, or if it is not a folder.

    Raises StorageError if the file system has no locks. A store needs them: each process that opens the store removes
    the staging folders that are not locked.
    """
    try:
        lock = FileLock.of_folder(folder, is_required=True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        # Another process may have swept the folder away after it was made or opened, before it was locked.
        if lock.try_acquire() and folder.exists():
            return lock
    except StorageError:
        lock.release()
        raise
    lock.release()
    return None
