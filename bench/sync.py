"""Measure what durability costs: the same work with every sync, and with syncs that do nothing.

python bench/sync.py                                    # on the disk of the temporary folder, and on /dev/shm
python bench/sync.py --folder /srv --files 1000 --rounds 7

A small library takes the place of `fsync`, `fdatasync`, `syncfs` and `sync_file_range`, also for SQLite (LD_PRELOAD; it needs a
C compiler). In each round both ways do the same work on a new repository in a folder, in turn, each in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors, write_tree  # noqa: E402  # a script finds its neighbours only now
from bench.run import parse_size  # noqa: E402
from filestore.backends import connect  # noqa: E402
from filestore.transfer.fetch import fetch  # noqa: E402
from filestore.transfer.fetch_tree import fetch_tree  # noqa: E402
from filestore.transfer.push import push  # noqa: E402

_SHIM = "".join(
    f"int {name}({types}) {{ return 0; }}\n"
    for name, types in (
        ("fsync", "int a"),
        ("fdatasync", "int a"),
        ("syncfs", "int a"),
        ("sync_file_range", "int a, long b, long c, unsigned d"),
    )
)
_MEMORY = Path("/dev/shm")  # noqa: S108  # a file system in memory
WORK = {"file": "one large file", "files": "small files, each pushed alone", "tree": "the same small files in a directory"}
Costs = dict[str, tuple[float, float]]
"""For a push and a fetch: seconds, and seconds of processor time."""


def main() -> None:
    """Measure, and print a row for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512MB", help="of the large file (default %(default)s)")
    parser.add_argument("--files", type=int, default=200, help="number of small files (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are shown (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, action="append", help="where to work (default: the temporary folder, and /dev/shm)"
    )
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(asyncio.run(_work(options.work[0], Path(options.work[1])))))
        return
    print("| folder | work | step | seconds | without syncs | ratio | processor | without syncs |")
    print("|---|---|---|---|---|---|---|---|")
    for parent in options.folder or [Path(tempfile.gettempdir()), _MEMORY]:
        with tempfile.TemporaryDirectory(dir=parent, prefix="filestore-sync-") as name:
            folder = Path(name)
            write_safetensors(folder / "file", size=parse_size(options.size))
            write_tree(folder / "tree", file_count=options.files)
            for kind, what in WORK.items():
                _print_rows(f"| `{parent}` | {what} ", _rounds(folder, kind, options.rounds))


def _rounds(folder: Path, kind: str, rounds: int) -> dict[bool, list[Costs]]:
    """Return the costs of all rounds, with syncs and without."""
    found: dict[bool, list[Costs]] = {True: [], False: []}
    for number in range(rounds):
        # Each round begins with the other way.
        for synced in (True, False) if number % 2 == 0 else (False, True):
            os.sync()
            environ = dict(os.environ) if synced else os.environ | {"LD_PRELOAD": str(_shim(folder))}
            command = [sys.executable, __file__, "--work", kind, str(folder)]
            done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
            found[synced].append(json.loads(done.stdout))
    return found


def _print_rows(start: str, found: dict[bool, list[Costs]]) -> None:
    for step in ("push", "fetch"):
        wall, used = ({synced: median(costs[step][place] for costs in found[synced]) for synced in found} for place in (0, 1))
        ratio = median(
            with_syncs[step][0] / without[step][0] for with_syncs, without in zip(found[True], found[False], strict=True)
        )
        print(f"{start}| {step} | {wall[True]:.2f} | {wall[False]:.2f} | {ratio:.2f} | {used[True]:.2f} | {used[False]:.2f} |")


def _shim(folder: Path) -> Path:
    library = folder / "no-syncs.so"
    if not library.exists():
        (folder / "no-syncs.c").write_text(_SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "no-syncs.c"], check=True)
    return library


async def _work(kind: str, folder: Path) -> Costs:
    """Push and fetch, and remove both copies afterwards."""
    paths = sorted(path for path in (folder / "tree").rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory(dir=folder) as name:
        new = Path(name)
        async with connect(new / "root", create=True) as repository:

            async def pushed() -> None:
                for path in paths if kind == "files" else [folder / kind]:
                    await push(repository, path, name=path.name if kind != "files" else f"{path.parent.name}-{path.name}")

            async def fetched() -> None:
                if kind == "tree":
                    await fetch_tree(repository, "tree", target=new / "target")
                elif kind == "file":
                    await fetch(repository, "file", target=new / "target")
                else:
                    for path in paths:
                        wanted = f"{path.parent.name}-{path.name}"
                        await fetch(repository, wanted, target=new / wanted)

            return {"push": await _cost(pushed()), "fetch": await _cost(fetched())}


async def _cost(work: Awaitable[None]) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    await work
    return time.perf_counter() - started, time.process_time() - used


if __name__ == "__main__":
    main()
