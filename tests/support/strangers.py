"""Another user of the machine, as whom tests put things in shared folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

STRANGER = 65534
"""The user id of `nobody` on every system."""
needs_root = pytest.mark.skipif(os.geteuid() != 0 and os.environ.get("CI") != "true", reason="only root can give files away")
"""Marks a test that gives files to another user. CI runs as root, and skips none."""


def give_away(path: Path) -> None:
    """Make a path another user's. A user who is not root gives all others the right to write to it, which is refused too."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    elif not path.is_symlink():
        path.chmod(0o777)
