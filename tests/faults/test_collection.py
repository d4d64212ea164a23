"""Collection removes what no record needs, beside everything else that goes on, and never anything else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from filestore.backends import connect, open_backend
from filestore.core.digest import Digest, chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.quotas import Quota
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import ChunksMissing, DamagedRecord, InvalidInput, NotFound, QuotaExceeded
from filestore.repository.index.protocol import Base, Index, NamespaceUsage, Policy, Use
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection, CollectionReport, Freed
from filestore.repository.maintenance.collection_plan import TASK
from filestore.repository.stores.disk import open_store
from filestore.repository.stores.memory import MemoryStore
from filestore.repository.stores.protocol import ChunkStore
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.contracts.conftest import Clock
from tests.support.collection_crashes import KEPT, NEW, SHARED, collect, prepare
from tests.support.commands import start_module
from tests.support.frames import buffer_for, contents, decoded, encoded, manifest

DAY = 86400
NAMESPACE = DEFAULT_NAMESPACE
VERSION_SIZE = 8 << 20


class Opened:
    """A repository, with what it consists of."""

    def __init__(self, store: ChunkStore, index: Index, clock: Clock) -> None:
        self.store, self.index, self.clock = store, index, clock
        self.repository = LocalRepository(store, index, location="tested")

    async def push(self, chunks: Sequence[bytes], name: str) -> Record:
        """Store a file."""
        await self.repository.put([encoded(content) for content in chunks])
        return await self.repository.commit(manifest(chunks).encoded, name=name)

    def collection(self, *, grace_seconds: float = 0, dry_run: bool = False) -> Collection:
        """Prepare a collection."""
        return Collection(
            self.store, self.index, NAMESPACE, grace_seconds=grace_seconds, dry_run=dry_run, now=lambda: self.clock.now + 1
        )

    async def collect(self, *, grace_seconds: float = 0, dry_run: bool = False) -> CollectionReport:
        """Collect."""
        return await self.collection(grace_seconds=grace_seconds, dry_run=dry_run).run()

    async def frames(self) -> set[Digest]:
        """Return the digests of all frames."""
        return {digest async for digest in self.store.digests(NAMESPACE)}

    async def manifests(self) -> set[Digest]:
        """Return the digests of all manifests."""
        return {digest async for digest in self.store.manifests(NAMESPACE)}

    async def check(self, chunks: Sequence[bytes], record: Record) -> None:
        """Check that a file can be read back."""
        assert manifest(chunks).encoded == await self.repository.manifest(record.digest)
        digests = [chunk_digest(content) for content in chunks]
        frames = await self.repository.get(digests, buffer_for(len(digests)))
        for digest, frame, content in zip(digests, frames, chunks, strict=True):
            assert frame is not None
            assert content == decoded(digest, frame)
        assert [] == await self.index.missing(NAMESPACE, digests)


@pytest.fixture(params=["memory", "disk"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty repository, whose index has a clock that the test sets."""
    store = MemoryStore() if request.param == "memory" else await open_store(tmp_path / "store")
    clock = Clock()
    index = await open_index(tmp_path / "index.sqlite", now=clock)
    opened = Opened(store, index, clock)
    yield opened
    await opened.repository.close()


def digests_of(*chunks: bytes) -> set[Digest]:
    """Return the digests of chunks."""
    return {chunk_digest(content) for content in chunks}


async def test_what_no_record_needs_is_removed_and_the_report_says_why(opened: Opened) -> None:
    """Chunks of removed files, of abandoned pushes, frames without rows, and manifests. What is shared stays."""
    shared, old, new = contents(2), contents(3, seed=1), contents(1, seed=2)
    removed = await opened.push([*shared, *old], "removed")
    kept = await opened.push([*shared, *new], "kept")
    await opened.repository.put([encoded(content) for content in contents(2, seed=3)])
    await opened.repository.remove(removed.id)
    orphan = encoded(contents(1, seed=4)[0])
    await opened.repository.put([orphan])
    async with opened.index.transaction() as transaction:
        await transaction.forget_chunks(NAMESPACE, [orphan.digest])
    sizes = {frame.digest: len(frame.data) for frame in map(encoded, [*old, *contents(2, seed=3)])}

    planned = await opened.collect(dry_run=True)
    assert 9 == len(await opened.frames())
    report = await opened.collect()

    assert digests_of(*shared, *new) == await opened.frames()
    assert {kept.digest} == await opened.manifests()
    assert Freed(3, sum(sizes[digest] for digest in digests_of(*old))) == report.removed_files
    assert 2 == report.abandoned_pushes.count
    assert Freed(1, len(orphan.data)) == report.frames_without_rows
    assert Freed(1, len(manifest([*shared, *old]).encoded)) == report.manifests
    assert 3 == report.kept.count
    assert report.as_json() == planned.as_json()
    await opened.check([*shared, *new], kept)
    assert 0 == (await opened.collect()).freed.count


async def test_the_grace_period_keeps_what_a_push_used_lately(opened: Opened) -> None:
    """It counts from the last use. An hour more passes, because uses within an hour are not noted."""
    chunks = contents(2)
    await opened.repository.put([encoded(content) for content in chunks])
    removed = await opened.push(contents(1, seed=1), "removed")
    await opened.repository.remove(removed.id)
    opened.clock.advance(seconds=DAY)
    waiting = await opened.collect(grace_seconds=DAY)
    assert (3, 0) == (waiting.waiting.count, waiting.freed.count)
    assert {removed.digest} == await opened.manifests()
    assert [] == await opened.repository.missing([chunk_digest(content) for content in chunks])

    opened.clock.advance(seconds=3601)
    report = await opened.collect(grace_seconds=DAY)
    assert (2, 1, 1) == (report.waiting.count, report.removed_files.count, report.manifests.count)
    assert digests_of(*chunks) == await opened.frames()

    opened.clock.advance(seconds=DAY)
    assert 2 == (await opened.collect(grace_seconds=DAY)).abandoned_pushes.count
    assert set() == await opened.frames()


async def test_a_push_that_is_paused_before_its_commit_succeeds(opened: Opened) -> None:
    """Its commit reports what a collection without grace removed. The client sends this again, and it reads back."""
    chunks = contents(3)
    digests = [chunk_digest(content) for content in chunks]
    await opened.repository.put([encoded(content) for content in chunks])
    assert [] == await opened.repository.missing(digests)

    await opened.collect()

    with pytest.raises(ChunksMissing) as caught:
        await opened.repository.commit(manifest(chunks).encoded, name="paused")
    assert set(map(str, digests)) == set(caught.value.digests)
    record = await opened.push(chunks, "paused")
    await opened.collect()
    await opened.check(chunks, record)


async def test_a_record_that_is_committed_between_mark_and_sweep_keeps_its_chunks(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks were there before, and nothing else needed them."""
    chunks = contents(3)
    await opened.repository.put([encoded(content) for content in chunks])
    collection = opened.collection()
    mark = collection._mark
    records: list[Record] = []

    async def mark_and_commit() -> None:
        await mark()
        records.append(await opened.repository.commit(manifest(chunks).encoded, name="late"))

    monkeypatch.setattr(collection, "_mark", mark_and_commit)
    report = await collection.run()

    assert 0 == report.freed.count
    await opened.check(chunks, records[0])


async def test_condemned_chunks_that_are_pushed_again_stay(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is put between the two transactions of a collection is live again, and is not removed."""
    chunks = contents(3)
    await opened.repository.put([encoded(content) for content in chunks])
    collection = opened.collection()
    remove_condemned = collection._remove_condemned
    records: list[Record] = []

    async def push_and_remove(*arguments: object) -> None:
        assert 3 == len(await opened.repository.missing([chunk_digest(content) for content in chunks]))
        records.append(await opened.push(chunks[:2], "again"))
        await remove_condemned(*arguments)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(collection, "_remove_condemned", push_and_remove)
    report = await collection.run()

    assert 1 == report.freed.count
    assert digests_of(*chunks[:2]) == await opened.frames()
    await opened.check(chunks[:2], records[0])


async def test_a_collection_lowers_what_counts_for_a_quota(opened: Opened) -> None:
    """Removed content counts until its rows are gone: a removal alone makes no room for other content."""
    first, second = contents(2)
    stored = len(encoded(first).data), len(encoded(second).data)
    manifest_size = len(manifest([first]).encoded)
    record = await opened.push([first], "first")
    opened.repository.quota = Quota(stored_size=sum(stored) + manifest_size - 1)
    with pytest.raises(QuotaExceeded):
        await opened.repository.put([encoded(second)])
    await opened.repository.remove(record.id)
    with pytest.raises(QuotaExceeded):
        await opened.push([second], "second")
    assert sum(stored) == (await opened.index.usage(NAMESPACE)).stored_size
    await opened.collect()
    assert NamespaceUsage(NAMESPACE) == await opened.index.usage(NAMESPACE)
    await opened.push([second], "second")
    assert NamespaceUsage(NAMESPACE, 1, 1, len(second), manifest_size, 1, stored[1]) == await opened.index.usage(NAMESPACE)


async def test_the_next_collection_removes_what_one_has_condemned(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a long grace period: nobody can use a condemned chunk."""
    await opened.repository.put([encoded(content) for content in contents(3)])
    collection = opened.collection()

    async def end(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr(collection, "_remove_condemned", end)
    with pytest.raises(KeyError):
        await collection.run()
    assert 3 == len(await opened.frames())
    assert 3 == (await opened.collect(grace_seconds=DAY)).abandoned_pushes.count
    assert set() == await opened.frames()


async def test_a_damaged_manifest_stops_a_collection(opened: Opened) -> None:
    """Nobody knows what its record needs. The error names the record, and nothing is removed, also no old version."""
    kept = contents(2)
    await opened.push(contents(1, seed=5), "versions")
    await opened.push(contents(1, seed=6), "versions")
    record = await opened.push(kept, "damaged")
    await opened.repository.put([encoded(content) for content in contents(2, seed=1)])
    async with opened.index.transaction() as transaction:
        await transaction.set_policy(NAMESPACE, Policy(keep_last=1))
    await opened.store.remove_manifest(NAMESPACE, ObjectName(record.digest))

    with pytest.raises(DamagedRecord) as caught:
        await opened.collect()

    facts = caught.value.named_facts()
    assert (record.id, "damaged") == (facts["file_id"], facts["name"])
    assert 6 == len(await opened.frames())
    assert 3 == len(await opened.repository.records())
    await opened.repository.remove(record.id)
    assert 5 == (await opened.collect()).freed.count - 1


async def test_a_damaged_manifest_stops_a_collection_while_one_of_its_records_is_removed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another record with the same manifest stays, and its chunks with it."""
    kept = await opened.push(contents(2), "kept")
    removed = await opened.push(contents(2), "removed")
    await opened.store.remove_manifest(NAMESPACE, ObjectName(kept.digest))
    read = opened.store.manifest

    async def read_while_removed(namespace: str, digest: Digest) -> bytes | None:
        if await opened.index.record(namespace, Reference(id=removed.id)) is not None:
            await opened.repository.remove(removed.id)
        return await read(namespace, digest)

    monkeypatch.setattr(opened.store, "manifest", read_while_removed)
    with pytest.raises(DamagedRecord) as caught:
        await opened.collect()

    assert kept.id == caught.value.named_facts()["file_id"]
    assert digests_of(*contents(2)) == await opened.frames()


@pytest.mark.parametrize("seconds", [10_000 * DAY, -10_000 * DAY], ids=["forward", "backward"])
async def test_a_clock_that_jumps_loses_nothing(opened: Opened, seconds: int) -> None:
    """Files stay, and a push that had asked before the jump ends well. After it, collections work as before."""
    kept = await opened.push(contents(2), "kept")
    pushed = contents(2, seed=1)
    await opened.repository.put([encoded(content) for content in pushed])
    opened.clock.advance(seconds=seconds)
    await opened.collect(grace_seconds=DAY)
    record = await opened.push(pushed, "pushed")
    await opened.check(pushed, record)
    await opened.check(contents(2), kept)

    await opened.repository.put([encoded(content) for content in contents(1, seed=2)])
    opened.clock.advance(seconds=-seconds)
    await opened.collect(grace_seconds=DAY)
    opened.clock.advance(seconds=DAY + 3601)
    await opened.collect(grace_seconds=DAY)
    assert digests_of(*contents(2), *pushed) == await opened.frames()


async def test_a_base_stays_while_a_chunk_needs_it(opened: Opened) -> None:
    """Also over several steps. When the chunk above is removed, the same collection removes the base."""
    above, middle, base = contents(3)
    kept = await opened.push([above], "above")
    await opened.repository.put([encoded(content) for content in (middle, base)])
    edges = [Base(chunk_digest(above), chunk_digest(middle)), Base(chunk_digest(middle), chunk_digest(base))]
    async with opened.index.transaction() as transaction:
        await transaction.add_bases(NAMESPACE, edges)
    report = await opened.collect()
    assert (0, 2) == (report.freed.count, report.waiting.count)
    assert digests_of(above, middle, base) == await opened.frames()

    await opened.repository.remove(kept.id)
    await opened.collect()
    assert set() == await opened.frames()


@pytest.mark.parametrize("policy", [Policy(-1, None), Policy(None, -DAY)])
async def test_a_policy_that_is_not_valid_removes_nothing(opened: Opened, policy: Policy) -> None:
    """The index may have come from elsewhere. Such a policy would remove the newest version of each name."""
    record = await opened.push(contents(1), "kept")
    async with opened.index.transaction() as transaction:
        await transaction.set_policy(NAMESPACE, policy)
    with pytest.raises(InvalidInput, match="policy cannot"):
        await opened.collect()
    assert [record] == await opened.repository.records()


async def test_a_removal_with_chunks_keeps_a_base_that_a_chunk_needs(opened: Opened) -> None:
    """`rm` with chunks follows the edges as a collection does: the other file could not be decoded without the base."""
    base, above = contents(2)
    removed = await opened.push([base], "removed")
    kept = await opened.push([above], "kept")
    async with opened.index.transaction() as transaction:
        await transaction.add_bases(NAMESPACE, [Base(chunk_digest(above), chunk_digest(base))])

    await opened.repository.remove(removed.id, with_chunks=True)

    assert digests_of(base, above) == await opened.frames()
    assert [] == await opened.index.missing(NAMESPACE, [chunk_digest(base)])
    await opened.check([above], kept)


async def test_a_policy_keeps_the_newest_versions_and_what_pipelines_use(opened: Opened) -> None:
    """The others go, with their chunks, in the same collection. Without a policy all versions stay."""
    files = [contents(1, seed=seed) for seed in range(5)]
    records = []
    for chunks in files:
        records.append(await opened.push(chunks, "model"))
        opened.clock.advance(seconds=DAY)
    other = await opened.push(contents(1, seed=9), "other")
    assert 0 == (await opened.collect()).freed.count
    async with opened.index.transaction() as transaction:
        await transaction.add_uses(NAMESPACE, [Use(records[0].id, "p", "p:v1")])
        await transaction.set_policy(NAMESPACE, Policy(keep_last=2))

    planned = await opened.collect(dry_run=True)
    assert 6 == len(await opened.repository.records())
    report = await opened.collect()

    assert report.as_json() == planned.as_json()
    assert (2, 2, 2) == (report.old_versions, report.removed_files.count, report.manifests.count)
    assert [other, records[4], records[3], records[0]] == await opened.repository.records()

    async with opened.index.transaction() as transaction:
        await transaction.set_policy(NAMESPACE, Policy(older_than_seconds=3 * DAY))
        await transaction.remove_uses(NAMESPACE, "p")
    assert 1 == (await opened.collect()).old_versions
    opened.clock.advance(seconds=100 * DAY)
    assert 1 == (await opened.collect()).old_versions
    assert [other, records[4]] == await opened.repository.records()


async def test_a_collection_goes_on_where_an_earlier_one_was_interrupted(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with the digests after the last page, and comes to all others afterwards."""
    await opened.repository.put([encoded(content) for content in contents(6)])
    digests = sorted(digests_of(*contents(6)))
    async with opened.index.transaction() as transaction:
        await transaction.set_task_state(NAMESPACE, TASK, {"cursor": str(digests[2])})
    removed: list[Digest] = []
    store_remove = opened.store.remove

    async def remove(namespace: str, names: Sequence[ObjectName]) -> None:
        removed.extend(name.digest for name in names)
        await store_remove(namespace, names)

    monkeypatch.setattr(opened.store, "remove", remove)
    await opened.collect()
    assert [*digests[3:], *digests[:3]] == removed
    state = await opened.index.task_state(NAMESPACE, TASK)
    assert None is state, "nothing of the namespace is left"


async def test_a_second_attempt_of_a_collection_removes_nothing_that_records_need(opened: Opened) -> None:
    """A collection that failed on a full disk is run again with the space of the reserve. It marks all records again."""
    chunks = contents(40, size=500)
    record = await opened.push(chunks, "kept")
    opened.clock.now += DAY * 1_000_000
    collection = opened.collection()
    await collection.run()

    report = await collection.run()

    assert Freed() == report.freed
    await opened.check(chunks, record)


async def test_a_namespace_is_collected_for_itself(opened: Opened) -> None:
    """The same content in another namespace stays."""
    chunks = contents(2)
    other = LocalRepository(opened.store, opened.index, location="tested", namespace="other")
    await other.put([encoded(content) for content in chunks])
    record = await other.commit(manifest(chunks).encoded, name="of another")
    await opened.repository.put([encoded(content) for content in chunks])
    assert 2 == (await opened.collect()).freed.count
    assert manifest(chunks).encoded == await other.manifest(record.digest)
    assert None not in await other.get(list(digests_of(*chunks)), buffer_for(2))


async def test_removal_leaves_no_empty_folders(tmp_path: Path) -> None:
    """With small chunks, they would take as much as the chunks took."""
    root = tmp_path / "store"
    async with connect(root, create=True) as repository:
        await repository.put([encoded(content) for content in contents(5)])
        record = await repository.commit(manifest(contents(5)).encoded, name="name")
        await repository.remove(record.id)
    report = await collect(root)
    assert 6 == report.freed.count
    assert [root / "chunks/default", root / "manifests/default"] == sorted(root.glob("*/default"))
    assert [] == [*root.glob("chunks/default/*"), *root.glob("manifests/default/*")]


def size_on_disk(root: Path) -> int:
    """Return the bytes that a repository takes, with the blocks of folders, without the reserve, which all have."""
    return sum(path.lstat().st_blocks * 512 for path in (root, *root.rglob("*")) if path.name != "reserve")


async def push_file(root: Path, content: bytes) -> None:
    """Store a version of a file."""
    path = root.parent / "model.bin"
    path.write_bytes(content)
    async with connect(root, create=True) as repository:
        await push(repository, path)


@pytest.mark.slow
async def test_one_version_of_twenty_takes_as_much_as_in_a_new_store(tmp_path: Path) -> None:
    """After 19 are removed, and a collection, at most 3 % more. Half of each version is that of the one before."""
    generator = random.Random(1)
    halves = [generator.randbytes(VERSION_SIZE // 2) for _ in range(21)]
    for first, second in pairwise(halves):
        await push_file(tmp_path / "used", first + second)
    await push_file(tmp_path / "new", halves[-2] + halves[-1])
    store, index = await open_backend(tmp_path / "used")
    async with index.transaction() as transaction:
        await transaction.set_policy(NAMESPACE, Policy(keep_last=1))
    full = size_on_disk(tmp_path / "used")
    report = await Collection(store, index, NAMESPACE, grace_seconds=0).run()
    await index.close()
    await store.close()

    used, new = (size_on_disk(tmp_path / name) for name in ("used", "new"))
    assert (19, True) == (report.old_versions, full > 9 * new)
    assert used <= 1.03 * new
    async with connect(tmp_path / "used") as repository:
        await fetch(repository, "model.bin", target=tmp_path / "fetched.bin")
    assert halves[-2] + halves[-1] == (tmp_path / "fetched.bin").read_bytes()


@pytest.mark.slow
def test_a_collection_is_killed_at_any_call(tmp_path: Path) -> None:
    """The next one completes it. What a record needs is never touched."""
    with start_module("tests.support.collection_crashes", tmp_path) as process:
        killed = int(process.communicate()[0])
    assert (0, True) == (process.returncode, killed > 20)

    async def check(root: Path) -> None:
        await collect(root)
        async with connect(root) as repository:
            record = await repository.record(KEPT)
            digests = [chunk_digest(content) for content in (*SHARED, *NEW)]
            assert None not in await repository.get(digests, buffer_for(len(digests)))
            assert manifest([*SHARED, *NEW]).encoded == await repository.manifest(record.digest)
        assert 2 == sum(1 for _ in root.glob("chunks/default/*/*/*"))
        assert 1 == sum(1 for _ in root.glob("manifests/default/*/*/*"))

    for place in range(1, killed + 1):
        asyncio.run(check(tmp_path / str(place)))


@pytest.mark.slow
async def test_two_collections_pushes_and_removals_at_once(tmp_path: Path) -> None:
    """Every push ends well and reads back, whatever is collected meanwhile without grace."""
    root = tmp_path / "root"
    await prepare(root)
    done = asyncio.Event()

    async def push_and_remove(number: int) -> None:
        store, index = await open_backend(root)
        opened = Opened(store, index, Clock())
        for turn in range(6):
            chunks = [*SHARED, *contents(2, seed=100 * number + turn)]
            missing = await opened.repository.missing([chunk_digest(content) for content in chunks])
            while True:
                await opened.repository.put([encoded(content) for content in chunks if chunk_digest(content) in missing])
                try:
                    record = await opened.repository.commit(manifest(chunks).encoded, name=f"{number}", kind=Kind.FILE)
                    break
                except ChunksMissing as error:
                    missing = [Digest.parse(text) for text in error.digests]
            await opened.check(chunks, record)
            await opened.repository.remove(record.id)
        await opened.repository.close()

    async def collect_until_done() -> int:
        freed = 0
        while not done.is_set():
            freed += (await collect(root)).freed.count
        return freed

    async with asyncio.TaskGroup() as group:
        collections = [group.create_task(collect_until_done()) for _ in range(2)]
        async with asyncio.TaskGroup() as pushes:
            for number in (10, 11):
                pushes.create_task(push_and_remove(number))
        done.set()
    await collect(root)
    assert 0 < sum(collection.result() for collection in collections)
    async with connect(root) as repository:
        assert [KEPT] == [record.name for record in await repository.records()]
        with pytest.raises(NotFound):
            await repository.record("removed")
    assert 2 == sum(1 for _ in root.glob("chunks/default/*/*/*"))
