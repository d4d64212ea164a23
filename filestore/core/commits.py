"""Commits and labels: the history of a name. Each version that is stored under a name is a commit; a label names one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from blake3 import blake3

from filestore.core.digest import Digest
from filestore.core.names import NAME_LIMIT
from filestore.core.records import FILE_ID_PATTERN, Kind
from filestore.core.timestamps import LAST_MOMENT, format_timestamp, parse_timestamp
from filestore.errors import InvalidInput

MAIN = "main"
"""The branch whose newest commit a name without a revision means. It needs no label, and is never removed."""
MESSAGE_LIMIT = 2048
"""Bytes of the longest message of a commit."""
AUTHOR_LIMIT = 255
"""Bytes of the author of a commit."""
COMMITS_LIMIT = 10_000
"""The number of commits of a name that are kept. An older one goes, if the same content has a newer commit and no label."""

COMMIT_ATTEMPTS = 3
"""How often a transfer commits, if chunks that it needs were removed meanwhile or somebody else commits at the same time."""

COMMIT_ID_PATTERN = re.compile(r"[0-9a-f]{40}\Z")
_HEX = re.compile(r"[0-9a-f]{7,64}\Z")
_LABEL = re.compile(r"(?!.*(?:\.\.|//|/\.|\./))[A-Za-z0-9_](?:[A-Za-z0-9._+/-]*[A-Za-z0-9_+-])?\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class LabelKind(StrEnum):
    """What a label is: `TAG` stays at its commit, and `BRANCH` moves with each commit that is made on it."""

    TAG = "tag"
    BRANCH = "branch"


class Commit(NamedTuple):
    """One version of a name in its history.

    id: 40 hexadecimal digits.
    number: A later commit of the same name has a larger number.
    parent: The id of the commit before it. None for the first one.
    branch: The branch on which it was made.
    file_id: The id of the record that it stored. Several commits may have stored the same record.
    digest: The digest of the content.
    size: The size of the content in bytes.
    kind: Whether a file or a directory was stored.
    message: What its author said about it.
    author: The label of the token, or for a folder the name of a user.
    created_at: In microseconds since 1970 in UTC.
    """

    id: str
    number: int
    parent: str | None
    branch: str
    file_id: str
    digest: Digest
    size: int
    kind: Kind
    message: str
    author: str
    created_at: int

    def as_json(self) -> dict[str, str | int | None]:
        """Return the form in which commits are sent and printed. `commit_from_json` is the inverse."""
        values = self._asdict() | {"digest": str(self.digest), "kind": self.kind.value}
        return values | {"created_at": format_timestamp(self.created_at)}


class NewCommit(NamedTuple):
    """What a commit says that is made when a record is stored."""

    message: str = ""
    author: str = ""
    branch: str = MAIN
    parent: str | None = None
    """The id of the commit that must be the newest of the branch. An empty text means that there must be none.

    While the commit that was made for it is the newest one, the same may be asked again, because an answer may be lost.
    """


PLAIN_COMMIT = NewCommit()


class Label(NamedTuple):
    """A further name of a commit.

    name: What a reference has after its `@`.
    kind: Whether it is a tag or a branch.
    commit_id: The id of the commit.
    created_at: When it was set, in microseconds since 1970 in UTC.
    """

    name: str
    kind: LabelKind
    commit_id: str
    created_at: int

    def as_json(self) -> dict[str, str]:
        """Return the form in which labels are sent and printed. `label_from_json` is the inverse."""
        created_at = format_timestamp(self.created_at)
        return {"name": self.name, "kind": self.kind.value, "commit_id": self.commit_id, "created_at": created_at}


def commit_id(namespace: str, name: str, values: Mapping[str, str | int | None]) -> str:
    """Return the id of a commit: the first 40 digits of the BLAKE3 of what it says."""
    text = json.dumps({"namespace": namespace, "name": name, **values}, sort_keys=True, default=repr)
    return blake3(text.encode()).hexdigest()[:40]


def checked_label(name: str, *, what: str = "label") -> str:
    """Return `name` if a tag or a branch can have it. Raises InvalidInput otherwise."""
    reason = None
    if not _LABEL.match(name) or name.endswith(".lock"):
        reason = "it has letters, digits and '._+/-', and begins and ends with none of './'"
    elif len(name) > NAME_LIMIT:
        reason = f"it has more than {NAME_LIMIT} bytes"
    elif name in {MAIN, "HEAD"} or name.startswith("refs/"):
        reason = "it is reserved"
    elif _HEX.match(name):
        reason = "it looks like the id of a commit"
    if reason is not None:
        raise InvalidInput(f"a {what} cannot be called {name!r}: {reason}")
    return name


def checked_branch(name: str) -> str:
    """Return `name` if a commit can be made on a branch with this name. Raises InvalidInput otherwise."""
    return name if name == MAIN else checked_label(name, what="branch")


def checked_message(message: str) -> str:
    """Return `message` if a commit can have it. Raises InvalidInput otherwise."""
    if _CONTROL.search(message) or len(message.encode(errors="surrogatepass")) > MESSAGE_LIMIT:
        raise InvalidInput(f"a commit's message is a text of at most {MESSAGE_LIMIT} bytes without control characters")
    return message


def checked_author(author: str) -> str:
    """Return `author` if a commit can have it. Raises InvalidInput otherwise."""
    if _CONTROL.search(author) or len(author.encode(errors="surrogatepass")) > AUTHOR_LIMIT:
        raise InvalidInput(f"a commit's author is a text of at most {AUTHOR_LIMIT} bytes without control characters")
    return author


def checked_new_commit(new: NewCommit) -> NewCommit:
    """Return `new` if a commit can say it. Raises InvalidInput otherwise."""
    checked_message(new.message)
    checked_author(new.author)
    checked_branch(new.branch)
    return new


def printable(author: str) -> str:
    """Return a text that a commit can have as its author: `author` without what cannot be printed, shortened."""
    shown = author if author.isprintable() else "".join(letter if letter.isprintable() else " " for letter in author)
    return shown.encode(errors="replace")[:AUTHOR_LIMIT].decode(errors="ignore")


def commit_from_json(values: Mapping[str, Any]) -> Commit:
    """Make a commit from its JSON form (I4). Raises KeyError, TypeError, ValueError or a FilestoreError."""
    commit = Commit(**{name: values[name] for name in Commit._fields})
    texts = (
        commit.id,
        commit.branch,
        commit.file_id,
        commit.digest,
        commit.kind,
        commit.message,
        commit.author,
        commit.created_at,
    )
    if not all(isinstance(text, str) for text in texts) or not isinstance(commit.parent, str | None):
        raise TypeError("one of its values is not a text")
    if type(commit.number) is not int or type(commit.size) is not int:
        raise TypeError("its number or its size is not a number")
    return checked_commit(
        commit._replace(
            digest=Digest.parse(str(commit.digest)), kind=Kind(commit.kind), created_at=parse_timestamp(str(commit.created_at))
        )
    )


def checked_commit(commit: Commit) -> Commit:
    """Return `commit` if its values are valid (I4). Raises ValueError or a FilestoreError otherwise."""
    ids = [commit.id] if commit.parent is None else [commit.id, commit.parent]
    if not all(COMMIT_ID_PATTERN.match(each) for each in ids) or not FILE_ID_PATTERN.match(commit.file_id):
        raise ValueError("an id is not one")
    if not 0 < commit.number < 1 << 63 or not 0 <= commit.size < 1 << 63 or not 0 <= commit.created_at < LAST_MOMENT:
        raise ValueError("a number is out of range")
    checked_branch(commit.branch)
    checked_message(commit.message)
    checked_message(commit.author)
    return commit


def label_from_json(values: Mapping[str, Any]) -> Label:
    """Make a label from its JSON form (I4). Raises KeyError, TypeError, ValueError or a FilestoreError."""
    texts = [values[name] for name in Label._fields]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("one of its values is not a text")
    name, kind, target, created_at = texts
    return checked_stored_label(Label(name, LabelKind(kind), target, parse_timestamp(created_at)))


def checked_stored_label(label: Label) -> Label:
    """Return `label` if its values are valid (I4). Raises ValueError or a FilestoreError otherwise."""
    checked_label(label.name)
    if not COMMIT_ID_PATTERN.match(label.commit_id):
        raise ValueError("the id of its commit is not one")
    return label
