"""The work that a server process does between requests, such as a scrub of what is stored, and a collection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from filestore.http.limits import ServerLimits
from filestore.repository.index.protocol import Index
from filestore.repository.maintenance.collection_plan import CollectionPlan, collect_for_ever
from filestore.repository.maintenance.scrub import ScrubPlan, scrub_for_ever
from filestore.repository.stores.protocol import ChunkStore

logger = logging.getLogger("filestore.maintenance")


@asynccontextmanager
async def background_work(
    store: ChunkStore, index: Index, limits: ServerLimits, *others: Coroutine[None, None, None]
) -> AsyncIterator[None]:
    """Do the background work of a server process, and `others`, during the block. A failure of it never ends the server."""
    work = list(others)
    if limits.scrub_rate:
        work.append(scrub_for_ever(store, index, ScrubPlan(rate=limits.scrub_rate, days=limits.scrub_days)))
    if limits.gc_rate:
        plan = CollectionPlan(limits.gc_grace, limits.gc_rate, limits.gc_hours)
        work.append(collect_for_ever(store, index, plan))
    tasks = [asyncio.create_task(_logged(each)) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _logged(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except Exception:
        # A fault of our own. The server goes on without this work.
        logger.exception("background work of the server ended by a fault of its own; please report it")
