"""Measure how fast a check reads a repository, beside plain reading of the same files by `cat`.

python bench/check.py --size 1GiB --rounds 3

All files are dropped from the page cache before each measurement, so the disk is measured too. On tmpfs it is not.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.data import bf16
from filestore_cli.settings import parse_size

FILESTORE = Path(sys.executable).parent / "filestore"
PART = 64 << 20


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=lambda text: parse_size(text, minimum=PART), default=1 << 30, help="bytes of bf16 weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="the folder to work in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = stored(Path(folder), arguments.size)
        report(root, arguments.rounds)


def stored(folder: Path, size: int) -> Path:
    """Push weights to a new repository in `folder`, and return its folder."""
    source, root = folder / "model.bin", folder / "root"
    with source.open("wb") as file:
        for seed in range(size // PART):
            file.write(bf16(seed, PART))
    run([FILESTORE, "push", source, "--create", "--url", root, "--quiet"])
    source.unlink()
    return root


def report(root: Path, rounds: int) -> None:
    """Measure each way of reading in turn, and print what it took."""
    files = sorted(path for path in (root / "chunks").rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    ways: Mapping[str, Callable[[], object]] = {
        "cat of all frames": lambda: run(["cat", *files], stdout=subprocess.DEVNULL),
        "check": lambda: run([FILESTORE, "check", "--root", root]),
        "check --read-data, older rows": lambda: run([FILESTORE, "check", "--root", root, "--read-data", "--quiet"]),
        "check --read-data": lambda: run([FILESTORE, "check", "--root", root, "--read-data", "--quiet"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        forget_digests(root)
        for name, way in ways.items():
            drop(files)
            started, used = time.perf_counter(), processor_seconds()
            way()
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(processor_seconds() - used)
    print(f"{len(files)} frames, {size / 1e9:.2f} GB; medians of {rounds} rounds, with the start of the process\n")
    print("| way | seconds | GB/s | times cat | processor seconds |\n|---|---|---|---|---|")
    cat = median(seconds["cat of all frames"])
    for name, taken in seconds.items():
        wall, used = median(taken), median(processor[name])
        print(f"| {name} | {wall:.2f} | {size / wall / 1e9:.2f} | {wall / cat:.2f} | {used:.2f} |")


def processor_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def forget_digests(root: Path) -> None:
    """Make the rows those of an earlier version, which kept no digests of frames."""
    import sqlite3  # noqa: PLC0415  # only here

    connection = sqlite3.connect(root / "index.sqlite")
    with connection:
        connection.execute("UPDATE chunks SET frame_digest = NULL")
    connection.close()


def drop(files: list[Path]) -> None:
    """Drop files from the page cache."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(command: list[str | Path], *, stdout: int = subprocess.DEVNULL) -> None:
    """Run a command, which must succeed."""
    subprocess.run(command, check=True, stdout=stdout)


if __name__ == "__main__":
    main()
