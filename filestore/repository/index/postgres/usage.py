"""What each namespace keeps, counted in an index in PostgreSQL.

Triggers count the rows in the transaction that writes them, so the counts are exact. A row of a chunk counts until it is
deleted, also while it is condemned.
"""

from __future__ import annotations

from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.protocol import NamespaceUsage

_COLUMNS = "namespace, record_count, name_count, size, manifests_size, chunk_count, stored_size"
_SELECT = f"SELECT {_COLUMNS} FROM usage"  # constants
_COUNTED = """SELECT namespace, sum(record_count)::bigint, sum(name_count)::bigint, sum(size)::bigint,
    sum(manifests_size)::bigint, sum(chunk_count)::bigint, sum(stored_size)::bigint FROM (
    SELECT namespace, count(*) AS record_count, count(DISTINCT name) AS name_count, sum(size) AS size,
        sum(manifest_size) AS manifests_size, 0 AS chunk_count, 0 AS stored_size FROM records GROUP BY namespace
    UNION ALL SELECT namespace, 0, 0, 0, 0, count(*), sum(stored_size) FROM chunks GROUP BY namespace
) AS counted GROUP BY namespace ORDER BY namespace"""


async def select_usage(connection: Connection, namespace: str) -> NamespaceUsage:
    """Return what a namespace keeps."""
    row = await connection.fetchrow(f"{_SELECT} WHERE namespace = $1", namespace)
    return NamespaceUsage(namespace) if row is None else NamespaceUsage(*row)


async def select_usages(connection: Connection) -> list[NamespaceUsage]:
    """Return what each namespace keeps, in their order. Those that keep nothing may be left out."""
    return [NamespaceUsage(*row) for row in await connection.fetch(f"{_SELECT} ORDER BY namespace")]


async def count_again(connection: Connection) -> list[NamespaceUsage]:
    """Return what each namespace keeps, counted row by row. Reads all rows."""
    return [NamespaceUsage(*row) for row in await connection.fetch(_COUNTED)]


async def replace_counts(connection: Connection) -> None:
    """Replace the counts by what `count_again` finds. Nobody else may write meanwhile."""
    await connection.execute("DELETE FROM usage")
    await connection.execute(f"INSERT INTO usage ({_COLUMNS}) {_COUNTED}")  # constants
