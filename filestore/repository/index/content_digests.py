"""SHA-256 and git's blob id of stored content in an index in SQLite, as secondary digests.

They are facts about content, which never changes. So a row is never corrected: it is only removed with the records that lead to
its content.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from filestore.core.content_digests import BLOB_ID_SIZE, PACKED_SIZE, SHA256_SIZE
from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.repository.index.protocol import ContentDigests
from filestore.repository.index.rows import content_of
from filestore.repository.index.statements import read

TABLES = (
    # In the content of the record `source`, the content with this file digest begins at `start`.
    """CREATE TABLE content_digests (
        namespace TEXT NOT NULL,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        sha256 BLOB NOT NULL,
        blob_id BLOB NOT NULL,
        source BLOB NOT NULL,
        start INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)
    ) WITHOUT ROWID""",
    "CREATE INDEX content_digests_by_sha256 ON content_digests (namespace, sha256)",
    "CREATE INDEX content_digests_by_source ON content_digests (namespace, source)",
    # With row ids, because `content` is large.
    """CREATE TABLE tree_digests (
        namespace TEXT NOT NULL,
        digest BLOB NOT NULL,
        content BLOB NOT NULL,
        PRIMARY KEY (namespace, digest)
    )""",
    # A trigger also sees the records that a process of an earlier version removes.
    """CREATE TRIGGER digests_of_no_record AFTER DELETE ON records
    WHEN NOT EXISTS (SELECT 1 FROM records WHERE namespace = OLD.namespace AND digest = OLD.digest) BEGIN
        DELETE FROM content_digests WHERE namespace = OLD.namespace AND source = OLD.digest;
        DELETE FROM tree_digests WHERE namespace = OLD.namespace AND digest = OLD.digest;
    END""",
)
"""Rows go with the last record that leads to their content."""

_CONTENTS = (
    "SELECT digest, size, sha256, blob_id, source, start FROM content_digests"
    " WHERE namespace = ? AND {} IN ({{}}) ORDER BY digest"
)
_INSERT_CONTENT = (
    "INSERT INTO content_digests (namespace, digest, size, sha256, blob_id, source, start) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7"
    " WHERE EXISTS (SELECT 1 FROM records WHERE namespace = ?1 AND digest = ?6)"
    " ON CONFLICT (namespace, digest) DO UPDATE SET source = excluded.source, start = excluded.start"
    # The newest content that has it is likely to be removed last.
    " WHERE (SELECT max(position) FROM records WHERE namespace = ?1 AND digest = excluded.source)"
    " > (SELECT max(position) FROM records WHERE namespace = ?1 AND digest = content_digests.source)"
)
_INSERT_TREE = (
    "INSERT INTO tree_digests (namespace, digest, content) SELECT ?1, ?2, ?3"
    " WHERE EXISTS (SELECT 1 FROM records WHERE namespace = ?1 AND digest = ?2)"
    " ON CONFLICT (namespace, digest) DO NOTHING"
)
_TREE = "SELECT content FROM tree_digests WHERE namespace = ? AND digest = ?"
_TREES = "SELECT digest FROM tree_digests WHERE namespace = ? AND digest IN ({})"
_INVALID = "SELECT namespace, quote(digest) FROM {} WHERE NOT ({}) LIMIT ?"
_VALID_CONTENT = (
    f"typeof(digest) = 'blob' AND length(digest) = {DIGEST_SIZE}"
    f" AND typeof(source) = 'blob' AND length(source) = {DIGEST_SIZE}"
    f" AND typeof(sha256) = 'blob' AND length(sha256) = {SHA256_SIZE}"
    f" AND typeof(blob_id) = 'blob' AND length(blob_id) = {BLOB_ID_SIZE}"
    " AND typeof(size) = 'integer' AND size >= 0 AND typeof(start) = 'integer' AND start >= 0"
)
_VALID_TREE = (
    f"typeof(digest) = 'blob' AND length(digest) = {DIGEST_SIZE}"
    f" AND typeof(content) = 'blob' AND length(content) % {PACKED_SIZE} = 0"
)


def has_tables(connection: sqlite3.Connection) -> bool:
    """Return whether the tables exist. They do not if an earlier version made the index and nobody has written since."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'content_digests'").fetchone() is not None


def select_contents(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, ContentDigests]:
    """Return the secondary digests of contents."""
    if not has_tables(connection):
        return {}
    rows = (content_of(row) for row in read(connection, _CONTENTS.format("digest"), (namespace,), digests))
    return {found.digest: found for found in rows}


def select_contents_by_sha256(
    connection: sqlite3.Connection, namespace: str, sha256s: Sequence[bytes]
) -> dict[bytes, ContentDigests]:
    """Return one content for each SHA-256 that is known, the one with the largest digest."""
    if not has_tables(connection):
        return {}
    rows = (content_of(row) for row in read(connection, _CONTENTS.format("sha256"), (namespace,), sha256s))
    return {found.sha256: found for found in rows}


def select_tree(connection: sqlite3.Connection, namespace: str, digest: Digest) -> bytes | None:
    """Return the packed digests of a stored tree, or None."""
    if not has_tables(connection):
        return None
    row = connection.execute(_TREE, (namespace, digest)).fetchone()
    return None if row is None else bytes(row[0])


def select_trees(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
    """Return those of `digests` that are trees whose digests are known."""
    if not has_tables(connection):
        return set()
    return {Digest(digest) for (digest,) in read(connection, _TREES, (namespace,), digests)}


def insert_contents(connection: sqlite3.Connection, namespace: str, rows: Sequence[ContentDigests]) -> None:
    """Insert the secondary digests of contents whose source has a record, and skip the others."""
    connection.executemany(_INSERT_CONTENT, [(namespace, *row) for row in rows])


def insert_tree(connection: sqlite3.Connection, namespace: str, digest: Digest, packed: bytes) -> None:
    """Insert the packed digests of a stored tree, if it has a record and they are not there yet."""
    connection.execute(_INSERT_TREE, (namespace, digest, packed))


def select_invalid(connection: sqlite3.Connection, limit: int) -> Iterator[tuple[str, str]]:
    """Yield the namespaces of rows that are not valid, and what is wrong, at most `limit` of each table."""
    if not has_tables(connection):
        return
    for table, valid in (("content_digests", _VALID_CONTENT), ("tree_digests", _VALID_TREE)):
        for namespace, digest in connection.execute(_INVALID.format(table, valid), (limit,)):
            yield str(namespace), f"its secondary digests of {digest} in {table} have values that no content has"
