from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar

import pytest

from filestore.errors import NotFound
from filestore.system.buffers import Budget, BufferPool
from filestore.system.fair_pool import FairPool
from filestore.system.threads import (
    SingleFlight,
    in_cpu_thread,
    in_disk_thread,
    in_thread,
    per_thread,
    run_in_parallel,
    task_group,
    tell_of_forks,
)
from filestore.system.turns import working_for


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


class Holder:
    """A task that holds a part of a budget until it may end."""

    def __init__(self, budget: Budget, size: int, *, namespace: str = "") -> None:
        self.holds = False
        self._release = asyncio.Event()
        with working_for(namespace):
            self.task = asyncio.create_task(self._hold(budget, size))

    async def _hold(self, budget: Budget, size: int) -> None:
        async with budget.take(size):
            self.holds = True
            await self._release.wait()

    async def let_go(self) -> None:
        self._release.set()
        await self.task


async def test_what_a_block_gives_back_early_is_for_others() -> None:
    """A block may keep less than it took, and its end gives back only what it kept."""
    budget = Budget(10)
    async with budget.take(8) as taken:
        waiting = Holder(budget, 6)
        await settle()
        assert not waiting.holds
        taken.shrink(4)
        taken.shrink(5)
        await settle()
        assert (True, 10) == (waiting.holds, budget.taken)
    assert 6 == budget.taken
    await waiting.let_go()
    assert 0 == budget.taken


async def test_budget_lets_in_what_fits_and_makes_the_rest_wait() -> None:
    """I6: never more than the limit is held."""
    budget = Budget(10)
    first, second, third = Holder(budget, 6), Holder(budget, 4), Holder(budget, 1)
    await settle()
    assert [True, True, False] == [first.holds, second.holds, third.holds]
    await first.let_go()
    await settle()
    assert third.holds
    await second.let_go()
    await third.let_go()


async def test_budget_is_first_come_first_served() -> None:
    """A small request does not overtake a large one that waits."""
    budget = Budget(10)
    first, large, small = Holder(budget, 8), Holder(budget, 10), Holder(budget, 1)
    await settle()
    assert [True, False, False] == [first.holds, large.holds, small.holds]
    await first.let_go()
    await settle()
    assert [True, False] == [large.holds, small.holds]
    await large.let_go()
    await small.let_go()


async def test_budget_gives_turns_to_namespaces() -> None:
    """However many calls of a namespace wait, one of another namespace waits for at most one of them."""
    budget = Budget(10)
    many = [Holder(budget, 10, namespace="many") for _ in range(5)]
    await settle()
    few = Holder(budget, 10, namespace="few")
    await many[0].let_go()
    await settle()
    assert [True, False] == [many[1].holds, few.holds]
    await many[1].let_go()
    await settle()
    assert [False, True] == [many[2].holds, few.holds]
    await few.let_go()
    for each in many[2:]:
        await each.let_go()
    assert 0 == budget.taken


async def test_budget_lets_what_is_larger_than_the_limit_through_alone() -> None:
    """A frame larger than the whole budget must not wait for ever."""
    budget = Budget(10)
    huge, other = Holder(budget, 1000), Holder(budget, 1)
    await settle()
    assert [True, False, 1000] == [huge.holds, other.holds, budget.taken]
    await huge.let_go()
    await other.let_go()
    assert 0 == budget.taken


async def test_budget_passes_on_what_a_cancelled_waiter_did_not_take() -> None:
    """A cancelled waiter holds no part, and does not block the waiters after it."""
    budget = Budget(10)
    first, cancelled, last = Holder(budget, 5), Holder(budget, 10), Holder(budget, 5)
    await settle()
    cancelled.task.cancel()
    await settle()
    assert last.holds
    await first.let_go()
    await last.let_go()
    async with asyncio.timeout(5), budget.take(10):
        pass


async def test_budget_takes_a_cancel_in_the_moment_in_which_space_is_made() -> None:
    """A waiter that is cancelled at that moment holds nothing, and raises the cancel."""
    budget = Budget(10)
    first, cancelled = Holder(budget, 10), Holder(budget, 5)
    await settle()
    first._release.set()
    cancelled.task.cancel()
    await settle()
    assert first.task.done()
    assert cancelled.task.cancelled()
    async with asyncio.timeout(5), budget.take(10):
        pass


async def test_buffer_pool_gives_the_same_memory_again() -> None:
    """Buffers are reused, most recently used first."""
    pool = BufferPool(count=2, size=4096)
    async with pool.take() as buffer:
        buffer[:4] = b"seen"
    async with pool.take() as again:
        assert b"seen" == bytes(again[:4])


async def test_buffer_pool_makes_no_more_than_its_count() -> None:
    """A caller waits if all buffers are taken."""
    pool = BufferPool(count=1, size=4096)
    buffer = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await settle()
    assert not waiting.done()
    pool.release(buffer)
    assert buffer is await waiting


async def test_a_cancelled_call_waits_for_its_thread() -> None:
    """A buffer may be reused once the cancelled call has raised, so the thread must be done by then."""
    entered, may_leave = threading.Event(), threading.Event()
    left = False

    def work() -> None:
        nonlocal left
        entered.set()
        may_leave.wait(10)
        left = True

    call = asyncio.create_task(in_disk_thread(work))
    while not entered.is_set():
        await asyncio.sleep(0)
    call.cancel()
    await settle()
    call.cancel()
    await settle()
    assert not call.done()
    may_leave.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert left


async def test_a_call_that_is_cancelled_before_it_begins_never_runs() -> None:
    """And its caller does not wait for the thread that is busy with another call."""
    pool, entered, may_leave, ran = FairPool("test", count=1, share=1), threading.Event(), threading.Event(), list[int]()

    def hold() -> None:
        entered.set()
        may_leave.wait(30)

    busy = asyncio.create_task(in_thread(pool, hold))
    while not entered.is_set():
        await asyncio.sleep(0)
    waiting = asyncio.create_task(in_thread(pool, ran.append, 1))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not busy.done()
    may_leave.set()
    await busy
    await in_thread(pool, ran.append, 2)
    assert [2] == ran
    pool.shutdown()


async def test_a_call_in_a_thread_has_the_outcome_of_its_function() -> None:
    """Its result or its error, in the context of the task that waits."""
    place = ContextVar("place", default="")
    place.set("task")
    assert 7 == await in_cpu_thread(int, "7")
    with pytest.raises(ValueError, match="invalid literal"):
        await in_cpu_thread(int, "x")
    with ThreadPoolExecutor(1) as other:
        assert 8 == await in_thread(other, int, "8")
        with pytest.raises(ValueError, match="invalid literal"):
            await in_thread(other, int, "x")
    assert "task" == place.get()


async def test_a_call_that_a_pool_cancels_ends() -> None:
    """Who waits for it is told, as for a future. It never runs."""
    pool, go_on, ran = FairPool("test", count=1, share=1), threading.Event(), list[int]()
    busy = pool.submit(go_on.wait)
    while not busy.running():
        await asyncio.sleep(0)
    task = asyncio.create_task(in_thread(pool, ran.append, 1))
    while not pool.waiting:
        await asyncio.sleep(0)
    pool.shutdown(wait=False, cancel_futures=True)
    await asyncio.wait([task], timeout=10)
    go_on.set()
    assert task.cancelled()
    assert busy.result()
    assert [] == ran


class Large:
    """Something that a call uses."""


@pytest.mark.parametrize("way", ["awaited", "submitted", "cancelled"])
async def test_a_failed_call_keeps_nothing(way: str) -> None:
    """Its arguments may be large, and a collection of garbage may come late."""
    pool, started, go_on = FairPool("test", count=1, share=1), threading.Event(), threading.Event()

    def fail(_: Large) -> None:
        started.set()
        go_on.wait()
        raise ValueError

    async def call(large: Large) -> None:
        if way == "submitted":
            go_on.set()
            pool.submit(fail, large).result()
        task = asyncio.create_task(in_thread(pool, fail, large))
        while not started.is_set():
            await asyncio.sleep(0)
        if way == "cancelled":
            task.cancel()
            await asyncio.sleep(0)
        go_on.set()
        try:
            await task
        finally:
            del task  # the error refers to this frame

    large = Large()
    kept = weakref.ref(large)
    gc.disable()
    try:
        with suppress(ValueError, asyncio.CancelledError):
            await call(large)
        del large
        pool.shutdown()
        await asyncio.sleep(0)  # the loop has let go of the task
        assert kept() is None
    finally:
        gc.enable()


async def test_calls_side_by_side_wait_for_each_other() -> None:
    """All calls run at the same time, though their caller also has a disk thread."""
    together = threading.Barrier(3)
    await in_disk_thread(run_in_parallel, lambda _: together.wait(30), range(3))


async def test_calls_side_by_side_have_all_ended_when_one_fails() -> None:
    """The failure is raised after all calls have ended, so that their memory can be freed."""
    failed, ended = threading.Event(), []

    def call(number: int) -> None:
        if number == 0:
            failed.set()
            raise NotFound("x")
        assert failed.wait(30)
        ended.append(number)

    with pytest.raises(NotFound):
        await in_disk_thread(run_in_parallel, call, range(3))
    assert [1, 2] == sorted(ended)


async def test_each_thread_has_an_instance_of_its_own() -> None:
    """Zstd contexts and scratch memory are never shared by two threads."""
    instance = per_thread(object)
    assert instance() is instance()
    assert instance() is not await in_cpu_thread(instance)


async def test_task_group_raises_the_failure_itself() -> None:
    """Callers catch errors of ours, not groups of them."""

    async def fail() -> None:
        raise NotFound("x")

    with pytest.raises(NotFound):
        async with task_group() as group:
            group.create_task(fail())
            await asyncio.Event().wait()


async def test_single_flight_runs_once_for_all_who_ask() -> None:
    """Concurrent calls with one key share one execution and its result; a later call starts a new one."""
    flights, gate = SingleFlight(), asyncio.Event()
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return runs

    calls = [asyncio.create_task(flights.run("key", work)) for _ in range(5)]
    await settle()
    gate.set()
    assert [1] * 5 == await asyncio.gather(*calls)
    assert 2 == await flights.run("key", work)


async def test_single_flight_survives_one_waiter_that_leaves() -> None:
    """A cancelled caller does not take the others' result away."""
    flights, gate = SingleFlight(), asyncio.Event()

    async def work() -> str:
        await gate.wait()
        return "done"

    leaving, staying = (asyncio.create_task(flights.run("key", work)) for _ in range(2))
    await settle()
    leaving.cancel()
    await settle()
    gate.set()
    assert "done" == await staying


async def test_single_flight_is_cancelled_with_its_last_waiter() -> None:
    """Nothing continues in the background without a waiter."""
    flights, cancelled = SingleFlight(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    call = asyncio.create_task(flights.run("key", work))
    await settle()
    call.cancel()
    async with asyncio.timeout(5):
        await cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_single_flight_has_ended_before_its_last_waiter_goes_on() -> None:
    """Its cleanup may need what the caller closes next. A failure of the cleanup is not reported as lost."""
    flights, gate = SingleFlight(), asyncio.Event()
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await gate.wait()
            ended = True
            raise NotFound("x")

    call = asyncio.create_task(flights.run("key", work))
    await settle()
    for _ in range(2):
        call.cancel()
        await settle()
        assert not call.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended


async def test_single_flight_gives_everyone_the_failure() -> None:
    """A failed execution fails each caller, and is not remembered."""
    flights = SingleFlight()

    async def fail() -> None:
        raise NotFound("x")

    results = await asyncio.gather(*(flights.run("key", fail) for _ in range(3)), return_exceptions=True)
    assert [NotFound] * 3 == [type(result) for result in results]


class Told:
    """An object that records whether it was called after a fork."""

    def __init__(self) -> None:
        self.times = 0

    def after_fork(self) -> None:
        self.times += 1


class Failing:
    """An object that fails when it is called after a fork."""

    def after_fork(self) -> None:
        raise RuntimeError("this one cannot")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_each_object_is_told_of_a_fork_whichever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure, all other objects are called too, and every failure is shown."""
    failing, told = [Failing() for _ in range(20)], [Told() for _ in range(20)]
    for pair in zip(failing, told, strict=True):
        for item in pair:
            tell_of_forks(item)
    shown: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_value))

    child = os.fork()
    if not child:
        failures = [error for group in shown if isinstance(group, ExceptionGroup) for error in group.exceptions]
        are_told = [1] * len(told) == [item.times for item in told]
        os._exit((not are_told) + 2 * (len(failing) != len(failures)))
    _, status = os.waitpid(child, 0)

    assert 0 == os.waitstatus_to_exitcode(status)
