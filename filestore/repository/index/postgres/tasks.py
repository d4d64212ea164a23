"""The tables of an index in PostgreSQL for maintenance: states of tasks, policies, removals, and what identifies the index."""

from __future__ import annotations

import json
from typing import Any

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.records import parse_json
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.protocol import IndexVersion, Policy, RemovedRows

KEPT_REMOVALS = 16
"""How many of the last removals of a namespace are kept."""
KEPT_DIGESTS = 4096
"""The most digests of a removal that is kept. So what is kept of a namespace takes at most 2 MiB."""

_VERSION = "SELECT (SELECT value FROM meta WHERE key = 'index_id'), (SELECT coalesce(sum(commits), 0)::bigint FROM clocks)"
_REMOVED = (
    "SELECT number, CASE WHEN number > $2 THEN digests END FROM removals WHERE namespace = $1 ORDER BY number DESC LIMIT $3"
)
_REPLACE_STATE = (
    "INSERT INTO tasks (namespace, task, state) VALUES ($1, $2, $3)"
    " ON CONFLICT (namespace, task) DO UPDATE SET state = excluded.state"
)
_REPLACE_POLICY = (
    "INSERT INTO policies (namespace, keep_last, older_than_seconds) VALUES ($1, $2, $3) ON CONFLICT (namespace)"
    " DO UPDATE SET keep_last = excluded.keep_last, older_than_seconds = excluded.older_than_seconds"
)


async def select_version(connection: Connection) -> IndexVersion | None:
    """Return the id of the index and its number of commits. Return None if the id is lost."""
    index_id, commits = await connection.fetchrow(_VERSION)
    return None if index_id is None else IndexVersion(index_id, commits)


async def select_removals(connection: Connection, namespace: str) -> int:
    """Return how many statements condemned or removed rows of a namespace."""
    return int(await connection.fetchval("SELECT coalesce(max(number), 0) FROM removals WHERE namespace = $1", namespace))


async def select_removed(connection: Connection, namespace: str, since: int) -> RemovedRows:
    """Return what was removed after the removal number `since`."""
    rows = await connection.fetch(_REMOVED, namespace, since, KEPT_REMOVALS)
    number = rows[0][0] if rows else 0
    kept = {each: digests for each, digests in rows if digests is not None}
    wanted = range(since + 1, number + 1)
    if len(wanted) > KEPT_REMOVALS or any(each not in kept for each in wanted):
        return RemovedRows(number, None)
    removed = b"".join(kept[each] for each in wanted)
    return RemovedRows(number, {Digest(removed[start : start + DIGEST_SIZE]) for start in range(0, len(removed), DIGEST_SIZE)})


async def select_state(connection: Connection, namespace: str, task: str) -> dict[str, Any] | None:
    """Return the state of a task. A state that is not a JSON object counts as an empty one."""
    text = await connection.fetchval("SELECT state FROM tasks WHERE namespace = $1 AND task = $2", namespace, task)
    if text is None:
        return None
    try:
        state = parse_json(text)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


async def replace_state(connection: Connection, namespace: str, task: str, state: dict[str, Any] | None) -> None:
    """Replace the state of a task, or delete it if `state` is None."""
    if state is None:
        await connection.execute("DELETE FROM tasks WHERE namespace = $1 AND task = $2", namespace, task)
    else:
        await connection.execute(_REPLACE_STATE, namespace, task, json.dumps(state))


async def select_policy(connection: Connection, namespace: str) -> Policy:
    """Return the policy of a namespace."""
    row = await connection.fetchrow("SELECT keep_last, older_than_seconds FROM policies WHERE namespace = $1", namespace)
    return Policy() if row is None else Policy(*row)


async def replace_policy(connection: Connection, namespace: str, policy: Policy) -> None:
    """Replace the policy of a namespace."""
    if policy == Policy():
        await connection.execute("DELETE FROM policies WHERE namespace = $1", namespace)
    else:
        await connection.execute(_REPLACE_POLICY, namespace, *policy)
