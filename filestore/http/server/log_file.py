"""A log file that several processes append to. It may be moved away, cut to nothing or removed at any time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filestore.system.owners import PRIVATE_FILE, is_ours, is_shared

logger = logging.getLogger("filestore.server")

OLD_FILES = 9
"""How many files with older lines are kept: FILE.1, which is the newest of them, to FILE.9."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class LogFile:
    """Append lines to a file. It is for one thread, and its methods block."""

    def __init__(
        self,
        path: Path,
        *,
        size_limit: int | None = None,
        old_files: int = OLD_FILES,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """From `size_limit` bytes on, the file is renamed to `path`.1, and another one is begun. None means never."""
        self.path = path
        self._size_limit = size_limit
        self._old_files = old_files
        self._write = write
        self._descriptor = -1
        self._next_rotation = size_limit

    def append(self, lines: Sequence[bytes]) -> int:
        """Append lines, each with its end, in one write, so that no other process writes between their bytes.

        Return how many lines were written. They are fewer where the disk is full. Raises OSError, also if none was.
        """
        size = self._follow()
        if self._next_rotation is not None and size >= self._next_rotation:
            size = self._rotate(size)
        data = b"".join(lines)
        # A line that a full disk has cut must not spoil the next one.
        if size and os.pread(self._descriptor, 1, size - 1) not in {b"\n", b""}:
            data = b"\n" + data
        written = self._write(self._descriptor, data)
        if written == len(data):
            return len(lines)
        return data[:written].lstrip(b"\n").count(b"\n")

    def check(self) -> None:
        """Make the file if it is absent. Raises OSError if it cannot be written to."""
        self._follow()
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _follow(self) -> int:
        """Open the file that has the path now, unless it is open. Return its size."""
        if self._descriptor >= 0:
            with suppress(FileNotFoundError):
                found = self.path.stat()
                if os.path.samestat(found, os.fstat(self._descriptor)):
                    return found.st_size
            self.close()
        return self._open()

    def _open(self) -> int:
        # In a folder such as /tmp, the name may be a link that another user has made.
        shared = is_shared(self.path.parent)
        descriptor = os.open(self.path, _FLAGS | (os.O_NOFOLLOW if shared else 0), PRIVATE_FILE)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is not a file", str(self.path))
            if shared and not is_ours(status):
                raise PermissionError(errno.EPERM, "another user may have made it", str(self.path))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._next_rotation = self._size_limit
        return status.st_size

    def _rotate(self, size: int) -> int:
        """Rename the file, and begin another one. Return its size. On a failure, go on with the file that is open."""
        try:
            # The lock belongs to the file that is renamed. A process that comes later finds another file at the path.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                if os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
                    self._rename()
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            return self._follow()
        except OSError as error:
            logger.warning("the log %r cannot be rotated, and grows: %s", str(self.path), error.strerror)
            if self._descriptor < 0:
                raise
            self._next_rotation = size + (self._size_limit or 0)
            return size

    def _rename(self) -> None:
        # The file itself is the last: nobody else renames before another one has its path.
        for number in range(self._old_files - 1, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")  # noqa: PTH105  # a text is at hand
        os.replace(self.path, f"{self.path}.1")  # noqa: PTH105  # the same
