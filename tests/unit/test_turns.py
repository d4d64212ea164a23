"""Turns between namespaces."""

from __future__ import annotations

import asyncio

from filestore.system.turns import Turns, working_for


async def _work(turns: Turns, namespace: str, slices: int, done: list[str]) -> None:
    with working_for(namespace):
        for _ in range(slices):
            async with turns.take():
                done.append(namespace)
                await asyncio.sleep(0)


async def test_a_namespace_waits_for_one_slice_of_each_other_one() -> None:
    """However many tasks and slices the others have."""
    turns, done = Turns(), list[str]()
    async with asyncio.TaskGroup() as group:
        for namespace in ("a", "a", "b", "a", "b"):
            group.create_task(_work(turns, namespace, 20, done))
        while len(done) < 10:
            await asyncio.sleep(0)
        arrived = len(done)
        group.create_task(_work(turns, "c", 1, done))
    assert 101 == len(done)
    # The slice at which it arrived is among the done ones already.
    assert done.index("c") - arrived <= 2
    assert 40 - done[:80].count("b") <= 1


async def test_tasks_of_one_namespace_keep_their_order() -> None:
    """Without a namespace, all work counts as that of one."""
    turns, order = Turns(), list[int]()

    async def work(number: int) -> None:
        async with turns.take():
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(work(number))
    assert [0, 1, 2, 3, 4] == order


async def test_cancelled_tasks_leave_their_place() -> None:
    """Whether the turn has come at this moment, or not yet. Afterwards the turn is free."""
    turns = Turns()
    await turns.acquire()
    waiting = [asyncio.create_task(turns.acquire()) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    turns.release()
    waiting[0].cancel()  # its turn has come, and it does not know yet
    await asyncio.wait(waiting[:3])
    assert [True, True, False] == [task.cancelled() for task in waiting[:3]]
    turns.release()
    await waiting[3]
    turns.release()
    assert (None, {}) == (turns._holder, turns._waiting)
