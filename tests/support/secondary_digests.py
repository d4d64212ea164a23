"""What the secondary digests of content should be, and the pass that computes them, in a process that is killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from filestore.backends import open_backend
from filestore.core.content_digests import BLOB_ID_LIMIT, NO_BLOB_ID, FileDigests
from filestore.core.digest import Digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Record
from filestore.http.server.digest_pass import DigestPass
from filestore.repository.index.protocol import Index
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.repository.stores.memory import MemoryStore
from filestore.transfer.push import push
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.stored_tree import EntryKind, StoredTree, read_entry
from tests.support.trees import Planted, plant


def digests_of(content: bytes) -> FileDigests:
    """What `sha256sum` and `git hash-object` print. A large content has no blob id."""
    sha256 = hashlib.sha256(content).digest()
    if len(content) > BLOB_ID_LIMIT:
        return FileDigests(sha256, NO_BLOB_ID)
    blob = b"blob " + str(len(content)).encode() + b"\0" + content
    return FileDigests(sha256, hashlib.sha1(blob, usedforsecurity=False).digest())


async def expected_of(repository: Repository, tree: StoredTree) -> bytes:
    """The packed digests of what a reader of the entries gets."""
    packed = b""
    for member in tree.members:
        entry = tree.entry(member.path)
        if entry is not None and entry.kind is EntryKind.FILE:
            content = b"".join([piece async for piece in read_entry(repository, tree, entry)])
            packed += digests_of(content).packed
    return packed


async def pushed(repository: Repository, folder: Path, things: dict[str, Planted], *, name: str | None = None) -> Record:
    """A record of a tree."""
    return (await push(repository, plant(folder, things), name=name, symlinks=Symlinks.KEEP)).record


async def nothing() -> None:
    """Do nothing before a read."""


class CountingStore(MemoryStore):
    """Counts the bytes of frames that are read, and awaits `before` each time."""

    def __init__(self) -> None:
        super().__init__()
        self.read_size = 0
        self.before: Callable[[], Awaitable[None]] = nothing

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        await self.before()
        frames = await super().read_into(namespace, digests, buffer)
        self.read_size += sum(len(frame) for frame in frames if frame is not None)
        return frames


class World:
    """A repository in memory, and a pass with a clock that the test sets."""

    def __init__(self, store: CountingStore, index: Index) -> None:
        self.store = store
        self.index = index
        self.repository = LocalRepository(store, index, location="memory")
        self.now = 0.0
        self.digest_pass = self.new_pass()

    def new_pass(self) -> DigestPass:
        """The pass of another process, or of this one after a restart."""
        return DigestPass(self.store, self.index, clock=lambda: self.now)

    async def known(self, tree: Record) -> bytes | None:
        """What the index says of a tree."""
        return await self.index.tree_digests(DEFAULT_NAMESPACE, tree.digest)

    async def known_file(self, file: Record) -> FileDigests | None:
        """What the index says of a file."""
        found = (await self.index.content_digests(DEFAULT_NAMESPACE, [file.digest])).get(file.digest)
        return None if found is None else FileDigests(found.sha256, found.blob_id)

    async def expected(self, record: Record) -> bytes:
        """What it should say of a tree."""
        return await expected_of(self.repository, await StoredTree.open(self.repository, record.digest))


@asynccontextmanager
async def a_world(folder: Path) -> AsyncIterator[World]:
    """Yield a world whose index is in a folder."""
    world = World(CountingStore(), await open_index(folder / "index.sqlite"))
    yield world
    await world.repository.close()


async def _run_and_die(root: Path, batches: int) -> None:
    """Do a pass over a repository, and die after so many batches."""
    store, index = await open_backend(root)

    def dying() -> int:
        nonlocal batches
        batches -= 1
        if not batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    await DigestPass(store, index, transfers=dying).work()


if __name__ == "__main__":
    asyncio.run(_run_and_die(Path(sys.argv[1]), int(sys.argv[2])))
