"""Bound the large work that small requests cause: measurements of a namespace, and listings of all its records.

A measurement has millions of chunks in memory (I6). A listing has a file, which is as large as the listing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from aiohttp import web

from filestore.errors import Busy
from filestore.system.threads import SingleFlight

T = TypeVar("T")

MEASUREMENTS_LIMIT = 2
"""How many measurements a process makes at the same time."""
LISTINGS_LIMIT = 16
"""How many listings of all records of a namespace a process sends at the same time."""


class Measuring:
    """The measurements of a process. A namespace has one at a time, so that it does not keep others from theirs."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MEASUREMENTS_LIMIT)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._flights = SingleFlight()
        self._listings: Counter[str] = Counter()

    async def run(self, namespace: str, measure: Callable[[], Awaitable[T]]) -> T:
        """Return what `measure` returns. Wait until the namespace, and the process, may make another measurement."""
        turn = self._turns.setdefault(namespace, asyncio.Lock())
        async with turn, self._places:
            return await measure()

    async def share(self, namespace: str, question: Hashable, measure: Callable[[], Awaitable[T]]) -> T:
        """Do what `run` does. Requests that ask the same `question` at the same time share one measurement."""
        return await self._flights.run((namespace, question), partial(self.run, namespace, measure))

    @contextmanager
    def listing(self, namespace: str) -> Iterator[None]:
        """Count a listing during the block. Raises Busy if the namespace has too many: a client may read one for hours."""
        if self._listings[namespace] >= LISTINGS_LIMIT:
            raise Busy(f"the list of all files of {namespace}", f"{LISTINGS_LIMIT} clients read it at the same time")
        self._listings[namespace] += 1
        try:
            yield
        finally:
            self._listings[namespace] -= 1
            if not self._listings[namespace]:
                del self._listings[namespace]


MEASURING = web.AppKey("measuring", Measuring)
