"""Check the file of an index in SQLite, and the values in its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import CHUNK_LIMIT
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.index import problems
from filestore.repository.index.chunks import select_namespaces
from filestore.repository.index.content_digests import select_invalid
from filestore.repository.index.history import has_history
from filestore.repository.index.protocol import IndexProblem
from filestore.repository.index.schema import has_version
from filestore.repository.index.tokens import select_invalid_tokens
from filestore.repository.index.usage import count_again, has_table, select_usages

_VALID_ROW = (
    f"typeof(digest) = 'blob' AND length(digest) = {DIGEST_SIZE}"
    f" AND typeof(size) = 'integer' AND size BETWEEN 1 AND {CHUNK_LIMIT}"
    f" AND typeof(stored_size) = 'integer' AND stored_size BETWEEN 1 AND {FRAME_LIMIT}"
    " AND typeof(last_seen) = 'integer' AND going IN (0, 1)"
)
_VALID_FRAME_DIGEST = f" AND (frame_digest IS NULL OR (typeof(frame_digest) = 'blob' AND length(frame_digest) = {DIGEST_SIZE}))"
_FOREIGN_ROWS = "SELECT namespace, quote(digest) FROM chunks WHERE NOT ({}) LIMIT ?"
_RECORDS = "SELECT id, name, digest, size, kind, namespace, created_at, updated_at FROM records"


def find_problems(connection: sqlite3.Connection) -> list[IndexProblem]:
    """Return what is wrong in the index, at most 100 problems of each kind. Reads the whole file."""
    found: list[IndexProblem] = []
    try:
        for (line,) in connection.execute(f"PRAGMA integrity_check({problems.LIMIT})"):
            found += [IndexProblem(None, each) for each in str(line).splitlines() if each != "ok"]
        found += problems.of_namespaces(select_namespaces(connection))
        found += _foreign_rows(connection)
        found += _invalid_records(connection)
        found += _wrong_counts(connection)
        found += _history_problems(connection)
        found += [IndexProblem(*each) for each in select_invalid(connection, problems.LIMIT)]
        found += [problems.of_token(*token) for token in select_invalid_tokens(connection, problems.LIMIT)]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not found:
            raise
        found.append(IndexProblem(None, str(error)))
    return found


def _foreign_rows(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    valid = _VALID_ROW + (_VALID_FRAME_DIGEST if has_version(connection, 4) else "")
    for row in connection.execute(_FOREIGN_ROWS.format(valid), (problems.LIMIT,)):
        yield problems.of_chunk(*row)


def _invalid_records(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    found = filter(None, map(problems.of_record, connection.execute(_RECORDS)))
    return islice(found, problems.LIMIT)


def _history_problems(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    """Look for records, commits and labels that do not belong together."""
    if has_history(connection):
        yield from problems.without_commit(_some(connection, problems.WITHOUT_COMMIT))
        yield from problems.without_record(_some(connection, problems.WITHOUT_RECORD))
        yield from problems.without_target(_some(connection, problems.WITHOUT_TARGET))


def _some(connection: sqlite3.Connection, statement: str) -> sqlite3.Cursor:
    return connection.execute(f"{statement} LIMIT {problems.LIMIT}")


def _wrong_counts(connection: sqlite3.Connection) -> Iterator[IndexProblem]:
    """Compare the counts of each namespace with its rows, in one transaction."""
    if not has_table(connection):
        return
    connection.execute("BEGIN")
    try:
        kept, counted = select_usages(connection), count_again(connection)
    finally:
        connection.execute("ROLLBACK")
    yield from problems.of_counts(kept, counted)
