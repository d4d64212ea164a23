"""Somebody sets the clock of the machine forward and back. Later records have true times, and the newest one is right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore
from tests.support.frames import contents, frames, manifest

SECOND = 1_000_000
YEAR = 366 * 86400 * SECOND
START = 1_790_000_000 * SECOND


class Microseconds:
    """A clock of the machine that a test sets. Each look takes a second."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += SECOND
        return self.now


@asynccontextmanager
async def repository(tmp_path: Path, clock: Microseconds) -> AsyncIterator[LocalRepository]:
    """A repository with one chunk, whose index has that clock."""
    opened = LocalRepository(MemoryStore(), await open_index(tmp_path / "index.sqlite", now=clock), location="here")
    await opened.put(frames(1))
    try:
        yield opened
    finally:
        await opened.close()


async def store(opened: LocalRepository, name: str) -> Record:
    """Store the chunk under a name."""
    return await opened.commit(manifest(contents(1)).encoded, name=name)


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
async def test_records_after_a_jump_have_true_times(tmp_path: Path, jump: int) -> None:
    """One record is stored while the clock is wrong. Only that one has a wrong time."""
    clock = Microseconds()
    async with repository(tmp_path, clock) as opened:
        before = await store(opened, "before")
        clock.now += jump
        during = await store(opened, "during")
        clock.now -= jump
        after = [await store(opened, f"after {number}") for number in range(3)]
        assert abs(during.updated_at - before.updated_at) > YEAR // 2
        times = [before.updated_at, *(record.updated_at for record in after)]
        assert times == sorted(set(times))
        assert times[-1] <= clock.now < times[0] + 1000 * SECOND


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
async def test_newest_record_after_a_jump(tmp_path: Path, jump: int) -> None:
    """The record that was stored last is the newest, in lists, pages and references."""
    clock = Microseconds()
    async with repository(tmp_path, clock) as opened:
        names = ["a", "b", "a", "c", "b"]
        for number, name in enumerate(names):
            clock.now += jump if number % 2 else -jump
            last = await store(opened, name)
        assert ["b", "c", "a"] == [record.name for record in await opened.records()]
        paged: list[Record] = []
        while page := await opened.records(limit=1, before=paged[-1].updated_at if paged else None):
            paged += page
        assert ["b", "c", "a"] == [record.name for record in paged]
        assert last == await opened.record(Reference(digest=Digest(last.digest)))
