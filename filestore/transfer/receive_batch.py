"""Receive one batch of chunks, verify it, and hand on its content: in the process of a fetch, or in a worker process of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from filestore.core.digest import Buffer, Digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk
from filestore.errors import ChunksMissing, DamagedChunk, FilestoreError, InvalidBatch, InvalidFrame
from filestore.format.codec import CheckedFrame, Decoder, Frame, check_frame, frame_limit
from filestore.repository.protocol import VERIFY_LIMIT, Moved, Repository
from filestore.system.metrics import Stage, part, span
from filestore.system.threads import in_cpu_thread, per_thread

_decoder = per_thread(Decoder)
scratch = per_thread(lambda: memoryview(bytearray(CHUNK_LIMIT)))
"""Memory for one chunk. Each thread has its own."""


def verified(chunk: Chunk, frame: memoryview, memory: memoryview | None = None) -> memoryview:
    """Decode and verify a frame, and return the content of its chunk.

    The content of a raw frame is a view of `frame`. Other content is a view of `memory`, which has at least the size of
    the chunk. Without `memory`, it is a view of memory that the next call in the same thread overwrites. Raises
    DamagedChunk.
    """
    checked = _checked(chunk, frame)
    with span(Stage.VERIFY, chunk.size):
        return _decoded(checked, _decoder(), scratch() if memory is None else memory)


def _checked(chunk: Chunk, frame: memoryview) -> CheckedFrame:
    """Check all of a frame but its content. Raises DamagedChunk."""
    digest, size = chunk
    try:
        checked = check_frame(Frame(digest, frame))
    except InvalidFrame as error:
        raise DamagedChunk(str(digest), error.reason) from None
    # Before it is decoded, since the memory may be only as large as the manifest says.
    if checked.size != size:
        raise DamagedChunk(str(digest), f"its frame decodes to {checked.size} bytes and the manifest says {size}")
    return checked


def _decoded(checked: CheckedFrame, decoder: Decoder, memory: memoryview) -> memoryview:
    try:
        return decoder.decode_checked(checked, memory)
    except InvalidFrame as error:
        raise DamagedChunk(str(checked.digest), error.reason) from None


class BatchWriter(Protocol):
    """Takes the verified content of the chunks of one batch. Its methods block, so they are called in threads."""

    writes_files: bool
    """Whether `take` is measured as writing."""

    def begin(self) -> None:
        """Raise an error if nothing may be written now. Each thread calls it before it writes."""

    def take(self, number: int, content: memoryview) -> None:
        """Take the content of the chunk with this number in the batch. The memory is valid during the call only.

        Each chunk is taken once, in the order of the batch.
        """


class BatchReceiver:
    """Receives batches from a repository, several at a time.

    A frame that is damaged is received once more, because a bit may have flipped on the way. If it is damaged again, the
    repository is asked to verify the chunks of its batch. It then treats damaged chunks as missing, so that the next push of
    the file sends them again.
    """

    def __init__(self, repository: Repository, *, moved: Moved) -> None:
        """`moved` is called with the bytes of frames that just arrived, a negative number if some of them do not count."""
        self._repository = repository
        self._moved = moved

    async def receive(
        self,
        chunks: Sequence[Chunk],
        buffer: memoryview,
        writer: BatchWriter,
        *,
        known: Sequence[Buffer | None] = (),
        after: asyncio.Event | None = None,
    ) -> int:
        """Give the content of each chunk to `writer`, in order. Return the bytes of the frames that were received.

        `buffer` has space for the frames. `known` has the verified content of those chunks that need not be received. It is
        empty if all of them must be. Nothing is written before `after` is set.

        Raises DamagedChunk, ChunksMissing, TransferError, and what the writer raises.
        """
        known = known or [None] * len(chunks)
        wanted = [chunk for chunk, content in zip(chunks, known, strict=True) if content is None]
        frames = await self.get(wanted, buffer)
        if after is not None:
            await after.wait()
        return sum(map(len, frames)) + await self._hand_on(chunks, frames, known, writer)

    async def get(self, chunks: Sequence[Chunk], buffer: memoryview) -> list[memoryview]:
        """Receive the frames of `chunks` into `buffer`, unverified. Raises ChunksMissing if the repository lacks one of them."""
        if not chunks:
            return []
        digests = [chunk.digest for chunk in chunks]
        frames = []
        async with self.mending(digests):
            received = await self._repository.get(digests, buffer, moved=self._moved)
        for digest, frame in zip(digests, received, strict=True):
            if frame is None:
                raise ChunksMissing(str(digest))
            frames.append(frame)
        return frames

    async def _hand_on(
        self, chunks: Sequence[Chunk], frames: list[memoryview], known: Sequence[Buffer | None], writer: BatchWriter
    ) -> int:
        """Verify the frames, and give all content to the writer. Return the bytes of the frames that were received again."""
        waiting = iter(frames)
        arrived = [next(waiting) if content is None else None for content in known]
        size, start, received_again = 0, 0, -1
        while True:
            start, damage = await in_cpu_thread(_take_each, chunks, arrived, known, writer, start)
            if damage is None:
                return size
            if start == received_again:
                async with self.mending([chunk.digest for chunk in chunks]):
                    raise damage
            received_again = start
            arrived[start] = frame = await self._get_again(chunks[start])
            size += len(frame)

    async def _get_again(self, chunk: Chunk) -> memoryview:
        [frame] = await self.get([chunk], memoryview(bytearray(frame_limit(chunk.size))))
        return frame

    @asynccontextmanager
    async def mending(self, digests: Sequence[Digest]) -> AsyncIterator[None]:
        """If the block raises DamagedChunk or InvalidBatch, ask the repository to verify these chunks.

        The repository then treats damaged chunks as missing, so that the next push of the file sends them again. The
        error is raised all the same. InvalidBatch becomes DamagedChunk if the repository finds damage: a frame may have
        grown, so that the batch is larger than its chunks can be.
        """
        try:
            yield
        except (DamagedChunk, InvalidBatch) as error:
            damaged: list[Digest] = []
            with suppress(FilestoreError):
                for start in range(0, len(digests), VERIFY_LIMIT):
                    damaged += await self._repository.verify_chunks(digests[start : start + VERIFY_LIMIT])
            if damaged and isinstance(error, InvalidBatch):
                raise DamagedChunk(str(damaged[0]), "its frame is not that of this chunk") from error
            raise


def _take_each(
    chunks: Sequence[Chunk],
    frames: Sequence[memoryview | None],
    known: Sequence[Buffer | None],
    writer: BatchWriter,
    start: int,
) -> tuple[int, DamagedChunk | None]:
    """Give the writer the verified content of each chunk from the number `start` on.

    Return the number of the first chunk whose frame is damaged, and its damage.
    """
    writer.begin()
    decoder, memory = _decoder(), scratch()
    damage = None
    checked: list[CheckedFrame | None] = []
    # One span for all, because a batch may have thousands of small chunks.
    with span(Stage.VERIFY) as verifying:
        try:
            for number in range(start, len(chunks)):
                frame = frames[number]
                checked.append(None if frame is None else _checked(chunks[number], frame))
        except DamagedChunk as error:
            # The chunks before it are taken first.
            damage = error
        for number, found in enumerate(checked, start):
            content = known[number]
            if found is not None:
                try:
                    content = _decoded(found, decoder, memory)
                except DamagedChunk as error:
                    return number, error
                verifying.add(len(content))
            if content is not None:
                # The content of a chunk is written while it is in the processor's cache.
                started = time.perf_counter()
                writer.take(number, memoryview(content))
                if writer.writes_files:
                    part(Stage.WRITE, len(content), time.perf_counter() - started)
    return start + len(checked), damage
