"""What each namespace keeps, counted in an index in SQLite.

Triggers count each row when it is inserted, changed or deleted, in the transaction that does it. So the counts are exact, and
the code that writes the rows does not know about them. A row of a chunk counts until it is deleted, also while it is condemned.
"""

from __future__ import annotations

import sqlite3

from filestore.repository.index.protocol import NamespaceUsage

_TABLE = """CREATE TABLE usage (
    namespace TEXT NOT NULL PRIMARY KEY,
    record_count INTEGER NOT NULL,
    name_count INTEGER NOT NULL,
    size INTEGER NOT NULL,
    manifests_size INTEGER NOT NULL,
    chunk_count INTEGER NOT NULL,
    stored_size INTEGER NOT NULL
) WITHOUT ROWID"""
_ADD = """INSERT INTO usage (namespace, record_count, name_count, size, manifests_size, chunk_count, stored_size)
    VALUES ({row}.namespace, {record_count}, {name_count}, {size}, {manifests_size}, {chunk_count}, {stored_size})
    ON CONFLICT (namespace) DO UPDATE SET record_count = usage.record_count + excluded.record_count,
    name_count = usage.name_count + excluded.name_count, size = usage.size + excluded.size,
    manifests_size = usage.manifests_size + excluded.manifests_size,
    chunk_count = usage.chunk_count + excluded.chunk_count, stored_size = usage.stored_size + excluded.stored_size;"""
# 1 if no other record has the name, or else 0. The record itself is in the table, or not any more.
_NAMES = "SELECT count(*) FROM (SELECT 1 FROM records WHERE namespace = {row}.namespace AND name = {row}.name LIMIT 2)"


def _chunk(row: str, sign: str) -> str:
    stored_size = f"{sign}{row}.stored_size"
    return _ADD.format(
        row=row, record_count=0, name_count=0, size=0, manifests_size=0, chunk_count=f"{sign}1", stored_size=stored_size
    )


def _record(row: str, sign: str, *, others: str) -> str:
    names = f"{sign}(({_NAMES.format(row=row)}) = {others})"
    sizes = {"size": f"{sign}{row}.size", "manifests_size": f"{sign}{row}.manifest_size"}
    return _ADD.format(row=row, record_count=f"{sign}1", name_count=names, **sizes, chunk_count=0, stored_size=0)


# Two conditions, since `UPDATE OF` only names what a statement sets.
_MOVED = "NEW.namespace != OLD.namespace OR NEW.name != OLD.name"
_RESIZED = "NEW.size != OLD.size OR NEW.manifest_size != OLD.manifest_size"
_RESIZE = (
    "UPDATE usage SET size = size + NEW.size - OLD.size,"
    " manifests_size = manifests_size + NEW.manifest_size - OLD.manifest_size WHERE namespace = NEW.namespace;"
)
_REPLACED = "NEW.namespace != OLD.namespace OR NEW.stored_size != OLD.stored_size"
_TRIGGERS = tuple(
    f"CREATE TRIGGER {name} AFTER {when} BEGIN {what} END"
    for name, when, what in (
        ("chunk_added", "INSERT ON chunks", _chunk("NEW", "")),
        ("chunk_removed", "DELETE ON chunks", _chunk("OLD", "-")),
        (
            "chunk_replaced",
            # Not of the columns that every use of a chunk writes.
            f"UPDATE OF namespace, stored_size ON chunks WHEN {_REPLACED}",
            _chunk("OLD", "-") + _chunk("NEW", ""),
        ),
        ("record_added", "INSERT ON records", _record("NEW", "", others="1")),
        ("record_removed", "DELETE ON records", _record("OLD", "-", others="0")),
        (
            "record_moved",
            f"UPDATE OF namespace, name ON records WHEN {_MOVED}",
            _record("OLD", "-", others="0") + _record("NEW", "", others="1"),
        ),
        (
            "record_resized",
            f"UPDATE OF size, manifest_size ON records WHEN ({_RESIZED}) AND NOT ({_MOVED})",
            _RESIZE,
        ),
    )
)
_COUNTED = """SELECT namespace, sum(record_count), sum(name_count), sum(size), sum(manifests_size),
    sum(chunk_count), sum(stored_size) FROM (
    SELECT namespace, count(*) AS record_count, count(DISTINCT name) AS name_count, sum(size) AS size,
        sum({1}) AS manifests_size, 0 AS chunk_count, 0 AS stored_size FROM records {0} GROUP BY namespace
    UNION ALL SELECT namespace, 0, 0, 0, 0, count(*), sum(stored_size) FROM chunks {0} GROUP BY namespace
) GROUP BY namespace ORDER BY namespace"""

TABLES = (_TABLE, *_TRIGGERS)
"""The statements that make what is here in an empty index."""
_COUNT = f"INSERT INTO usage {_COUNTED.format('', 'manifest_size')}"
MIGRATION = (_TABLE, _COUNT, *_TRIGGERS)
"""The statements that make it in an index with rows, and count these."""

_SELECT = "SELECT namespace, record_count, name_count, size, manifests_size, chunk_count, stored_size FROM usage"


def has_table(connection: sqlite3.Connection) -> bool:
    """Return whether the counts exist. They do not if an earlier version made the index and nobody has written since."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'usage'").fetchone() is not None


def select_usage(connection: sqlite3.Connection, namespace: str) -> NamespaceUsage:
    """Return what a namespace keeps."""
    if has_table(connection):
        row = connection.execute(f"{_SELECT} WHERE namespace = ?", (namespace,)).fetchone()
    else:
        row = connection.execute(_COUNTED.format("WHERE namespace = ?1", 0), (namespace,)).fetchone()
    return NamespaceUsage(namespace) if row is None else NamespaceUsage(*row)


def select_usages(connection: sqlite3.Connection) -> list[NamespaceUsage]:
    """Return what each namespace keeps, in their order. Those that keep nothing may be left out."""
    rows = connection.execute(f"{_SELECT} ORDER BY namespace" if has_table(connection) else _COUNTED.format("", 0))
    return [NamespaceUsage(*row) for row in rows]


def count_again(connection: sqlite3.Connection) -> list[NamespaceUsage]:
    """Return what each namespace keeps, counted row by row. Reads all rows."""
    return [NamespaceUsage(*row) for row in connection.execute(_COUNTED.format("", "manifest_size"))]


def replace_counts(connection: sqlite3.Connection) -> None:
    """Replace the counts by what `count_again` finds."""
    connection.execute("DELETE FROM usage")
    connection.execute(_COUNT)
