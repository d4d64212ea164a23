"""The tables of an index in SQLite for maintenance: states of tasks, policies, and what identifies the index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.records import parse_json
from filestore.errors import IndexDamaged
from filestore.repository.index.protocol import IndexVersion, Policy, RemovedRows

TABLES = (
    """CREATE TABLE policies (
        namespace TEXT NOT NULL PRIMARY KEY,
        keep_last INTEGER,
        older_than_seconds INTEGER
    ) WITHOUT ROWID""",
    """CREATE TABLE tasks (
        namespace TEXT NOT NULL,
        task TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (namespace, task)
    ) WITHOUT ROWID""",
    "CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta (key, value) VALUES ('index_id', lower(hex(randomblob(16)))), ('commits', 0)",
)

MOVED = "moved"
"""The task of no namespace in whose state an index says where its repository has moved."""

_REMOVALS = "removals:"
"""The beginning of the key of a namespace's number of removals."""
_REMOVED = "removed:"
"""The beginning of the keys of the last removals of a namespace: the number of each, and the digests that it named."""
_KEPT_REMOVALS = 16
_KEPT_DIGESTS = 4096
"""The most digests of a removal that is kept. So what is kept of a namespace takes at most 2 MiB."""
_NUMBER_SIZE = 8


def has_tables(connection: sqlite3.Connection) -> bool:
    """Return whether the tables exist. They do not if an earlier version made the index and nobody has written since."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is not None


def select_version(connection: sqlite3.Connection) -> IndexVersion | None:
    """Return the id of the index and its number of commits. Return None if an earlier version made it. Raises IndexDamaged."""
    if not has_tables(connection):
        return None
    values = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('index_id', 'commits')"))
    try:
        return IndexVersion(str(values["index_id"]), int(values["commits"]))
    except (KeyError, TypeError, ValueError):
        _, _, path = connection.execute("PRAGMA database_list").fetchone()
        raise IndexDamaged(path, "it has lost its id or its number of commits") from None


def count_commit(connection: sqlite3.Connection) -> None:
    """Add 1 to the number of commits."""
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'commits'")


def select_removals(connection: sqlite3.Connection, namespace: str) -> int:
    """Return how many statements condemned or removed rows of a namespace."""
    if not has_tables(connection):
        return 0
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_REMOVALS + namespace,)).fetchone()
    return 0 if row is None else int(row[0])


@contextmanager
def counted_removals(connection: sqlite3.Connection, namespace: str, digests: Sequence[Digest]) -> Iterator[None]:
    """Count the block as a removal of `digests` if it changes a row."""
    before = connection.total_changes
    yield
    if connection.total_changes != before and has_tables(connection):
        connection.execute(
            "INSERT INTO meta (key, value) VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
            (_REMOVALS + namespace,),
        )
        if len(digests) <= _KEPT_DIGESTS:
            number = select_removals(connection, namespace)
            kept = number.to_bytes(_NUMBER_SIZE, "big") + b"".join(digests)
            connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (_key(namespace, number), kept))


def select_removed(connection: sqlite3.Connection, namespace: str, since: int) -> RemovedRows:
    """Return what was removed after the removal number `since`."""
    number = select_removals(connection, namespace)
    removed: set[Digest] = set()
    if number - since > _KEPT_REMOVALS:
        return RemovedRows(number, None)
    for wanted in range(since + 1, number + 1):
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (_key(namespace, wanted),)).fetchone()
        kept = b"" if row is None else bytes(row[0])
        # A removal by an earlier version of filestore is only counted.
        if int.from_bytes(kept[:_NUMBER_SIZE], "big") != wanted:
            return RemovedRows(number, None)
        removed.update(Digest(kept[start : start + DIGEST_SIZE]) for start in range(_NUMBER_SIZE, len(kept), DIGEST_SIZE))
    return RemovedRows(number, removed)


def _key(namespace: str, number: int) -> str:
    return f"{_REMOVED}{namespace}:{number % _KEPT_REMOVALS}"


def select_state(connection: sqlite3.Connection, namespace: str, task: str) -> dict[str, Any] | None:
    """Return the state of a task. A state that is not a JSON object counts as an empty one."""
    if not has_tables(connection):
        return None
    row = connection.execute("SELECT state FROM tasks WHERE namespace = ? AND task = ?", (namespace, task)).fetchone()
    if row is None:
        return None
    try:
        state = parse_json(row[0])
    except (TypeError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def select_moved(connection: sqlite3.Connection) -> str | None:
    """Return where the repository has moved, so that nothing more is written here. None if it has not."""
    state = select_state(connection, "", MOVED)
    return None if state is None else str(state.get("to"))


def replace_state(connection: sqlite3.Connection, namespace: str, task: str, state: dict[str, Any] | None) -> None:
    """Replace the state of a task, or delete it if `state` is None."""
    connection.execute("DELETE FROM tasks WHERE namespace = ? AND task = ?", (namespace, task))
    if state is not None:
        connection.execute("INSERT INTO tasks (namespace, task, state) VALUES (?, ?, ?)", (namespace, task, json.dumps(state)))


def select_policy(connection: sqlite3.Connection, namespace: str) -> Policy:
    """Return the policy of a namespace."""
    if not has_tables(connection):
        return Policy()
    statement = "SELECT keep_last, older_than_seconds FROM policies WHERE namespace = ?"
    row = connection.execute(statement, (namespace,)).fetchone()
    return Policy() if row is None else Policy(*row)


def replace_policy(connection: sqlite3.Connection, namespace: str, policy: Policy) -> None:
    """Replace the policy of a namespace."""
    connection.execute("DELETE FROM policies WHERE namespace = ?", (namespace,))
    if policy != Policy():
        connection.execute(
            "INSERT INTO policies (namespace, keep_last, older_than_seconds) VALUES (?, ?, ?)", (namespace, *policy)
        )
