"""How a namespace has grown: the last point is the usage, parts change nothing, and a removed version leaves no trace."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.core.timestamps import LAST_MOMENT
from filestore.repository.index.protocol import PositionedRecord
from filestore.repository.index.sqlite import SqliteIndex, open_index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.growth import Growth, GrowthSums, Span, intervals
from filestore.repository.maintenance.usage import measure_usage
from filestore.repository.protocol import Usage
from filestore.repository.stores.memory import MemoryStore
from tests.support.frames import encoded, manifest
from tests.support.generator import octets

moments = st.integers(0, LAST_MOMENT - 1)


def microseconds(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    """Return a time in UTC as records have it."""
    return int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()) * 1_000_000


def days_later(moment: int, days: float) -> int:
    """Return a later time."""
    return moment + int(timedelta(days=days) / timedelta(microseconds=1))


class DatedIndex:
    """An index whose records were made at other times: each a fixed time after the one before it."""

    def __init__(self, index: SqliteIndex, *, began: int, days: float) -> None:
        self._index = index
        self._began = began
        self._days = days

    def __getattr__(self, name: str) -> object:
        return getattr(self._index, name)

    async def records_after(self, namespace: str, position: int, *, limit: int) -> list[PositionedRecord]:
        """Return records with times by their order. They are all in one page."""
        found = await self._index.records_after(namespace, position, limit=limit)
        moments = [days_later(self._began, place * self._days) for place in range(len(found))]
        return [each._replace(record=replace(each.record, created_at=at)) for each, at in zip(found, moments, strict=True)]


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[LocalRepository]:
    """A repository with six versions of two names, each of which shares chunks with those before it."""
    repository = LocalRepository(MemoryStore(), await open_index(tmp_path / "index.sqlite"), location="memory")
    for number in range(6):
        chunks = [octets(each, 1000 + each) for each in range(number, number + 10)]
        await repository.put([encoded(chunk) for chunk in chunks])
        await repository.commit(manifest(chunks).encoded, name="a" if number % 2 else "b")
    yield repository
    await repository.close()


async def measured(repository: LocalRepository, *, days: float, prefix: str = "", part_count: int = 1000) -> tuple[Usage, Growth]:
    """Return usage and growth, as if each version had been stored some days after the one before it."""
    sums = GrowthSums(limit=20)
    usage = await measure_usage(
        repository._store,
        DatedIndex(repository._index, began=microseconds(2026, 1, 31), days=days),  # type: ignore[arg-type]  # the rest is there
        DEFAULT_NAMESPACE,
        now=time.time_ns() // 1000,
        grace_seconds=0,
        name_limit=10,
        prefix=prefix,
        part_count=part_count,
        growth=sums,
    )
    return usage, sums.growth()


@pytest.mark.parametrize(("days", "span"), [(0.5, Span.DAY), (7, Span.WEEK), (40, Span.MONTH), (400, Span.YEAR)])
async def test_the_curve_ends_at_the_usage(repository: LocalRepository, days: float, span: Span) -> None:
    """It never falls, its last point is what is stored now, and parts change nothing."""
    usage, growth = await measured(repository, days=days)
    assert span is growth.span
    last = growth.points[-1]
    assert (usage.record_count, usage.logical_size) == (last.version_count, last.logical_size)
    assert (usage.distinct_size, usage.needed_size) == (last.distinct_size, last.stored_size)
    for before, after in pairwise(growth.points):
        assert all(mine <= its for mine, its in zip(before, after, strict=True))
    assert (usage, growth) == await measured(repository, days=days, part_count=3)


async def test_a_version_adds_what_no_earlier_one_has(repository: LocalRepository) -> None:
    """Each of the versions brings one chunk that those before it do not have."""
    _, growth = await measured(repository, days=400)
    sizes = [1000 + each for each in range(15)]
    by_version = [(sum(sizes[:10]), sum(sizes[:10]))]
    for number in range(1, 6):
        logical, distinct = by_version[-1]
        by_version.append((logical + sum(sizes[number : number + 10]), distinct + sizes[number + 9]))
    seen = list(dict.fromkeys((point.logical_size, point.distinct_size) for point in growth.points))
    assert [each for each in seen if each != (0, 0)] == by_version


async def test_a_prefix_shows_only_its_names(repository: LocalRepository) -> None:
    """What other names brought first counts for a name when it had it first."""
    usage, growth = await measured(repository, days=400, prefix="a")
    assert usage.record_count == growth.points[-1].version_count == 3
    assert usage.distinct_size == growth.points[-1].distinct_size
    assert next(point for point in growth.points if point.version_count).distinct_size == sum(
        1000 + each for each in range(1, 11)
    )


async def test_a_repository_returns_both(repository: LocalRepository) -> None:
    """One measurement gives the usage and the curve, which has no point without a version."""
    space = await repository.space(grace_seconds=0)
    assert await repository.usage(grace_seconds=0) == space.usage
    assert space.usage.needed_size == space.growth.points[-1].stored_size
    for record in await repository.records():
        await repository.remove(record.id, with_chunks=True)
    assert Growth(Span.MINUTE, 1, ()) == (await repository.space(grace_seconds=0)).growth


@given(first=moments, length=moments, limit=st.integers(1, 100))
def test_intervals_cover_all_moments(first: int, length: int, limit: int) -> None:
    """There are at most as many as permitted, one after the other, and the first and the last moment are in one."""
    last = min(first + length, LAST_MOMENT - 1)
    span, span_count, starts = intervals(first, last, limit=limit)
    assert starts == sorted(set(starts))
    assert 1 <= len(starts) <= limit
    assert starts[0] <= first
    assert starts[-1] <= last
    assert span_count == 1 or span is Span.YEAR


@given(moments=st.lists(moments, min_size=1, max_size=20))
def test_each_version_counts_once(moments: list[int]) -> None:
    """Whenever it was stored, up to the last moment that a record can have."""
    records = [
        Record("file_" + 32 * "0", "a", chunk_digest(b""), 10, Kind.FILE, DEFAULT_NAMESPACE, moment, moment) for moment in moments
    ]
    sums = GrowthSums()
    sums.begin(records)
    last = sums.growth().points[-1]
    assert (len(moments), 10 * len(moments), 0, 0) == last[1:]


def test_weeks_begin_on_mondays_and_months_on_their_first_day() -> None:
    """The calendar says where an interval begins, in UTC."""
    january, march = microseconds(2026, 1, 31, 23, 59), microseconds(2026, 3, 1)
    assert (Span.MONTH, 1, [microseconds(2026, month, 1) for month in (1, 2, 3)]) == intervals(january, march, limit=4)
    assert intervals(january, march, limit=5)[0] is Span.WEEK
    assert microseconds(2026, 1, 26) == intervals(january, march, limit=5)[2][0]
