"""How many batches a client moves at the same time: fewer when goodput falls, and more again carefully."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from filestore.http.client.concurrency import EPOCH_SECONDS, FAST, Concurrency
from tests.support.clock import Clock

Link = Callable[[int], float]
"""The bytes per second of a link, by the number of connections."""


def limits(concurrency: Concurrency, clock: Clock, link: Link, *, epochs: int) -> list[int]:
    """Transfer over a link. Return the limit of each epoch."""
    found = []
    concurrency.note_moved(0)
    for _ in range(epochs):
        found.append(concurrency.limit)
        clock.now += EPOCH_SECONDS
        concurrency.note_moved(int(link(concurrency.limit) * EPOCH_SECONDS))
    return found


def collapsing(count: int) -> float:
    """A link for two connections, which moves a tenth with more."""
    return 1e6 if count <= 2 else 1e5


def test_limit_goes_down_to_what_a_link_takes() -> None:
    """It is there after a few epochs, and most of the later ones have the best number."""
    clock = Clock()
    found = limits(Concurrency(4, clock=clock), clock, collapsing, epochs=60)
    assert [4, 2] == found[:2]
    assert found[2:].count(2) > 50


def test_limit_goes_up_again_when_the_link_recovers() -> None:
    """Each step up must raise goodput."""
    clock = Clock()
    concurrency = Concurrency(4, clock=clock)
    limits(concurrency, clock, collapsing, epochs=4)
    assert 4 == limits(concurrency, clock, lambda count: 1e6 * count, epochs=60)[-1]


def test_fall_of_goodput_is_answered_at_once() -> None:
    """A link that was good with four connections is now too full."""
    clock = Clock()
    concurrency = Concurrency(4, clock=clock)
    assert [4] * 20 == limits(concurrency, clock, lambda _: 2.0 * FAST, epochs=20)
    assert [4, 2] == limits(concurrency, clock, collapsing, epochs=2)


def test_limit_of_a_link_that_does_not_care_stays() -> None:
    """It is tried now and then whether fewer would be better, and more and more seldom."""
    clock = Clock()
    assert limits(Concurrency(4, clock=clock), clock, lambda _: 1e6, epochs=100).count(4) > 90


def test_fast_link_is_left_alone() -> None:
    """No step is tried that could cost speed."""
    clock = Clock()
    assert [4] * 100 == limits(Concurrency(4, clock=clock), clock, lambda _: 2.0 * FAST, epochs=100)


def test_time_without_transfers_says_nothing() -> None:
    """A pause does not count as a fall of goodput."""
    clock = Clock()
    concurrency = Concurrency(4, clock=clock)

    async def idle() -> None:
        async with concurrency.place():
            pass

    limits(concurrency, clock, lambda _: 2.0 * FAST, epochs=3)
    asyncio.run(idle())
    clock.now += 3600
    concurrency.note_moved(1)
    assert 4 == concurrency.limit


async def test_no_more_batches_run_than_the_limit_allows() -> None:
    """Also after some that waited were cancelled."""
    concurrency = Concurrency(2)
    running = most = 0
    free = asyncio.Event()

    async def batch() -> None:
        nonlocal running, most
        async with concurrency.place():
            running += 1
            most = max(most, running)
            await free.wait()
            running -= 1

    batches = [asyncio.create_task(batch()) for _ in range(8)]
    await asyncio.sleep(0)
    for cancelled in batches[2:5]:
        cancelled.cancel()
    free.set()
    ended = await asyncio.gather(*batches, return_exceptions=True)
    assert 5 == ended.count(None)
    assert 2 == most
