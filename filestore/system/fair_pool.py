"""A pool of threads that serves namespaces in turn, so that none of them holds all threads."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

from filestore.system.turns import namespace_of_work

P = ParamSpec("P")
T = TypeVar("T")


class _Call(NamedTuple):
    namespace: str
    future: Future[Any]
    function: Callable[[], Any]


class FairPool(Executor):
    """At most `count` threads. The namespaces whose calls wait get a thread one after the other.

    The calls of one namespace run in at most `share` threads at a time. So even if each of them takes long, a call of
    another namespace soon gets one of the others. Work without a namespace may have all threads.
    """

    def __init__(self, name: str, *, count: int, share: int) -> None:
        self._threads = ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)
        self._count = count
        self._share = share
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Call]] = {}
        """The calls that wait, by namespaces. The first namespace comes next."""
        self._running: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread, for the namespace for which this task works."""
        call = _Call(namespace_of_work(), Future(), partial(fn, *args, **kwargs))
        with self._lock:
            self._waiting.setdefault(call.namespace, deque()).append(call)
        self._threads.submit(self._serve)
        return call.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  # as in Python
        """Accept no more calls, and wait for those that run."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _serve(self) -> None:
        """Run calls until none may run. A call whose namespace has its share runs when one of these threads is free."""
        while (call := self._next()) is not None:
            _run(call.future, call.function)
            namespace = call.namespace
            del call  # the result may be large
            with self._lock:
                self._running[namespace] -= 1
                if not self._running[namespace]:
                    del self._running[namespace]

    def _next(self) -> _Call | None:
        with self._lock:
            may_run = (each for each in self._waiting if self._running[each] < (self._share if each else self._count))
            namespace = next(may_run, None)
            if namespace is None:
                return None
            calls = self._waiting.pop(namespace)
            call = calls.popleft()
            if calls:
                self._waiting[namespace] = calls  # behind the others
            self._running[namespace] += 1
            return call


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001  # the caller gets it
        future.set_exception(error)
    else:
        future.set_result(result)
