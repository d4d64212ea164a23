"""Manifests that the readers of a server process share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import Busy, InvalidManifest, NotFound
from filestore.http.server.manifests import SharedManifests
from filestore.repository.local import LocalRepository

SMALL, LARGE = 5_000, 50_000
"""Bytes that a manifest of 10, and one of 1000 chunks, need at least."""


async def kept(repository: LocalRepository, count: int, seed: int) -> Digest:
    """Store a manifest of a number of chunks that nobody has."""
    chunks = (Chunk(Digest(seed.to_bytes(4, "big") + number.to_bytes(28, "big")), 3) for number in range(count))
    found = Manifest.build(chunks, chunking_version=1)
    await repository._store.put_manifest(repository.namespace, found.digest, found.encoded)
    return found.digest


def counted(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """Return a list to which each manifest is added that is opened."""
    opened: list[Digest] = []
    store = repository._store
    open_manifest = store.open_manifest

    async def noted(namespace: str, digest: Digest) -> object:
        opened.append(digest)
        return await open_manifest(namespace, digest)

    monkeypatch.setattr(store, "open_manifest", noted)
    return opened


class Reader:
    """Reads a manifest until it is told to end."""

    def __init__(self, shared: SharedManifests, repository: LocalRepository, digest: Digest) -> None:
        self.offsets: Sequence[int] = ()
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._read(shared, repository, digest))

    async def _read(self, shared: SharedManifests, repository: LocalRepository, digest: Digest) -> None:
        async with shared.reading(repository, digest) as layout:
            self.offsets = layout.offsets
            await self._end.wait()

    async def end(self) -> None:
        self._end.set()
        await self.task


async def reads(*readers: Reader) -> None:
    """Wait until these readers have their manifests."""
    async with asyncio.timeout(60):
        while not all(len(reader.offsets) for reader in readers):
            await asyncio.sleep(0)


async def test_readers_share_one_copy(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that come together, and one after the other, cost one copy and one reading."""
    shared = SharedManifests(wait_seconds=60)
    digest = await kept(repository, 10, seed=1)
    readers = [Reader(shared, repository, digest) for _ in range(20)]
    await reads(*readers)
    assert list(range(0, 30, 3)) == list(readers[0].offsets)
    assert 1 == len({id(reader.offsets) for reader in readers})
    size = shared.size
    for reader in readers:
        await reader.end()
    opened = counted(repository, monkeypatch)
    async with shared.reading(repository, digest) as layout:
        assert layout.offsets is readers[0].offsets
    assert ([], size) == (opened, shared.size)


async def test_a_reader_waits_for_memory_and_holds_up_nobody(repository: LocalRepository) -> None:
    """A second large manifest waits for the end of the first; small ones are read meanwhile, and the limit holds."""
    limit = LARGE + 4 * SMALL
    shared = SharedManifests(wait_seconds=60, limit=limit)
    first = Reader(shared, repository, await kept(repository, 1000, seed=1))
    await reads(first)
    second = Reader(shared, repository, await kept(repository, 1000, seed=2))
    for seed in range(3, 20):
        small = Reader(shared, repository, await kept(repository, 10, seed=seed))
        await reads(small)
        assert shared.size <= limit
        await small.end()
    assert not second.offsets
    await first.end()
    await reads(second)
    assert shared.size <= limit
    await second.end()


async def test_a_reader_who_waits_too_long_is_refused(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that it may try again."""
    shared = SharedManifests(wait_seconds=60, limit=LARGE)
    first, second = [await kept(repository, 1000, seed=seed) for seed in (1, 2)]
    async with shared.reading(repository, first):
        # Not for the others: the time is also that in which a manifest is opened.
        with monkeypatch.context() as patches, pytest.raises(Busy) as refused:
            patches.setattr(shared._loads, "_wait_seconds", 0.01)
            async with shared.reading(repository, second):
                pass
        assert refused.value.retryable
    async with shared.reading(repository, second) as layout:
        assert 1000 == len(layout.offsets)


async def test_a_cancelled_reader_leaves_the_others(repository: LocalRepository) -> None:
    """The reading goes on for them, and the memory is free after the last."""
    shared = SharedManifests(wait_seconds=60, limit=LARGE)
    digest = await kept(repository, 1000, seed=1)
    cancelled, other = Reader(shared, repository, digest), Reader(shared, repository, digest)
    await asyncio.sleep(0)
    cancelled.task.cancel()
    await reads(other)
    await other.end()
    async with shared.reading(repository, await kept(repository, 1000, seed=2)) as layout:
        assert 1000 == len(layout.offsets)


async def test_what_cannot_be_read_takes_no_memory(repository: LocalRepository) -> None:
    """An absent manifest and a damaged one are errors, each time."""
    shared = SharedManifests(wait_seconds=60)
    damaged = Digest(bytes(32))
    await repository._store.put_manifest(repository.namespace, damaged, Manifest.build([], chunking_version=1).encoded)
    for digest, error in ((Digest(b"absent.." * 4), NotFound), (damaged, InvalidManifest)):
        for _ in range(2):
            with pytest.raises(error):
                async with shared.reading(repository, digest):
                    pass
    assert 0 == shared.size
