"""Measurements and listings in a server: few at a time, shared, and only while somebody waits for them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from filestore.errors import Busy
from filestore.http.server import slow
from filestore.http.server.context import RequestContext
from filestore.http.server.measuring import LISTINGS_LIMIT, MEASUREMENTS_LIMIT, Measuring
from filestore.http.server.outages import OUTAGES, Outages
from filestore.http.server.slow import answer_slowly


class Measured:
    """Counts the measurements that are under way, which end when `done` is set."""

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()
        self.most = 0
        self.begun: list[str] = []
        self.done = asyncio.Event()

    async def measure(self, namespace: str) -> str:
        """Wait until `done` is set."""
        self.begun.append(namespace)
        self.under_way[namespace] += 1
        assert self.under_way[namespace] == 1
        self.most = max(self.most, self.under_way.total())
        try:
            await self.done.wait()
        finally:
            self.under_way[namespace] -= 1
        return namespace


async def test_few_measurements_at_a_time() -> None:
    """One of a namespace, and a few in all. Another namespace does not wait for all that the first one asked for."""
    measuring, measured = Measuring(), Measured()
    async with asyncio.TaskGroup() as group:
        for namespace in ["a"] * 50 + ["b", "c"]:
            group.create_task(measuring.run(namespace, partial(measured.measure, namespace)))
        await asyncio.sleep(0)
        assert {"a", "b"} == set(measured.begun)
        measured.done.set()
    assert MEASUREMENTS_LIMIT == measured.most
    assert 52 == len(measured.begun)
    assert measured.begun.index("c") < 10


async def test_equal_questions_share_a_measurement() -> None:
    """All get the answer. The measurement ends when nobody waits for it."""
    measuring, measured = Measuring(), Measured()
    tasks = [asyncio.create_task(measuring.share("a", 1, lambda: measured.measure("a"))) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks[:10]:
        task.cancel()
    await asyncio.sleep(0)
    measured.done.set()
    assert ["a"] * 10 == await asyncio.gather(*tasks[10:])
    assert ["a"] == measured.begun
    measured.done.clear()
    last = asyncio.create_task(measuring.share("a", 1, lambda: measured.measure("a")))
    while len(measured.begun) < 2:
        await asyncio.sleep(0)
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    assert 0 == measured.under_way.total()


def test_listings_of_a_namespace_are_limited() -> None:
    """Each has a file as large as the listing. Another namespace can still list."""
    measuring = Measuring()
    with ExitStack() as stack:
        for _ in range(LISTINGS_LIMIT):
            stack.enter_context(measuring.listing("a"))
        with pytest.raises(Busy), measuring.listing("a"):
            pass
        with measuring.listing("b"):
            pass
    with measuring.listing("a"):
        pass


@pytest.mark.parametrize("goes_on", [True, False])
async def test_work_for_a_client_that_is_gone(monkeypatch: pytest.MonkeyPatch, goes_on: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """A change is finished. A measurement is not: a client could ask for one after another and leave."""
    monkeypatch.setattr(slow, "BLANK_SECONDS", 0.01)
    is_gone, ended = asyncio.Event(), []

    class Gone:
        """The request of a client that has closed its connection."""

        @asynccontextmanager
        async def answering(self, _: web.StreamResponse, *, size: int) -> AsyncIterator[Gone]:
            """Announce an answer."""
            assert size
            yield self

        async def send(self, _: bytes) -> None:
            """Find out that nobody is there."""
            is_gone.set()
            raise ConnectionResetError

    async def work() -> web.Response:
        try:
            await is_gone.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("finished")
        return web.json_response({})

    with pytest.raises(ConnectionResetError):
        await answer_slowly(cast(RequestContext, Gone()), work(), goes_on=goes_on)
    assert ["finished" if goes_on else "cancelled"] == ended


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_an_answer_is_never_larger_than_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much would be read as the next answer on the connection, which another client of a proxy may wait for."""
    monkeypatch.setattr(slow, "BLANK_SECONDS", 0.01)
    sent = bytearray()
    has_begun = asyncio.Event()
    app = web.Application()
    app[OUTAGES] = Outages()

    class Announced:
        """A request whose client reads all that is announced."""

        request = make_mocked_request("GET", "/", app=app)
        size = 0

        @asynccontextmanager
        async def answering(self, _: web.StreamResponse, *, size: int) -> AsyncIterator[Announced]:
            """Announce an answer."""
            self.size = size
            yield self

        async def send(self, piece: bytes) -> None:
            """Take the next bytes."""
            sent.extend(piece)
            has_begun.set()

    async def work() -> web.Response:
        await has_begun.wait()
        return web.Response(body=b"x" * (slow.BLANKS_SIZE + slow.DOCUMENT_SIZE))

    announced = Announced()
    await answer_slowly(cast(RequestContext, announced), work())
    assert announced.size == len(sent)
    assert "the server failed" in json.loads(bytes(sent))["detail"]
