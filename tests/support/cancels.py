"""Cancel `asyncio` code at every await, to see whether it leaves all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from itertools import count
from typing import Any


class _CancelledAt:
    """Await a coroutine in the current task, and cancel the task when the coroutine waits for the `place`-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], place: int) -> None:
        self._coroutine = coroutine
        self._place = place
        self.reached = False

    def __await__(self) -> Generator[Any, None, object]:
        error: BaseException | None = None
        for place in count():
            try:
                waited_for = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            if place == self._place:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            error = None
            try:
                yield waited_for
            except BaseException as thrown:  # noqa: BLE001  # a cancel, or an error of the awaited call
                error = thrown
        raise AssertionError


async def cancelled_at_every_await(make: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[int]:
    """Run `make()` many times, each time cancelled one await later; yield each place. The last run is not cancelled.

    The body of the caller's loop checks the state after each cancel.
    """
    for place in count():
        run = _CancelledAt(make(), place)

        async def awaited(run: _CancelledAt = run) -> object:
            return await run

        task = asyncio.create_task(awaited())
        await asyncio.wait([task])
        if not run.reached:
            await task
            return
        assert task.cancelled(), f"the cancel at await {place} was swallowed: {task!r}"
        yield place
