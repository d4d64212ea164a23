"""The last pass of a migration, for which writers to the folder wait, compares only what has changed since the pass before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.object_location import ObjectLocation
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.row_pages import CHUNKS, Row, Table
from filestore.repository.index.sqlite import SqliteIndex
from filestore.repository.maintenance import migrate as migration
from filestore.repository.maintenance.migrate import MigrationCounts, MigrationSource, MigrationTarget, migrate
from filestore.repository.object_repository import open_target
from tests.support.ceph import Bucket
from tests.support.frames import contents, encoded
from tests.support.migrations import Opened, differences, everything, fill, location_in, opened, push

pytestmark = pytest.mark.slow

COUNT = 200
PAGE = 8


@dataclass
class Moving:
    """A migration of a folder with many chunks, in small parts."""

    parts: Opened
    target: MigrationTarget
    place: ObjectLocation
    counts: MigrationCounts = field(default_factory=MigrationCounts)
    read: list[Row | None] = field(default_factory=list)
    """What the last pass has read of the rows of chunks in the target: the key before each page."""

    async def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Migrate. `between` is called before the last pass."""
        assert isinstance(self.parts.index, SqliteIndex)
        row_page, secret, is_done = self.target.index.row_page, self.parts.index.secret, False

        async def seen(table: Table, after: Row | None) -> list[Row]:
            if table.name == CHUNKS.name and self.counts.is_last:
                self.read.append(after)
            return await row_page(table, after)

        async def secret_after_others() -> bytes:
            nonlocal is_done
            if not is_done and self.counts.pass_number:
                is_done = True
                await self.between()
            return await secret()

        monkeypatch.setattr(migration, "CHUNKS", replace(CHUNKS, page=PAGE))
        monkeypatch.setattr(self.target.index, "row_page", seen)
        monkeypatch.setattr(self.parts.index, "secret", secret_after_others)  # asked for before the lock is taken
        source = MigrationSource(store=self.parts.store, index=self.parts.index, location="folder")
        await migrate(source, self.target, counts=self.counts)
        assert is_done

    async def between(self) -> None:
        """What others do between the passes."""

    async def check(self) -> None:
        """Everything is the same in both places."""
        await self.target.index.close()
        await self.target.store.close()
        async with opened(self.place) as new:
            assert {} == differences(await everything(self.parts), await everything(new))
            assert await _digests(self.parts) == await _digests(new)


async def _digests(parts: Opened) -> list[Digest]:
    return [state.row.digest for state in await parts.index.chunk_rows("default", limit=10_000)]


@pytest.fixture
async def moving(tmp_path: Path, bucket: Bucket, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Moving]:
    """A folder, and the empty place to which it moves."""
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    place = location_in(bucket, postgres_url)
    async with opened(tmp_path / "root", create=True) as parts:
        await fill(parts)
        await push(parts, "many chunks", contents(COUNT, seed=500))
        store, index = await open_target(place)
        assert isinstance(index, PostgresIndex)
        yield Moving(parts, MigrationTarget(store=store, index=index, location=str(place)), place)
        await index.close()
        await store.close()


async def test_the_last_pass_reads_nothing_of_chunks_that_did_not_change(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass has copied all of them, and nobody else writes to the target."""
    await moving.run(monkeypatch)
    assert [] == moving.read
    assert COUNT < moving.counts.chunk_count
    await moving.check()


async def test_a_push_and_a_removal_between_the_passes(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of the rows that they have changed are compared again, and few others. So the target has what the folder has."""

    async def others() -> None:
        await push(moving.parts, "pushed", contents(2, seed=900))
        (removed,) = [each for each in await moving.parts.index.records("default", limit=100) if each.name == "plain name"]
        async with moving.parts.index.transaction("default") as transaction:
            await transaction.remove_record("default", removed.id)
            await transaction.forget_chunks("default", [encoded(content).digest for content in contents(2, seed=90)])

    monkeypatch.setattr(moving, "between", others)
    await moving.run(monkeypatch)
    assert 1 <= len(moving.read) <= 2 * 4
    await moving.check()


async def test_many_chunks_are_pushed_into_one_part_between_the_passes(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part with more rows than a page is read in several, and the parts behind it are still known."""

    async def others() -> None:
        await push(moving.parts, "pushed", contents(3 * PAGE, seed=900), namespace="another")

    monkeypatch.setattr(moving, "between", others)
    await moving.run(monkeypatch)
    assert len(moving.read) <= 5
    await moving.check()


async def test_all_chunks_are_removed_between_the_passes(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place has none then."""

    async def others() -> None:
        rows = await moving.parts.index.chunk_rows("default", limit=10_000)
        async with moving.parts.index.transaction("default") as transaction:
            for record in await moving.parts.index.records("default", limit=100, with_graphs=True):
                await transaction.remove_record("default", record.id)
            await transaction.forget_chunks("default", [state.row.digest for state in rows])

    monkeypatch.setattr(moving, "between", others)
    await moving.run(monkeypatch)
    async with opened(moving.place) as new:
        assert [] == await new.index.chunk_rows("default", limit=1)
