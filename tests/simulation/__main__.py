"""Run simulations: `python -m tests.simulation --seed 1 --steps 1000000`, or one seed after the other for an hour."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

_MEMORY = Path("/dev/shm")


def main() -> int:
    """Run the seeds that the arguments ask for. Return 1 if one of them found a fault."""
    arguments = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set depends on hashes, and a seed must give the same steps each time.
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    from tests.simulation.kernel.world import SimulationFailure
    from tests.simulation.world.simulate import simulate

    folder = Path(tempfile.mkdtemp(prefix="filestore-simulation-", dir=arguments.folder))
    started = time.monotonic()
    try:
        for done in count():
            seed = arguments.seed + done
            is_late = arguments.seconds is not None and time.monotonic() - started >= arguments.seconds
            if is_late or (arguments.seconds is None and done == arguments.seeds):
                return 0
            place = folder / str(seed)
            try:
                outcome = simulate(seed, place, steps=arguments.steps)
            except SimulationFailure as failure:
                sys.stdout.write(f"seed {seed}: {failure} --steps {arguments.steps}\n")
                return 1
            counts = ", ".join(f"{number} {name}" for name, number in sorted(outcome.counts.items()))
            sys.stdout.write(f"seed {seed}: {outcome.steps} steps, trace {outcome.trace_digest}; {counts}\n")
            sys.stdout.flush()
            shutil.rmtree(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--seconds", type=float, help="run one seed after the other for this time")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of each seed")
    default = _MEMORY if _MEMORY.is_dir() else None
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="where the simulated disks are, best in memory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
