"""SHA-256 and git's blob id of stored content in an index in PostgreSQL, as secondary digests.

They are facts about content, which never changes. So a row is never corrected: it is only removed with the records that lead to
its content. A function that writes needs a transaction that excludes other writers of the namespace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from filestore.core.content_digests import BLOB_ID_SIZE, PACKED_SIZE, SHA256_SIZE
from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.statements import GIVEN, batches, read
from filestore.repository.index.protocol import ContentDigests
from filestore.repository.index.rows import content_of

_COLUMNS = "digest, size, sha256, blob_id, source, start"
_CONTENTS = f"SELECT {_COLUMNS} FROM content_digests WHERE namespace = $1 AND digest = {GIVEN}"
_CONTENTS_BY_SHA256 = (
    f"SELECT DISTINCT ON (sha256) {_COLUMNS} FROM content_digests WHERE namespace = $1 AND sha256 = {GIVEN}"
    " ORDER BY sha256, digest DESC"
)
# The newest content that has a digest is likely to be removed last. Of several rows for one digest, only one can be inserted.
_INSERT_CONTENTS = f"""
    INSERT INTO content_digests (namespace, {_COLUMNS})
    SELECT DISTINCT ON (digest) $1, {_COLUMNS} FROM (
        SELECT added.*, (SELECT max(position) FROM records WHERE namespace = $1 AND records.digest = source) AS position
        FROM unnest($2::bytea[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bigint[])
        WITH ORDINALITY AS added ({_COLUMNS}, place)
    ) AS found WHERE position IS NOT NULL ORDER BY digest, position DESC, place
    ON CONFLICT (namespace, digest) DO UPDATE SET source = excluded.source, start = excluded.start
    WHERE (SELECT max(position) FROM records WHERE namespace = $1 AND digest = excluded.source)
    > (SELECT max(position) FROM records WHERE namespace = $1 AND digest = content_digests.source)
"""
_INSERT_TREE = (
    "INSERT INTO tree_digests (namespace, digest, content) SELECT $1, $2, $3"
    " WHERE EXISTS (SELECT 1 FROM records WHERE namespace = $1 AND digest = $2) ON CONFLICT (namespace, digest) DO NOTHING"
)
_INVALID = "SELECT namespace, encode(digest, 'hex') FROM {} WHERE NOT ({}) LIMIT $1"
_VALID_CONTENT = (
    f"length(digest) = {DIGEST_SIZE} AND length(source) = {DIGEST_SIZE} AND length(sha256) = {SHA256_SIZE}"
    f" AND length(blob_id) = {BLOB_ID_SIZE} AND size >= 0 AND start >= 0"
)
_VALID_TREE = f"length(digest) = {DIGEST_SIZE} AND length(content) % {PACKED_SIZE} = 0"


async def select_contents(connection: Connection, namespace: str, digests: Sequence[Digest]) -> dict[Digest, ContentDigests]:
    """Return the secondary digests of contents."""
    found = [content_of(tuple(row)) for row in await read(connection, _CONTENTS, namespace, digests)]
    return {content.digest: content for content in found}


async def select_contents_by_sha256(
    connection: Connection, namespace: str, sha256s: Sequence[bytes]
) -> dict[bytes, ContentDigests]:
    """Return one content for each SHA-256 that is known, the one with the largest digest."""
    found = [content_of(tuple(row)) for row in await read(connection, _CONTENTS_BY_SHA256, namespace, sha256s)]
    return {content.sha256: content for content in found}


async def select_tree(connection: Connection, namespace: str, digest: Digest) -> bytes | None:
    """Return the packed digests of a stored tree, or None."""
    statement = "SELECT content FROM tree_digests WHERE namespace = $1 AND digest = $2"
    packed: bytes | None = await connection.fetchval(statement, namespace, digest)
    return packed


async def select_trees(connection: Connection, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
    """Return those of `digests` that are trees whose digests are known."""
    statement = f"SELECT digest FROM tree_digests WHERE namespace = $1 AND digest = {GIVEN}"
    return {Digest(digest) for (digest,) in await read(connection, statement, namespace, digests)}


async def insert_contents(connection: Connection, namespace: str, rows: Sequence[ContentDigests]) -> None:
    """Insert the secondary digests of contents whose source has a record, and skip the others."""
    for batch in batches(rows):
        await connection.execute(_INSERT_CONTENTS, namespace, *zip(*batch, strict=True))


async def insert_tree(connection: Connection, namespace: str, digest: Digest, packed: bytes) -> None:
    """Insert the packed digests of a stored tree, if it has a record and they are not there yet."""
    await connection.execute(_INSERT_TREE, namespace, digest, packed)


async def select_invalid(connection: Connection, limit: int) -> AsyncIterator[tuple[str, str]]:
    """Yield the namespaces of rows that are not valid, and what is wrong, at most `limit` of each table."""
    for table, valid in (("content_digests", _VALID_CONTENT), ("tree_digests", _VALID_TREE)):
        for namespace, digest in await connection.fetch(_INVALID.format(table, valid), limit):
            yield namespace, f"its secondary digests of {digest} in {table} have values that no content has"
