"""The work of pages in a server: by turns, shared, ended with its readers, and kept within a limit of memory."""

from __future__ import annotations

import asyncio

import pytest

from filestore.errors import Busy
from filestore.http.server import kept_work
from filestore.http.server.kept_work import WAITING_LIMIT, KeptWork


class Work:
    """Counts how often it is begun. It ends when `done` is set."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.done = asyncio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.done.wait()
        finally:
            self.ended += 1
        return "result"


def stays() -> None:
    """What looks for a client that is there."""


async def ask(kept: KeptWork, work: Work, question: object = 1, *, namespace: str = "a", size: int = 10) -> str:
    """Ask as a page does whose client stays."""
    return await kept.get(namespace, question, work, measure=lambda _: size, check_client=stays)


async def test_equal_questions_share_work_and_its_result() -> None:
    """Those at the same time, and those after it. Another namespace does not get the result."""
    kept, work = KeptWork(), Work()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(kept, work)) for _ in range(5)]
        await asyncio.sleep(0)
        work.done.set()
    assert ["result"] * 5 == [each.result() for each in asked]
    await ask(kept, work)
    assert 1 == work.begun
    await ask(kept, work, namespace="b")
    assert 2 == work.begun


async def test_results_are_kept_within_the_limit() -> None:
    """The one that was used last stays the longest, and one that is larger than the limit is not kept."""
    kept, work = KeptWork(limit=30), Work()
    work.done.set()
    for question in (1, 2, 3, 1, 4):
        await ask(kept, work, question)
    assert (4, 30) == (work.begun, kept.size)
    await ask(kept, work, 1)
    assert 4 == work.begun
    await ask(kept, work, 2)
    assert 5 == work.begun
    await ask(kept, work, 9, size=31)
    await ask(kept, work, 9, size=31)
    assert (7, 30) == (work.begun, kept.size)


async def test_a_namespace_waits_for_a_few() -> None:
    """Beyond those it is told to try again. Others are not kept from their work, and a failure gives the place back."""
    kept, work = KeptWork(), Work()
    async with asyncio.TaskGroup() as group:
        for question in range(WAITING_LIMIT):
            group.create_task(ask(kept, work, question))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await ask(kept, work, "another")
        other = Work()
        other.done.set()
        await ask(kept, other, namespace="b")
        assert 1 == work.begun
        work.done.set()
    await ask(kept, work, "another")


async def test_work_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has gone is noticed while the work goes on, and the next one begins it once more."""
    monkeypatch.setattr(kept_work, "_LOOK_SECONDS", 0.001)
    kept, work = KeptWork(), Work()

    def gone() -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await kept.get("a", 1, work, measure=lambda _: 1, check_client=gone)
    assert (1, 1, 0) == (work.begun, work.ended, kept.size)
    work.done.set()
    assert "result" == await ask(kept, work)


async def test_a_failure_is_not_kept() -> None:
    """The next request tries again."""
    kept = KeptWork()

    async def fail() -> str:
        raise Busy("a", "b")

    with pytest.raises(Busy):
        await kept.get("a", 1, fail, measure=lambda _: 1, check_client=stays)
    work = Work()
    work.done.set()
    assert "result" == await ask(kept, work)
