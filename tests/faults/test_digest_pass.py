"""A server computes SHA-256 and git's blob id of what it stores, whatever is damaged, removed or killed meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from filestore.backends import connect, open_backend
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.http.server.digest_pass import FAILURE_SECONDS, LONG_SECONDS, TASK, TURN_SECONDS, DigestPass
from filestore.repository.local import LocalRepository
from filestore.system.threads import work_beside
from filestore.transfer.content_hashing import KEEP_SIZE, READ_SIZE
from filestore.transfer.push import push
from filestore.transfer.stored_tree import StoredTree
from tests.support.archives import Forged, forged
from tests.support.commands import start_module
from tests.support.fetching_trees import stored
from tests.support.generator import octets, prose
from tests.support.process_memory import peak_growth
from tests.support.secondary_digests import World, a_world, digests_of, nothing, pushed
from tests.support.trees import Planted

N = DEFAULT_NAMESPACE
MIB = 1 << 20
LARGE = octets(1, 9 * MIB)
TREE: dict[str, Planted] = {"config.json": prose(1, 700), "empty.txt": b"", "model.bin": LARGE}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A repository in memory."""
    async with a_world(tmp_path) as world:
        yield world


async def file(world: World, folder: Path, content: bytes, *, name: str) -> Record:
    """A record of a file."""
    (folder / "file").write_bytes(content)
    return (await push(world.repository, folder / "file", name=name)).record


async def test_names_with_an_owner_are_done(world: World, tmp_path: Path) -> None:
    """Trees and files. Others are done when somebody asks for them."""
    tree = await pushed(world.repository, tmp_path / "tree", TREE, name="team/tree")
    alone = await file(world, tmp_path, LARGE, name="team/file.bin")
    empty = await file(world, tmp_path, b"", name="team/empty")
    other = await pushed(world.repository, tmp_path / "other", {"a": b"a"}, name="other")
    assert await world.digest_pass.work()

    assert await world.expected(tree) == await world.known(tree)
    assert [digests_of(LARGE), digests_of(b"")] == [await world.known_file(alone), await world.known_file(empty)]
    assert await world.known(other) is None
    world.digest_pass.wanted(N, other.digest)
    world.digest_pass.wanted(N, tree.digest)
    assert await world.digest_pass.work()
    assert await world.expected(other) == await world.known(other)
    assert 0 == world.digest_pass.waiting


async def test_what_is_known_is_not_read_again(world: World, tmp_path: Path) -> None:
    """A second version costs what is new in it, and the content of a tree costs nothing as a file of its own."""
    first = await pushed(world.repository, tmp_path / "tree", TREE, name="team/tree")
    await world.digest_pass.work()
    size = world.store.read_size
    await world.digest_pass.work()
    await world.new_pass().work()
    assert size == world.store.read_size

    second = await pushed(world.repository, tmp_path / "new/tree", {**TREE, "config.json": b"{}"}, name="team/tree")
    alone = await file(world, tmp_path, LARGE, name="team/file.bin")
    size = world.store.read_size  # a push may look at frames too
    await world.digest_pass.work()
    assert world.store.read_size < size + MIB
    assert await world.expected(second) == await world.known(second) != await world.known(first)
    assert digests_of(LARGE) == await world.known_file(alone)
    found = await world.index.contents_by_sha256(N, [digests_of(LARGE).sha256])
    assert second.digest == found[digests_of(LARGE).sha256].source


async def test_the_newest_is_done_first(world: World, tmp_path: Path) -> None:
    """What was just pushed is what is asked for next. What was asked for comes before it."""
    records = [
        await pushed(world.repository, tmp_path / f"{number}", {"a": b"%d" % number}, name=f"team/{number}")
        for number in range(4)
    ]
    done: list[int] = []

    async def note() -> None:
        for number, record in enumerate(records):
            if number not in done and await world.known(record):
                done.append(number)
        world.now += TURN_SECONDS

    world.store.before = note
    world.digest_pass.wanted(N, records[1].digest)
    while not await world.digest_pass.work():
        await note()
    await note()
    assert [1, 3, 2, 0] == done


async def test_what_is_stored_meanwhile_is_done_next(world: World, tmp_path: Path) -> None:
    """A long queue of old versions does not hold it up."""
    old = [
        await pushed(world.repository, tmp_path / f"{number}", {"a": b"%d" % number}, name=f"team/{number}")
        for number in range(3)
    ]
    new: list[Record] = []
    order: list[Record] = []

    async def store_another() -> None:
        if not new:
            new.append(await pushed(world.repository, tmp_path / "new", {"a": b"new"}, name="team/new"))
            world.digest_pass.wake()
        for record in (*old, *new):
            if record not in order and await world.known(record):
                order.append(record)

    world.store.before = store_another
    assert await world.digest_pass.work()
    await store_another()
    assert [old[2], *new, old[1], old[0]] == order


async def test_a_damaged_chunk(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged by name, other files are done, and after an hour it is tried again, also by another process."""
    bad = await pushed(world.repository, tmp_path / "bad", {"model.bin": octets(2, 9 * MIB)}, name="team/bad")
    good = await pushed(world.repository, tmp_path / "good", TREE, name="team/good")
    tree = await StoredTree.open(world.repository, bad.digest)
    chunk = tree.manifest.chunks[1].digest
    frame = world.store._frames[N, chunk]
    world.store._frames[N, chunk] = frame[:-1] + bytes([frame[-1] ^ 1])
    await world.digest_pass.work()

    assert await world.known(bad) is None
    assert await world.expected(good) == await world.known(good)
    assert 1 == caplog.text.count("'team/bad'")
    size = world.store.read_size
    world.digest_pass.wanted(N, bad.digest)
    await world.digest_pass.work()
    assert size == world.store.read_size

    world.store._frames[N, chunk] = frame
    world.now += FAILURE_SECONDS
    assert await world.digest_pass.work()
    assert await world.expected(bad) == await world.known(bad)
    assert {"failed": []}.items() <= (await world.index.task_state(N, TASK) or {}).items()


async def test_a_failure_is_known_to_the_next_process(world: World, tmp_path: Path) -> None:
    """It is tried again after a restart, although newer records are done."""
    bad = await pushed(world.repository, tmp_path / "bad", TREE, name="team/bad")
    await pushed(world.repository, tmp_path / "good", {"a": b"a"}, name="team/good")
    tree = await StoredTree.open(world.repository, bad.digest)
    chunk = tree.manifest.chunks[1].digest
    frame = world.store._frames.pop((N, chunk))
    await world.digest_pass.work()
    world.store._frames[N, chunk] = frame
    assert await world.known(bad) is None
    await world.new_pass().work()
    assert await world.expected(bad) == await world.known(bad)


@pytest.mark.parametrize("done", ["x", None, -1, 1 << 70, float("inf"), {}])
@pytest.mark.parametrize("failed", [[], 7, ["zz"], [7]])
async def test_a_state_that_is_not_valid(world: World, tmp_path: Path, done: object, failed: object) -> None:
    """It is the same as none."""
    record = await pushed(world.repository, tmp_path / "tree", TREE, name="team/tree")
    async with world.index.transaction() as transaction:
        await transaction.set_task_state(N, TASK, {"done": done, "failed": failed})
    await world.digest_pass.work()
    assert await world.expected(record) == await world.known(record)


async def test_a_tree_that_nobody_can_unpack(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused once, and not read again for the next hour."""
    good = await stored(world.repository, forged([Forged("a", prose(1, 100), crc=1)]))
    text = await stored(world.repository, b"no archive")
    for number, record in enumerate((good, text)):
        await world.repository.commit(await world.repository.manifest(record.digest), name=f"team/{number}", kind=Kind.DIRECTORY)
    assert await world.digest_pass.work()
    assert [1, 1] == [caplog.text.count(f"'team/{number}'") for number in range(2)]
    world.digest_pass.wanted(N, good.digest)
    assert 0 == world.digest_pass.waiting
    assert await world.digest_pass.work()
    assert 2 == len(caplog.records)


@pytest.mark.parametrize(
    "entries",
    [
        [Forged("bomb", bytes(300 * MIB), deflated=True)],
        [Forged("more", bytes(MIB), deflated=True, size=1000)],
        [Forged("less", bytes(1000), deflated=True, size=2000)],
        [Forged("a", b"content"), Forged("b", b"other", offset=0)],
        [Forged("a", b"content", local={"crc": 1}), Forged("../b", b"x")],
    ],
    ids=["a bomb", "more than it states", "less than it states", "entries in the same place", "a path that escapes"],
)
async def test_a_hostile_tree(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, entries: list[Forged]) -> None:
    """It is refused, without more memory than its limits permit, and the next tree is done."""
    good = await pushed(world.repository, tmp_path / "good", {"a": b"a"}, name="team/good")
    kept = await stored(world.repository, forged(entries))
    bad = await world.repository.commit(await world.repository.manifest(kept.digest), name="team/bad", kind=Kind.DIRECTORY)
    with peak_growth(os.getpid()) as growth:
        assert await world.digest_pass.work()
        assert growth() < 48 * MIB
    assert (None, await world.expected(good)) == (await world.known(bad), await world.known(good))
    assert 1 == caplog.text.count("'team/bad'")
    assert "Traceback" not in caplog.text


async def test_a_fault_of_our_own(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others are done."""
    good = await pushed(world.repository, tmp_path / "good", {"a": b"a"}, name="team/good")
    bad = await pushed(world.repository, tmp_path / "bad", {"b": b"b"}, name="team/bad")

    async def fail() -> None:
        world.store.before = nothing
        raise ZeroDivisionError

    world.store.before = fail
    assert await world.digest_pass.work()
    assert (None, await world.expected(good)) == (await world.known(bad), await world.known(good))
    assert "ZeroDivisionError" in caplog.text
    assert "'team/bad'" in caplog.text


async def test_a_foreign_archive_as_a_directory(world: World, tmp_path: Path) -> None:
    """Deflated entries have digests too."""
    archive = forged([Forged("a", prose(1, MIB), deflated=True), Forged("b", prose(2, 100), deflated=True), Forged("c", LARGE)])
    kept = await stored(world.repository, archive)
    record = await world.repository.commit(await world.repository.manifest(kept.digest), name="team/foreign", kind=Kind.DIRECTORY)
    await world.digest_pass.work()
    contents = (prose(1, MIB), prose(2, 100), LARGE)
    assert b"".join(digests_of(content).packed for content in contents) == await world.known(record)


async def test_a_record_is_removed_in_the_middle(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is left of it in the index, and the log has nothing to say."""
    record = await pushed(world.repository, tmp_path / "tree", TREE, name="team/tree")
    tree = await StoredTree.open(world.repository, record.digest)

    async def remove() -> None:
        world.store.before = nothing
        async with world.index.transaction() as transaction:
            await transaction.remove_record(N, record.id)
        for chunk in tree.manifest.chunks:
            world.store._frames.pop((N, chunk.digest), None)

    world.store.before = remove
    caplog.set_level(logging.INFO)
    assert await world.digest_pass.work()
    assert await world.known(record) is None
    assert {} == await world.index.contents_by_sha256(N, [digests_of(LARGE).sha256])
    assert [] == [line for line in caplog.records if line.name == "filestore.maintenance"]


async def test_a_pass_is_stopped_in_the_middle(world: World, tmp_path: Path) -> None:
    """A cancel at any batch leaves nothing half done, and the next pass completes it."""
    record = await pushed(world.repository, tmp_path / "tree", TREE, name="team/tree")
    reads = 0

    async def cancel() -> None:
        nonlocal reads
        reads += 1
        if reads == 3:
            working.cancel()
            await asyncio.sleep(0)

    world.store.before = cancel
    working = asyncio.create_task(world.digest_pass.work())
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await world.known(record) is None
    assert await world.digest_pass.work()
    assert await world.expected(record) == await world.known(record)


async def test_a_question_is_answered_in_the_middle(world: World, tmp_path: Path) -> None:
    """A large tree that is under way does not hold it up."""
    large = await pushed(world.repository, tmp_path / "large", {"model.bin": octets(3, 8 * READ_SIZE)}, name="team/large")
    small = await pushed(world.repository, tmp_path / "small", {"a": b"a"}, name="small")
    reads = 0
    known_at = 0

    async def ask() -> None:
        nonlocal reads, known_at
        reads += 1
        if reads == 3:
            world.digest_pass.wanted(N, small.digest)
        if not known_at and await world.known(small):
            known_at = reads

    world.store.before = ask
    assert await world.digest_pass.work()
    assert 3 < known_at < reads
    assert await world.expected(large) == await world.known(large)


async def test_a_question_to_another_process_is_answered(world: World, tmp_path: Path) -> None:
    """While one process has a long pass under way, another one does what it is asked for, and nothing else."""
    due = await pushed(world.repository, tmp_path / "due", {"a": b"due"}, name="team/due")
    asked = await pushed(world.repository, tmp_path / "asked", {"a": b"asked"}, name="asked")
    async with world.index.try_lock(TASK) as is_ours, work_beside(world.digest_pass.run()):
        assert is_ours
        world.digest_pass.wanted(N, asked.digest)
        while await world.known(asked) is None:
            await asyncio.sleep(0)
    assert await world.known(due) is None
    assert await world.digest_pass.work()
    assert await world.expected(due) == await world.known(due)


async def test_without_work_no_lock_is_taken(world: World, tmp_path: Path) -> None:
    """Names without an owner change nothing in the folder, and need not be looked at twice."""
    await pushed(world.repository, tmp_path / "tree", TREE, name="plain")
    looks = 0

    class Waking(asyncio.Event):
        async def wait(self) -> Literal[True]:
            nonlocal looks
            looks += 1
            if looks == 2:
                running.cancel()
            return True

    world.digest_pass._woken = Waking()
    running = asyncio.create_task(world.digest_pass.run())
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [] == list(tmp_path.glob("*.lock"))
    assert await world.index.task_state(N, TASK) is None


async def test_another_namespace_has_its_turn_in_the_middle(world: World, tmp_path: Path) -> None:
    """A large file of one namespace does not hold up what another one stores."""
    large = await pushed(world.repository, tmp_path / "large", {"model.bin": octets(3, 8 * READ_SIZE)}, name="team/large")
    other = LocalRepository(world.store, world.index, location="memory", namespace="other")
    done_at: list[int] = []
    reads = 0

    async def store_another() -> None:
        nonlocal reads
        reads += 1
        if reads == 2:
            small.append(await pushed(other, tmp_path / "small", {"a": b"a"}, name="others/small"))
            world.digest_pass.wake()
            world.now += LONG_SECONDS
        if small and not done_at and await world.index.tree_digests("other", small[0].digest):
            done_at.append(reads)

    small: list[Record] = []
    world.store.before = store_another
    assert await world.digest_pass.work()
    assert [True] == [place < reads for place in done_at]
    assert await world.expected(large) == await world.known(large)


@pytest.mark.slow
async def test_memory_does_not_grow_with_content(tmp_path: Path) -> None:
    """I6: one batch is in memory, whatever the size of a file."""
    content = random.Random(1).randbytes(200 * MIB)
    async with connect(tmp_path / "root", create=True) as repository:
        record = await pushed(repository, tmp_path / "tree", {"model.bin": content}, name="team/tree")
    store, index = await open_backend(tmp_path / "root")
    with peak_growth(os.getpid()) as growth:
        assert await DigestPass(store, index).work()
        assert growth() < 48 * MIB
    assert digests_of(content).packed == await index.tree_digests(N, record.digest)
    await index.close()
    await store.close()


@pytest.mark.slow
async def test_a_pass_is_killed_in_the_middle(tmp_path: Path) -> None:
    """Of the large file that had ended, no byte is read again."""
    size = KEEP_SIZE + READ_SIZE
    batches = size // READ_SIZE
    contents = [random.Random(number).randbytes(size) for number in range(2)]
    things: dict[str, Planted] = {f"{number}.bin": content for number, content in enumerate(contents)}
    async with connect(tmp_path / "root", create=True) as repository:
        record = await pushed(repository, tmp_path / "tree", things, name="team/tree")
    with start_module("tests.support.secondary_digests", tmp_path / "root", str(batches + batches // 2)) as process:
        assert -signal.SIGKILL == process.wait()

    store, index = await open_backend(tmp_path / "root")
    assert 1 == len(await index.contents_by_sha256(N, [digests_of(content).sha256 for content in contents]))
    assert await index.tree_digests(N, record.digest) is None
    # It dies again if it reads much more than the other file.
    with start_module("tests.support.secondary_digests", tmp_path / "root", str(batches + batches // 4)) as process:
        assert 0 == process.wait()
    assert b"".join(digests_of(content).packed for content in contents) == await index.tree_digests(N, record.digest)
    await index.close()
    await store.close()
