"""Measure what it costs that a push writes back what it reads, so that later stores to mapped files are noticed.

python bench/writeback.py                              # a file of 1 GiB, and 20,000 small files
python bench/writeback.py --size 4GB --folder /var/tmp

Each case is read, cut and hashed with and without this, in turn, in one thread. "Fresh" content was written just before, so that
all of it is dirty. A push reads beside what it sends, so it waits for less of this.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import bf16, write_tree  # noqa: E402  # a script finds its neighbours only now
from bench.run import parse_size  # noqa: E402
from filestore.transfer.sources.file import WINDOW_SIZE, FileSource, scan_and_hash  # noqa: E402
from filestore.transfer.sources.tree import TreeSource  # noqa: E402
from filestore.transfer.sources.walk import walk  # noqa: E402

_PIECE = 64 << 20


def main() -> None:
    """Measure, and print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GiB", help="of the file (default %(default)s)")
    parser.add_argument("--files", type=int, default=20_000, help="of the directory (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-writeback-") as name:
        _measure(Path(name), options)


def _measure(folder: Path, options: argparse.Namespace) -> None:
    size = parse_size(options.size)
    found: dict[tuple[str, bool, bool], list[float]] = {}
    for _ in range(options.rounds):
        for is_fresh, is_remembered, name in product((False, True), (False, True), ("model.bin", "tree")):
            _rewrite(folder / name, size, options.files)
            if not is_fresh:
                os.sync()
            seconds = _read(folder / name, is_remembered=is_remembered)
            found.setdefault((name, is_fresh, is_remembered), []).append(seconds)
    print("| content | state | read and hashed | also written back |")
    print("|---|---|---|---|")
    for (what, is_fresh, is_remembered), without in found.items():
        if not is_remembered:
            state = "fresh" if is_fresh else "written back before"
            print(f"| {what} | {state} | {median(without):.2f} s | {median(found[what, is_fresh, True]):.2f} s |")


def _rewrite(path: Path, size: int, file_count: int) -> None:
    """Write the same content again in place, so that it is dirty."""
    if path.suffix:
        with path.open("r+b" if path.exists() else "wb") as file:
            for start in range(0, size, _PIECE):
                file.write(bf16(start // _PIECE, min(_PIECE, size - start)))
    elif not path.exists():
        write_tree(path, file_count=file_count)
    else:
        for each in sorted(path.rglob("*.bin")):
            with each.open("r+b") as file:
                content = file.read()
                file.seek(0)
                file.write(content)


def _read(path: Path, *, is_remembered: bool) -> float:
    """Read, cut and hash `path` as a push does. Return the seconds."""
    started = time.perf_counter()
    buffer = memoryview(bytearray(WINDOW_SIZE))
    opened = (
        TreeSource(walk(path), is_remembered=is_remembered) if path.is_dir() else FileSource(path, is_remembered=is_remembered)
    )
    with opened as source:
        while not source.is_finished:
            scan_and_hash(source, buffer)
        source.check_unchanged()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
