"""When a connection has stalled: it moved too few bytes while it waited."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from filestore.system.stalls import LEAST_RATE, StallTimer, acknowledged_size
from tests.support.clock import Clock


def wait(timer: StallTimer, clock: Clock, seconds: float, *, moved: int = 0) -> bool:
    """Wait, after which some bytes move. Return whether the connection has stalled."""
    began = timer.began()
    clock.now += seconds
    timer.ended(began)
    timer.count(moved)
    return timer.left() <= 0


def test_byte_every_five_seconds_is_a_stall() -> None:
    """It is found after the time limit, and not before."""
    clock = Clock()
    timer = StallTimer(30, clock=clock)
    assert [False] * 5 + [True] == [wait(timer, clock, 5, moved=1) for _ in range(6)]


@pytest.mark.parametrize("bits_per_second", [2400 // 4, 9600 // 4, 128_000])
def test_honest_slow_link_does_not_stall(bits_per_second: int) -> None:
    """One of four connections over a satellite modem moves enough, in packets that come far apart."""
    clock = Clock()
    timer = StallTimer(30, clock=clock)
    assert [False] * 20 == [wait(timer, clock, 20, moved=20 * bits_per_second // 8) for _ in range(20)]


def test_time_in_which_nobody_waits_does_not_count() -> None:
    """The disk of this machine may be busy for longer than the limit."""
    clock = Clock()
    timer = StallTimer(30, clock=clock)
    for _ in range(5):
        clock.now += 100
        assert not wait(timer, clock, 1)
    assert 25 == timer.left()


@pytest.fixture(name="pair")
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two ends of a connection, with small buffers. The first one does not block."""
    with closing(socket.socket()) as listener, closing(socket.socket()) as ours:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours.connect(listener.getsockname())
        ours.settimeout(0)
        theirs, _ = listener.accept()
        with closing(theirs):
            yield ours, theirs


def test_bytes_that_leave_a_full_buffer_are_progress(pair: tuple[socket.socket, socket.socket]) -> None:
    """The kernel takes no more bytes, but the peer acknowledges some of those that it has taken."""
    ours, theirs = pair
    clock = Clock()
    timer = StallTimer(30, connection=ours, clock=clock)
    with pytest.raises(BlockingIOError):
        while True:
            timer.count(ours.send(bytes(1 << 16)))
    assert not wait(timer, clock, 30), "what the kernel took counts once"
    before = acknowledged_size(ours)
    while acknowledged_size(ours) < before + 30 * LEAST_RATE:
        theirs.recv(1 << 16)
    assert not wait(timer, clock, 30)
    while (now := acknowledged_size(ours)) != before:
        before = now
        time.sleep(0.3)  # what is on its way arrives: an acknowledgement may be delayed for 0.2 s
    timer.restart()
    assert wait(timer, clock, 30)


def test_closed_connection_has_acknowledged_nothing() -> None:
    """There is nobody to ask."""
    connection = socket.socket()
    connection.close()
    assert 0 == acknowledged_size(connection)
