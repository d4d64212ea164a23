"""Choose the name next to a target under which a fetch stages data, so that no other user has put something there."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from filestore.system.owners import is_ours, is_shared

STAGING_END = ".filestore-partial"


def find_staging(usual: Path) -> Path:
    """Return the path at which to stage what is usually staged at `usual`. Nothing may be there yet. Raises OSError.

    The usual name is known to everybody. Where others may write to its folder, or something that is not ours has the name,
    the name gets a random part. Then what an earlier fetch of ours has left is found by its owner.
    """
    folder = usual.parent
    if not is_shared(folder):
        try:
            if is_ours(usual.lstat()):
                return usual
        except FileNotFoundError:
            return usual
    stem = usual.name.removesuffix(STAGING_END)
    pattern = re.compile(rf"{re.escape(stem)}(-[0-9a-f]{{32}})?{re.escape(STAGING_END)}")
    for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names are enough
        with suppress(FileNotFoundError):
            if pattern.fullmatch(name) and is_ours((folder / name).lstat()):
                return folder / name
    return folder / f"{stem}-{uuid.uuid4().hex}{STAGING_END}"
