"""What was pushed from where: lets a second push of an unchanged file read none of it.

A cache and nothing more: a journal that is damaged, locked or of another version is as good as an empty one.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Self

from filestore.errors import FilestoreError
from filestore.manifest import Manifest
from filestore.repository import Identity
from filestore.source import FileState

ENTRY_LIMIT = 10_000
SETTLED_NANOSECONDS = 2_000_000_000
"""A file that changed within this time before it was recorded may have changed again within one tick of its clock."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE pushed (
    repository TEXT, namespace TEXT, path BLOB,
    size INTEGER, mtime INTEGER, ctime INTEGER, inode TEXT, device TEXT,
    cutting INTEGER, recorded_at INTEGER, manifest BLOB,
    PRIMARY KEY (repository, namespace, path)
)
"""


class Journal:
    """Blocks: call its methods in a thread, one at a time."""

    def __init__(self, path: Path) -> None:
        """`path` is made with its folders where it is not there."""
        self._path = path
        self._connection = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def find(self, identity: Identity, path: Path, state: FileState) -> Manifest | None:
        """The manifest of the last push of `path` to that repository, if the file is in the very same state."""
        if self._connection is None:
            return None
        try:
            with closing(
                self._connection.execute(
                    "SELECT size, mtime, ctime, inode, device, recorded_at, manifest FROM pushed"
                    " WHERE repository = ? AND namespace = ? AND path = ? AND cutting = ?",
                    (identity.id, identity.namespace, _key(path), identity.cutting),
                )
            ) as rows:
                row = rows.fetchone()
            if row is None:
                return None
            size, mtime, ctime, inode, device, recorded_at, encoded = row
            settled = max(mtime, ctime) + SETTLED_NANOSECONDS < recorded_at
            if not settled or FileState(size, mtime, ctime, int(inode), int(device)) != state:
                return None
            manifest = Manifest.parse(encoded)
        except (sqlite3.Error, FilestoreError, TypeError, ValueError):
            return None
        return manifest if manifest.size == state.size else None

    def record(self, identity: Identity, path: Path, state: FileState, manifest: Manifest) -> None:
        """Remember a push that was committed; forgets the oldest entries past `ENTRY_LIMIT`."""
        if self._connection is None:
            return
        # Inode and device as text: they are unsigned 64-bit numbers, SQLite's integers are signed.
        device = (str(state.inode), str(state.device))
        key = (identity.id, identity.namespace, _key(path))
        row = (*key, state.size, state.mtime, state.ctime, *device, identity.cutting, time.time_ns(), manifest.encoded)
        try:
            with self._connection:
                self._connection.execute("INSERT OR REPLACE INTO pushed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                self._connection.execute(
                    "DELETE FROM pushed WHERE recorded_at <="
                    " (SELECT recorded_at FROM pushed ORDER BY recorded_at DESC LIMIT 1 OFFSET ?)",
                    (ENTRY_LIMIT,),
                )
        except (sqlite3.Error, OverflowError):
            return

    def _open(self) -> sqlite3.Connection | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Used from one thread at a time, but not always the same one.
            connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
        except (OSError, sqlite3.Error):
            return None
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                with connection:
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                connection.close()
                return None
        except sqlite3.Error:
            connection.close()
            return None
        return connection


def _key(path: Path) -> bytes:
    return os.fsencode(os.path.realpath(path))
