"""The rules of commits, labels and owners, for an index in whatever database. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from filestore.core.commits import MAIN, Commit, Label, LabelKind, NewCommit, commit_id
from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import HeadMoved, InvalidReference, LabelExists, LimitExceeded

OWNERS_LIMIT = 1000
"""The most owners of one namespace."""
LABELS_LIMIT = 1000
"""The most labels of one name."""
ID_SIZE = 20
"""Bytes of the id of a commit."""
LOOKED_AT_LIMIT = 20_000
"""Names that one call for names looks at. If fewer of them match than were asked for, another call goes on after them."""
_OF_MAIN = frozenset({None, MAIN, "HEAD", f"refs/heads/{MAIN}"})


class Head(NamedTuple):
    """The newest commit of a branch."""

    number: int
    file_id: str
    id: bytes


CommitRow = tuple[str, str, int, bytes, int | None, str, str, str, str, int]
"""namespace, name, number, id, number of the parent, branch, file id, message, author, created_at."""


def is_of_main(revision: str | None) -> bool:
    """Return whether a revision means the newest commit of `main`."""
    return revision in _OF_MAIN


def first_name(prefix: str, owner: str | None) -> str | None:
    """Return how all names begin that have a prefix and an owner. None if no name has both."""
    shorter, longer = sorted((prefix, "" if owner is None else f"{owner}/"), key=len)
    return longer if longer.startswith(shorter) else None


def check_parent(name: str, new: NewCommit, head: Head | None) -> None:
    """Raise HeadMoved if a new commit names another parent than the newest commit of its branch."""
    known = _id_of(head)
    if new.parent not in {None, known}:
        raise HeadMoved(name, new.branch, new.parent or "none", known or "none")


def is_made(made: Commit, new: NewCommit) -> bool:
    """Return whether a commit of a record says what `new` says. Then a caller who got no answer stores the record again."""
    return NewCommit(made.message, made.author, made.branch, made.parent or "") == new


def commit_row(record: Record, now: int, new: NewCommit, *, head: Head | None, number: int) -> CommitRow:
    """Return the row of a new commit after `head`."""
    namespace, name = record.namespace, record.full_name
    values: dict[str, str | int | None] = {
        "number": number,
        "parent": _id_of(head),
        "branch": new.branch,
        "digest": str(record.digest),
        "kind": record.kind.value,
        "message": new.message,
        "author": new.author,
        "created_at": now,
    }
    identity = bytes.fromhex(commit_id(namespace, name, values))
    before = None if head is None else head.number
    return (namespace, name, number, identity, before, new.branch, record.id, new.message, new.author, now)


def label_in(revision: str) -> tuple[str, str | None]:
    """Return the label that a revision may be, and of which kind it must be then. None means either kind."""
    for place, kind in (("refs/heads/", LabelKind.BRANCH), ("refs/tags/", LabelKind.TAG)):
        if revision.startswith(place):
            return revision.removeprefix(place), kind.value
    return revision, None


def digest_range(digits: str) -> tuple[Digest, Digest]:
    """Return the first and the last digest that begins with `digits`."""
    first, last = (Digest.parse(digits.ljust(2 * DIGEST_SIZE, digit)) for digit in "0f")
    return first, last


def id_range(digits: str) -> tuple[bytes, bytes]:
    """Return the first and the last id of a commit that begins with `digits`."""
    if len(digits) > 2 * ID_SIZE:
        # An id is shorter than a digest, so no id has all of more digits.
        return b"\xff", b""
    first, last = (bytes.fromhex(digits.ljust(2 * ID_SIZE, digit)) for digit in "0f")
    return first, last


def number_by_digits(name: str, digits: str, found: Sequence[tuple[int, bytes]]) -> int | None:
    """Return the first number of `found`, each with its digest. Raises InvalidReference if the digests differ."""
    if len({digest for _, digest in found}) > 1:
        raise several_versions(Reference.of_name(name, digits))
    return int(found[0][0]) if found else None


def several_versions(reference: Reference) -> InvalidReference:
    """Return the error for digits with which the digests of several versions begin."""
    return InvalidReference(str(reference), "the digests of several versions begin with these digits; give more of them")


def is_kept(name: str, kept: Label, label: Label, *, force: bool) -> bool:
    """Return whether `label` is there already as `kept`. Raises LabelExists if it is another one, unless `force` is set."""
    if kept._replace(created_at=0) == label._replace(created_at=0):
        return True
    if not force:
        raise LabelExists(name, label.name, kept.commit_id)
    return False


def check_label_count(name: str, count: int) -> None:
    """Raise LimitExceeded if a name with `count` labels can have no more."""
    if count >= LABELS_LIMIT:
        raise LimitExceeded(f"the number of labels of {name!r}", count + 1, LABELS_LIMIT)


def check_owner_count(namespace: str, count: int) -> None:
    """Raise LimitExceeded if a namespace with `count` owners can have no more."""
    if count >= OWNERS_LIMIT:
        raise LimitExceeded(f"the number of owners of the namespace {namespace}", count + 1, OWNERS_LIMIT)


def _id_of(head: Head | None) -> str:
    return "" if head is None else head.id.hex()
