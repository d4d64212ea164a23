"""Measure how fast threads of several processes write to one file together: by writes, through mappings, and as a fetch does.

python bench/one_file.py --folder /dev/shm --processes 1,2,4 --threads 2

It prints GB/s and seconds of processor time for a GB, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import MutableSequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.run import parse_size  # noqa: E402  # found only now
from filestore.system.files import write_at  # noqa: E402
from filestore.system.mappings import SharedFile  # noqa: E402
from filestore.system.metrics import own_usage  # noqa: E402

_CHUNK = (2 << 20) + 77
"""A usual size of a chunk, which begins at any byte."""
_WAYS = ("write", "mapping", "fetch")


class _Part(NamedTuple):
    """What one process writes."""

    path: str
    way: str
    place: int
    processes: int
    threads: int
    chunks: int


def main() -> None:
    """Print a row for each number of processes and each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))  # noqa: S108  # the folder to measure
    parser.add_argument("--size", type=parse_size, default=1 << 30)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--threads", type=int, default=1, help="in each process")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'processes':>9} {'threads':>7} {'way':8} {'GB/s':>6} {'CPU s/GB':>9}")
    for count in map(int, options.processes.split(",")):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for number in range(options.rounds + 1):
            for way in _WAYS:
                measured = _measure(options.folder, way, count, options.threads, options.size // _CHUNK)
                if number:  # the first round touches the memory
                    found[way].append(measured)
        for way, values in found.items():
            rate, cost = (median(column) for column in zip(*values, strict=True))
            print(f"{count:9} {options.threads:7} {way:8} {rate:6.2f} {cost:9.3f}")


def _measure(folder: Path, way: str, processes: int, threads: int, chunks: int) -> tuple[float, float]:
    """Return GB/s, and seconds of processor time for a GB."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="one-file-") as file:
        os.ftruncate(file.fileno(), chunks * _CHUNK)
        context = get_context("spawn")
        barrier = context.Barrier(processes + 1)
        used = context.Array("d", processes)
        parts = [_Part(file.name, way, place, processes, threads, chunks) for place in range(processes)]
        writers = [context.Process(target=_write_part, args=(part, barrier, used)) for part in parts]
        for writer in writers:
            writer.start()
        barrier.wait()
        began = time.monotonic()
        barrier.wait()
        seconds = time.monotonic() - began
        for writer in writers:
            writer.join()
    size = chunks * _CHUNK / 1e9
    return size / seconds, sum(used[:]) / size


def _write_part(part: _Part, barrier: threading.Barrier, used: MutableSequence[float]) -> None:
    """Write every chunk of one process, in its threads."""
    first, step = part.place * part.threads, part.processes * part.threads
    numbers = [range(first + number, part.chunks, step) for number in range(part.threads)]
    with Path(part.path).open("r+b") as file:
        writers = [threading.Thread(target=_write_each, args=(file.fileno(), part.way, each)) for each in numbers]
        barrier.wait()
        before = own_usage().cpu_seconds
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        used[part.place] = own_usage().cpu_seconds - before
        barrier.wait()


def _write_each(descriptor: int, way: str, numbers: range) -> None:
    content = memoryview(bytearray(os.urandom(_CHUNK)))
    shared = SharedFile(descriptor)
    for offset in (number * _CHUNK for number in numbers):
        if way == "fetch":
            shared.write(content, offset)
        elif way == "write":
            write_at(descriptor, content, offset)
        elif not shared.store(content, offset):
            sys.exit("this folder has no files that are mapped")


if __name__ == "__main__":
    main()
