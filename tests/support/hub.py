"""Store directories in a running server, and ask for them as clients of the Hub do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from filestore import blocking
from filestore.core.records import Kind, Record
from filestore.repository.index.sqlite import open_index
from filestore.transfer.push import manifest_of
from filestore.transfer.stored_tree import EntryKind, StoredTree
from tests.support.server import Reply, RunningServer
from tests.support.trees import Planted, plant


def push_tree(server: RunningServer, folder: Path, things: Mapping[str, Planted], name: str = "team/my-model") -> Record:
    """Store a directory under a full name."""
    with blocking.connect(server.url, token=server.token) as repository:
        return blocking.push(repository, plant(folder, things), name=name).record


def push_zip(server: RunningServer, path: Path, content: bytes, name: str) -> Record:
    """Store a zip file, which another tool made, as a directory."""
    path.write_bytes(content)

    async def stored() -> Record:
        from filestore.backends import connect  # the name is that of another verb here
        from filestore.transfer.push import push

        async with connect(server.url, token=server.token) as repository:
            await push(repository, path, name="archive.zip")
            manifest = await manifest_of(path)
            return await repository.commit(manifest.encoded, name=name, kind=Kind.DIRECTORY)

    return asyncio.run(stored())


def know_digests(server: RunningServer, record: Record, contents: Mapping[str, bytes]) -> None:
    """Write the digests of the files of a stored directory into the index, as the server does some time after a push."""

    async def written() -> None:
        from filestore.backends import connect

        async with connect(server.url, token=server.token) as repository:
            tree = await StoredTree.open(repository, record.digest)
        files = {entry.member_number: entry.path for entry in tree.entries(recursive=True) if entry.kind is EntryKind.FILE}
        packed = b"".join(sha256(contents[path]) + bytes.fromhex(git_id(contents[path])) for _, path in sorted(files.items()))
        index = await open_index(server.root / "index.sqlite")
        async with index.transaction() as transaction:
            await transaction.set_tree_digests(record.namespace, record.digest, packed)
        await index.close()

    asyncio.run(written())


def sha256(content: bytes) -> bytes:
    """The SHA-256 of a file."""
    return hashlib.sha256(content).digest()


def git_id(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def resolve(server: RunningServer, path: str, *, name: str = "team/my-model", revision: str = "main", **headers: str) -> Reply:
    """Ask for a file. Underscores in the names of headers stand for hyphens."""
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    return server.ask("GET", f"/{name}/resolve/{revision}/{path}", headers=sent)


def pages(server: RunningServer, path: str, **query: str) -> list[list[Any]]:
    """All pages of a list, by following the links."""
    found = []
    asked = f"{path}?{urlencode(query)}"
    while True:
        reply = server.ask("GET", asked)
        assert 200 == reply.status, reply.body
        found.append(reply.json)
        link = reply.headers.get("Link")
        if link is None:
            return found
        url, _, relation = link.partition(">; ")
        assert 'rel="next"' == relation
        assert url.startswith(f"<{server.url}/")
        parts = urlsplit(url.removeprefix("<"))
        asked = f"{parts.path}?{parts.query}"
