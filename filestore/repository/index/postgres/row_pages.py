"""Rows of an index in PostgreSQL, as they are, in pages."""

from __future__ import annotations

from collections.abc import Sequence

from filestore.core.digest import Digest
from filestore.core.signing import SigningKeys
from filestore.repository.index.postgres import tokens
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.errors import postgres_errors
from filestore.repository.index.postgres.statements import GIVEN, read
from filestore.repository.index.row_pages import Row, Table
from filestore.repository.index.signing_keys import pack_keys

_KEPT_MANIFESTS = f"SELECT digest FROM manifests WHERE namespace = $1 AND digest = {GIVEN}"
_KEEP = "INSERT INTO secrets (kind, value) VALUES ($1, $2) ON CONFLICT (kind) DO UPDATE SET value = excluded.value"


class Snapshot:
    """An index as it was when a transaction began, on the connection of this transaction. It is a `row_pages.RowSource`."""

    def __init__(self, connection: Connection, where: str) -> None:
        self._connection = connection
        self._where = where

    async def row_page(self, table: Table, after: Row | None) -> list[Row]:
        """Return rows as `row_pages.RowSource` does."""
        with postgres_errors(self._where):
            return await select_page(self._connection, table, after)

    async def secrets(self) -> list[bytes]:
        """Return the secret, if there is one, and the value that keeps the keys that sign URLs, if there is one."""
        with postgres_errors(self._where):
            return await tokens.select_secrets(self._connection)


async def select_page(connection: Connection, table: Table, after: Row | None) -> list[Row]:
    """Return the rows of a page."""
    keys = ", ".join(table.keys)
    rest = f" AND ({keys}) > ({_numbered(table.keys)})" if after is not None else ""
    rows = await connection.fetch(
        f"SELECT {', '.join(table.all_columns)} FROM {table.name}"  # constants
        f" WHERE {table.condition}{rest} ORDER BY {keys} LIMIT {table.page:d}",
        *(after or ()),
    )
    return [tuple(row) for row in rows]


async def delete_rows(connection: Connection, table: Table, keys: Sequence[Row]) -> None:
    """Delete the rows with these keys."""
    if keys:
        names = ", ".join(table.keys)
        await connection.execute(
            f"DELETE FROM {table.name} WHERE ({names}) IN (SELECT * FROM {_unnested(table, len(table.keys))})",
            *map(list, zip(*keys, strict=True)),
        )


async def insert_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> int:
    """Insert rows, and skip those that contradict one that is there. Return how many were inserted."""
    if not rows:
        return 0
    unnested = _unnested(table, len(table.all_columns))
    done: str = await connection.execute(
        f"INSERT INTO {table.name} ({', '.join(table.all_columns)}) SELECT * FROM {unnested} ON CONFLICT DO NOTHING",
        *map(list, zip(*rows, strict=True)),
    )
    return int(done.rpartition(" ")[2])


async def replace_secrets(connection: Connection, keys: SigningKeys) -> None:
    """Replace the secret and the keys that sign URLs by those of another index."""
    await connection.execute(_KEEP, "secret", keys.secret)
    await connection.execute(_KEEP, "keys", pack_keys(keys))


async def select_kept_manifests(connection: Connection, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
    """Return those of `digests` that have the row of a manifest."""
    return {Digest(digest) for (digest,) in await read(connection, _KEPT_MANIFESTS, namespace, digests)}


def _numbered(columns: Sequence[str]) -> str:
    return ", ".join(f"${number}" for number in range(1, len(columns) + 1))


def _unnested(table: Table, count: int) -> str:
    types = table.types.split()[:count]
    return f"unnest({', '.join(f'${number}::{each}[]' for number, each in enumerate(types, start=1))})"
