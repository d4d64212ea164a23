"""Keep what took long to find out for a page, and let a page that asks again have it.

A page is not kept waiting: after a moment it says that the work goes on, and is loaded again. A report is about what a namespace
has now, so it is kept for a time. What follows from content alone, which never changes, is kept by `http/server/kept_work.py`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from aiohttp import web

from filestore.errors import Busy
from filestore.http.server.routes.page.measurements import is_quick
from filestore.repository.index.protocol import NamespaceUsage
from filestore.repository.local import LocalRepository
from filestore.system.clock import elapsed_seconds

T = TypeVar("T")

REFRESH = {"Refresh": "3"}
"""The header by which a browser asks again for a page whose report is in work."""
WAIT_SECONDS = 2.0
"""How long a page waits for a report before it says that the work goes on."""
KEPT_SECONDS = 30.0
"""For how long a report is kept at least."""
KEPT_TIMES = 20
"""A report is kept for so many times the time that it took. So reports take a small part of the time of a server."""
REPORTS_LIMIT = 32
"""How many reports a process keeps. One takes less than 1 MB."""
UNFINISHED_LIMIT = 4
"""How many reports of a namespace may be in work."""


class _Key(NamedTuple):
    namespace: str
    question: Hashable


class _Report:
    def __init__(self, work: asyncio.Task[Any]) -> None:
        self.work = work
        self.began = elapsed_seconds()
        self.expires: float | None = None

    def ended(self, _: asyncio.Task[Any]) -> None:
        now = elapsed_seconds()
        self.expires = now + max(KEPT_SECONDS, KEPT_TIMES * (now - self.began))

    @property
    def is_old(self) -> bool:
        """Whether it must be made again: its time is over, or the work failed."""
        if not self.work.done():
            return False
        is_over = self.expires is not None and elapsed_seconds() >= self.expires
        return is_over or self.work.cancelled() or self.work.exception() is not None


class Reports:
    """The reports of a server process."""

    def __init__(self) -> None:
        self._reports: OrderedDict[_Key, _Report] = OrderedDict()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work during the block. At its end, what is in work is cancelled."""
        try:
            yield
        finally:
            tasks = [report.work for report in self._reports.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def get(
        self, namespace: str, question: Hashable, work: Coroutine[Any, Any, T], *, wait_seconds: float = WAIT_SECONDS
    ) -> T | None:
        """Return the answer to a question, which `work` finds. Return None if that takes longer than `wait_seconds`.

        The work goes on then, and also if the caller is cancelled. `work` is closed if the answer is known or being found.

        Raises what the work raises, once for each time that it is done. Raises Busy if the namespace has too many in work.
        """
        key = _Key(namespace, question)
        report = self._reports.get(key)
        if report is not None and not report.is_old:
            work.close()
            self._reports.move_to_end(key)
        else:
            report = self._begin(key, work)
        await asyncio.wait([report.work], timeout=wait_seconds)
        if not report.work.done():
            return None
        if report.work.cancelled() or report.work.exception() is not None:
            if self._reports.get(key) is report:
                del self._reports[key]
            if report.work.cancelled():
                raise Busy("the server", "it is being stopped")
        found: T = report.work.result()
        return found

    def _begin(self, key: _Key, work: Coroutine[Any, Any, T]) -> _Report:
        unfinished = [each for each in self._reports if each.namespace == key.namespace and not self._reports[each].work.done()]
        if len(unfinished) >= UNFINISHED_LIMIT:
            work.close()
            raise Busy("the server", f"it works on {UNFINISHED_LIMIT} reports for {key.namespace} already")
        self._reports.pop(key, None)
        for old in list(self._reports):
            if len(self._reports) >= REPORTS_LIMIT and self._reports[old].work.done():
                self._forget(old)
        task = asyncio.create_task(work)
        report = self._reports[key] = _Report(task)
        task.add_done_callback(report.ended)
        return report

    def _forget(self, key: _Key) -> None:
        work = self._reports.pop(key).work
        if not work.cancelled():
            work.exception()  # read, so that the loop does not report it as lost


async def state_of(repository: LocalRepository) -> NamespaceUsage | None:
    """Return what a small namespace keeps, as a part of a question: while that is the same, a report holds.

    Return None for a large one, whose report is not made again because something has changed.
    """
    kept = await repository.kept()
    return kept if is_quick(kept) else None


REPORTS = web.AppKey("reports", Reports)
