"""Read the frames of rows, and judge them.

A frame whose BLAKE3 is the one that its row states is intact. This is checked at the speed of the disk. A frame without
such a digest is decoded, and gets one if it is intact. A raw frame needs none: to verify its content costs the same as
to hash the frame.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from filestore.core.digest import Digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import InvalidFrame
from filestore.format.codec import FRAME_LIMIT, Decoder, Frame, decoded_size
from filestore.repository.index.protocol import ChunkRow
from filestore.repository.ingest import frame_digest
from filestore.repository.maintenance.findings import FindingKind
from filestore.repository.maintenance.pace import Pace
from filestore.repository.maintenance.passes import WINDOW_SIZE
from filestore.repository.stores.protocol import ChunkStore, FrameProblem, FrameState
from filestore.system.threads import task_group

READERS = 4
"""Frames that are read at the same time. Each needs 10 MiB of memory."""
_GROUP_SIZE = 4 << 20
_GROUP_COUNT = 256
"""One thread reads frames of about this size, and at most so many, before it takes the next ones."""

_KINDS = {
    FrameProblem.MISSING: FindingKind.FRAME_MISSING,
    FrameProblem.NO_FILE: FindingKind.FRAME_NO_FILE,
    FrameProblem.UNREADABLE: FindingKind.FRAME_UNREADABLE,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the bytes of a frame say about the frame and its row."""

    row: ChunkRow
    kind: FindingKind | None = None
    """None if both are right."""
    detail: str = ""
    stored_size: int = 0
    right_row: ChunkRow | None = None
    """What the row should be, if it is not. For an intact frame, it may only add the digest of the frame."""


def judge_state(row: ChunkRow, state: FrameState) -> Verdict:
    """Judge a frame by its size and its kind of file. If the size is wrong, the frame may still be intact."""
    if state.problem is not None:
        return Verdict(row, _KINDS[state.problem], state.reason)
    if state.size > FRAME_LIMIT:
        return Verdict(
            row, FindingKind.FRAME_GROWN, f"it has {state.size} bytes, and a frame has at most {FRAME_LIMIT}", state.size
        )
    if state.size != row.stored_size:
        return _wrong_size(row, state.size)
    return Verdict(row, stored_size=state.size)


def judge_frame(row: ChunkRow, data: memoryview, decoder: Decoder, scratch: memoryview) -> Verdict:
    """Judge a frame by its bytes. `decoder` and `scratch` are used only if its digest is unknown or wrong."""
    size = len(data)
    is_known = row.frame_digest is not None and size == row.stored_size and blake3(data).digest() == row.frame_digest
    try:
        content_size = (
            decoded_size(data, digest=row.digest) if is_known else len(decoder.decode(Frame(row.digest, data), scratch))
        )
    except InvalidFrame as error:
        if size != row.stored_size:
            return _wrong_size(row, size)
        reason = "all its bytes are zero" if size and not any(data) else error.reason
        return Verdict(row, FindingKind.FRAME_CHANGED, reason, size)
    right = ChunkRow(row.digest, content_size, size, row.frame_digest if is_known else _frame_digest(data, row))
    if (right.size, right.stored_size) != (row.size, row.stored_size):
        states = f"{row.size} bytes of content in {row.stored_size} bytes"
        detail = f"its row states {states}, and its frame has {content_size} in {size}"
        return Verdict(row, FindingKind.ROW_WRONG, detail, size, right)
    if row.frame_digest is not None and not is_known:
        return Verdict(row, FindingKind.ROW_WRONG, "its frame is intact, but its row states another digest of it", size, right)
    return Verdict(row, stored_size=size, right_row=None if right == row else right)


class FrameReader:
    """Reads frames in several threads, with a fixed amount of memory."""

    def __init__(self, store: ChunkStore, *, count: int = READERS, rate: float | None = None) -> None:
        """`rate` limits the bytes per second."""
        self.window_size = WINDOW_SIZE if not rate else int(min(WINDOW_SIZE, max(_GROUP_SIZE, rate)))
        """The bytes that are read between two saves of the place: about a second at a low rate."""
        self._store = store
        self._pace = Pace(rate)
        self._benches: asyncio.LifoQueue[_Bench] = asyncio.LifoQueue()
        for _ in range(count):
            self._benches.put_nowait(_Bench())

    async def read(self, namespace: str, rows: Sequence[ChunkRow]) -> list[Verdict]:
        """Read the frames of `rows`, and return a verdict for each, in their order."""
        async with task_group() as group:
            tasks = [group.create_task(self._read_group(namespace, part)) for part in _groups(rows)]
        return [verdict for task in tasks for verdict in task.result()]

    async def _read_group(self, namespace: str, rows: Sequence[ChunkRow]) -> list[Verdict]:
        by_digest = {row.digest: row for row in rows}
        bench = await self._benches.get()
        try:
            await self._pace.take(sum(row.stored_size for row in rows))
            results = await self._store.read_each(
                namespace, list(by_digest), bench.buffer, lambda digest, data: bench.judge(by_digest[digest], data)
            )
        finally:
            self._benches.put_nowait(bench)
        return [
            judge_state(row, result) if isinstance(result, FrameState) else result
            for row, result in zip(by_digest.values(), results, strict=True)
        ]


class _Bench:
    """The memory of one reader."""

    def __init__(self) -> None:
        self.buffer = memoryview(mmap.mmap(-1, FRAME_LIMIT))
        self._scratch = memoryview(mmap.mmap(-1, CHUNK_LIMIT))
        self._decoder = Decoder()

    def judge(self, row: ChunkRow, data: memoryview) -> Verdict:
        return judge_frame(row, data, self._decoder, self._scratch)


def _groups(rows: Sequence[ChunkRow]) -> Iterator[Sequence[ChunkRow]]:
    start = size = 0
    for end, row in enumerate(rows):
        if size >= _GROUP_SIZE or end - start >= _GROUP_COUNT:
            yield rows[start:end]
            start, size = end, 0
        size += row.stored_size
    if start < len(rows):
        yield rows[start:]


def _frame_digest(data: memoryview, row: ChunkRow) -> Digest | None:
    return frame_digest(data) if row.frame_digest is None else Digest(blake3(data).digest())


def _wrong_size(row: ChunkRow, size: int) -> Verdict:
    kind = FindingKind.FRAME_SHORT if size < row.stored_size else FindingKind.FRAME_GROWN
    return Verdict(row, kind, f"it has {size} bytes, and its row states {row.stored_size}", size)
