"""Translate the errors of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filestore.errors import Busy, StorageError, StorageFull
from filestore.system.files import free_space, storage_errors

_SHARED_MEMORY_SIZE = 32 << 10
"""Bytes that SQLite adds to the shared memory of its log in one step."""


@contextmanager
def sqlite_errors(path: str, *, full_hint: str = "", damaged: type[StorageError] = StorageError) -> Iterator[None]:
    """Raise each sqlite3.Error and OSError of the block as a FilestoreError about the SQLite file at `path`.

    The errors are Busy, StorageFull and StorageError. `full_hint` is the hint of StorageFull. If the file is not a SQLite
    database, or is malformed, the error has the class `damaged`.
    """
    try:
        with storage_errors(path):
            yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte: the primary code
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Busy(path, "another process is writing to it") from error
        # SQLite has no code of its own for a file of its log that a full disk refuses.
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
            raise StorageFull(path, str(error), hint=full_hint) from error
        is_damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        raise (damaged if is_damaged else StorageError)(path, str(error)) from error


def _is_full(path: str) -> bool:
    try:
        return free_space(Path(path).parent) < _SHARED_MEMORY_SIZE
    except OSError:
        return False
