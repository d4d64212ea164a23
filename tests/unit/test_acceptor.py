"""Several processes accept connections from one socket, and the load is spread over them."""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from filestore.http.server import acceptor
from filestore.http.server.acceptor import REST_SECONDS, Acceptor, Load, SharedLoads


class Clock:
    """Monotonic seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def processes(count: int) -> list[SharedLoads]:
    """What each of several processes has after the fork."""
    shared = SharedLoads(count)
    found = []
    for place in range(count):
        own = copy.copy(shared)
        own.join(place)
        found.append(own)
    return found


def test_a_process_that_has_not_begun_has_no_less_load() -> None:
    """Nobody leaves a connection to a process that accepts none."""
    first, second = processes(2)
    first.note(5)
    assert {} == first.less_loaded()
    second.note(4)
    assert {1: 4.0} == first.less_loaded()
    assert {} == second.less_loaded()
    first.leave(1)
    assert {} == first.less_loaded()


async def test_a_connection_is_load_until_a_while_after_its_last_request() -> None:
    """A connection that is only kept says nothing about work."""
    clock, (own, other) = Clock(), processes(2)
    other.note(100)

    def load() -> float:
        return other.less_loaded().get(0, 100)

    counted = Load(own, clock=clock)
    counted.begin()
    assert 0 == load()
    counted.arrive()
    assert 1 == load()
    counted.rest("a")
    counted.arrived()
    assert 1 == load()
    counted.work("a")
    clock.now += 10 * REST_SECONDS
    counted.rest("b")
    assert 2 == load()
    counted.rest("a")
    clock.now += REST_SECONDS
    counted.rest("c")
    assert 1 == load()
    counted.forget("c")
    assert 0 == load()
    counted.end()
    assert 100 == load()


class Greeter(asyncio.Protocol):
    """Says to each client which process has accepted it."""

    def __init__(self, place: int, load: Load) -> None:
        self._place = place
        self._load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._load.rest(self)
        transport.write(bytes([self._place]))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as made:
        yield made


@asynccontextmanager
async def accepting(listener: socket.socket, each: list[SharedLoads]) -> AsyncIterator[None]:
    """Accept the connections of `listener` as several processes would."""
    acceptors = []
    for place, loads in enumerate(each):
        load = Load(loads)
        acceptors.append(Acceptor(listener.dup(), lambda place=place, load=load: Greeter(place, load), loads, load))  # type: ignore[misc]
    try:
        yield
    finally:
        for each_acceptor in acceptors:
            each_acceptor.close()


async def greeted(listener: socket.socket, count: int, stack: ExitStack) -> list[int]:
    """The places of the processes that accepted connections which are made at once."""

    async def place() -> int:
        loop = asyncio.get_running_loop()
        client = stack.enter_context(socket.socket())
        client.settimeout(0)
        await loop.sock_connect(client, listener.getsockname())
        return (await loop.sock_recv(client, 1))[0]

    return await asyncio.gather(*(place() for _ in range(count)))


async def test_connections_are_spread(listener: socket.socket) -> None:
    """Each of four processes gets about as many, also if they come at once."""
    with ExitStack() as stack:
        async with accepting(listener, processes(4)):
            places = await greeted(listener, 16, stack)
    counts = [places.count(place) for place in range(4)]
    assert 16 == sum(counts)
    assert max(counts) <= 6
    assert min(counts) >= 2


async def test_a_process_that_does_not_accept_delays_the_others_once(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be stopped: it has the least load, and its load never changes."""
    waits = []
    *living, stopped = processes(3)
    stopped.note(0)
    real = Acceptor._wait

    def counted(self: Acceptor, *args: object) -> None:
        waits.append(1)
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Acceptor, "_wait", counted)
    monkeypatch.setattr(acceptor, "PATIENCE_SECONDS", 0.05)
    with ExitStack() as stack:
        async with accepting(listener, living):
            assert 6 == len(await greeted(listener, 6, stack))
            waits.clear()
            places = await greeted(listener, 20, stack)
            assert {0, 1} == set(places)
            # They still leave connections to each other, for a moment.
            assert len(waits) < 200
