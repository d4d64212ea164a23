"""The console script `pipeline`.

It runs `pipeline create file` itself, and passes any other command to the Pipeline SDK.

The SDK installs a console script of the same name. The script that was installed last is the one that runs.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution

from filestore_cli.start import run, say

SDK = "pipeline-ai"
_OURS = ["create", "file"]


def main() -> None:
    """Run the console script `pipeline`."""
    if sys.argv[1:3] == _OURS:
        run("pipeline")
        return
    entry_point = sdk_entry_point()
    if entry_point is None:
        say(f"Error: this `pipeline` has only `pipeline create file PATH`; `pip install {SDK}` installs the SDK's commands")
        sys.exit(1)
    sys.exit(entry_point.load()())


def sdk_entry_point() -> EntryPoint | None:
    """Return the console script `pipeline` of the Pipeline SDK, or None if the SDK is not installed."""
    try:
        declared = distribution(SDK).entry_points.select(group="console_scripts", name="pipeline")
    except PackageNotFoundError:
        return None
    return next(iter(declared), None)
