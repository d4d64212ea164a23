"""The world of a simulation: machines, processes, and the loop that lets them make steps."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Never, Self, TypeVar

from tests.simulation.kernel import real
from tests.simulation.kernel.databases import Databases
from tests.simulation.kernel.descriptors import Descriptors
from tests.simulation.kernel.hooks import installed
from tests.simulation.kernel.network import Network
from tests.simulation.kernel.process import Machine, Main, Process
from tests.simulation.kernel.scheduler import Killed, Scheduler
from tests.simulation.kernel.sockets import SocketTable

__all__ = ["Killed", "Machine", "Process", "SimulationFailure", "World"]

T = TypeVar("T")

_COLLECT_STEPS = 20_000
"""Unreachable objects are collected after so many steps, and not whenever Python likes."""
_SHOWN_LINES = 60
_FOLDER_DESCRIPTOR = 900
"""The descriptor of the folder. By it the folder has the same path in each run: the hash of a path decides orders of sets."""


class SimulationFailure(AssertionError):
    """A simulation found a fault. It says how to reproduce it."""


class World:
    """Machines and processes under one seed. Use it in a `with` block."""

    def __init__(self, seed: int, folder: Path, *, command: str = "") -> None:
        """`folder` is new or empty, best in memory. `command` reproduces a failure, and is shown with it."""
        self.seed = seed
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = real.os_open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        real.dup2(descriptor, _FOLDER_DESCRIPTOR, inheritable=False)
        real.close(descriptor)
        self.folder = Path(f"/proc/self/fd/{_FOLDER_DESCRIPTOR}")
        """The folder, by a path that is valid in this process until the end of the block."""
        self.command = command or f"python -m tests.simulation --seed {seed}"
        self.random = random.Random(f"world {seed}")
        self.scheduler = Scheduler(seed)
        self.network = self.sockets = Network(self.scheduler)
        self.sockets_table = SocketTable(self.scheduler, self.network)
        self.databases = Databases(self.scheduler)
        self.descriptors = Descriptors(self.scheduler, self.sockets_table, self.databases)
        self.machines: list[Machine] = []
        self.processes: list[Process] = []
        self._each: list[tuple[int, Callable[[World], object]]] = []
        self._soon: list[Callable[[], None]] = []
        self._next_pid = 100
        self._stack = ExitStack()
        (self.folder / "machines").mkdir()

    def __enter__(self) -> Self:
        gc.freeze()
        gc.disable()
        self._stack.callback(gc.enable)
        self._stack.callback(gc.unfreeze)
        self._stack.enter_context(installed(self))
        self._stack.callback(self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self.scheduler.steps

    @property
    def now(self) -> float:
        """The virtual monotonic clock in seconds."""
        return self.scheduler.now

    @property
    def trace_digest(self) -> str:
        """The digest of all steps so far."""
        return self.scheduler.trace.digest()

    def machine(self, name: str) -> Machine:
        """Make a machine."""
        machine = Machine(self, name, len(self.machines) + 1)
        self.machines.append(machine)
        self.descriptors.disks.append(machine.disk)
        return machine

    def process(self, name: str, main: Main, *, on: Machine) -> Process:
        """Make a process, and start it."""
        process = Process(self, name, main, on)
        self.processes.append(process)
        on.processes.append(process)
        self.scheduler.add_process(process)
        process.restart()
        return process

    def choose(self, count: int) -> int:
        """Return a number below `count`, by the seed."""
        return int(self.random.random() * count)

    def chance(self, probability: float) -> bool:
        """Return True with a probability, by the seed."""
        return self.random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, by the seed."""
        return items[self.choose(len(items))]

    def each(self, steps: int, function: Callable[[World], object]) -> None:
        """Call `function(world)` after every `steps` steps, between two steps."""
        self._each.append((steps, function))

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function after this step."""
        self._soon.append(function)

    def run(self, *, until_steps: int, until: Callable[[], bool] = lambda: False) -> None:
        """Let processes make steps until there are `until_steps` in all, until a condition holds, or until all have ended.

        Where functions are called between steps, the steps go on without a process. Raises SimulationFailure.
        """
        scheduler = self.scheduler
        while scheduler.steps < until_steps and not until():
            before = scheduler.steps
            try:
                has_moved = scheduler.next_step()
            except Exception as error:
                raise SimulationFailure(self._report(f"{type(error).__name__}: {error}")) from error
            while self._soon:
                self._soon.pop(0)()
            if not has_moved:
                if any(process.is_running for process in self.processes):
                    self.fail("deadlock: nobody can run, and no timer is pending\n" + "\n".join(scheduler.waiting()))
                if not self._each:
                    return
                scheduler.idle()  # who is called between steps may start a process
            if self.databases.lost_locks:
                self.fail(self.databases.lost_locks[0])
            if scheduler.steps != before:
                self._call_each()

    def log(self, text: str) -> None:
        """Add a line to the trace."""
        self.scheduler.trace.add(text)

    def recent(self, count: int) -> list[str]:
        """Return the last lines of the trace."""
        return self.scheduler.trace.recent(count)

    def fail(self, text: str) -> Never:
        """Raise SimulationFailure, which says how to reproduce it."""
        raise SimulationFailure(self._report(text))

    def new_pid(self) -> int:
        """Return a number for a process."""
        self._next_pid += 1
        return self._next_pid

    def process_now(self) -> Process:
        """Return the process whose thread runs. Raises Killed if it was killed."""
        current = self.scheduler.current
        assert current is not None
        if current.process.is_dead:
            raise Killed
        return current.process

    def wall(self) -> float:
        """Return the wall clock of the current process's machine, in seconds since 1970."""
        return self.process_now().machine.wall()

    def wall_ns(self) -> int:
        """Return the same in nanoseconds."""
        return self.process_now().machine.wall_ns()

    def kill_by_number(self, pid: int, number: int) -> None:
        """`os.kill` within a machine."""
        found = self.process_now().machine.find(pid)
        if found is None:
            raise ProcessLookupError
        if number:
            self.call_soon(lambda: found.signal(number))

    def temporary_folder(self) -> str:
        """Return the folder for temporary files of the machine of the current process."""
        folder = f"{self.process_now().machine.folder}/temporary"
        with suppress(FileExistsError):
            real.mkdir(folder)
        return folder

    def _call_each(self) -> None:
        steps = self.scheduler.steps
        for every, function in self._each:
            if not steps % every:
                function(self)
        if not steps % _COLLECT_STEPS:
            gc.collect()

    def _report(self, text: str) -> str:
        lines = "\n".join(f"  {line}" for line in self.recent(_SHOWN_LINES))
        where = f"seed {self.seed}, step {self.steps}"
        return f"{text}\n{where}\nthe last steps:\n{lines}\nTo reproduce it: {self.command}"

    def _end(self) -> None:
        for process in self.processes:
            process._end()
        self.databases.close()
        self.descriptors.close_all()
        real.close(_FOLDER_DESCRIPTOR)
