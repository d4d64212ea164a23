"""Simulated programs that share one cache: each leases an entry for a while, and looks at it again and again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from filestore.cache.cache import Cache
from filestore.cache.options import CacheOptions
from filestore.core.references import File
from filestore.errors import Busy, CacheFull, ChunksMissing, FilestoreError, NotFound, StorageFull, TransferError
from tests.simulation.kernel.process import Process
from tests.simulation.kernel.world import World
from tests.simulation.world.contents import OPTIONS
from tests.simulation.world.model import Fate, Model, Version
from tests.simulation.world.servers import reached

SIZE_LIMIT = 8 * (40 << 10)
"""Bytes of the cache. It has space for what all users lease and fetch at the same time, and for little more."""
_PAUSE_SECONDS = 0.02
_LOOKS = 3
_PASSING = (TransferError, StorageFull, Busy)
_REMOVED = (NotFound, ChunksMissing)
"""Errors of a resolve that are right if its file is removed meanwhile."""


class CacheUser:
    """Leases entries of a cache until the simulation is over."""

    def __init__(self, world: World, model: Model, *, location: str, root: Path) -> None:
        self._world = world
        self._model = model
        self._location = location
        self._root = root

    async def main(self, process: Process) -> None:
        """Run in a process. It may be killed and started again at any time."""
        options = CacheOptions(transfer=OPTIONS)
        async with reached(self._location) as repository:
            while self._model.goes_on():
                async with Cache(self._root, repository, size_limit=SIZE_LIMIT, options=options) as cache:
                    for _ in range(self._world.choose(4)):
                        await self._step(process, cache)
                        await asyncio.sleep(self._world.random.uniform(0, _PAUSE_SECONDS))

    async def _step(self, process: Process, cache: Cache) -> None:
        kept = self._model.kept()
        if not kept:
            return
        version = self._world.pick(kept)
        if version.record is None:
            return
        try:
            async with cache.lease(File(id=version.record.id)) as path:
                await self._look(process, path, version)
        except CacheFull as error:
            self._model.fail(f"{process.name}: nobody leases that much: {error}")
        except _PASSING as error:
            self._model.counts[type(error).__name__] += 1
        except FilestoreError as error:
            if not isinstance(error, _REMOVED) or (version.fate is Fate.KEPT and not version.is_busy):
                self._model.fail(f"{process.name}: {type(error).__name__}: {error}")

    async def _look(self, process: Process, path: Path, version: Version) -> None:
        """Look at a leased entry. Nobody may remove it, whatever others need."""
        for _ in range(1 + self._world.choose(_LOOKS)):
            try:
                found = path.read_bytes()
            except OSError as error:
                self._model.fail(f"{process.name}: the entry of {version.name} was removed while it was leased: {error}")
            if found != version.content:
                self._model.fail(f"{process.name}: the cache has other bytes of {version.name} than were pushed")
            await asyncio.sleep(self._world.random.uniform(0, _PAUSE_SECONDS))
        self._model.counts["leases"] += 1
