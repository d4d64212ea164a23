"""Measure the cost as the work grows: processor time for a GB at both ends, and memory, for several sizes.

python bench/cost.py                                    # 0.25, 1 and 4 GB
python bench/cost.py --sizes 0.25GB,1GB,4GB,16GB --folder /var/tmp

The sizes are measured in turn, so that a slow minute does not affect only one of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import FILESTORE, Done, Server, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402

MIB = 1 << 20


class Cost(NamedTuple):
    """The cost of one command, with the server's part."""

    rate: float
    """GB/s."""
    client_cpu: float
    """Seconds for a GB."""
    server_cpu: float
    client_memory: int
    server_memory: int


def main() -> None:
    """Measure, and print a row for each size and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.25GB,1GB,4GB", help="of files (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="server processes (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where to work; needs 3 times the largest size (default: the temporary folder)"
    )
    options = parser.parse_args()
    unwind_when_told_to_end()
    sizes = options.sizes.split(",")
    found: dict[tuple[str, str], list[Cost]] = {(what, size): [] for what in ("push", "fetch") for size in sizes}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-cost-") as name:
        os.environ |= {"XDG_CACHE_HOME": f"{name}/xdg", "XDG_STATE_HOME": f"{name}/xdg"}
        for _ in range(options.rounds):
            for size in sizes:
                for what, cost in zip(("push", "fetch"), _costs(Path(name), size, options.workers), strict=True):
                    found[what, size].append(cost)
    show(found)


def _costs(folder: Path, size: str, workers: int) -> tuple[Cost, Cost]:
    source, target = folder / f"{size}.safetensors", folder / "fetched.safetensors"
    # The size is rounded to a whole number of tensors of 32 MiB.
    write_safetensors(source, size=parse_size(size))
    total = source.stat().st_size
    with serving(folder / "repository", workers=workers) as server:
        os.sync()
        before = server.cpu_seconds()
        pushed = run([*FILESTORE, "push", source, "--rehash", "--json"], environment=server.environment)
        middle = server.cpu_seconds()
        push_cost = _cost(pushed, server, middle - before, total)
        os.sync()
        fetched = run([*FILESTORE, "fetch", pushed.json["id"], "-o", target, "--json"], environment=server.environment)
        fetch_cost = _cost(fetched, server, server.cpu_seconds() - middle, total)
    run(["cmp", source, target])
    for path in (source, target):
        path.unlink()
    shutil.rmtree(folder / "repository")
    return push_cost, fetch_cost


def _cost(done: Done, server: Server, server_cpu: float, size: int) -> Cost:
    gigabytes = size / 1e9
    rate, client_cpu = gigabytes / done.seconds, done.cpu_seconds / gigabytes
    return Cost(rate, client_cpu, server_cpu / gigabytes, done.peak_memory, server.peak_memory())


def show(found: dict[tuple[str, str], list[Cost]]) -> None:
    """Print the medians, and how much the sizes differ."""
    print("| | size | GB/s | CPU s/GB client | server | both | peak MiB client | server |")
    print("|---|---|---|---|---|---|---|---|")
    sums: dict[str, list[float]] = {}
    for (what, size), costs in found.items():
        both = median(cost.client_cpu + cost.server_cpu for cost in costs)
        sums.setdefault(what, []).append(both)
        rate, client, server, *memories = (median(values) for values in zip(*costs, strict=True))
        memory = " | ".join(f"{peak / MIB:.0f}" for peak in memories)
        print(f"| {what} | {size} | {rate:.2f} | {client:.2f} | {server:.2f} | {both:.2f} | {memory} |")
    for what, costs_of_sizes in sums.items():
        print(f"{what}: the most expensive size costs {max(costs_of_sizes) / min(costs_of_sizes) - 1:.0%} more than the cheapest")


if __name__ == "__main__":
    main()
