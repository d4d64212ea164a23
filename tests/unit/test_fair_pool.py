"""Threads that serve namespaces in turn."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future, wait

import pytest

from filestore.system.fair_pool import FairPool
from filestore.system.turns import working_for


def test_slow_calls_of_one_namespace_leave_a_thread_for_others() -> None:
    """A hundred calls that hang hold only their share."""
    pool, go_on, began = FairPool("test", count=4, share=3), threading.Event(), threading.Semaphore(0)

    def hang() -> bool:
        began.release()
        return go_on.wait()

    with working_for("slow"):
        slow = [pool.submit(hang) for _ in range(100)]
    with working_for("other"):
        assert 7 == pool.submit(lambda: 7).result(timeout=60)
    assert 8 == pool.submit(lambda: 8).result(timeout=60)
    assert all(began.acquire(timeout=60) for _ in range(3))
    assert 97 == sum(not call.running() for call in slow)
    go_on.set()
    wait(slow)
    assert all(call.result() for call in slow)
    pool.shutdown()


def test_namespaces_get_a_thread_one_after_the_other() -> None:
    """A call waits for one call of each other namespace, however many they have."""
    pool, started, go_on, order = FairPool("test", count=1, share=1), threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        started.set()
        go_on.wait()

    calls: list[Future[None]] = []
    with working_for("a"):
        calls.append(pool.submit(first))
        started.wait()
        calls += [pool.submit(order.append, "a") for _ in range(50)]
    for namespace in ("b", "c"):
        with working_for(namespace):
            calls += [pool.submit(order.append, namespace) for _ in range(2)]
    go_on.set()
    wait(calls)
    assert ["a", "b", "c", "a", "b", "c", "a"] == order[:7]
    assert 54 == len(order)
    pool.shutdown()


def test_errors_and_cancels_are_those_of_the_call() -> None:
    """A cancelled call does not run, and those after it do."""
    pool, go_on, ran = FairPool("test", count=1, share=1), threading.Event(), list[int]()
    busy = pool.submit(go_on.wait)
    cancelled = pool.submit(ran.append, 1)
    failing = pool.submit(int, "x")
    last = pool.submit(ran.append, 2)
    assert cancelled.cancel()
    go_on.set()
    assert isinstance(failing.exception(timeout=60), ValueError)
    assert last.result(timeout=60) is None
    assert busy.result()
    assert [2] == ran
    pool.shutdown()


def test_a_process_waits_for_the_calls_that_run() -> None:
    """What was begun, such as the removal of a file, is not cut in the middle."""
    code = """
import atexit, threading
from filestore.system.fair_pool import FairPool
started, go_on = threading.Event(), threading.Event()
def call():
    started.set()
    go_on.wait()
    print("ended")
FairPool("test", count=2, share=1).submit(call)
started.wait()
atexit.register(go_on.set)
"""
    assert (
        "ended\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    )


def test_a_pool_that_may_have_no_more_threads_goes_on_with_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any thread, the caller is told."""
    pool, none_yet, go_on = FairPool("test", count=2, share=2), FairPool("test", count=2, share=2), threading.Event()
    busy = pool.submit(go_on.wait)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    waiting = pool.submit(int, "7")
    with pytest.raises(RuntimeError, match="new thread"):
        none_yet.submit(int, "7")
    assert 0 == none_yet.waiting
    go_on.set()
    assert 7 == waiting.result(timeout=60)
    assert busy.result()
    pool.shutdown()
