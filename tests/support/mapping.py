"""Another process that has a file mapped and stores into it, as with `numpy.memmap` and shared memory of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = """
import mmap
import sys

with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    for line in sys.stdin:
        place, value = map(int, line.split())
        memory[place] = value
        print(flush=True)
"""


class Mapping:
    """A mapping of a file in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def store(self, place: int, value: int) -> None:
        """Store one byte in the mapped file, and wait until it is there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{place} {value}\n")
        self._process.stdin.flush()
        assert "\n" == self._process.stdout.readline()


@contextmanager
def mapping(path: Path) -> Iterator[Mapping]:
    """Map a file, which must not be empty, in another process."""
    command = [sys.executable, "-I", "-c", _PROGRAM, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Mapping(process)
