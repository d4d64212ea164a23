"""What goes wrong in a simulation, between two steps: kills, power cuts, cut connections, full disks, jumps of the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tests.simulation.kernel.process import Machine, Process
from tests.simulation.kernel.world import World
from tests.simulation.world.mixes import Mix
from tests.simulation.world.model import GRACE_SECONDS, Model

STEPS = 400
"""After so many steps, something may happen."""
_NIGHT_SECONDS = 3 * GRACE_SECONDS
_FREE_AT_MOST = 40 << 10


class QuietCheck(Protocol):
    """Compare everything with the model, in a process of its own, while nobody else works on the store."""

    def __call__(self, world: World) -> Process: ...


class Trouble:
    """Makes trouble by the seed. Call it between steps, until `stop`."""

    def __init__(
        self,
        model: Model,
        mix: Mix,
        *,
        store: Machine,
        desk: Machine,
        processes: Sequence[Process],
        quiet_check: QuietCheck,
    ) -> None:
        self._mix = mix
        self._model = model
        self._store = store
        self._desk = desk
        self._processes = processes
        self._quiet_check = quiet_check
        self._checking: Process | None = None
        self._full_until: dict[Machine, int] = {}
        self._sizes = {machine: machine.disk.size for machine in (store, desk)}
        self._is_stopped = False

    def __call__(self, world: World) -> None:
        """Look, and perhaps do something."""
        self._model.check_targets()
        if self._checking is not None:
            if self._checking.is_running:
                return
            self._checking = None
        for machine, until in tuple(self._full_until.items()):
            if self._is_stopped or world.steps >= until:
                self._free_disk(machine)
        for process in self._processes:
            if not process.is_running:
                self._model.interrupt(process.name)
                if not self._is_stopped and world.chance(0.7):
                    process.restart()
        if not self._is_stopped:
            self._make(world, world.choose(100))

    def stop(self) -> list[Process]:
        """End the trouble: what was killed stays so, and disks get their space back. Return the quiet check that still runs."""
        self._is_stopped = True
        return [] if self._checking is None else [self._checking]

    def _make(self, world: World, choice: int) -> None:
        running = [process for process in self._processes if process.is_running]
        troubles = (
            (self._mix.kills, self._kill_one),
            (self._mix.cuts, self._cut_one),
            (self._mix.store_power_cuts, lambda world, _: self._cut_power(world, self._store)),
            (self._mix.desk_power_cuts, lambda world, _: self._cut_power(world, self._desk)),
            (self._mix.nights, lambda world, _: self._pass_night(world)),
            (self._mix.full_disks, lambda world, _: self._fill_disk(world, world.pick((self._store, self._desk)))),
            (self._mix.pauses, lambda world, running: world.pick(running).pause(world.random.uniform(0, 5))),
        )
        for weight, make in troubles:
            if choice < weight and running:
                make(world, running)
                return
            choice -= weight

    def _kill_one(self, world: World, running: list[Process]) -> None:
        killed = self._mix.killed
        chosen = [process for process in running if not killed or process.name.partition("-")[0] in killed]
        if chosen:
            world.pick(chosen).kill()
            self._model.counts["kills"] += 1

    def _cut_one(self, world: World, running: list[Process]) -> None:
        world.sockets.cut_one(world.pick(running))
        self._model.counts["cuts"] += 1

    def _cut_power(self, world: World, machine: Machine) -> None:
        self._free_disk(machine)
        machine.power_cut()
        self._model.counts["power cuts"] += 1
        self._model.check_targets()
        for process in self._processes:
            if not process.is_running:
                self._model.interrupt(process.name)
        if machine is self._store:
            # Nobody works on the store now: a good moment to compare everything with the model.
            self._checking = self._quiet_check(world)

    def _pass_night(self, world: World) -> None:
        """Let hours pass at once for everyone, so that nobody has asked for a chunk for longer than the grace period."""
        for machine in (self._store, self._desk):
            machine.jump_clock(_NIGHT_SECONDS)
        self._model.chunks_removed_at = world.now
        self._model.counts["nights"] += 1

    def _fill_disk(self, world: World, machine: Machine) -> None:
        machine.disk.size = machine.disk.used + world.choose(_FREE_AT_MOST)
        self._full_until[machine] = world.steps + 4 * STEPS
        self._model.counts["full disks"] += 1

    def _free_disk(self, machine: Machine) -> None:
        machine.disk.size = self._sizes[machine]
        self._full_until.pop(machine, None)
