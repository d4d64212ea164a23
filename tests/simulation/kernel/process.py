"""Simulated machines and processes."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal as signals
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.simulation.kernel.disk import Disk
from tests.simulation.kernel.loops import SimulatedLoop, close_coroutines
from tests.simulation.kernel.scheduler import Thread

if TYPE_CHECKING:
    from tests.simulation.kernel.world import World

Main = Callable[["Process"], Coroutine[Any, Any, object]]

_EPOCH = 1_800_000_000
"""The wall clock of a machine at the start, in seconds since 1970."""


class Machine:
    """A machine: a disk, a wall clock and an address."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.folder = world.folder / "machines" / name
        self.address = f"10.0.0.{number}"
        self.disk = Disk(self.folder, seed=f"disk {name} {world.seed}", device=number)
        self.processes: list[Process] = []
        self._number = number
        self._ahead = 0.0
        self._boots = 1

    def wall(self) -> float:
        """Return the wall clock in seconds since 1970."""
        return _EPOCH + self._ahead + self.world.now

    def wall_ns(self) -> int:
        """Return the wall clock in nanoseconds since 1970."""
        return int(self.wall() * 1e6) * 1000

    def jump_clock(self, seconds: float) -> None:
        """Set the wall clock ahead, or back."""
        self.world.log(f"the clock of {self.name} jumps by {seconds:.3f} s")
        self._ahead += seconds

    def power_cut(self) -> int:
        """Kill all processes, and lose what was not synced, by the seed. Return how many writes and names were lost."""
        for process in self.processes:
            process.kill()
        self._boots += 1
        files = {f"{path}{end}" for path in self.world.databases.paths() for end in ("", "-wal")}
        ours = frozenset(path for path in files if path.startswith(f"{self.folder}/"))
        for path in sorted(ours):
            if Path(path).exists():
                self.disk.settle_name(path)
            if path.endswith("-wal"):
                Path(f"{path.removesuffix('-wal')}-shm").unlink(missing_ok=True)  # it is only memory
        lost = self.disk.power_cut(keeps=ours)
        self.world.log(f"power cut of {self.name}: {lost} lost")
        return lost

    def system_file(self, path: str, process: Process) -> str | None:
        """Return the content of a file in /proc. Return None for a file that says nothing about this machine."""
        if path == "/proc/sys/kernel/random/boot_id":
            return f"00000000-0000-4000-8000-{self._number:06d}{self._boots:06d}\n"
        if path.startswith("/proc/") and path.endswith("/stat"):
            name = path.split("/")[2]
            pid = process.pid if name == "self" else int(name)
            found = self.find(pid)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            zeros = " ".join(["0"] * 18)
            return f"{pid} (python) S {zeros} {int(found.started_at * 100)} 0 0\n"
        return "" if path == "/proc/locks" else None

    def find(self, pid: int) -> Process | None:
        """Return the process with a number, or None."""
        return next((process for process in self.processes if process.is_running and process.pid == pid), None)


class Process:
    """A simulated process. `World.process` makes and starts it."""

    def __init__(self, world: World, name: str, main: Main, machine: Machine) -> None:
        self.world = world
        self.name = name
        self.machine = machine
        self.main = main
        self.state: dict[str, Any] = {}
        """Whatever its user keeps. It survives restarts."""
        self.pid = 0
        self.starts = 0
        self.started_at = 0.0
        self.is_running = False
        self.is_dead = True
        """Whether its threads may do nothing any more."""
        self.result: Any = None
        self.threads: list[Thread] = []
        self.objects: dict[int, Any] = {}
        """Its own objects in place of those of modules."""
        self.paused_until = 0.0
        self.slowness = 0.0
        self.loop: SimulatedLoop | None = None

    @property
    def folder(self) -> Path:
        """The folder of its machine's disk."""
        return self.machine.folder

    def restart(self, main: Main | None = None) -> None:
        """Start it again. It must not be running."""
        assert not self.is_running
        if main is not None:
            self.main = main
        self.starts += 1
        self.pid = self.world.new_pid()
        self.started_at = self.world.now
        self.is_running, self.is_dead = True, False
        self.result = None
        self.paused_until = 0.0
        self.objects = {}
        self.world.log(f"start of {self.name}")
        self.world.scheduler.start(self, "main", self._run, is_loop=True)

    def kill(self) -> None:
        """End it as SIGKILL does. Nothing that it still does has an effect."""
        if not self.is_running:
            return
        if self.world.scheduler.current is not None:
            self.world.call_soon(self.kill)
            return
        self.world.log(f"kill of {self.name}")
        self._end()

    def signal(self, number: int) -> None:
        """Send it a signal. One that it does not handle kills it."""
        if self.is_running and (number == signals.SIGKILL or self.loop is None or not self.loop.deliver(number)):
            self.kill()

    def pause(self, seconds: float) -> None:
        """Let none of its threads run for some virtual seconds."""
        self.paused_until = max(self.paused_until, self.world.now + seconds)

    def _run(self) -> None:
        loop = self.loop = SimulatedLoop(self, self.world.sockets_table)
        asyncio.set_event_loop(None)
        self.result = loop.run_until_complete(self.main(self))
        for task in loop.tasks():
            task.cancel()
        loop.run_until_complete(_ended(loop))
        loop.run_until_complete(loop.shutdown_asyncgens())
        self.world.log(f"end of {self.name}")
        self.world.call_soon(self._end)

    def _end(self) -> None:
        """Release what it has. Its threads and objects go without an effect."""
        if not self.is_running:
            return
        world = self.world
        self.is_running, self.is_dead = False, True
        descriptors = world.descriptors.release(self)
        world.network.end_process(self)
        world.databases.end_process(self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of coroutines that were never awaited
            for thread in sorted(self.threads, key=lambda thread: thread.number):
                world.scheduler.stop(thread)
            loop, self.loop, self.objects = self.loop, None, {}
            # What runs now belongs to the process, and each of its operations raises Killed.
            world.scheduler.current = Thread(self, "remains", partial(int), number=0, is_loop=False)
            try:
                if loop is not None:
                    close_coroutines(loop)
                    loop._ready.clear()  # type: ignore[attr-defined]
                    loop._scheduled.clear()  # type: ignore[attr-defined]
                del loop
                gc.collect()
            finally:
                world.scheduler.current = None
        world.descriptors.forget(descriptors)


async def _ended(loop: SimulatedLoop) -> None:
    current = asyncio.current_task()
    others = [task for task in loop.tasks() if task is not current]
    if others:
        await asyncio.wait(others)
