"""The free space of a repository's disk: a part that stays free, and a reserve for the removal of files.

    ROOT/reserve    a file of zeros, which only takes space

On a disk without any free space, nothing can be removed, because the index first writes each change to its log. A
removal that finds the disk full removes the reserve, and tries again. Nothing new is stored until the reserve is there
again. So pushes never take the space that a removal needs.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from filestore.errors import MinFreeReached, StorageFull
from filestore.repository.folder import RESERVE_NAME
from filestore.repository.stores.protocol import DiskState
from filestore.system.files import storage_errors, write_all

MIN_FREE = 256 << 20
"""The default of the space that stays free, for a large disk."""
_MIN_FREE_SHARE = 100
"""The default for a small disk is this part of its size: 1 %."""
_RESERVE_SIZE = 32 << 20
_SMALL_RESERVE_SIZE = 1 << 20
_RESERVE_SHARE = 64
"""The reserve of a small disk is this part of its size, and at least 1 MiB."""
_STEP_SIZE = 1 << 20
"""Content of unknown size is promised so many bytes at once."""
_MOMENT_SECONDS = 0.25
"""How long a look at the file system is remembered."""
_FAR_SIZE = 8 << 30
"""More bytes than all processes of a machine write in this time."""
_CHECK_SIZE = 8 << 20
"""A write that goes on looks at the free space after so many bytes."""
_SMALL_ANSWER_SIZE = 256 << 10
_LEAST_SIZE = 128 << 10
"""A reserve that is smaller than this would not help."""
_LEFT_SIZE = 64 << 10
"""Free space that is left to the log of the index when the reserve is taken back."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class SpaceClaim:
    """Space that was promised to a write, less what was written since. Its methods raise MinFreeReached, StorageError."""

    def __init__(self, space: DiskSpace, place: Path, device: int | None, *, for_reader: bool) -> None:
        self._space = space
        self._place = place
        self._device = device
        self._for_reader = for_reader
        self._left = 0
        self._written = 0
        self._checked = 0

    def add(self, size: int) -> None:
        """Promise `size` more bytes."""
        self._space.promise(size, self._place, self._device, for_reader=self._for_reader)
        self.take(size)

    def take(self, size: int) -> None:
        """Note that `size` bytes were promised."""
        self._left += size

    def written(self, size: int) -> None:
        """Say that `size` more bytes are written. The file system counts them from now on.

        Bytes that were not promised are promised now. The free space is looked at again and again, because other
        processes write too, and do not know what was promised here.
        """
        self._written += size
        if self._for_reader and self._written <= _SMALL_ANSWER_SIZE:
            return
        if size > self._left:
            self.add(max(size - self._left, _STEP_SIZE))
        elif self._written - self._checked >= _CHECK_SIZE:
            self._space.check(size, self._place, for_reader=self._for_reader)
            self._checked = self._written
        self._left -= size
        self._space.give_back(size, self._device)

    def end(self) -> None:
        """Give back the rest."""
        left, self._left = self._left, 0
        self._space.give_back(left, self._device)


class DiskSpace:
    """The space of the file system of a repository, as one process sees it. The methods block.

    Other processes see what was written, and not what this process has promised.
    """

    def __init__(self, root: Path, *, min_free: int | None = None) -> None:
        """`min_free` is how many bytes stay free. None means 1 % of the file system, and at most 256 MiB."""
        self._root = root
        self._min_free = min_free
        self._promised: defaultdict[int | None, int] = defaultdict(int)
        """What was promised on each file system, by its device number. None is the one of the repository."""
        self._has_released = False
        self._look = -math.inf, 0
        """When a claim looked at the file system, with the reserve in its place, and how many bytes could be stored then."""
        self._changing = threading.Lock()

    def claim(self, size: int, *, place: Path | None = None, for_reader: bool = False) -> SpaceClaim:
        """Promise `size` bytes. The caller ends the claim. Raises MinFreeReached, StorageFull, StorageError, OSError.

        They are for the folder `place`, if it is given, which may be on another file system. With `for_reader`, they are
        for an answer that is removed soon. Half of the space that stays free may be used for such answers, and a small
        one needs no promise, because reading goes on when nothing new is stored.
        """
        other = None
        if place is not None and (device := place.stat().st_dev) != self._root.stat().st_dev:
            other = device
        claim = SpaceClaim(self, place or self._root, other, for_reader=for_reader)
        if not for_reader and other is None and not self.make_reserve():
            raise StorageFull(str(self._root), "No space left on device", hint="free-repository")
        if size or not for_reader:
            claim.add(size)
        if not for_reader and other is None:
            free, limit = self._free(self._root, for_reader=False)
            self._look = time.monotonic(), free - limit
        return claim

    def soon_after(self, size: int) -> SpaceClaim | None:
        """Promise `size` bytes of the repository's file system without a look at it, which may block.

        Return None unless this process has looked at it a moment ago, and found far more space than anybody could have taken
        since.
        """
        looked_at, spare = self._look
        if time.monotonic() - looked_at > _MOMENT_SECONDS:
            return None
        with self._changing:
            if spare - self._promised[None] - size < _FAR_SIZE:
                return None
            self._promised[None] += size
        claim = SpaceClaim(self, self._root, None, for_reader=False)
        claim.take(size)
        return claim

    def promise(self, size: int, place: Path, device: int | None, *, for_reader: bool) -> None:
        """Promise `size` bytes of the file system of `place`. Raises MinFreeReached, StorageError."""
        free, limit = self._free(place, for_reader=for_reader)
        with self._changing:
            left = free - self._promised[device]
            if left - size < limit:
                raise MinFreeReached(str(place), size, max(left, 0), limit)
            self._promised[device] += size

    def check(self, size: int, place: Path, *, for_reader: bool) -> None:
        """Raise MinFreeReached if less than the limit is free, whatever was promised. Raises StorageError."""
        free, limit = self._free(place, for_reader=for_reader)
        if free < limit:
            raise MinFreeReached(str(place), size, free, limit)

    def give_back(self, size: int, device: int | None) -> None:
        """Take back a promise of `size` bytes."""
        with self._changing:
            self._promised[device] -= size

    def _free(self, place: Path, *, for_reader: bool) -> tuple[int, int]:
        """Return how many bytes are free on the file system of `place`, and how many of them stay free."""
        with storage_errors(place):
            found = os.statvfs(place)
        limit = _limit(found) if self._min_free is None else self._min_free
        return found.f_bavail * found.f_frsize, limit // 2 if for_reader else limit

    def state(self) -> DiskState:
        """Return the state of the disk. Raises StorageError."""
        with storage_errors(self._root):
            found = os.statvfs(self._root)
        limit = _limit(found) if self._min_free is None else self._min_free
        return DiskState(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, limit)

    def release_reserve(self) -> bool:
        """Remove the reserve. Return whether this process removed it now. Raises OSError."""
        try:
            (self._root / RESERVE_NAME).unlink()
        except FileNotFoundError:
            return False
        self._look = -math.inf, 0
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


def kept_free(place: Path, min_free: int | None = None) -> int:
    """Return how many bytes of the file system of `place` stay free. `min_free` is what the user set. Raises OSError."""
    return _limit(os.statvfs(place)) if min_free is None else min_free


def _limit(found: os.statvfs_result) -> int:
    return min(MIN_FREE, found.f_blocks * found.f_frsize // _MIN_FREE_SHARE)


def _allocate(descriptor: int, size: int) -> None:
    """Make the file system give `size` bytes to an open file. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        with suppress(OSError, ValueError):
            os.posix_fallocate(descriptor, 0, size)
            return
    piece = bytes(1 << 20)
    for _ in range(0, size, len(piece)):
        write_all(descriptor, piece)
