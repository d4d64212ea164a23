"""Copy a SQLite database while other processes write to it."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from filestore.errors import StorageError
from filestore.system.files import sync_path

_PAGES = 256
"""Pages of one step, which is a MiB with SQLite's usual pages."""


def copy_database(source: sqlite3.Connection, target: Path, *, where: str, rate: int | None = None) -> None:
    """Copy a database to the new file `target`, check the copy, and sync it. Its folder is not synced. Blocks.

    The copy is one snapshot: a read transaction is open during all steps. Without it, SQLite would begin again after
    each write of another process, for ever if there are enough of them. Writers do not wait; only their log grows until
    the end. `rate` is the most bytes per second. `where` names the source in errors.

    `VACUUM INTO` would give the same snapshot in a smaller file. But it reads the tables instead of pages, which takes
    several times as long, and it cannot be slowed down.

    Raises StorageError if the copy is not a sound database; sqlite3.Error, OSError.

    Source: https://www.sqlite.org/c3ref/backup_finish.html.
    """
    # SQLite alone would make a file that everyone can read.
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    (page_size,) = source.execute("PRAGMA page_size").fetchone()
    started = time.monotonic()

    def slow_down(_: int, remaining: int, total: int) -> None:
        if rate:
            time.sleep(max(0.0, started + (total - remaining) * page_size / rate - time.monotonic()))

    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        # The file has no other readers, and is synced at its end.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.execute("BEGIN")
        try:
            # The transaction begins with its first read.
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(copy, pages=_PAGES, progress=slow_down)
        finally:
            source.execute("ROLLBACK")
    check_database(target, where=where)
    sync_path(target)


def check_database(path: Path, *, where: str) -> None:
    """Raise StorageError if the database at `path`, which nobody else uses, is not sound. Blocks.

    Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        raise StorageError(where, f"SQLite found damage in it ({found[0]})")
