"""Kill servers, clients, collections and ordinary commands that work on one folder, and look for what was lost.

    python -m tests.kills --seconds 3600 FOLDER             # an hour, with another seed each time
    python -m tests.kills --workers 2 --seed 7 FOLDER       # at least once at each step
    python -m tests.kills --only cache,trees FOLDER         # processes that share a cache, fetches and pushes of directories
    python -m tests.kills --only cluster --random 30 FOLDER # kill servers that share Ceph and PostgreSQL, and these

FOLDER must not exist. The kinds of trials take turns until the time is over, and those of servers have one worker and two
in turn. Each trial prints a JSON object with what was done; the exit status is 1 if something was lost or a rule was
broken, and FOLDER then stays.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from tests.kills.caches import run_caches
from tests.kills.cluster import run_cluster
from tests.kills.harness import Trial, new_seed, report_line
from tests.kills.scenarios import Options, run_servers_and_commands
from tests.kills.trees import run_trees

_TRIAL_SECONDS = 600.0
"""The length of one trial of a long run, so that a failure does not need an hour to be seen again."""


_KINDS = ("servers", "cache", "trees", "cluster")


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if set(kinds) - set(_KINDS):
        raise argparse.ArgumentTypeError(f"give some of {', '.join(_KINDS)}")
    return kinds


def _run(kind: str, folder: Path, options: Options) -> Trial:
    if kind == "servers":
        return run_servers_and_commands(folder, options)
    run = {"cache": run_caches, "trees": run_trees, "cluster": run_cluster}[kind]
    return run(folder, seed=options.seed, random_count=options.random_count, seconds=options.seconds)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="how long; by default until each step was killed once")
    parser.add_argument("--seed", type=int, default=None, help="which plan; by default another one each time")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=None, help="only servers with so many workers")
    parser.add_argument("--random", type=int, default=2, help="how often each command is killed at a random moment in a plan")
    parser.add_argument("--half", type=int, choices=(0, 1), default=None, help="only one half of the steps")
    parser.add_argument(
        "--only", type=_kinds, default=_KINDS, metavar="KINDS", help="some of servers,cache,trees,cluster; by default all"
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    options.folder.mkdir()
    end = time.monotonic() + options.seconds
    seed = new_seed() if options.seed is None else options.seed
    turn = 0
    while turn < len(options.only) or time.monotonic() < end:
        kind = options.only[turn % len(options.only)]
        workers = options.workers or 1 + turn // len(options.only) % 2
        left = max(0.0, min(_TRIAL_SECONDS, options.seconds / len(options.only), end - time.monotonic()))
        folder = options.folder / str(turn)
        chosen = Options(seed=seed + turn, workers=workers, random_count=options.random, half=options.half, seconds=left)
        trial = _run(kind, folder, chosen)
        sys.stdout.write(report_line(trial) + "\n")
        sys.stdout.flush()
        if trial.failures:
            sys.exit(trial.story)
        shutil.rmtree(folder)
        turn += 1
    options.folder.rmdir()


if __name__ == "__main__":
    _main()
