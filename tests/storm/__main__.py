"""Run a storm: `python -m tests.storm --readers 1000 --dying 0.05`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from tests.storm.storm import Storm, simulate


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    for field in fields(Storm):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    storm = Storm(**vars(parser.parse_args()))
    for name, value in simulate(storm)._asdict().items():
        sys.stdout.write(f"{name:<18} {value:g}\n")


if __name__ == "__main__":
    main()
