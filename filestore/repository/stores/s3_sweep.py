"""Remove objects that no row has named for hours: a server ended after it had put them and before it committed their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from filestore.core.object_names import ObjectName
from filestore.repository.stores.object_map import ObjectMap
from filestore.repository.stores.protocol import NOTHING_REMOVED, Removed
from filestore.repository.stores.s3_client import Listed, S3Client
from filestore.repository.stores.s3_keys import FRAMES, MANIFESTS, parse_key
from filestore.system.threads import task_group

ABANDONED_SECONDS = 3 * 3600
"""The age of an object, by the clock of the store, from which on no row will name it any more."""
_PAGES_IN_ORDER = 4
"""So many pages of a namespace are listed one after the other. In a larger one, its folders are then listed side by side."""
_SIDE_BY_SIDE = 16
_HEX = "0123456789abcdef"

_Unnamed = Callable[[str, Sequence[ObjectName]], Awaitable[list[ObjectName]]]


class Sweep:
    """One pass over all frames and manifests. It keeps nothing, so one that is cut off is simply made again.

    It holds one page of names for each of 16 listings.
    """

    def __init__(
        self, client: S3Client, objects: ObjectMap, *, dry_run: bool, abandoned_seconds: float = ABANDONED_SECONDS
    ) -> None:
        self._abandoned_seconds = abandoned_seconds
        self._client = client
        self._objects = objects
        self._dry_run = dry_run
        self._places = asyncio.Semaphore(_SIDE_BY_SIDE)
        self._before: datetime | None = None
        self._removed = NOTHING_REMOVED

    async def run(self) -> Removed:
        """Remove what is abandoned, and return how much it was. Raises StorageError, Busy."""
        # A dry run writes nothing, and asks the clock of this machine.
        now = datetime.now(UTC) if self._dry_run else await self._client.clock()
        self._before = now - timedelta(seconds=self._abandoned_seconds)
        for top, unnamed in ((FRAMES, self._objects.unnamed_frames), (MANIFESTS, self._objects.unnamed_manifests)):
            for namespace in await self._client.folders(top):
                await self._sweep(f"{top}/{namespace}", namespace, unnamed)
        return self._removed

    async def _sweep(self, prefix: str, namespace: str, unnamed: _Unnamed) -> None:
        pages = 0
        last = ""
        async for page in self._client.pages(prefix):
            await self._remove(page, namespace, unnamed)
            pages, last = pages + 1, page[-1].key
            if pages == _PAGES_IN_ORDER:
                break
        else:
            return
        first = last.removeprefix(f"{prefix}/")[:2]
        async with task_group() as group:
            for folder in (a + b for a in _HEX for b in _HEX):
                if folder >= first:
                    group.create_task(self._sweep_folder(f"{prefix}/{folder}", last, namespace, unnamed))

    async def _sweep_folder(self, prefix: str, after: str, namespace: str, unnamed: _Unnamed) -> None:
        async with self._places:
            async for page in self._client.pages(prefix, after=after):
                await self._remove(page, namespace, unnamed)

    async def _remove(self, page: Sequence[Listed], namespace: str, unnamed: _Unnamed) -> None:
        old = {}
        for listed in page:
            name = parse_key(listed.key)
            if name is not None and self._before is not None and listed.put_at < self._before:
                old[name] = listed
        abandoned = [old[name] for name in await unnamed(namespace, list(old))] if old else []
        if not self._dry_run:
            await self._client.delete([listed.key for listed in abandoned])
        self._removed = Removed(
            self._removed.count + len(abandoned), self._removed.size + sum(listed.size for listed in abandoned)
        )
