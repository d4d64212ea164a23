"""Find out what the page about the chunks of a file shows.

It takes a bounded time, whatever is stored: a limited number of other files is read, and of a large file only a part of the
frames is looked at. What the page shows says how much was looked at.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from filestore.core.digest import Digest
from filestore.core.manifest import Chunks
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import (
    Busy,
    ChunksMissing,
    DamagedChunk,
    InvalidArchive,
    InvalidFrame,
    InvalidTensors,
    LimitExceeded,
    NotAnArchive,
)
from filestore.format.codec import HEADER_SIZE, stated_codec
from filestore.http.server.context import RequestContext
from filestore.http.server.descriptors import OpenFrames
from filestore.http.server.manifests import SharedManifests
from filestore.http.server.routes.page.chunk_candidates import Candidates, choose_candidates, read_layouts
from filestore.http.server.routes.page.chunk_cells import (
    NOWHERE,
    Cell,
    CellPart,
    ChunkCells,
    ChunkOrigins,
    Encoding,
    FrameSample,
    Sharing,
    SharingSum,
    encoding_of,
    runs_of,
)
from filestore.http.server.routes.page.chunk_drawing import Picture, draw
from filestore.http.server.stored_trees import OpenedTree, SharedTrees
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.diff_tensors import is_tensor_name
from filestore.transfer.stored_tensors import open_stored
from filestore.transfer.stored_tree import EntryKind

SIZES_LIMIT = 32_768
"""The most frames whose sizes are looked at."""
CODECS_LIMIT = 4096
"""The most frames that are opened to read their codec."""
REGIONS_LIMIT = 20
"""How many files of a directory, or tensors of a file, are shown: those with the most that is new, and then the largest ones."""
_LOOKED_AT = 1000
"""The most files or tensors of which it is found out how much is new: the largest ones."""
NAME_SHOWN = 300
"""Characters of the name of such a part that are kept."""
_SIZES_AT_ONCE = 1024
_OPEN_AT_ONCE = 16


class Region(NamedTuple):
    """A file of the directory, or a tensor of the file."""

    name: str
    start: int
    size: int
    shares: tuple[int, ...]
    """How many bytes of it have each kind of `Sharing`."""


class ChunkReport(NamedTuple):
    """What the page about the chunks of a file shows."""

    record: Record
    chunk_count: int
    distinct_count: int
    """How many of the chunks have different contents."""
    distinct_size: int
    picture: Picture
    rows: list[Cell]
    """Neighbouring chunks of the same origin, in the order of the file."""
    origins: list[CellPart]
    """All chunks by their origins, the largest first."""
    sums: dict[Sharing, SharingSum]
    sharing: dict[int, Sharing]
    """By the places of `candidates`, and NOWHERE: what it means that a chunk comes from there."""
    candidates: Candidates
    read_count: int
    """How many versions have the contents that were compared."""
    damaged_count: int
    """How many could not be compared, because the list of their chunks cannot be read."""
    looked_count: int
    """How many frames were looked at. The sizes of the others are estimated."""
    encodings: dict[Encoding, int]
    """How many of the frames that were looked at are encoded in each way."""
    regions_are: str
    """What the regions are: `files`, `tensors`, or an empty text."""
    regions: list[Region]
    region_count: int
    """How many there are, with those that are not shown."""
    made_at: int
    """In microseconds since 1970."""


class ReportInputs(NamedTuple):
    """What a report is made with. It is used longer than the request that asked for it."""

    manifests: SharedManifests
    trees: SharedTrees
    open_frames: OpenFrames
    reads_frames: bool
    """Whether frames can be opened at little cost. In an object store each one would be fetched."""

    @classmethod
    def of(cls, context: RequestContext) -> ReportInputs:
        """Return what the report of a request is made with."""
        return cls(context.manifests, context.trees, context.open_frames, not context.store.has_object_ids)


async def make_chunk_report(repository: LocalRepository, record: Record, inputs: ReportInputs) -> ChunkReport:
    """Find out what the page about the chunks of a file shows.

    Raises NotFound if the file was removed, InvalidManifest if its manifest is damaged, Busy, StorageError.
    """
    candidates = await choose_candidates(repository, record)
    async with inputs.manifests.reading(repository, record.digest) as layout:
        # Not held while others are read: two reports could wait for each other.
        survey = await in_cpu_thread(_survey, layout.manifest.chunks, candidates.rank)
    read_count = damaged_count = 0
    async for place, other in read_layouts(inputs.manifests, repository, candidates):
        if other is None:
            damaged_count += candidates.version_counts[place]
        else:
            read_count += candidates.version_counts[place]
            await in_cpu_thread(survey.origins.add, other.manifest.chunks, rank=place)
    sample = await _look(repository, survey, inputs)
    regions_are, regions, region_count = await _regions(repository, record, inputs)
    sharing = _sharing_of(candidates, record)
    drawing = await in_cpu_thread(_assemble, survey, sample, sharing, regions)
    return ChunkReport(
        record=record,
        chunk_count=len(survey.cells),
        distinct_count=int(survey.origins.is_first.sum()),
        distinct_size=sum(each.size for each in drawing.sums.values()),
        picture=drawing.picture,
        rows=drawing.rows,
        origins=drawing.origins,
        sums=drawing.sums,
        sharing=sharing,
        candidates=candidates,
        read_count=read_count,
        damaged_count=damaged_count,
        looked_count=len(sample.numbers),
        encodings=drawing.encodings,
        regions_are=regions_are,
        regions=drawing.regions,
        region_count=region_count,
        made_at=time.time_ns() // 1000,
    )


class _Survey(NamedTuple):
    cells: ChunkCells
    origins: ChunkOrigins
    numbers: npt.NDArray[np.int64]
    """The chunks whose frames are looked at."""
    digests: list[Digest]
    sizes: list[int]


def _survey(chunks: Chunks, rank: int) -> _Survey:
    cells = ChunkCells(chunks)
    numbers = cells.sample(SIZES_LIMIT)
    chosen = [chunks[number] for number in numbers.tolist()]
    return _Survey(
        cells, ChunkOrigins(chunks, rank=rank), numbers, [each.digest for each in chosen], [each.size for each in chosen]
    )


async def _look(repository: LocalRepository, survey: _Survey, inputs: ReportInputs) -> FrameSample:
    digests = survey.digests
    stored: list[int] = []
    for start in range(0, len(digests), _SIZES_AT_ONCE):
        stored += await repository.frame_sizes(digests[start : start + _SIZES_AT_ONCE])
    encodings = [encoding_of(size, its) for size, its in zip(survey.sizes, stored, strict=True)]
    if inputs.reads_frames:
        encoded = list({digests[place]: place for place, each in enumerate(encodings) if each is Encoding.ENCODED})
        step = -(-len(encoded) // CODECS_LIMIT) or 1
        codecs = await _codecs(repository, encoded[::step], inputs.open_frames)
        encodings = [codecs.get(digest, each) for digest, each in zip(digests, encodings, strict=True)]
    return FrameSample(survey.numbers, np.array(stored, dtype=np.int64), np.array(encodings, dtype=np.uint8))


async def _codecs(repository: LocalRepository, digests: Sequence[Digest], open_frames: OpenFrames) -> dict[Digest, Encoding]:
    """Return how frames are encoded, by their headers. Those that cannot be read are left out, as all are if files run out."""
    found: dict[Digest, Encoding] = {}
    start = 0
    while start < len(digests) and (count := open_frames.take(min(_OPEN_AT_ONCE, len(digests) - start))):
        together = digests[start : start + count]
        try:
            files = await repository.open(together)
            found |= await in_disk_thread(_read_codecs, together, files)
        finally:
            open_frames.give_back(count)
        start += count
    return found


def _read_codecs(digests: Sequence[Digest], files: Sequence[BinaryIO | None]) -> dict[Digest, Encoding]:
    found: dict[Digest, Encoding] = {}
    for digest, file in zip(digests, files, strict=True):
        if file is not None:
            with file:
                try:
                    found[digest] = Encoding(stated_codec(file.read(HEADER_SIZE), digest=digest))
                except (InvalidFrame, OSError):
                    continue  # a check of the repository tells about it
    return found


def _sharing_of(candidates: Candidates, record: Record) -> dict[int, Sharing]:
    found = {NOWHERE: Sharing.ONLY_HERE}
    for place, other in enumerate(candidates.records):
        is_version = other.full_name == record.full_name
        found[place] = Sharing.SINCE if place > candidates.rank else Sharing.VERSION if is_version else Sharing.OTHER
    return found


class _Drawing(NamedTuple):
    picture: Picture
    rows: list[Cell]
    origins: list[CellPart]
    sums: dict[Sharing, SharingSum]
    encodings: dict[Encoding, int]
    regions: list[Region]


def _assemble(
    survey: _Survey, sample: FrameSample, sharing: dict[int, Sharing], ranges: Sequence[tuple[str, int, int]]
) -> _Drawing:
    cells, origins = survey.cells, survey.origins
    ranks = origins.ranks()
    # The place of NOWHERE, -1, is the last one of the table.
    table = np.array([*(sharing[place] for place in range(len(sharing) - 1)), sharing[NOWHERE]], dtype=np.int64)
    kinds = table[ranks]
    stored = cells.stored_sizes(sample)
    groups = cells.cells(ranks, stored, sample)
    shares = cells.shares(kinds, [(start, start + size) for _, start, size in ranges])
    counts = Counter(sample.encodings.tolist())
    return _Drawing(
        draw(cells.pieces(kinds, stored, groups)),
        runs_of(groups),
        cells.origins(ranks),
        cells.sums(kinds, stored, origins.is_first),
        {each: counts[each] for each in Encoding if counts[each]},
        _chosen_regions([Region(name, start, size, each) for (name, start, size), each in zip(ranges, shares, strict=True)]),
    )


def _chosen_regions(regions: Sequence[Region]) -> list[Region]:
    def weight(region: Region) -> tuple[int, int]:
        return region.shares[Sharing.ONLY_HERE] + region.shares[Sharing.SINCE], region.size

    return sorted(heapq.nlargest(REGIONS_LIMIT, regions, key=weight), key=lambda region: region.start)


async def _regions(
    repository: LocalRepository, record: Record, inputs: ReportInputs
) -> tuple[str, list[tuple[str, int, int]], int]:
    """Return what lies where in a file: what it is called, name, start and size of the largest parts, and how many there are."""
    try:
        if record.kind is Kind.DIRECTORY:
            async with inputs.trees.reading(repository, record.digest) as opened:
                files, count = await in_cpu_thread(_largest_files, opened)
            return "files", _cut(files), count
        if is_tensor_name(record.name):
            weights = await open_stored(repository, record, Reference(id=record.id))
            largest = heapq.nlargest(_LOOKED_AT, weights.tensors.values(), key=lambda tensor: tensor.size)
            tensors = [(each.name, each.offset, each.size) for each in sorted(largest, key=lambda each: each.offset)]
            return "tensors", _cut(tensors), len(weights.tensors)
    except (InvalidTensors, InvalidArchive, NotAnArchive, LimitExceeded, ChunksMissing, DamagedChunk, Busy):
        pass  # the picture can be drawn without it
    return "", [], 0


def _cut(regions: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Return regions with names that can be shown and kept. That of a tensor may have 16 MiB."""
    return [(name[:NAME_SHOWN], start, size) for name, start, size in regions]


def _largest_files(opened: OpenedTree) -> tuple[list[tuple[str, int, int]], int]:
    count = 0
    largest: list[tuple[int, int, str, int]] = []
    for entry in opened.tree.entries(recursive=True):
        if entry.kind is not EntryKind.FILE:
            continue
        count += 1
        if entry.extent is not None and entry.extent.end > entry.extent.start:
            # The count tells files of the same size apart.
            heapq.heappush(largest, (entry.extent.end - entry.extent.start, -count, entry.path, entry.extent.start))
            if len(largest) > _LOOKED_AT:
                heapq.heappop(largest)
    return sorted([(path, start, size) for size, _, path, start in largest], key=lambda each: each[1]), count
