"""The event loop of a simulated process."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, cast

from tests.simulation.kernel.primitives import Pool
from tests.simulation.kernel.sockets import SimulatedSelector, SocketTable

if TYPE_CHECKING:
    from tests.simulation.kernel.process import Process


class SimulatedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any], **options: Any) -> None:
        self.number: int = options["loop"].new_number()
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class SimulatedFuture(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, *, loop: SimulatedLoop) -> None:
        self.number = loop.new_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for simulated sockets, in virtual time."""

    def __init__(self, process: Process, table: SocketTable) -> None:
        self._process = process
        self._table = table
        self._simulated_selector = SimulatedSelector(table)
        self._default_pool = Pool(table.scheduler, 8, "default")
        self._handlers: dict[int, Callable[[], object]] = {}
        self._tasks: weakref.WeakSet[SimulatedTask] = weakref.WeakSet()
        super().__init__(self._simulated_selector)
        self.set_task_factory(self._new_task)

    def __del__(self, *_: Any) -> None:
        """Nothing is left open: it has no descriptors."""

    def time(self) -> float:
        """Return the virtual monotonic clock."""
        return self._table.scheduler.now

    def new_number(self) -> int:
        """Return a number that no other task or future has."""
        return self._table.scheduler.new_number()

    def tasks(self) -> list[SimulatedTask]:
        """Return the tasks that have not ended, in the order in which they were made."""
        return sorted((task for task in self._tasks if not task.done()), key=lambda task: task.number)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future."""
        return SimulatedFuture(loop=self)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call a function in a thread of a pool."""
        pool = self._default_pool if executor is None else executor
        return asyncio.wrap_future(pool.submit(func, *args), loop=self)

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        """Return the address itself: simulated machines have no names."""
        return resolve(host, port)

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """Call `callback` when `Process.signal` is called."""
        self._handlers[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Call nothing any more."""
        return self._handlers.pop(sig, None) is not None

    def deliver(self, number: int) -> bool:
        """Deliver a signal. Return False if nothing handles it."""
        handler = self._handlers.get(number)
        if handler is None:
            return False
        self.call_soon_threadsafe(handler)
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Handle an error, unless the process was killed."""
        if not self._process.is_dead:
            super().call_exception_handler(context)

    def _new_task(self, _: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = SimulatedTask(coroutine, loop=self, **options)
        self._tasks.add(task)
        return task

    def _make_self_pipe(self) -> None:
        """Make none: `_write_to_self` wakes the selector."""

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        self._simulated_selector.wake()


def resolve(host: Any, port: Any) -> list[Any]:
    """Return what `getaddrinfo` does for the address of a simulated machine."""
    if isinstance(host, bytes):
        host = host.decode()
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(host), int(port)))]


def close_coroutines(loop: SimulatedLoop) -> None:
    """End all tasks of a process that was killed. Their cleanup has no effects, because each operation raises Killed."""
    for task in loop.tasks():
        cast("Any", task)._log_destroy_pending = False
        coroutine = task.get_coro()
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001  # whatever its cleanup meets
            continue
