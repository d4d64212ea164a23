"""The tables of an index in SQLite, and the statements that bring those of an older version to this one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from filestore.errors import StorageError, UnknownFormat
from filestore.repository.index import content_digests, history, quotas, tasks, usage, uses

SCHEMA_VERSION = 6
_OLDEST_VERSION = 2

_RECORD_INDEXES = (
    "CREATE UNIQUE INDEX records_by_position ON records (namespace, position)",
    "CREATE INDEX records_by_time ON records (namespace, updated_at)",
    "CREATE INDEX records_by_name ON records (namespace, name, position)",
    "CREATE INDEX records_by_digest ON records (namespace, digest, position)",
)
_MOVED = 1 << 20
"""What `mark_moved` adds to the version of the tables."""
_POSITION_CHECK = """CREATE TRIGGER records_have_position BEFORE INSERT ON records WHEN NEW.position <= 0 BEGIN
    SELECT RAISE(ABORT, 'a newer version of filestore has migrated this index; stop this process, and start that version');
END"""
"""Refuses the records of a process that has had the index open since before the migration to version 4.

It knows no positions. A collection would not see such a record, and would remove its content.
"""
_BASES = (
    # The frame of `digest` can be decoded only together with the chunk `base`.
    """CREATE TABLE bases (
        namespace TEXT NOT NULL,
        digest BLOB NOT NULL,
        base BLOB NOT NULL,
        PRIMARY KEY (namespace, digest, base)
    ) WITHOUT ROWID""",
    "CREATE INDEX bases_by_base ON bases (namespace, base)",
)
_ACCESS_TOKENS = """CREATE TABLE access_tokens (
    digest BLOB NOT NULL PRIMARY KEY,
    namespace TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    scope TEXT NOT NULL,
    prefix TEXT NOT NULL,
    expires_at INTEGER,
    used_at INTEGER
) WITHOUT ROWID"""
"""Times are in microseconds since 1970. `expires_at` is NULL for a token that does not expire."""
_SCHEMA = (
    # `going` is 1 for a condemned row. `frame_digest` is BLAKE3 of the frame, or NULL where nobody has computed it yet.
    """CREATE TABLE chunks (
        namespace TEXT NOT NULL,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        stored_size INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        going INTEGER NOT NULL,
        frame_digest BLOB,
        PRIMARY KEY (namespace, digest)
    ) WITHOUT ROWID""",
    # `position` is the order of the records of a namespace: the record that was stored last has the largest one.
    # `manifest_size` is 0 for a record of a version before 5.
    """CREATE TABLE records (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        position INTEGER NOT NULL DEFAULT 0,
        manifest_size INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (namespace, id),
        UNIQUE (namespace, name, kind, digest)
    ) WITHOUT ROWID""",
    *_RECORD_INDEXES,
    _POSITION_CHECK,
    # The last position. Later ones are larger, even if the clock is set back or that record is removed.
    "CREATE TABLE clocks (namespace TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID",
    # Of versions before 5, which know no scopes. A server of such a version may still run after the migration. So new
    # tokens are only in `access_tokens`, where it does not see them. A removed one is removed here too.
    """CREATE TABLE tokens (
        digest BLOB NOT NULL PRIMARY KEY,
        namespace TEXT NOT NULL,
        label TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) WITHOUT ROWID""",
    _ACCESS_TOKENS,
    # At most one row.
    "CREATE TABLE secrets (secret BLOB NOT NULL)",
    *uses.TABLE,
    *_BASES,
    *tasks.TABLES,
    *usage.TABLES,
    *quotas.TABLES,
    *history.TABLES,
    *content_digests.TABLES,
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_MIGRATIONS: dict[int, tuple[str | Callable[[sqlite3.Connection], None], ...]] = {
    2: (*uses.TABLE, "PRAGMA user_version = 3"),
    3: (
        "ALTER TABLE chunks ADD COLUMN frame_digest BLOB",
        "ALTER TABLE records ADD COLUMN position INTEGER NOT NULL DEFAULT 0",
        "DROP INDEX records_by_time",
        "DROP INDEX records_by_name",
        "DROP INDEX records_by_digest",
        "UPDATE records SET position = updated_at",
        *_RECORD_INDEXES,
        _POSITION_CHECK,
        *_BASES,
        *tasks.TABLES,
        "PRAGMA user_version = 4",
    ),
    4: (
        _ACCESS_TOKENS,
        "INSERT INTO access_tokens SELECT digest, namespace, label, created_at, 'admin', '', NULL, NULL FROM tokens",
        "ALTER TABLE records ADD COLUMN manifest_size INTEGER NOT NULL DEFAULT 0",
        *usage.MIGRATION,
        *quotas.TABLES,
        "PRAGMA user_version = 5",
    ),
    5: (*history.TABLES, history.commit_all_records, *content_digests.TABLES, "PRAGMA user_version = 6"),
}
"""The statements and functions that lead from each older version to the next one, in one transaction."""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables if they do not exist, or bring those of an older version to this one.

    If the file has another version or belongs to another program, raise UnknownFormat and change nothing.
    """
    _, _, path = connection.execute("PRAGMA database_list").fetchone()
    if not has_tables(connection, path):
        # Before anything is written: only then `free_pages` can make the file smaller.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageError(path, "its file system cannot share memory between processes, which SQLite's log needs")
    while (version := _version(connection, path)) != SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version == _version(connection, path):  # another process may have been faster
                for step in _MIGRATIONS[version] if version else _SCHEMA:
                    if isinstance(step, str):
                        connection.execute(step)
                    else:
                        step(connection)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def free_pages(connection: sqlite3.Connection, limit: int) -> bool:
    """Remove at most `limit` unused pages from the end of the file. Return whether none can be removed any more."""
    (before,) = connection.execute("PRAGMA freelist_count").fetchone()
    connection.execute(f"PRAGMA incremental_vacuum({limit:d})").fetchall()
    (after,) = connection.execute("PRAGMA freelist_count").fetchone()
    return bool(after in (0, before))


def has_tables(connection: sqlite3.Connection, path: str) -> bool:
    """Return whether the file has the tables of an index. Raises UnknownFormat if it has others."""
    return _version(connection, path) != 0


def check_not_newer(connection: sqlite3.Connection, path: str) -> None:
    """Raise UnknownFormat if a newer version of filestore has migrated the index. Call this in a write transaction."""
    version = _tables_version(connection)
    if version > SCHEMA_VERSION:
        raise UnknownFormat(path, str(version), str(SCHEMA_VERSION))


def has_version(connection: sqlite3.Connection, version: int) -> bool:
    """Return whether the tables have at least this version. An index of an older one that is only read is not migrated."""
    return _tables_version(connection) >= version


def mark_moved(connection: sqlite3.Connection) -> None:
    """Keep processes of earlier versions from writing to an index whose repository has moved. They do not know the note of it.

    They take the index for one of a newer version: each transaction fails. One that begins does not open it.
    """
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + _MOVED}")


def _tables_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version) % _MOVED


def _version(connection: sqlite3.Connection, path: str) -> int:
    """Return the version of the tables, or 0 if there are none. Raises UnknownFormat."""
    # In this order, because another process may make the tables, and with them the version, in between.
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    version = _tables_version(connection)
    if version == 0 and count == 0:
        return 0
    if not _OLDEST_VERSION <= version <= SCHEMA_VERSION:
        raise UnknownFormat(path, str(version), str(SCHEMA_VERSION))
    return version
