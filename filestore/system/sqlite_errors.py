"""Translate the errors of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from filestore.errors import Busy, StorageError, StorageFull
from filestore.system.files import storage_errors


@contextmanager
def sqlite_errors(path: str) -> Iterator[None]:
    """Raise each sqlite3.Error and OSError of the block as a FilestoreError about the SQLite file at `path`.

    The errors are Busy, StorageFull and StorageError.
    """
    try:
        with storage_errors(path):
            yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte: the primary code
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Busy(path, "another process is writing to it") from error
        kind = StorageFull if code == sqlite3.SQLITE_FULL else StorageError
        raise kind(path, str(error)) from error
