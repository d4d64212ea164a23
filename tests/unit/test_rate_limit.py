"""The limit of the rate of a client, counted against a simulated clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.errors import InvalidSetting
from filestore.http.client.channels import Channels
from filestore.http.client.repository import RemoteRepository
from filestore.system.rate_limit import BURST_SECONDS, LEAST_RATE, RateLimit
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.generator import octets
from tests.support.server import RunningServer, running_server
from tests.support.tls import behind_tls, trusting

RATE = 1_000_000
CONTENT = octets(1, 3 << 20)


class Clock:
    """A clock that only a wait moves on. Those that wait at the same time wait for the latest moment of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def wait_until(self, moment: float, _: threading.Event) -> None:
        """Let the time pass."""
        with self._lock:
            self.now = max(self.now, moment)


def limited_by(clock: Clock, rate: int = RATE) -> RateLimit:
    """A limit by a clock."""
    return RateLimit(rate, clock=clock, wait_until=clock.wait_until)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that all tests share."""
    with running_server(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.mark.parametrize("rate", [LEAST_RATE, RATE, 10**9])
def test_bytes_by_the_clock(rate: int) -> None:
    """What moves is never more than the rate times the time since a pause, and a burst; and less only by a piece."""
    clock, ended = Clock(), threading.Event()
    limit = limited_by(clock, rate)
    for _ in range(3):
        began, moved = clock.now, 0
        for turn in range(400):
            size = 1 + turn * 7919 % limit.piece
            limit.take(size, ended)
            kept = size * (turn % 4) // 3
            limit.give_back(size - min(size, kept))
            moved += min(size, kept)
            assert moved <= rate * (clock.now - began + BURST_SECONDS) + 1
        assert moved + limit.piece >= rate * (clock.now - began)
        clock.now += 3600


def test_an_ended_connection_does_not_wait() -> None:
    """Whoever ends a request does not have to wait until its turn comes."""
    limit, ended = RateLimit(LEAST_RATE), threading.Event()
    ended.set()
    for _ in range(10_000):
        limit.take(limit.piece, ended)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_push_and_a_fetch_by_the_clock(server: RunningServer, tmp_path: Path, scheme: str) -> None:
    """All connections of a client have one limit. Everything arrives, in as much time as it must take and hardly more."""
    (tmp_path / "content").write_bytes(content := CONTENT + scheme.encode())

    async def transfer(url: str) -> None:
        async with connect(url, token=server.token, limit_rate=RATE) as repository:
            assert isinstance(repository, RemoteRepository)
            assert repository.opening() is None
            if scheme == "https":
                trusting(repository)
            clock = Clock()
            repository._requests.places.rate = limited_by(clock)
            pushed = await push(repository, tmp_path / "content")
            sent, seconds = pushed.bytes_sent, clock.now
            assert sent / RATE - BURST_SECONDS <= seconds <= 1.2 * sent / RATE
            fetched = await fetch(repository, pushed.record, target=tmp_path / "fetched")
            assert content == (tmp_path / "fetched").read_bytes()
            received, seconds = fetched.bytes_received, clock.now - seconds
            assert received / RATE - BURST_SECONDS <= seconds <= 1.2 * received / RATE

    if scheme == "http":
        await transfer(f"http://127.0.0.1:{server.port}")
    else:
        async with behind_tls(server.port) as url:
            await transfer(url)


def test_other_servers_are_within_the_limit() -> None:
    """Peers and object stores have connections of their own, and the same limit."""
    repository = RemoteRepository("http://127.0.0.1:1", token=None, limit_rate=RATE)
    places = repository._requests.places
    assert places.rate is not None
    assert places.rate is places.others(4).rate
    channels = Channels("http://127.0.0.1:1", token=None, places=places.others(4), stall_seconds=1)
    assert places.rate is channels._places.rate


def test_clients_may_share_a_limit() -> None:
    """As the source and the target of a copy do."""
    limit = RateLimit(RATE)
    clients = [RemoteRepository(f"http://127.0.0.1:{port}", token=None, limit_rate=limit) for port in (1, 2)]
    assert [limit, limit] == [client._requests.places.rate for client in clients]


@pytest.mark.parametrize("rate", [0, LEAST_RATE - 1])
def test_a_limit_that_is_too_low(rate: int) -> None:
    """With it, connections would seem to stall."""
    with pytest.raises(InvalidSetting, match="bytes per second are needed"):
        RemoteRepository("http://127.0.0.1:1", token=None, limit_rate=rate)
