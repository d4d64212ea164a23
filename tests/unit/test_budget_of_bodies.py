"""The budget for bodies of requests."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from filestore.system.buffers import LARGE_SIZE, Budget


async def test_a_small_body_does_not_wait_for_large_ones() -> None:
    """Large bodies share half of the budget, so the other half is there for small ones."""
    budget, large, taken = Budget(4 * LARGE_SIZE), LARGE_SIZE + 1, list[str]()

    async def take(name: str, size: int) -> None:
        async with budget.take_for_body(size):
            taken.append(name)
            await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(take("large", large)) for _ in range(5)]
        tasks.append(asyncio.create_task(take("small", LARGE_SIZE)))
        stack.callback(lambda: [task.cancel() for task in tasks])
        await asyncio.sleep(0)
        assert ["large", "small"] == taken
    await asyncio.wait(tasks)
    async with budget.take(4 * LARGE_SIZE):
        pass
