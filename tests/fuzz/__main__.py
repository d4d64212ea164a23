"""Fuzz the parsers of bytes from outside.

    python -m tests.fuzz TARGET|all --seconds 600           until a rule is broken, or for so long
    python -m tests.fuzz planted TARGET|all --seconds 60    the same with a fault that was put into the parser
    python -m tests.fuzz list

The exit status is 1 if a rule was broken, and with `planted` if none was. See `docs/fuzzing.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.all_targets import TARGETS
from tests.fuzz.fuzzer import Outcome, fuzz


def main() -> int:
    """Fuzz what is asked for, and print what came out."""
    asked = _arguments()
    if asked.what == ["list"]:
        print("\n".join(f"{name:16} {target.parses[0]}" for name, target in TARGETS.items()))  # noqa: T201  # a command prints
        return 0
    is_planted, name = asked.what[0] == "planted", asked.what[-1]
    names = list(TARGETS) if name == "all" else [name]
    with ThreadPoolExecutor(asked.jobs) as pool:
        outcomes = list(pool.map(lambda each: _fuzzed(each, asked, is_planted=is_planted), names))
    return 1 if any(outcome.is_found != is_planted for outcome in outcomes) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="+", metavar="TARGET", help="a target, `all`, `planted` and one of these, or `list`")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--runs", type=int, help="stop after so many inputs; with --seed, the same inputs each time")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many targets are fuzzed at the same time")
    parser.add_argument(
        "--corpus",
        type=Path,
        default=Path(tempfile.gettempdir()) / "filestore-fuzz",
        help="where the fuzzer keeps what it learns; outside of the repository",
    )
    asked = parser.parse_args()
    known = {*TARGETS, "all"}
    if not (asked.what == ["list"] or (asked.what[-1] in known and asked.what[:-1] in ([], ["planted"]))):
        parser.error(f"give one of {', '.join(sorted(known))}, or `planted` and one of these")
    return asked


def _fuzzed(name: str, asked: argparse.Namespace, *, is_planted: bool) -> Outcome:
    # What was learned about other code would be no help, and a fault could be found at once by an old input.
    with tempfile.TemporaryDirectory() as empty:
        corpus = Path(empty) if is_planted else asked.corpus
        outcome = fuzz(name, corpus, seed=asked.seed, runs=asked.runs, seconds=asked.seconds, is_planted=is_planted)
    if outcome.is_found and not is_planted:
        print(outcome.output[-6000:])  # noqa: T201
    print(outcome, *(outcome.inputs if not is_planted else []), flush=True)  # noqa: T201
    return outcome


if __name__ == "__main__":
    sys.exit(main())
