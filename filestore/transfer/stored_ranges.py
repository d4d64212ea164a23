"""Read ranges of a stored file: only the chunks that have a part of them are received, several batches at a time.

    content = StoredRanges(repository, manifest)
    await content.read_into([(offset, memory), ...])

All of them are verified. A few chunks are kept, so that neighbouring ranges that share a chunk receive it once.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from filestore.core.batches import batched_by_size
from filestore.core.manifest import Manifest
from filestore.errors import LimitExceeded
from filestore.format.codec import frame_limit
from filestore.format.zip.read import check_local_header
from filestore.repository.protocol import Repository
from filestore.system.threads import task_group
from filestore.transfer.receive_batch import BatchReceiver
from filestore.transfer.stored_tree import StoredEntry, StoredTree

READ_SIZE = 4 << 20
"""Decoded bytes of the chunks of a batch. A single chunk is at most as large."""
READ_COUNT = 1024
"""Chunks of a batch, if they are tiny."""
BATCHES = 4
"""Batches that are received at the same time."""
KEPT_COUNT = 4
"""Chunks that are kept after a call."""

Piece = tuple[int, memoryview]
"""An offset in the file, and the memory for the content from there on."""


class ReadLimit:
    """How many bytes of chunks may be read together: a range of a few bytes can need a chunk of 4 MiB."""

    def __init__(self, size: int, *, what: str) -> None:
        """`what` names the size in an error."""
        self._limit = size
        self._what = what
        self.taken = 0
        """Bytes of the chunks that were read."""

    def take(self, size: int) -> None:
        """Count chunks before they are read. Raises LimitExceeded."""
        if self.taken + size > self._limit:
            raise LimitExceeded(self._what, self.taken + size, self._limit)
        self.taken += size


class StoredRanges:
    """The content of a stored file, or of one entry of it that is stored as it is, by ranges."""

    def __init__(
        self, repository: Repository, manifest: Manifest, *, within: range | None = None, limit: ReadLimit | None = None
    ) -> None:
        """`within` are the bytes of the file that count. By default, all of them do. `limit` bounds what is read."""
        within = range(manifest.size) if within is None else within
        self.size = len(within)
        self._start = within.start
        self._manifest = manifest
        self._offsets = manifest.offset_table()
        self._batches = BatchReceiver(repository, moved=lambda _: None)
        self._kept: dict[int, bytes] = {}
        self._limit = limit

    def stop_of_chunk(self, offset: int) -> int:
        """Return the end of the chunk that has the byte at `offset`, so that no part of a chunk is asked for."""
        return min(self._end(bisect_right(self._offsets, self._start + offset) - 1) - self._start, self.size)

    async def read_into(self, pieces: Sequence[Piece]) -> None:
        """Fill memory with content. The pieces must be inside the content, and share no byte.

        Each chunk is received once, unless it is kept. Memory for four batches is used besides.

        Raises DamagedChunk, ChunksMissing, StorageError, TransferError; LimitExceeded where it has a limit.
        """
        writer = _Writer(((self._start + offset, memory) for offset, memory in pieces), self)
        absent: list[int] = []
        for number in writer.numbers():
            kept = self._kept.get(number)
            if kept is None:
                absent.append(number)
            else:
                writer.write(number, memoryview(kept), kept=kept)
        if self._limit is not None:
            self._limit.take(sum(map(self._manifest.chunks.size_at, absent)))
        batches = batched_by_size(absent, self._manifest.chunks.size_at, limit=READ_SIZE, count_limit=READ_COUNT)

        async def work() -> None:
            for batch in batches:
                chunks = [self._manifest.chunks[number] for number in batch]
                buffer = memoryview(bytearray(sum(frame_limit(chunk.size) for chunk in chunks)))
                await self._batches.receive(chunks, buffer, _BatchWriter(writer, batch))

        async with task_group() as group:
            for _ in range(min(BATCHES, len(absent))):
                group.create_task(work())
        self._kept = dict([*self._kept.items(), *sorted(writer.kept.items())][-KEPT_COUNT:])

    def chunks_in(self, start: int, stop: int) -> range:
        """Return the numbers of the chunks that have a part of these bytes of the file."""
        return range(bisect_right(self._offsets, start) - 1, bisect_left(self._offsets, stop)) if start < stop else range(0)

    def bounds(self, number: int) -> tuple[int, int]:
        """Return where a chunk begins and ends in the file."""
        return self._offsets[number], self._end(number)

    def _end(self, number: int) -> int:
        return self._offsets[number + 1] if number + 1 < len(self._offsets) else self._manifest.size


async def entry_ranges(
    repository: Repository, tree: StoredTree, entry: StoredEntry, *, limit: ReadLimit | None = None
) -> StoredRanges:
    """Return the content of a file of a stored tree that is not compressed in its zip file. `limit` bounds what is read.

    Raises InvalidArchive, DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    extent = entry.extent
    if extent is None and entry.member_number is not None:
        member = tree.members[entry.member_number]
        head = bytearray(member.head_size)
        await StoredRanges(repository, tree.manifest).read_into([(member.start, memoryview(head))])
        extent = check_local_header(member, head)
    within = range(0) if extent is None else range(extent.start, extent.end)
    return StoredRanges(repository, tree.manifest, within=within, limit=limit)


class _Writer:
    """Copies chunks into the pieces that have a part of them. Threads may call it at the same time."""

    def __init__(self, pieces: Iterable[Piece], content: StoredRanges) -> None:
        self.kept: dict[int, bytes] = {}
        """The last chunks that may be needed again: those of which only a part is wanted, and the last one."""
        self._pieces = sorted((piece for piece in pieces if len(piece[1])), key=lambda piece: piece[0])
        self._starts = [start for start, _ in self._pieces]
        self._content = content
        self._last = content.chunks_in(*self._span(-1))[-1] if self._pieces else None
        self._lock = threading.Lock()

    def numbers(self) -> Iterator[int]:
        """Yield the number of each chunk that is needed, in order."""
        numbers = (number for place in range(len(self._pieces)) for number in self._content.chunks_in(*self._span(place)))
        return (number for number, _ in groupby(numbers))

    def write(self, number: int, content: memoryview, *, kept: bytes | None = None) -> None:
        """Copy a chunk. `kept` is its content if it was kept before, so that it need not be copied to be kept again."""
        start, stop = self._content.bounds(number)
        wanted = 0
        for place in range(max(bisect_right(self._starts, start) - 1, 0), bisect_left(self._starts, stop)):
            piece_start, piece_stop = self._span(place)
            first, last = max(start, piece_start), min(stop, piece_stop)
            if first < last:
                self._pieces[place][1][first - piece_start : last - piece_start] = content[first - start : last - start]
                wanted += last - first
        if wanted < stop - start or number == self._last:
            with self._lock:
                self.kept[number] = bytes(content) if kept is None else kept
                if len(self.kept) > KEPT_COUNT:
                    del self.kept[min(self.kept)]

    def _span(self, place: int) -> tuple[int, int]:
        start, memory = self._pieces[place]
        return start, start + len(memory)


class _BatchWriter:
    """Takes the chunks of one batch for a writer."""

    writes_files = False

    def __init__(self, writer: _Writer, numbers: Sequence[int]) -> None:
        self._writer = writer
        self._numbers = numbers

    def begin(self) -> None:
        pass

    def take(self, number: int, content: memoryview) -> None:
        self._writer.write(self._numbers[number], content)
