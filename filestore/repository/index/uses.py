"""The table of uses in an index in SQLite: which pipeline uses which record."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

from filestore.repository.index.protocol import Use

TABLE = (
    """CREATE TABLE uses (
        namespace TEXT NOT NULL,
        file_id TEXT NOT NULL,
        pipeline_id TEXT NOT NULL,
        pipeline_name TEXT NOT NULL,
        is_graph INTEGER NOT NULL,
        PRIMARY KEY (namespace, file_id, pipeline_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX uses_by_pipeline ON uses (namespace, pipeline_id)",
)

IS_LISTED = "NOT EXISTS (SELECT 1 FROM uses WHERE uses.namespace = records.namespace AND uses.file_id = records.id AND is_graph)"
"""The condition for records that are no graphs."""

IS_UNUSED = "NOT EXISTS (SELECT 1 FROM uses WHERE uses.namespace = records.namespace AND uses.file_id = records.id)"
"""The condition for records that no pipeline uses."""

_SELECT = "SELECT file_id, pipeline_id, pipeline_name, is_graph FROM uses WHERE namespace = ?"


def has_uses(connection: sqlite3.Connection) -> bool:
    """Return whether the table exists. It does not if an earlier version made the index and nobody has written since."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'uses'").fetchone() is not None


def select_uses(connection: sqlite3.Connection, namespace: str, file_ids: Collection[str] | None = None) -> list[Use]:
    """Return all uses in a namespace, or those of some records."""
    if not has_uses(connection):
        return []
    if file_ids is None:
        return [_use(row) for row in connection.execute(f"{_SELECT} ORDER BY pipeline_id, file_id", (namespace,))]
    found = [use for file_id in set(file_ids) for use in select_uses_of(connection, namespace, file_id)]
    return sorted(found, key=lambda use: (use.pipeline_id, use.file_id))


def select_uses_of(connection: sqlite3.Connection, namespace: str, file_id: str) -> list[Use]:
    """Return the uses of a record."""
    rows = connection.execute(f"{_SELECT} AND file_id = ? ORDER BY pipeline_name, pipeline_id", (namespace, file_id))
    return [_use(row) for row in rows]


def is_graph(connection: sqlite3.Connection, namespace: str, file_id: str) -> bool:
    """Return whether a record is the graph of a pipeline."""
    statement = "SELECT 1 FROM uses WHERE namespace = ? AND file_id = ? AND is_graph"
    return connection.execute(statement, (namespace, file_id)).fetchone() is not None


def insert_uses(connection: sqlite3.Connection, namespace: str, uses: Sequence[Use]) -> None:
    """Insert uses of records that exist, and skip the others. A use that exists is replaced."""
    connection.executemany(
        "INSERT OR REPLACE INTO uses (namespace, file_id, pipeline_id, pipeline_name, is_graph)"
        " SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM records WHERE namespace = ?1 AND id = ?2)",
        [(namespace, *use) for use in uses],
    )


def delete_uses(connection: sqlite3.Connection, namespace: str, pipeline_id: str) -> None:
    """Delete all uses by a pipeline."""
    connection.execute("DELETE FROM uses WHERE namespace = ? AND pipeline_id = ?", (namespace, pipeline_id))


def delete_uses_of(connection: sqlite3.Connection, namespace: str, file_id: str) -> None:
    """Delete all uses of a record."""
    connection.execute("DELETE FROM uses WHERE namespace = ? AND file_id = ?", (namespace, file_id))


def _use(row: tuple[str, str, str, int]) -> Use:
    file_id, pipeline_id, pipeline_name, is_graph = row
    return Use(file_id, pipeline_id, pipeline_name, bool(is_graph))
