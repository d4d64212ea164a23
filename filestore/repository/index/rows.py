"""Rows of an index, of whatever database, as values.

They are checked because the index may belong to another user, and names become parts of paths (I4).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from filestore.core.commits import Commit, Label, LabelKind, checked_commit, checked_stored_label
from filestore.core.digest import Digest
from filestore.core.names import split_full_name
from filestore.core.records import Kind, Record, checked_record
from filestore.errors import FilestoreError
from filestore.repository.index.protocol import ContentDigests

T = TypeVar("T")
Row = tuple[Any, ...]


class DamagedRow(Exception):
    """A row has values that are not valid. An index raises it as StorageError with its place."""


def record_of(row: Row) -> Record:
    """Convert a row of records. Its columns: id, name, digest, size, kind, namespace, created_at, updated_at.

    Raises DamagedRow.
    """
    return _checked(_record, row, what="record", which=0)


def invalid_reason(row: Row) -> str | None:
    """Return why a row of records is not valid, or None if it is."""
    try:
        _record(row)
    except (TypeError, ValueError, AttributeError, FilestoreError) as error:
        return str(error)
    return None


def commit_of(row: Row) -> Commit:
    """Convert a row of commits. Its columns are the fields of Commit, with both ids as bytes. Raises DamagedRow."""
    return _checked(_commit, row, what="commit", which=1)


def label_of(row: Row) -> Label:
    """Convert a row of labels. Its columns: label, kind, the id of the commit as bytes, created_at. Raises DamagedRow."""
    return _checked(_label, row, what="label", which=0)


def content_of(row: Row) -> ContentDigests:
    """Convert a row of secondary digests. Its columns: digest, size, sha256, blob_id, source, start."""
    digest, size, sha256, blob_id, source, start = row
    return ContentDigests(Digest(digest), int(size), bytes(sha256), bytes(blob_id), Digest(source), int(start))


def _checked(convert: Callable[[Row], T], row: Row, *, what: str, which: int) -> T:
    try:
        return convert(row)
    except (TypeError, ValueError, AttributeError, FilestoreError) as error:
        raise DamagedRow(f"its {what} {row[which]!r} is not valid ({error})") from None


def new_record(namespace: str, *, name: str, digest: Digest, size: int, kind: Kind) -> Record:
    """Return a record with a new id. Its times are set when it is stored. `name` may have an owner."""
    owner, name = split_full_name(name)
    return Record(
        id=f"file_{secrets.token_hex(16)}",
        owner=owner,
        name=name,
        digest=digest,
        size=size,
        kind=kind,
        namespace=namespace,
        created_at=0,
        updated_at=0,
    )


def _record(row: Row) -> Record:
    file_id, name, digest, size, kind, namespace, created_at, updated_at = row
    owner, name = split_full_name(name)
    return checked_record(
        Record(
            id=file_id,
            name=name,
            digest=Digest(digest),
            size=size,
            kind=Kind(kind),
            namespace=namespace,
            created_at=created_at,
            updated_at=updated_at,
            owner=owner,
        )
    )


def _commit(row: Row) -> Commit:
    identity, number, parent, branch, file_id, digest, size, kind, message, author, created_at = row
    return checked_commit(
        Commit(
            id=identity.hex(),
            number=number,
            parent=None if parent is None else parent.hex(),
            branch=branch,
            file_id=file_id,
            digest=Digest(digest),
            size=size,
            kind=Kind(kind),
            message=message,
            author=author,
            created_at=created_at,
        )
    )


def _label(row: Row) -> Label:
    label, kind, target, created_at = row
    return checked_stored_label(Label(label, LabelKind(kind), target.hex(), created_at))
