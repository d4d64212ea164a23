"""The chunks of the zip of a tree while it is scanned: those that are cut, and those that still hold from an earlier zip."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Self

from filestore.core.digest import DIGEST_AND_NUMBER
from filestore.core.manifest import Chunk, Chunks
from filestore.format.zip.chunker import KnownChunks, RecalledCut, Segment, TreeChunker
from filestore.transfer.sources.file import PACKED_SIZE, unpacked
from filestore.transfer.sources.tree_fingerprint import HeldChunk


class HeldChunks(NamedTuple):
    """The chunks of an earlier zip that still hold, as columns, in order."""

    starts: array[int]
    """Their offsets in the zip now."""
    sizes: array[int]
    packed: bytearray

    @classmethod
    def of(cls, chunks: Chunks, held: Iterator[HeldChunk]) -> Self:
        """Collect those of the `chunks` of the earlier zip that `held_chunks` yields."""
        found = cls(array("Q"), array("Q"), bytearray())
        for place, start, size in held:
            found.starts.append(start)
            found.sizes.append(size)
            found.packed.extend(chunks.encoded[place * PACKED_SIZE : (place + 1) * PACKED_SIZE])
        return found


class SegmentChunks:
    """The packed chunks of each segment of a `TreeChunker`."""

    def __init__(self, chunker: TreeChunker) -> None:
        self._chunker = chunker
        self._rows = [bytearray() for _ in chunker.segments]
        self._recalled: dict[int, bytearray] = {}
        """The packed chunks that were given to `TreeChunker.recall`, for each segment."""

    def __iter__(self) -> Iterator[Chunk]:
        """Yield all chunks, in the order of the zip."""
        return chain.from_iterable(map(unpacked, self._rows))

    def row(self, number: int) -> bytearray:
        """Return the packed chunks of a segment, which a window of it fills."""
        return self._rows[number]

    def hold(self, held: HeldChunks) -> Iterator[Segment]:
        """Skip the segments of which all chunks still hold, and yield them. Let the chunker recall chunks of the others."""
        stop = 0
        for number, segment in enumerate(self._chunker.segments):
            start, stop = stop, bisect_left(held.starts, segment.start + segment.size, lo=stop)
            if start == stop:
                continue
            chunks = held.packed[start * PACKED_SIZE : stop * PACKED_SIZE]
            if sum(held.sizes[start:stop]) == segment.size:
                self._chunker.skip(number)
                self._rows[number] += chunks
                yield segment
            else:
                self._chunker.recall(number, KnownChunks(held.starts[start:stop], held.sizes[start:stop]))
                self._recalled[number] = chunks

    def put(self, number: int, chunks: Sequence[Chunk]) -> None:
        """Skip a segment whose chunks are known. The checksums of its entries must be known."""
        self._chunker.skip(number)
        self._rows[number] = bytearray().join(DIGEST_AND_NUMBER.pack(*chunk) for chunk in chunks)

    def take_recalled(self, cut: RecalledCut) -> int:
        """Take the chunks of a cut that were recalled, and return their size."""
        chunks = self._recalled[cut.segment][cut.chunks.start * PACKED_SIZE : cut.chunks.stop * PACKED_SIZE]
        self._rows[cut.segment] += chunks
        return sum(chunk.size for chunk in unpacked(chunks))
