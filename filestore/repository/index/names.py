"""Which names an index in SQLite has, each with its newest commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from filestore.repository.index.history import has_history, select_commit
from filestore.repository.index.protocol import Heads
from filestore.repository.index.uses import is_graph

LOOKED_AT_LIMIT = 20_000
"""Names that one call looks at. If fewer of them match than were asked for, another call goes on after them."""
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
    beginnings = sorted({prefix, "" if owner is None else f"{owner}/"}, key=len)
    start = beginnings[-1]
    if not has_history(connection) or not start.startswith(beginnings[0]):
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
