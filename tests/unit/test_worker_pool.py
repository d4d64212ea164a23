"""Worker processes of a transfer. The processes are real."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import subprocess  # types only
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import connect
from filestore.errors import StorageFull, WorkerEnded
from filestore.transfer.workers import WorkerPool, usage, worker_pool
from filestore.transfer.workers import pool as pool_module
from tests.support.runtimes import is_running
from tests.support.server import eventually
from tests.support.worker_jobs import (
    Block,
    CancelItself,
    Count,
    Fail,
    FailUnreadably,
    Identify,
    Read,
    ReturnUnreadably,
    StopsOthers,
    Wait,
)

_MODULES = ("tests.support.worker_jobs",)


@asynccontextmanager
async def pool_of(folder: Path, *, count: int = 2, slots: int = 2) -> AsyncIterator[WorkerPool]:
    """Give a pool whose processes are all ready."""
    async with (
        connect(folder, create=True) as repository,
        worker_pool(repository, count=count, slots=slots, modules=_MODULES) as pool,
    ):
        while len(pool.process_ids) < count:
            await asyncio.sleep(0.01)
        yield pool


async def test_each_process_opens_the_repository(tmp_path: Path) -> None:
    """Both processes do jobs, and say the same of the repository. They end with the pool, and tell what they used."""
    known = len(usage())
    async with connect(tmp_path, create=True) as repository:
        wanted = await repository.identity()
    async with pool_of(tmp_path) as pool:
        answers = await asyncio.gather(*(pool.run(Identify()) for _ in range(4)))
        process_ids = set(pool.process_ids)

    assert {(wanted, each) for each in process_ids} == set(answers)
    assert os.getpid() not in process_ids
    assert not any(map(is_running, process_ids))
    assert all(0 < each.lock_seconds <= each.cpu_seconds and each.peak_memory > 1 << 20 for each in usage()[known:])
    assert len(usage()) == known + 2


async def test_a_job_gets_open_files_and_asks(tmp_path: Path) -> None:
    """Each job gets the files that were given to it. What moved is told, in all, before the result."""
    moved: list[int] = []
    for number in range(40):
        (tmp_path / str(number)).write_bytes(b"%03d" % number)
    async with pool_of(tmp_path / "repository") as pool:
        descriptors = [os.open(tmp_path / str(number), os.O_RDONLY) for number in range(40)]
        waiting = asyncio.gather(
            *(
                pool.run(Read(), descriptors=descriptors[start : start + 10], moved=moved.append, answer=lambda count: count // 4)
                for start in range(0, 40, 10)
            )
        )
        found = await waiting
        for each in descriptors:
            os.close(each)

    assert [(b"%03d" % number)[:2] for number in range(40)] == [piece for pieces in found for piece in pieces]
    assert sum(moved) == 4 * 2


async def test_an_error_of_a_job_is_raised_as_it_is(tmp_path: Path) -> None:
    """With its facts and its hint. One that cannot be sent is described. Later jobs are done."""
    async with pool_of(tmp_path, count=1) as pool:
        with pytest.raises(StorageFull, match="/disk is full: no space") as full:
            await pool.run(Fail(is_ours=True))
        with pytest.raises(RuntimeError, match="ValueError"):
            await pool.run(Fail(is_ours=False))
        assert await pool.run(Count()) == 1
        assert await pool.run(Count()) == 2

    assert full.value.hint == "free-repository"


async def test_an_error_or_a_result_that_cannot_be_read_is_described(tmp_path: Path) -> None:
    """A pickle of the error can be made, but not read; none of the result. The caller does not wait for ever."""
    async with pool_of(tmp_path, count=1) as pool, asyncio.timeout(30):
        with pytest.raises(RuntimeError, match=r"TwoFactsError.*one and two"):
            await pool.run(FailUnreadably())
        with pytest.raises(RuntimeError, match="the result of a job cannot be sent"):
            await pool.run(ReturnUnreadably())
        assert await pool.run(Count()) == 1


async def test_an_error_of_the_answer_is_raised_and_cancels_the_job(tmp_path: Path) -> None:
    """The caller of `run` gets it, and the process goes on."""

    def answer(_: object) -> None:
        raise LookupError("no answer")

    async with pool_of(tmp_path, count=1) as pool:
        with pytest.raises(LookupError, match="no answer"):
            await pool.run(Read(), answer=answer)
        assert await pool.run(Count()) == 1


async def test_an_error_of_a_report_is_raised_and_cancels_the_job(tmp_path: Path) -> None:
    """It ends the transfer, as in one process. No message that comes after it is lost."""

    def moved(_: int) -> None:
        raise LookupError("no report")

    (tmp_path / "file").write_bytes(b"content")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    async with pool_of(tmp_path / "repository", count=1) as pool:
        for _ in range(3):
            with pytest.raises(LookupError, match="no report"):
                await pool.run(Read(), descriptors=[descriptor], moved=moved, answer=lambda count: count)
        assert await pool.run(Count()) == 1
    os.close(descriptor)


async def test_a_process_that_is_killed_fails_its_jobs_only(tmp_path: Path) -> None:
    """WorkerEnded is one sentence. The other process goes on, and nothing is left."""
    async with pool_of(tmp_path) as pool:
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(pool.run(Wait(), answer=asked.set_result))
        killed = await asked
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(WorkerEnded, match="a worker process of the transfer with"):
            await waiting
        others = pool.process_ids
        assert [await pool.run(Count()) for _ in range(3)] == [1, 2, 3]

    assert len(others) == 1
    # If the first process was killed, nobody waits for the other one, which has closed its socket and is about to end.
    eventually(lambda: not any(map(is_running, [killed, *others])))


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
async def test_a_process_that_is_stopped_alone_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs fail as if it had been killed. One that is stopped without a job holds up nobody."""
    monkeypatch.setattr(pool_module, "_WATCH_SECONDS", 0.01)
    async with pool_of(tmp_path) as pool:
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(pool.run(Wait(), answer=asked.set_result))
        stopped = await asked
        (other,) = set(pool.process_ids) - {stopped}
        for each in (other, stopped):
            os.kill(each, signal.SIGSTOP)
        with pytest.raises(WorkerEnded):
            await waiting
        assert [other] == pool.process_ids
        os.kill(other, signal.SIGCONT)
        assert 1 == await pool.run(Count())


async def test_a_process_that_is_stopped_before_it_is_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transfer never uses it. It is gone after the end, as all others are."""
    # The first process waits for the stopped one. Killed before that, it could not end it.
    monkeypatch.setattr(pool_module, "_END_SECONDS", 60.0)
    noted = tmp_path / "noted"
    async with connect(tmp_path / "repository", create=True) as repository:
        monkeypatch.setattr(repository, "opening", lambda: StopsOthers(os.getpid(), noted))
        async with worker_pool(repository, count=2, slots=1, modules=_MODULES) as pool:
            await asyncio.to_thread(eventually, lambda: noted.exists() and noted.read_text() != "")
            while not pool.is_ready:
                await asyncio.sleep(0.01)

    assert not is_running(int(noted.read_text()))


async def test_without_a_process_a_job_fails(tmp_path: Path) -> None:
    """All are killed: `is_ready` says so, and a job that comes then does not wait."""
    async with pool_of(tmp_path) as pool:
        for each in pool.process_ids:
            os.kill(each, signal.SIGKILL)
        while pool.is_ready:
            await asyncio.sleep(0.01)
        with pytest.raises(WorkerEnded):
            await pool.run(Count())


async def test_a_cancelled_call_returns_when_its_job_has_ended(tmp_path: Path) -> None:
    """The job is cancelled in its process before the caller goes on."""
    marker = os.open(tmp_path / "marker", os.O_RDWR | os.O_CREAT)
    async with pool_of(tmp_path / "repository") as pool:
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(pool.run(Wait(), descriptors=[marker], answer=asked.set_result))
        await asked
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert os.pread(marker, 100, 0) == b"cancelled"
    os.close(marker)


async def test_a_job_that_was_cancelled_by_nobody_is_an_error(tmp_path: Path) -> None:
    """A task group takes the end of a cancelled task for what was wanted, and would leave out the work of the job."""
    async with pool_of(tmp_path, count=1) as pool:
        with pytest.raises(ExceptionGroup) as failure:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.run(CancelItself()))
        assert await pool.run(Count()) == 1
    assert [WorkerEnded] == [type(each) for each in failure.value.exceptions]


async def test_a_job_is_cancelled_before_it_begins(tmp_path: Path) -> None:
    """The process finds the job and its cancellation at once, as it does with a large job. The call returns."""
    (began, is_begun), (gate, opens_gate) = os.pipe(), os.pipe()
    async with pool_of(tmp_path, count=1) as pool, asyncio.timeout(30):
        blocking = asyncio.create_task(pool.run(Block(), descriptors=[is_begun, gate]))
        await asyncio.to_thread(os.read, began, 1)
        waiting = asyncio.create_task(pool.run(Wait()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        os.write(opens_gate, b"x")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await blocking
    for each in (began, is_begun, gate, opens_gate):
        os.close(each)


async def test_a_process_that_is_stopped_is_killed_after_a_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a process never answers. The others go on."""
    monkeypatch.setattr(pool_module, "_END_SECONDS", 0.2)
    async with pool_of(tmp_path) as pool:
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(pool.run(Wait(), answer=asked.set_result))
        stopped = await asked
        os.kill(stopped, signal.SIGSTOP)
        waiting.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert await pool.run(Count()) == 1
        assert stopped not in pool.process_ids


async def test_signals_of_a_group_are_not_for_the_processes(tmp_path: Path) -> None:
    """A service manager and `timeout` signal all processes. The one that transfers decides what it means."""
    async with pool_of(tmp_path) as pool:
        for each in pool.process_ids:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                os.kill(each, number)
        assert [await pool.run(Count()) for _ in range(2)] == [1, 2]
        assert len(pool.process_ids) == 2


async def test_a_process_that_may_open_no_more_files_fails_its_jobs(tmp_path: Path) -> None:
    """The system drops the files that it sends to such a process. The call does not wait for ever."""
    descriptors = [os.open(tmp_path, os.O_RDONLY) for _ in range(20)]
    async with pool_of(tmp_path / "repository", count=1) as pool:
        resource.prlimit(pool.process_ids[0], resource.RLIMIT_NOFILE, (30, 30))
        async with asyncio.timeout(20):
            with pytest.raises(WorkerEnded, match="open files"):
                await pool.run(Read(), descriptors=descriptors, answer=lambda count: count)
    for each in descriptors:
        os.close(each)


async def test_more_jobs_than_slots_wait(tmp_path: Path) -> None:
    """Two processes with two slots do four jobs at a time."""
    began: list[int] = []
    marker = os.open(tmp_path / "marker", os.O_RDWR | os.O_CREAT)
    async with pool_of(tmp_path / "repository") as pool:
        waiting = [asyncio.create_task(pool.run(Wait(), descriptors=[marker], answer=began.append)) for _ in range(5)]
        while len(began) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert sorted(began) == sorted(pool.process_ids * 2)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
    os.close(marker)


async def test_a_pool_that_cannot_start_stays_without_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program that contains Python, and where the interpreter is gone."""
    async with connect(tmp_path, create=True) as repository:
        for executable in ("/usr/bin/uwsgi", str(tmp_path / "python3-gone"), ""):
            monkeypatch.setattr(sys, "executable", executable)
            async with worker_pool(repository, count=2, slots=1) as pool:
                assert not pool.is_ready
        async with worker_pool(repository, count=0, slots=1) as pool:
            assert not pool.is_ready


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was started, so it is waited for, and all sockets are closed."""
    started: list[subprocess.Popen[bytes]] = []
    start = pool_module._start

    def start_and_cancel(*args: Any) -> subprocess.Popen[bytes]:
        started.append(start(*args))
        loop.call_soon_threadsafe(starting.cancel)
        return started[0]

    async def use() -> None:
        async with connect(tmp_path, create=True) as repository, worker_pool(repository, count=2, slots=1):
            pytest.fail("it was not cancelled")

    monkeypatch.setattr(pool_module, "_start", start_and_cancel)
    loop = asyncio.get_running_loop()
    before = len(list(Path("/proc/self/fd").iterdir()))
    starting = asyncio.create_task(use())
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [process.returncode is not None for process in started] == [True]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_process_that_ends_while_it_gets_a_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The call fails, and no error is left that nobody reads."""
    async with pool_of(tmp_path, count=1) as pool:
        [member] = pool._members
        os.kill(pool.process_ids[0], signal.SIGKILL)
        while is_running(pool.process_ids[0]):
            time.sleep(0.001)  # the link must not notice it first
        with pytest.raises(WorkerEnded):
            await pool.run(Count())
        assert not member.link.is_open
    gc.collect()
    assert caplog.messages == []


async def test_a_start_without_free_descriptors(tmp_path: Path) -> None:
    """Also then the pool stays without processes, and leaves nothing open."""
    async with connect(tmp_path, create=True) as repository:
        known = _open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for free in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_lowest_free() + free, hard))
            try:
                async with worker_pool(repository, count=3, slots=1):
                    pass
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert _open_files() <= known


async def test_an_end_does_not_wait_for_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start from a slow disk may take long. The transfer may be complete before that."""
    interpreter = tmp_path / "python3"
    interpreter.write_text("#!/bin/sh\nexec sleep 600\n")
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(pool_module, "_END_SECONDS", 120.0)  # an end that waits for the start ends by the limit below
    async with (
        connect(tmp_path / "repository", create=True) as repository,
        asyncio.timeout(60),
        worker_pool(repository, count=2, slots=1) as pool,
    ):
        await asyncio.sleep(0.2)
        assert not pool.is_ready


async def test_a_program_without_standard_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets get the numbers of the closed streams, in a program that also has other things than texts in its path."""
    monkeypatch.setattr(sys, "path", [Path("/"), *sys.path])
    async with connect(tmp_path, create=True) as repository:
        saved = [os.dup(stream) for stream in range(3)]
        try:
            for stream in range(3):
                os.close(stream)
            async with worker_pool(repository, count=2, slots=2, modules=_MODULES) as pool, asyncio.timeout(60):
                while len(pool.process_ids) < 2:
                    await asyncio.sleep(0.01)
                answers = await asyncio.gather(*(pool.run(Identify()) for _ in range(4)))
        finally:
            for stream, kept in enumerate(saved):
                os.dup2(kept, stream)
                os.close(kept)
    assert len(set(answers)) == 2


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _lowest_free() -> int:
    descriptor = os.open("/", os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_the_processes_end_with_the_process_that_transfers(tmp_path: Path) -> None:
    """It is killed while it has a forked child, which lives longer."""
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        os.close(reading)
        asyncio.run(_start_and_wait(tmp_path, writing))
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as said:
        process_ids = [int(text) for text in said.readline().split()]
    sleeper = process_ids.pop()
    try:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert len(process_ids) == 2
        eventually(lambda: not any(map(is_running, process_ids)))
        assert is_running(sleeper)
    finally:
        os.kill(sleeper, signal.SIGKILL)


async def _start_and_wait(folder: Path, writing: int) -> None:
    async with pool_of(folder) as pool:
        child = os.fork()
        if not child:
            signal.pause()
        os.write(writing, f"{' '.join(map(str, [*pool.process_ids, child]))}\n".encode())
        await asyncio.sleep(600)
