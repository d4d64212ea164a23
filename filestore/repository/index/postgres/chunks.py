"""The rows of chunks in an index in PostgreSQL.

A statement about many digests has all of them, so it is one round trip. A search by `= ANY` uses the primary key, however
many rows the table has. A join with the digests might read the whole table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.object_names import ObjectName
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.statements import GIVEN, batches, packed_batches, read
from filestore.repository.index.postgres.tasks import KEPT_DIGESTS, KEPT_REMOVALS
from filestore.repository.index.protocol import REFRESH_MICROSECONDS, Base, ChunkRow, ChunkState

_COLUMNS = "digest, size, stored_size, frame_digest, object_id, going, last_seen"
_FOUND = f"SELECT {_COLUMNS} FROM chunks WHERE namespace = $1 AND digest = {GIVEN}"  # constants
_LIVE = f"{_FOUND} AND NOT going"
_PAGE = f"SELECT {_COLUMNS} FROM chunks WHERE namespace = $1 AND digest > $2 ORDER BY digest LIMIT $3"  # the same
# Packed in one or two values, because the client would need longer for thousands of rows than for all else of a check.
_REFRESHED = (
    "SELECT string_agg(digest || int8send(size), '') FILTER (WHERE last_seen >= $3),"
    " string_agg(digest || int8send(size), '') FILTER (WHERE last_seen < $3)"
    f" FROM chunks WHERE namespace = $1 AND digest = {GIVEN} AND NOT going"
)
_DIGEST_AND_SIZE = struct.Struct(f">{DIGEST_SIZE}sq")
_SIZES = f"SELECT string_agg(digest || int8send(size), '') FROM chunks WHERE namespace = $1 AND digest = {GIVEN} AND NOT going"
_CONDEMNED = f"SELECT digest FROM chunks WHERE namespace = $1 AND digest = {GIVEN} AND going"
_KNOWN = f"SELECT digest FROM chunks WHERE namespace = $1 AND digest = {GIVEN}"
# A chunk that is there again needs none of its objects that could not be read.
_INSERT = (
    "WITH found_again AS (DELETE FROM lost_frames WHERE namespace = $1 AND digest = ANY($2::bytea[]))"
    " INSERT INTO chunks (namespace, digest, size, stored_size, frame_digest, object_id, last_seen, going)"
    " SELECT $1, *, $7::bigint, false"
    " FROM unnest($2::bytea[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[])"
    " ON CONFLICT (namespace, digest) DO UPDATE SET size = excluded.size, stored_size = excluded.stored_size,"
    " frame_digest = excluded.frame_digest, object_id = excluded.object_id, last_seen = excluded.last_seen, going = false"
)
_SEE = (
    "UPDATE chunks SET last_seen = $3"
    f" WHERE namespace = $1 AND digest = {GIVEN} AND NOT going AND (last_seen < $4 OR last_seen > $3)"
)
# A statement that removes rows, and counts this as one removal if there were any.
_REMOVE = (
    "WITH {}gone AS ({} RETURNING chunks.digest, chunks.object_id),"
    " removal AS (INSERT INTO removals (namespace, number, digests) SELECT $1,"
    " 1 + (SELECT coalesce(max(number), 0) FROM removals WHERE namespace = $1),"
    f" CASE WHEN count(*) <= {KEPT_DIGESTS} THEN string_agg(digest, ''::bytea) END FROM gone HAVING count(*) > 0"
    " RETURNING number),"
    " forgotten AS (DELETE FROM removals WHERE namespace = $1"
    f" AND number <= (SELECT number FROM removal) - {KEPT_REMOVALS})"
    "{} SELECT digest, object_id FROM gone"
)
_CONDEMN = _REMOVE.format(
    "",
    f"UPDATE chunks SET going = true WHERE namespace = $1 AND digest = {GIVEN} AND NOT going AND last_seen < $3",
    "",
)
_DELETED = (
    f"edges AS (DELETE FROM bases WHERE namespace = $1 AND digest = {GIVEN}), ",
    f"DELETE FROM chunks WHERE namespace = $1 AND digest = {GIVEN}",
)
_DELETE = _REMOVE.format(*_DELETED, "")
_LOSE = _REMOVE.format(
    "named AS (SELECT * FROM unnest($2::bytea[], $3::bytea[]) AS given(digest, object_id)), ",
    "DELETE FROM chunks USING named WHERE chunks.namespace = $1 AND chunks.digest = ANY($2::bytea[])"
    " AND chunks.digest = named.digest AND chunks.object_id = named.object_id",
    ", edges AS (DELETE FROM bases WHERE namespace = $1 AND digest IN (SELECT digest FROM gone)),"
    " lost AS (INSERT INTO lost_frames (namespace, digest, object_id) SELECT $1, digest, object_id FROM gone"
    " ON CONFLICT DO NOTHING)",
)
_SET_FRAME_DIGESTS = (
    "UPDATE chunks SET frame_digest = given.frame_digest"
    " FROM unnest($3::bigint[], $4::bigint[], $5::bytea[], $2::bytea[]) AS given(size, stored_size, frame_digest, digest)"
    " WHERE namespace = $1 AND chunks.digest = ANY($2::bytea[]) AND chunks.digest = given.digest"
    " AND chunks.size = given.size AND chunks.stored_size = given.stored_size AND NOT going AND chunks.frame_digest IS NULL"
)
_INSERT_BASES = (
    "INSERT INTO bases (namespace, digest, base) SELECT $1, * FROM unnest($2::bytea[], $3::bytea[]) ON CONFLICT DO NOTHING"
)
_NEEDED = (
    f"SELECT DISTINCT base FROM bases WHERE namespace = $1 AND base = {GIVEN} AND EXISTS"
    " (SELECT 1 FROM chunks WHERE chunks.namespace = bases.namespace AND chunks.digest = bases.digest)"
)
# One look-up for each namespace: DISTINCT would read every row of these tables.
_OF_TABLE = (
    "{0} (namespace) AS (SELECT min(namespace) FROM {1} UNION ALL"
    " SELECT (SELECT min(namespace) FROM {1} WHERE namespace > {0}.namespace) FROM {0} WHERE namespace IS NOT NULL)"
)
_NAMESPACES = (
    f"WITH RECURSIVE {_OF_TABLE.format('of_chunks', 'chunks')}, {_OF_TABLE.format('of_records', 'records')},"
    f" {_OF_TABLE.format('of_lost', 'lost_frames')}"
    " SELECT namespace FROM of_chunks WHERE namespace IS NOT NULL UNION"
    " SELECT namespace FROM of_records WHERE namespace IS NOT NULL UNION"
    " SELECT namespace FROM of_lost WHERE namespace IS NOT NULL UNION"
    " SELECT namespace FROM access_tokens UNION SELECT namespace FROM quotas WHERE namespace != '' UNION"
    " SELECT namespace FROM policies UNION SELECT namespace FROM tasks WHERE task = 'collect'"
)


async def select_rows_of(connection: Connection, namespace: str, digests: Sequence[Digest]) -> list[ChunkState]:
    """Return the rows of `digests`, live and condemned ones."""
    return [_state(row) for row in await read(connection, _FOUND, namespace, digests)]


async def select_live(connection: Connection, namespace: str, digests: Sequence[Digest]) -> list[ChunkState]:
    """Return the live rows of `digests`."""
    return [_state(row) for row in await read(connection, _LIVE, namespace, digests)]


async def select_refreshed(
    connection: Connection, namespace: str, digests: Sequence[Digest], horizon: int
) -> tuple[dict[Digest, int], dict[Digest, int]]:
    """Return the decoded size of each of `digests` that has a live row: of those that were seen since `horizon`, and of others.

    The keys are bytes that are equal to digests.
    """
    recent, old = dict[Digest, int](), dict[Digest, int]()
    for row in await read(connection, _REFRESHED, namespace, digests, horizon):
        for sizes, packed in zip((recent, old), row, strict=True):
            sizes.update(_DIGEST_AND_SIZE.iter_unpack(packed or b""))
    return recent, old


async def select_sizes(connection: Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
    """Return the decoded size of each of `digests` that has a live row."""
    found = [_DIGEST_AND_SIZE.iter_unpack(packed or b"") for (packed,) in await read(connection, _SIZES, namespace, digests)]
    return {Digest(digest): size for digest, size in chain.from_iterable(found)}


async def insert_chunks(connection: Connection, namespace: str, rows: Sequence[ChunkRow], now: int) -> None:
    """Insert live rows that were seen at `now`. Existing rows are replaced. Of two rows of a chunk, the last one counts."""
    different = {row.digest: row for row in rows}
    for batch in batches([different[digest] for digest in sorted(different)]):
        await connection.execute(_INSERT, namespace, *map(list, zip(*batch, strict=True)), now)


async def update_last_seen(connection: Connection, namespace: str, digests: Sequence[Digest], now: int) -> None:
    """Set the last-seen time of live rows to `now`, if it is old enough, or in the future."""
    for packed in packed_batches(digests):
        await connection.execute(_SEE, namespace, packed, now, now - REFRESH_MICROSECONDS)


async def delete_chunks(connection: Connection, namespace: str, digests: Sequence[Digest]) -> list[ObjectName]:
    """Delete rows, and the edges from them to their bases. Return what names the frames of these rows."""
    rows = await read(connection, _DELETE, namespace, digests)
    return [ObjectName(Digest(digest), object_id) for digest, object_id in rows]


async def lose_chunks(connection: Connection, namespace: str, names: Sequence[ObjectName]) -> list[Digest]:
    """Delete rows as `delete_chunks` does, if they name these objects, and keep the names. Return the digests of these rows."""
    lost: list[Digest] = []
    for batch in batches(names):
        lost += [Digest(digest) for digest, _ in await connection.fetch(_LOSE, namespace, *map(list, zip(*batch, strict=True)))]
    return lost


async def update_condemned(connection: Connection, namespace: str, digests: Sequence[Digest], unseen_since: int) -> list[Digest]:
    """Condemn live rows that were last seen before `unseen_since`. Return their digests."""
    marked = {digest for digest, _ in await read(connection, _CONDEMN, namespace, digests, unseen_since)}
    return [digest for digest in digests if digest in marked]


async def select_condemned(connection: Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    """Return the digests whose row is condemned, in order."""
    condemned = {digest for (digest,) in await read(connection, _CONDEMNED, namespace, digests)}
    return [digest for digest in digests if digest in condemned]


async def select_rows(connection: Connection, namespace: str, after: Digest | None, limit: int) -> list[ChunkState]:
    """Return rows with a larger digest than `after`, in the order of their digests."""
    return [_state(row) for row in await connection.fetch(_PAGE, namespace, after or b"", limit)]


def _state(row: tuple[bytes, int, int, bytes | None, bytes, bool, int]) -> ChunkState:
    digest, size, stored_size, frame, object_id, going, seen = row
    known = Digest(frame) if frame else None
    return ChunkState(ChunkRow(Digest(digest), size, stored_size, known, object_id), is_live=not going, last_seen=seen)


async def update_frame_digests(connection: Connection, namespace: str, rows: Sequence[ChunkRow]) -> None:
    """Set the digest of the frame in live rows that have none and the same sizes."""
    for batch in batches(rows):
        digests, sizes, stored_sizes, frames, _ = map(list, zip(*batch, strict=True))
        await connection.execute(_SET_FRAME_DIGESTS, namespace, digests, sizes, stored_sizes, frames)


async def select_unknown(connection: Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    """Return the digests without a row, in order."""
    known = {digest for (digest,) in await read(connection, _KNOWN, namespace, digests)}
    return [digest for digest in digests if digest not in known]


async def insert_bases(connection: Connection, namespace: str, bases: Sequence[Base]) -> None:
    """Insert edges. Existing ones stay."""
    for batch in batches(bases):
        await connection.execute(_INSERT_BASES, namespace, *map(list, zip(*batch, strict=True)))


async def select_needed_bases(connection: Connection, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
    """Return the digests that are the base of a chunk with a row, in order."""
    needed = {base for (base,) in await read(connection, _NEEDED, namespace, digests)}
    return [digest for digest in digests if digest in needed]


async def select_namespaces(connection: Connection) -> list[str]:
    """Return the namespaces that have anything: rows, lost frames, records, tokens, policies, quotas or collections. In order."""
    return sorted(namespace for (namespace,) in await connection.fetch(_NAMESPACES))
