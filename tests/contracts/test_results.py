"""Collections and checks keep how they went, in every index."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from filestore.backends import connect, open_backend
from filestore.core.digest import Digest, chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.errors import CollectionHeld, StorageError
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import CheckCounts, ReadPlan, check
from filestore.repository.maintenance.collect import Collection, CollectionReport, Freed
from filestore.repository.maintenance.collection_plan import TASK
from filestore.repository.maintenance.hold import hold_collection
from filestore.repository.maintenance.repair import repair
from filestore.repository.maintenance.results import (
    NO_NAMESPACE,
    LastResults,
    Outcome,
    ResultKind,
    TaskResult,
    collection_results,
    keep_result,
    results_of,
)
from filestore.repository.stores.memory import MemoryStore
from filestore.repository.stores.protocol import FrameState
from tests.contracts.conftest import Clock
from tests.support.frames import contents, encoded, manifest

N = DEFAULT_NAMESPACE
ATTEMPT = TaskResult(began_at=1_000_000, ended_at=3_500_000, outcome=Outcome.COMPLETE, facts={"freed_size": 7})
FAILED = TaskResult(began_at=4_000_000, ended_at=5_000_000, outcome=Outcome.FAILED, error="the disk is full")
KILLED = """
import asyncio, os, sys
from pathlib import Path
from filestore.backends import open_backend
from filestore.repository.maintenance.collect import Collection, CollectionReport, Freed
from filestore.repository.maintenance.collection_plan import TASK

async def collect():
    store, index = await open_backend(Path(sys.argv[1]))
    await Collection(store, index, "default", grace_seconds=0, stop=lambda: os.kill(os.getpid(), 9)).run()

asyncio.run(collect())
"""


async def stored(store: MemoryStore, index: Index, *, namespace: str = N) -> LocalRepository:
    """Return a repository in memory with one file that is kept, and one that was removed."""
    repository = LocalRepository(store, index, location="memory", namespace=namespace)
    for seed, name in enumerate(("kept", "removed")):
        chunks = contents(2, seed=seed)
        await repository.put([encoded(content) for content in chunks])
        record = await repository.commit(manifest(chunks).encoded, name=name)
    await repository.remove(record.id)
    return repository


async def collected(index: Index, namespace: str = N) -> LastResults:
    """Return what is kept of collections."""
    return await results_of(index, namespace, ResultKind.COLLECTION)


async def checked(index: Index, namespace: str = N) -> LastResults:
    """Return what is kept of checks."""
    return await results_of(index, namespace, ResultKind.CHECK)


async def test_a_failure_leaves_the_last_one_that_came_to_its_end(index: Index) -> None:
    """Each kind, and each namespace, has its own."""
    assert LastResults() == await collected(index)
    await keep_result(index, N, ResultKind.COLLECTION, ATTEMPT)
    assert LastResults(ATTEMPT, ATTEMPT) == await collected(index)
    await keep_result(index, N, ResultKind.COLLECTION, FAILED)
    assert LastResults(FAILED, ATTEMPT) == await collected(index)
    assert 2.5 == ATTEMPT.seconds
    assert (LastResults(), LastResults()) == (await checked(index), await collected(index, "other"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"began_at": "1"},
        {"began_at": 1, "ended_at": -1, "outcome": "complete", "error": "", "facts": {}},
        {"began_at": 1, "ended_at": 1 << 70, "outcome": "complete", "error": "", "facts": {}},
        {"began_at": 1, "ended_at": 1, "outcome": "of a later version", "error": "", "facts": {}},
        {"began_at": 1, "ended_at": 1, "outcome": "complete", "error": 5, "facts": {}},
        {"began_at": 1, "ended_at": 1, "outcome": "complete", "error": "", "facts": []},
        "text",
    ],
)
async def test_what_cannot_be_understood_is_not_known(index: Index, values: object) -> None:
    """A later version may have written it."""
    async with index.transaction(N) as transaction:
        await transaction.set_task_state(N, ResultKind.CHECK, {"last": values, "complete": ATTEMPT.as_json()})
    assert LastResults(None, ATTEMPT) == await checked(index)


async def test_numbers_that_are_none_are_left_out(index: Index) -> None:
    """The others stay."""
    values = {**ATTEMPT.as_json(), "facts": {"freed_size": 7, "text": "7", "yes": True, "negative": -1, "huge": 1 << 64}}
    async with index.transaction(N) as transaction:
        await transaction.set_task_state(N, ResultKind.CHECK, {"last": values})
    assert LastResults(ATTEMPT, None) == await checked(index)


async def test_a_collection_keeps_what_it_freed(index: Index, clock: Clock) -> None:
    """A dry run keeps nothing."""
    store = MemoryStore()
    await stored(store, index)
    dry = await Collection(store, index, N, grace_seconds=0, dry_run=True, now=lambda: clock.now + 1).run()
    assert LastResults() == await collected(index)
    report = await Collection(store, index, N, grace_seconds=0, now=lambda: clock.now + 1).run()
    last, complete = await collected(index)
    assert last is not None
    assert (Outcome.COMPLETE, complete) == (last.outcome, last)
    assert last.ended_at >= last.began_at > 0
    assert dry.freed == report.freed
    assert report.freed.size == last.facts["freed_size"] > 0
    assert (3, 2) == (last.facts["freed_count"], last.facts["kept_count"])  # two chunks and a manifest


async def test_what_an_earlier_version_kept_is_known(index: Index) -> None:
    """It kept the report of the last collection that came to its end, and no others."""
    report = CollectionReport(N, removed_files=Freed(2, 30), old_versions=4, kept=Freed(5, 60)).as_json()
    async with index.transaction(N) as transaction:
        await transaction.set_task_state(N, TASK, {"started_at": 1_000_000, "ended_at": 2_000_000, "report": report})
    last, complete = await collection_results(index, N)
    assert last is not None
    assert (last, 1.0, Outcome.COMPLETE) == (complete, last.seconds, last.outcome)
    expected = {"freed_count": 2, "freed_size": 30, "waiting_count": 0, "waiting_size": 0}
    assert {**expected, "kept_count": 5, "kept_size": 60, "old_versions": 4} == last.facts
    await keep_result(index, N, ResultKind.COLLECTION, FAILED)
    assert LastResults(FAILED, complete) == await collection_results(index, N)
    await keep_result(index, N, ResultKind.COLLECTION, ATTEMPT)
    assert LastResults(ATTEMPT, ATTEMPT) == await collection_results(index, N)
    async with index.transaction(N) as transaction:
        await transaction.set_task_state(N, ResultKind.COLLECTION, None)
        await transaction.set_task_state(N, TASK, {"cursor": "x", "ended_at": 5, "started_at": 1, "report": []})
    assert LastResults() == await collection_results(index, N)


async def test_a_collection_that_is_held_or_stopped_says_so(index: Index) -> None:
    """The last whole one stays beside it."""
    store = MemoryStore()
    await stored(store, index)
    await Collection(store, index, N, grace_seconds=0, stop=lambda: True).run()
    last, complete = await collected(index)
    assert last is not None
    assert (Outcome.STOPPED, None) == (last.outcome, complete)
    await hold_collection(store, index, reason="a test")
    with pytest.raises(CollectionHeld) as raised:
        await Collection(store, index, N, grace_seconds=0).run()
    last, _ = await collected(index)
    assert last is not None
    assert (Outcome.FAILED, str(raised.value)) == (last.outcome, last.error)


async def test_a_collection_that_is_cancelled_stays_open(index: Index) -> None:
    """Nobody can tell it from one that is in progress, and the next one replaces it."""
    store = MemoryStore()
    await stored(store, index)
    collecting: list[asyncio.Task[object]] = []

    def stop() -> bool:
        collecting[0].cancel()
        return False

    collecting.append(asyncio.create_task(Collection(store, index, N, grace_seconds=0, stop=stop).run()))
    with pytest.raises(asyncio.CancelledError):
        await collecting[0]
    last, complete = await collected(index)
    assert last is not None
    assert (Outcome.OPEN, 0, 0.0, None) == (last.outcome, last.ended_at, last.seconds, complete)
    await Collection(store, index, N, grace_seconds=0).run()
    last, complete = await collected(index)
    assert last is not None
    assert (Outcome.COMPLETE, last) == (last.outcome, complete)


async def test_nothing_stays_of_a_namespace_that_is_gone(index: Index) -> None:
    """The default namespace is always there."""
    for namespace in (N, "gone"):
        await Collection(MemoryStore(), index, namespace, grace_seconds=0).run()
    assert LastResults() == await collected(index, "gone")
    last, _ = await collected(index)
    assert last is not None
    assert 0 == last.facts["freed_count"]


async def test_a_check_keeps_what_it_found_in_each_namespace(index: Index) -> None:
    """A check that may not write gives it to the caller alone."""
    store = MemoryStore()
    await stored(store, index)
    await stored(store, index, namespace="other")
    lost = contents(2)[0]
    await store.remove(N, [ObjectName(chunk_digest(lost))])
    counts = CheckCounts()
    _ = [found async for found in check(store, index, counts=counts, writes=False)]
    assert (LastResults(), [NO_NAMESPACE, N, "other"]) == (await checked(index), list(counts.results))

    _ = [found async for found in check(store, index, read=ReadPlan())]
    damaged, whole = (await checked(index))[0], (await checked(index, "other"))[0]
    assert damaged is not None
    assert whole is not None
    assert (1, 1, 1, 4) == tuple(damaged.facts[f"{name}_count"] for name in ("damage", "file", "record", "chunk"))
    assert (0, 0, 1, 4) == tuple(whole.facts[f"{name}_count"] for name in ("damage", "file", "record", "chunk"))
    assert whole.facts["read_size"] == whole.facts["stored_size"] > 0
    assert 1 == whole.facts["reclaimable_count"]  # the manifest of the removed file
    assert counts.results[N].facts["damage_count"] == damaged.facts["damage_count"]
    of_index, _ = await checked(index, NO_NAMESPACE)
    assert of_index is not None
    assert 0 == of_index.facts["damage_count"]


async def test_a_check_that_fails_says_why(index: Index) -> None:
    """What it found before counts."""

    class Unreadable(MemoryStore):
        async def inspect(self, namespace: str, digests: Sequence[Digest]) -> list[FrameState]:  # noqa: ARG002  # of the protocol
            raise StorageError("the store", "it does not answer")

    store = Unreadable()
    await stored(store, index)
    with pytest.raises(StorageError) as raised:
        _ = [found async for found in check(store, index)]
    last, complete = await checked(index)
    assert last is not None
    assert (Outcome.FAILED, str(raised.value), None) == (last.outcome, last.error, complete)


async def test_a_repair_keeps_what_is_still_wrong(index: Index) -> None:
    """A push of what is lost makes the next check find nothing."""
    store = MemoryStore()
    repository = await stored(store, index)
    chunks = contents(2)
    await store.remove(N, [ObjectName(chunk_digest(chunks[0]))])
    await repair(store, index)
    last, _ = await checked(index)
    assert last is not None
    assert (1, 1) == (last.facts["damage_count"], last.facts["file_count"])
    await repository.put([encoded(chunks[0])])
    await repair(store, index)
    last, _ = await checked(index)
    assert last is not None
    assert (0, 0) == (last.facts["damage_count"], last.facts["file_count"])


async def test_a_collection_that_is_killed_stays_open(tmp_path: Path) -> None:
    """The one before it is still known, and the next one comes to its end."""
    root = tmp_path / "root"
    async with connect(root, create=True) as repository:
        chunks = contents(2)
        await repository.put([encoded(content) for content in chunks])
        await repository.commit(manifest(chunks).encoded, name="kept")
    store, index = await open_backend(root)
    await Collection(store, index, N, grace_seconds=0).run()
    _, before = await collected(index)
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED, str(root)], check=False)
    assert -signal.SIGKILL == killed.returncode
    last, complete = await collected(index)
    assert last is not None
    assert (Outcome.OPEN, before) == (last.outcome, complete)
    await Collection(store, index, N, grace_seconds=0).run()
    last, complete = await collected(index)
    assert last is not None
    assert (Outcome.COMPLETE, last) == (last.outcome, complete)
    await index.close()
    await store.close()
