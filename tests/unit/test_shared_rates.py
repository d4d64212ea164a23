"""Rates and counts that several processes share, and the bodies that wait for them."""

from __future__ import annotations

import os

import pytest

from filestore.http.server.throttle import LEAST_SIZE, PAUSE_SECONDS, ByteRate, Throttle
from filestore.system import shared_rates
from filestore.system.shared_rates import RateKind, SharedRates

REQUESTS, BYTES = RateKind.REQUESTS, RateKind.BYTES


class Clock:
    """Seconds, as the test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def forked(count: int, work: object) -> None:
    """Run `work` in forked processes, with the place of each, until all have ended well."""
    children = []
    for place in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(place)  # type: ignore[operator]
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [0] * count == [os.waitpid(child, 0)[1] for child in children]


def test_a_second_of_a_rate_may_be_used_at_once() -> None:
    """After that, one more is permitted after each part of a second."""
    clock = Clock()
    rates = SharedRates(1, clock=clock)
    slot = rates.slot("key")
    assert 10 == sum(rates.try_add(slot, REQUESTS, 0.1) == 0 for _ in range(20))
    assert pytest.approx(0.1) == rates.try_add(slot, REQUESTS, 0.1)
    clock.now += 0.3
    assert 3 == sum(rates.try_add(slot, REQUESTS, 0.1) == 0 for _ in range(20))
    clock.now += 100
    assert 10 == sum(rates.try_add(slot, REQUESTS, 0.1) == 0 for _ in range(20))


def test_keys_and_kinds_are_apart() -> None:
    """Also if their hashes want the same slot. Keys that come when all slots are taken share one."""
    rates = SharedRates(1, slots=2, clock=Clock())
    slots = [rates.slot(key) for key in ("a", "b", "c", "d")]
    assert {0, 1} == set(slots[:2])
    assert [2, 2] == slots[2:]
    rates.add(slots[0], REQUESTS, 5)
    assert [5, 0, 0] == [rates.debt(slots[0], REQUESTS), rates.debt(slots[0], BYTES), rates.debt(slots[1], REQUESTS)]


def test_processes_share_a_rate_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they interleave, together they use no more than one process would, unless one of them stops for long."""
    monkeypatch.setattr(shared_rates, "_TRIES", 1 << 40)
    clock = Clock()  # it stands still
    rates = SharedRates(4, clock=clock)
    reader, writer = os.pipe()

    def work(place: int) -> None:
        rates.join(place)
        slot = rates.slot("key")
        used = sum(rates.try_add(slot, REQUESTS, 0.001) == 0 for _ in range(600))
        os.write(writer, b"+" * used)

    forked(4, work)
    os.close(writer)
    assert 1000 == len(os.read(reader, 1 << 16))
    os.close(reader)


def test_processes_share_a_count_and_what_a_process_had_ends_with_it() -> None:
    """The next process at its place counts from 0."""
    rates = SharedRates(2)
    slot = rates.slot("key")
    rates.join(0)
    assert rates.try_enter(slot, 3)

    def work(_: int) -> None:
        rates.join(1)
        assert [True, True, False] == [rates.try_enter(rates.slot("key"), 3) for _ in range(3)]

    forked(1, work)
    assert not rates.try_enter(slot, 3)
    forked(1, lambda _: rates.join(1))
    assert [True, True, False] == [rates.try_enter(slot, 3) for _ in range(3)]
    rates.leave(slot)
    assert rates.try_enter(slot, 3)


def test_a_body_gets_shares_of_its_rate() -> None:
    """Connections take turns. What is not moved is given back."""
    clock = Clock()
    rates = SharedRates(1, clock=clock)
    throttle = Throttle(rates, [ByteRate(rates.slot("key"), 800_000)], clock=clock)
    assert [100_000] * 8 == [throttle.take(1 << 20) for _ in range(8)]
    assert (0, True) == (throttle.take(1 << 20), throttle.delay() > 0)
    clock.now += throttle.delay()
    assert 5000 == throttle.take(5000)
    throttle.give_back(5000)
    assert 100_000 == throttle.take(1 << 20)


def test_the_stricter_limit_of_two_counts() -> None:
    """That of the namespace, or that of the token."""
    clock = Clock()
    rates = SharedRates(1, clock=clock)
    limits = [ByteRate(rates.slot("namespace"), 8_000_000), ByteRate(rates.slot("token"), 800_000)]
    throttle = Throttle(rates, limits, clock=clock)
    assert 100_000 == throttle.take(1 << 20)
    assert pytest.approx([0.0125, 0.125]) == [rates.debt(limit.slot, BYTES) for limit in limits]


def test_no_connection_pauses_for_long() -> None:
    """Whatever the others have moved, it moves a little before either end takes it for stalled."""
    clock = Clock()
    rates = SharedRates(1, clock=clock)
    slot = rates.slot("key")
    throttle = Throttle(rates, [ByteRate(slot, 100_000)], clock=clock)
    rates.add(slot, BYTES, 3600)
    assert (0, PAUSE_SECONDS) == (throttle.take(1 << 20), throttle.delay())
    clock.now += PAUSE_SECONDS
    assert (LEAST_SIZE, 0) == (throttle.take(1 << 20), throttle.take(1 << 20))
