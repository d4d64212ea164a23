"""Limit and reuse memory, with page-aligned buffers, pools of buffers and budgets of bytes."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache
from typing import cast

from filestore.core.unlocked import unlocked
from filestore.system.turns import namespace_of_work

LARGE_SIZE = 4 << 20
"""A body of more bytes is a large one."""

_SMALL_COPY = 64 << 10
"""Fewer bytes are copied while the lock is held, which is faster than to give it up."""


def allocate_pages(size: int) -> memoryview:
    """Return `size` bytes of new page-aligned memory. The caller should keep and reuse it.

    The memory has large pages if the system offers them: to make these takes an eighth of the time.
    """
    # Private: by default Python maps memory that a fork would share, for which no system uses large pages.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the kernel was built without large pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


def copy_memory(source: memoryview, target: memoryview) -> None:
    """Copy `source` to the start of `target`. Both can be written to, and do not overlap.

    It gives up the interpreter lock. An assignment to a slice would hold it.
    """
    size = len(source)
    if size > len(target):
        raise ValueError(f"{size} bytes do not fit into {len(target)}")
    if size < _SMALL_COPY:
        target[:size] = source
    else:
        unlocked(memcpy(), address_of(target), address_of(source), size)


def address_of(memory: memoryview) -> int:
    """Return where memory is that can be written to. It is valid as long as the memory is kept."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@cache
def memcpy() -> Callable[[int, int, int], object]:
    """Return a function that copies from an address to another one: target, source, size. It gives up the interpreter lock."""
    # Not `ctypes.memmove`, which holds the lock.
    call = ctypes.CDLL(None).memcpy
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    call.restype = ctypes.c_void_p
    return cast("Callable[[int, int, int], object]", call)


class BufferPool:
    """A pool of at most `count` page-aligned buffers of `size` bytes each.

    A buffer is made on first use and then reused, because new memory pages take more time than a copy.
    """

    def __init__(self, *, count: int, size: int) -> None:
        self._free: list[memoryview] = []
        self._size = size
        self._places = asyncio.Semaphore(count)

    async def acquire(self) -> memoryview:
        """Return a buffer. If all are in use, wait until one is released. The buffer still has its previous content."""
        await self._places.acquire()
        return self._free.pop() if self._free else allocate_pages(self._size)

    def release(self, buffer: memoryview) -> None:
        """Give a buffer back to the pool. The caller must not use it any more."""
        self._free.append(buffer)
        self._places.release()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[memoryview]:
        """Acquire a buffer, and release it at the end of the block."""
        buffer = await self.acquire()
        try:
            yield buffer
        finally:
            self.release(buffer)


class Taken:
    """Bytes of a budget that a block has taken, and of which it may give back some before its end."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size

    def shrink(self, size: int) -> None:
        """Give back all but `size` bytes. Does nothing if there are not more."""
        if size < self.size:
            given, self.size = self.size - size, size
            self._budget.give_back(given)


class Budget:
    """Limit the number of bytes that are in use at the same time (I6).

    `take(n)` waits until `n` more bytes fit under the limit. The namespaces that wait get their turns one after the other,
    and the calls of one namespace in their order. A request that is larger than the whole limit waits until nothing else is
    in use, and nobody else gets any byte until it has ended.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        """Bytes that are in use."""
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        """The calls that wait, by namespaces. The first namespace has the next turn."""
        self._large: Budget | None = None
        """What all large requests share."""

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return sum(map(len, self._waiting.values())) + (0 if self._large is None else self._large.waiting)

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[Taken]:
        """Hold `size` bytes of the budget during the block, or what the block has left of them."""
        await self._acquire(size)
        taken = Taken(self, size)
        try:
            yield taken
        finally:
            self.give_back(taken.size)

    async def _acquire(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self.taken += size
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place, namespace = (size, waiter), namespace_of_work()
        self._waiting.setdefault(namespace, deque()).append(place)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back(size)
            else:
                self._leave(namespace, place)
                self._wake()
            raise

    @asynccontextmanager
    async def take_for_body(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes during the block. Large bodies share half of the limit, so that a small one never waits for them."""
        async with AsyncExitStack() as stack:
            if size > LARGE_SIZE:
                if self._large is None:
                    self._large = Budget(self.limit // 2)
                await stack.enter_async_context(self._large.take(size))
            await stack.enter_async_context(self.take(size))
            yield

    def give_back(self, size: int) -> None:
        """Let others have `size` bytes that were taken."""
        self.taken -= size
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            namespace, places = next(iter(self._waiting.items()))
            size, waiter = places[0]
            if not waiter.done():
                # A small request does not overtake a large one that has its turn.
                if not self._fits(size):
                    return
                self.taken += size
                waiter.set_result(None)
                # Behind the others.
                self._waiting[namespace] = self._waiting.pop(namespace)
            self._leave(namespace, places[0])

    def _leave(self, namespace: str, place: tuple[int, asyncio.Future[None]]) -> None:
        places = self._waiting.get(namespace, deque())
        with suppress(ValueError):  # `_wake` may have removed it in the same moment
            places.remove(place)
        if not places:
            self._waiting.pop(namespace, None)

    def _fits(self, size: int) -> bool:
        return not self.taken or self.taken + size <= self.limit
