"""Measure the memory of a process. It imports nothing of the tests, so that a program that is measured can use it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import AnyStr


def memory(pid: int, key: str) -> int:
    """Bytes of memory of a process, now (VmRSS) or at most since it was last forgotten (VmHWM)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) << 10


@contextmanager
def peak_growth(pid: int) -> Iterator[Callable[[], int]]:
    """Give a function that returns by how many bytes the peak of a process is above what it has now."""
    before = memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    yield lambda: memory(pid, "VmHWM") - before


def peak_until_end(process: subprocess.Popen[AnyStr]) -> int:
    """Wait for the end of a process. Return the most bytes of memory that it was seen to have.

    What the system itself tells in the end is at least what the process had that started it.
    """
    peak = 0
    while process.poll() is None:
        with suppress(OSError, ValueError):  # it has just ended
            peak = memory(process.pid, "VmHWM")
        time.sleep(0.01)
    return peak
