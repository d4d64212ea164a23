"""The JSON documents of the Hub API, and the ids in them. No I/O.

Source: the models of `hf_api.py` in the Python client, and the git-lfs specification of pointer files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from blake3 import blake3

from filestore.core.commits import MAIN, Commit, Label, LabelKind
from filestore.core.content_digests import FileDigests
from filestore.core.digest import Digest
from filestore.http.server.model_card import ModelCard
from filestore.http.server.routes.hub.names import HubRepository

LFS_SIZE = 1 << 20
"""Files of this size and more are told with their SHA-256, as those that the Hub keeps in LFS. The ETag of a smaller one is the
id of its git blob.
"""
CURSOR_LIMIT = 8192
"""Characters of a cursor. The longest path, in base64, has fewer."""

Document = dict[str, Any]


class Entry(NamedTuple):
    """A file or a folder of a commit."""

    path: str
    size: int
    is_folder: bool
    content: Digest
    """The digest of the stored file that has its bytes."""
    digests: FileDigests | None
    """None if they are not known, or for a folder."""

    @property
    def is_lfs(self) -> bool:
        """Whether it is told with its SHA-256."""
        return self.digests is not None and self.size >= LFS_SIZE

    @property
    def unknown_id(self) -> str:
        """An id of the content that no client takes for a SHA-256 or a git blob."""
        return f"b3-{blake3(self.content + self.path.encode()).hexdigest()}"

    @property
    def tag(self) -> str:
        """The entity tag of the file, without quotes. Equal tags mean equal content."""
        if self.digests is None:
            return self.unknown_id
        return (self.digests.sha256 if self.is_lfs else self.digests.blob_id).hex()


def pointer_file(sha256: bytes, size: int) -> bytes:
    """Return the file that git keeps in place of a large one."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (sha256.hex().encode(), size)


def blob_id(content: bytes) -> str:
    """Return git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def entry_document(entry: Entry, *, commit: Commit | None = None) -> Document:
    """Return an entry as lists of paths have it. `commit` is what `expand` adds."""
    last = (
        {} if commit is None else {"lastCommit": {"id": commit.id, "title": title_of(commit), "date": moment(commit.created_at)}}
    )
    if entry.is_folder:
        return {"type": "directory", "oid": entry.unknown_id[3:43], "size": 0, "path": entry.path, **last}
    return {"type": "file", **_ids(entry), "size": entry.size, "path": entry.path, **last}


def sibling_document(entry: Entry, *, with_blobs: bool) -> Document:
    """Return a file as the description of a repository lists it."""
    if not with_blobs:
        return {"rfilename": entry.path}
    ids = _ids(entry)
    lfs = {"lfs": {"sha256": ids["lfs"]["oid"], **ids["lfs"]}} if "lfs" in ids else {}
    return {"rfilename": entry.path, "size": entry.size, "blobId": ids["oid"], **lfs}


def _ids(entry: Entry) -> Document:
    if entry.digests is None:
        # llama.cpp leaves out a file whose id is a text that is neither a SHA-256 nor the id of a git blob.
        return {"oid": None}
    if not entry.is_lfs:
        return {"oid": entry.tag}
    pointer = pointer_file(entry.digests.sha256, entry.size)
    lfs = {"oid": entry.digests.sha256.hex(), "size": entry.size, "pointerSize": len(pointer)}
    return {"oid": blob_id(pointer), "lfs": lfs}


def repository_document(
    repository: HubRepository, commit: Commit, *, created_at: int, used_storage: int, siblings: Sequence[Document] | None = None
) -> Document:
    """Return the description of a repository at a commit."""
    owner, slash, _ = repository.name.partition("/")
    document: Document = {
        "_id": commit.file_id.removeprefix("file_")[:24],
        "id": repository.name,
        **({"modelId": repository.name} if repository.type == "models" else {}),
        **({"author": owner} if slash else {}),
        "sha": commit.id,
        "lastModified": moment(commit.created_at),
        "createdAt": moment(created_at),
        "private": True,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "usedStorage": used_storage,
    }
    return document if siblings is None else document | {"siblings": siblings}


def card_document(card: ModelCard) -> Document:
    """Return what a README.md adds to the description of a repository."""
    named = {"pipeline_tag": card.pipeline_tag, "library_name": card.library_name}
    return {key: value for key, value in named.items() if value is not None} | {"tags": list(card.tags)}


def refs_document(head: Commit | None, labels: Iterable[Label]) -> Document:
    """Return the branches and tags of a repository."""
    branches = [] if head is None else [{"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": head.id}]
    tags = []
    for label in labels:
        if label.kind is LabelKind.BRANCH:
            branches.append({"name": label.name, "ref": f"refs/heads/{label.name}", "targetCommit": label.commit_id})
        else:
            tags.append({"name": label.name, "ref": f"refs/tags/{label.name}", "targetCommit": label.commit_id})
    return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}


def commit_document(commit: Commit, *, is_formatted: bool = False) -> Document:
    """Return a commit as the history lists it."""
    title = title_of(commit)
    message = commit.message.partition("\n")[2].strip()
    formatted = {"formatted": {"title": title, "message": message}} if is_formatted else {}
    authors = [{"user": commit.author}] if commit.author else []
    return {
        "id": commit.id,
        "title": title,
        "message": message,
        "authors": authors,
        "date": moment(commit.created_at),
        **formatted,
    }


def title_of(commit: Commit) -> str:
    """Return the first line of the message of a commit, or a sentence if it has none."""
    return commit.message.partition("\n")[0].strip() or f"Store version {commit.number}"


def account_document(*, name: str, token_id: str, label: str, scope: str, owners: Sequence[str]) -> Document:
    """Return who a token is, in the words of the Hub: the namespace is a user, and its owners are organizations."""
    role = {"read": "read", "write": "write"}.get(scope, "write")
    organizations = [
        {
            "type": "org",
            "id": owner,
            "name": owner,
            "fullname": owner,
            "email": None,
            "canPay": False,
            "periodEnd": None,
            "avatarUrl": "",
            "roleInOrg": "admin" if role == "write" else "read",
        }
        for owner in owners
    ]
    return {
        "type": "user",
        "id": token_id or name,
        "name": name,
        "fullname": label or name,
        "email": None,
        "emailVerified": False,
        "canPay": False,
        "periodEnd": None,
        "isPro": False,
        "avatarUrl": "",
        "orgs": organizations,
        "auth": {"type": "access_token", "accessToken": {"displayName": label or token_id or name, "role": role}},
    }


def moment(microseconds: int) -> str:
    """Return a time as the Hub writes it, in milliseconds, which is the only form that old clients read."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:03}Z"


def cursor_after(place: str) -> str:
    """Return the cursor of the page that begins after `place`. It means the same to each process, and after a restart."""
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def place_of(cursor: str) -> str | None:
    """Return the place that a cursor stands for. Return None if it is not a cursor of ours."""
    if len(cursor) > CURSOR_LIMIT:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def next_page(url: str, query: Mapping[str, str]) -> str:
    """Return a Link header for the next page."""
    return f'<{url}?{urlencode(query)}>; rel="next"'
