"""The rows of chunks in an index in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from filestore.core.digest import Digest
from filestore.core.unlocked import unlocked
from filestore.repository.index import tasks
from filestore.repository.index.protocol import REFRESH_MICROSECONDS, Base, ChunkRow, ChunkState
from filestore.repository.index.schema import has_version
from filestore.repository.index.statements import read, write

_ROWS = (
    "SELECT digest, size, stored_size, {}, going, last_seen FROM chunks"
    " WHERE namespace = ? AND digest > ? ORDER BY digest LIMIT ?"
)
_LIVE = (
    "SELECT digest, size, stored_size, {}, going, last_seen FROM chunks WHERE namespace = ? AND going = 0 AND digest IN ({{}})"
)
_NEXT_NAMESPACE = "SELECT min(namespace) FROM {} WHERE namespace > ?"


def select_live(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> list[ChunkState]:
    """Return the live rows of `digests`."""
    frame_digest = "frame_digest" if has_version(connection, 4) else "NULL"
    return [_state(row) for row in read(connection, _LIVE.format(frame_digest), (namespace,), digests)]


def select_sizes(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
    """Return the decoded size of each of `digests` that has a live row."""
    statement = "SELECT digest, size FROM chunks WHERE namespace = ? AND going = 0 AND digest IN ({})"
    return {Digest(digest): size for digest, size in read(connection, statement, (namespace,), digests)}


def select_stored_size(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> int:
    """Return the stored bytes of the rows of `digests`, live and condemned ones."""
    statement = "SELECT total(stored_size) FROM chunks WHERE namespace = ? AND digest IN ({})"
    return sum(int(size) for (size,) in read(connection, statement, (namespace,), digests))


def insert_chunks(connection: sqlite3.Connection, namespace: str, rows: Sequence[ChunkRow], now: int) -> None:
    """Insert live rows that were seen at `now`. Existing rows are replaced."""
    unlocked(
        connection.executemany,
        "INSERT INTO chunks (namespace, digest, size, stored_size, frame_digest, last_seen, going) VALUES (?, ?, ?, ?, ?, ?, 0)"
        " ON CONFLICT (namespace, digest) DO UPDATE SET size = excluded.size, stored_size = excluded.stored_size,"
        " frame_digest = excluded.frame_digest, last_seen = excluded.last_seen, going = 0",
        [(namespace, *row[:4], now) for row in rows],
    )


def update_last_seen(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest], now: int) -> None:
    """Set the last-seen time of live rows to `now`, if it is old enough, or in the future."""
    statement = (
        "UPDATE chunks SET last_seen = ?"
        " WHERE namespace = ? AND going = 0 AND (last_seen < ? OR last_seen > ?) AND digest IN ({})"
    )
    write(connection, statement, (now, namespace, now - REFRESH_MICROSECONDS, now), digests)


def delete_chunks(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> None:
    """Delete rows, and the edges from them to their bases."""
    with tasks.counted_removals(connection, namespace, digests):
        write(connection, "DELETE FROM chunks WHERE namespace = ? AND digest IN ({})", (namespace,), digests)
    if has_version(connection, 4):
        write(connection, "DELETE FROM bases WHERE namespace = ? AND digest IN ({})", (namespace,), digests)


def update_condemned(
    connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest], unseen_since: int
) -> list[Digest]:
    """Condemn live rows that were last seen before `unseen_since`. Return their digests."""
    reading = "SELECT digest FROM chunks WHERE namespace = ? AND going = 0 AND last_seen < ? AND digest IN ({})"
    writing = "UPDATE chunks SET going = 1 WHERE namespace = ? AND going = 0 AND last_seen < ? AND digest IN ({})"
    parameters = (namespace, unseen_since)
    marked = {digest for (digest,) in read(connection, reading, parameters, digests)}
    with tasks.counted_removals(connection, namespace, list(marked)):
        write(connection, writing, parameters, digests)
    return [digest for digest in digests if digest in marked]


def select_condemned(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    """Return the digests whose row is condemned, in order."""
    statement = "SELECT digest FROM chunks WHERE namespace = ? AND going = 1 AND digest IN ({})"
    condemned = {digest for (digest,) in read(connection, statement, (namespace,), digests)}
    return [digest for digest in digests if digest in condemned]


def select_rows(connection: sqlite3.Connection, namespace: str, after: Digest | None, limit: int) -> list[ChunkState]:
    """Return rows with a larger digest than `after`, in the order of their digests."""
    frame_digest = "frame_digest" if has_version(connection, 4) else "NULL"
    rows = connection.execute(_ROWS.format(frame_digest), (namespace, after or b"", limit))
    return [_state(row) for row in rows]


def _state(row: tuple[Any, ...]) -> ChunkState:
    digest, size, stored_size, frame, going, seen = row
    known = Digest(frame) if frame else None
    return ChunkState(ChunkRow(Digest(digest), size, stored_size, known), is_live=not going, last_seen=seen)


def update_frame_digests(connection: sqlite3.Connection, namespace: str, rows: Sequence[ChunkRow]) -> None:
    """Set the digest of the frame in live rows that have none and the same sizes."""
    connection.executemany(
        "UPDATE chunks SET frame_digest = ?4"
        " WHERE namespace = ?5 AND digest = ?1 AND size = ?2 AND stored_size = ?3 AND going = 0 AND frame_digest IS NULL",
        [(*row[:4], namespace) for row in rows],
    )


def select_unknown(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    """Return the digests without a row, in order."""
    statement = "SELECT digest FROM chunks WHERE namespace = ? AND digest IN ({})"
    known = {digest for (digest,) in read(connection, statement, (namespace,), digests)}
    return [digest for digest in digests if digest not in known]


def insert_bases(connection: sqlite3.Connection, namespace: str, bases: Sequence[Base]) -> None:
    """Insert edges. Existing ones stay."""
    connection.executemany(
        "INSERT OR IGNORE INTO bases (namespace, digest, base) VALUES (?, ?, ?)", [(namespace, *base) for base in bases]
    )


def select_needed_bases(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    """Return the digests that are the base of a chunk with a row, in order."""
    statement = (
        "SELECT base FROM bases JOIN chunks ON chunks.namespace = bases.namespace AND chunks.digest = bases.digest"
        " WHERE bases.namespace = ? AND base IN ({})"
    )
    needed = {base for (base,) in read(connection, statement, (namespace,), digests)}
    return [digest for digest in digests if digest in needed]


def select_namespaces(connection: sqlite3.Connection) -> list[str]:
    """Return the namespaces with a row, a record, a token, a policy, a quota or the state of a collection, in their order."""
    small = "SELECT namespace FROM tokens"
    if has_version(connection, 5):
        small = "SELECT namespace FROM access_tokens UNION SELECT namespace FROM quotas WHERE namespace != ''"
    if has_version(connection, 4):
        small += " UNION SELECT namespace FROM policies UNION SELECT namespace FROM tasks WHERE task = 'collect'"
    found = {namespace for (namespace,) in connection.execute(small)}
    # One look-up for each namespace: DISTINCT would read every row of these tables.
    for table in ("chunks", "records"):
        statement, namespace = _NEXT_NAMESPACE.format(table), ""
        while (namespace := connection.execute(statement, (namespace,)).fetchone()[0]) is not None:
            found.add(namespace)
    return sorted(found)
