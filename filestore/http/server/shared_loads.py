"""Load a thing once for all requests of a server process that need it, and keep what fits into a limit of memory (I6)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from filestore.core.digest import Digest
from filestore.errors import Busy
from filestore.system.metrics import Event, count

T = TypeVar("T")

Key = tuple[str, Digest]
"""A namespace, and the digest of a content in it."""


class SharedLoad(Generic[T]):
    """A thing in memory, or one that is being loaded."""

    def __init__(self, loading: asyncio.Task[T], size: int) -> None:
        self.loading = loading
        self.size = size
        """Bytes of memory, as far as they are known."""
        self.users = 1
        """The requests that use it, and the task that loads it. What has no users may be removed."""


class SharedLoads(Generic[T]):
    """The things of one kind that a process has loaded.

    One stays in memory while a request uses it. Those that nobody uses stay until their memory is needed, the one that was used
    last the longest.
    """

    def __init__(self, kind: str, *, wait_seconds: float, limit: int, refusal: str) -> None:
        """`kind` is a word of the metrics. `wait_seconds` is how long a request waits for memory. Busy says the `refusal`."""
        self._kind = kind
        self._wait_seconds = wait_seconds
        self._refusal = refusal
        self._entries: OrderedDict[Key, SharedLoad[T]] = OrderedDict()
        self._waiting: set[asyncio.Future[None]] = set()
        self.limit = limit
        self.size = 0
        """Bytes of memory that all of them take."""

    @property
    def used_size(self) -> int:
        """Bytes of memory of those that have users."""
        return sum(entry.size for entry in self._entries.values() if entry.users)

    @asynccontextmanager
    async def using(self, key: Key, begin: Callable[[], Awaitable[SharedLoad[T] | None]]) -> AsyncIterator[T]:
        """Give a thing during the block. `begin` calls `add`, or returns None while others use the memory that it needs.

        Raises what the load raises, and Busy if others use all memory for too long.
        """
        count(Event.CACHE_LOOKUPS, self._kind, "hit" if key in self._entries else "miss")
        try:
            async with asyncio.timeout(self._wait_seconds):
                while (entry := self._entries.get(key)) is None and (entry := await begin()) is None:
                    await self.wait_for_release()
        except TimeoutError:
            raise Busy("the server", self._refusal) from None
        self._entries.move_to_end(key)
        entry.users += 1
        try:
            # Shielded, since other requests may wait for it too.
            yield await asyncio.shield(entry.loading)
        finally:
            self._release(entry)

    def get(self, key: Key) -> SharedLoad[T] | None:
        """Return what was loaded, or is being loaded, for another request."""
        return self._entries.get(key)

    def add(
        self, key: Key, loading: Coroutine[Any, Any, T], *, size: int = 0, measure: Callable[[T], int] | None = None
    ) -> SharedLoad[T]:
        """Load a thing of so many bytes, or as many as `measure` returns when it is loaded."""
        entry = self._entries[key] = SharedLoad(asyncio.create_task(loading), size)
        self.size += size

        def loaded(task: asyncio.Task[T]) -> None:
            if task.cancelled() or task.exception() is not None:
                del self._entries[key]
                self.size -= entry.size
            elif measure is not None:
                entry.size = measure(task.result())
                self.size += entry.size
            self._release(entry)

        entry.loading.add_done_callback(loaded)
        return entry

    def make_room(self, size: int) -> bool:
        """Remove what nobody uses until `size` more bytes fit. Return False, and remove nothing, if that is not possible."""
        if self.used_size + size > self.limit:
            return False
        self._remove_unused(list(self._entries), size)
        return True

    def tell_waiting(self) -> None:
        """Let those who wait look again."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for_release(self) -> None:
        """Wait until something has no users any more, or `tell_waiting` is called."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def _release(self, entry: SharedLoad[T]) -> None:
        entry.users -= 1
        if not entry.users:
            # What was used last stays, however large it is.
            self._remove_unused(list(self._entries)[:-1], 0)
            self.tell_waiting()

    def _remove_unused(self, keys: Iterable[Key], size: int) -> None:
        for key in keys:
            if self.size + size <= self.limit:
                return
            if not self._entries[key].users:
                self.size -= self._entries.pop(key).size
