"""Keep pipelines loaded, each in one process or several.

The number of processes is limited, and a process does one run at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

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


class _Place(NamedTuple):
    """The right to have a process. `loaded` is the idle process whose place it is, which may be of another pipeline."""

    loaded: LoadedPipeline | None


class LoadedPipelines:
    """Holds at most `limit` processes, and at most `limit_per_pipeline` of one pipeline.

    A run gets an idle process of its pipeline. If there is none, a new process is started. If there are too many, the
    new one replaces the process that has been idle longest, or the run waits. Pipelines whose runs wait take turns, so
    a pipeline with many runs delays a run of another one by one run and not by all.
    """

    def __init__(self, *, limit: int, limit_per_pipeline: int = 1) -> None:
        self._limit = limit
        self._limit_per_pipeline = limit_per_pipeline
        self._idle: list[LoadedPipeline] = []
        """The first one has been idle the longest."""
        self._unloaded: set[str] = set()
        """The ids of pipelines that were deleted. No later pipeline has one of them."""
        self._busy: Counter[str] = Counter()
        """How many processes of each pipeline do a run, start or end."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[_Place]]] = OrderedDict()
        """The runs of each pipeline that wait, in the order of their calls. The first pipeline has the next turn."""

    @property
    def pipeline_ids(self) -> list[str]:
        """The ids of the pipelines that are loaded and idle, those that have been idle longest first."""
        return list(dict.fromkeys(loaded.pipeline_id for loaded in self._idle))

    @asynccontextmanager
    async def acquire(self, pipeline_id: str, load: Callable[[], Awaitable[LoadedPipeline]]) -> AsyncIterator[LoadedPipeline]:
        """Yield a process of the pipeline to one run at a time. Runs of one pipeline begin in the order of their calls.

        `load` loads the pipeline into a new process. Raises what `load` raises.
        """
        loaded = (await self._reserve(pipeline_id)).loaded
        try:
            if loaded is not None and (loaded.pipeline_id != pipeline_id or not loaded.process.is_usable):
                await loaded.end()
                loaded = None
            if loaded is None:
                loaded = await load()
            yield loaded
        finally:
            await shield_until_done(self._give_back(pipeline_id, loaded))

    async def unload(self, pipeline_id: str) -> None:
        """End the processes of a pipeline: the idle ones now, and each of the others after its run."""
        self._unloaded.add(pipeline_id)
        ended = [loaded for loaded in self._idle if loaded.pipeline_id == pipeline_id]
        self._idle = [loaded for loaded in self._idle if loaded.pipeline_id != pipeline_id]
        for loaded in ended:
            await loaded.end()
        self._grant_places()

    async def close(self) -> None:
        """End the idle processes."""
        for loaded in self._idle:
            await loaded.end()
        self._idle.clear()

    async def _reserve(self, pipeline_id: str) -> _Place:
        """Return a place for a run of a pipeline, as soon as there is one."""
        place: asyncio.Future[_Place] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(pipeline_id, deque()).append(place)
        self._grant_places()
        try:
            return await place
        except asyncio.CancelledError:
            # The place may have been granted at the same moment.
            if not place.cancelled():
                await shield_until_done(self._give_back(pipeline_id, place.result().loaded))
            raise

    async def _give_back(self, pipeline_id: str, loaded: LoadedPipeline | None) -> None:
        if loaded is not None and (not loaded.process.is_usable or loaded.pipeline_id in self._unloaded):
            await loaded.end()
            loaded = None
        self._busy[pipeline_id] -= 1
        if not self._busy[pipeline_id]:
            del self._busy[pipeline_id]
        if loaded is not None:
            self._idle.append(loaded)
        self._grant_places()

    def _grant_places(self) -> None:
        """Grant places to waiting runs, one pipeline after the other, until no run can get one."""
        while any(self._grant_place(pipeline_id) for pipeline_id in list(self._waiting)):
            pass

    def _grant_place(self, pipeline_id: str) -> bool:
        """Grant a place to the next run of a pipeline, if there is one. Its next run waits for another turn."""
        waiting = self._waiting[pipeline_id]
        while waiting and waiting[0].done():
            waiting.popleft()  # it was cancelled
        place = self._find_place(pipeline_id) if waiting else None
        if place is not None:
            waiting.popleft().set_result(place)
            self._busy[pipeline_id] += 1
            self._waiting.move_to_end(pipeline_id)
        if not waiting:
            del self._waiting[pipeline_id]
        return place is not None

    def _find_place(self, pipeline_id: str) -> _Place | None:
        # The process that was used last, so that the others become the ones that are replaced.
        own = next((loaded for loaded in reversed(self._idle) if loaded.pipeline_id == pipeline_id), None)
        if own is not None:
            self._idle.remove(own)
            return _Place(own)
        if self._busy[pipeline_id] >= self._limit_per_pipeline:
            return None
        if self._busy.total() + len(self._idle) < self._limit:
            return _Place(None)
        return _Place(self._idle.pop(0)) if self._idle else None
