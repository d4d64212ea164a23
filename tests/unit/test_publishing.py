"""Publications that share a transaction."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.errors import Busy, QuotaExceeded, StorageError
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.index.sqlite import open_index
from filestore.repository.stores.disk import open_store
from filestore.repository.stores.staging_file import DiskStaging
from filestore.repository.stores.staging_folder import StagingFolder
from tests.support.publications import Frames, rows

A = "a"


@pytest.fixture(params=["sqlite", "postgres"])
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Index]:
    """An index."""
    opened: Index
    if request.param == "sqlite":
        opened = await open_index(tmp_path / "index.sqlite", turnstile=tmp_path)
    else:
        opened = await open_postgres_index(request.getfixturevalue("postgres_index_url"))
    yield opened
    await opened.close()


async def publish_together(index: Index, *publications: Frames) -> list[list[ChunkRow] | BaseException]:
    """Publish while another task writes, so that all wait for the same turn. Return the outcomes."""
    async with asyncio.TaskGroup() as group:
        async with index.transaction():
            waiting = [group.create_task(outcome(index, each)) for each in publications]
            await asyncio.sleep(0)
        return list(await asyncio.gather(*waiting))


async def outcome(index: Index, publication: Frames) -> list[ChunkRow] | BaseException:
    """Publish, and return the new rows or the error."""
    try:
        return await index.publish(publication)
    except (StorageError, QuotaExceeded, Busy) as error:
        return error


async def live(index: Index, *expected: ChunkRow) -> bool:
    """Return whether exactly these rows are there."""
    found = {state.row.digest for state in await index.chunk_rows(A, limit=1000)}
    return found == {row.digest for row in expected}


async def test_what_waits_is_synced_once_all_is_renamed(index: Index) -> None:
    """One transaction takes both. So the first sync can do the work of all."""
    calls: list[str] = []
    one, other = rows(1, 2), rows(3)
    assert [one, other] == await publish_together(index, Frames(calls, one), Frames(calls, other))
    assert ["prepare", "prepare", "rename", "rename", "sync", "sync", "close", "close"] == calls
    assert await live(index, *one, *other)


@pytest.mark.parametrize("step", ["prepare", "rename", "sync"])
async def test_a_failure_is_that_of_one_publication(index: Index, step: str) -> None:
    """The others are committed. Of the one that failed no row is there."""
    calls: list[str] = []
    one, failed, other = rows(1), rows(2), rows(3)
    publications = [Frames(calls, one), Frames(calls, failed, fails_at=step), Frames(calls, other)]
    first, second, third = await publish_together(index, *publications)
    assert (one, other) == (first, third)
    assert isinstance(second, StorageError)
    assert 3 == calls.count("close")
    assert await live(index, *one, *other)


async def test_a_quota_refuses_only_what_does_not_fit(index: Index) -> None:
    """Publications count in their order. One that was refused or has failed takes nothing of the quota."""
    calls: list[str] = []
    publications = [
        Frames(calls, rows(1), limit=25),
        Frames(calls, rows(2), limit=25, fails_at="rename"),
        Frames(calls, rows(3, 4), limit=25),
        Frames(calls, rows(5), limit=25),
        Frames(calls, rows(6), limit=25),
    ]
    outcomes = await publish_together(index, *publications)
    assert [list, StorageError, QuotaExceeded, list, QuotaExceeded] == [type(each) for each in outcomes]
    assert set() == publications[2].renamed
    assert await live(index, *rows(1, 5))


async def test_a_quota_counts_what_is_published_without_one(index: Index) -> None:
    """A namespace may get its quota while requests that began without one still wait."""
    calls: list[str] = []
    publications = [
        Frames(calls, rows(1)),
        Frames(calls, rows(2), limit=25),
        Frames(calls, rows(3)),
        Frames(calls, rows(4), limit=25),
    ]
    outcomes = await publish_together(index, *publications)
    assert [list, list, list, QuotaExceeded] == [type(each) for each in outcomes]
    failed = await publish_together(index, Frames(calls, rows(5)), Frames(calls, rows(6), limit=40))
    assert [list, QuotaExceeded] == [type(each) for each in failed]
    assert await live(index, *rows(1, 2, 3, 5))


async def test_a_chunk_that_two_publish_is_renamed_once(index: Index) -> None:
    """The second one finds a live row, whose frame is not changed (I1), or no row if the first one has failed."""
    calls: list[str] = []
    first, second = Frames(calls, rows(1, 2)), Frames(calls, rows(2, 3))
    assert [rows(1, 2), rows(3)] == await publish_together(index, first, second)
    assert {row.digest for row in rows(3)} == second.renamed
    failed, other = Frames(calls, rows(4), fails_at="sync"), Frames(calls, rows(4))
    outcomes = await publish_together(index, failed, other)
    assert rows(4) == outcomes[1]


async def test_a_cancelled_publication_leaves_the_others(index: Index) -> None:
    """It waits for no turn any more. Nothing of it is stored."""
    calls: list[str] = []
    async with asyncio.TaskGroup() as group:
        async with index.transaction():
            cancelled, other = (group.create_task(outcome(index, Frames(calls, each))) for each in (rows(1), rows(2)))
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait([cancelled])
        assert rows(2) == await other
    assert await live(index, *rows(2))


async def test_a_publication_waits_only_so_long(tmp_path: Path) -> None:
    """Another task of the process writes for longer than the limit."""
    index = await open_index(tmp_path / "index.sqlite", busy_seconds=0.01)
    calls: list[str] = []
    async with index.transaction():
        assert isinstance(await outcome(index, Frames(calls, rows(1))), Busy)
    assert [] == calls
    assert rows(1) == await index.publish(Frames(calls, rows(1)))
    await index.close()


@pytest.mark.parametrize("busy_seconds", [0.01, 60.0])
async def test_a_publication_ends_while_another_process_writes(tmp_path: Path, busy_seconds: float) -> None:
    """By its limit, or by a cancel. The transaction of the other one is not harmed, and the next one is possible."""
    other = await open_index(tmp_path / "index.sqlite")
    index = await open_index(tmp_path / "index.sqlite", busy_seconds=busy_seconds)
    calls: list[str] = []
    async with other.transaction() as transaction:
        task = asyncio.create_task(outcome(index, Frames(calls, rows(1))))
        while "prepare" not in calls:
            await asyncio.sleep(0)
        if busy_seconds > 1:
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == (busy_seconds > 1)
        # A thread frees its resources when nobody waits for it any more.
        while "close" not in calls:
            await asyncio.sleep(0)
        await transaction.add_chunks(A, rows(2))
    assert ["prepare", "close"] == calls
    assert rows(1) == await index.publish(Frames(calls, rows(1)))
    assert await live(index, *rows(1, 2))
    await index.close()
    await other.close()


async def test_a_publication_waits_for_another_process_longer_than_one_try(tmp_path: Path) -> None:
    """Each try waits a tenth of a second for the lock of SQLite. After it comes the next one, until the limit."""
    other = await open_index(tmp_path / "index.sqlite")
    index = await open_index(tmp_path / "index.sqlite", busy_seconds=60)
    async with other.transaction():
        task = asyncio.create_task(outcome(index, Frames([], rows(1))))
        ended, _ = await asyncio.wait([task], timeout=0.4)
        assert set() == ended
    assert rows(1) == await task
    await index.close()
    await other.close()


async def test_many_publications_take_several_turns(index: Index) -> None:
    """Others wait for a transaction of 64 rows at most."""
    calls: list[str] = []
    publications = [Frames(calls, rows(*range(start, start + 30))) for start in range(0, 150, 30)]
    outcomes = await publish_together(index, *publications)
    assert [list(each.rows) for each in publications] == outcomes
    assert ["prepare", "prepare", "rename"] == calls[:3]
    assert await live(index, *rows(*range(150)))


@pytest.mark.parametrize("is_made_again", [False, True])
async def test_a_folder_that_a_collection_removes_is_made_again(tmp_path: Path, *, is_made_again: bool) -> None:
    """After it was opened, and before the rename. What another process made there may not be durable, so it is not used."""
    store = await open_store(tmp_path)
    staging = store.new_staging()
    assert isinstance(staging, DiskStaging)
    staging.write(b"content")
    staging.sync()
    digest = chunk_digest(b"content")
    placement = store.placement(A, [(digest, staging)])
    placement.prepare()
    (folder,) = (tmp_path / "chunks" / A).glob("*/*")
    folder.rmdir()
    folder.parent.rmdir()
    if is_made_again:
        folder.mkdir(parents=True)
    placement.rename({digest})
    placement.sync()
    placement.close()
    assert [7] == await store.sizes(A, [digest])
    await store.close()


async def test_a_frame_whose_name_is_taken_again_and_again_is_not_published(tmp_path: Path) -> None:
    """A folder that comes back is set aside only so often. Then its name is told, and no row may follow (I2)."""
    store = await open_store(tmp_path)
    digest = chunk_digest(b"content")

    class Staged(DiskStaging):
        def move_to(self, name: str, *, folder: int) -> None:
            os.mkdir(name, dir_fd=folder)
            raise IsADirectoryError(errno.EISDIR, "it is a folder", name)

    placement = store.placement(A, [(digest, Staged(StagingFolder(tmp_path / "tmp"), tmp_path))])
    with pytest.raises(StorageError, match="it is a folder"):
        placement.place_all()
    await store.close()


async def test_staging_files_that_somebody_removed_are_told(tmp_path: Path) -> None:
    """Another attempt writes them again."""
    store = await open_store(tmp_path)
    staging = store.new_staging()
    staging.write(b"content")
    staging.sync()
    for path in (tmp_path / "tmp").glob("*/*"):
        path.unlink()
    with pytest.raises(Busy, match="somebody removed the staging files"):
        await store.publish(A, [(chunk_digest(b"content"), staging)])
    await store.close()
