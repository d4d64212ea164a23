"""Translate the errors of SQLite."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filestore.errors import Busy, StorageError, StorageFull
from filestore.system.files import free_space, storage_errors, write_all

_PROBE_SIZE = 64 << 10
"""More bytes than SQLite adds in one step to the shared memory of its log."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAYBE_FULL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""SQLite has no code of its own for a file of its log that cannot be made or grow, or for a quota of the user."""


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
        if code == sqlite3.SQLITE_FULL or (code in _MAYBE_FULL and _is_full(path)):
            raise StorageFull(path, str(error), hint=full_hint) from error
        is_damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        raise (damaged if is_damaged else StorageError)(path, str(error)) from error


def _is_full(path: str) -> bool:
    """Return whether the disk of a SQLite file refuses a new file of a few blocks, for whatever limit.

    The free space alone does not say it: names may be used up, or the share of this user.
    """
    folder = Path(path).parent
    try:
        if free_space(folder) < _PROBE_SIZE:
            return True
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            write_all(probe.fileno(), bytes(_PROBE_SIZE))
            os.fsync(probe.fileno())  # some file systems find out only now
    except OSError as error:
        return error.errno in _FULL
    return False
