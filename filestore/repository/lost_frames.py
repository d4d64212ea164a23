"""Find the chunks whose frames are lost, and remove their rows, so that the next push sends them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from blake3 import blake3

from filestore.core.digest import Digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.core.object_names import ObjectName
from filestore.errors import Busy, StorageError
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.ingest import is_intact
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.buffers import Budget
from filestore.system.threads import in_cpu_thread

READ_ONE_IN = 100
"""One frame of so many is read when a push asks whether its chunk is missing."""
_SLICE = 64
"""The most frames that are read before, or in, one write transaction."""


class LostFrames:
    """What a repository does about frames of a namespace that are absent, damaged or cannot be read."""

    def __init__(self, store: ChunkStore, index: Index, namespace: str, *, budget: Budget, read_only: bool) -> None:
        """With `read_only`, rows are removed only if this process may write."""
        self._store = store
        self._index = index
        self._namespace = namespace
        self._budget = budget
        self._read_only = read_only

    async def forget_among(self, rows: Sequence[ChunkRow]) -> list[Digest]:
        """Look at the frames of live rows, and remove the rows of lost ones. Return their digests.

        The kind and size of each frame is checked, and one in a hundred is read.
        """
        return await self.forget_damaged(await self._suspects(rows))

    async def forget_absent(self, absent: Iterable[Digest]) -> None:
        """Remove the rows of chunks whose frames a reader did not find, or could not read."""
        asked = list(dict.fromkeys(absent))
        if not asked:
            return
        without_row = set(await self._index.missing(self._namespace, asked))
        await self.forget_damaged([digest for digest in asked if digest not in without_row])

    async def forget_damaged(self, suspects: Sequence[Digest]) -> list[Digest]:
        """Remove the rows of those chunks whose frames are absent or damaged. Return their digests.

        A repository that was opened for reading removes them only if this process may write. Otherwise it returns
        `suspects`.
        """
        damaged: list[Digest] = []
        forget = self._forget_objects if self._store.has_object_ids else self._forget_files
        for start in range(0, len(suspects), _SLICE):
            part = suspects[start : start + _SLICE]
            try:
                damaged += await forget(part)
            except (StorageError, Busy):
                if not self._read_only:
                    raise
                damaged += part
        return damaged

    async def _forget_files(self, suspects: Sequence[Digest]) -> list[Digest]:
        async with self._index.transaction(self._namespace) as transaction:
            # Another push may have repaired it since. During a write transaction none can.
            live = await transaction.sizes(self._namespace, suspects)
            damaged = await self.damaged(list(live))
            return await transaction.lose_chunks(self._namespace, [ObjectName(digest) for digest in damaged])

    async def _forget_objects(self, suspects: Sequence[Digest]) -> list[Digest]:
        """Read first: an object store may take long, and writers would wait. A row goes only if it names what was read."""
        rows = await self._index.refreshed_rows(self._namespace, suspects)
        damaged = set(await self.damaged([row.digest for row in rows]))
        if not damaged:
            return []
        async with self._index.transaction(self._namespace) as transaction:
            # A push may have put another object since.
            names = [ObjectName(row.digest, row.object_id) for row in rows if row.digest in damaged]
            return await transaction.lose_chunks(self._namespace, names)

    async def damaged(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests whose frames are absent or damaged. This needs memory for one frame and one chunk."""
        buffer = memoryview(bytearray(FRAME_LIMIT)) if digests else memoryview(b"")
        damaged = []
        for digest in dict.fromkeys(digests):
            (frame,) = await self._store.read_into(self._namespace, [digest], buffer)
            if frame is None or not await in_cpu_thread(is_intact, Frame(digest, frame)):
                damaged.append(digest)
        return damaged

    async def _suspects(self, rows: Sequence[ChunkRow]) -> list[Digest]:
        """Return the chunks whose frames have another size than their rows state, or were read and are not intact."""
        if not rows or self._store.has_object_ids:
            return []
        sizes = await self._store.sizes(self._namespace, [row.digest for row in rows])
        suspects = [row.digest for row, size in zip(rows, sizes, strict=True) if size != row.stored_size]
        if len(suspects) < len(rows):
            suspects += await self._damaged_sample(set(suspects), rows)
        return suspects

    async def _damaged_sample(self, known: set[Digest], rows: Sequence[ChunkRow]) -> list[Digest]:
        sample = {row.digest: row for row in rows if random.random() * READ_ONE_IN < 1 and row.digest not in known}  # noqa: S311
        if not sample:
            return []
        damaged = []
        async with self._budget.take(FRAME_LIMIT + CHUNK_LIMIT):
            buffer = memoryview(bytearray(max(row.stored_size for row in sample.values())))
            for digest, row in sample.items():
                try:
                    (frame,) = await self._store.read_into(self._namespace, [digest], buffer)
                except ValueError:  # it has grown since
                    frame = None
                if frame is None or not await in_cpu_thread(_is_intact, row, frame):
                    damaged.append(digest)
        return damaged


def _is_intact(row: ChunkRow, frame: memoryview) -> bool:
    if row.frame_digest is not None and blake3(frame).digest() == row.frame_digest:
        return True
    return is_intact(Frame(row.digest, frame))
