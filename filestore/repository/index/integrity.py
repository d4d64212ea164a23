"""Check the file of an index in SQLite, and the values in its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import CHUNK_LIMIT
from filestore.core.names import checked_namespace
from filestore.errors import FilestoreError
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.index.chunks import select_namespaces
from filestore.repository.index.content_digests import select_invalid
from filestore.repository.index.history import has_history
from filestore.repository.index.protocol import TOKEN_ID_LENGTH, IndexProblem
from filestore.repository.index.rows import invalid_reason
from filestore.repository.index.schema import has_version
from filestore.repository.index.tokens import select_invalid_tokens
from filestore.repository.index.usage import count_again, has_table, select_usages

_LIMIT = 100
"""The most problems that are named of each kind."""
_VALID_ROW = (
    f"typeof(digest) = 'blob' AND length(digest) = {DIGEST_SIZE}"
    f" AND typeof(size) = 'integer' AND size BETWEEN 1 AND {CHUNK_LIMIT}"
    f" AND typeof(stored_size) = 'integer' AND stored_size BETWEEN 1 AND {FRAME_LIMIT}"
    " AND typeof(last_seen) = 'integer' AND going IN (0, 1)"
)
_VALID_FRAME_DIGEST = f" AND (frame_digest IS NULL OR (typeof(frame_digest) = 'blob' AND length(frame_digest) = {DIGEST_SIZE}))"
_FOREIGN_ROWS = "SELECT namespace, quote(digest) FROM chunks WHERE NOT ({}) LIMIT ?"
_WITHOUT_COMMIT = (
    "SELECT namespace, name, id FROM records WHERE NOT EXISTS"
    " (SELECT 1 FROM commits WHERE commits.namespace = records.namespace AND commits.file_id = records.id) LIMIT ?"
)
_WITHOUT_RECORD = (
    "SELECT namespace, name, number FROM commits WHERE NOT EXISTS"
    " (SELECT 1 FROM records WHERE records.namespace = commits.namespace AND records.id = commits.file_id) LIMIT ?"
)
_WITHOUT_TARGET = (
    "SELECT namespace, name, label FROM labels WHERE NOT EXISTS (SELECT 1 FROM commits"
    " WHERE commits.namespace = labels.namespace AND commits.name = labels.name AND commits.number = labels.number) LIMIT ?"
)
_RECORDS = "SELECT id, name, digest, size, kind, namespace, created_at, updated_at FROM records"


def find_problems(connection: sqlite3.Connection) -> list[IndexProblem]:
    """Return what is wrong in the index, at most 100 problems of each kind. Reads the whole file."""
    problems: list[IndexProblem] = []
    try:
        for (line,) in connection.execute(f"PRAGMA integrity_check({_LIMIT})"):
            problems += [IndexProblem(None, each) for each in str(line).splitlines() if each != "ok"]
        problems += _namespace_problems(connection)
        problems += _foreign_rows(connection)
        problems += _invalid_records(connection)
        problems += _wrong_counts(connection)
        problems += _history_problems(connection)
        problems += [IndexProblem(*found) for found in select_invalid(connection, _LIMIT)]
        problems += [
            IndexProblem(namespace, f"its token {digest[:TOKEN_ID_LENGTH]} has values that are not valid, so it permits nothing")
            for namespace, digest in select_invalid_tokens(connection, _LIMIT)
        ]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not problems:
            raise
        problems.append(IndexProblem(None, str(error)))
    return problems


def _namespace_problems(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    for namespace in select_namespaces(connection):
        try:
            checked_namespace(namespace)
        except (FilestoreError, TypeError, AttributeError):
            yield IndexProblem(None, f"it has rows of {namespace!r}, which cannot be a namespace")


def _foreign_rows(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    valid = _VALID_ROW + (_VALID_FRAME_DIGEST if has_version(connection, 4) else "")
    for namespace, digest in connection.execute(_FOREIGN_ROWS.format(valid), (_LIMIT,)):
        yield IndexProblem(str(namespace), f"its row of the chunk {digest} has values that no chunk has")


def _invalid_records(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    count = 0
    for row in connection.execute(_RECORDS):
        reason = invalid_reason(row)
        if reason is not None:
            count += 1
            yield IndexProblem(str(row[5]), f"its record {row[0]!r} is not valid ({reason})", is_record=True)
            if count == _LIMIT:
                return


def _history_problems(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    """Look for records, commits and labels that do not belong together."""
    if not has_history(connection):
        return
    for namespace, name, file_id in connection.execute(_WITHOUT_COMMIT, (_LIMIT,)):
        yield IndexProblem(str(namespace), f"its record {file_id!r} of {name!r} has no commit, so only its id finds it")
    for namespace, name, number in connection.execute(_WITHOUT_RECORD, (_LIMIT,)):
        yield IndexProblem(str(namespace), f"the commit {number!r} of {name!r} has no record")
    for namespace, name, label in connection.execute(_WITHOUT_TARGET, (_LIMIT,)):
        yield IndexProblem(str(namespace), f"the label {label!r} of {name!r} has no commit")


def _wrong_counts(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    """Compare the counts of each namespace with its rows, in one transaction."""
    if not has_table(connection):
        return
    connection.execute("BEGIN")
    try:
        kept = {usage.namespace: usage for usage in select_usages(connection) if any(usage[1:])}
        counted = {usage.namespace: usage for usage in count_again(connection)}
    finally:
        connection.execute("ROLLBACK")
    for namespace in sorted(set(kept) | set(counted)):
        if kept.get(namespace) != counted.get(namespace):
            yield IndexProblem(namespace, "what it counts for the quota of the namespace differs from its rows")
