"""Refuse to open a SQLite file that has more than one name.

SQLite finds the log of a database by the name of its file. Two processes that open one file by two names have two logs.
Each of them does not see what the other one writes, and overwrites it. A second name cannot appear unnoticed after the
file was opened: whoever opens the file by it is refused.

Source: https://www.sqlite.org/howtocorrupt.html, section 2.5.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from filestore.errors import LinkedDatabase

_STAGING = r"\.[0-9a-f]{16}"
"""What a file that is being made has after its final name. Whoever makes it links it to that name, and then removes this one."""


def check_links(path: str | Path) -> None:
    """Raise LinkedDatabase if the file at `path` has names that filestore has not made. Blocks. Raises OSError.

    A name that a process has left that was killed while it made the file is removed. The file need not exist.
    """
    path = Path(path)
    while (count := _link_count(path)) > 1:
        own = _staging_names(path)
        if count - len(own) == 1:
            for name in own:
                # A user who may only read the folder leaves it. The process that makes the file may be faster.
                with suppress(OSError):
                    name.unlink()
            return
        # A process that has just made the file may have removed its name between both looks.
        if _link_count(path) == count:
            raise LinkedDatabase(str(path), count - len(own))


def _link_count(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except FileNotFoundError:
        return 0


def _staging_names(path: Path) -> list[Path]:
    """Return the other names of a file in its folder that filestore has made."""
    pattern = re.compile(re.escape(path.name) + _STAGING)
    found = []
    for name in os.listdir(path.parent):  # noqa: PTH208  # names only
        if pattern.fullmatch(name):
            with suppress(FileNotFoundError):
                if path.samefile(path.parent / name):
                    found.append(path.parent / name)
    return found
