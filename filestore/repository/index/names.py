"""Which names an index in SQLite has, each with its newest commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from filestore.repository.index.history import has_history, select_commit
from filestore.repository.index.history_rules import LOOKED_AT_LIMIT, first_name
from filestore.repository.index.protocol import Heads
from filestore.repository.index.uses import is_graph

# With one bound only: SQLite would read all rows from the first of two bounds to the second one.
_NEXT = "SELECT name FROM commits WHERE namespace = ? AND name {} ? ORDER BY name LIMIT 1"


def select_heads(
    connection: sqlite3.Connection,
    namespace: str,
    *,
    search: str | None,
    owner: str | None,
    after: str | None,
    limit: int,
    prefix: str,
) -> Heads:
    """Return names in the order of their bytes, as `Index.list_names` does."""
    heads = Heads([], None)
    start = first_name(prefix, owner)
    if start is None or not has_history(connection):
        return heads
    wanted = None if search is None else search.casefold()
    place = after or ""
    for number, name in enumerate(_names(connection, namespace, start, place)):
        if not name.startswith(start):
            break
        if len(heads.heads) == limit or number == LOOKED_AT_LIMIT:
            return heads._replace(next_after=place)
        place = name
        if wanted is None or wanted in name.casefold():
            head = select_commit(connection, namespace, name, None)
            if head is not None and not is_graph(connection, namespace, head.file_id):
                heads.heads.append((name, head))
    return heads


def _names(connection: sqlite3.Connection, namespace: str, start: str, after: str) -> Iterator[str]:
    """Yield each name from `start` on that follows `after`, once. A name may have thousands of commits: they are passed over."""
    row = connection.execute(_NEXT.format(">" if after >= start else ">="), (namespace, max(start, after))).fetchone()
    while row is not None:
        yield str(row[0])
        row = connection.execute(_NEXT.format(">"), (namespace, row[0])).fetchone()
