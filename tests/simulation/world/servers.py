"""The simulated servers, and what works on their folder beside them: collections, checks and repairs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from filestore.backends import connect, open_backend
from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.errors import Busy, FilestoreError, StorageFull
from filestore.http.client.repository import RemoteRepository
from filestore.http.limits import ServerLimits
from filestore.repository.index.protocol import Index, Transaction
from filestore.repository.maintenance.check import ReadPlan, check
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.findings import Finding
from filestore.repository.maintenance.repair import repair
from filestore.repository.protocol import Repository
from filestore.repository.stores.protocol import ChunkStore
from tests.simulation.kernel.process import Main, Process
from tests.simulation.kernel.world import World
from tests.simulation.programs import serve
from tests.simulation.world.model import GRACE_SECONDS, Model

TOKEN = "simulated"  # of servers that nobody else reaches
_FIRST_PAUSE_SECONDS = 0.005
_LIMITS = ServerLimits(scrub_rate=0, gc_rate=0, drain_seconds=1.0)
"""A server of the simulation does nothing by itself: other processes collect and check."""
_PASSING = (StorageFull, Busy)
_ROUNDS = 4
"""How often a keeper works before it opens the folder again."""

Work = Callable[[ChunkStore, Index], Awaitable[None]]


def server(root: Path) -> Main:
    """Return the main function of a server."""

    async def main(process: Process) -> None:
        await serve(process, root, limits=_LIMITS, tokens={token_digest(TOKEN): DEFAULT_NAMESPACE})

    return main


def keeper(world: World, model: Model, root: Path, work: Work, *, pause_seconds: float) -> Main:
    """Return the main function of a process that does `work` on the folder again and again."""

    async def main(process: Process) -> None:
        while model.goes_on():
            try:
                async with opened(root) as (store, index):
                    for _ in range(_ROUNDS):
                        if not model.goes_on():
                            break
                        await work(store, index)
                        model.counts[process.name] += 1
                        await asyncio.sleep(world.random.uniform(0, pause_seconds))
            except _PASSING as error:
                model.counts[type(error).__name__] += 1
                await asyncio.sleep(pause_seconds)
            except FilestoreError as error:
                model.fail(f"{process.name}: {type(error).__name__}: {error}")

    return main


@asynccontextmanager
async def reached(location: str | Path) -> AsyncIterator[Repository]:
    """Open a folder as a client does, or a server with short waits."""
    if isinstance(location, Path):
        async with connect(location) as local:
            yield local
        return
    remote = RemoteRepository(
        location, token=TOKEN, connections=2, stall_seconds=1, retry_seconds=2, first_pause_seconds=_FIRST_PAUSE_SECONDS
    )
    try:
        yield remote
    finally:
        await remote.close()


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[tuple[ChunkStore, Index]]:
    """Open the folder of a repository as a command does."""
    store, index = await open_backend(root)
    try:
        yield store, index
    finally:
        await index.close()
        await store.close()


def collecting(grace_seconds: float = GRACE_SECONDS) -> Work:
    """Return the work of a collection."""

    async def work(store: ChunkStore, index: Index) -> None:
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=grace_seconds).run()

    return work


class SlowIndex:
    """An index whose user waits after each write transaction, as a process does that gets no processor."""

    def __init__(self, inner: Index, seconds: Callable[[], float]) -> None:
        self._inner = inner
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:  # the other verbs are those of the index
        return getattr(self._inner, name)

    @asynccontextmanager
    async def transaction(self, namespace: str | None = None) -> AsyncIterator[Transaction]:
        async with self._inner.transaction(namespace) as transaction:
            yield transaction
        await asyncio.sleep(self._seconds())


def slowed(work: Work, seconds: Callable[[], float]) -> Work:
    """Return work that waits for `seconds()` after each of its writes."""

    async def slow_work(store: ChunkStore, index: Index) -> None:
        await work(store, cast("Index", SlowIndex(index, seconds)))

    return slow_work


def checking(model: Model) -> Work:
    """Return the work of a check that reads all data. It must find no damage, because none was planted."""

    async def work(store: ChunkStore, index: Index) -> None:
        async for found in check(store, index, read=ReadPlan()):
            if not isinstance(found, Finding) or found.is_damage:
                model.fail(f"a check found damage: {found}")

    return work


def repairing(model: Model) -> Work:
    """Return the work of a repair. It must find nothing to repair."""

    async def work(store: ChunkStore, index: Index) -> None:
        report = await repair(store, index)
        if report.damage_count or report.rows_forgotten or report.set_aside_count:
            model.fail(f"a repair found damage: {report}")

    return work
