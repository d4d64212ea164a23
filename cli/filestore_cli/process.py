"""What a process that is ours alone is told about memory and threads: a command, a server's worker."""

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
"""New objects between two collections of garbage; Python's own number is 700, and a tree of small files makes millions."""


def tune_process() -> None:
    """All that follows, before anything heavy is loaded. Process-wide: never called in a process that belongs to someone else."""
    keep_heap()
    limit_blas_threads()
    gc.set_threshold(_COLLECT_AFTER)


def limit_blas_threads() -> None:
    """Have numpy, which must not be loaded yet, start no threads for linear algebra: none is done here.

    They spin for a while before they sleep, which is a tenth of a second of processor time on each start.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_heap() -> None:
    """Have glibc keep freed memory instead of giving it back after every large buffer; elsewhere this does nothing.

    A fresh page costs more than the copy into it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    libc.mallopt(_M_TOP_PAD, _TOP_PAD)
