"""Which objects of a store are the frames and manifests of an index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from filestore.core.digest import Digest
from filestore.core.object_names import NO_OBJECT_ID, FrameObject, ObjectName
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.statements import GIVEN, batches, read

_FRAMES = f"SELECT digest, object_id, stored_size FROM chunks WHERE namespace = $1 AND digest = {GIVEN} AND NOT going"
_NAMED_FRAMES = (
    f"SELECT digest, object_id FROM chunks WHERE namespace = $1 AND digest = {GIVEN} UNION ALL"
    f" SELECT digest, object_id FROM lost_frames WHERE namespace = $1 AND digest = {GIVEN}"
)
_LOST = "SELECT digest, object_id FROM lost_frames WHERE namespace = $1 AND (digest, object_id) > ($2, $3) ORDER BY 1, 2 LIMIT $4"
_FORGET_LOST = (
    "DELETE FROM lost_frames AS lost USING unnest($2::bytea[], $3::bytea[]) AS given(digest, object_id)"
    " WHERE lost.namespace = $1 AND lost.digest = ANY($2::bytea[]) AND lost.digest = given.digest"
    " AND lost.object_id = given.object_id RETURNING lost.digest, lost.object_id"
)
_NAMED_MANIFESTS = f"SELECT digest, object_id FROM manifests WHERE namespace = $1 AND digest = {GIVEN}"
# The row that is there stays. It is written, so that it is returned, also if it is newer than this statement.
_KEEP_MANIFEST = (
    "INSERT INTO manifests AS kept (namespace, digest, object_id) VALUES ($1, $2, $3)"
    " ON CONFLICT (namespace, digest) DO UPDATE SET object_id = kept.object_id RETURNING object_id"
)


async def select_frames(connection: Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, FrameObject]:
    """Return the object of each of `digests` that has a live row."""
    rows = await read(connection, _FRAMES, namespace, digests)
    return {Digest(digest): FrameObject(object_id, size) for digest, object_id, size in rows}


async def select_unnamed_frames(connection: Connection, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
    """Return those of `names` that neither a row of a chunk names nor one of a lost frame, in order."""
    return await _unnamed(connection, _NAMED_FRAMES, namespace, names)


async def select_lost(connection: Connection, namespace: str, after: ObjectName | None, limit: int) -> list[ObjectName]:
    """Return names of lost frames that are larger than `after`, in their order."""
    rows = await connection.fetch(_LOST, namespace, *(after or (b"", b"")), limit)
    return [ObjectName(Digest(digest), object_id) for digest, object_id in rows]


async def delete_lost(connection: Connection, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
    """Delete the rows of lost frames with these names. Return what was deleted."""
    deleted: list[ObjectName] = []
    for batch in batches(names):
        rows = await connection.fetch(_FORGET_LOST, namespace, *map(list, zip(*batch, strict=True)))
        deleted += [ObjectName(Digest(digest), object_id) for digest, object_id in rows]
    return deleted


async def select_unnamed_manifests(connection: Connection, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
    """Return those of `names` that no row of a manifest names, in order."""
    return await _unnamed(connection, _NAMED_MANIFESTS, namespace, names)


async def select_manifest(connection: Connection, namespace: str, digest: Digest) -> bytes | None:
    """Return the id of the object of a manifest, or None."""
    statement = "SELECT object_id FROM manifests WHERE namespace = $1 AND digest = $2"
    found: bytes | None = await connection.fetchval(statement, namespace, digest)
    return found


async def insert_manifest(connection: Connection, namespace: str, name: ObjectName) -> bytes:
    """Insert the row of a manifest, unless there is one. Return the id of the object that it names now."""
    kept: bytes = await connection.fetchval(_KEEP_MANIFEST, namespace, *name)
    return kept


async def delete_manifest(connection: Connection, namespace: str, digest: Digest) -> ObjectName:
    """Delete the row of a manifest, and return what it named."""
    statement = "DELETE FROM manifests WHERE namespace = $1 AND digest = $2 RETURNING object_id"
    found = await connection.fetchval(statement, namespace, digest)
    return ObjectName(digest, NO_OBJECT_ID if found is None else found)


async def _unnamed(connection: Connection, statement: str, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
    digests = [name.digest for name in names]
    named = {(digest, object_id) for digest, object_id in await read(connection, statement, namespace, digests)}
    return [name for name in names if name not in named]
