"""The event loop of the processes that filestore starts: its waits are counted as calls that give up the interpreter lock."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from filestore.core.unlocked import unlocked

T = TypeVar("T")


def run_in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end as `asyncio.run` does, and return its result."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(coroutine)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_MeasuredSelector())


if hasattr(selectors, "EpollSelector"):

    class _MeasuredSelector(selectors.EpollSelector):
        """A selector whose waits are measured."""

        def __init__(self) -> None:
            super().__init__()
            self._selector: Any = _MeasuredPoll(self._selector)

    class _MeasuredPoll:
        """An epoll object whose waits are measured."""

        def __init__(self, epoll: select.epoll) -> None:
            self._poll = epoll.poll
            self.register, self.unregister, self.modify = epoll.register, epoll.unregister, epoll.modify
            self.close, self.fileno = epoll.close, epoll.fileno

        def poll(self, timeout: float, max_events: int) -> list[tuple[int, int]]:
            return unlocked(self._poll, timeout, max_events)
