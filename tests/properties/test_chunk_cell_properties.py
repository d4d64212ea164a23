"""The picture of a file's chunks: whatever the chunks are, groups keep the sums, and origins are those of a plain comparison."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Chunks, Manifest
from filestore.http.server.routes.page.chunk_cells import (
    NOWHERE,
    PARTS_KEPT,
    Cell,
    CellPart,
    ChunkCells,
    ChunkOrigins,
    Encoding,
    FrameSample,
    Sharing,
    main_encoding,
    runs_of,
)
from filestore.http.server.routes.page.chunk_drawing import BOX_HEIGHT, ROW_HEIGHT, WIDTH, draw

DIGESTS = [chunk_digest(b"%d" % number) for number in range(12)]
SIZES = [1 + 7**number % CHUNK_LIMIT for number in range(12)]

contents = st.lists(st.integers(0, 11), max_size=40)
limits = st.integers(1, 50)


def chunks_of(numbers: Sequence[int]) -> Chunks:
    """Return the chunks of a file."""
    return Manifest.build([Chunk(DIGESTS[number], SIZES[number]) for number in numbers], chunking_version=1).chunks


@given(mine=contents, others=st.lists(contents, max_size=6), data=st.data())
def test_a_chunk_comes_from_the_first_file_that_had_it(mine: list[int], others: list[list[int]], data: st.DataObject) -> None:
    """The files are given in any order. One that was stored later counts only for a chunk that no earlier one has."""
    rank = data.draw(st.integers(0, len(others)))
    origins = ChunkOrigins(chunks_of(mine), rank=rank)
    ranks = [place for place in range(len(others) + 1) if place != rank]
    for place in data.draw(st.permutations(ranks)):
        origins.add(chunks_of(others[ranks.index(place)]), rank=place)

    def expected(number: int) -> int:
        having = [place for place, other in zip(ranks, others, strict=True) if number in other]
        return min(having, key=lambda place: (place > rank, place), default=NOWHERE)

    assert [expected(number) for number in mine] == origins.ranks().tolist()
    assert [number not in mine[:place] for place, number in enumerate(mine)] == origins.is_first.tolist()


def looked_at(cells: ChunkCells, numbers: Sequence[int], limit: int) -> FrameSample:
    """Return what is known of a sample of the frames: those with an odd number are encoded to a half."""
    sample = cells.sample(limit)
    chosen = [numbers[place] for place in sample.tolist()]
    stored = [SIZES[number] // 2 + 1 if number % 2 else SIZES[number] + 8 for number in chosen]
    encodings = [Encoding.ZSTD if number % 2 else Encoding.RAW for number in chosen]
    return FrameSample(sample, np.array(stored, dtype=np.int64), np.array(encodings, dtype=np.uint8))


@given(numbers=contents, limit=limits, sample_limit=limits, data=st.data())
def test_groups_keep_the_sums(numbers: list[int], limit: int, sample_limit: int, data: st.DataObject) -> None:
    """Cells, runs and pieces follow each other without a gap, and their sizes and counts add up to those of the file."""
    cells = ChunkCells(chunks_of(numbers), limit=limit)
    assert sum(SIZES[number] for number in numbers) == cells.size
    ranks = np.array([data.draw(st.integers(NOWHERE, 3)) for _ in numbers], dtype=np.int64)
    sharing = np.where(ranks == NOWHERE, Sharing.ONLY_HERE, ranks % 3 + 1)
    looked = looked_at(cells, numbers, sample_limit)
    stored = cells.stored_sizes(looked)
    groups = cells.cells(ranks, stored, looked)
    assert len(groups) == cells.cell_count <= max(limit, 0)
    for together in (groups, runs_of(groups)):
        check_groups(together, numbers, ranks.tolist(), int(stored.sum()))
    origins = cells.origins(ranks)
    check_origins(origins, numbers, ranks.tolist(), part_count=len(origins))
    pieces = cells.pieces(sharing, stored, groups)
    assert cells.size == sum(piece.size for piece in pieces)
    assert int(stored.sum()) == sum(piece.stored_size for piece in pieces)
    is_first = np.array([number not in numbers[:place] for place, number in enumerate(numbers)], dtype=np.bool_)
    sums = cells.sums(sharing, stored, is_first)
    assert len(set(numbers)) == sum(each.chunk_count for each in sums.values())
    assert sum(SIZES[number] for number in set(numbers)) == sum(each.size for each in sums.values())
    if len(looked.numbers) == len(numbers):
        assert looked.stored_sizes.tolist() == stored.tolist()


def check_groups(groups: Sequence[Cell], numbers: Sequence[int], ranks: Sequence[int], stored_size: int) -> None:
    """Check that groups are the whole file, and that what they say is that of their chunks."""
    place = offset = 0
    for group in groups:
        assert (place, offset) == (group.first, group.offset)
        own = numbers[group.first : group.stop]
        assert (len(own), sum(SIZES[number] for number in own)) == (group.chunk_count, group.size)
        assert len(own) == sum(group.encodings)
        check_origins(group.parts, own, ranks[group.first : group.stop], part_count=group.part_count)
        assert min(group.part_count, PARTS_KEPT) == len(group.parts)
        place, offset = group.stop, group.end
    assert len(numbers) == place
    assert stored_size == sum(group.stored_size for group in groups)


def check_origins(parts: Sequence[CellPart], numbers: Sequence[int], ranks: Sequence[int], *, part_count: int) -> None:
    """Check that these are the largest parts of some chunks by their origins, of which there are `part_count`."""
    counts, sizes = Counter(ranks), Counter[int]()
    for number, rank in zip(numbers, ranks, strict=True):
        sizes[rank] += SIZES[number]
    assert len(counts) == part_count
    assert all((counts[part.rank], sizes[part.rank]) == (part.chunk_count, part.size) for part in parts)
    assert sorted(sizes.values(), reverse=True)[: len(parts)] == [part.size for part in parts]


@given(numbers=contents, limit=limits, data=st.data())
def test_a_sample_has_chunks_of_every_cell(numbers: list[int], limit: int, data: st.DataObject) -> None:
    """It is not larger than its limit, or has one chunk of each cell."""
    cells = ChunkCells(chunks_of(numbers), limit=limit)
    sample_limit = data.draw(limits)
    sample = cells.sample(sample_limit).tolist()
    assert sample == sorted(set(sample))
    assert len(sample) <= max(sample_limit, cells.cell_count)
    if numbers:
        looked = looked_at(cells, numbers, sample_limit)
        groups = cells.cells(np.zeros(len(numbers), dtype=np.int64), cells.stored_sizes(looked), looked)
        assert all(main_encoding(group.encodings) is not Encoding.UNKNOWN for group in groups)


@given(numbers=contents, data=st.data())
def test_shares_of_ranges_are_those_of_their_bytes(numbers: list[int], data: st.DataObject) -> None:
    """A range that begins or ends within a chunk has a part of it."""
    small = [number % 4 for number in numbers]
    cells = ChunkCells(chunks_of(small))
    sharing = np.array([data.draw(st.integers(0, 3)) for _ in small], dtype=np.int64)
    of_bytes = [kind for number, kind in zip(small, sharing.tolist(), strict=True) for _ in range(SIZES[number])]
    start = data.draw(st.integers(0, len(of_bytes)))
    stop = data.draw(st.integers(start, len(of_bytes)))
    [shares] = cells.shares(sharing, [(start, stop)])
    assert tuple(of_bytes[start:stop].count(kind) for kind in Sharing) == shares


BOX = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-([\d.]+)z")


@given(numbers=st.lists(st.integers(0, 11), min_size=1, max_size=200), data=st.data())
def test_the_boxes_fill_the_rows(numbers: list[int], data: st.DataObject) -> None:
    """All boxes are inside of the picture, and together as wide as all rows. None is filled to more than its height."""
    cells = ChunkCells(chunks_of(numbers), limit=data.draw(st.integers(1, 300)))
    sharing = np.array([data.draw(st.integers(0, 3)) for _ in numbers], dtype=np.int64)
    looked = looked_at(cells, numbers, 1000)
    stored = cells.stored_sizes(looked)
    picture = draw(cells.pieces(sharing, stored, cells.cells(sharing - 1, stored, looked)))
    assert set(sharing.tolist()) == set(picture.boxes) == set(picture.filled)
    for paths, highest in ((picture.boxes, BOX_HEIGHT), (picture.filled, BOX_HEIGHT)):
        width = 0.0
        for path in paths.values():
            boxes = [tuple(map(float, found)) for found in BOX.findall(path)]
            assert path == "".join(found.group() for found in BOX.finditer(path))
            for x, y, across, height, back in boxes:
                assert (across, True) == (back, x + across <= WIDTH + 0.1)
                assert height <= highest
                assert y + height <= picture.height + 0.1
                width += across
        assert abs(width - WIDTH * picture.height / ROW_HEIGHT) <= 0.1 * (len(numbers) * 2 + 40)
