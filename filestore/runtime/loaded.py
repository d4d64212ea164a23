"""Keep pipelines loaded, each in its own process.

The number of processes is limited, and a process does one run at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

from filestore.cache import Cache
from filestore.runtime.process import PipelineProcess
from filestore.system.threads import shield_until_done


class LoadedPipeline(NamedTuple):
    """A pipeline that was started, and the cache that pins its static files."""

    pipeline_id: str
    process: PipelineProcess
    cache: Cache
    input_kinds: list[str]

    async def end(self) -> None:
        """End its process, and release its files."""
        await self.process.end()
        await self.cache.close()


class LoadedPipelines:
    """Holds at most `limit` processes.

    A run that needs one more ends the process that has been idle longest, or waits until one is idle.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._idle: dict[str, LoadedPipeline] = {}
        """The idle pipelines by their ids. The first one has been idle the longest."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._changed = asyncio.Condition()

    @property
    def pipeline_ids(self) -> list[str]:
        """The ids of the pipelines that are loaded and idle, those that have been idle longest first."""
        return list(self._idle)

    @asynccontextmanager
    async def acquire(self, pipeline_id: str, load: Callable[[], Awaitable[LoadedPipeline]]) -> AsyncIterator[LoadedPipeline]:
        """Yield the loaded pipeline to one run at a time. Runs of one pipeline take turns in the order of their calls.

        `load` loads the pipeline if it is not loaded. Raises what `load` raises.
        """
        lock = self._locks.setdefault(pipeline_id, asyncio.Lock())
        async with lock:
            loaded = await self._reserve(pipeline_id)
            try:
                if loaded is not None and (loaded.pipeline_id != pipeline_id or not loaded.process.is_usable):
                    await loaded.end()
                    loaded = None
                if loaded is None:
                    loaded = await load()
                yield loaded
            finally:
                await shield_until_done(self._give_back(loaded))

    async def close(self) -> None:
        """End the idle processes."""
        for loaded in self._idle.values():
            await loaded.end()
        self._idle.clear()

    async def _reserve(self, pipeline_id: str) -> LoadedPipeline | None:
        """Return the idle pipeline, or another idle one that must be ended first, or None if a new process may start.

        It waits until one of these is possible.
        """
        async with self._changed:
            while True:
                if self._idle:
                    if pipeline_id in self._idle:
                        return self._idle.pop(pipeline_id)
                    if self._count >= self._limit:
                        return self._idle.pop(next(iter(self._idle)))
                if self._count < self._limit:
                    self._count += 1
                    return None
                await self._changed.wait()

    async def _give_back(self, loaded: LoadedPipeline | None) -> None:
        if loaded is not None and not loaded.process.is_usable:
            await loaded.end()
            loaded = None
        async with self._changed:
            if loaded is None:
                self._count -= 1
            else:
                self._idle[loaded.pipeline_id] = loaded
            # Wake all waiters: a single waiter could be cancelled at the same moment and would not wake the next.
            self._changed.notify_all()
