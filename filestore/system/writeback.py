"""Write back what processes stored in mapped files, so that their next store moves the mtime.

A process that has a file mapped (`mmap`, `numpy.memmap`, shared memory of torch) changes it without a system call. The
kernel moves the mtime only where it notices a store: when the store is the first one to a page that is not dirty, since
only then it takes a page fault. All later stores to the page leave the mtime as it is, until the page was written back.

So a file whose pages were written back shows by its mtime each store from then on, and a file with dirty pages does not.

Source: mmap(2), sync_file_range(2), fdatasync(2); Linux, Documentation/filesystems/locking.rst, `page_mkwrite`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from functools import cache
from pathlib import Path

from filestore.core.unlocked import unlocked


class Writeback(Enum):
    """How the stores of other processes to a mapped file become visible in its mtime.

    PARTS: Each part of a file can be written back alone, without a wait for the cache of the disk.
    WHOLE: Only `fdatasync` writes a file back.
    NEVER: Nothing helps: mapped stores never move the mtime there.
    """

    PARTS = auto()
    WHOLE = auto()
    NEVER = auto()


_OVERLAY = 0x794C7630
_TMPFS = 0x01021994
_KNOWN = {
    0xEF53: Writeback.PARTS,  # ext2, ext3, ext4
    0x58465342: Writeback.PARTS,  # XFS
    0x9123683E: Writeback.PARTS,  # btrfs
    0xF2F52010: Writeback.PARTS,  # F2FS
    _TMPFS: Writeback.NEVER,  # tmpfs, which is never written back; also /dev/shm and the files of memfd_create
    0x858458F6: Writeback.NEVER,  # ramfs
    0x958458F6: Writeback.NEVER,  # hugetlbfs
}
"""File systems by their magic numbers, from statfs(2) and linux/magic.h. The others get `fdatasync`."""

_STATFS_SIZE = 256
"""More bytes than a `struct statfs` has. Its first field is the magic number."""

_WAIT_AND_WRITE = 1 | 2 | 4
"""SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE and SYNC_FILE_RANGE_WAIT_AFTER."""
_WRITE = 2

_FIEMAP = 0xC020660B
"""FS_IOC_FIEMAP: list the extents of a file."""
_FIEMAP_OF_ONE_BYTE = struct.pack("=QQIIII", 0, 1, 0, 0, 0, 0)


def writeback_of(descriptor: int) -> Writeback:
    """Return how mapped stores to an open file become visible. Blocks."""
    magic = _magic(descriptor)
    if magic == _OVERLAY:
        # It is as good as the file system below it, which FIEMAP tells from one in memory.
        return Writeback.WHOLE if _has_extents(descriptor) and not _is_volatile(descriptor) else Writeback.NEVER
    found = _KNOWN.get(magic, Writeback.WHOLE)
    return Writeback.WHOLE if found is Writeback.PARTS and _sync_file_range() is None else found


def is_tmpfs(descriptor: int) -> bool:
    """Return whether an open file is on tmpfs, a file system in memory. Blocks."""
    return _magic(descriptor) == _TMPFS


def write_back(descriptor: int) -> bool:
    """Write a file back, and wait for it. Return whether this was done. Blocks."""
    try:
        unlocked(getattr(os, "fdatasync", os.fsync), descriptor)
    except OSError as error:
        # A file system without this call is one that nobody can write to.
        return error.errno in (errno.EINVAL, errno.EROFS)
    return True


def write_back_part(descriptor: int, start: int, size: int) -> bool:
    """Write back `size` bytes of a file from `start` on, and wait for it. Return whether this was done. Blocks.

    The next part of the same size is begun without a wait for it, so that the disk is busy meanwhile. Only for a file whose
    `writeback_of` is PARTS. What was written back may still be lost by a power cut.
    """
    call = _sync_file_range()
    if call is None or unlocked(call, descriptor, start, size, _WAIT_AND_WRITE):
        return False
    begin_write_back(descriptor, start + size, size)
    return True


def begin_write_back(descriptor: int, start: int, size: int) -> None:
    """Begin to write back a part of a file, so that `write_back_part` waits less for it. Blocks for some microseconds."""
    call = _sync_file_range()
    if call is not None and size:
        call(descriptor, start, size, _WRITE)


def _magic(descriptor: int) -> int:
    """Return the magic number of the file system of an open file, or 0 if it is not known."""
    call = _call("fstatfs", [ctypes.c_int, ctypes.c_char_p])
    found = ctypes.create_string_buffer(_STATFS_SIZE)
    # Elsewhere the first field is something else.
    if call is None or sys.platform != "linux" or sys.byteorder != "little" or call(descriptor, found):
        return 0
    return int.from_bytes(found.raw[:4], "little")


def _has_extents(descriptor: int) -> bool:
    """Return whether an open file is on a disk, as far as FIEMAP can tell. Files in memory do not have this call."""
    try:
        fcntl.ioctl(descriptor, _FIEMAP, _FIEMAP_OF_ONE_BYTE)
    except OSError:
        return False
    return True


def _is_volatile(descriptor: int) -> bool:
    """Return whether a file is on an overlay file system that ignores `fdatasync`."""
    with suppress(OSError, IndexError, ValueError):
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").split()
        mount = facts[facts.index("mnt_id:") + 1]
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            if line.startswith(f"{mount} "):
                # Newer versions of Linux show it by the second name.
                return not {"volatile", "fsync=volatile"}.isdisjoint(line.split()[-1].split(","))
    return False


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    return _call("sync_file_range", [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint])


def _call(name: str, types: list[type]) -> Callable[..., int] | None:
    """Return a function of the C library, or None if there is none."""
    try:
        call = ctypes.CDLL(None, use_errno=True)[name]
    except (OSError, AttributeError):
        return None
    call.argtypes = types
    call.restype = ctypes.c_int
    return call
