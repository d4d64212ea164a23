"""Work on all records of a namespace reads their manifests several at a time, and never more bytes of them than its bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import MANIFEST_LIMIT
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.errors import DamagedRecord
from filestore.repository.index.protocol import Index, PositionedRecord
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import CheckCounts, check
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.findings import AffectedFile
from filestore.repository.maintenance.usage import measure_freed
from filestore.repository.manifest_batches import SIZE_TOGETHER, TOGETHER, manifest_size, read_together
from filestore.repository.stores.memory import MemoryStore
from tests.support.frames import contents, encoded, manifest

COUNT = 3 * TOGETHER + 1


class SlowStore(MemoryStore):
    """A store whose manifests come some turns of the event loop later, as those of an object store do."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = 0
        self.most = 0
        """The most manifests that were read at the same time."""

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        self.reading += 1
        self.most = max(self.most, self.reading)
        for _ in range(5):
            await asyncio.sleep(0)
        self.reading -= 1
        return await super().manifest(namespace, digest)


class Filled:
    """A repository with many files of two chunks, one of which all have."""

    def __init__(self, store: SlowStore, index: Index) -> None:
        self.store = store
        self.index = index
        self.repository = LocalRepository(store, index, location="memory")
        self.records: list[Record] = []
        self.shared, *self.own = contents(COUNT + 1)

    async def fill(self) -> None:
        """Store the files."""
        await self.repository.put([encoded(content) for content in [self.shared, *self.own]])
        for number, content in enumerate(self.own):
            self.records.append(await self.repository.commit(manifest([self.shared, content]).encoded, name=f"file-{number}"))
        self.store.most = 0


@pytest.fixture
async def filled(tmp_path: Path) -> AsyncIterator[Filled]:
    """Files in a slow store."""
    filled = Filled(SlowStore(), await open_index(tmp_path / "index.sqlite"))
    await filled.fill()
    yield filled
    await filled.repository.close()


async def test_a_removal_reads_several_together(filled: Filled) -> None:
    """Only what no other file needs is removed with the file."""
    await filled.repository.remove(filled.records[0].id, with_chunks=True)
    assert TOGETHER == filled.store.most
    rows = await filled.index.chunk_rows(DEFAULT_NAMESPACE, limit=2 * COUNT)
    assert {encoded(content).digest for content in [filled.shared, *filled.own[1:]]} == {state.row.digest for state in rows}


async def test_a_collection_marks_several_together(filled: Filled) -> None:
    """It marks what records need, and what removed ones needed, so that its report tells both apart."""
    for record in filled.records[: COUNT // 2]:
        await filled.repository.remove(record.id)
    filled.store.most = 0
    report = await Collection(filled.store, filled.index, DEFAULT_NAMESPACE, grace_seconds=0).run()
    assert TOGETHER == filled.store.most
    assert (COUNT // 2, 0, COUNT // 2) == (report.removed_files.count, report.abandoned_pushes.count, report.manifests.count)


async def test_what_a_removal_would_free_is_measured_with_several_together(filled: Filled) -> None:
    """It is the chunk that no other file needs."""
    freed = await measure_freed(filled.store, filled.index, DEFAULT_NAMESPACE, [filled.records[0].id])
    assert (1, TOGETHER) == (freed.chunk_count, filled.store.most)


async def test_a_check_reads_several_together(filled: Filled) -> None:
    """A record with the manifest of another one is checked too, and named if that is lost."""
    again = await filled.repository.commit(manifest([filled.shared, filled.own[5]]).encoded, name="again")
    filled.store.most = 0
    counts = CheckCounts()
    assert [] == [each async for each in check(filled.store, filled.index, counts=counts)]
    assert (TOGETHER, COUNT + 1, COUNT) == (filled.store.most, counts.record_count, counts.manifest_count)
    await filled.store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(again.digest))
    affected = [each.record.id async for each in check(filled.store, filled.index) if isinstance(each, AffectedFile)]
    assert [filled.records[5].id, again.id] == affected


async def test_a_damaged_manifest_in_a_batch_stops_the_removal(filled: Filled) -> None:
    """Nothing is removed, because nobody knows what that record needs."""
    await filled.store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(filled.records[5].digest))
    with pytest.raises(DamagedRecord):
        await filled.repository.remove(filled.records[0].id, with_chunks=True)
    assert COUNT + 1 == len(await filled.index.chunk_rows(DEFAULT_NAMESPACE, limit=2 * COUNT))


async def test_a_damaged_manifest_of_two_records_stops_the_removal(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the first of them, for which it is read, is removed meanwhile. The other one still needs its chunks."""
    first, store = filled.records[5], filled.store
    await filled.repository.commit(await filled.repository.manifest(first.digest), name="the same")
    await store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(first.digest))
    read = store.manifest

    async def read_late(namespace: str, digest: Digest) -> bytes | None:
        if digest == first.digest:
            async with filled.index.transaction(namespace) as transaction:
                await transaction.remove_record(namespace, first.id)
        return await read(namespace, digest)

    monkeypatch.setattr(store, "manifest", read_late)
    with pytest.raises(DamagedRecord):
        await filled.repository.remove(filled.records[0].id, with_chunks=True)
    assert COUNT + 1 == len(await filled.index.chunk_rows(DEFAULT_NAMESPACE, limit=2 * COUNT))


async def test_manifests_that_are_not_small_are_not_read_together() -> None:
    """The bytes that are read at the same time are bounded, and a manifest that is larger than the bound is read alone."""
    sizes = [SIZE_TOGETHER // 2, SIZE_TOGETHER // 2, SIZE_TOGETHER + 1, 1, 1]
    reading, together = 0, list[int]()

    async def read(size: int) -> int:
        nonlocal reading
        reading += size
        await asyncio.sleep(0)
        together.append(reading)
        await asyncio.sleep(0)
        reading -= size
        return -size

    batches = [batch async for batch in read_together(sizes, read, size=int)]
    assert [(size, -size) for size in sizes] == [pair for batch in batches for pair in batch]
    assert [SIZE_TOGETHER, SIZE_TOGETHER, SIZE_TOGETHER + 1, 2, 2] == together


async def test_the_index_knows_how_large_a_manifest_is(filled: Filled) -> None:
    """So the bound holds for any manifest. For a record of an earlier version, the size of the file gives one."""
    found, *_ = await filled.index.records_after(DEFAULT_NAMESPACE, 0, limit=1)
    stored = await filled.store.manifest(DEFAULT_NAMESPACE, found.record.digest)
    assert stored is not None
    assert len(stored) == manifest_size(found)
    assert len(stored) <= manifest_size(PositionedRecord(1, found.record)) <= MANIFEST_LIMIT
