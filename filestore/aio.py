"""The few concurrency tools: reused buffers, bytes in flight, worker threads, single flight."""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

DISK_THREADS = 16


@cache
def _cpu_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="filestore-cpu")


@cache
def _disk_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=DISK_THREADS, thread_name_prefix="filestore-disk")


async def in_cpu_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run hashing, coding or cutting in one of as many threads as there are cores.

    A cancelled call first waits for its thread, so that buffers are never reused under it.
    """
    return await _in_thread(_cpu_pool(), lambda: function(*args, **kwargs))


async def in_disk_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run calls that wait for a disk (open, write, fsync) in one of 16 threads; cancelled as `in_cpu_thread`."""
    return await _in_thread(_disk_pool(), lambda: function(*args, **kwargs))


async def _in_thread(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    future = pool.submit(call)
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not (future.cancel() or future.done()):
            try:
                await asyncio.wait([waiting])
            except asyncio.CancelledError:
                continue
        raise


def per_thread(make: Callable[[], T]) -> Callable[[], T]:
    """A function that gives each thread an instance of its own: zstd contexts and scratch memory are not thread-safe."""
    local = threading.local()

    def instance() -> T:
        if not hasattr(local, "instance"):
            local.instance = make()
        return cast("T", local.instance)

    return instance


class BufferPool:
    """`count` page-aligned buffers of `size` bytes, made on first need and reused: fresh pages cost more than a copy."""

    def __init__(self, *, count: int, size: int) -> None:
        self._free: deque[memoryview] = deque()
        self._unmade = count
        self._size = size
        self._places = asyncio.Semaphore(count)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[memoryview]:
        """A buffer, waiting for one where all are taken. Its content is what the last owner left."""
        async with self._places:
            buffer = self._free.pop() if self._free else memoryview(mmap.mmap(-1, self._size))
            try:
                yield buffer
            finally:
                self._free.append(buffer)


class Budget:
    """Bytes in flight: `take(n)` waits, first come first served, until `n` more fit under the limit (I6).

    What is larger than the whole limit is let through alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes of the budget."""
        size = min(size, self._limit)
        await self._acquire(size)
        try:
            yield
        finally:
            self._release(size)

    async def _acquire(self, size: int) -> None:
        if not self._waiting and self._taken + size <= self._limit:
            self._taken += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (size, turn)
        self._waiting.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(size)
            else:
                self._waiting.remove(place)
                self._wake()
            raise

    def _release(self, size: int) -> None:
        self._taken -= size
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._taken + self._waiting[0][0] <= self._limit:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._taken += size
                turn.set_result(None)


class SingleFlight:
    """Calls with the same key at the same time share one execution; nothing is remembered after it."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[object]] = {}
        self._waiters: dict[Hashable, int] = {}

    async def run(self, key: Hashable, function: Callable[[], Awaitable[T]]) -> T:
        """The result of `function()`, or of the call under way. The execution is cancelled when its last waiter is."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.ensure_future(_as_coroutine(function))
            self._flights[key] = flight
            self._waiters[key] = 0
        self._waiters[key] += 1
        try:
            result = await asyncio.shield(flight)
        finally:
            self._leave(key, flight)
        return result  # type: ignore[return-value]  # the key stands for one kind of result

    def _leave(self, key: Hashable, flight: asyncio.Task[object]) -> None:
        if self._flights.get(key) is not flight:
            return
        self._waiters[key] -= 1
        if flight.done() or self._waiters[key] == 0:
            flight.cancel()
            del self._flights[key], self._waiters[key]


async def _as_coroutine(function: Callable[[], Awaitable[T]]) -> T:
    return await function()
