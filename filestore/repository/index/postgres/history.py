"""Commits, labels and owners in an index in PostgreSQL. A name is a full one here: with its owner, if it has one.

A function that writes needs a transaction that excludes other writers of the namespace.
"""

from __future__ import annotations

from collections.abc import Sequence

from filestore.core.commits import COMMITS_LIMIT, MAIN, Commit, Label, LabelKind, NewCommit
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
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.texts import findable
from filestore.repository.index.rows import commit_of, label_of

_INSERT = (
    "INSERT INTO commits (namespace, name, number, id, parent, branch, file_id, message, author, created_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
)
_HEAD = (
    "SELECT number, file_id, id FROM commits WHERE namespace = $1 AND name = $2 AND branch = $3"
    " ORDER BY number DESC LIMIT 1 OFFSET $4"
)
_HEAD_OF_BRANCH = (
    "SELECT commits.number, commits.file_id, commits.id FROM labels JOIN commits ON commits.namespace = labels.namespace"
    " AND commits.name = labels.name AND commits.number = labels.number"
    " WHERE labels.namespace = $1 AND labels.name = $2 AND labels.label = $3 AND labels.kind = $4"
)
# Subqueries with LIMIT: without statistics of a new table, PostgreSQL would join all commits of a name with all of them.
COMMIT_COLUMNS = (
    "commits.id, commits.number, (SELECT before.id FROM commits AS before WHERE before.namespace = commits.namespace"
    " AND before.name = commits.name AND before.number = commits.parent LIMIT 1), commits.branch, commits.file_id,"
    " records.digest, records.size, records.kind, commits.message, commits.author, commits.created_at"
)
"""What `commit_of` takes."""
COMMIT_JOINS = "JOIN records ON records.namespace = commits.namespace AND records.id = commits.file_id"
"""What gives these columns, after `commits`."""
_COMMIT = (
    f"SELECT {COMMIT_COLUMNS} FROM commits {COMMIT_JOINS}"
    " WHERE commits.namespace = $1 AND commits.name = $2 AND commits.number = $3"
)
_NUMBER_BY_ID = "SELECT number FROM commits WHERE namespace = $1 AND name = $2 AND id = $3"
# Up to the first commit on `main`. A parent has a smaller number: without this condition, a damaged index could lead around in a
# circle. Each commit on `main` follows the one before it on `main`, so no other one is between them.
_LINE = f"""
    WITH RECURSIVE line (number, parent, branch) AS (
        SELECT number, parent, branch FROM commits WHERE namespace = $1 AND name = $2 AND number = $3
        UNION ALL SELECT before.* FROM line CROSS JOIN LATERAL (
            SELECT number, parent, branch FROM commits
            WHERE namespace = $1 AND name = $2 AND number = line.parent AND number < line.number LIMIT 1
        ) AS before WHERE line.branch <> 'main'
    ), page AS (
        SELECT number FROM line WHERE number < $4
        UNION ALL (
            SELECT number FROM commits WHERE namespace = $1 AND name = $2 AND branch = 'main' AND number < $4
            AND number < (SELECT number FROM line WHERE branch = 'main') ORDER BY number DESC LIMIT $5
        ) LIMIT $5
    )
    SELECT {COMMIT_COLUMNS} FROM page CROSS JOIN LATERAL (
        SELECT * FROM commits WHERE namespace = $1 AND name = $2 AND number = page.number LIMIT 1
    ) AS commits {COMMIT_JOINS} ORDER BY commits.number DESC
"""
_BY_DIGITS = (
    "SELECT commits.number, records.digest FROM commits JOIN records"
    " ON records.namespace = commits.namespace AND records.id = commits.file_id"
    " WHERE commits.namespace = $1 AND commits.name = $2"
    " AND (commits.id BETWEEN $3 AND $4 OR records.digest BETWEEN $5 AND $6)"
    " ORDER BY records.kind = 'directory' DESC, commits.number DESC"
)
_LABELS = (
    "SELECT labels.label, labels.kind, commits.id, labels.created_at FROM labels JOIN commits"
    " ON commits.namespace = labels.namespace AND commits.name = labels.name AND commits.number = labels.number"
    " WHERE labels.namespace = $1 AND labels.name = $2"
)
_LABELS_OF_RECORD = (
    "SELECT labels.label FROM commits JOIN labels"
    " ON labels.namespace = commits.namespace AND labels.name = commits.name AND labels.number = commits.number"
    " WHERE commits.namespace = $1 AND commits.file_id = $2 ORDER BY labels.label"
)
_HEAD_OF_RECORD = (
    "SELECT file_id FROM commits WHERE commits.namespace = records.namespace AND commits.name = records.name"
    " AND branch = 'main' ORDER BY number DESC LIMIT 1"
)
_IS_LABELLED = (
    "EXISTS (SELECT 1 FROM commits WHERE commits.namespace = records.namespace AND commits.file_id = records.id"
    " AND EXISTS (SELECT 1 FROM labels WHERE labels.namespace = commits.namespace AND labels.name = commits.name"
    " AND labels.number = commits.number OFFSET 0) OFFSET 0)"
)
IS_FREE = f"NOT {_IS_LABELLED} AND records.id IS DISTINCT FROM ({_HEAD_OF_RECORD})"
"""The condition for records that have no label, and are not what their name means."""
_OLD = (
    "SELECT namespace, name, number, parent FROM commits AS old WHERE namespace = $1 AND name = $2 AND number = $3"
    " AND NOT EXISTS (SELECT 1 FROM labels WHERE namespace = $1 AND name = $2 AND labels.number = $3)"
    " AND EXISTS (SELECT 1 FROM commits WHERE namespace = $1 AND file_id = old.file_id AND number > $3)"
)
_MOVE_BRANCHES = (
    "UPDATE labels SET number = $4 WHERE namespace = $1 AND name = $2 AND number = $3"
    " AND kind = 'branch' AND $4::bigint IS NOT NULL"
)
_DELETE_LABELS = "DELETE FROM labels WHERE namespace = $1 AND name = $2 AND number = $3"
_DELETE_COMMIT = "DELETE FROM commits WHERE namespace = $1 AND name = $2 AND number = $3"
_MOVE_CHILDREN = "UPDATE commits SET parent = $4 WHERE namespace = $1 AND name = $2 AND parent = $3"
_REPLACE_LABEL = (
    "INSERT INTO labels (namespace, name, label, kind, number, created_at) VALUES ($1, $2, $3, $4, $5, $6)"
    " ON CONFLICT (namespace, name, label)"
    " DO UPDATE SET kind = excluded.kind, number = excluded.number, created_at = excluded.created_at"
)
_CLAIM = (
    "INSERT INTO owners (folded, owner, namespace, created_at) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (folded) DO NOTHING RETURNING 1"
)
_LAST_NUMBER = (1 << 63) - 1


async def insert_commit(connection: Connection, record: Record, now: int, new: NewCommit) -> None:
    """Insert the commit of a record that was just stored, unless the newest commit of the branch stored the same one.

    The same commit of the same parent is made once. Raises HeadMoved, RevisionNotFound.
    """
    namespace, name = record.namespace, record.full_name
    head = await _branch_head(connection, namespace, name, new.branch)
    if new.parent is not None and head is not None and head.file_id == record.id:
        row = await connection.fetchrow(_COMMIT, namespace, name, head.number)
        if row is not None and is_made(commit_of(tuple(row)), new):
            return
    check_parent(name, new, head)
    if head is not None and head.file_id == record.id:
        return
    last = await connection.fetchval("SELECT max(number) FROM commits WHERE namespace = $1 AND name = $2", namespace, name)
    number = (last or 0) + 1
    await connection.execute(_INSERT, *commit_row(record, now, new, head=head, number=number))
    if new.branch != MAIN:
        statement = "UPDATE labels SET number = $1 WHERE namespace = $2 AND name = $3 AND label = $4"
        await connection.execute(statement, number, namespace, name, new.branch)
    if number > COMMITS_LIMIT:
        # One that has no label, and whose record has a newer commit. One name must not fill the index.
        await _delete(connection, await connection.fetch(_OLD, namespace, name, number - COMMITS_LIMIT))


async def delete_commits_of(connection: Connection, namespace: str, file_id: str) -> None:
    """Delete the commits of a record, and the tags at them. Branches and the commits after them go to those before them."""
    statement = "SELECT name, number, parent FROM commits WHERE namespace = $1 AND file_id = $2 ORDER BY name, number"
    before: dict[tuple[str, int], int | None] = {}
    for name, number, parent in await connection.fetch(statement, namespace, file_id):
        # The one before it may be deleted too.
        before[name, number] = before.get((name, parent), parent)
    await _delete(connection, [(namespace, *place, parent) for place, parent in before.items()])


async def select_number(connection: Connection, namespace: str, name: str, revision: str | None) -> int | None:
    """Return the number of the commit that a revision means. Raises InvalidReference if it may mean several versions."""
    name, back = findable(name), versions_back(revision)
    if revision is None or is_of_main(revision) or back is not None:
        head = await _head(connection, namespace, name, back=back or 0)
        return None if head is None else head.number
    label, kind = label_in(revision)
    number: int | None = await connection.fetchval(
        "SELECT number FROM labels WHERE namespace = $1 AND name = $2 AND label = $3 AND kind = coalesce($4, kind)",
        namespace,
        name,
        findable(label),
        kind,
    )
    digits = digits_in(revision)
    if number is None and digits is not None:
        return await _number_by_digits(connection, namespace, name, digits)
    return number


async def select_commit(connection: Connection, namespace: str, name: str, revision: str | None) -> Commit | None:
    """Return the commit that a revision means. Raises InvalidReference as `select_number` does."""
    number = await select_number(connection, namespace, name, revision)
    row = None if number is None else await connection.fetchrow(_COMMIT, namespace, name, number)
    return None if row is None else commit_of(tuple(row))


async def select_history(
    connection: Connection, namespace: str, name: str, revision: str | None, *, limit: int, before: int | None
) -> list[Commit] | None:
    """Return the commits from the one of a revision back to the first one, or those of them before the number `before`.

    This costs what it returns, and a step for each commit of another branch than `main` that is passed over. Return None if the
    revision does not exist.
    """
    number = await select_number(connection, namespace, name, revision)
    if number is None:
        return None
    rows = await connection.fetch(_LINE, namespace, name, number, _LAST_NUMBER if before is None else before, limit)
    return [commit_of(tuple(row)) for row in rows]


async def select_labels(connection: Connection, namespace: str, name: str) -> list[Label]:
    """Return the labels of a name, in the order of their texts."""
    rows = await connection.fetch(f"{_LABELS} ORDER BY labels.label", namespace, findable(name))
    return [label_of(tuple(row)) for row in rows]


async def select_labels_of_record(connection: Connection, namespace: str, file_id: str) -> list[str]:
    """Return the labels at the commits of a record."""
    return [label for (label,) in await connection.fetch(_LABELS_OF_RECORD, namespace, file_id)]


async def replace_label(connection: Connection, namespace: str, name: str, label: Label, *, force: bool = False) -> Label:
    """Set a label. Raises RevisionNotFound if its commit does not exist, LabelExists, LimitExceeded."""
    number = await connection.fetchval(_NUMBER_BY_ID, namespace, name, bytes.fromhex(label.commit_id))
    if number is None:
        raise RevisionNotFound(name, label.commit_id)
    kept = await _label(connection, namespace, name, label.name)
    if kept is None:
        statement = "SELECT count(*) FROM labels WHERE namespace = $1 AND name = $2"
        check_label_count(name, await connection.fetchval(statement, namespace, name))
    elif is_kept(name, kept, label, force=force):
        return kept
    await connection.execute(_REPLACE_LABEL, namespace, name, label.name, label.kind.value, number, label.created_at)
    return label


async def delete_label(connection: Connection, namespace: str, name: str, label: str) -> Label | None:
    """Delete a label, and return it. Return None if it does not exist."""
    found = await _label(connection, namespace, name, label)
    statement = "DELETE FROM labels WHERE namespace = $1 AND name = $2 AND label = $3"
    await connection.execute(statement, namespace, findable(name), findable(label))
    return found


async def claim_owner(connection: Connection, owner: str, namespace: str, now: int) -> None:
    """Give an owner that nobody has to a namespace. Raises OwnerTaken if another one has it, LimitExceeded.

    Another namespace may do the same at once: the second one waits for the end of the first one's transaction. So a transaction
    that claims two owners could deadlock.
    """
    is_new = False
    while not is_new:
        found = await select_owner_namespace(connection, owner)
        if found is not None:
            if found != namespace:
                raise OwnerTaken(owner)
            return
        check_owner_count(namespace, await connection.fetchval("SELECT count(*) FROM owners WHERE namespace = $1", namespace))
        is_new = await connection.fetchval(_CLAIM, owner.lower(), owner, namespace, now) is not None


async def delete_owner(connection: Connection, owner: str) -> bool:
    """Give up an owner. Return whether a namespace had it."""
    return await connection.fetchval("DELETE FROM owners WHERE folded = $1 RETURNING 1", findable(owner.lower())) is not None


async def delete_owners_of(connection: Connection, namespace: str) -> None:
    """Give up all owners of a namespace."""
    await connection.execute("DELETE FROM owners WHERE namespace = $1", namespace)


async def select_owner_namespace(connection: Connection, owner: str) -> str | None:
    """Return the namespace that an owner belongs to. Return None if nobody has it."""
    found: str | None = await connection.fetchval("SELECT namespace FROM owners WHERE folded = $1", findable(owner.lower()))
    return found


async def select_owners(connection: Connection) -> list[tuple[str, str]]:
    """Return each owner and its namespace, in the order of both."""
    rows = await connection.fetch("SELECT owner, namespace FROM owners ORDER BY namespace, owner")
    return [(owner, namespace) for owner, namespace in rows]


async def _head(connection: Connection, namespace: str, name: str, *, back: int = 0) -> Head | None:
    row = await connection.fetchrow(_HEAD, namespace, name, MAIN, back)
    return None if row is None else Head(*row)


async def _branch_head(connection: Connection, namespace: str, name: str, branch: str) -> Head | None:
    """Return the newest commit of a branch, or None if `main` has none. Raises RevisionNotFound if the branch does not exist."""
    if branch == MAIN:
        return await _head(connection, namespace, name)
    row = await connection.fetchrow(_HEAD_OF_BRANCH, namespace, name, branch, LabelKind.BRANCH.value)
    if row is None:
        raise RevisionNotFound(name, branch)
    return Head(*row)


async def _number_by_digits(connection: Connection, namespace: str, name: str, digits: str) -> int | None:
    if len(digits) == 2 * ID_SIZE:
        number: int | None = await connection.fetchval(_NUMBER_BY_ID, namespace, name, bytes.fromhex(digits))
        if number is not None:
            return number
    rows = await connection.fetch(_BY_DIGITS, namespace, name, *id_range(digits), *digest_range(digits))
    return number_by_digits(name, digits, [tuple(row) for row in rows])


async def _label(connection: Connection, namespace: str, name: str, label: str) -> Label | None:
    row = await connection.fetchrow(f"{_LABELS} AND labels.label = $3", namespace, findable(name), findable(label))
    return None if row is None else label_of(tuple(row))


async def _delete(connection: Connection, gone: Sequence[tuple[str, str, int, int | None]]) -> None:
    """Delete commits. Each comes with its namespace, its name, and the number of the commit that takes its place as a parent."""
    places = [place for *place, _ in gone]
    # One look-up for each commit, sent together: joined with thousands, all commits of the name could be read for each one.
    await connection.executemany(_MOVE_BRANCHES, gone)
    await connection.executemany(_DELETE_LABELS, places)
    await connection.executemany(_DELETE_COMMIT, places)
    await connection.executemany(_MOVE_CHILDREN, gone)
