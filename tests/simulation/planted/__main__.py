"""Run one simulation, with a planted fault or without one.

    PYTHONHASHSEED=0 python -m tests.simulation.planted FAULT --seed 2 --steps 15000 FOLDER

FAULT is the name of a module of this package, or `nothing`. FOLDER must be new or empty. The exit status is 1 if a rule was
broken; the output then says which one. Without PYTHONHASHSEED=0, a run with the same seed is another one.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from tests.simulation.kernel.world import SimulationFailure
from tests.simulation.planted import FAULTS
from tests.simulation.world.simulate import simulate


def main() -> int:
    """Run it, and print what came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted")
    parser.add_argument("fault", choices=["nothing", *FAULTS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=15_000)
    asked = parser.parse_args()
    asked.folder.mkdir(exist_ok=True)
    fault = nullcontext() if asked.fault == "nothing" else FAULTS[asked.fault]()
    try:
        with fault:
            print(simulate(asked.seed, asked.folder, steps=asked.steps))  # noqa: T201  # a command prints
    except SimulationFailure as error:
        print(error)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
