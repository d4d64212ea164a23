"""Reports for pages: made once, kept for a while, not waited for too long, and ended with the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from filestore.errors import Busy, NotFound
from filestore.http.server.routes.page import reports as module
from filestore.http.server.routes.page.reports import REPORTS_LIMIT, UNFINISHED_LIMIT, Reports


class Work:
    """Counts how often it is done. It ends when `done` is set."""

    def __init__(self) -> None:
        self.count = 0
        self.ended = 0
        self.done = asyncio.Event()
        self.error: Exception | None = None

    async def do(self) -> int:
        """Return how often it was begun."""
        self.count += 1
        number = self.count
        try:
            await self.done.wait()
        finally:
            self.ended += 1
        if self.error is not None:
            raise self.error
        return number


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    """The reports of a server."""
    reports = Reports()
    async with reports.running():
        yield reports


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock, of which a test sets the time."""
    now = [100.0]
    monkeypatch.setattr(module, "elapsed_seconds", lambda: now[0])
    return now


async def test_a_page_does_not_wait_for_long(reports: Reports) -> None:
    """The work goes on, and a page that asks again has the result. It is made once."""
    work = Work()
    assert await reports.get("a", 1, work.do(), wait_seconds=0) is None
    assert await reports.get("a", 1, work.do(), wait_seconds=0) is None
    work.done.set()
    assert [1, 1] == [await reports.get("a", 1, work.do(), wait_seconds=60) for _ in range(2)]
    assert 1 == work.count


async def test_a_reader_who_goes_away_ends_nothing(reports: Reports) -> None:
    """Who comes back finds it done."""
    work = Work()
    asking = asyncio.create_task(reports.get("a", 1, work.do(), wait_seconds=60))
    while not work.count:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    work.done.set()
    assert 1 == await reports.get("a", 1, work.do(), wait_seconds=60)


async def test_a_report_is_kept_in_proportion_to_its_time(reports: Reports, clock: list[float]) -> None:
    """One that took long is kept for long."""
    work = Work()
    assert await reports.get("a", 1, work.do(), wait_seconds=0) is None
    clock[0] += 10
    work.done.set()
    assert 1 == await reports.get("a", 1, work.do(), wait_seconds=60)
    clock[0] += 199
    assert 1 == await reports.get("a", 1, work.do(), wait_seconds=60)
    clock[0] += 1
    assert 2 == await reports.get("a", 1, work.do(), wait_seconds=60)
    clock[0] += 29
    assert 2 == await reports.get("a", 1, work.do(), wait_seconds=60)
    clock[0] += 1
    assert 3 == await reports.get("a", 1, work.do(), wait_seconds=60)


async def test_a_failure_is_told_once_and_not_kept(reports: Reports) -> None:
    """The next page tries again."""
    work = Work()
    work.error = NotFound("a")
    work.done.set()
    for count in (1, 2):
        with pytest.raises(NotFound):
            await reports.get("a", 1, work.do(), wait_seconds=60)
        assert count == work.count
    work.error = None
    assert 3 == await reports.get("a", 1, work.do(), wait_seconds=60)


async def test_a_failure_that_nobody_waited_for_is_not_kept_either(reports: Reports) -> None:
    """Whoever asks next gets a new attempt."""
    work = Work()
    work.error = NotFound("a")
    assert await reports.get("a", 1, work.do(), wait_seconds=0) is None
    work.done.set()
    while not work.ended:
        await asyncio.sleep(0)
    work.error = None
    assert 2 == await reports.get("a", 1, work.do(), wait_seconds=60)


async def test_a_namespace_has_few_in_work(reports: Reports) -> None:
    """Another namespace has its own."""
    work = Work()
    for number in range(UNFINISHED_LIMIT):
        assert await reports.get("a", number, work.do(), wait_seconds=0) is None
    with pytest.raises(Busy):
        await reports.get("a", "one more", work.do(), wait_seconds=0)
    assert await reports.get("a", 0, work.do(), wait_seconds=0) is None
    assert await reports.get("b", 0, work.do(), wait_seconds=0) is None
    assert UNFINISHED_LIMIT + 1 == work.count


async def test_few_reports_are_kept(reports: Reports) -> None:
    """The one that was used last stays the longest."""
    work = Work()
    work.done.set()
    for number in range(REPORTS_LIMIT):
        assert number + 1 == await reports.get("a", number, work.do(), wait_seconds=60)
    assert 1 == await reports.get("a", 0, work.do(), wait_seconds=60)
    assert REPORTS_LIMIT + 1 == await reports.get("a", "one more", work.do(), wait_seconds=60)
    assert 1 == await reports.get("a", 0, work.do(), wait_seconds=60)
    assert REPORTS_LIMIT + 2 == await reports.get("a", 1, work.do(), wait_seconds=60)


async def test_a_server_that_stops_ends_what_is_in_work() -> None:
    """No task is left."""
    work = Work()
    reports = Reports()
    async with reports.running():
        assert await reports.get("a", 1, work.do(), wait_seconds=0) is None
    assert (1, 1) == (work.count, work.ended)
