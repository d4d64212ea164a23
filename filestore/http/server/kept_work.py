"""Bound the work that pages cause which read stored content, and keep its results within a limit of memory (I6).

A result depends on content only, which never changes. So a page that is opened again, or its next part, costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar

from aiohttp import web

from filestore.errors import Busy
from filestore.http.server.measuring import Measuring
from filestore.system.threads import task_group

T = TypeVar("T")

KEPT_LIMIT = 32 << 20
"""Bytes of memory for the results of a process. A larger result is not kept."""
WAITING_LIMIT = 16
"""The most requests of a namespace that work, or wait for their turn."""
_LOOK_SECONDS = 1.0
"""How often the server looks whether a client that waits is still there."""


class KeptWork:
    """The work of one process. A namespace does one piece of it at a time, and the process two."""

    def __init__(self, *, limit: int = KEPT_LIMIT) -> None:
        self._turns = Measuring()
        self._limit = limit
        self._kept: OrderedDict[tuple[str, Hashable], tuple[Any, int]] = OrderedDict()
        self._requests: Counter[str] = Counter()
        self.size = 0
        """Bytes of memory that the results take."""

    async def get(
        self,
        namespace: str,
        question: Hashable,
        work: Callable[[], Awaitable[T]],
        *,
        measure: Callable[[T], int],
        check_client: Callable[[], object],
    ) -> T:
        """Return what `work` returns, or what it returned before. Requests with the same `question` share one piece of work.

        measure: returns the bytes of memory that a result takes.
        check_client: raises an error if the client has gone. The work ends when nobody waits for it any more.

        Raises Busy if too many requests of the namespace wait, and what `work` and `check_client` raise.
        """
        key = (namespace, question)
        if key in self._kept:
            self._kept.move_to_end(key)
            found: T = self._kept[key][0]
            return found
        if self._requests[namespace] >= WAITING_LIMIT:
            raise Busy("the server", "it reads the content of other files of this namespace")
        self._requests[namespace] += 1
        try:
            result: T = await _while_connected(self._turns.share(namespace, question, work), check_client)
        finally:
            self._requests[namespace] -= 1
            if not self._requests[namespace]:
                del self._requests[namespace]
        self._keep(key, result, measure(result))
        return result

    def _keep(self, key: tuple[str, Hashable], result: object, size: int) -> None:
        if size > self._limit or key in self._kept:
            return
        self._kept[key] = result, size
        self.size += size
        while self.size > self._limit:
            _, (_, removed) = self._kept.popitem(last=False)
            self.size -= removed


async def _while_connected(work: Coroutine[Any, Any, T], check_client: Callable[[], object]) -> T:
    async with task_group() as group:
        working = group.create_task(work)
        while not (await asyncio.wait([working], timeout=_LOOK_SECONDS))[0]:
            check_client()
    return working.result()


KEPT_WORK = web.AppKey("kept_work", KeptWork)
