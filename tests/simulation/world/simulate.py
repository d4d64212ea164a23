"""Run one simulation: several clients, two servers and what works beside them, with trouble, and checks at the end."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from filestore.backends import create_repository
from filestore.cache.cache import Cache
from filestore.cache.leases import STALE_SECONDS
from filestore.core.references import File
from filestore.system.threads import in_disk_thread
from tests.simulation.kernel.process import Machine, Main, Process
from tests.simulation.kernel.world import World
from tests.simulation.world.caches import SIZE_LIMIT, CacheUser
from tests.simulation.world.checks import check_left_over, compare_all, compare_at_end, empty_cache
from tests.simulation.world.clients import Client
from tests.simulation.world.contents import small_sizes
from tests.simulation.world.mixes import mix_of
from tests.simulation.world.model import Model
from tests.simulation.world.servers import Work, checking, collecting, keeper, reached, repairing, server, slowed
from tests.simulation.world.trouble import STEPS, Trouble

_ENDING_STEPS = 200_000
"""The most steps that the end of a simulation may take: the processes stop, and everything is checked."""


class Outcome(NamedTuple):
    """What a simulation without a finding has done."""

    steps: int
    counts: Counter[str]
    trace_digest: str


def simulate(seed: int, folder: Path, *, steps: int) -> Outcome:
    """Run a simulation with about so many steps in a new, empty folder. Raises SimulationFailure if a rule is broken."""
    with small_sizes(), World(seed=seed, folder=folder) as world:
        return _Simulation(world).run(steps)


class _Simulation:
    def __init__(self, world: World) -> None:
        self._world = world
        self._mix = mix_of(world.seed)
        self._model = Model(world.fail, grace_seconds=self._mix.grace_seconds)
        self._store = world.machine("store")
        self._desk = world.machine("desk")
        self._root = self._store.folder / "repository"
        self._cache = self._desk.folder / "cache"
        self._url = f"http://{self._store.address}:80"
        self._servers: list[Process] = []
        self._others: list[Process] = []

    def run(self, steps: int) -> Outcome:
        """Do everything."""
        self._run_alone("create", self._create)
        self._start()
        trouble = Trouble(
            self._model,
            self._mix,
            store=self._store,
            desk=self._desk,
            processes=[*self._servers, *self._others],
            quiet_check=lambda world: world.process("check-quietly", self._compare, on=self._store),
        )
        self._world.each(STEPS, trouble)
        self._world.run(until_steps=steps)
        unfinished = trouble.stop()
        self._model.is_over = True
        self._wait_for([*self._others, *unfinished])
        for process in self._servers:
            if process.is_running:
                process.signal(signal.SIGTERM)
        self._wait_for(self._servers)
        self._run_alone("check-at-end", self._compare_at_end)
        if self._mix.cache_users:
            self._run_alone("open-cache-at-end", self._use_cache, on=self._desk)
        check_left_over(self._root, self._cache, SIZE_LIMIT, self._model)
        if self._mix.cache_users:
            self._run_alone("empty-cache", self._empty_cache, on=self._desk)
        return Outcome(self._world.steps, self._model.counts, self._world.trace_digest)

    def _start(self) -> None:
        world, model, mix, root = self._world, self._model, self._mix, self._root
        self._begin(self._desk, "idle", self._idle)
        for number in range(mix.servers):
            self._servers.append(world.process(f"server-{number}", server(root), on=self._store))
        for number in range(mix.remote_clients):
            client = Client(world, model, mix=mix, name=f"remote-{number}", location=self._url)
            self._begin(self._desk, f"remote-{number}", client.main)
        for number in range(mix.local_clients):
            client = Client(world, model, mix=mix, name=f"local-{number}", location=root)
            self._begin(self._store, f"local-{number}", client.main)
        for number in range(mix.cache_users):
            user = CacheUser(world, model, location=self._url, root=self._cache)
            self._begin(self._desk, f"cache-{number}", user.main)
        for count, name, work, pause_seconds in (
            (mix.collections, "collect", self._collecting(), mix.collection_pause_seconds),
            (mix.checks, "check", checking(model), 2.0),
            (mix.repairs, "repair", repairing(model), 4.0),
        ):
            for number in range(count):
                self._begin(self._store, f"{name}-{number}", keeper(world, model, root, work, pause_seconds=pause_seconds))

    def _collecting(self) -> Work:
        work, slowness = collecting(self._mix.grace_seconds), self._mix.collection_slowness_seconds
        return slowed(work, lambda: self._world.random.uniform(0, slowness)) if slowness else work

    def _begin(self, machine: Machine, name: str, main: Main) -> None:
        self._others.append(self._world.process(name, main, on=machine))

    def _run_alone(self, name: str, main: Main, *, on: Machine | None = None) -> None:
        process = self._world.process(name, main, on=on or self._store)
        self._wait_for([process])

    def _wait_for(self, processes: list[Process]) -> None:
        limit = self._world.steps + _ENDING_STEPS
        self._world.run(until=lambda: not any(process.is_running for process in processes), until_steps=limit)
        for process in processes:
            if process.is_running:
                self._world.fail(f"{process.name} does not end")

    async def _idle(self, _: Process) -> None:
        """Keep the simulation running while all others are killed."""
        while self._model.goes_on():
            await asyncio.sleep(0.05)

    async def _create(self, _: Process) -> None:
        await create_repository(self._root)

    async def _compare(self, _: Process) -> None:
        await compare_all(self._root, self._model)

    async def _compare_at_end(self, _: Process) -> None:
        await compare_at_end(self._root, self._model)

    async def _empty_cache(self, _: Process) -> None:
        # A process that was killed by a power cut counts as one of another machine for so long.
        await asyncio.sleep(STALE_SECONDS)
        await in_disk_thread(empty_cache, self._cache, self._model)

    async def _use_cache(self, _: Process) -> None:
        """Use each entry once more, so that what ended processes left is removed."""
        if not list((self._cache / "repositories").glob("*.json")):
            return  # a power cut took all, also which repository it is, and no server can be asked any more
        async with reached(self._url) as repository, Cache(self._cache, repository, size_limit=SIZE_LIMIT) as cache:
            for version in self._model.kept():
                if version.record is not None and await cache.cached(File(id=version.record.id)) is not None:
                    path = await cache.resolve(File(id=version.record.id))
                    if path.read_bytes() != version.content:
                        self._model.fail(f"the cache has other bytes of {version.name} than were pushed")
