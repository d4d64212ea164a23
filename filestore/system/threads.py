"""The few concurrency tools: reused buffers, bytes in flight, worker threads, single flight."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

DISK_THREADS = 16

_pools: dict[str, ThreadPoolExecutor] = {}
_forks = 0
"""How many times the line of processes that leads to this one was forked since this module was loaded."""


class Forkable(Protocol):
    """An object that must know of a fork: it is in the child too, without its threads, and with locks as they were."""

    def after_fork(self) -> None:
        """Called in the child, by its only thread."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def tell_of_forks(item: Forkable) -> None:
    """Call `item.after_fork()` in each forked child, for as long as the object lives.

    Last in `__init__`: another thread may fork at any moment, and what that call uses must be there.
    """
    _forkables.add(item)


def _begin_child() -> None:
    global _forks  # noqa: PLW0603  # what a process is, is the process's
    _forks += 1
    # The threads have stayed with the parent.
    _pools.clear()
    failures = []
    for item in list(_forkables):
        try:
            item.after_fork()
        except Exception as error:  # noqa: BLE001  # each object gets its call, whichever fails
            failures.append(error)
    if failures:
        # Python shows it by `sys.unraisablehook`; it cannot end the fork.
        raise ExceptionGroup("objects of the parent process did not take note of a fork", failures)


os.register_at_fork(after_in_child=_begin_child)


def abandon(item: object) -> None:
    """Keep an object of the parent for ever, in a forked child, and so never close it: closing could harm the parent."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


class ProcessLock:
    """A reentrant lock that is free in a forked child, whichever thread of the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        tell_of_forks(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """A new lock: the thread that held the old one is not here."""
        self._lock = threading.RLock()


def thread_pool(name: str, count: int) -> ThreadPoolExecutor:
    """The threads of this process that have this name, `count` at most; a forked child has its own."""
    pool = _pools.get(name)
    if pool is None:
        pool = _pools.setdefault(name, ThreadPoolExecutor(max_workers=count, thread_name_prefix=f"filestore-{name}"))
    return pool


def run_in_parallel(function: Callable[[T], object], items: Sequence[T]) -> None:
    """Call `function` for each of `items`, in as many threads as may wait for a disk; all have ended when this returns.

    For a call in `in_disk_thread`: waking the event loop for each of them would cost more than the calls that they make.
    Raises the first failure in the order of `items`.
    """
    # Not the threads of `in_disk_thread`: one of those waits for these.
    pool = thread_pool("waiting", DISK_THREADS)
    calls = [pool.submit(function, item) for item in items]
    wait(calls)
    for call in calls:
        call.result()


async def in_cpu_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run hashing, coding or cutting in one of as many threads as there are cores.

    A cancelled call first waits for its thread, so that buffers are never reused under it.
    """
    return await in_thread(thread_pool("cpu", os.cpu_count() or 1), function, *args, **kwargs)


async def in_disk_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run calls that wait for a disk (open, write, fsync) in one of 16 threads; cancelled as `in_cpu_thread`."""
    return await in_thread(thread_pool("disk", DISK_THREADS), function, *args, **kwargs)


async def in_thread(pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call in a thread of `pool`; cancelled as `in_cpu_thread`."""
    return await in_stoppable_thread(pool, lambda: None, function, *args, **kwargs)


async def in_stoppable_thread(
    pool: ThreadPoolExecutor, stop: Callable[[], None], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """`in_thread`, for a call that waits for someone else: a cancel first has `stop` end it."""
    future = pool.submit(function, *args, **kwargs)
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        stop()
        # Seen, so that the loop does not report it as lost: the cancel is what counts.
        waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        while not (future.cancel() or future.done()):
            try:
                await asyncio.wait([waiting])
            except asyncio.CancelledError:
                continue
        raise


async def shield_until_done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the end of something even when cancelled meanwhile; the cancel is raised afterwards.

    For what must not be left half done, such as a rollback, and takes no longer than a disk needs.
    """
    task = asyncio.get_running_loop().create_task(coroutine)
    cancel = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        task.exception()  # seen, so that the loop does not report it as lost
        raise cancel
    return task.result()


def per_thread(make: Callable[[], T]) -> Callable[[], T]:
    """A function that gives each thread an instance of its own: zstd contexts and scratch memory are not thread-safe.

    The first thread of a forked child makes its own as well: memory may be shared with the parent.
    """
    local = threading.local()

    def instance() -> T:
        if getattr(local, "forks", None) != _forks:
            local.instance, local.forks = make(), _forks
        return cast("T", local.instance)

    return instance


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the first failure itself, not a group that holds it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from failure.__cause__


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
            if self._leave(key, flight):
                # It still gives back what it has taken, which may be gone once the caller goes on.
                await shield_until_done(_ended(flight))
        return result  # type: ignore[return-value]  # the key stands for one kind of result

    def _leave(self, key: Hashable, flight: asyncio.Task[object]) -> bool:
        """Whether the execution was cancelled by that."""
        if self._flights.get(key) is not flight:
            return False
        self._waiters[key] -= 1
        if not flight.done() and self._waiters[key]:
            return False
        del self._flights[key], self._waiters[key]
        return flight.cancel()


async def _ended(task: asyncio.Task[object]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen, so that the loop does not report it as lost


async def _as_coroutine(function: Callable[[], Awaitable[T]]) -> T:
    return await function()
