"""Replay for long: `python -m tests.replay [--seed N] [--limit N | --all] [--keep FOLDER] [SCENARIO ...]`.

Without scenarios, all are replayed. `--limit` is how many torn writes and pairs are taken at each call, and `--all`
takes all of them. Each round records again, because threads take turns in another order each time. `--rounds` is the
number of rounds, and `--seconds` replays until that time is over. A state that breaks a promise is written to the
folder of `--keep`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.replay.recording import build_recorder, fast_folder, record
from tests.replay.replay import replay
from tests.replay.scenarios import SCENARIOS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.replay")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"one of: {', '.join(SCENARIOS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - SCENARIOS.keys():
        parser.error(f"there is nothing to replay with the name {min(unknown)!r}; choose from {', '.join(SCENARIOS)}")
    return arguments


def _main() -> int:
    arguments = _arguments()
    top = Path(tempfile.mkdtemp(dir=fast_folder()))
    deadline = time.monotonic() + arguments.seconds
    number = calls = states = checked = 0
    try:
        recorder = build_recorder(top)
        while number < arguments.rounds or time.monotonic() < deadline:
            for scenario in arguments.scenarios or SCENARIOS:
                folder = top / scenario
                folder.mkdir()
                seed = arguments.seed + number
                recording = record(scenario, folder, recorder=recorder)
                report = replay(recording, folder / "state", seed=seed, limit=None if arguments.all else arguments.limit)
                calls, states, checked = calls + report.call_count, states + report.state_count, checked + report.checked_count
                sys.stdout.write(
                    f"{scenario}, seed {seed}: {report.call_count} calls, {report.state_count} states,"
                    f" {report.checked_count} different ones\n"
                )
                sys.stdout.flush()
                if report.violation is not None:
                    sys.stdout.write(f"{report.violation}\n")
                    if arguments.keep is not None and report.image is not None:
                        arguments.keep.mkdir()
                        report.image.write(arguments.keep)
                    return 1
                shutil.rmtree(folder)
            number += 1
    finally:
        shutil.rmtree(top)
    sys.stdout.write(f"nothing was lost: {number} rounds, {calls} calls, {states} states, {checked} checked\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
