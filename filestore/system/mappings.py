"""Write to one file from many threads and processes. In memory, they do not wait for each other.

A write to a file of tmpfs holds the lock of the file while it makes the pages and fills them. So all processes together
write to one file no faster than one of them, and those that wait keep their cores busy. Stores to a mapping of the file
take no such lock. They cost half as much again, since the kernel clears each page first and maps it. So one thread at a
time writes, and those that find it writing use a mapping.

A store to a page that cannot be made ends the process (SIGBUS). So the kernel is asked to make the pages first. It then
answers with an error on a full file system, and where the file has ended. What was made stays, unless someone cuts the file
short between that and the store.

Source: madvise(2), `MADV_POPULATE_WRITE`, Linux 5.14; Linux, mm/shmem.c, `shmem_file_write_iter` and `shmem_fault`.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from filestore.core.unlocked import unlocked
from filestore.system.buffers import address_of, memcpy
from filestore.system.files import write_at
from filestore.system.writeback import is_tmpfs

MAPPED_MIN = 256 << 10
"""Fewer bytes are always written: they hold the lock for 0.1 ms at most, and a mapping takes longer."""

_PAGE = mmap.PAGESIZE
_POPULATE_WRITE = 23
_FAILED = ctypes.c_void_p(-1).value

_written: set[tuple[int, int]] = set()
"""The device and the inode of each file to which a thread of this process writes now."""


class _Calls(NamedTuple):
    """Functions of the C library. Unlike those of Python's `mmap`, none holds the interpreter lock."""

    mmap: Callable[[None, int, int, int, int, int], int | None]
    madvise: Callable[[int, int, int], int]
    munmap: Callable[[int, int], int]


class SharedFile:
    """An open file to which several threads and processes write. Its descriptor stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        """The file is open for reading and writing; without reading, it is always written. Blocks. Raises OSError."""
        self._descriptor = descriptor
        # On a disk, the first store to each page costs more than a write, because its file system must be told.
        self._calls = _calls() if is_tmpfs(descriptor) else None
        status = os.fstat(descriptor)
        self._inode = status.st_dev, status.st_ino

    def write(self, content: memoryview, offset: int) -> None:
        """Write all of `content` from `offset` on. Its memory can be written to. Blocks. Raises OSError."""
        is_plain = self._calls is None or len(content) < MAPPED_MIN
        if is_plain or not (self._write_alone(content, offset) or self.store(content, offset)):
            write_at(self._descriptor, content, offset)

    def store(self, content: memoryview, offset: int) -> bool:
        """Store `content` from `offset` on through a mapping. Return whether this was possible. Blocks. Raises OSError.

        If it was not, a write may be possible, or it tells why it is not.
        """
        calls = self._calls
        if calls is None:
            return False
        start = offset // _PAGE * _PAGE
        stop = offset + len(content)
        # Behind the end, the last page takes stores that the file does not get.
        if os.fstat(self._descriptor).st_size < stop:
            return False
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = unlocked(calls.mmap, None, stop - start, protection, mmap.MAP_SHARED, self._descriptor, start)
        if address is None or address == _FAILED:
            return False
        try:
            if unlocked(calls.madvise, address, stop - start, _POPULATE_WRITE):
                return False
            unlocked(memcpy(), address + offset - start, address_of(content), len(content))
        finally:
            unlocked(calls.munmap, address, stop - start)
        return True

    def _write_alone(self, content: memoryview, offset: int) -> bool:
        """Write, unless another thread or process does so now. Return whether this was done."""
        if self._inode in _written:
            return False
        # If two threads come here at once, both write. The lock is one of the process.
        _written.add(self._inode)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError:
            _written.discard(self._inode)
            return False
        try:
            write_at(self._descriptor, content, offset)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1)
            _written.discard(self._inode)
        return True


@cache
def _calls() -> _Calls | None:
    """Return the functions, or None if this system cannot make pages, or if the offset of a file is not a word."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return None
    library = ctypes.CDLL(None)
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    library.mmap.restype = ctypes.c_void_p
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    page = mmap.mmap(-1, _PAGE)
    refused = library.madvise(address_of(memoryview(page)), _PAGE, _POPULATE_WRITE)
    return None if refused else _Calls(library.mmap, library.madvise, library.munmap)
