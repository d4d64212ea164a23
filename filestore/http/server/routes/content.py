"""Answer GET and HEAD of any HTTP client with a file's decoded bytes, or a range; each chunk is verified (I4)."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from aiohttp import web

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest
from filestore.core.manifest import Chunk
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import Busy, DamagedChunk, FilestoreError, InvalidDigest, InvalidReference, NotFound
from filestore.format.codec import frame_limit
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.conditions import content_head, unchanged
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem_answer
from filestore.http.server.manifests import Layout
from filestore.http.server.validators import IMMUTABLE
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.receive_batch import verified

LOAD_SIZE = 2 << 20
"""Decoded bytes that are read and decoded together. A single chunk may be larger."""
LOAD_COUNT = 256
"""Chunks that are read and decoded together, if they are tiny."""
LOADS_AHEAD = 2
"""The number of loads that are in progress while another one is sent."""
AHEAD_PART = 2
"""Loads are made ahead while less than one part of so many of the readers' budget is in use. One reader is faster by them. Many
readers keep the cores busy anyway, and each would hold three loads in the place of one.
"""
OBJECTS_SIZE = 512
"""Bytes of the objects of one chunk that is loaded, apart from its content."""


async def get_content(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the bytes of the file that a path names, or with a range of them."""
    return await send_content(context, repository, await _record(context, repository))


async def send_content(context: RequestContext, repository: LocalRepository, record: Record) -> web.StreamResponse:
    """Answer with the bytes of a record's file, or with a range of them."""
    request = context.request
    context.noted.note_record(record)
    tag = str(record.digest)
    headers = {"ETag": f'"{tag}"', "Cache-Control": IMMUTABLE}
    known = unchanged(request, tag, headers)
    if known is not None:
        return known
    head, wanted = content_head(request, tag, size=record.size, name=record.name, headers=headers)
    return await send_stored(context, repository, record.digest, wanted, head)


async def send_stored(
    context: RequestContext, repository: LocalRepository, digest: Digest, wanted: range, response: web.StreamResponse
) -> web.StreamResponse:
    """Send the head `response`, and then the bytes `wanted` of a stored file, verified. To HEAD, send only the head."""
    if context.request.method == "HEAD":
        async with context.answering(response, size=len(wanted)):
            return response
    async with StoredContent(context, repository, digest, wanted) as content:
        try:
            await content.begin()
        except Busy as error:
            return problem_answer(error)
        # Load before the head is sent: a damaged chunk can still be answered with an error.
        await content.load()
        async with context.answering(response, size=len(wanted)) as answer:
            while await content.load():
                if not await content.send(answer):
                    # I6: a slow client must not hold memory.
                    await content.forget()
                    await answer.wait()
    return response


async def _record(context: RequestContext, repository: LocalRepository) -> Record:
    path = context.request.match_info["path"]
    try:
        reference = Reference.parse_path(path)
    except (InvalidReference, InvalidDigest):
        raise NotFound(path) from None
    return await repository.record(reference)


class _Load(NamedTuple):
    """Neighbouring chunks of a file that are loaded together, and the part of them that will be sent."""

    chunks: list[Chunk]
    wanted: range
    """Offsets from the start of the first chunk."""


class _LoadedParts(NamedTuple):
    parts: deque[memoryview]
    stack: AsyncExitStack
    """Its end gives back the budget of the memory to which `parts` refer."""


class StoredContent:
    """The bytes `wanted` of a file, to send or to copy. The next ones are read, decoded and verified ahead, within the budget.

    The end of the block gives all memory back.
    """

    def __init__(self, context: RequestContext, repository: LocalRepository, digest: Digest, wanted: range) -> None:
        self._budget = context.reader_budget
        self._whole_budget = context.budget
        self._manifests = context.manifests
        self._repository = repository
        self._digest = digest
        self._layout: Layout | None = None
        self._reading = AsyncExitStack()
        """Its end gives up the use of `_layout`."""
        self._stop = wanted.stop
        self._position = self._ahead = wanted.start
        self._loading: deque[asyncio.Task[_LoadedParts]] = deque()
        self._loaded: _LoadedParts | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.forget()

    async def begin(self) -> Layout:
        """Wait until the manifest is in memory. Raises NotFound, InvalidManifest, StorageError, Busy."""
        if self._layout is None:
            reading = self._manifests.reading(self._repository, self._digest)
            self._layout = await self._reading.enter_async_context(reading)
        return self._layout

    async def load(self) -> bool:
        """Wait until the next bytes can be sent. Return False at the end.

        Raises Busy, DamagedChunk, StorageError, NotFound if the file is removed meanwhile.
        """
        while self._loaded is None or not self._loaded.parts:
            if self._loaded is not None:
                stack, self._loaded = self._loaded.stack, None
                await stack.aclose()
            await self._load_ahead()
            if not self._loading:
                return False
            self._loaded = await self._loading.popleft()
        return True

    async def send(self, answer: BodyWriter) -> bool:
        """Send the loaded bytes that the client takes soon. Return whether it took all of them.

        Raises ConnectionError.
        """
        while self._loaded is not None and self._loaded.parts:
            part = self._loaded.parts.popleft()
            sent = await answer.offer(part)
            self._position += sent
            if sent < len(part):
                return False
        return True

    async def pieces(self) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes in order, in pieces of at most a chunk. The memory of a piece is valid until the next one is asked for.

        Raises what `load` raises.
        """
        while await self.load():
            while self._loaded is not None and self._loaded.parts:
                part = self._loaded.parts.popleft()
                self._position += len(part)
                yield part

    async def forget(self) -> None:
        """Give up the loaded bytes, the manifest and the budget. `load` loads them again."""
        for task in self._loading:
            task.cancel()
        for loaded in [self._loaded, *await asyncio.gather(*self._loading, return_exceptions=True)]:
            if isinstance(loaded, _LoadedParts):
                await loaded.stack.aclose()
        self._loading.clear()
        self._loaded = None
        self._ahead = self._position
        self._layout = None
        await self._reading.aclose()

    async def _load_ahead(self) -> None:
        while len(self._loading) <= LOADS_AHEAD and self._ahead < self._stop:
            if self._loading and self._budget.taken > self._budget.limit // AHEAD_PART:
                return
            load = self._next_load(await self.begin())
            self._ahead += len(load.wanted)
            self._loading.append(asyncio.create_task(self._read(load)))

    def _next_load(self, layout: Layout) -> _Load:
        first = bisect_right(layout.offsets, self._ahead) - 1
        end = bisect_left(layout.offsets, self._stop, first)
        following = (layout.manifest.chunks[place] for place in range(first, end))
        chunks = next(batched_by_size(following, lambda chunk: chunk.size, limit=LOAD_SIZE, count_limit=LOAD_COUNT))
        start = layout.offsets[first]
        return _Load(chunks, range(self._ahead - start, min(sum(chunk.size for chunk in chunks), self._stop - start)))

    async def _read(self, load: _Load) -> _LoadedParts:
        space = sum(_rounded(frame_limit(chunk.size)) for chunk in load.chunks)
        objects_size = OBJECTS_SIZE * len(load.chunks)
        async with AsyncExitStack() as stack:
            budgets = self._budget, self._whole_budget
            taken = [await stack.enter_async_context(budget.take(2 * space + objects_size)) for budget in budgets]
            digests = [chunk.digest for chunk in load.chunks]
            frames = await self._repository.get(digests, _memory(space))
            try:
                parts = await in_cpu_thread(_decoded, load, frames, _memory(space))
            except DamagedChunk:
                await stack.aclose()  # `verify_chunks` may need this budget
                # What was removed meanwhile is not damaged.
                await self._repository.record(Reference(digest=self._digest))
                with suppress(FilestoreError):
                    await self._repository.verify_chunks(digests)
                raise
            if len({id(part.obj) for part in parts}) == 1:
                # Only one of the two memories is needed any more.
                for part in taken:
                    part.shrink(space + objects_size)
            return _LoadedParts(parts, stack.pop_all())


def _decoded(load: _Load, frames: list[memoryview | None], memory: memoryview) -> deque[memoryview]:
    """Return the wanted part of each chunk, as views of `memory` and of `frames`."""
    parts: deque[memoryview] = deque()
    offset = place = 0
    for chunk, data in zip(load.chunks, frames, strict=True):
        if data is None:
            raise DamagedChunk(str(chunk.digest), "its frame is gone or cannot be read")
        content = verified(chunk, data, memory[place : place + chunk.size])
        place += _rounded(chunk.size)
        parts.append(content[max(0, load.wanted.start - offset) : load.wanted.stop - offset])
        offset += chunk.size
    return parts


def _memory(size: int) -> memoryview:
    """Return `size` bytes that are not cleared.

    Clearing memory costs as much as copying, and all of it is written later.
    """
    return np.empty(size, "u1").data


def _rounded(size: int) -> int:
    """Return the offset where the next chunk may start. Codecs are faster at multiples of 64."""
    return -(-size // 64) * 64
