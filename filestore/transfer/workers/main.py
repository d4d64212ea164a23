"""A worker process of a transfer. `pool` starts it.

The first process imports what all need while it has no thread, and forks the others. Each has one socket, and ends when that is
closed, since the process that transfers has then ended.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pickle  # between processes of one transfer
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

from filestore.repository.protocol import Opening, Repository
from filestore.system.event_loop import run_in_loop
from filestore.system.metrics import Stage, StageTimes, StageTotals, Usage, count_into, own_usage
from filestore.system.own_process import keep_heap
from filestore.transfer.workers.job import Job
from filestore.transfer.workers.link import Link, close_all

T = TypeVar("T")

_TELL_SECONDS = 0.1
"""How often moved bytes are told."""
_END_SECONDS = 5.0
"""How long the first process waits for the end of the others. The process that transfers waits longer for the first one."""
_PAUSE_SECONDS = 0.005


class Setup(NamedTuple):
    """The first message to a worker process."""

    opening: Opening
    share: int
    """How many processes share the connections, with the one that transfers."""
    is_counting: bool
    """Whether stages are measured."""


class Ended(NamedTuple):
    """The last message of a worker process."""

    usage: Usage
    stages: dict[Stage, StageTotals]


def main(descriptors: Sequence[int], modules: Sequence[str]) -> None:
    """Run a worker process for each socket in `descriptors`. It imports `modules` first. Call it in a process without threads."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal or a service manager signals all processes. It is for the one that transfers, which ends this one.
        signal.signal(number, signal.SIG_IGN)
    keep_heap()
    for name in modules:
        importlib.import_module(name)
    own, *others = descriptors
    children = []
    for place, descriptor in enumerate(others):
        try:
            child = os.fork()
        except OSError:
            # Too many processes, or too little memory: the transfer uses fewer. It sees that these sockets are closed.
            break
        if not child:
            close_all([own, *others[:place], *others[place + 1 :]])
            _work(descriptor)
        children.append(child)
    close_all(others)
    _work(own, children)


def _work(descriptor: int, children: Sequence[int] = ()) -> NoReturn:
    """Do the jobs of one worker process, and end it."""
    status = 1
    with suppress(BaseException):
        run_in_loop(_serve(socket.socket(fileno=descriptor)))
        status = 0
    _wait_for(children)
    os._exit(status)


def _wait_for(children: Sequence[int]) -> None:
    """Wait until these processes have ended, as they do by themselves at the same time. One that was stopped is killed."""
    deadline = time.monotonic() + _END_SECONDS
    for child in children:
        with suppress(OSError):
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                if time.monotonic() >= deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    break
                time.sleep(_PAUSE_SECONDS)


async def _serve(connected: socket.socket) -> None:
    await _Process(connected).run()


class _Process:
    """The state of a worker process."""

    def __init__(self, connected: socket.socket) -> None:
        self._setup: asyncio.Future[Setup] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._questions: dict[tuple[int, int], asyncio.Future[Any]] = {}
        self._kept: dict[str, Any] = {}
        self._repository: Repository
        self.link = Link(connected, received=self._receive, lost=_leave)

    async def run(self) -> None:
        """Do jobs until the other side says that this was all."""
        setup = await self._setup
        stage_times = StageTimes()
        if setup.is_counting:
            count_into(stage_times)
        async with setup.opening.open(share=setup.share) as self._repository:
            # No job comes before this.
            self.link.send(("ready", os.getpid()))
            await self._end.wait()
        self.link.send(("ended", Ended(_usage(), stage_times.passed())))
        await self.link.sent()
        self.link.close()

    def _receive(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        kind, *rest = message
        if kind == "setup":
            self._setup.set_result(rest[0])
        elif kind == "job":
            self._begin(rest[0], rest[1], descriptors)
        elif kind == "answer":
            number, place, answer = rest
            question = self._questions.pop((number, place), None)
            if question is not None and not question.done():
                question.set_result(answer)
        elif kind == "cancel" and rest[0] in self._tasks:
            self._tasks[rest[0]].cancel()
        elif kind == "end":
            self._end.set()

    def _begin(self, number: int, job: Job[Any], descriptors: list[int]) -> None:
        worker = _Worker(self.link, number, self._repository, self._questions, self._kept)
        task = self._tasks[number] = asyncio.create_task(job.run(worker, descriptors))
        # Not a part of the task: one that is cancelled before it begins does nothing.
        task.add_done_callback(partial(self._end_job, number, worker, descriptors))

    def _end_job(self, number: int, worker: _Worker, descriptors: list[int], task: asyncio.Task[Any]) -> None:
        del self._tasks[number]
        close_all(descriptors)
        worker.tell_moved()
        if task.cancelled():
            self.link.send(("cancelled", number))
        elif error := task.exception():
            self.link.send(("failed", number, _sendable(error)))
        else:
            try:
                self.link.send(("done", number, task.result()))
            except Exception as reason:  # noqa: BLE001  # any code may run
                self.link.send(("failed", number, RuntimeError(f"the result of a job cannot be sent: {reason}")))


class _Worker:
    """What a job has: a `Worker`."""

    def __init__(
        self,
        link: Link,
        number: int,
        repository: Repository,
        questions: dict[tuple[int, int], asyncio.Future[Any]],
        kept: dict[str, Any],
    ) -> None:
        self.repository = repository
        self._link = link
        self._number = number
        self._places = count()
        self._questions = questions
        self._kept = kept
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._moved = 0
        self._is_told_soon = False

    async def ask(self, question: object) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        place = next(self._places)
        self._questions[self._number, place] = future
        self._link.send(("ask", self._number, place, question))
        try:
            return await future
        finally:
            self._questions.pop((self._number, place), None)

    def moved(self, size: int) -> None:
        with self._lock:
            self._moved += size
            if self._is_told_soon:
                return
            self._is_told_soon = True
        self._loop.call_soon_threadsafe(self._loop.call_later, _TELL_SECONDS, self.tell_moved)

    def kept(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def tell_moved(self) -> None:
        """Tell what has moved since the last time."""
        with self._lock:
            moved, self._moved, self._is_told_soon = self._moved, 0, False
        if moved:
            self._link.send(("moved", self._number, moved))


def _usage() -> Usage:
    """Return what this process has used. The first one has the peak memory of the process that started it, without this."""
    used = own_usage()
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return used._replace(peak_memory=int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    return used


def _sendable(error: BaseException) -> BaseException:
    """Return an error that the other process can read."""
    try:
        # Some errors can be pickled, and no error can be made from the pickle.
        return cast("BaseException", pickle.loads(pickle.dumps(error)))  # noqa: S301  # what this process has made
    except Exception as reason:  # noqa: BLE001  # any code may run
        return RuntimeError(f"{error!r} cannot be sent: {reason}")


def _leave() -> None:
    """End the process at once, in the middle of its work: the process that transfers has ended."""
    os._exit(1)
