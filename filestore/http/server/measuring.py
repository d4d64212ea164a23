"""Measure namespaces for requests: a few at a time, since each measurement has millions of chunks in memory (I6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from aiohttp import web

from filestore.system.threads import SingleFlight

T = TypeVar("T")

MEASUREMENTS_LIMIT = 2
"""How many measurements a process makes at the same time."""


class Measuring:
    """The measurements of a process. A namespace has one at a time, so that it does not keep others from theirs."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MEASUREMENTS_LIMIT)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._flights = SingleFlight()

    async def run(self, namespace: str, measure: Callable[[], Awaitable[T]]) -> T:
        """Return what `measure` returns. Wait until the namespace, and the process, may make another measurement."""
        turn = self._turns.setdefault(namespace, asyncio.Lock())
        async with turn, self._places:
            return await measure()

    async def share(self, namespace: str, question: Hashable, measure: Callable[[], Awaitable[T]]) -> T:
        """Do what `run` does. Requests that ask the same `question` at the same time share one measurement."""
        return await self._flights.run((namespace, question), partial(self.run, namespace, measure))


MEASURING = web.AppKey("measuring", Measuring)
