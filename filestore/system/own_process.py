"""Set memory and threads of a process that filestore starts: a command, or a worker of a server."""

from __future__ import annotations

import ctypes
import gc
import os
import platform

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

# glibc refuses a larger threshold on 64-bit machines.
_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 128 << 20
_TOP_PAD = 4 << 20

_COLLECT_AFTER = 10_000
"""New objects between two garbage collections. The default of Python is 700, and a tree of small files makes
millions."""


def tune_process() -> None:
    """Set up garbage collection, threads and the heap.

    Call it before large modules are loaded, and only in a process that filestore started.
    """
    keep_heap()
    limit_blas_threads()
    gc.set_threshold(_COLLECT_AFTER)


def limit_blas_threads() -> None:
    """Stop numpy from starting threads for linear algebra, which is not used here. Call it before numpy is loaded.

    These threads spin before they sleep, which costs a tenth of a second of processor time at each start.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_heap() -> None:
    """Make glibc keep freed memory, and not return it after every large buffer. Without glibc, this does nothing.

    A new page costs more than a copy into it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    libc.mallopt(_M_TOP_PAD, _TOP_PAD)
