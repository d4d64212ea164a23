"""Run a benchmark with memory that the machine has used before and keeps.

python bench/warm_memory.py python bench/tls.py --folder /dev/shm
python bench/warm_memory.py --leave 4GiB python bench/scaling.py --folder /dev/shm

A virtual machine takes memory from its host when it first writes to it, which costs up to 2 s for a GB. It may give free memory
back within seconds ("free page reporting" of virtio_balloon), but only in free blocks of 2 MiB. So all free memory is written to
first. One page of each 512 KiB is then kept until the command ends, so that few free blocks have 2 MiB. The kept pages are less
than one percent of the memory.
"""

from __future__ import annotations

import argparse
import mmap
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.run import parse_size  # noqa: E402
from filestore.system.machine import memory_size  # noqa: E402

_STEP = 512 << 10
"""A page of each so many bytes is kept."""
_LEAVE = 1 << 30
_PORTION = 64 << 20
"""After each so many bytes, it looks at what is free: another program may write too."""


def main() -> int:
    """Run a command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave", type=parse_size, default=_LEAVE, help="memory that is not written to (default: 1 GiB)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command to run, with its arguments")
    options = parser.parse_args()
    if not options.command:
        parser.error("give a command to run")
    began = time.perf_counter()
    size = max(_STEP, min(free_memory(), memory_size()) - options.leave) // _STEP * _STEP
    with written(size, leave=options.leave):
        print(f"the free memory was written to in {time.perf_counter() - began:.0f} s", flush=True)
        return _run(options.command)


def _run(command: list[str]) -> int:
    """Run a command to its end, and return its exit status as a shell does. It is told to end when this process is."""
    running: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def end(number: int, _: object) -> None:
        told.append(number)
        for child in running:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    # A terminal sends SIGINT to both, and a benchmark then stops its servers.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None
    running.append(child)
    if told:
        child.terminate()
    status = child.wait()
    return status if status >= 0 else 128 - status


def free_memory() -> int:
    """Return the bytes of memory of the machine that nobody uses."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemFree:")).split()[1])


def written(size: int, *, leave: int = 0) -> mmap.mmap:
    """Write to `size` bytes of memory, and give back all but a page of each `_STEP` bytes. The result keeps these pages.

    It writes to less if less than `leave` bytes would stay free.
    """
    kept = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages
        # A part of a huge page would not be given back at once.
        kept.madvise(mmap.MADV_NOHUGEPAGE)
    for start in range(0, size, mmap.PAGESIZE):
        if start % _PORTION == 0 and free_memory() < leave:
            break
        kept[start] = 1
    for start in range(0, size, _STEP):
        kept.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, _STEP - mmap.PAGESIZE)
    return kept


if __name__ == "__main__":
    sys.exit(main())
