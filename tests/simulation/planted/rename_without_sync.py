"""Fault: a frame or a manifest is renamed into its place, and its folder is not synced.

After a power cut the name may be gone, although the row or the record that needs it is kept.

What prevents it: `DiskStore._place` syncs the folder after its renames, and returns only then (I2).

What finds it: the check after each power cut: each file that was acknowledged is read back, and no damage is found.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.stores.disk import DiskStore
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Leave the sync of the folder out."""
    return rewritten_function(DiskStore, "_place", old="sync_path(folder)\n                break", new="break")
