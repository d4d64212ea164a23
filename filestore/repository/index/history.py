"""Commits, labels and owners in an index in SQLite. A name is a full one here: with its owner, if it has one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from filestore.core.commits import COMMITS_LIMIT, MAIN, Commit, Label, LabelKind, NewCommit, commit_id
from filestore.core.records import Record
from filestore.core.references import digits_in, versions_back
from filestore.errors import OwnerTaken, RevisionNotFound
from filestore.repository.index.history_rules import (
    ID_SIZE,
    Head,
    check_label_count,
    check_owner_count,
    check_parent,
    commit_row,
    digest_range,
    id_range,
    is_kept,
    is_made,
    is_of_main,
    label_in,
    number_by_digits,
)
from filestore.repository.index.rows import commit_of, label_of
from filestore.repository.index.statements import parsed

TABLES = (
    # `number` counts the commits of a name. `parent` is the number of the commit before it on its line.
    """CREATE TABLE commits (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        id BLOB NOT NULL,
        parent INTEGER,
        branch TEXT NOT NULL,
        file_id TEXT NOT NULL,
        message TEXT NOT NULL,
        author TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, name, number)
    ) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX commits_by_id ON commits (namespace, name, id)",
    "CREATE INDEX commits_by_branch ON commits (namespace, name, branch, number)",
    "CREATE INDEX commits_by_parent ON commits (namespace, name, parent)",
    "CREATE INDEX commits_by_record ON commits (namespace, file_id)",
    """CREATE TABLE labels (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        label TEXT NOT NULL,
        kind TEXT NOT NULL,
        number INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, name, label)
    ) WITHOUT ROWID""",
    "CREATE INDEX labels_by_commit ON labels (namespace, name, number)",
    # `folded` is the owner in lower case.
    """CREATE TABLE owners (
        folded TEXT NOT NULL PRIMARY KEY,
        owner TEXT NOT NULL,
        namespace TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX owners_by_namespace ON owners (namespace, owner)",
)

_INSERT = (
    "INSERT INTO commits (namespace, name, number, id, parent, branch, file_id, message, author, created_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_COMMITS = (
    "SELECT commits.id, commits.number, before.id, commits.branch, commits.file_id, records.digest, records.size, records.kind,"
    " commits.message, commits.author, commits.created_at FROM commits"
    " JOIN records ON records.namespace = commits.namespace AND records.id = commits.file_id"
    " LEFT JOIN commits AS before ON before.namespace = commits.namespace AND before.name = commits.name"
    " AND before.number = commits.parent WHERE commits.namespace = ? AND commits.name = ?"
)
# The index is named, because SQLite would pass over the commits of all other branches that are newer.
_HEAD = (
    "SELECT number, file_id, id FROM commits INDEXED BY commits_by_branch WHERE namespace = ? AND name = ? AND branch = ?"
    " ORDER BY number DESC LIMIT 1 OFFSET ?"
)
# Up to the first commit on `main`. A parent has a smaller number: without this condition, a damaged index could lead around in a
# circle.
_LINE = (
    "WITH RECURSIVE line (number, parent, branch) AS (SELECT number, parent, branch FROM commits"
    " WHERE namespace = ?1 AND name = ?2 AND number = ?3"
    " UNION ALL SELECT commits.number, commits.parent, commits.branch FROM line JOIN commits"
    " ON commits.namespace = ?1 AND commits.name = ?2 AND commits.number = line.parent"
    " AND commits.number < line.number WHERE line.branch <> 'main')"
    " SELECT number, branch FROM line WHERE number < ?4 OR branch = 'main'"
)
# Each commit on `main` follows the one before it on `main`, so no other one is between them.
_MAIN_LINE = (
    "SELECT number FROM commits INDEXED BY commits_by_branch WHERE namespace = ? AND name = ? AND branch = 'main' AND number < ?"
    " ORDER BY number DESC LIMIT ?"
)
_BY_DIGITS = (
    "SELECT commits.number, records.digest FROM commits JOIN records"
    " ON records.namespace = commits.namespace AND records.id = commits.file_id"
    " WHERE commits.namespace = ?1 AND commits.name = ?2 AND (commits.id BETWEEN ?3 AND ?4 OR records.digest BETWEEN ?5 AND ?6)"
    " ORDER BY records.kind = 'directory' DESC, commits.number DESC"
)
_LABELS = (
    "SELECT labels.label, labels.kind, commits.id, labels.created_at FROM labels JOIN commits"
    " ON commits.namespace = labels.namespace AND commits.name = labels.name AND commits.number = labels.number"
    " WHERE labels.namespace = ? AND labels.name = ?"
)
# CROSS JOIN keeps this order. SQLite would begin with the labels of all names.
_LABELS_OF_RECORD = (
    "SELECT labels.label FROM commits CROSS JOIN labels"
    " ON labels.namespace = commits.namespace AND labels.name = commits.name AND labels.number = commits.number"
    " WHERE commits.namespace = {} AND commits.file_id = {}"
)

_HEAD_OF_RECORD = (
    "SELECT file_id FROM commits INDEXED BY commits_by_branch WHERE commits.namespace = records.namespace"
    " AND commits.name = records.name AND branch = 'main' ORDER BY number DESC LIMIT 1"
)
_LABELS_OF_EACH = _LABELS_OF_RECORD.format("records.namespace", "records.id")
IS_FREE = f"NOT EXISTS ({_LABELS_OF_EACH}) AND records.id IS NOT ({_HEAD_OF_RECORD})"
"""The condition for records that have no label, and are not what their name means."""


def has_history(connection: sqlite3.Connection) -> bool:
    """Return whether the tables exist. They do not if an earlier version made the index and nobody has written since."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'commits'").fetchone() is not None


def commit_all_records(connection: sqlite3.Connection) -> None:
    """Make a commit for each record, in the order in which they were stored. The tables of the history are empty."""
    # By name, so that no row waits in memory, however many there are.
    statement = "SELECT namespace, name, id, digest, kind, updated_at FROM records ORDER BY namespace, name, position"
    connection.executemany(_INSERT, _first_commits(connection.execute(statement)))


def _first_commits(records: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the commits for records that are ordered by their names."""
    for (namespace, name), versions in groupby(records, itemgetter(0, 1)):
        for number, (_, _, file_id, digest, kind, moment) in enumerate(versions, 1):
            # A damaged record must not stop the migration. `check` reports it.
            digits = digest.hex() if isinstance(digest, bytes) else digest
            values = {"number": number, "digest": digits, "kind": kind, "created_at": moment}
            identity = bytes.fromhex(commit_id(namespace, name, values))
            yield (namespace, name, number, identity, number - 1 or None, MAIN, file_id, "", "", moment)


def insert_commit(connection: sqlite3.Connection, record: Record, now: int, new: NewCommit) -> None:
    """Insert the commit of a record that was just stored, unless the newest commit of the branch stored the same one.

    The same commit of the same parent is made once. Raises HeadMoved, RevisionNotFound.
    """
    namespace, name = record.namespace, record.full_name
    head = _branch_head(connection, namespace, name, new.branch)
    if new.parent is not None and head is not None and _is_made(connection, record, head.number, new):
        return
    check_parent(name, new, head)
    if head is not None and head.file_id == record.id:
        return
    (last,) = connection.execute(
        "SELECT coalesce(max(number), 0) FROM commits WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    number = last + 1
    connection.execute(_INSERT, commit_row(record, now, new, head=head, number=number))
    if new.branch != MAIN:
        moved = (number, namespace, name, new.branch)
        connection.execute("UPDATE labels SET number = ? WHERE namespace = ? AND name = ? AND label = ?", moved)
    _delete_old(connection, namespace, name, number - COMMITS_LIMIT)


def delete_commits_of(connection: sqlite3.Connection, namespace: str, file_id: str) -> None:
    """Delete the commits of a record, and the tags at them. Branches and the commits after them go to those before them."""
    rows = connection.execute("SELECT name, number FROM commits WHERE namespace = ? AND file_id = ?", (namespace, file_id))
    for name, number in rows.fetchall():
        _delete(connection, namespace, name, number)


def select_head(connection: sqlite3.Connection, namespace: str, name: str) -> str | None:
    """Return the id of the record that a name means. None if nobody has stored it."""
    head = _head(connection, namespace, name, MAIN)
    return None if head is None else head.file_id


def select_number(connection: sqlite3.Connection, namespace: str, name: str, revision: str | None) -> int | None:
    """Return the number of the commit that a revision means. Raises InvalidReference if it may mean several versions."""
    back = versions_back(revision)
    if revision is None or is_of_main(revision) or back is not None:
        head = _head(connection, namespace, name, MAIN, back=back or 0)
        return None if head is None else head.number
    label, kind = label_in(revision)
    row = connection.execute(
        "SELECT number FROM labels WHERE namespace = ? AND name = ? AND label = ? AND kind = coalesce(?, kind)",
        (namespace, name, label, kind),
    ).fetchone()
    if row is not None:
        return int(row[0])
    digits = digits_in(revision)
    return None if digits is None else _number_by_digits(connection, namespace, name, digits)


def select_commit(connection: sqlite3.Connection, namespace: str, name: str, revision: str | None) -> Commit | None:
    """Return the commit that a revision means. Raises InvalidReference as `select_number` does."""
    if not has_history(connection):
        return None
    number = select_number(connection, namespace, name, revision)
    return None if number is None else next(_commits(connection, namespace, name, [number]), None)


def select_history(
    connection: sqlite3.Connection, namespace: str, name: str, revision: str | None, *, limit: int, before: int | None
) -> list[Commit] | None:
    """Return the commits from the one of a revision back to the first one, or those of them before the number `before`.

    This costs what it returns, and a step for each commit of another branch than `main` that is passed over. Return None if the
    revision does not exist.
    """
    if not has_history(connection):
        return None
    number = select_number(connection, namespace, name, revision)
    if number is None:
        return None
    stop = number + 1 if before is None else before
    numbers: list[int] = []
    for found, branch in connection.execute(_LINE, (namespace, name, number, stop)):
        if len(numbers) == limit:
            break
        if branch != MAIN:
            numbers.append(found)
        else:
            rest = (namespace, name, min(found + 1, stop), limit - len(numbers))
            numbers += [place for (place,) in connection.execute(_MAIN_LINE, rest)]
    return list(_commits(connection, namespace, name, numbers))


def select_labels(connection: sqlite3.Connection, namespace: str, name: str) -> list[Label]:
    """Return the labels of a name, in the order of their texts."""
    if not has_history(connection):
        return []
    rows = connection.execute(f"{_LABELS} ORDER BY labels.label", (namespace, name))
    return [parsed(connection, label_of, row) for row in rows]


def select_labels_of_record(connection: sqlite3.Connection, namespace: str, file_id: str) -> list[str]:
    """Return the labels at the commits of a record."""
    if not has_history(connection):
        return []
    rows = connection.execute(f"{_LABELS_OF_RECORD.format('?', '?')} ORDER BY labels.label", (namespace, file_id))
    return [str(label) for (label,) in rows]


def replace_label(connection: sqlite3.Connection, namespace: str, name: str, label: Label, *, force: bool = False) -> Label:
    """Set a label. Raises RevisionNotFound if its commit does not exist, LabelExists, LimitExceeded."""
    row = connection.execute(
        "SELECT number FROM commits WHERE namespace = ? AND name = ? AND id = ?",
        (namespace, name, bytes.fromhex(label.commit_id)),
    ).fetchone()
    if row is None:
        raise RevisionNotFound(name, label.commit_id)
    found = connection.execute(f"{_LABELS} AND labels.label = ?", (namespace, name, label.name)).fetchone()
    if found is not None:
        kept = parsed(connection, label_of, found)
        if is_kept(name, kept, label, force=force):
            return kept
    else:
        (count,) = connection.execute(
            "SELECT count(*) FROM labels WHERE namespace = ? AND name = ?", (namespace, name)
        ).fetchone()
        check_label_count(name, count)
    connection.execute(
        "INSERT OR REPLACE INTO labels (namespace, name, label, kind, number, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (namespace, name, label.name, label.kind.value, row[0], label.created_at),
    )
    return label


def delete_label(connection: sqlite3.Connection, namespace: str, name: str, label: str) -> Label | None:
    """Delete a label, and return it. Return None if it does not exist."""
    found = connection.execute(f"{_LABELS} AND labels.label = ?", (namespace, name, label)).fetchone()
    connection.execute("DELETE FROM labels WHERE namespace = ? AND name = ? AND label = ?", (namespace, name, label))
    return None if found is None else parsed(connection, label_of, found)


def claim_owner(connection: sqlite3.Connection, owner: str, namespace: str, now: int) -> None:
    """Give an owner that nobody has to a namespace. Raises OwnerTaken if another one has it, LimitExceeded."""
    found = select_owner_namespace(connection, owner)
    if found is not None:
        if found != namespace:
            raise OwnerTaken(owner)
        return
    (count,) = connection.execute("SELECT count(*) FROM owners WHERE namespace = ?", (namespace,)).fetchone()
    check_owner_count(namespace, count)
    connection.execute(
        "INSERT INTO owners (folded, owner, namespace, created_at) VALUES (?, ?, ?, ?)", (owner.lower(), owner, namespace, now)
    )


def delete_owner(connection: sqlite3.Connection, owner: str) -> bool:
    """Give up an owner. Return whether a namespace had it."""
    return connection.execute("DELETE FROM owners WHERE folded = ?", (owner.lower(),)).rowcount > 0


def delete_owners_of(connection: sqlite3.Connection, namespace: str) -> None:
    """Give up all owners of a namespace."""
    connection.execute("DELETE FROM owners WHERE namespace = ?", (namespace,))


def select_owner_namespace(connection: sqlite3.Connection, owner: str) -> str | None:
    """Return the namespace that an owner belongs to. Return None if nobody has it."""
    if not has_history(connection):
        return None
    row = connection.execute("SELECT namespace FROM owners WHERE folded = ?", (owner.lower(),)).fetchone()
    return None if row is None else str(row[0])


def select_owners(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return each owner and its namespace, in the order of both."""
    if not has_history(connection):
        return []
    return connection.execute("SELECT owner, namespace FROM owners ORDER BY namespace, owner").fetchall()


def _head(connection: sqlite3.Connection, namespace: str, name: str, branch: str, *, back: int = 0) -> Head | None:
    found = connection.execute(_HEAD, (namespace, name, branch, back)).fetchone()
    return None if found is None else Head(*found)


def _branch_head(connection: sqlite3.Connection, namespace: str, name: str, branch: str) -> Head | None:
    """Return the newest commit of a branch, or None if `main` has none. Raises RevisionNotFound if the branch does not exist."""
    if branch == MAIN:
        return _head(connection, namespace, name, MAIN)
    found = connection.execute(
        "SELECT commits.number, commits.file_id, commits.id FROM labels JOIN commits ON commits.namespace = labels.namespace"
        " AND commits.name = labels.name AND commits.number = labels.number"
        " WHERE labels.namespace = ? AND labels.name = ? AND labels.label = ? AND labels.kind = ?",
        (namespace, name, branch, LabelKind.BRANCH.value),
    ).fetchone()
    if found is None:
        raise RevisionNotFound(name, branch)
    return Head(*found)


def _is_made(connection: sqlite3.Connection, record: Record, number: int, new: NewCommit) -> bool:
    """Return whether a commit is the one that a record is stored with, by a caller who got no answer before."""
    made = next(_commits(connection, record.namespace, record.full_name, [number]), None)
    return made is not None and made.file_id == record.id and is_made(made, new)


def _number_by_digits(connection: sqlite3.Connection, namespace: str, name: str, digits: str) -> int | None:
    if len(digits) == 2 * ID_SIZE:
        row = connection.execute(
            "SELECT number FROM commits WHERE namespace = ? AND name = ? AND id = ?", (namespace, name, bytes.fromhex(digits))
        ).fetchone()
        if row is not None:
            return int(row[0])
    ranges = (*id_range(digits), *digest_range(digits))
    return number_by_digits(name, digits, connection.execute(_BY_DIGITS, (namespace, name, *ranges)).fetchall())


def _commits(connection: sqlite3.Connection, namespace: str, name: str, numbers: list[int]) -> Iterator[Commit]:
    for number in numbers:
        row = connection.execute(f"{_COMMITS} AND commits.number = ?", (namespace, name, number)).fetchone()
        if row is not None:
            yield parsed(connection, commit_of, row)


def _delete(connection: sqlite3.Connection, namespace: str, name: str, number: int) -> None:
    place = (namespace, name, number)
    (parent,) = connection.execute("SELECT parent FROM commits WHERE namespace = ? AND name = ? AND number = ?", place).fetchone()
    connection.execute("UPDATE commits SET parent = ? WHERE namespace = ? AND name = ? AND parent = ?", (parent, *place))
    if parent is not None:
        moved = (parent, *place, LabelKind.BRANCH.value)
        connection.execute("UPDATE labels SET number = ? WHERE namespace = ? AND name = ? AND number = ? AND kind = ?", moved)
    connection.execute("DELETE FROM labels WHERE namespace = ? AND name = ? AND number = ?", place)
    connection.execute("DELETE FROM commits WHERE namespace = ? AND name = ? AND number = ?", place)


def _delete_old(connection: sqlite3.Connection, namespace: str, name: str, number: int) -> None:
    """Delete a commit that has no label, and whose record has a newer commit. One name must not fill the index."""
    row = connection.execute(
        "SELECT 1 FROM commits AS old WHERE namespace = ?1 AND name = ?2 AND number = ?3"
        " AND NOT EXISTS (SELECT 1 FROM labels WHERE namespace = ?1 AND name = ?2 AND labels.number = ?3)"
        " AND EXISTS (SELECT 1 FROM commits WHERE namespace = ?1 AND file_id = old.file_id AND number > ?3)",
        (namespace, name, number),
    ).fetchone()
    if row is not None:
        _delete(connection, namespace, name, number)
