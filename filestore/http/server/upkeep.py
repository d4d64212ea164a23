"""Do regularly what a long-running server needs: remove what ended processes left, and keep the reserve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from filestore.errors import FilestoreError
from filestore.http.server.errors import log_failure
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.threads import work_beside

UPKEEP_SECONDS = 600.0


@asynccontextmanager
async def upkeep(store: ChunkStore) -> AsyncIterator[None]:
    """Look after `store` during the block: now, and every ten minutes."""
    async with work_beside(_tend(store)):
        yield


async def _tend(store: ChunkStore) -> None:
    while True:
        try:
            if not store.has_object_ids:  # there it lists all objects, and the collection of one process does it for all
                await store.remove_abandoned()
            await store.make_reserve()
        except FilestoreError as error:
            log_failure("what ended processes left cannot be removed", error, level=logging.WARNING)
        await asyncio.sleep(UPKEEP_SECONDS)
