"""The type of the paths that a user gives on the command line."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import click

from filestore.system.files import EMPTY_PATH


class NonemptyPath(click.Path):
    """A path. An empty text is refused: it would mean the current folder, and comes from a variable that is not set."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as `click.Path` does. An empty text is wrong usage."""
        if value == "":
            self.fail(EMPTY_PATH, param, ctx)
        return super().convert(value, param, ctx)
