"""Fault: a frame or a manifest is renamed into its place, and its folder is not synced.

After a power cut the name may be gone, although the row or the record that needs it is kept.

What prevents it: `DiskPlacement.sync` syncs the folders after the renames, before their rows are committed (I2).

What finds it: the check after each power cut: each file that was acknowledged is read back, and no damage is found.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.stores.disk_placement import DiskPlacement
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Leave the sync of the folder out."""
    return rewritten_function(DiskPlacement, "sync", old="call_each(sync_descriptor, ", new="list(")
