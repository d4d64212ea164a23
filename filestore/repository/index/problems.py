"""What can be wrong with the rows of an index, in whatever database. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from filestore.core.names import checked_namespace
from filestore.errors import FilestoreError
from filestore.repository.index.protocol import TOKEN_ID_LENGTH, IndexProblem, NamespaceUsage
from filestore.repository.index.rows import Row, invalid_reason

LIMIT = 100
"""The most problems that are named of each kind."""
WITHOUT_COMMIT = (
    "SELECT namespace, name, id FROM records WHERE NOT EXISTS"
    " (SELECT 1 FROM commits WHERE commits.namespace = records.namespace AND commits.file_id = records.id)"
)
"""The rows for `without_commit`."""
WITHOUT_RECORD = (
    "SELECT namespace, name, number FROM commits WHERE NOT EXISTS"
    " (SELECT 1 FROM records WHERE records.namespace = commits.namespace AND records.id = commits.file_id)"
)
"""The rows for `without_record`."""
WITHOUT_TARGET = (
    "SELECT namespace, name, label FROM labels WHERE NOT EXISTS (SELECT 1 FROM commits"
    " WHERE commits.namespace = labels.namespace AND commits.name = labels.name AND commits.number = labels.number)"
)
"""The rows for `without_target`."""


def of_namespaces(namespaces: Iterable[str]) -> Iterator[IndexProblem]:
    """Yield a problem for each text that cannot be a namespace."""
    for namespace in namespaces:
        try:
            checked_namespace(namespace)
        except (FilestoreError, TypeError, AttributeError):
            yield IndexProblem(None, f"it has rows of {namespace!r}, which cannot be a namespace")


def of_chunk(namespace: object, digest: str) -> IndexProblem:
    """Return the problem of a row of a chunk that is not valid."""
    return IndexProblem(str(namespace), f"its row of the chunk {digest} has values that no chunk has")


def of_record(row: Row) -> IndexProblem | None:
    """Return the problem of a row of a record, see `rows.record_of`. None if it is valid."""
    reason = invalid_reason(row)
    return None if reason is None else IndexProblem(str(row[5]), f"its record {row[0]!r} is not valid ({reason})", is_record=True)


def without_commit(rows: Iterable[Row]) -> Iterator[IndexProblem]:
    """Yield a problem for each record that has no commit."""
    for namespace, name, file_id in rows:
        yield IndexProblem(str(namespace), f"its record {file_id!r} of {name!r} has no commit, so only its id finds it")


def without_record(rows: Iterable[Row]) -> Iterator[IndexProblem]:
    """Yield a problem for each commit whose record does not exist."""
    for namespace, name, number in rows:
        yield IndexProblem(str(namespace), f"the commit {number!r} of {name!r} has no record")


def without_target(rows: Iterable[Row]) -> Iterator[IndexProblem]:
    """Yield a problem for each label whose commit does not exist."""
    for namespace, name, label in rows:
        yield IndexProblem(str(namespace), f"the label {label!r} of {name!r} has no commit")


def of_counts(kept: Iterable[NamespaceUsage], counted: Iterable[NamespaceUsage]) -> Iterator[IndexProblem]:
    """Yield a problem for each namespace for which the index counts something else than its rows."""
    by_name = {usage.namespace: usage for usage in kept if any(usage[1:])}
    expected = {usage.namespace: usage for usage in counted}
    for namespace in sorted(set(by_name) | set(expected)):
        if by_name.get(namespace) != expected.get(namespace):
            yield IndexProblem(namespace, "what it counts for the quota of the namespace differs from its rows")


def of_token(namespace: str, digest: str) -> IndexProblem:
    """Return the problem of a row of a token that is not valid. `digest` is the token's, in hexadecimal digits."""
    reason = f"its token {digest[:TOKEN_ID_LENGTH]} has values that are not valid, so it permits nothing"
    return IndexProblem(namespace, reason)
