"""Simulated threads: exactly one runs, and a seed decides at each step which one is next.

A simulated thread is a greenlet, so the whole simulation is one thread of the operating system. A thread gives the control back
at each step: an operation that another process could see, or that waits. Between two steps nothing else runs.

Time is virtual. Each step takes a random part of `STEP_SECONDS`. When all threads wait, the clock jumps to the next timer.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import sys
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from tests.simulation.kernel.process import Process

STEP_SECONDS = 0.0002
_SPEED_STEPS = 1500
"""After about so many steps, the processes get other speeds."""
_SLOWEST = 0.97
_LINES_AT_ONCE = 500
_RECENT_LINES = 400
_RETRIES = 4


class Killed(SystemExit):
    """The process of this thread was killed. Nothing that the thread still does has an effect.

    It is a SystemExit, so that an event loop does not keep it in a task.
    """


class Thread:
    """A thread of a simulated process."""

    def __init__(self, process: Process, name: str, function: Callable[[], object], *, number: int, is_loop: bool) -> None:
        self.process = process
        self.name = name
        self.function = function
        self.number = number
        self.is_loop = is_loop
        """Whether it runs an event loop. Only such a thread has the state that asyncio keeps for each thread."""
        self.greenlet: greenlet | None = None
        self.operation = "start"
        self.detail = ""
        self.is_waiting = False
        self.is_idle = False
        """Whether it waits for work of a pool, so that nobody waits for it."""
        self.has_timed_out = False
        self.wait_number = 0
        self.running_loop: Any = None
        self.generator_hooks: tuple[Any, Any] = (None, None)
        self.locals: dict[int, dict[str, Any]] = {}
        self.ended: list[Thread] = []
        """The threads that wait for its end."""
        self.is_alive = True

    def __str__(self) -> str:
        return f"{self.process.name}/{self.name}"


class Trace:
    """The lines of all steps. Only their digest and the last ones are kept."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._lines: list[str] = []
        self._recent: deque[str] = deque(maxlen=_RECENT_LINES)

    def add(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)
        if len(self._lines) >= _LINES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._digest.update("\n".join([*self._lines, ""]).encode(errors="surrogateescape"))
        self._recent.extend(self._lines)
        self._lines.clear()

    def digest(self) -> str:
        """Return the digest of all lines, in hexadecimal."""
        self._flush()
        return self._digest.hexdigest()

    def recent(self, limit: int) -> list[str]:
        """Return the last lines."""
        self._flush()
        return list(self._recent)[-limit:]


class Scheduler:
    """Runs the threads of all simulated processes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"schedule {seed}")
        self.trace = Trace()
        self.now = 1000.0
        """The virtual monotonic clock in seconds."""
        self.steps = 0
        self.current: Thread | None = None
        """The thread that runs. None between two steps."""
        self.failure: BaseException | None = None
        self._runnable: list[Thread] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count(1)
        self._hub = getcurrent()
        self._next_speeds = 0
        self._processes: list[Process] = []

    def new_number(self) -> int:
        """Return the next number, counted from the start of the simulation."""
        return next(self._numbers)

    def add_process(self, process: Process) -> None:
        """Let a process have a speed of its own."""
        self._processes.append(process)

    # What threads call.

    def step(self, operation: str, detail: str = "") -> None:
        """Give other threads the chance to run. Raises Killed if the process was killed."""
        thread = self.current
        if thread is None:
            return
        if thread.process.is_dead:
            raise Killed
        thread.operation, thread.detail = operation, detail
        self._hub.switch()

    def wait(
        self, operation: str, waiters: list[Thread] | None = None, seconds: float | None = None, *, is_idle: bool = False
    ) -> bool:
        """Stop the current thread until it is woken. Return False if `seconds` have passed before.

        The thread is a member of `waiters` meanwhile. Raises Killed if the process was killed.
        """
        thread = self.current
        if thread is None:
            raise RuntimeError(f"{operation}: this waits, and no simulated thread runs")
        if thread.process.is_dead:
            raise Killed
        thread.operation, thread.detail = operation, ""
        thread.wait_number += 1
        thread.is_waiting, thread.has_timed_out, thread.is_idle = True, False, is_idle
        self._runnable.remove(thread)
        if waiters is not None:
            waiters.append(thread)
        if seconds is not None:
            self._wake_at(self.now + max(seconds, 0.0), thread, thread.wait_number)
        try:
            self._hub.switch()
        finally:
            thread.is_idle = False
            if waiters is not None and thread in waiters:
                waiters.remove(thread)
        return not thread.has_timed_out

    def sleep(self, seconds: float) -> None:
        """Stop the current thread for some virtual seconds."""
        self.wait("sleep", None, seconds)

    def wake(self, thread: Thread) -> None:
        """Let a thread that waits run again."""
        if thread.is_waiting and thread.is_alive:
            thread.is_waiting = False
            self._runnable.append(thread)

    def wake_all(self, waiters: list[Thread]) -> None:
        """Wake all threads of a list, and empty it."""
        woken, waiters[:] = waiters[:], []
        for thread in woken:
            self.wake(thread)

    def wake_one(self, waiters: list[Thread]) -> bool:
        """Wake one thread of a list, by the seed, and remove it. Return False if there is none."""
        if not waiters:
            return False
        self.wake(waiters.pop(int(self.random.random() * len(waiters))))
        return True

    def at(self, when: float, function: Callable[[], None]) -> None:
        """Call `function` between two steps, when the virtual clock is at `when`."""
        heapq.heappush(self._timers, (when, next(self._numbers), function))

    def start(self, process: Process, name: str, function: Callable[[], object], *, is_loop: bool = False) -> Thread:
        """Start a thread of a process. It makes its first step later."""
        thread = Thread(process, name, function, number=next(self._numbers), is_loop=is_loop)
        thread.greenlet = greenlet(lambda: self._run(thread), parent=self._hub)
        process.threads.append(thread)
        self._runnable.append(thread)
        return thread

    # What runs between two steps.

    def next_step(self) -> bool:
        """Let one thread make one step. Return False if no thread can run and no timer is left."""
        while not self._runnable:
            if not self._timers:
                return False
            self.now = max(self.now, self._timers[0][0])
            self._call_timers()
        thread = self._pick()
        if thread is None:
            return True
        self.steps += 1
        self.trace.add(f"{self.steps} {thread.process.name}/{thread.name} {thread.operation} {thread.detail}")
        self._resume(thread)
        self.now += self.random.random() * STEP_SECONDS
        self._call_timers()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return True

    def idle(self) -> None:
        """Make a step while no process exists."""
        self.steps += 1
        self.now += STEP_SECONDS
        self.trace.add(f"{self.steps} nobody")

    def stop(self, thread: Thread) -> None:
        """End a thread of a process that was killed. Its cleanup has no effects."""
        if thread.greenlet is not None and thread.greenlet:
            self.current = thread
            try:
                thread.greenlet.throw(Killed())
            finally:
                self.current = None
        self._end(thread)

    def waiting(self) -> list[str]:
        """Return for each thread that waits what it waits for."""
        found = []
        for process in self._processes:
            found += [f"{thread}: {thread.operation}" for thread in process.threads if thread.is_waiting and not thread.is_idle]
        return found

    def _pick(self) -> Thread | None:
        if self.steps >= self._next_speeds:
            self._change_speeds()
        for _ in range(_RETRIES):
            thread = self._runnable[int(self.random.random() * len(self._runnable))]
            slowness = thread.process.slowness
            if not slowness or self.random.random() >= slowness:
                break
        until = thread.process.paused_until
        if until > self.now:
            self._runnable.remove(thread)
            thread.is_waiting = True
            self.at(until, lambda: self.wake(thread))
            return None
        return thread

    def _change_speeds(self) -> None:
        """Make some processes slow for a while: others then do much between two of their steps."""
        self._next_speeds = self.steps + 1 + int(self.random.random() * 2 * _SPEED_STEPS)
        for process in self._processes:
            process.slowness = self.random.random() * _SLOWEST if self.random.random() < 1 / 3 else 0.0

    def _resume(self, thread: Thread) -> None:
        assert thread.greenlet is not None
        self.current = thread
        if thread.is_loop:
            _set_running_loop(thread.running_loop)
            sys.set_asyncgen_hooks(*thread.generator_hooks)
            thread.greenlet.switch()
            thread.running_loop = _get_running_loop()
            thread.generator_hooks = tuple(sys.get_asyncgen_hooks())  # type: ignore[assignment]
            _set_running_loop(None)
            sys.set_asyncgen_hooks(None, None)
        else:
            thread.greenlet.switch()
        self.current = None

    def _run(self, thread: Thread) -> None:
        try:
            thread.function()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  # it ends the simulation, not this thread alone
            if not thread.process.is_dead:
                self.failure = error
        self._end(thread)

    def _end(self, thread: Thread) -> None:
        if thread.is_alive:
            thread.is_alive = thread.is_waiting = False
            if thread in self._runnable:
                self._runnable.remove(thread)
            if thread in thread.process.threads:
                thread.process.threads.remove(thread)
            self.wake_all(thread.ended)

    def _wake_at(self, when: float, thread: Thread, number: int) -> None:
        def wake() -> None:
            if thread.is_waiting and thread.wait_number == number:
                thread.has_timed_out = True
                self.wake(thread)

        self.at(when, wake)

    def _call_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
