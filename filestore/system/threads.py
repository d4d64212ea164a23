"""Tools for threads, forks, cancellation and tasks."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Hashable, Iterable, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from filestore.system.fair_pool import FairPool
from filestore.system.machine import core_count

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DISK_THREADS = 16

_pools: dict[str, FairPool] = {}
_forks = 0
"""How many forks are between the process that loaded this module and this process. Each child adds one."""


class Forkable(Protocol):
    """An object that must be changed in a forked child.

    The child has a copy of the object, but not its threads. Its locks are in the state that they had at the fork.
    """

    def after_fork(self) -> None:
        """Prepare the object for use in the child. This is called in the child, by its only thread."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def tell_of_forks(item: Forkable) -> None:
    """Call `item.after_fork()` in each forked child, as long as the object exists.

    Call this last in `__init__`: another thread may fork at any moment, and `after_fork` needs all fields.
    """
    _forkables.add(item)


def _begin_child() -> None:
    global _forks  # noqa: PLW0603  # what a process is, is the process's
    _forks += 1
    # The threads exist only in the parent.
    _pools.clear()
    failures = []
    for item in list(_forkables):
        try:
            item.after_fork()
        except Exception as error:  # noqa: BLE001  # each object gets its call, even if another one fails
            failures.append(error)
    if failures:
        # It cannot stop the fork. Python shows it by `sys.unraisablehook`.
        raise ExceptionGroup("objects of the parent process did not take note of a fork", failures)


os.register_at_fork(after_in_child=_begin_child)


def abandon(item: object) -> None:
    """Keep an object for ever, so that it is never closed: one of the parent in a forked child, or one whose file is gone.

    To close it could harm the parent, or another process.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


class ProcessLock:
    """A reentrant lock that is free in a forked child, even if a thread of the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        tell_of_forks(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """Make a new lock, since the thread that held the old one is not in the child."""
        self._lock = threading.RLock()


def thread_pool(name: str, count: int) -> FairPool:
    """Return the pool with this name. If it does not exist, make it, with at most `count` threads.

    One namespace has at most three quarters of them. A forked child makes new pools.
    """
    pool = _pools.get(name)
    if pool is None:
        share = count - count // 4
        pool = _pools.setdefault(name, FairPool(f"filestore-{name}", count=count, share=share))
    return pool


def waiting_calls() -> dict[str, int]:
    """Return how many calls wait for a thread of each pool of this process."""
    return {name: pool.waiting for name, pool in list(_pools.items())}


def run_in_parallel(function: Callable[[T], object], items: Sequence[T]) -> None:
    """Call `function` for each of `items` in `DISK_THREADS` threads, and wait until all calls have ended.

    Use it inside `in_disk_thread`. This is faster than one `in_disk_thread` for each item, because the event loop wakes
    up only once. If calls fail, the error of the first such item is raised.
    """
    # Not the threads of `in_disk_thread`, since one of them waits here.
    pool = thread_pool("waiting", DISK_THREADS)
    calls = [pool.submit(function, item) for item in items]
    wait(calls)
    for call in calls:
        call.result()


async def in_cpu_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a thread for work of the processor, such as hashing. There is one such thread for each core.

    If it is cancelled, it waits until the thread has ended the call. So a buffer is never reused while a thread uses
    it.
    """
    return await in_thread(cpu_threads(), function, *args, **kwargs)


def cpu_threads() -> Executor:
    """Return the threads of `in_cpu_thread`."""
    return thread_pool("cpu", core_count())


def disk_threads() -> Executor:
    """Return the threads of `in_disk_thread`, for other libraries. The default threads of asyncio give nobody a turn."""
    return thread_pool("disk", DISK_THREADS)


async def in_disk_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that waits for a disk, such as open, write or fsync, in one of 16 threads.

    If it is cancelled, it waits for the thread as `in_cpu_thread` does.
    """
    return await in_thread(disk_threads(), function, *args, **kwargs)


async def in_thread(pool: Executor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a thread of `pool`. If it is cancelled, it waits for the thread as `in_cpu_thread` does."""
    return await in_stoppable_thread(pool, lambda: None, function, *args, **kwargs)


async def in_stoppable_thread(
    pool: Executor, stop: Callable[[], None], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `function` in a thread of `pool`. Use this if `function` may wait for a long time.

    If it is cancelled, it first calls `stop`, which must make `function` end soon. Then it waits for the thread.
    """
    waiter = _Waiter(asyncio.get_running_loop())
    call: _Call[T]
    if isinstance(pool, FairPool):
        call = _ThreadCall(function, args, kwargs, waiter)
        pool.start(call)
    else:
        call = pool.submit(function, *args, **kwargs)
        call.add_done_callback(waiter.end)
    try:
        await waiter
    except asyncio.CancelledError:
        stop()
        while not (call.cancel() or call.done()):
            waiter = _Waiter(asyncio.get_running_loop())
            call.add_done_callback(waiter.end)
            with suppress(asyncio.CancelledError):
                await waiter
        raise
    if call.cancelled():
        raise asyncio.CancelledError
    return call.result()


async def calls_ended(calls: Iterable[Future[Any]]) -> None:
    """Wait until calls in threads have ended or are cancelled, in whatever way. If this is cancelled, they go on."""
    for call in calls:
        if not call.done():
            waiter = _Waiter(asyncio.get_running_loop())
            call.add_done_callback(waiter.end)
            await waiter


class _Call(Protocol[T_co]):
    """What a future of Python and a `_ThreadCall` have in common."""

    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def done(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...
    def result(self) -> T_co: ...


class _ThreadCall(Generic[T]):
    """A call in a thread, for which one task waits. A future of Python has a lock and a condition, which cost more than this."""

    __slots__ = ("_args", "_error", "_function", "_is_cancelled", "_is_done", "_kwargs", "_result", "_turn", "_waiter")

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], waiter: _Waiter) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._waiter: Callable[[Any], object] = waiter.end
        self._turn = [True]
        """Who takes the only item runs the call, or cancels it. To take it is one step for all threads."""
        self._is_done = self._is_cancelled = False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._turn.pop()
        except IndexError:
            return  # it was cancelled
        try:
            self._result = self._function(*self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001  # the caller gets it
            self._error = error
        self._end()
        # An error refers to this frame, and would keep itself and the arguments until a collection of garbage.
        del self

    def _end(self) -> None:
        # In this order: who finds it not done after `add_done_callback` is told.
        self._is_done = True
        self._waiter(self)

    def cancel(self) -> bool:
        """Return whether the call has not begun, and never will."""
        try:
            self._turn.pop()
        except IndexError:
            return False
        # Its pool may have cancelled it, at its own end.
        self._is_cancelled = True
        self._end()
        return True

    def cancelled(self) -> bool:
        return self._is_cancelled

    def done(self) -> bool:
        return self._is_done

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        self._waiter = fn
        if self._is_done:
            fn(self)

    def result(self) -> T:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback refers to this object
        return self._result


class _Waiter:
    """Something that one task awaits, and that a thread ends. It has no result.

    The task goes on in the round of the event loop that the thread wakes. A future of asyncio would take one round more, and
    each round costs 50 us and more under the interpreter's lock.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_is_cancelled", "_is_over", "_loop", "_message", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._wakeup: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._is_over = self._is_cancelled = False
        self._message: object = None

    def end(self, _: object = None) -> None:
        """Let the task go on. Any thread may call this."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None and self._context is not None:
            self._context.run(wakeup, self)

    # What a task of asyncio calls.

    def __await__(self) -> Generator[_Waiter, None, None]:
        if not self._is_over:
            self._asyncio_future_blocking = True
            yield self
        self.result()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context) -> None:
        self._wakeup, self._context = wakeup, context

    def cancel(self, msg: object = None) -> bool:
        if self._is_over or self._is_cancelled:
            return False
        self._is_cancelled, self._message = True, msg
        self._loop.call_soon(self._wake)
        return True

    def result(self) -> None:
        if self._is_cancelled:
            raise asyncio.CancelledError(*([] if self._message is None else [self._message]))


async def shield_until_done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait until a coroutine has ended, even if the caller is cancelled. Then raise CancelledError if it was.

    Use it for short work that must be completed, such as a rollback.
    """
    task = asyncio.get_running_loop().create_task(coroutine)
    cancel = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        task.exception()  # read, so that the loop does not report it as lost
        raise cancel
    return task.result()


def per_thread(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that returns a separate object in each thread. The object is made by `make` at the first call.

    Use it for objects that are not thread-safe, such as zstd contexts and scratch memory.

    A forked child makes new objects, because the memory of the old ones may be shared with the parent.
    """
    local = threading.local()

    def instance() -> T:
        if getattr(local, "forks", None) != _forks:
            local.instance, local.forks = make(), _forks
        return cast("T", local.instance)

    return instance


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open an `asyncio.TaskGroup`. If tasks fail, raise the first error itself, and not an exception group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from failure.__cause__


@asynccontextmanager
async def work_beside(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do `work` during the block, and cancel it at the end. An error of it ends the block, and is raised."""
    async with task_group() as group:
        tasks = [group.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


class SingleFlight:
    """Lets several calls with the same key share one execution. The result is not kept after its end."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[object]] = {}
        self._waiters: dict[Hashable, int] = {}

    async def run(self, key: Hashable, function: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `function()`. If a call with the same key is in progress, wait for its result instead.

        The execution is cancelled when all callers that wait for it are cancelled.
        """
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
                # The execution must end first: its cleanup may use something that the caller closes after this.
                await shield_until_done(_ended(flight))
        return result  # type: ignore[return-value]  # the key stands for one kind of result

    def _leave(self, key: Hashable, flight: asyncio.Task[object]) -> bool:
        """Stop waiting for an execution. If nobody else waits for it, cancel it. Return whether it was cancelled."""
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
        task.exception()  # read, so that the loop does not report it as lost


async def _as_coroutine(function: Callable[[], Awaitable[T]]) -> T:
    return await function()
