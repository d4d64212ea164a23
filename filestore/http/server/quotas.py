"""The quotas of namespaces and tokens, as one server process knows them.

Each process looks at the index at regular intervals. So a new quota holds within about a second, whoever set it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from filestore.core.quotas import EVERYBODY, NO_QUOTA, Quota
from filestore.errors import FilestoreError
from filestore.http.server.errors import log_failure
from filestore.repository.index.protocol import Index
from filestore.system.threads import task_group

CHECK_SECONDS = 0.5
"""The time between two looks at the quotas of the index."""


class Quotas:
    """The quotas of a repository, as they were at the last look."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._namespaces: dict[str, Quota] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the quotas now, and again and again during the block. Raises what `refresh` raises, at the start."""
        await self.refresh()
        async with task_group() as group:
            looking = group.create_task(self._look())
            try:
                yield
            finally:
                looking.cancel()

    async def refresh(self) -> None:
        """Read the quotas. Raises StorageError, IndexDamaged."""
        rows = await self._index.quotas()
        self._namespaces = {row.namespace: row.quota for row in rows if row.token is None}

    def of_namespace(self, namespace: str) -> Quota:
        """Return the quota of a namespace: its own, or else the one for everybody."""
        found = self._namespaces.get(namespace)
        return self._namespaces.get(EVERYBODY, NO_QUOTA) if found is None else found

    async def _look(self) -> None:
        is_failing = False
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.refresh()
                is_failing = False
            except FilestoreError as error:
                # The quotas stay as they are.
                if not is_failing:
                    log_failure("new quotas cannot be noticed now", error)
                is_failing = True
