"""`pipeline create file` as a console script of its own, beside the Pipeline SDK's script of the same name.

The SDK's distribution installs a script called `pipeline` too: whichever was installed last is the one that runs. Here
`pipeline create file` is ours, and all else is handed to the SDK, if that is installed.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution

from filestore_cli.start import run, say

SDK = "pipeline-ai"
_OURS = ["create", "file"]


def main() -> None:
    """The console script `pipeline`."""
    if sys.argv[1:3] == _OURS:
        run("pipeline")
        return
    entry_point = sdk_entry_point()
    if entry_point is None:
        say(f"Error: this `pipeline` knows `pipeline create file PATH` only; `pip install {SDK}` brings the SDK's commands")
        sys.exit(1)
    sys.exit(entry_point.load()())


def sdk_entry_point() -> EntryPoint | None:
    """The console script `pipeline` as the SDK's own distribution declares it; None where that is not installed."""
    try:
        declared = distribution(SDK).entry_points.select(group="console_scripts", name="pipeline")
    except PackageNotFoundError:
        return None
    return next(iter(declared), None)
