"""The names in the folder of a repository."""

from __future__ import annotations

import re
from pathlib import Path

from filestore.system import turnstile

FORMAT_NAME = "format"
INDEX_NAME = "index.sqlite"
LAST_COMMIT_NAME = "last-commit"
RESTORING_NAME = "restoring"
"""The file that exists while a restore changes the folder. Without its end, the folder is not opened."""
RUNTIME_DATABASES = "runtime/*/runtime.sqlite"
"""The databases of runtimes, one for each namespace."""
RESERVE_NAME = "reserve"
"""Space for the removal of files from a full disk."""
TURN_NAMES = turnstile.FILE_NAMES
"""The lock files by which processes take turns to write to the index. They are empty."""
CONTENT_NAMES = ("chunks", "manifests")
TMP_NAME = "tmp"
LOG_NAMES = tuple(f"{INDEX_NAME}-{part}" for part in ("wal", "shm", "journal"))
"""What SQLite has beside an index, and never without one."""
INDEX_STAGING = re.compile(rf"{re.escape(INDEX_NAME)}\.[0-9a-f]{{16}}(?:-wal|-shm|-journal)?")
"""An index that is being made."""


def has_content(root: Path) -> bool:
    """Return whether a frame or a manifest is in the repository. Blocks. Raises OSError."""
    return any(_holds_file(root / name, depth=3) for name in CONTENT_NAMES)


def _holds_file(folder: Path, *, depth: int) -> bool:
    """Return whether a folder holds something at this depth. Empty folders do not count."""
    try:
        inner = folder.iterdir()
        return any(not depth or _holds_file(path, depth=depth - 1) for path in inner)
    except (FileNotFoundError, NotADirectoryError):
        return False
