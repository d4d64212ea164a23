"""What a process that is ours alone is told about memory and threads."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROBE = """
import ctypes
from filestore.system.own_process import keep_heap

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Numbers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in FIELDS.split()]

libc = ctypes.CDLL(None)
libc.mallinfo.restype = Numbers
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def mapped_and_kept():
    before = libc.mallinfo()
    block = libc.malloc(16 << 20)
    mapped = libc.mallinfo().hblks - before.hblks
    libc.free(block)
    return mapped, libc.mallinfo().arena - before.arena >= 16 << 20

print(*mapped_and_kept())
keep_heap()
print(*mapped_and_kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such thresholds")
def test_large_blocks_stay_in_the_heap() -> None:
    """A block of the size of a window is not mapped for itself, and stays when it is freed."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    assert ["1 False", "0 True"] == done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_numpy_starts_no_threads() -> None:
    """A process of ours has one thread when numpy is loaded."""
    tuned = "from filestore.system import own_process; own_process.tune_process();"
    probe = f"{tuned}import numpy, os; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "1\n" == done.stdout
