"""A pool of threads that serves namespaces in turn, so that none of them holds all threads."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

from filestore.system.turns import namespace_of_work

P = ParamSpec("P")
T = TypeVar("T")


class Call(Protocol):
    """Something that a thread does."""

    def run(self) -> None:
        """Do it. This raises nothing."""

    def cancel(self) -> bool:
        """Never do it. Return False if it has begun."""


class FairPool(Executor):
    """At most `count` threads. The namespaces whose calls wait get a thread one after the other.

    The calls of one namespace run in at most `share` threads at a time. So even if each of them takes long, a call of
    another namespace soon gets one of the others. Work without a namespace may have all threads.

    It does what two of Python's pools, one above the other, would do, in a third of the time under the interpreter's lock. At
    the end of the process, the calls that run are waited for.
    """

    def __init__(self, name: str, *, count: int, share: int) -> None:
        self._name = name
        self._count = count
        self._share = share
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Call]] = {}
        """The calls that wait, by namespaces. The first namespace comes next."""
        self._running: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        """How many threads wait for a wake-up that nobody has sent yet."""
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._is_over = False
        _pools.add(self)

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread, for the namespace for which this task works."""
        call = _FutureCall(fn, args, kwargs)
        self.start(call)
        return call.future

    def start(self, call: Call) -> None:
        """Run `call` in a thread, for the namespace for which this task works. This costs less than `submit`."""
        namespace = namespace_of_work()
        with self._lock:
            if self._is_over:
                raise RuntimeError("the pool of threads has ended")
            calls = self._waiting.get(namespace)
            if calls is None:
                calls = self._waiting[namespace] = deque()
            calls.append(call)
            if not self._may_run(namespace):
                return  # a thread that works for this namespace takes it later
            if self._idle:
                self._idle -= 1
                self._wake_ups.put(None)
            elif len(self._threads) < self._count:
                self._add_thread(call, calls)

    def _add_thread(self, call: Call, calls: deque[Call]) -> None:
        # A daemon: Python waits for others before it tells anybody that the process ends.
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                calls.remove(call)
                self._waiting = {namespace: each for namespace, each in self._waiting.items() if each}
                raise
            return  # the process may have no more threads: the others take the call
        self._threads.append(thread)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  # as in Python
        """Accept no more calls, and wait for those that run and those that wait."""
        with self._lock:
            self._is_over = True
            while cancel_futures and self._waiting:
                for call in self._waiting.popitem()[1]:
                    call.cancel()
            for _ in self._threads:
                self._wake_ups.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _may_run(self, namespace: str) -> bool:
        return self._running[namespace] < (self._share if namespace else self._count)

    def _work(self) -> None:
        """Run calls. A thread is idle while no call may run."""
        namespace = None
        while True:
            with self._lock:
                if namespace is not None:
                    self._running[namespace] -= 1
                    if not self._running[namespace]:
                        del self._running[namespace]
                namespace = next(filter(self._may_run, self._waiting), None)
                if namespace is None:
                    if self._is_over:
                        return
                    self._idle += 1
                else:
                    calls = self._waiting.pop(namespace)
                    call = calls.popleft()
                    if calls:
                        self._waiting[namespace] = calls  # behind the others
                    self._running[namespace] += 1
            if namespace is None:
                self._wake_ups.get()
            else:
                call.run()
                del call  # the result may be large


class _FutureCall:
    """A call whose result is that of a future of Python."""

    __slots__ = ("_args", "_function", "_kwargs", "future")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self.future: Future[Any] = Future()

    def cancel(self) -> bool:
        return self.future.cancel()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function(*self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001  # the caller gets it
            self.future.set_exception(error)
            # The error refers to this frame, and would keep itself and the arguments until a collection of garbage.
            del self
        else:
            self.future.set_result(result)


_pools: weakref.WeakSet[FairPool] = weakref.WeakSet()


def _end_all() -> None:
    """Wait for the calls that run, as Python does for its own pools."""
    for pool in list(_pools):
        pool.shutdown()


atexit.register(_end_all)
# The threads exist only in the parent.
os.register_at_fork(after_in_child=_pools.clear)
