"""Records in an index in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from filestore.core.commits import PLAIN_COMMIT, NewCommit
from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.repository.index import history, tasks, uses
from filestore.repository.index.history_rules import digest_range, several_versions
from filestore.repository.index.protocol import ListingGrowth, PositionedRecord
from filestore.repository.index.rows import Row, invalid_reason, record_of
from filestore.repository.index.schema import has_version
from filestore.repository.index.statements import parsed
from filestore.repository.listing import size_limit, write_lines

# `{}` is the column that orders records, see `_position`.
_INSERT = (
    "INSERT INTO records (namespace, id, name, kind, digest, size, created_at, updated_at, position, manifest_size)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, name, kind, digest)"
    " DO UPDATE SET updated_at = excluded.updated_at, position = excluded.position,"
    " manifest_size = excluded.manifest_size"
)
_NEWEST_RECORDS = (
    "SELECT id, name, digest, size, kind, namespace, created_at, updated_at FROM records"
    " WHERE namespace = ?{} ORDER BY {}{} DESC LIMIT ? OFFSET ?"
)
_COUNT = "SELECT count(*) FROM records WHERE namespace = ?{}"
_TWO_DIGESTS = "SELECT DISTINCT digest FROM records WHERE namespace = ?{} LIMIT 2"
_RECORDS_AFTER = (
    "SELECT {0}, {1}, id, name, digest, size, kind, namespace, created_at, updated_at FROM records"
    " WHERE namespace = ? AND {0} > ? ORDER BY {0} LIMIT ?"
)
_LISTING = (
    "SELECT {0}, id, name, digest, size, kind, namespace, created_at, updated_at FROM records"
    " WHERE namespace = ?{1} ORDER BY {0} DESC"
)
# JSON writes most names as they are, and a byte of any other one as six characters at most. A line has the name twice.
_NAMES_SIZE = (
    "SELECT count(*), total(CASE WHEN name GLOB '*[^-a-zA-Z0-9._/ ]*' THEN 6 * length(CAST(name AS BLOB)) ELSE length(name) END)"
    " FROM records WHERE namespace = ?{}"
)
_IDS_OF_CONTENT = "SELECT id FROM records WHERE namespace = ? AND digest = ? ORDER BY {} DESC"
_SUPERSEDED = (
    "SELECT {0}, id, name, digest, size, kind, namespace, created_at, updated_at FROM records"
    " WHERE namespace = ? AND {0} > ? AND updated_at < ? AND ? <= (SELECT count(*) FROM (SELECT 1 FROM records AS newer"
    " WHERE newer.namespace = records.namespace AND newer.name = records.name AND newer.{0} > records.{0} LIMIT ?)){1}"
    " ORDER BY {0} LIMIT ?"
)
_NEWEST_POSITION = "SELECT max({}) FROM records WHERE namespace = ?"
# The index is named, because SQLite would look for the smallest position first, through all records.
_POSITION_AT = "SELECT min({}) FROM records INDEXED BY records_by_time WHERE namespace = ? AND updated_at = ?"
_SECOND = 1_000_000
_FAR_FUTURE = 1 << 62


def insert_record(
    connection: sqlite3.Connection, record: Record, now: int, manifest_size: int, commit: NewCommit = PLAIN_COMMIT
) -> Record:
    """Insert a record that is stored at `now`, and its commit. If it exists, update its time and its position. Return it."""
    connection.execute(
        "INSERT INTO clocks (namespace, last) VALUES (?, ?)"
        " ON CONFLICT (namespace) DO UPDATE SET last = max(excluded.last, clocks.last + 1)",
        (record.namespace, now),
    )
    (position,) = connection.execute("SELECT last FROM clocks WHERE namespace = ?", (record.namespace,)).fetchone()
    moment = _free_moment(connection, record.namespace, now)
    values = (record.id, record.full_name, record.kind.value, record.digest, record.size)
    connection.execute(_INSERT, (record.namespace, *values, moment, moment, position, manifest_size))
    tasks.count_commit(connection)
    # The record with the largest position is the one that was just inserted or updated.
    stored = select_records(connection, record.namespace, 1, None, with_graphs=True)[0]
    history.insert_commit(connection, stored, moment, commit)
    return stored


def delete_record(connection: sqlite3.Connection, namespace: str, file_id: str) -> Record | None:
    """Delete a record and its uses, and return it. Return None if it does not exist."""
    record = select_record(connection, namespace, Reference(id=file_id))
    if record is not None:
        history.delete_commits_of(connection, namespace, file_id)
        connection.execute("DELETE FROM records WHERE namespace = ? AND id = ?", (namespace, file_id))
        uses.delete_uses_of(connection, namespace, file_id)
    return record


def select_record(connection: sqlite3.Connection, namespace: str, reference: Reference, prefix: str = "") -> Record | None:
    """Return the record that a reference names, or None. Raises InvalidReference if a revision means several versions."""
    name = reference.full_name
    if reference.id is None and reference.digest is None and name is not None and history.has_history(connection):
        return _select_version(connection, namespace, name, reference.revision) if name.startswith(prefix) else None
    conditions = _conditions(reference) | _seen(prefix)
    digits = reference.digits
    if digits is not None:
        first, last = digest_range(digits)
        conditions |= {"digest >= ?": first, "digest <= ?": last}
        statement = _TWO_DIGESTS.format(_where(conditions))
        if len(connection.execute(statement, (namespace, *conditions.values())).fetchall()) > 1:
            raise several_versions(reference)
    is_by_digest = reference.id is None and (reference.digest is not None or digits is not None)
    order = f"kind = '{Kind.DIRECTORY.value}' DESC, " if is_by_digest else ""
    skip = reference.versions_back or 0
    records = _newest_records(connection, namespace, conditions, limit=1, skip=skip, first=order)
    return records[0] if records else None


def _select_version(connection: sqlite3.Connection, namespace: str, name: str, revision: str | None) -> Record | None:
    if revision is None:
        file_id = history.select_head(connection, namespace, name)
    else:
        commit = history.select_commit(connection, namespace, name, revision)
        file_id = None if commit is None else commit.file_id
    return None if file_id is None else select_record(connection, namespace, Reference(id=file_id))


def select_versions(
    connection: sqlite3.Connection, namespace: str, reference: Reference, limit: int, before: int | None, *, prefix: str = ""
) -> list[Record]:
    """Return records of a reference, the newest first. With `before`, return those that follow the one of this time."""
    conditions = _conditions(reference) | _seen(prefix) | _start(connection, namespace, before)
    return _newest_records(connection, namespace, conditions, limit=limit)


def count_versions(
    connection: sqlite3.Connection, namespace: str, reference: Reference, before: int | None, *, prefix: str = ""
) -> int:
    """Return the number of records of a reference, or of those that follow the one that was updated at `before`."""
    conditions = _conditions(reference) | _seen(prefix) | _start(connection, namespace, before)
    (count,) = connection.execute(_COUNT.format(_where(conditions)), (namespace, *conditions.values())).fetchone()
    return int(count)


def select_ids_of_content(connection: sqlite3.Connection, namespace: str, digest: Digest) -> list[str]:
    """Return the ids of all records with a digest, the newest first."""
    rows = connection.execute(_IDS_OF_CONTENT.format(_position(connection)), (namespace, digest))
    return [record_id for (record_id,) in rows]


def select_records(
    connection: sqlite3.Connection,
    namespace: str,
    limit: int,
    before: int | None,
    *,
    with_graphs: bool = False,
    prefix: str = "",
) -> list[Record]:
    """Return the newest records. With `before`, return those that follow the record that was updated at this time."""
    conditions = _start(connection, namespace, before) | _seen(prefix)
    more = "" if with_graphs or not uses.has_uses(connection) else f" AND {uses.IS_LISTED}"
    return _newest_records(connection, namespace, conditions, limit=limit, more=more)


def select_records_after(
    connection: sqlite3.Connection, namespace: str, position: int, limit: int, *, only_valid: bool = False
) -> list[PositionedRecord]:
    """Return the records with a larger position than `position`, in this order, with all graphs."""
    found: list[PositionedRecord] = []
    # Not only the first `limit` rows, because rows that are not valid are left out.
    statement = _RECORDS_AFTER.format(_position(connection), "manifest_size" if has_version(connection, 5) else "0")
    rows = connection.execute(statement, (namespace, position, -1 if only_valid else limit))
    for place, manifest_size, *row in rows:
        if not only_valid or invalid_reason(tuple(row)) is None:
            found.append(PositionedRecord(place, _record(connection, tuple(row)), manifest_size))
        if len(found) == limit:
            break
    rows.close()
    return found


def select_newest_positions(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the largest position of each namespace that has records. No other rows are read."""
    found: dict[str, int] = {}
    position, namespace = _position(connection), ""
    following = "SELECT min(namespace) FROM records WHERE namespace > ?"
    while (namespace := connection.execute(following, (namespace,)).fetchone()[0]) is not None:
        (found[namespace],) = connection.execute(_NEWEST_POSITION.format(position), (namespace,)).fetchone()
    return found


def select_count(connection: sqlite3.Connection, namespace: str) -> int:
    """Return the number of records."""
    (count,) = connection.execute("SELECT count(*) FROM records WHERE namespace = ?", (namespace,)).fetchone()
    return int(count)


def select_superseded(
    connection: sqlite3.Connection, namespace: str, position: int, *, newer_count: int, before: int | None, limit: int
) -> list[PositionedRecord]:
    """Return records after `position` that have at least `newer_count` newer versions of their name, no uses and no labels."""
    more = f" AND {uses.IS_UNUSED}" if uses.has_uses(connection) else ""
    more += f" AND {history.IS_FREE}" if history.has_history(connection) else ""
    before = _FAR_FUTURE if before is None else before
    parameters = (namespace, position, before, newer_count, newer_count, limit)
    rows = connection.execute(_SUPERSEDED.format(_position(connection), more), parameters)
    return [PositionedRecord(found, _record(connection, tuple(row))) for found, *row in rows]


def _conditions(reference: Reference) -> dict[str, object]:
    """Return the conditions for the id, the digest and the name of a reference, with their parameters."""
    # A stored path has no owner.
    by_name = "name = ?" if reference.digest is None else "substr(name, instr(name, '/') + 1) = ?"
    given = {"id = ?": reference.id, "digest = ?": reference.digest, by_name: reference.full_name}
    return {condition: value for condition, value in given.items() if value is not None}


def _seen(prefix: str) -> dict[str, object]:
    """Return the condition for the records whose names begin with `prefix`, with its parameter."""
    # SQLite counts characters as Python does. LIKE and GLOB would read some characters of the prefix as a pattern.
    return {f"substr(name, 1, {len(prefix)}) = ?": prefix} if prefix else {}


def _start(connection: sqlite3.Connection, namespace: str, before: int | None) -> dict[str, object]:
    """Return the condition for the records that follow the record that was updated at `before`, with its parameter."""
    if before is None:
        return {}
    position = _position(connection)
    (start,) = connection.execute(_POSITION_AT.format(position), (namespace, before)).fetchone()
    # That record may have been removed or stored again since.
    return {"updated_at < ?": before} if start is None else {f"{position} < ?": start}


def _where(conditions: Iterable[str]) -> str:
    return "".join(f" AND {condition}" for condition in conditions)


def write_listing(
    connection: sqlite3.Connection, namespace: str, file: BinaryIO, growth: ListingGrowth, *, prefix: str = ""
) -> None:
    """Write a listing of all records to `file`. One transaction reads them, so that all are of the same moment."""
    connection.execute("BEGIN")
    try:
        listed = f" AND {uses.IS_LISTED}" if uses.has_uses(connection) else ""
        seen = _seen(prefix)
        parameters = (namespace, *seen.values())
        count, names_size = connection.execute(_NAMES_SIZE.format(_where(seen)), parameters).fetchone()
        growth.limit = size_limit(namespace, count=count, names_size=int(names_size))
        rows = connection.execute(_LISTING.format(_position(connection), _where(seen) + listed), parameters)
        write_lines(file, (PositionedRecord(found, _record(connection, tuple(row))) for found, *row in rows), growth)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _position(connection: sqlite3.Connection) -> str:
    """Return the column that orders records. Before version 4, their times did that."""
    return "position" if has_version(connection, 4) else "updated_at"


def _free_moment(connection: sqlite3.Connection, namespace: str, now: int) -> int:
    """Return `now`, or the next microsecond at which no record was stored: a listing finds its page by this time."""
    statement = "SELECT max(updated_at) FROM records WHERE namespace = ? AND updated_at >= ? AND updated_at < ?"
    (taken,) = connection.execute(statement, (namespace, now, now + _SECOND)).fetchone()
    return now if taken is None else int(taken) + 1


def _newest_records(
    connection: sqlite3.Connection,
    namespace: str,
    conditions: Mapping[str, object],
    *,
    limit: int,
    skip: int = 0,
    first: str = "",
    more: str = "",
) -> list[Record]:
    """Return the newest records that meet `conditions` and the conditions of the SQL text `more`, without the first `skip`.

    `first` is an SQL order with priority over the position.
    """
    statement = _NEWEST_RECORDS.format(_where(conditions) + more, first, _position(connection))
    parameters = (namespace, *conditions.values(), limit, skip)
    return [_record(connection, row) for row in connection.execute(statement, parameters)]


def _record(connection: sqlite3.Connection, row: Row) -> Record:
    return parsed(connection, record_of, row)
