"""Paths as a person writes them."""

from __future__ import annotations

import os
from pathlib import Path

from filestore.errors import InvalidSetting


def home_path(text: str | Path) -> Path:
    """The path that `text` means, in which `~` and `~/` at the beginning stand for the home folder, as in a shell.

    Raises InvalidSetting where the home folder is not known, and for the `~name` of another user.
    """
    path = str(text)
    if not path.startswith("~"):
        return Path(text)
    if path != "~" and not path.startswith("~/"):
        reason = "only ~ and ~/ stand for a home folder; write that of another user in full, and ./~ for a name that begins so"
        raise InvalidSetting(path, reason)
    expanded = os.path.expanduser(path)  # noqa: PTH111  # that one has an error of its own
    if not os.path.isabs(expanded):  # noqa: PTH117  # a text
        raise InvalidSetting(path, "this user has no home folder that is known; set HOME, or write the path in full")
    return Path(expanded)
