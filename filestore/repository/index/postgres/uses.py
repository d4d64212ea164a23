"""The table of uses in an index in PostgreSQL: which pipeline uses which record."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.statements import batches
from filestore.repository.index.protocol import Use

# OFFSET 0 keeps a look-up for each record. Without statistics of a new table, PostgreSQL would join all records with all uses.
_USES = "SELECT 1 FROM uses WHERE uses.namespace = records.namespace AND uses.file_id = records.id"
IS_LISTED = f"NOT EXISTS ({_USES} AND is_graph OFFSET 0)"
"""The condition for records that are no graphs."""

IS_UNUSED = f"NOT EXISTS ({_USES} OFFSET 0)"
"""The condition for records that no pipeline uses."""

_SELECT = "SELECT file_id, pipeline_id, pipeline_name, is_graph FROM uses WHERE namespace = $1"
_INSERT = (
    "INSERT INTO uses (namespace, file_id, pipeline_id, pipeline_name, is_graph)"
    " SELECT $1, given.* FROM unnest($2::text[], $3::text[], $4::text[], $5::boolean[])"
    " AS given(file_id, pipeline_id, pipeline_name, is_graph)"
    " WHERE EXISTS (SELECT 1 FROM records WHERE namespace = $1 AND id = given.file_id)"
    " ON CONFLICT (namespace, file_id, pipeline_id)"
    " DO UPDATE SET pipeline_name = excluded.pipeline_name, is_graph = excluded.is_graph"
)


async def select_uses(connection: Connection, namespace: str, file_ids: Collection[str] | None = None) -> list[Use]:
    """Return all uses in a namespace, or those of some records."""
    order = "ORDER BY pipeline_id, file_id"
    if file_ids is None:
        rows = await connection.fetch(f"{_SELECT} {order}", namespace)
    else:
        rows = await connection.fetch(f"{_SELECT} AND file_id = ANY($2::text[]) {order}", namespace, list(file_ids))
    return [Use(*row) for row in rows]


async def select_uses_of(connection: Connection, namespace: str, file_id: str) -> list[Use]:
    """Return the uses of a record."""
    statement = f"{_SELECT} AND file_id = $2 ORDER BY pipeline_name, pipeline_id"
    return [Use(*row) for row in await connection.fetch(statement, namespace, file_id)]


async def insert_uses(connection: Connection, namespace: str, uses: Sequence[Use]) -> None:
    """Insert uses of records that exist, and skip the others. A use that exists is replaced."""
    different = list({(use.file_id, use.pipeline_id): use for use in uses}.values())
    for batch in batches(different):
        await connection.execute(_INSERT, namespace, *map(list, zip(*batch, strict=True)))


async def delete_uses(connection: Connection, namespace: str, pipeline_id: str) -> None:
    """Delete all uses by a pipeline."""
    await connection.execute("DELETE FROM uses WHERE namespace = $1 AND pipeline_id = $2", namespace, pipeline_id)


async def delete_uses_of(connection: Connection, namespace: str, file_id: str) -> None:
    """Delete all uses of a record."""
    await connection.execute("DELETE FROM uses WHERE namespace = $1 AND file_id = $2", namespace, file_id)
