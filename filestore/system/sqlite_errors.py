"""Translate the errors of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from filestore.errors import Busy, StorageError, StorageFull
from filestore.system.files import storage_errors


@contextmanager
def sqlite_errors(path: str, *, damaged: type[StorageError] = StorageError) -> Iterator[None]:
    """Raise each sqlite3.Error and OSError of the block as a FilestoreError about the SQLite file at `path`.

    The errors are Busy, StorageFull and StorageError. If the file is not a SQLite database, or is malformed, the error
    has the class `damaged`.
    """
    try:
        with storage_errors(path):
            yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte: the primary code
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Busy(path, "another process is writing to it") from error
        kinds: dict[int, type[StorageError]] = {
            sqlite3.SQLITE_FULL: StorageFull,
            sqlite3.SQLITE_CORRUPT: damaged,
            sqlite3.SQLITE_NOTADB: damaged,
        }
        raise kinds.get(code, StorageError)(path, str(error)) from error
