"""Rows of an index as they are, in pages, by which a whole index is copied into one of another kind.

Rows of chunks are only compared, because what names their frames differs between stores. Counts are left out: each index counts
its rows itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Row: TypeAlias = tuple[Any, ...]
"""The values of the columns of a table, in their order."""

_MOVED_TASKS = ("hold", "given-tokens", "links")
"""The tasks whose states are valid in another index. Others begin again there."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that every index has."""

    name: str
    keys: tuple[str, ...]
    """The columns of its primary key, which are the first ones of a row."""
    columns: tuple[str, ...]
    """The other columns."""
    types: str
    """The type of each column in PostgreSQL, with spaces between them."""
    page: int = 1000
    """So many rows are read together."""
    condition: str = "true"

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns of a row."""
        return self.keys + self.columns

    def key_of(self, row: Row) -> Row:
        """Return the primary key of a row."""
        return row[: len(self.keys)]


TABLES = (
    Table(
        "records",
        ("namespace", "id"),
        ("name", "kind", "digest", "size", "created_at", "updated_at", "position", "manifest_size"),
        "text text text text bytea bigint bigint bigint bigint bigint",
    ),
    Table(
        "commits",
        ("namespace", "name", "number"),
        ("id", "parent", "branch", "file_id", "message", "author", "created_at"),
        "text text bigint bytea bigint text text text text bigint",
    ),
    Table("labels", ("namespace", "name", "label"), ("kind", "number", "created_at"), "text text text text bigint bigint"),
    Table("owners", ("folded",), ("owner", "namespace", "created_at"), "text text text bigint"),
    Table("uses", ("namespace", "file_id", "pipeline_id"), ("pipeline_name", "is_graph"), "text text text text boolean"),
    Table(
        "content_digests",
        ("namespace", "digest"),
        ("size", "sha256", "blob_id", "source", "start"),
        "text bytea bigint bytea bytea bytea bigint",
    ),
    # A large tree has megabytes of them.
    Table("tree_digests", ("namespace", "digest"), ("content",), "text bytea bytea", page=8),
    Table(
        "access_tokens",
        ("digest",),
        ("namespace", "label", "created_at", "scope", "prefix", "expires_at", "used_at"),
        "bytea text text bigint text text bigint bigint",
    ),
    Table(
        "quotas",
        ("namespace", "token"),
        ("size", "stored_size", "name_count", "uploads", "connections", "requests_per_second", "bytes_per_second"),
        "text bytea bigint bigint bigint bigint bigint bigint bigint",
    ),
    Table("policies", ("namespace",), ("keep_last", "older_than_seconds"), "text bigint bigint"),
    Table("tasks", ("namespace", "task"), ("state",), "text text text", condition=f"task IN {_MOVED_TASKS!r}"),
    Table("clocks", ("namespace",), ("last",), "text bigint"),
    Table("bases", ("namespace", "digest", "base"), (), "text bytea bytea"),
)
"""In the order in which rows are added: those of digests need their record."""


# They are only compared, so it does not matter that one index has 0 and the other one False.
CHUNKS = Table(
    "chunks", ("namespace", "digest"), ("size", "stored_size", "going"), "text bytea bigint bigint bigint", page=10_000
)
"""The rows of chunks, live and condemned, which are not in `TABLES`."""


WHOLE_CHUNKS = Table(
    "chunks",
    ("namespace", "digest"),
    ("size", "stored_size", "last_seen", "going", "frame_digest"),
    "text bytea bigint bigint bigint boolean bytea",
    page=10_000,
)
"""The rows of chunks with all that an index without ids of objects keeps."""


class RowSource(Protocol):
    """An index whose rows can be read."""

    async def row_page(self, table: Table, after: Row | None) -> list[Row]:
        """Return at most `table.page` rows whose key is larger than `after`, in the order of their keys."""


def select_page(connection: sqlite3.Connection, table: Table, after: Row | None) -> list[Row]:
    """Return the rows of a page, as `RowSource.row_page` does, from an index in SQLite."""
    keys = ", ".join(table.keys)
    rest = f" AND ({keys}) > ({', '.join('?' * len(table.keys))})" if after is not None else ""
    rows = connection.execute(
        f"SELECT {', '.join(table.all_columns)} FROM {table.name}"  # noqa: S608  # constants
        f" WHERE {table.condition}{rest} ORDER BY {keys} LIMIT ?",
        (*(after or ()), table.page),
    )
    is_boolean = [each == "boolean" for each in table.types.split()]
    if not any(is_boolean):
        return rows.fetchall()
    return [tuple(bool(value) if flag else value for value, flag in zip(row, is_boolean, strict=True)) for row in rows]


def insert_rows(connection: sqlite3.Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows into an index in SQLite that has none of them."""
    places = ", ".join("?" * len(table.all_columns))
    connection.executemany(f"INSERT INTO {table.name} ({', '.join(table.all_columns)}) VALUES ({places})", rows)  # noqa: S608  # constants
