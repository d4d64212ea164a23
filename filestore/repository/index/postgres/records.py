"""Records in an index in PostgreSQL.

A function that writes needs a transaction that excludes other writers of the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping

from filestore.core.commits import PLAIN_COMMIT, NewCommit
from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.repository.index.postgres import history, uses
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.texts import findable
from filestore.repository.index.protocol import PositionedRecord
from filestore.repository.index.rows import invalid_reason, record_of

COLUMNS = "id, name, digest, size, kind, namespace, created_at, updated_at"
"""What `record_of` takes."""
# The position is larger than all before, whatever the clock says. `moment` is the time, or the next microsecond at which no
# record was stored: a listing finds its page by this time.
_INSERT = f"""
    WITH clock AS (
        INSERT INTO clocks (namespace, last, commits) VALUES ($1, $2::bigint, 1) ON CONFLICT (namespace)
        DO UPDATE SET last = greatest(excluded.last, clocks.last + 1), commits = clocks.commits + 1 RETURNING last
    ), free AS (
        SELECT coalesce(max(updated_at) + 1, $2::bigint) AS moment FROM records
        WHERE namespace = $1 AND updated_at >= $2::bigint AND updated_at < $2::bigint + 1000000
    )
    INSERT INTO records (namespace, id, name, kind, digest, size, created_at, updated_at, position, manifest_size)
    SELECT $1, $3, $4, $5, $6, $7, moment, moment, last, $8 FROM clock, free
    ON CONFLICT (namespace, name, kind, digest) DO UPDATE SET updated_at = excluded.updated_at,
    position = excluded.position, manifest_size = excluded.manifest_size RETURNING {COLUMNS}
"""
_NEWEST_RECORDS = f"SELECT {COLUMNS} FROM records WHERE namespace = $1{{}} ORDER BY {{}}position DESC LIMIT {{}}"
_HEAD_RECORD = (
    f"SELECT {COLUMNS} FROM records WHERE namespace = $1 AND id = (SELECT file_id FROM commits"
    " WHERE namespace = $1 AND name = $2 AND branch = 'main' ORDER BY number DESC LIMIT 1)"
)
_RECORDS_AFTER = (
    f"SELECT position, manifest_size, {COLUMNS} FROM records WHERE namespace = $1 AND position > $2 ORDER BY position LIMIT $3"
)
_SUPERSEDED = (
    f"SELECT position, {COLUMNS} FROM records WHERE namespace = $1 AND position > $2"
    " AND ($3::bigint IS NULL OR updated_at < $3) AND $4 <= (SELECT count(*) FROM (SELECT 1 FROM records AS newer"
    " WHERE newer.namespace = records.namespace AND newer.name = records.name AND newer.position > records.position"
    f" LIMIT $4) AS newest) AND {uses.IS_UNUSED} AND {history.IS_FREE} ORDER BY position LIMIT $5"
)
# From one namespace to the next one. No other rows are read.
_NEWEST_POSITIONS = """
    WITH RECURSIVE each (namespace) AS (
        SELECT min(namespace) FROM records
        UNION ALL SELECT (SELECT min(namespace) FROM records WHERE records.namespace > each.namespace) FROM each
        WHERE each.namespace IS NOT NULL
    )
    SELECT namespace, (SELECT max(position) FROM records WHERE records.namespace = each.namespace) FROM each
    WHERE namespace IS NOT NULL
"""


async def insert_record(
    connection: Connection, record: Record, now: int, manifest_size: int, commit: NewCommit = PLAIN_COMMIT
) -> Record:
    """Insert a record that is stored at `now`, and its commit. If it exists, update its time and its position. Return it."""
    values = (record.id, record.full_name, record.kind.value, record.digest, record.size, manifest_size)
    stored = record_of(tuple(await connection.fetchrow(_INSERT, record.namespace, now, *values)))
    await history.insert_commit(connection, stored, stored.updated_at, commit)
    return stored


async def delete_record(connection: Connection, namespace: str, file_id: str) -> Record | None:
    """Delete a record and its uses, and return it. Return None if it does not exist."""
    record = await select_record(connection, namespace, Reference(id=file_id))
    if record is not None:
        await history.delete_commits_of(connection, namespace, file_id)
        await connection.execute("DELETE FROM records WHERE namespace = $1 AND id = $2", namespace, file_id)
        await uses.delete_uses_of(connection, namespace, file_id)
    return record


async def select_record(connection: Connection, namespace: str, reference: Reference, prefix: str = "") -> Record | None:
    """Return the record that a reference names, or None. Raises InvalidReference if a revision means several versions."""
    name = reference.full_name
    if reference.id is None and reference.digest is None and name is not None:
        return await _select_version(connection, namespace, name, reference.revision) if name.startswith(prefix) else None
    by_digest = f"kind = '{Kind.DIRECTORY.value}' DESC, " if reference.id is None and reference.digest is not None else ""
    conditions = _conditions(reference) | _seen(prefix)
    records = await _newest_records(connection, namespace, conditions, limit=1, first=by_digest)
    return records[0] if records else None


async def _select_version(connection: Connection, namespace: str, name: str, revision: str | None) -> Record | None:
    if revision is None:
        row = await connection.fetchrow(_HEAD_RECORD, namespace, findable(name))
        return None if row is None else record_of(tuple(row))
    commit = await history.select_commit(connection, namespace, name, revision)
    return None if commit is None else await select_record(connection, namespace, Reference(id=commit.file_id))


async def select_versions(
    connection: Connection, namespace: str, reference: Reference, limit: int, before: int | None, *, prefix: str = ""
) -> list[Record]:
    """Return records of a reference, the newest first. With `before`, return those that follow the one of this time."""
    conditions = _conditions(reference) | _seen(prefix) | await _start(connection, namespace, before)
    return await _newest_records(connection, namespace, conditions, limit=limit)


async def count_versions(
    connection: Connection, namespace: str, reference: Reference, before: int | None, *, prefix: str = ""
) -> int:
    """Return the number of records of a reference, or of those that follow the one that was updated at `before`."""
    conditions = _conditions(reference) | _seen(prefix) | await _start(connection, namespace, before)
    statement = f"SELECT count(*) FROM records WHERE namespace = $1{_where(conditions)}"
    return int(await connection.fetchval(statement, namespace, *conditions.values()))


async def select_ids_of_content(connection: Connection, namespace: str, digest: Digest) -> list[str]:
    """Return the ids of all records with a digest, the newest first."""
    statement = "SELECT id FROM records WHERE namespace = $1 AND digest = $2 ORDER BY position DESC"
    return [file_id for (file_id,) in await connection.fetch(statement, namespace, digest)]


async def select_records(
    connection: Connection,
    namespace: str,
    limit: int,
    before: int | None,
    *,
    with_graphs: bool = False,
    prefix: str = "",
) -> list[Record]:
    """Return the newest records. With `before`, return those that follow the record that was updated at this time."""
    conditions = await _start(connection, namespace, before) | _seen(prefix)
    more = "" if with_graphs else f" AND {uses.IS_LISTED}"
    return await _newest_records(connection, namespace, conditions, limit=limit, more=more)


async def select_records_after(
    connection: Connection, namespace: str, position: int, limit: int, *, only_valid: bool = False
) -> list[PositionedRecord]:
    """Return the records with a larger position than `position`, in this order, with all graphs."""
    found: list[PositionedRecord] = []
    while len(found) < limit:
        wanted = limit - len(found)
        rows = await connection.fetch(_RECORDS_AFTER, namespace, position, wanted)
        for place, manifest_size, *row in rows:
            if not only_valid or invalid_reason(tuple(row)) is None:
                found.append(PositionedRecord(place, record_of(tuple(row)), manifest_size))
        if len(rows) < wanted:
            break
        position = rows[-1]["position"]
    return found


async def select_newest_positions(connection: Connection) -> dict[str, int]:
    """Return the largest position of each namespace that has records. No other rows are read."""
    return dict(await connection.fetch(_NEWEST_POSITIONS))


async def select_count(connection: Connection, namespace: str) -> int:
    """Return the number of records."""
    return int(await connection.fetchval("SELECT count(*) FROM records WHERE namespace = $1", namespace))


async def select_superseded(
    connection: Connection, namespace: str, position: int, *, newer_count: int, before: int | None, limit: int
) -> list[PositionedRecord]:
    """Return records after `position` that have at least `newer_count` newer versions of their name, no uses and no labels."""
    rows = await connection.fetch(_SUPERSEDED, namespace, position, before, newer_count, limit)
    return [PositionedRecord(found, record_of(tuple(row))) for found, *row in rows]


def _conditions(reference: Reference) -> dict[str, object]:
    """Return the conditions for the id, the digest and the name of a reference, with their parameters."""
    # A stored path has no owner.
    by_name = "name = {}" if reference.digest is None else "substr(name, strpos(name, '/') + 1) = {}"
    given = {"id = {}": reference.id, "digest = {}": reference.digest, by_name: reference.full_name}
    return {
        condition: findable(value) if isinstance(value, str) else value for condition, value in given.items() if value is not None
    }


def _seen(prefix: str) -> dict[str, object]:
    """Return the condition for the records whose names begin with `prefix`, with its parameter."""
    return {"starts_with(name, {})": findable(prefix)} if prefix else {}


async def _start(connection: Connection, namespace: str, before: int | None) -> dict[str, object]:
    """Return the condition for the records that follow the record that was updated at `before`, with its parameter."""
    if before is None:
        return {}
    statement = "SELECT min(position) FROM records WHERE namespace = $1 AND updated_at = $2"
    start = await connection.fetchval(statement, namespace, before)
    # That record may have been removed or stored again since.
    return {"updated_at < {}": before} if start is None else {"position < {}": start}


def _where(conditions: Mapping[str, object]) -> str:
    """Return the conditions as SQL. Their parameters follow the namespace."""
    return "".join(f" AND {condition.format(f'${number}')}" for number, condition in enumerate(conditions, 2))


async def _newest_records(
    connection: Connection, namespace: str, conditions: Mapping[str, object], *, limit: int, first: str = "", more: str = ""
) -> list[Record]:
    """Return the newest records that meet `conditions` and the conditions of the SQL text `more`.

    `first` is an SQL order with priority over the position.
    """
    limit_place = f"${len(conditions) + 2}"
    statement = _NEWEST_RECORDS.format(_where(conditions) + more, first, limit_place)
    rows = await connection.fetch(statement, namespace, *conditions.values(), limit)
    return [record_of(tuple(row)) for row in rows]
