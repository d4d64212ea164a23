"""Take turns between namespaces at something that only one task can have, such as the lock for writing to an index.

Work is divided into slices, and each slice takes a turn. So a small request waits for at most one slice of every other
namespace, and not for all the work that these have to do.

Source: Nagle, "On Packet Switches With Infinite Storage", RFC 970 (1985), section on fairness in packet systems.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar

_namespace: ContextVar[str] = ContextVar("namespace", default="")


@contextmanager
def working_for(namespace: str) -> Iterator[None]:
    """Count the work of this task, and of the tasks that it starts in the block, as work of `namespace`.

    All work outside of such a block counts as the work of one more namespace. It is that of a command, or of the server
    itself.
    """
    token = _namespace.set(namespace)
    try:
        yield
    finally:
        _namespace.reset(token)


def namespace_of_work() -> str:
    """Return the namespace for which this task works, or an empty text."""
    return _namespace.get()


class Turns:
    """Something that one task has at a time. The namespaces that wait for it get it one after the other.

    The tasks of one namespace get it in the order of their calls. All of them must run on the same event loop.
    """

    def __init__(self) -> None:
        self._holder: str | None = None
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """The tasks that wait, by their namespaces. The first namespace gets the next turn."""

    @property
    def is_free(self) -> bool:
        """Whether nobody has it. Then nobody waits for it either."""
        return self._holder is None

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Take a turn for the block. Do one slice of work in it."""
        await self.acquire()
        try:
            yield
        finally:
            self.release()

    async def acquire(self) -> None:
        """Wait for a turn, which ends with `release`."""
        namespace = namespace_of_work()
        if self._holder is None:
            self._holder = namespace
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(namespace, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                self._leave(namespace, waiter)
            raise

    def release(self) -> None:
        """End the turn. The next one belongs to another namespace if one waits."""
        if self._holder in self._waiting:
            self._waiting[self._holder] = self._waiting.pop(self._holder)
        self._holder = None
        while self._waiting and self._holder is None:
            namespace, waiters = next(iter(self._waiting.items()))
            waiter = waiters.popleft()
            if not waiters:
                del self._waiting[namespace]
            if not waiter.done():
                self._holder = namespace
                waiter.set_result(None)

    def _leave(self, namespace: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(namespace, deque())
        with suppress(ValueError):  # `release` may have removed it in the same moment
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(namespace, None)
