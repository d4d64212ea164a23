"""One namespace works as much as it can. Another one waits for at most one slice of that work at each step.

The tests count slices of the index and transactions, not seconds.
"""

from __future__ import annotations

import asyncio
import mmap
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.records import Record
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http import wire
from filestore.repository import removal
from filestore.repository.index import chunks
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.index.sqlite import SqliteIndex, SqliteTransaction, open_index
from filestore.repository.ingest import PUBLISHED_AT_ONCE
from filestore.repository.local import LocalRepository
from filestore.repository.manifest_check import SLICE
from filestore.repository.removal import UnneededChunks
from filestore.repository.stores.memory import MemoryPlacement, MemoryStore
from filestore.repository.stores.protocol import Staging
from filestore.system import turnstile
from filestore.system.locks import FileLock
from filestore.system.turns import Turns, namespace_of_work, working_for
from tests.support.frames import contents, encoded, frames, manifest

ATTACKER, OTHER = "attacker", "other"


class CountedTurns(Turns):
    """Turns that count, for each turn, how many of others were given while it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[str] = []
        self.waits: list[tuple[str, int]] = []
        """The namespace of each turn, and how many turns others had before it."""

    async def acquire(self) -> None:
        """Wait for a turn, and count."""
        namespace, arrived = namespace_of_work(), len(self.given)
        await super().acquire()
        self.waits.append((namespace, sum(other != namespace for other in self.given[arrived:])))
        self.given.append(namespace)

    def longest(self, namespace: str) -> int:
        """Return how many turns of others a turn of `namespace` waited for, at most."""
        return max((count for each, count in self.waits if each == namespace), default=0)


class CountingStore(MemoryStore):
    """A store that keeps how many frames it published in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[int] = []

    def placement(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> MemoryPlacement:
        """Count, and return what publishes."""
        self.published.append(len(staged))
        return super().placement(namespace, staged)


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqliteIndex]:
    """An index whose turns are counted."""
    opened = await open_index(tmp_path / "index.sqlite", turnstile=tmp_path)
    opened._writing, opened._looking = CountedTurns(), CountedTurns()
    yield opened
    await opened.close()


def _turns(index: SqliteIndex) -> tuple[CountedTurns, CountedTurns]:
    writing, looking = index._writing, index._looking
    assert isinstance(writing, CountedTurns)
    assert isinstance(looking, CountedTurns)
    return writing, looking


def _repository(store: MemoryStore, index: Index, namespace: str) -> LocalRepository:
    return LocalRepository(store, index, location="memory", namespace=namespace)


async def _during(attacks: Sequence[Coroutine[Any, Any, object]], request: Callable[[int], Coroutine[Any, Any, object]]) -> int:
    """Repeat a request of the other namespace while the attacks run. Return how many were answered meanwhile."""

    async def attack(each: Coroutine[Any, Any, object]) -> None:
        with working_for(ATTACKER):
            await each

    count = 0
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attack(each)) for each in attacks]
        with working_for(OTHER):
            while not all(task.done() for task in tasks):
                await request(count)
                count += 1
    return count


async def test_batches_of_tiny_frames(index: SqliteIndex) -> None:
    """A put and a commit wait for one slice of 64 frames, and not for the batches."""
    store = CountingStore()
    attacker, other = _repository(store, index, ATTACKER), _repository(store, index, OTHER)
    tiny = frames(4096, size=20)
    batches = [attacker.put(tiny[start : start + 1024]) for start in range(0, 4096, 1024)]

    async def push(number: int) -> None:
        content = contents(1, seed=1000 + number)
        await other.put([encoded(content[0])])
        await other.commit(manifest(content).encoded, name="small")

    assert await _during(batches, push) > 4
    writing, _ = _turns(index)
    assert writing.longest(OTHER) <= 1
    assert PUBLISHED_AT_ONCE == max(store.published)
    assert 4096 == writing.given.count(ATTACKER) * PUBLISHED_AT_ONCE


async def _add_rows(index: Index, namespace: str, count: int) -> list[Chunk]:
    added = [Chunk(chunk_digest(b"%d" % number), 1000) for number in range(count)]
    async with index.transaction() as transaction:
        await transaction.add_chunks(namespace, [ChunkRow(chunk.digest, chunk.size, 1000) for chunk in added])
    return added


@pytest.mark.slow
async def test_commits_of_large_manifests(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a manifest with many chunks looks at 2,048 rows in each turn, outside of transactions."""
    store = MemoryStore()
    attacker, other = _repository(store, index, ATTACKER), _repository(store, index, OTHER)
    large = Manifest.build(await _add_rows(index, ATTACKER, 40_000), chunking_version=CHUNKING_VERSION).encoded
    await other.put(frames(5))
    looked_at = _looks(monkeypatch)

    async def push(_: int) -> None:
        assert [] == await other.missing([chunk_digest(content) for content in contents(5)])
        await other.commit(manifest(contents(5)).encoded, name="small")

    assert await _during([attacker.commit(large, name=f"{number}") for number in range(4)], push) > 4
    writing, looking = _turns(index)
    assert (True, True) == (looking.longest(OTHER) <= 1, writing.longest(OTHER) <= 1)
    assert SLICE == max(looked_at)
    assert 4 == writing.given.count(ATTACKER)


async def test_questions_about_many_chunks(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `missing` of 65,536 chunks is as many turns as it has slices."""
    store = MemoryStore()
    attacker, other = _repository(store, index, ATTACKER), _repository(store, index, OTHER)
    await other.put(frames(5))
    looked_at = _looks(monkeypatch)
    asked = [chunk_digest(b"%d" % number) for number in range(wire.DIGESTS_LIMIT)]

    async def push(_: int) -> None:
        assert [] == await other.missing([chunk_digest(content) for content in contents(5)])
        await other.commit(manifest(contents(5)).encoded, name="small")

    assert await _during([attacker.missing(asked) for _ in range(3)], push) > 3
    writing, looking = _turns(index)
    assert (True, True) == (looking.longest(OTHER) <= 1, writing.longest(OTHER) <= 1)
    assert SLICE == max(looked_at)
    assert 3 * wire.DIGESTS_LIMIT // SLICE == looking.given.count(ATTACKER)


def _looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets how many rows each turn looks at."""
    looked_at: list[int] = []
    select_live = chunks.select_live

    def counted(connection: Any, namespace: str, digests: Sequence[Digest]) -> list[Any]:
        looked_at.append(len(digests))
        return select_live(connection, namespace, digests)

    monkeypatch.setattr(chunks, "select_live", counted)
    return looked_at


def test_a_batch_of_tiny_frames_in_one_piece() -> None:
    """A thread that reads a batch begins at most 64 frames before it serves another connection."""
    entries = [wire.BatchEntry(chunk_digest(b"%d" % number), 1) for number in range(wire.BATCH_COUNT_LIMIT)]
    body = memoryview(wire.encode_batch_header(entries) + b"x" * len(entries))
    batch, slices = wire.BatchParser(size=len(body)), list[int]()
    while body:
        begun = 0
        while body and (size := batch.reach(1 << 20, count=PUBLISHED_AT_ONCE - begun)):
            begun += sum(isinstance(part, wire.BatchEntry) for part in batch.feed(body[:size]))
            body = body[size:]
        slices.append(begun)
    assert batch.finished
    assert PUBLISHED_AT_ONCE == max(slices)
    assert 4096 == sum(slices)


_BUSY = """
import asyncio, mmap, sys
from pathlib import Path
from filestore.repository.index.sqlite import open_index
from filestore.system import turnstile

turnstile.PATIENCE_SECONDS = 60

async def main():
    index = await open_index(Path(sys.argv[1], "index.sqlite"), turnstile=Path(sys.argv[1]))
    with open(sys.argv[2], "r+b") as file, mmap.mmap(file.fileno(), 8) as counter:
        for number in range(1, 1 << 40):
            async with index.transaction() as transaction:
                await transaction.set_task_state("attacker", "busy", {"number": number})
            counter[:8] = number.to_bytes(8, "little")

asyncio.run(main())
"""


async def test_another_process_that_writes_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it waits at the turnstile, a process comes after at most one transaction of the other one."""
    (tmp_path / "counter").write_bytes(bytes(8))
    waits, acquire, is_first, seen = list[int](), turnstile._acquire, True, 0
    # On a busy machine each process may stop for long in its turn, and the other one must not go on without a turn.
    monkeypatch.setattr(turnstile, "PATIENCE_SECONDS", 60)

    with (tmp_path / "counter").open("r+b") as file, mmap.mmap(file.fileno(), 8) as counter:

        def counted(lock: FileLock, deadline: float) -> bool:
            nonlocal is_first, seen
            is_taken = acquire(lock, deadline)
            if is_taken and is_first:
                seen, is_first = _number(counter), False
            elif is_taken:
                waits.append(_number(counter) - seen)
                is_first = True
            return is_taken

        index = await open_index(tmp_path / "index.sqlite", turnstile=tmp_path)
        monkeypatch.setattr(turnstile, "_acquire", counted)
        busy = subprocess.Popen([sys.executable, "-c", _BUSY, tmp_path, tmp_path / "counter"])
        try:
            while _number(counter) < 3:
                assert busy.poll() is None
                await asyncio.sleep(0)
            for number in range(20):
                async with index.transaction() as transaction:
                    await transaction.set_task_state(OTHER, "small", {"number": number})
        finally:
            busy.kill()
            busy.wait()
            await index.close()
    assert 20 == len(waits)
    # The transaction at whose end it arrived may not be counted yet.
    assert max(waits) <= 2


def _number(counter: mmap.mmap) -> int:
    return int.from_bytes(counter[:8], "little")


async def test_commits_during_a_removal(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks that files need which are stored meanwhile stay. A transaction reads few of those files."""
    monkeypatch.setattr(removal, "_READ_CHUNKS", 4)
    repository, transaction = _repository(MemoryStore(), index, ATTACKER), index.transaction
    manifest_of = UnneededChunks._manifest_of
    shared, own = contents(10), contents(3, seed=1)
    await repository.put([encoded(content) for content in [*shared, *own]])
    removed = await repository.commit(manifest([*shared, *own]).encoded, name="removed")
    read: list[int] = []
    waiting = [manifest(shared[start : start + 2]).encoded for start in range(0, 10, 2)]

    async def counted(self: UnneededChunks, record: Record) -> Manifest | None:
        found = await manifest_of(self, record)
        if index._writing._holder is not None and found is not None:
            read.append(len(found.chunks))
        return found

    @asynccontextmanager
    async def after_commits(namespace: str) -> AsyncIterator[SqliteTransaction]:
        stored, waiting[:] = list(waiting), []
        for each in stored:
            await repository.commit(each, name="kept")
        async with transaction(namespace) as begun:
            yield begun

    monkeypatch.setattr(UnneededChunks, "_manifest_of", counted)
    monkeypatch.setattr(index, "transaction", after_commits)
    await repository.remove(removed.id, with_chunks=True)
    # The first transaction is left after two files, and the others are read before the second one.
    assert [2, 2] == read
    assert {chunk_digest(content) for content in own} == set(
        await index.missing(ATTACKER, [chunk_digest(content) for content in [*shared, *own]])
    )
