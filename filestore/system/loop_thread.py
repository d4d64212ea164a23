"""Coroutines for callers without an event loop: one loop in a thread of its own, for as long as the process lives."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from filestore.errors import BlockingCallRefused, UsedAfterFork
from filestore.system.threads import ProcessLock, abandon, tell_of_forks

T = TypeVar("T")
U = TypeVar("U")

THREAD_NAME = "filestore-loop"

_AT_THE_END = "the program ends; make it before the main thread has ended"
_IN_THE_LOOP = (
    "it was made in the thread of the event loop, such as by a progress callback, and would wait for itself;"
    " make it in another thread"
)


class Closable(Protocol):
    """An object that is closed at the end of the program, where nobody has closed it."""

    async def close_in_loop(self) -> None:
        """Close it. Called in the event loop."""


def run(make: Callable[[], Awaitable[T]]) -> T:
    """Run `make()` in the loop, which the first call starts, and wait for its end, also when this thread is interrupted.

    An exception that a signal handler raises, such as KeyboardInterrupt, cancels the coroutine, and is raised when that has
    ended. A second one does not wait.

    Raises what the coroutine raises; BlockingCallRefused in the thread of the loop and at the end of the program.
    """
    call = _Call(make)
    loop = _process.begin(call)
    try:
        loop.call_soon(call.start)
        call.has_ended.wait()
    except BaseException:
        loop.call_soon(call.cancel)
        call.has_ended.wait()
        raise
    return call.result()


def has_ended() -> bool:
    """Whether the program ends, and everything was closed."""
    return _process.has_ended


def close_at_end(item: Closable) -> None:
    """Close `item` at the end of the program, if it still exists then."""
    _process.items.add(item)


class Block(Generic[T]):
    """An `async with` block: a task of the loop is inside it while another thread uses what it gave.

    The end of the program ends it, and so does `with`. A child that is forked meanwhile leaves it alone: it is its parent's.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        """`make` is called when the block begins."""
        self._make = make
        self._pid = os.getpid()
        self._loop: _Loop | None = None
        self._task: asyncio.Task[None] | None = None
        self._left: asyncio.Event | None = None

    @property
    def is_ours(self) -> bool:
        """False in a child that was forked after the block was made."""
        return self._pid == os.getpid()

    @property
    def _is_open(self) -> bool:
        return self.is_ours and self._loop is not None and self in self._loop.blocks

    def __enter__(self) -> T:
        return self.enter()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self.leave()
        else:
            self._break_off()

    def enter(self) -> T:
        """Begin the block, and return what it gives. Raises what `run` raises."""
        try:
            return run(self._enter)
        except BaseException:
            # Where an interrupt came in the moment in which it began.
            self._break_off()
            raise

    def leave(self) -> None:
        """End the block, as without an error. Another call does nothing. Raises what `run` raises."""
        if self._is_open:
            run(self._leave)

    def run(self, make: Callable[[], Coroutine[Any, Any, U]]) -> U:
        """Run `make()`, which is cancelled when the block ends. Raises what `run` and the block raise, UsedAfterFork."""
        if not self.is_ours:
            raise UsedAfterFork("a file of a cache", self._pid)
        return run(lambda: self._run(make))

    def let_go(self) -> None:
        """End the block soon, as a cancel does, and wait for nothing. For the garbage collector, which runs in any thread."""
        if self._is_open and self._loop is not None:
            self._loop.call_soon(self._cancel)

    def _break_off(self) -> None:
        """End the block as a cancel does, if it is open."""
        if self._loop is not None and self._loop.is_here():
            # The garbage collector, which runs in any thread, has found a generator that is inside of this block.
            self.let_go()
        elif self._is_open:
            run(self.abort)

    # In the loop.

    def _cancel(self) -> None:
        if self._loop is not None and self._task is not None:
            self._loop.blocks.pop(self, None)
            self._task.cancel()

    async def abort(self) -> None:
        """End the block as a cancel does."""
        if self._loop is not None and self._task is not None:
            self._loop.blocks.pop(self, None)
            await _end(self._task)

    async def _enter(self) -> T:
        self._loop = _process.running
        value: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._left = asyncio.Event()
        self._task = asyncio.create_task(self._serve(value, self._left))
        if self._loop is None:
            raise AssertionError("this runs in the loop")
        self._loop.blocks[self] = None
        try:
            waiting: list[asyncio.Future[Any]] = [self._task, value]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.abort()
            raise
        if not value.done():
            del self._loop.blocks[self]
            self._task.result()
        return value.result()

    async def _serve(self, value: asyncio.Future[T], left: asyncio.Event) -> None:
        async with self._make() as made:
            value.set_result(made)
            await left.wait()

    async def _leave(self) -> None:
        if self._task is None or self._left is None or self._loop is None:
            return
        self._left.set()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            await self.abort()
            raise
        self._loop.blocks.pop(self, None)
        self._task.result()

    async def _run(self, make: Callable[[], Coroutine[Any, Any, U]]) -> U:
        if self._task is None:
            raise AssertionError("what runs in a block uses what the block gave")
        task = asyncio.create_task(make())
        try:
            waiting: list[asyncio.Future[Any]] = [task, self._task]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                await _end(task)
        if task.cancelled():
            self._task.result()  # why the block has ended
            raise BlockingCallRefused("the block that its file belongs to has ended")
        return task.result()


class _Call(Generic[T]):
    """A coroutine that runs in the loop while the thread that made the call waits for it."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self.has_ended = threading.Event()
        self.is_daemon = threading.current_thread().daemon
        self.is_abandoned = False
        """Its thread, a daemon, waits until the interpreter ends it: an exception would be printed in the middle of that."""
        self.task: asyncio.Task[T] | None = None
        self._make = make
        self._is_cancelled = False

    def result(self) -> T:
        """What the coroutine returned. Raises what it raised."""
        if self.task is None or self.task.cancelled():
            raise BlockingCallRefused("it was cancelled")
        return self.task.result()

    # In the loop.

    def start(self) -> None:
        """Run the coroutine."""
        if not self._is_cancelled:
            self.task = asyncio.get_running_loop().create_task(_awaited(self._make))
            self.task.add_done_callback(self._note_end)

    def cancel(self) -> None:
        """End it, or keep it from starting."""
        self._is_cancelled = True
        if self.task is not None:
            self.task.cancel()
        else:
            self.has_ended.set()

    def _note_end(self, task: asyncio.Task[T]) -> None:
        _note_error(task)
        if not self.is_abandoned:
            self.has_ended.set()


class _Loop:
    """An event loop and its thread."""

    def __init__(self) -> None:
        self.blocks: dict[Block[Any], None] = {}
        """The open ones, in the order in which they began. Only the thread of the loop changes it."""
        # Weak: an interrupt may come before a call waits, and nobody waits then for its end.
        self.calls: WeakSet[_Call[Any]] = WeakSet()
        self._loop = asyncio.new_event_loop()
        self._is_stopped = False
        # A daemon: the interpreter would otherwise wait for its end before it calls what ends it.
        self._thread = threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def is_here(self) -> bool:
        """Whether this is the thread of the loop."""
        return threading.current_thread() is self._thread

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function in the loop."""
        self._loop.call_soon_threadsafe(function)

    def stop(self, items: list[Closable], calls: list[_Call[Any]]) -> None:
        """Finish those of `calls` that ordinary threads have made, cancel and close everything else, and end the thread."""
        try:
            for call in calls:
                if not call.is_daemon:
                    call.has_ended.wait()
        finally:
            asyncio.run_coroutine_threadsafe(self._close_all(items, calls), self._loop).result()
            self._is_stopped = True
            self.call_soon(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _serve(self) -> None:
        while not self._is_stopped:
            try:
                self._loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # A progress callback has raised it. It ends the call of that callback, which raises it, and no other call.
                continue

    async def _close_all(self, items: list[Closable], calls: list[_Call[Any]]) -> None:
        for call in calls:
            call.is_abandoned = True
            if call.task is not None:
                await _end(call.task)
        # The last one first: it may use what an earlier one gave.
        for block in reversed(list(self.blocks)):
            await block.abort()
        for item in items:
            await item.close_in_loop()
        loop = asyncio.get_running_loop()
        for task in asyncio.all_tasks(loop) - {asyncio.current_task()}:
            await _end(task)
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()


class _Process:
    """The loop of this process, if it has one, and what is closed at the end."""

    def __init__(self) -> None:
        self.running: _Loop | None = None
        self.items: WeakSet[Closable] = WeakSet()
        self.has_ended = False
        self._lock = ProcessLock()
        self._is_registered = False
        tell_of_forks(self)

    def after_fork(self) -> None:
        """The thread stays with the parent. The loop is not closed in the child: both processes share its epoll."""
        if self.running is not None:
            abandon(self.running)
            self.running = None
        self.has_ended = False

    def begin(self, call: _Call[Any]) -> _Loop:
        """The loop that `call` is to run in. Raises BlockingCallRefused."""
        if self.running is not None and self.running.is_here():
            raise BlockingCallRefused(_IN_THE_LOOP)
        with self._lock:
            if self.has_ended:
                raise BlockingCallRefused(_AT_THE_END)
            if self.running is None:
                self._register()
                self.running = _Loop()
            self.running.calls.add(call)
            return self.running

    def _register(self) -> None:
        if self._is_registered:
            return
        # Not `atexit`: its functions are called when the interpreter has ended all thread pools, and nothing could be closed.
        # These functions are called before that, the last one first; that of the pools was registered by an import above.
        try:
            threading._register_atexit(self._end)  # type: ignore[attr-defined]  # noqa: SLF001  # nothing public is as early
        except RuntimeError:
            raise BlockingCallRefused(_AT_THE_END) from None
        self._is_registered = True

    def _end(self) -> None:
        with self._lock:
            self.has_ended = True
            calls = [] if self.running is None else list(self.running.calls)
        if self.running is not None:
            self.running.stop(list(self.items), calls)


async def _awaited(make: Callable[[], Awaitable[T]]) -> T:
    return await make()


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
    _note_error(task)


def _note_error(task: asyncio.Task[Any]) -> None:
    """Look at the error of a task, so that the loop does not report it as lost."""
    if not task.cancelled():
        task.exception()


_process = _Process()
