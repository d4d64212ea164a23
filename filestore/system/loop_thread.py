"""Run coroutines for callers that have no event loop. One loop runs in its own thread until the process ends."""

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
    """An object that is closed at the end of the program, if it was not closed before."""

    async def close_in_loop(self) -> None:
        """Close the object. This is called in the event loop."""


def run(make: Callable[[], Awaitable[T]]) -> T:
    """Run `make()` in the loop, and wait until it has ended. The first call starts the loop.

    If a signal handler raises an exception in this thread, such as KeyboardInterrupt, the coroutine is cancelled. The
    exception is raised when the coroutine has ended. A second such exception is raised at once.

    Raises each exception of the coroutine. Raises BlockingCallRefused if it is called in the thread of the loop, or at
    the end of the program.
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
    """Return whether the program is ending. Everything is then closed, and no new call can be made."""
    return _process.has_ended


def close_at_end(item: Closable) -> None:
    """Register `item`, so that it is closed at the end of the program if it still exists then."""
    _process.items.add(item)


class Block(Generic[T]):
    """Use an `async with` block from a thread without an event loop.

    A task of the loop stays inside the `async with` block. Meanwhile another thread uses the value that the block gave.
    The block ends at the end of a `with` statement, by `leave`, or at the end of the program. In a child that is forked
    meanwhile, the block is not touched, because it belongs to the parent.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        """Prepare a block. `make` is called in the loop when the block begins."""
        self._make = make
        self._pid = os.getpid()
        self._loop: _Loop | None = None
        self._task: asyncio.Task[None] | None = None
        self._left: asyncio.Event | None = None

    @property
    def is_ours(self) -> bool:
        """Whether this process made the block. False in a child that was forked later."""
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
        """Begin the block, and return the value that it gives. Raises the same errors as the function `run`."""
        try:
            return run(self._enter)
        except BaseException:
            # Where an interrupt came in the moment in which it began.
            self._break_off()
            raise

    def leave(self) -> None:
        """End the block normally. A second call does nothing. Raises the same errors as the function `run`."""
        if self._is_open:
            run(self._leave)

    def run(self, make: Callable[[], Coroutine[Any, Any, U]]) -> U:
        """Run the coroutine of `make()` while the block is open. It is cancelled when the block ends.

        Raises the same errors as the function `run`, each error that ended the block, and UsedAfterFork.
        """
        if not self.is_ours:
            raise UsedAfterFork("a file of a cache", self._pid)
        return run(lambda: self._run(make))

    def let_go(self) -> None:
        """Cancel the `async with` block, and do not wait for its end. The garbage collector, in any thread, may call this."""
        if self._is_open and self._loop is not None:
            self._loop.call_soon(self._cancel)

    def _break_off(self) -> None:
        """Cancel the block if it is open. Wait for its end, except in the thread of the loop."""
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
        """Cancel the block, and wait for its end."""
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
        """Set for all calls at the end of the program. A daemon thread then waits until the interpreter ends it.

        If the call raised an exception instead, it would be printed while the program ends.
        """
        self.task: asyncio.Task[T] | None = None
        self._make = make
        self._is_cancelled = False

    def result(self) -> T:
        """Return the result of the coroutine, or raise its exception."""
        if self.task is None or self.task.cancelled():
            raise BlockingCallRefused("it was cancelled")
        return self.task.result()

    # In the loop.

    def start(self) -> None:
        """Start the coroutine, unless the call was cancelled before."""
        if not self._is_cancelled:
            self.task = asyncio.get_running_loop().create_task(_awaited(self._make))
            self.task.add_done_callback(self._note_end)

    def cancel(self) -> None:
        """Cancel the coroutine. If it has not started, it never starts."""
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
        """The open blocks, in the order in which they began. Only the thread of the loop changes this."""
        # Weak: an interrupt may come before a call waits, and nobody waits then for its end.
        self.calls: WeakSet[_Call[Any]] = WeakSet()
        self._loop = asyncio.new_event_loop()
        self._is_stopped = False
        # A daemon: the interpreter would otherwise wait for its end before it calls what ends it.
        self._thread = threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def is_here(self) -> bool:
        """Return whether the caller is in the thread of the loop."""
        return threading.current_thread() is self._thread

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call `function` in the thread of the loop. Do not wait for it."""
        self._loop.call_soon_threadsafe(function)

    def stop(self, items: list[Closable], calls: list[_Call[Any]]) -> None:
        """Close everything, and end the thread of the loop.

        Calls of ordinary threads are finished first. Then all other calls are cancelled, the blocks are ended, and
        `items` are closed.
        """
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
    """Holds the loop of this process, if it has one, and the objects that are closed at the end."""

    def __init__(self) -> None:
        self.running: _Loop | None = None
        self.items: WeakSet[Closable] = WeakSet()
        self.has_ended = False
        self._lock = ProcessLock()
        self._is_registered = False
        tell_of_forks(self)

    def after_fork(self) -> None:
        """Forget the loop in a forked child, which does not have the loop's thread.

        The loop is not closed in the child, because both processes share its epoll.
        """
        if self.running is not None:
            abandon(self.running)
            self.running = None
        self.has_ended = False

    def begin(self, call: _Call[Any]) -> _Loop:
        """Return the loop for `call`, and start it if there is none. Raises BlockingCallRefused as `run` does."""
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
    """Read the error of a task, so that the loop does not report it as lost."""
    if not task.cancelled():
        task.exception()


_process = _Process()
