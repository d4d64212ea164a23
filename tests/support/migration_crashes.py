"""Kill the migration of an index at its n-th system call or SQL statement, for every n.

`python -m tests.support.migration_crashes FOLDER VERSION` works on FOLDER/<n>, each of which has that version of the
tables, and prints the number of runs. The last run is not killed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from filestore.core.digest import chunk_digest, token_digest
from filestore.repository.index import quotas, usage
from filestore.repository.index.sqlite import open_index
from tests.support.crashes import Fuse, kill_at_every_call, light

NAMESPACE = "a"
NAME = "kept"
TOKEN = "a token of an earlier version"
OLDER_VERSIONS = (2, 3, 4, 5)

_VERSION_2 = """
    CREATE TABLE chunks (namespace TEXT NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL, stored_size INTEGER NOT NULL,
        last_seen INTEGER NOT NULL, going INTEGER NOT NULL, PRIMARY KEY (namespace, digest)) WITHOUT ROWID;
    CREATE TABLE records (namespace TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
        digest BLOB NOT NULL, size INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id), UNIQUE (namespace, name, kind, digest)) WITHOUT ROWID;
    CREATE UNIQUE INDEX records_by_time ON records (namespace, updated_at);
    CREATE INDEX records_by_name ON records (namespace, name, updated_at);
    CREATE INDEX records_by_digest ON records (namespace, digest, updated_at);
    CREATE TABLE clocks (namespace TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE tokens (digest BLOB NOT NULL PRIMARY KEY, namespace TEXT NOT NULL, label TEXT NOT NULL,
        created_at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE secrets (secret BLOB NOT NULL);
    PRAGMA user_version = 2;
"""
_VERSION_3 = """
    CREATE TABLE uses (namespace TEXT NOT NULL, file_id TEXT NOT NULL, pipeline_id TEXT NOT NULL, pipeline_name TEXT NOT NULL,
        is_graph INTEGER NOT NULL, PRIMARY KEY (namespace, file_id, pipeline_id)) WITHOUT ROWID;
    CREATE INDEX uses_by_pipeline ON uses (namespace, pipeline_id);
    PRAGMA user_version = 3;
"""
_VERSION_4 = """
    ALTER TABLE chunks ADD COLUMN frame_digest BLOB;
    ALTER TABLE records ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
    UPDATE records SET position = updated_at;
    DROP INDEX records_by_time;
    DROP INDEX records_by_name;
    DROP INDEX records_by_digest;
    CREATE UNIQUE INDEX records_by_position ON records (namespace, position);
    CREATE INDEX records_by_time ON records (namespace, updated_at);
    CREATE INDEX records_by_name ON records (namespace, name, position);
    CREATE INDEX records_by_digest ON records (namespace, digest, position);
    CREATE TABLE bases (namespace TEXT NOT NULL, digest BLOB NOT NULL, base BLOB NOT NULL,
        PRIMARY KEY (namespace, digest, base)) WITHOUT ROWID;
    CREATE INDEX bases_by_base ON bases (namespace, base);
    CREATE TRIGGER records_have_position BEFORE INSERT ON records WHEN NEW.position <= 0 BEGIN
        SELECT RAISE(ABORT, 'a newer version of filestore has migrated this index; stop this process, and start that version');
    END;
    CREATE TABLE policies (namespace TEXT NOT NULL PRIMARY KEY, keep_last INTEGER, older_than_seconds INTEGER) WITHOUT ROWID;
    CREATE TABLE tasks (namespace TEXT NOT NULL, task TEXT NOT NULL, state TEXT NOT NULL,
        PRIMARY KEY (namespace, task)) WITHOUT ROWID;
    CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    INSERT INTO meta (key, value) VALUES ('index_id', lower(hex(randomblob(16)))), ('commits', 0);
    PRAGMA user_version = 4;
"""
_VERSION_5 = """
    CREATE TABLE access_tokens (digest BLOB NOT NULL PRIMARY KEY, namespace TEXT NOT NULL, label TEXT NOT NULL,
        created_at INTEGER NOT NULL, scope TEXT NOT NULL, prefix TEXT NOT NULL, expires_at INTEGER, used_at INTEGER)
        WITHOUT ROWID;
    INSERT INTO access_tokens SELECT digest, namespace, label, created_at, 'admin', '', NULL, NULL FROM tokens;
    ALTER TABLE records ADD COLUMN manifest_size INTEGER NOT NULL DEFAULT 0;
    PRAGMA user_version = 5;
"""


def make_older_index(path: Path, version: int) -> None:
    """Make an index as an older version of its tables has it, with a row and two versions of one name."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_VERSION_2 if version == 2 else _VERSION_2 + _VERSION_3)
        for number, moment in enumerate((1_000_000, 2_000_000)):
            values = (NAMESPACE, f"file_{number:032x}", NAME, "file", chunk_digest(b"%d" % number), 1, moment, moment)
            connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        connection.execute("INSERT INTO clocks VALUES (?, ?)", (NAMESPACE, 3_000_000))
        connection.execute("INSERT INTO chunks VALUES (?, ?, 1, 9, 1000000, 0)", (NAMESPACE, chunk_digest(b"chunk")))
        connection.execute("INSERT INTO tokens VALUES (?, ?, 'laptop', 4000000)", (token_digest(TOKEN), NAMESPACE))
        if version >= 4:
            connection.executescript(_VERSION_4)
        if version == 5:
            connection.executescript(_VERSION_5)
            for statement in (*usage.MIGRATION, *quotas.TABLES):  # as they were then
                connection.execute(statement)


async def _migrate(path: Path) -> None:
    await (await open_index(path)).close()


def _main(folder: Path, version: int) -> None:
    def attempt(place: int, fuse: Fuse) -> None:
        path = folder / str(place)
        make_older_index(path, version)
        light(fuse)
        asyncio.run(_migrate(path))

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
