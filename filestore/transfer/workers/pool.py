"""Start worker processes, give them jobs, and end them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess  # the same interpreter, with our own code
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filestore.errors import WorkerEnded
from filestore.repository.protocol import Moved, Opening, Repository
from filestore.system.metrics import Usage, add_stages, is_counting
from filestore.system.threads import in_disk_thread, shield_until_done, tell_of_forks
from filestore.transfer.workers.job import Job
from filestore.transfer.workers.link import Link
from filestore.transfer.workers.main import Ended, Setup

logger = logging.getLogger("filestore.transfer")
T = TypeVar("T")

_START = (
    "import sys, json; setup = json.loads(sys.stdin.readline()); sys.path[:] = setup['path']; "
    "from filestore.transfer.workers.main import main; main(setup['descriptors'], setup['modules'])"
)
_MODULES = ("numpy", "pyfastcdc", "zstandard")
"""What every worker process needs, besides what its jobs need."""
_END_SECONDS = 10.0
"""How long worker processes may take to end. They have nothing to do then."""
_WATCH_SECONDS = 10.0
"""How often the pool looks for processes that were stopped. One that is found twice is killed."""

_USAGE_LIMIT = 1 << 10
"""How many processes are remembered. A program may make transfers for months."""
_usage: deque[Usage] = deque(maxlen=_USAGE_LIMIT)


def usage() -> list[Usage]:
    """Return what each of the last `_USAGE_LIMIT` worker processes that have ended has used."""
    return list(_usage)


@asynccontextmanager
async def worker_pool(
    repository: Repository, *, count: int, slots: int, modules: Sequence[str] = ()
) -> AsyncIterator[WorkerPool]:
    """Start `count` worker processes for a transfer with `repository`, and end them after the block.

    Each does at most `slots` jobs at a time. `modules` are the names of modules that the jobs need, imported once for
    all processes. The block begins while they start.

    The pool stays without processes if `count` is 0, if another process cannot open this repository, if another transfer with it
    has the connections, or if the system permits no further process.
    """
    pool = WorkerPool(repository.location, slots=slots)
    opening = repository.opening() if count else None
    interpreter = _interpreter()
    async with repository.lending(0 if opening is None or interpreter is None else count) as lent:
        try:
            if opening is not None and interpreter is not None and lent:
                await pool.start(interpreter, opening, count=lent, modules=[*_MODULES, type(opening).__module__, *modules])
            yield pool
        finally:
            await shield_until_done(pool.end())


def _interpreter() -> str | None:
    """Return the path of Python, or None where this is another program that contains it."""
    path = sys.executable or ""
    return path if Path(path).name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False) else None


@dataclass(slots=True, eq=False)
class _Call:
    """A job that a worker process does."""

    future: asyncio.Future[Any]
    moved: Moved
    answer: Callable[[Any], Any] | None


class _Member:
    """A worker process, seen from the process that transfers."""

    def __init__(self, pool: WorkerPool, connected: socket.socket) -> None:
        self.pid: int | None = None
        """None until it is ready."""
        self.calls: dict[int, _Call] = {}
        self.gone = asyncio.Event()
        self._pool = pool
        self.link = Link(connected, received=self._receive, lost=self._lose)

    @property
    def is_ready(self) -> bool:
        return self.pid is not None and self.link.is_open

    def is_stopped(self) -> bool:
        """Return whether a signal has stopped the process, so that its jobs cannot go on. False where it is not told."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"T")
        except OSError:
            return False

    def kill(self) -> None:
        """End the process at once, if it is still there."""
        if self.link.is_open and self.pid is not None:
            # Its end of the socket is open, so it is still this process.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def ended(self, future: asyncio.Future[Any]) -> None:
        """Wait until a cancelled job has ended. A process that does not react is killed: it may have been stopped."""
        await asyncio.wait([future], timeout=_END_SECONDS)
        if not future.done():
            self.kill()
            await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # read, so that the loop does not report it as lost

    def _receive(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        for each in descriptors:
            os.close(each)
        kind, *rest = message
        if kind == "ready":
            (self.pid,) = rest
            self._pool.wake()
            return
        if kind == "ended":
            self._pool.note_ended(rest[0])
            return
        number, *values = rest
        call = self.calls.get(number)
        if call is None or call.future.done():
            return
        if kind == "moved":
            self._count(number, call, values[0])
        elif kind == "ask":
            self._answer(number, call, *values)
        elif kind == "done":
            call.future.set_result(values[0])
        elif kind == "failed":
            call.future.set_exception(values[0])
        elif kind == "cancelled":
            # Nobody may wait for it as for a task of their own that was cancelled: a task group would go on without its work.
            call.future.set_exception(self._pool.ended_error())

    def _count(self, number: int, call: _Call, size: int) -> None:
        try:
            call.moved(size)
        except Exception as error:  # noqa: BLE001  # the caller of `run` gets it
            self._fail(number, call, error)

    def _answer(self, number: int, call: _Call, place: int, question: object) -> None:
        try:
            answer = None if call.answer is None else call.answer(question)
        except Exception as error:  # noqa: BLE001  # the caller of `run` gets it
            self._fail(number, call, error)
        else:
            self.link.send(("answer", number, place, answer))

    def _fail(self, number: int, call: _Call, error: Exception) -> None:
        """Cancel a job, because a function of its caller has failed."""
        self.link.send(("cancel", number))
        call.future.set_exception(error)

    def _lose(self) -> None:
        self.gone.set()
        self._pool.wake()
        for call in self.calls.values():
            if not call.future.done():
                call.future.set_exception(self._pool.ended_error())


class WorkerPool:
    """The worker processes of one transfer. `worker_pool` makes it. For one event loop."""

    def __init__(self, location: str, *, slots: int) -> None:
        """`location` is the name of the repository in errors."""
        self._location = location
        self._slots = slots
        self._members: list[_Member] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._number = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        """Those who wait for a slot."""
        tell_of_forks(self)

    @property
    def is_ready(self) -> bool:
        """Whether a worker process takes jobs. It is false while they start, and where none could be started."""
        return any(member.is_ready for member in self._members)

    @property
    def process_ids(self) -> list[int]:
        """The worker processes that are ready."""
        return [member.pid for member in self._members if member.is_ready and member.pid is not None]

    async def run(
        self,
        job: Job[T],
        *,
        descriptors: Sequence[int] = (),
        moved: Moved = lambda _: None,
        answer: Callable[[Any], Any] | None = None,
    ) -> T:
        """Do a job in the worker process that has least to do, and return its result. It waits for a free slot.

        The process gets duplicates of `descriptors`. `moved` and `answer` are called in the event loop.

        A cancelled call returns when the job has ended.

        Raises what the job, `moved` and `answer` raise, and WorkerEnded if the process ends.
        """
        member = await self._free_member()
        self._number += 1
        number = self._number
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        member.calls[number] = _Call(future, moved, answer)
        try:
            member.link.send(("job", number, job), descriptors)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                member.link.send(("cancel", number))
                await shield_until_done(member.ended(future))
                raise
        finally:
            del member.calls[number]
            self._wake_one()

    async def start(self, interpreter: str, opening: Opening, *, count: int, modules: Sequence[str]) -> None:
        """Start the processes, and do not wait until they are ready."""
        with ExitStack() as ours, ExitStack() as theirs:
            descriptors = []
            ends = []
            try:
                for _ in range(count):
                    end, other = socket.socketpair()
                    ends.append(ours.enter_context(end))
                    with other:
                        # Its number must not be that of a standard stream, which may be closed here.
                        descriptors.append(fcntl.fcntl(other, fcntl.F_DUPFD_CLOEXEC, 3))
                    theirs.callback(os.close, descriptors[-1])
                await in_disk_thread(self._start, interpreter, descriptors, modules)
            except OSError as error:
                logger.info("no worker processes: %s", error)
                return
            ours.pop_all()
        for end in ends:
            member = _Member(self, end)
            self._members.append(member)
            member.link.send(("setup", Setup(opening, count + 1, is_counting())))
        self._watching = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """End the processes, which must have no jobs."""
        if self._watching is not None:
            self._watching.cancel()
        for member in self._members:
            if member.is_ready:
                member.link.send(("end",))
            else:
                member.link.close()
        if self._process is not None and not self.is_ready:
            self._process.kill()  # it still starts, which may take long
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                for member in self._members:
                    if member.link.is_open:
                        await member.gone.wait()
        for member in self._members:
            member.kill()
            member.link.close()
        if self._process is not None:
            await in_disk_thread(_reap, self._process)

    def wake(self) -> None:
        """Let all who wait for a slot look again."""
        while self._waiting:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def note_ended(self, ended: Ended) -> None:
        """Keep what a process has used."""
        _usage.append(ended.usage)
        add_stages(ended.stages)

    def ended_error(self) -> WorkerEnded:
        """Return the error to raise when a process has ended."""
        return WorkerEnded(self._location, "a signal ended it, or it had no memory or open files left")

    def after_fork(self) -> None:
        """Close the sockets in a forked child, so that the processes end when the parent does."""
        for member in self._members:
            member.link.forget()

    def _start(self, interpreter: str, descriptors: list[int], modules: Sequence[str]) -> None:
        # In the thread, so that the process is known, and is waited for, even if the call is cancelled.
        self._process = _start(interpreter, descriptors, modules)

    async def _watch(self) -> None:
        """Kill processes that were stopped alone: the transfer would wait for ever, and the server for what they send.

        All processes of a terminal are often stopped together. This one then finds them at work when it goes on.
        """
        stopped: set[_Member] = set()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            before, stopped = stopped, {member for member in self._members if member.calls and member.is_stopped()}
            for member in before & stopped:
                logger.warning("a worker process was stopped, and is ended")
                member.kill()

    async def _free_member(self) -> _Member:
        while True:
            ready = [member for member in self._members if member.is_ready]
            if not ready:
                raise self.ended_error()
            best = min(ready, key=lambda member: len(member.calls))
            if len(best.calls) < self._slots:
                return best
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self._wake_one()  # the slot is for another one
                raise


def _start(interpreter: str, descriptors: list[int], modules: Sequence[str]) -> subprocess.Popen[bytes]:
    # Python permits other things than texts, and skips them.
    path = [each or str(Path.cwd()) for each in sys.path if isinstance(each, str)]
    setup = json.dumps({"path": path, "descriptors": descriptors, "modules": list(modules)})
    hears, says = map(os.fdopen, os.pipe(), ("rb", "wb"))
    with hears, suppress(BrokenPipeError), says:  # it may end at once, which its sockets tell
        process = subprocess.Popen(  # noqa: S603  # our own code
            [interpreter, "-I", "-c", _START],
            stdin=hears,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            # numpy would start threads for linear algebra, which is not used.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        says.write(setup.encode())
    return process


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
