"""Known faults in the order of system calls, which a replay must find. They are planted in the recorded process."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from filestore.core.digest import Digest
from filestore.repository import ingest
from filestore.repository.index import connections, sqlite
from filestore.repository.maintenance import backup
from filestore.repository.stores import disk_placement, staging_file
from filestore.transfer import target


class Fault(NamedTuple):
    """A fault, the scenario in which it shows, and a pattern of what a replay says about it."""

    plant: Callable[[], None]
    scenario: str
    violation: str


def _replace(where: object, name: str, function: Callable[..., Any]) -> None:
    """Replace a function for the rest of this process."""
    patch.object(where, name, function).start()


def _do_nothing(*_: object) -> None:
    pass


def _leave_frames_unsynced() -> None:
    """Rename a staging file without a sync of its bytes."""
    _replace(staging_file.DiskStaging, "sync", staging_file.DiskStaging.rest)


def _leave_folders_unsynced() -> None:
    """Rename without a sync of the folder."""
    _replace(disk_placement, "sync_descriptor", _do_nothing)
    _replace(disk_placement, "sync_path", _do_nothing)


def _write_rows_first() -> None:
    """Write rows before their frames have names."""

    def late(self: Any) -> None:
        self.prepare()
        self._placement.rename({row.digest for row in self.rows})
        self._placement.sync()
        self._placement.close()

    _replace(ingest.FramePublication, "rename", _do_nothing)
    _replace(ingest.FramePublication, "sync", _do_nothing)
    _replace(ingest.FramePublication, "close", late)


def _set_synchronous(value: str) -> None:
    connect = connections._connect

    def connect_unsynced(path: str, timeout_seconds: float) -> sqlite3.Connection:
        connection = connect(path, timeout_seconds)
        connection.execute(f"PRAGMA synchronous = {value}")
        return connection

    _replace(connections, "_connect", connect_unsynced)


def _leave_index_unsynced() -> None:
    """Let SQLite sync nothing."""
    _set_synchronous("OFF")


def _acknowledge_early() -> None:
    """Let a commit return before SQLite has synced its log."""
    _set_synchronous("NORMAL")


def _remove_frames_first() -> None:
    """Remove frames while their rows are live."""

    async def keep(_: Any, __: str, digests: Sequence[Digest], **___: Any) -> list[Digest]:
        return list(digests)

    _replace(sqlite.SqliteTransaction, "condemn", keep)
    _replace(sqlite.SqliteTransaction, "condemned", keep)


def _fetch_unsynced() -> None:
    """Publish what was fetched without a sync of its bytes."""
    _replace(target, "sync_tree", _do_nothing)
    _replace(os, "fsync", _do_nothing)


def _leave_backup_folder_unsynced() -> None:
    """Make the folder of backups without a sync of its name."""
    _replace(backup, "make_folder", partial(Path.mkdir, exist_ok=True))


FAULTS = {
    "frame-not-synced": Fault(_leave_frames_unsynced, "push", "FRAME_SHORT|FRAME_CHANGED"),
    "folder-not-synced": Fault(_leave_folders_unsynced, "push", "FRAME_MISSING"),
    "row-before-frame": Fault(_write_rows_first, "push", "FRAME_MISSING"),
    "index-not-synced": Fault(_leave_index_unsynced, "push", "cannot be opened|is lost"),
    "acknowledged-early": Fault(_acknowledge_early, "push", "cannot be opened|is lost"),
    "frame-removed-before-row": Fault(_remove_frames_first, "remove", "FRAME_MISSING"),
    "fetch-not-synced": Fault(_fetch_unsynced, "fetch", "is not whole"),
    "backup-folder-not-synced": Fault(_leave_backup_folder_unsynced, "backup", "cannot be restored"),
}
