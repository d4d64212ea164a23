"""Find and remove the files and folders that interrupted fetches left next to their targets, or in them.

All functions block.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filestore.errors import StorageError
from filestore.system.files import remove, remove_if_possible, storage_errors, stored_size_of
from filestore.system.locks import FileLock, is_claimed
from filestore.transfer.target import tree_label

UNLOCKED_SECONDS = 86400
"""Where file locks do not work, a leftover that was written to within this time counts as in use."""

_NAME = re.compile(
    r"\.(?:[0-9a-f]{32}-)?([0-9a-f]{16})(?:-[0-9a-f]{32})?\.filestore-(partial|discarded|replacing|moving|aside|halfway)\Z"
)
_WHOLE = re.compile(r"\.filestore-(partial|aside|halfway)\Z")
"""Names of folders that are renamed before they are removed, so that a folder that is removed only in part never looks
complete.
"""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Leftover(NamedTuple):
    """A file or a folder that a fetch left on the disk."""

    path: Path
    stored_size: int
    """Bytes that it takes on the disk."""
    written_at: float
    """The time of the last write to it, in seconds since 1970."""
    is_in_use: bool
    """A running fetch uses it."""
    is_needed: bool
    """It must not be removed: a replacement was interrupted between its two steps, and only the next fetch to that
    target can complete it or undo it.
    """


def leftovers(folder: Path) -> list[Leftover]:
    """List the leftovers in `folder`, in the order of their names. Raises StorageError.

    They come from fetches whose target was `folder` itself or a path directly in it.
    """
    with storage_errors(folder):
        names = sorted(os.listdir(folder))  # noqa: PTH208  # names are enough
    labels = {tree_label(name) for name in names}
    found = []
    for name in names:
        match = _NAME.match(name)
        if match is None:
            continue
        label, kind = match.groups()
        is_needed = kind in {"replacing", "moving"} or (kind in {"aside", "halfway"} and label not in labels)
        path = folder / name
        with suppress(FileNotFoundError):  # it was removed meanwhile
            size, written_at = stored_size_of(path)
            found.append(Leftover(path, size, written_at, _is_in_use(path, written_at), is_needed))
    return found


def remove_leftover(leftover: Leftover) -> bool:
    """Remove a leftover unless it is in use or needed. Return whether it was removed. Raises StorageError."""
    if leftover.is_needed:
        return False
    path = leftover.path
    with storage_errors(path):
        try:
            descriptor = os.open(path, _OPEN)
        except FileNotFoundError:
            return False
        with FileLock(descriptor, path, is_required=True) as lock:
            # Held until it is gone: a fetch that begins meanwhile waits for that, and makes its own.
            if _is_claimed(lock, leftover.written_at):
                return False
            _remove(path)
    return True


def _remove(path: Path) -> None:
    """Remove a file or a folder. A folder is renamed first, so that it disappears at once for other processes."""
    gone = path.with_name(_WHOLE.sub(".filestore-discarded", path.name))
    if gone != path and path.is_dir():
        remove_if_possible(gone)
        with suppress(OSError):
            path.rename(gone)
            path = gone
    remove(path)


def _is_in_use(path: Path, written_at: float) -> bool:
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        return False
    with FileLock(descriptor, path, is_required=True) as lock:
        return _is_claimed(lock, written_at)


def _is_claimed(lock: FileLock, written_at: float) -> bool:
    try:
        return is_claimed(lock)
    except StorageError:  # there are no locks
        return time.time() - written_at < UNLOCKED_SECONDS
