"""Which names an index in PostgreSQL has, each with its newest commit."""

from __future__ import annotations

from collections.abc import AsyncIterator

from filestore.core.commits import Commit
from filestore.repository.index.history_rules import LOOKED_AT_LIMIT, first_name
from filestore.repository.index.postgres import history, uses
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.texts import findable
from filestore.repository.index.protocol import Heads
from filestore.repository.index.rows import commit_of

_NAMES_AT_ONCE = 2000
# From one name to the next one. A name may have thousands of commits: they are passed over.
_NAMES = """
    WITH RECURSIVE each (name) AS (
        (SELECT name FROM commits WHERE namespace = $1 AND name {} $2 ORDER BY name LIMIT 1)
        UNION ALL SELECT (
            SELECT commits.name FROM commits WHERE namespace = $1 AND commits.name > each.name ORDER BY commits.name LIMIT 1
        ) FROM each WHERE each.name IS NOT NULL
    )
    SELECT name FROM each WHERE name IS NOT NULL LIMIT $3
"""
_HEADS = f"""
    SELECT commits.name, {history.COMMIT_COLUMNS} FROM unnest($2::text[]) AS wanted (name) CROSS JOIN LATERAL (
        SELECT * FROM commits WHERE commits.namespace = $1 AND commits.name = wanted.name AND commits.branch = 'main'
        ORDER BY commits.number DESC LIMIT 1
    ) AS commits {history.COMMIT_JOINS} WHERE {uses.IS_LISTED}
"""


async def select_heads(
    connection: Connection,
    namespace: str,
    *,
    search: str | None,
    owner: str | None,
    after: str | None,
    limit: int,
    prefix: str,
) -> Heads:
    """Return names in the order of their bytes, as `Index.list_names` does."""
    start = first_name(prefix, owner)
    heads = Heads([], None)
    if start is None:
        return heads
    wanted = None if search is None else search.casefold()
    place, looked_at = after or "", 0
    async for names in _names(connection, namespace, start, place, min(limit + 1, _NAMES_AT_ONCE)):
        matching = [name for name in names if name.startswith(start) and (wanted is None or wanted in name.casefold())]
        found = await _heads(connection, namespace, matching)
        for name in names:
            if not name.startswith(start):
                return heads
            if len(heads.heads) == limit or looked_at == LOOKED_AT_LIMIT:
                return heads._replace(next_after=place)
            place, looked_at = name, looked_at + 1
            if name in found:
                heads.heads.append((name, found[name]))
    return heads


async def _names(connection: Connection, namespace: str, start: str, after: str, count: int) -> AsyncIterator[list[str]]:
    """Yield each name from `start` on that follows `after`, once: first `count` of them, and then more at once."""
    comparison, place = (">" if after >= start else ">="), findable(max(start, after))
    names: list[str] = []
    while not names or len(names) == count:
        if names:
            comparison, place, count = ">", names[-1], _NAMES_AT_ONCE
        names = [name for (name,) in await connection.fetch(_NAMES.format(comparison), namespace, place, count)]
        if not names:
            return
        yield names


async def _heads(connection: Connection, namespace: str, names: list[str]) -> dict[str, Commit]:
    """Return the newest commit of each name that has one and is not that of a graph."""
    rows = await connection.fetch(_HEADS, namespace, names) if names else []
    return {name: commit_of(tuple(row)) for name, *row in rows}
