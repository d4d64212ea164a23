"""What a runtime remembers, in one SQLite file: `runtime.sqlite` in the runtime's folder.

The tables have a version, SQLite's `user_version`: the number of `MIGRATIONS` that were applied. Each migration is one
transaction. A new table or column is a new migration at the end; a migration that was released never changes.

All functions block: call them in a disk thread. One process uses the file at a time, which the lock of the runtime's
folder ensures. Any number of its threads may use one `Database`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filestore.errors import UnknownFormat
from filestore.system.files import storage_errors, write_error
from filestore.system.sqlite_errors import sqlite_errors
from filestore.system.sqlite_links import check_links

FILE_NAME = "runtime.sqlite"
BUSY_SECONDS = 60.0
"""How long a statement waits for another program that uses the file, such as a backup."""

Migration = Sequence[str]
"""The statements that lead from one version of the tables to the next."""

MIGRATIONS: tuple[Migration, ...] = (
    (
        # The columns of lists and objects hold JSON.
        """CREATE TABLE pipelines (
            id TEXT NOT NULL PRIMARY KEY,
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            environment_id TEXT NOT NULL,
            graph_id TEXT NOT NULL,
            path TEXT NOT NULL,
            input_variables TEXT NOT NULL,
            output_variables TEXT NOT NULL,
            requirements TEXT NOT NULL,
            UNIQUE (name, version)
        )""",
        # The number of a version is never used again, also if that version was deleted.
        "CREATE TABLE names (name TEXT NOT NULL PRIMARY KEY, last_version INTEGER NOT NULL) WITHOUT ROWID",
        """CREATE TABLE pointers (
            pointer TEXT NOT NULL PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            pipeline_id TEXT NOT NULL REFERENCES pipelines (id),
            locked INTEGER NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX pointers_by_pipeline ON pointers (pipeline_id)",
    ),
    (
        # `ended_at` is null until the run has ended. It is a time of `KeptClock`.
        """CREATE TABLE runs (
            number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            pipeline_id TEXT NOT NULL,
            environment_id TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            state INTEGER NOT NULL,
            url_mark TEXT NOT NULL,
            outputs BLOB,
            failure TEXT,
            start TEXT,
            lines TEXT NOT NULL,
            size INTEGER NOT NULL,
            ended_at REAL
        )""",
        "CREATE INDEX runs_by_end ON runs (ended_at)",
        "CREATE INDEX runs_by_pipeline ON runs (pipeline_id, number)",
        # The files that runs have returned.
        """CREATE TABLE run_files (
            file_id TEXT NOT NULL PRIMARY KEY,
            digest TEXT NOT NULL,
            pushed_at INTEGER NOT NULL,
            used_at REAL NOT NULL,
            is_kept INTEGER NOT NULL,
            expiry INTEGER NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX run_files_by_digest ON run_files (digest)",
        "CREATE INDEX run_files_by_use ON run_files (expiry, used_at)",
        # At most one row.
        "CREATE TABLE clock (elapsed REAL NOT NULL, wall REAL NOT NULL)",
    ),
)


class Database:
    """An open SQLite file. Make it with `open_database`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = str(path)
        self._lock = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for statements that only read. Other threads wait until the block ends.

        Raises StorageError, Busy.
        """
        with self._lock, sqlite_errors(self._path):
            yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for one transaction. It is committed durably at the end of the block.

        If the block raises an error, nothing of it is written. Raises StorageError, StorageFull, Busy.
        """
        with self._lock, sqlite_errors(self._path), _transaction(self._connection):
            yield self._connection

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def open_database(folder: Path, *, migrations: Sequence[Migration] = MIGRATIONS) -> Database:
    """Open the SQLite file in `folder`, which must exist. Make the file, and bring its tables to the newest version.

    Raises UnknownFormat if a newer version of filestore has used the file, LinkedDatabase if the file has another name,
    StorageError, StorageFull, Busy.
    """
    path = folder / FILE_NAME
    with storage_errors(path, translate=write_error):
        # SQLite alone would make a file that everyone can read.
        check_links(path)
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    with sqlite_errors(str(path)):
        # The lock of `Database` lets one thread at a time use the connection.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS only: its fsync leaves the bytes in the drive's own memory
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    return Database(connection, path)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise UnknownFormat(str(path), str(version), str(len(migrations)))
    for place in range(version, len(migrations)):
        with _transaction(connection):
            for statement in migrations[place]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {place + 1}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
