"""The memory allocator of a process that is ours alone: a command, a server's worker."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

# glibc refuses a larger threshold on 64-bit machines.
_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 128 << 20
_TOP_PAD = 4 << 20


def keep_heap() -> None:
    """Have glibc keep freed memory instead of giving it back after every large buffer; elsewhere this does nothing.

    A fresh page costs more than the copy into it. Process-wide, so never called in a process that belongs to someone else.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    libc.mallopt(_M_TOP_PAD, _TOP_PAD)
