"""What metrics call the length of a queue is the number of those who wait, whatever their namespaces are."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractAsyncContextManager

from filestore.system.buffers import LARGE_SIZE, Budget
from filestore.system.fair_pool import FairPool
from filestore.system.turns import Turns, working_for


async def waiters(
    blocks: list[tuple[str, AbstractAsyncContextManager[object]]], released: asyncio.Event
) -> list[asyncio.Task[None]]:
    """Tasks that enter a block each, for a namespace, and stay in it until the event."""

    async def enter(block: AbstractAsyncContextManager[object]) -> None:
        async with block:
            await released.wait()

    tasks = []
    for namespace, block in blocks:
        with working_for(namespace):
            tasks.append(asyncio.create_task(enter(block)))
    await asyncio.sleep(0)
    return tasks


async def test_each_caller_that_waits_for_memory_counts() -> None:
    """Two of one namespace, one of another, and large bodies, which wait for their own half."""
    budget, released = Budget(2 * LARGE_SIZE), asyncio.Event()
    async with budget.take(2 * LARGE_SIZE):
        tasks = await waiters([("a", budget.take(10)), ("a", budget.take(10)), ("b", budget.take(10))], released)
        assert 3 == budget.waiting
        tasks += await waiters([("a", budget.take_for_body(LARGE_SIZE + 1)) for _ in range(3)], released)
        assert 6 == budget.waiting
    released.set()
    await asyncio.gather(*tasks)
    assert 0 == budget.waiting


async def test_each_task_that_waits_for_a_turn_counts() -> None:
    """The one that has the turn does not wait."""
    turns, released = Turns(), asyncio.Event()
    tasks = await waiters([(namespace, turns.take()) for namespace in ("a", "a", "b")], released)
    assert 2 == turns.waiting
    released.set()
    await asyncio.gather(*tasks)
    assert 0 == turns.waiting


def test_each_call_that_waits_for_a_thread_counts() -> None:
    """Those that run do not wait."""
    pool, released, started = FairPool("test", count=1, share=1), threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        released.wait()

    calls = [pool.submit(hold)]
    started.wait()
    for namespace in ("a", "a", "b"):
        with working_for(namespace):
            calls.append(pool.submit(hold))
    assert 3 == pool.waiting
    released.set()
    for call in calls:
        call.result()
    assert 0 == pool.waiting
    pool.shutdown()
