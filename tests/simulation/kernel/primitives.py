"""What Python has for threads, made of simulated threads: locks, events, conditions, threads, pools, and objects per thread.

Each class has the interface of the class of Python whose place it takes. Where no simulated thread runs, a lock is taken without
a wait: nothing else runs then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from itertools import count
from typing import Any, Self, cast

from tests.simulation.kernel.scheduler import Killed, Scheduler, Thread


class Lock:
    """A `threading.Lock`, or with `is_reentrant` an RLock."""

    def __init__(self, scheduler: Scheduler, *, is_reentrant: bool = False, is_step: bool = True) -> None:
        self._scheduler = scheduler
        self._is_reentrant = is_reentrant
        self._is_step = is_step
        self._owner: Thread | None = None
        self._count = 0
        self._waiters: list[Thread] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # as in Python
        """Take the lock. Return whether it was taken."""
        scheduler = self._scheduler
        if self._is_step:
            scheduler.step("lock")
        deadline = None if timeout < 0 else scheduler.now + timeout
        while self._count and not (self._is_reentrant and self._owner is scheduler.current):
            left = None if deadline is None else deadline - scheduler.now
            if not blocking or (left is not None and left <= 0):
                return False
            scheduler.wait("lock that another thread holds", self._waiters, left)
        self._owner = scheduler.current
        self._count += 1
        return True

    def release(self) -> None:
        """Release the lock."""
        if not self._count:
            raise RuntimeError("release unlocked lock")
        self._count -= 1
        if not self._count:
            self._owner = None
            self._scheduler.wake_one(self._waiters)

    def locked(self) -> bool:
        """Return whether it is held."""
        return self._count > 0

    def give_up(self) -> int:
        """Release it completely, and return how often it was held."""
        held, self._count = self._count, 1
        self.release()
        return held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """A `threading.Condition`."""

    def __init__(self, scheduler: Scheduler, lock: Lock | None = None) -> None:
        self._scheduler = scheduler
        # No step: futures have one, and without a step nobody else can run while it is held.
        self._lock = lock or Lock(scheduler, is_reentrant=True, is_step=False)
        self._waiters: list[Thread] = []
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is notified. Return False if `timeout` seconds have passed before."""
        held = self._lock.give_up()
        try:
            return self._scheduler.wait("condition", self._waiters, timeout)
        finally:
            for _ in range(held):
                self._lock.acquire()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `predicate` is true. Return its value."""
        deadline = None if timeout is None else self._scheduler.now + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - self._scheduler.now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake `n` threads."""
        for _ in range(n):
            self._scheduler.wake_one(self._waiters)

    def notify_all(self) -> None:
        """Wake all threads."""
        self._scheduler.wake_all(self._waiters)


class Event:
    """A `threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiters: list[Thread] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all that wait."""
        self._is_set = True
        self._scheduler.wake_all(self._waiters)

    def clear(self) -> None:
        """Unset it."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set. Return whether it is."""
        if self._is_set:
            self._scheduler.step("event")
        else:
            self._scheduler.wait("event", self._waiters, timeout)
        return self._is_set


class WorkQueue:
    """A `queue.SimpleQueue` of wake-ups for threads that have nothing to do meanwhile."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._count = 0
        self._waiters: list[Thread] = []

    def put(self, _: None) -> None:
        """Wake a thread."""
        self._count += 1
        self._scheduler.wake_one(self._waiters)

    def get(self) -> None:
        """Wait for a wake-up."""
        while not self._count:
            self._scheduler.wait("work", self._waiters, is_idle=True)
        self._count -= 1


class SimulatedThread:
    """A `threading.Thread`."""

    def __init__(
        self,
        scheduler: Scheduler,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._call = lambda: target(*args, **(kwargs or {})) if target is not None else None
        self.name = name or "thread"
        self.daemon = bool(daemon)
        self._thread: Thread | None = None

    @property
    def ident(self) -> int | None:
        """A number of the thread."""
        return None if self._thread is None else self._thread.number

    def start(self) -> None:
        """Start it in the process of the current thread."""
        current = self._scheduler.current
        assert current is not None
        self._scheduler.step("start thread", self.name)
        self._thread = self._scheduler.start(current.process, self.name, self._call)

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._thread is not None and self._thread.is_alive

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        if self._thread is not None and self._thread.is_alive:
            self._scheduler.wait("end of a thread", self._thread.ended, timeout)


class Pool(Executor):
    """A `ThreadPoolExecutor`."""

    def __init__(self, scheduler: Scheduler, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        self._scheduler = scheduler
        self._limit = max_workers or 8
        self._name = thread_name_prefix.removeprefix("filestore-") or "pool"
        self._queue: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._idle: list[Thread] = []
        self._threads: list[Thread] = []
        self._is_shut = False
        self._numbers = count()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Let a thread call the function."""
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        scheduler = self._scheduler
        current = scheduler.current
        if current is None:
            raise RuntimeError("a pool is used while no simulated thread runs")
        future: Future[Any] = Future()
        self._queue.append((future, lambda: fn(*args, **kwargs)))
        if not scheduler.wake_one(self._idle) and len(self._threads) < self._limit:
            self._threads.append(scheduler.start(current.process, f"{self._name}-{next(self._numbers)}", self._work))
        scheduler.step("submit", getattr(fn, "__name__", ""))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # as in Python
        """Accept no more calls, and wait for those that run."""
        self._is_shut = True
        if self._scheduler.current is None:
            return
        if cancel_futures:
            while self._queue:
                self._queue.popleft()[0].cancel()
        self._scheduler.wake_all(self._idle)
        while wait and self._threads and self._scheduler.current not in self._threads:
            self._scheduler.wait("end of a pool", self._threads[0].ended)

    def _work(self) -> None:
        thread = self._scheduler.current
        assert thread is not None
        try:
            while True:
                while not self._queue:
                    if self._is_shut:
                        return
                    self._scheduler.wait("work", self._idle, is_idle=True)
                self._call(*self._queue.popleft())
        finally:
            self._threads.remove(thread)

    @staticmethod
    def _call(future: Future[Any], call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except Killed:
            raise
        except BaseException as error:  # noqa: BLE001  # as a pool of Python
            future.set_exception(error)
        else:
            future.set_result(result)


class Local:
    """A `threading.local`."""

    def __init__(self, scheduler: Scheduler) -> None:
        object.__setattr__(self, "_scheduler", scheduler)

    def _values(self) -> dict[str, Any]:
        scheduler = cast("Scheduler", object.__getattribute__(self, "_scheduler"))
        assert scheduler.current is not None
        return scheduler.current.locals.setdefault(id(self), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values()[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._values()[name] = value


class PerProcess:
    """Stands for an object of a module, of which each simulated process has its own."""

    def __init__(self, scheduler: Scheduler, make: Callable[[], Any], outside: Any) -> None:
        self._scheduler = scheduler
        self._make = make
        self._outside = outside

    def _own(self) -> Any:
        current = self._scheduler.current
        if current is None:
            return self._outside
        objects = current.process.objects
        if id(self) not in objects:
            objects[id(self)] = self._make()
        return objects[id(self)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._own()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._own()[key] = value

    def __iter__(self) -> Any:
        return iter(self._own())

    def __enter__(self) -> Self:
        self._own().__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._own().__exit__(*failure)
