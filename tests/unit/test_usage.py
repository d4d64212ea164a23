"""Disk usage and what a removal frees: in parts, with damage, while pushes run, and compared with a collection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.errors import DamagedRecord
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.usage import measure_freed, measure_freed_each, measure_usage
from filestore.repository.protocol import Usage
from filestore.repository.stores.memory import MemoryStore
from tests.support.frames import encoded, manifest
from tests.support.generator import octets


class Opened(LocalRepository):
    """A repository in memory, with what it is made of."""

    async def measure(self, *, part_count: int = 1 << 20, grace_seconds: float = 0) -> Usage:
        """Its usage, with parts of `part_count` chunks."""
        return await measure_usage(
            self._store,
            self._index,
            DEFAULT_NAMESPACE,
            now=time.time_ns() // 1000,
            grace_seconds=grace_seconds,
            name_limit=10,
            part_count=part_count,
        )

    async def store_file(self, *numbers: int, name: str) -> Record:
        """Store a file whose chunks are those of `numbers`."""
        chunks = [octets(number, 1000 + number) for number in numbers]
        await self.put([encoded(chunk) for chunk in chunks])
        return await self.commit(manifest(chunks).encoded, name=name)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Opened]:
    """A repository with two names that share chunks, each with several versions."""
    repository = Opened(MemoryStore(), await open_index(tmp_path / "index.sqlite"), location="memory")
    for number in range(5):
        await repository.store_file(*range(number, number + 20), name="a")
        await repository.store_file(*range(20 - number, 60 - number), name="b")
    yield repository
    await repository.close()


async def test_parts_change_nothing(repository: Opened) -> None:
    """The figures are the same, whether all chunks are in memory together or not."""
    removed = [record for record in await repository.records() if record.name == "b"][1:]
    freed = await repository.freed_by([record.id for record in removed])
    assert freed.chunk_count == 4
    whole = await repository.measure()
    assert (60, 10) == (whole.frame_count, whole.record_count)
    for part_count in (1, 7):
        assert whole == await repository.measure(part_count=part_count)
        ids = [record.id for record in removed]
        measured = measure_freed(repository._store, repository._index, DEFAULT_NAMESPACE, ids, part_count=part_count)
        assert freed == await measured


async def test_what_each_version_frees(repository: Opened) -> None:
    """It is what is measured for each version alone. A content that two records have is not freed with one of them."""
    twice = await repository.store_file(3, 3, 200, 201, name="a")
    await repository.store_file(3, 3, 200, 201, name="c")
    once = await repository.store_file(300, 300, name="c")
    ids = [record.id for record in await repository.records()]
    alone = {file_id: (await repository.freed_by([file_id])).stored_size for file_id in ids}
    assert alone[twice.id] == 0 < alone[once.id]
    assert alone == await repository.freed_by_each([*ids, "file_" + 32 * "0"])
    assert {once.id: alone[once.id]} == await repository.freed_by_each([once.id])
    for part_count in (1, 7):
        assert alone == await measure_freed_each(
            repository._store, repository._index, DEFAULT_NAMESPACE, ids, part_count=part_count
        )
    limited = Opened(repository._store, repository._index, location="memory", prefix="c")
    assert {once.id, ids[1]} == (await limited.freed_by_each(ids)).keys()
    assert {} == await repository.freed_by_each([])


async def test_a_collection_frees_what_was_said(repository: Opened) -> None:
    """What a removal and the usage announce is what a collection then frees, with and without a grace period."""
    removed = (await repository.versions("b", keep_last=1)).records
    freed = await repository.freed_by([record.id for record in removed])
    for record in removed:
        await repository.remove(record.id, updated_at=record.updated_at, unless_newest=True)
    left = freed.stored_size
    for grace_seconds in (3600, 0):
        usage = await repository.measure(grace_seconds=grace_seconds)
        assert left == usage.free_size + usage.waiting_size
        assert (grace_seconds == 0) is (usage.waiting_size == 0)
        collection = Collection(repository._store, repository._index, DEFAULT_NAMESPACE, grace_seconds=grace_seconds)
        assert usage.free_size == (await collection.run()).freed.size
        left = usage.waiting_size
    after = await repository.measure()
    assert (0, 0, usage.needed_size) == (after.free_size, after.waiting_size, after.needed_size)


async def test_a_damaged_manifest_is_named(repository: Opened) -> None:
    """Nobody knows what its record needs, so the usage says so, and nothing is said about a removal."""
    records = await repository.records()
    await repository._store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(records[-1].digest))
    assert ("a",) == (await repository.measure()).damaged
    with pytest.raises(DamagedRecord, match=records[-1].id):
        await repository.freed_by([records[0].id])


async def test_usage_while_pushes_run(repository: Opened) -> None:
    """Figures can be measured at any time, and add up again at the end."""
    async with asyncio.TaskGroup() as group:
        for number in range(100, 105):
            group.create_task(repository.store_file(number, number + 1, name="a"))
            group.create_task(repository.measure(part_count=10))
    usage = await repository.measure()
    assert (66, 15) == (usage.frame_count, usage.record_count)
    assert usage.needed_size == sum(name.own_size for name in usage.names) + usage.names[0].shared_size
