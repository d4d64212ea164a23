"""Store zip files in chunks of any size, and look at what a fetch has left on disk."""

from __future__ import annotations

import asyncio
import random
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

from filestore.core.digest import Digest
from filestore.core.records import Record
from filestore.errors import Interrupted
from filestore.format.codec import Codec
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Moved, Repository
from filestore.repository.stores.memory import MemoryStore
from filestore.transfer.fetch_tree import fetch_record_tree
from filestore.transfer.schedule import DEFAULT_OPTIONS, TransferOptions
from tests.support.archives import unpacked
from tests.support.frames import encoded, manifest
from tests.support.trees import Folder, Link, Planted, Script
from tests.support.watched import WatchedRepository

Seen = dict[str, tuple[int, bytes]]


@asynccontextmanager
async def memory_repository(folder: Path) -> AsyncIterator[LocalRepository]:
    """Yield a repository that keeps its frames in memory, so that no sync slows down hundreds of small files."""
    repository = LocalRepository(MemoryStore(), await open_index(folder / "index.sqlite"), location="memory")
    yield repository
    await repository.close()


async def stored(repository: Repository, content: bytes, *, name: str = "archive.zip", chunk_size: int = 1 << 20) -> Record:
    """Return a record of `content` in chunks of `chunk_size`. A fetch accepts any chunks."""
    return await stored_in_chunks(repository, content, range(0, len(content), chunk_size), name=name)


async def stored_in_chunks(repository: Repository, content: bytes, starts: Sequence[int], *, name: str = "archive.zip") -> Record:
    """Return a record of `content` whose chunks begin at `starts`."""
    chunks = [content[start:stop] for start, stop in pairwise([*starts, len(content)])]
    frames = {frame.digest: frame for frame in (encoded(chunk, codec=Codec.RAW) for chunk in chunks)}
    await repository.put(list(frames.values()))
    return await repository.commit(manifest(chunks).encoded, name=name)


def things_in(archive: bytes, *, limits: ZipLimits = DEFAULT_LIMITS) -> dict[str, Planted]:
    """Return what `standing` must find after an archive was unpacked."""
    things: dict[str, Planted] = {}
    tree = unpacked(archive, limits=limits)
    for path, found in tree.items():
        if found.target is not None:
            things[path] = Link(found.target)
        elif not found.is_folder:
            things[path] = Script(found.content) if found.is_executable else found.content
        elif path and not any(other.startswith(f"{path}/") for other in tree):
            things[path] = Folder()
    return things


def seen(folder: Path) -> Seen:
    """Return everything below a folder: modes, and contents or link targets."""
    found: Seen = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[str(path)] = mode, str(path.readlink()).encode()
        else:
            found[str(path)] = mode, path.read_bytes() if stat.S_ISREG(mode) else b""
    return found


class JumbledRepository(WatchedRepository):
    """Answer in an order that `rng` decides. `received` has the digests that were asked for."""

    def __init__(self, inner: Repository, rng: random.Random) -> None:
        super().__init__(inner)
        self.received: list[Digest] = []
        self._rng = rng

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        for _ in range(self._rng.randrange(12)):
            await asyncio.sleep(0)
        self.received += digests
        return await super().get(digests, buffer, moved=moved)


async def cut_off(
    repository: Repository,
    record: Record,
    target: Path,
    *,
    gets: int = 1,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> None:
    """Begin to unpack, and lose the repository after some answers. The fetch may end before that."""
    watched = WatchedRepository(repository)

    async def cut(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") > gets:
            raise Interrupted("the repository", "the test does not like it")

    watched.before = cut
    with suppress(Interrupted):
        await fetch_record_tree(watched, record, target=target, options=options)


def staging_in(folder: Path) -> Path:
    """Return the only staging folder in a folder."""
    (staging,) = folder.glob(".*.filestore-partial")
    return staging
