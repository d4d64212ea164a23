"""Find out where the chunks of a stored file come from, and group them to cells that a picture can show.

Nothing here reads or waits. A file of 1.8 million chunks, which is the most, takes less than 100 bytes for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import Chunks
from filestore.format.codec import HEADER_SIZE, Codec

CELLS_LIMIT = 512
"""The most cells of a picture. Two colours in each are 80 KB of HTML."""
PARTS_KEPT = 3
"""The most origins of a cell that are kept, of which there may be hundreds."""
NOWHERE = -1
"""The rank of a file that does not exist: no other file has the chunk."""
_ADDED_AT_ONCE = 1 << 17

_Keys = npt.NDArray[np.uint64]
_Ints = npt.NDArray[np.int64]
_ENTRY = np.dtype([("key", ">u8"), ("rest", f"V{DIGEST_SIZE - 8}"), ("size", "<u4")])
"""An entry of a manifest. The key is the first 8 bytes of the digest, which tell all chunks of a namespace apart."""


class Sharing(IntEnum):
    """Which stored files have a chunk, besides the one that the picture is of.

    ONLY_HERE: none. It is new with this version.
    SINCE: one that was stored later. It is new with this version.
    VERSION: an earlier version of the same name.
    OTHER: a file with another name that was stored earlier.
    """

    ONLY_HERE = 0
    SINCE = 1
    VERSION = 2
    OTHER = 3


class Encoding(IntEnum):
    """How the frame of a chunk is encoded, as far as it is known.

    The first ones are those of `Codec`. ENCODED: by a codec that saves space, of which only the size of the frame is known.
    UNKNOWN: nobody has looked at the frame. MISSING: the frame is gone.
    """

    RAW = Codec.RAW
    ZSTD = Codec.ZSTD
    PLANES2_ZSTD = Codec.PLANES2_ZSTD
    PLANES4_ZSTD = Codec.PLANES4_ZSTD
    ENCODED = 4
    UNKNOWN = 5
    MISSING = 6


class ChunkOrigins:
    """For each chunk of a file, which other file had it first.

    The files that are compared have ranks, in the order in which they were stored.
    """

    def __init__(self, chunks: Chunks, *, rank: int) -> None:
        """`rank` is that of the file with these `chunks`."""
        self._rank = rank
        self._unique, first, self._places = np.unique(_keys(chunks), return_index=True, return_inverse=True)
        none = np.iinfo(np.int32).max
        self._none = none
        self._earlier = np.full(len(self._unique), none, dtype=np.int32)
        self._later = np.full(len(self._unique), none, dtype=np.int32)
        self.is_first = np.zeros(len(chunks), dtype=np.bool_)
        """Whether no chunk before it in the file has the same content."""
        self.is_first[first] = True

    def add(self, chunks: Chunks, *, rank: int) -> None:
        """Note the chunks of another file. The order of the calls does not matter."""
        if not len(self._unique):
            return
        ranks = self._earlier if rank < self._rank else self._later
        for start in range(0, len(chunks), _ADDED_AT_ONCE):
            # In order, a look-up is many times as fast.
            keys = np.unique(_keys(chunks.between(start, start + _ADDED_AT_ONCE)))
            places = np.minimum(np.searchsorted(self._unique, keys), len(self._unique) - 1)
            found = places[self._unique[places] == keys]
            ranks[found] = np.minimum(ranks[found], rank)

    def ranks(self) -> _Ints:
        """Return, for each chunk of the file, the rank of the first file that had it, or of the first one that got it later.

        It is NOWHERE for a chunk that no other file has.
        """
        found = np.where(self._earlier < self._none, self._earlier, self._later)
        found[found == self._none] = NOWHERE
        return found[self._places].astype(np.int64)


class FrameSample(NamedTuple):
    """What is known about the frames of some chunks."""

    numbers: _Ints
    """The numbers of their chunks in the file."""
    stored_sizes: _Ints
    """0 for one that is missing."""
    encodings: npt.NDArray[np.uint8]


class CellPart(NamedTuple):
    """The chunks of a cell that have the same origin."""

    rank: int
    chunk_count: int
    size: int


class Cell(NamedTuple):
    """Neighbouring chunks of a file, or one chunk."""

    first: int
    """The number of its first chunk."""
    chunk_count: int
    offset: int
    size: int
    stored_size: int
    """What its frames take, each time that one occurs. An estimate, unless all were looked at."""
    parts: tuple[CellPart, ...]
    """By origin, the largest first, and no more than `PARTS_KEPT`."""
    part_count: int
    """How many origins its chunks have."""
    encodings: tuple[int, ...]
    """How many of its chunks have each `Encoding`."""

    @property
    def stop(self) -> int:
        """The number of the first chunk after it."""
        return self.first + self.chunk_count

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.size


class Piece(NamedTuple):
    """A part of the picture with one colour. The pieces of a cell are neighbours."""

    sharing: Sharing
    size: int
    stored_size: int
    encoding: Encoding
    """The one that most of its cell has."""


class SharingSum(NamedTuple):
    """The chunks of a file with one kind of sharing, each content counted once."""

    chunk_count: int
    size: int
    stored_size: int


class ChunkCells:
    """The chunks of a file in groups, with their origins and what is known about their frames."""

    def __init__(self, chunks: Chunks, *, limit: int = CELLS_LIMIT) -> None:
        """`limit` is the most cells. A file of fewer chunks has one for each."""
        self._sizes = chunks.size_array().astype(np.int64) if len(chunks) else np.zeros(0, np.int64)
        self._ends = np.cumsum(self._sizes)
        self.size = int(self._ends[-1]) if len(chunks) else 0
        if len(chunks) <= limit:
            self._cells = np.arange(len(chunks), dtype=np.int64)
        else:
            middles = self._ends - self._sizes + self._sizes // 2
            _, self._cells = np.unique(middles * limit // self.size, return_inverse=True)
        self.cell_count = int(self._cells[-1]) + 1 if len(chunks) else 0
        self._starts = np.searchsorted(self._cells, np.arange(self.cell_count))

    def __len__(self) -> int:
        return len(self._sizes)

    def sample(self, limit: int) -> _Ints:
        """Return the numbers of at most `limit` chunks, or one of each cell if that is more: all, or some of each cell."""
        in_cell = np.arange(len(self)) - self._starts[self._cells]
        counts = np.bincount(self._cells, minlength=self.cell_count)
        if len(self) <= limit:
            return np.arange(len(self), dtype=np.int64)
        steps = -(-counts // max(limit // self.cell_count, 1))
        return np.flatnonzero(in_cell % steps[self._cells] == 0).astype(np.int64)

    def stored_sizes(self, sample: FrameSample) -> _Ints:
        """Return what the frame of each chunk takes. Where it is not known, it is estimated by the others of the cell."""
        is_there = sample.stored_sizes > 0
        numbers, stored = sample.numbers[is_there], sample.stored_sizes[is_there]
        cells = self._cells[numbers]
        known = np.bincount(cells, weights=self._sizes[numbers], minlength=self.cell_count)
        kept = np.bincount(cells, weights=stored, minlength=self.cell_count)
        share = kept.sum() / known.sum() if len(numbers) else 1.0
        shares = np.divide(kept, known, out=np.full(self.cell_count, share), where=known > 0)
        estimated: _Ints = np.rint(self._sizes * shares[self._cells]).astype(np.int64)
        estimated[sample.numbers] = sample.stored_sizes
        return estimated

    def cells(self, ranks: _Ints, stored_sizes: _Ints, sample: FrameSample) -> list[Cell]:
        """Return the cells. `ranks` is what `ChunkOrigins.ranks` returns."""
        stored = np.bincount(self._cells, weights=stored_sizes, minlength=self.cell_count).astype(np.int64)
        encodings = np.full(len(self), Encoding.UNKNOWN, dtype=np.int64)
        encodings[sample.numbers] = sample.encodings
        kinds = len(Encoding)
        table = np.bincount(self._cells * kinds + encodings, minlength=self.cell_count * kinds).reshape(-1, kinds)
        parts = self._parts(ranks)
        cells = []
        for number in range(self.cell_count):
            first = int(self._starts[number])
            stop = int(self._starts[number + 1]) if number + 1 < self.cell_count else len(self)
            offset = int(self._ends[first] - self._sizes[first])
            size = int(self._ends[stop - 1]) - offset
            kept = parts[number][:PARTS_KEPT]
            counts = tuple(table[number].tolist())
            cells.append(Cell(first, stop - first, offset, size, int(stored[number]), kept, len(parts[number]), counts))
        return cells

    def origins(self, ranks: _Ints) -> list[CellPart]:
        """Return the chunks of the whole file by their origins, the largest first. `ranks` is as for `cells`."""
        found, inverse = np.unique(ranks, return_inverse=True)
        counts = np.bincount(inverse, minlength=len(found))
        sizes = np.bincount(inverse, weights=self._sizes, minlength=len(found))
        parts = map(CellPart, found.tolist(), counts.tolist(), map(int, sizes.tolist()))
        return sorted(parts, key=lambda part: -part.size)

    def sums(self, sharing: _Ints, stored_sizes: _Ints, is_first: npt.NDArray[np.bool_]) -> dict[Sharing, SharingSum]:
        """Return what each kind of sharing has. `sharing` has the one of each chunk."""
        found = {}
        for kind in Sharing:
            chosen = (sharing == kind) & is_first
            size, stored = self._sizes[chosen].sum(), stored_sizes[chosen].sum()
            found[kind] = SharingSum(int(chosen.sum()), int(size), int(stored))
        return found

    def pieces(self, sharing: _Ints, stored_sizes: _Ints, cells: Sequence[Cell]) -> list[Piece]:
        """Return the pieces of the picture, in the order of the file. Their sizes add up to that of the file."""
        kinds = len(Sharing)
        places = self._cells * kinds + sharing
        count = self.cell_count * kinds
        sizes = np.bincount(places, weights=self._sizes, minlength=count).astype(np.int64)
        stored = np.bincount(places, weights=stored_sizes, minlength=count).astype(np.int64)
        found = []
        for place in np.flatnonzero(sizes).tolist():
            cell, kind = divmod(place, kinds)
            found.append(Piece(Sharing(kind), int(sizes[place]), int(stored[place]), main_encoding(cells[cell].encodings)))
        return found

    def shares(self, sharing: _Ints, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
        """Return, for each range of the file, how many bytes of it each kind of sharing has."""
        sums = []
        for kind in Sharing:
            is_kind = sharing == kind
            before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sizes * is_kind)])
            sums.append([self._until(before, is_kind, stop) - self._until(before, is_kind, start) for start, stop in ranges])
        return list(zip(*sums, strict=True))

    def _until(self, before: _Ints, is_kind: npt.NDArray[np.bool_], offset: int) -> int:
        """Return how many bytes before `offset` are of a kind. `before` has them for the start of each chunk."""
        number = int(np.searchsorted(self._ends, offset, side="right"))
        if number >= len(self):
            return int(before[-1])
        start = int(self._ends[number] - self._sizes[number])
        return int(before[number]) + (offset - start) * bool(is_kind[number])

    def _parts(self, ranks: _Ints) -> list[tuple[CellPart, ...]]:
        kinds = int(ranks.max(initial=NOWHERE)) + 2
        codes, inverse = np.unique(self._cells * kinds + (ranks + 1), return_inverse=True)
        counts = np.bincount(inverse, minlength=len(codes))
        sizes = np.bincount(inverse, weights=self._sizes, minlength=len(codes))
        parts: list[list[CellPart]] = [[] for _ in range(self.cell_count)]
        for code, count, size in zip(codes.tolist(), counts.tolist(), sizes.tolist(), strict=True):
            cell, rank = divmod(code, kinds)
            parts[cell].append(CellPart(rank - 1, count, int(size)))
        return [tuple(sorted(each, key=lambda part: -part.size)) for each in parts]


def main_encoding(counts: Sequence[int]) -> Encoding:
    """Return the encoding that most chunks have, of those that were looked at."""
    known = [counts[each] if each is not Encoding.UNKNOWN else 0 for each in Encoding]
    return Encoding(known.index(max(known))) if any(known) else Encoding.UNKNOWN


def encoding_of(size: int, stored_size: int) -> Encoding:
    """Return what the size of a frame says about the codec: a frame that saves nothing is raw, and all others are smaller."""
    if not stored_size:
        return Encoding.MISSING
    return Encoding.RAW if stored_size == size + HEADER_SIZE else Encoding.ENCODED


def runs_of(cells: Sequence[Cell]) -> list[Cell]:
    """Join neighbouring cells of which all chunks have the same origin."""
    runs: list[Cell] = []
    for cell in cells:
        last = runs[-1] if runs else None
        if last is None or cell.part_count != 1 or last.part_count != 1 or cell.parts[0].rank != last.parts[0].rank:
            runs.append(cell)
            continue
        count, size = last.chunk_count + cell.chunk_count, last.size + cell.size
        runs[-1] = last._replace(
            chunk_count=count,
            size=size,
            stored_size=last.stored_size + cell.stored_size,
            parts=(CellPart(cell.parts[0].rank, count, size),),
            encodings=tuple(map(sum, zip(last.encodings, cell.encodings, strict=True))),
        )
    return runs


def _keys(chunks: Chunks) -> _Keys:
    return np.frombuffer(chunks.encoded, dtype=_ENTRY)["key"].astype(np.uint64)
