"""Bound the large work that small requests cause: measurements of a namespace, and listings of all its records.

A measurement has millions of chunks in memory (I6). A listing has a file, which is as large as the listing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from aiohttp import web

from filestore.errors import Busy
from filestore.repository.index.protocol import NamespaceUsage
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Usage
from filestore.system.threads import SingleFlight

if TYPE_CHECKING:  # it imports numpy, which is heavy
    from filestore.repository.maintenance.growth import Space

T = TypeVar("T")

MEASUREMENTS_LIMIT = 2
"""How many measurements a process makes at the same time."""
LISTINGS_LIMIT = 16
"""How many listings of all records of a namespace a process sends at the same time."""
USAGES_LIMIT = 16
"""Of how many namespaces and prefixes a process keeps the last measurement. One has about 300 KB."""

NAMES_KEPT = 1000
"""How many names a measurement that is kept has at least, if there are so many."""


class MeasuredUsage(NamedTuple):
    """What a measurement of the disk usage has found, and when."""

    usage: Usage
    kept: NamespaceUsage
    """What the namespace kept when the measurement began. While it keeps the same, the result holds."""
    measured_at: int
    """In microseconds since 1970."""


class Measuring:
    """The measurements of a process. A namespace has one at a time, so that it does not keep others from theirs."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MEASUREMENTS_LIMIT)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._flights = SingleFlight()
        self._listings: Counter[str] = Counter()
        self._usages: OrderedDict[tuple[str, str], MeasuredUsage] = OrderedDict()

    async def run(self, namespace: str, measure: Callable[[], Awaitable[T]]) -> T:
        """Return what `measure` returns. Wait until the namespace, and the process, may make another measurement."""
        turn = self._turns.setdefault(namespace, asyncio.Lock())
        async with turn, self._places:
            return await measure()

    async def share(self, namespace: str, question: Hashable, measure: Callable[[], Awaitable[T]]) -> T:
        """Do what `run` does. Requests that ask the same `question` at the same time share one measurement."""
        return await self._flights.run((namespace, question), partial(self.run, namespace, measure))

    async def usage(self, repository: LocalRepository, *, grace_seconds: float, name_limit: int) -> MeasuredUsage:
        """Measure the usage of a namespace, as far as its repository sees it, and keep the result for `last_usage`.

        Requests that ask for the same at the same time share one measurement.
        """

        async def measure() -> MeasuredUsage:
            kept, now = await repository.kept(), time.time_ns() // 1000
            usage = await repository.usage(grace_seconds=grace_seconds, name_limit=name_limit)
            return MeasuredUsage(usage, kept, now)

        question = "usage", grace_seconds, name_limit, repository.prefix
        measured = await self.share(repository.namespace, question, measure)
        self._keep(repository, measured)
        return measured

    async def space(self, repository: LocalRepository, *, grace_seconds: float, name_limit: int) -> tuple[Space, int]:
        """Do what `usage` does, and measure how the namespace has grown. Return both, and when, in microseconds since 1970."""

        async def measure() -> tuple[Space, MeasuredUsage]:
            kept, now = await repository.kept(), time.time_ns() // 1000
            space = await repository.space(grace_seconds=grace_seconds, name_limit=name_limit)
            return space, MeasuredUsage(space.usage, kept, now)

        question = "space", grace_seconds, name_limit, repository.prefix
        space, measured = await self.share(repository.namespace, question, measure)
        self._keep(repository, measured)
        return space, measured.measured_at

    def _keep(self, repository: LocalRepository, measured: MeasuredUsage) -> None:
        if measured.usage.name_count > len(measured.usage.names) < NAMES_KEPT:
            return  # a page would show less by it
        key = repository.namespace, repository.prefix
        self._usages[key] = measured
        self._usages.move_to_end(key)
        if len(self._usages) > USAGES_LIMIT:
            self._usages.popitem(last=False)

    def last_usage(self, repository: LocalRepository) -> MeasuredUsage | None:
        """Return what this process has measured last of what a repository sees. It may not hold any more."""
        return self._usages.get((repository.namespace, repository.prefix))

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
