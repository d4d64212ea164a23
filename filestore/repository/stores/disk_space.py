"""The free space of a repository's disk: a part that stays free, and a reserve for the removal of files.

    ROOT/reserve    a file of zeros, which only takes space

On a disk without any free space, nothing can be removed, because the index first writes each change to its log. A
removal that finds the disk full removes the reserve, and tries again. Nothing new is stored until the reserve is there
again. So pushes never take the space that a removal needs.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from filestore.errors import MinFreeReached, StorageFull
from filestore.repository.folder import RESERVE_NAME
from filestore.system.files import write_all

MIN_FREE = 256 << 20
"""The default of the space that stays free, for a large disk."""
_MIN_FREE_SHARE = 100
"""The default for a small disk is this part of its size: 1 %."""
_RESERVE_SIZE = 32 << 20
_SMALL_RESERVE_SIZE = 1 << 20
_RESERVE_SHARE = 64
"""The reserve of a small disk is this part of its size, and at least 1 MiB."""
_LEAST_SIZE = 128 << 10
"""A reserve that is smaller than this would not help."""
_LEFT_SIZE = 64 << 10
"""Free space that is left to the log of the index when the reserve is taken back."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class SpaceClaim:
    """Space that was promised to a write, less what was written since."""

    def __init__(self, space: DiskSpace, size: int) -> None:
        self._space = space
        self._left = size

    def written(self, size: int) -> None:
        """Say that `size` more bytes were written. The file system counts them from now on."""
        size = min(size, self._left)
        self._left -= size
        self._space.give_back(size)

    def end(self) -> None:
        """Give back the rest."""
        self.written(self._left)


class DiskSpace:
    """The space of the file system of a repository, as one process sees it. The methods block.

    Other processes see what was written, and not what this process has promised.
    """

    def __init__(self, root: Path, *, min_free: int | None = None) -> None:
        """`min_free` is how many bytes stay free. None means 1 % of the file system, and at most 256 MiB."""
        self._root = root
        self._min_free = min_free
        self._promised = 0
        self._has_released = False
        self._changing = threading.Lock()

    def claim(self, size: int, *, place: Path | None = None) -> SpaceClaim:
        """Promise `size` bytes. The caller ends the claim. Raises MinFreeReached, StorageFull, OSError.

        They are for the folder `place`, if it is given. If it is on another file system, the space there is looked at,
        and nothing is promised.
        """
        if place is not None and place.stat().st_dev != self._root.stat().st_dev:
            free, limit = self._free(place)
            if free - size < limit:
                raise MinFreeReached(str(place), size, free, limit)
            return SpaceClaim(self, 0)
        if not self.make_reserve():
            raise StorageFull(str(self._root), "No space left on device", hint="free-repository")
        free, limit = self._free(self._root)
        with self._changing:
            left = free - self._promised
            if left - size < limit:
                raise MinFreeReached(str(self._root), size, max(left, 0), limit)
            self._promised += size
        return SpaceClaim(self, size)

    def _free(self, place: Path) -> tuple[int, int]:
        """Return how many bytes are free on the file system of `place`, and how many of them stay free."""
        found = os.statvfs(place)
        share = found.f_blocks * found.f_frsize // _MIN_FREE_SHARE
        return found.f_bavail * found.f_frsize, min(MIN_FREE, share) if self._min_free is None else self._min_free

    def give_back(self, size: int) -> None:
        """Take back a promise of `size` bytes."""
        with self._changing:
            self._promised -= size

    def release_reserve(self) -> bool:
        """Remove the reserve. Return whether this process removed it now. Raises OSError."""
        try:
            (self._root / RESERVE_NAME).unlink()
        except FileNotFoundError:
            return False
        self._has_released = True
        return True

    def make_reserve(self) -> bool:
        """Make the reserve, or make a small one larger. Return False if the disk has no space for it. Raises OSError."""
        path = self._root / RESERVE_NAME
        found = os.statvfs(self._root)
        free = found.f_bavail * found.f_frsize
        wanted = max(_SMALL_RESERVE_SIZE, min(_RESERVE_SIZE, found.f_blocks * found.f_frsize // _RESERVE_SHARE))
        size = 0
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_nlink == 1:
                size = status.st_size
            else:
                # A copy of the folder by hard links keeps the space, so a removal would free nothing.
                path.unlink()
        if size >= wanted or (size and free < 2 * wanted):
            return True
        # What was released is taken back as far as possible. A new reserve takes half of the free space at most.
        size = min(wanted, free - _LEFT_SIZE if self._has_released else free // 2)
        if size < _LEAST_SIZE:
            return False
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _allocate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            with suppress(OSError):
                path.unlink()
            return False
        self._has_released = False
        return True


def _allocate(descriptor: int, size: int) -> None:
    """Make the file system give `size` bytes to an open file. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        with suppress(OSError, ValueError):
            os.posix_fallocate(descriptor, 0, size)
            return
    piece = bytes(1 << 20)
    for _ in range(0, size, len(piece)):
        write_all(descriptor, piece)
