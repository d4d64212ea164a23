"""Download verified chunks into a sink, and reuse local data first.

`fetch` and `fetch_tree` share this. A sink is a staging file or folder. It takes verified content at its offset in the
file, in almost any order. There are two kinds of local data: the content that an interrupted fetch left in the sink,
and the content of seeds, such as another version of the same file on this machine. Local data is verified by its
digests. The push cache is not used, since it is not verified.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.progress import Progress, Report, without_repeats
from filestore.errors import SourceError
from filestore.repository.protocol import Repository
from filestore.system.buffers import BufferPool
from filestore.system.threads import in_cpu_thread, in_disk_thread, task_group
from filestore.transfer.parallelism import Parallelism, limits_of
from filestore.transfer.partial_file import PartialFile
from filestore.transfer.places import Matches, Place, Places, PlaceTable, find_matches
from filestore.transfer.receive_batch import BatchReceiver, scratch
from filestore.transfer.receive_job import ReceiveJob
from filestore.transfer.schedule import (
    DEFAULT_OPTIONS,
    Batch,
    TransferOptions,
    asked_first,
    batches_by_size,
    long_extents,
    ordered_chains,
    own_batches,
    parallelism_of,
    round_robin,
    sized_for,
)
from filestore.transfer.seeds import Seed
from filestore.transfer.sinks.protocol import Ordering, Sink
from filestore.transfer.sources.file import WINDOW_SIZE, Source, scan_and_hash
from filestore.transfer.worker_batches import SharedPlace, WorkerBatches
from filestore.transfer.workers import worker_pool

KEPT_LIMIT = 16 << 20
"""Bytes that `content` keeps in memory, so that they are not received twice."""
KEPT_OBJECT_SIZE = 256
"""Bytes that a chunk takes there besides its content."""


class Receiver:
    """The state of one fetch: its counters, and the places that are not filled yet.

    Call `content` first, if a part must be known before there is a sink. Then call `reuse`, then `download`.
    """

    def __init__(
        self,
        repository: Repository,
        manifest: Manifest,
        report: Report | None,
        *,
        seeds: Sequence[Seed] = (),
        options: TransferOptions = DEFAULT_OPTIONS,
    ) -> None:
        """`content` reads chunks from `seeds` before it asks the repository. The caller closes them."""
        self.moved = 0
        """Encoded bytes of the frames that were received."""
        self.reused = 0
        """Decoded bytes that were on this machine already."""
        self.reused_from: dict[Path, int] = {}
        """The part of these bytes that came from each file or folder with a path."""
        self.is_whole = False
        """The target has the whole content already."""
        self._repository = repository
        self._manifest = manifest
        self._report = report and without_repeats(report)
        self._given_options = options
        self._options = options = sized_for(manifest.size, options)
        self._batches = BatchReceiver(repository, moved=self._count_moved)
        self._own_count = own_batches(parallelism_of(manifest.size, limits_of(repository), options), options)
        self._buffers = BufferPool(count=self._own_count, size=options.batch_size)
        self._sink: Sink | None = None
        self._chunks = self._table = PlaceTable(manifest)
        """All chunks, and the places that the sink needs."""
        self._missing_size = 0
        self._kept: dict[int, bytes] = {}
        self._kept_size = 0
        self._ahead = bytearray(len(manifest.chunks))
        """Which chunks were received by `content`, by their numbers."""
        self._seeds = seeds
        self._seeded: list[_SeedMatches] = []
        self._reused_by: dict[int, int] = {}
        self._seed_lock = threading.Lock()
        self._read = self._written = self._under_way = self._done = 0
        self._checked = self._to_check = 0
        self._unsynced = 0
        self._syncing = asyncio.Lock()
        self.report_progress()

    def note_whole(self) -> None:
        """Note that the whole content is on this machine already."""
        self.is_whole = True
        self.reused = self._manifest.size
        self.report_progress()

    async def scan(self, source: Source) -> Manifest:
        """Cut and hash the file or the tree that this fetch will replace. Raises SourceChanged, SourceUnreadable."""
        with self._checking(source.size):
            async with BufferPool(count=1, size=WINDOW_SIZE).take() as buffer:
                while not source.is_finished:
                    await in_cpu_thread(scan_and_hash, source, buffer)
                    self._read = self._checked = source.read
                    self.report_progress()
        return source.manifest()

    async def content(self, wanted: range) -> bytes:
        """Return a part of the content, verified.

        Its chunks are kept in memory up to `KEPT_LIMIT`, so that `download` does not receive them again. Raises
        DamagedChunk, ChunksMissing, TransferError.
        """
        memory = bytearray(len(wanted))
        places = self._chunks.overlapping(wanted)
        seeded = await in_cpu_thread(_look_up, places, self._seeds)
        for batch in batches_by_size(places, self._options):
            known = await self._known(batch, seeded)
            writer = _PieceWriter()
            async with self._buffers.take() as buffer:
                size = await self._batches.receive(_chunks(batch), buffer, writer, known=known)
            self._under_way -= size
            pieces = writer.pieces
            for place, content in zip(batch, known or [None] * len(batch), strict=True):
                if content is None:
                    self._ahead[self._chunks.number_at(place.offsets[0])] = True
            for place, piece in zip(batch, pieces, strict=True):
                offset = place.offsets[0]
                start, stop = max(offset, wanted.start), min(offset + len(piece), wanted.stop)
                memory[start - wanted.start : stop - wanted.start] = memoryview(piece)[start - offset : stop - offset]
                if offset not in self._kept and self._kept_size + len(piece) + KEPT_OBJECT_SIZE <= KEPT_LIMIT:
                    self._kept[offset] = piece
                    self._kept_size += len(piece) + KEPT_OBJECT_SIZE
        return bytes(memory)

    async def reuse(self, sink: Sink, seeds: Sequence[Seed], *, resume: bool) -> None:
        """Find out which chunks `sink` needs, and write those of them that are on this machine already.

        With `resume`, the content that the sink has already is verified first. Then the seeds are used. A seed is
        closed here if `download` does not need it. A second call starts over.
        """
        self._sink = sink
        self.reused = self._written = self._under_way = 0
        self._table = PlaceTable(self._manifest)
        await in_cpu_thread(self._table.fill, self._orders(sink))
        self._kept = {offset: piece for offset, piece in self._kept.items() if self._table.is_missing(offset)}
        self.report_progress()
        if resume:
            # The sink can give only content that may be written in any order, so no chunk here waits for the one before it.
            staged = await in_cpu_thread(self._table.missing, Ordering.ANY, Ordering.ONCE)
            with self._checking(self._missing_size):
                await self._reuse_each(batches_by_size(staged, self._options), lambda batch: _held(sink, batch))
        for seed in seeds:
            before = self.reused
            with suppress(SourceError):
                await self._reuse_seed(sink, seed)
            self._reused_by[id(seed)] = self.reused - before
        # Chunks that have an order are read from seeds when they are next, so these seeds stay open.
        ordered = await in_cpu_thread(self._table.missing, Ordering.ONCE, Ordering.AFTER)
        self._seeded = await in_cpu_thread(_look_up, ordered, seeds)
        needed = {id(seeded.seed) for seeded in self._seeded}
        for seed in seeds:
            if id(seed) not in needed:
                await in_disk_thread(seed.close)

    def note_sources(self, seeds: Iterable[tuple[Path, Seed]]) -> None:
        """Note in `reused_from` how much came from these seeds, after `reuse`."""
        sizes = ((path, self._reused_by.get(id(seed), 0)) for path, seed in seeds)
        self.reused_from = {path: size for path, size in sizes if size}

    def missing_size(self) -> int:
        """Return the number of bytes that are not filled yet."""
        return self._missing_size

    async def download(self, sink: Sink, *, partial_file: PartialFile | None = None) -> None:
        """Download the missing chunks into `sink`, several batches at a time.

        With `partial_file`, the chunks that its reader waits for come first. The sink must then take all chunks in any
        order. Raises DamagedChunk, ChunksMissing, TransferError, and what the sink raises.
        """
        missing = await in_cpu_thread(self._table.missing, *Ordering)
        if partial_file is None:
            limits = limits_of(self._repository)
            parallelism = parallelism_of(self._missing_size, limits, self._options, file_count=sink.file_count)
            options = sized_for(self._missing_size, self._given_options, most=parallelism.slot_size)
            if options != self._options:
                self._options = options
                self._buffers = BufferPool(count=self._own_count, size=options.batch_size)
            await self._download_all(ordered_chains(missing, self._options), sink, parallelism)
        else:
            # The reader waits for single chunks, so the way to another process would only take time.
            batches = asked_first(missing, partial_file, self._options)
            async with task_group() as group:
                self._begin_tasks(self._own_count, _Download(batches, sink, group))
        self._kept.clear()

    async def _download_all(self, chains: Iterator[list[Batch]], sink: Sink, parallelism: Parallelism) -> None:
        processes, slots = parallelism.processes, parallelism.slots
        batches = round_robin(chains, max(self._own_count, processes * slots))
        modules = [ReceiveJob.__module__]
        async with worker_pool(self._repository, count=processes, slots=slots, modules=modules) as pool:
            with closing(
                WorkerBatches(self._repository, sink, pool, processes=processes, slots=slots, options=self._options)
            ) as shared:
                async with task_group() as group:
                    self._begin_tasks(self._own_count, _Download(batches, sink, group, shared, processes * slots))

    def report_progress(self) -> None:
        """Call `report` with the progress of the fetch."""
        if self._report is None:
            return
        # Frames in flight count with their encoded bytes. The bar does not move back when a retry starts again.
        self._done = max(self._done, min(self._manifest.size, self.reused + self._written + self._under_way))
        count, done = (1, 0) if self._sink is None else (self._sink.file_count, self._sink.files_done)
        self._report(
            Progress(
                self._manifest.size,
                self._done,
                self.moved,
                self.reused,
                self._read,
                count,
                done,
                checked=self._checked,
                to_check=self._to_check,
            )
        )

    def _orders(self, sink: Sink) -> Iterator[Ordering | None]:
        """Yield when the sink can take each chunk, or None. Chunks that it does not need are added to the counters."""
        self._missing_size = 0
        for number, (size, offset) in enumerate(zip(self._manifest.chunks.sizes(), self._chunks.offsets, strict=True)):
            order = sink.order(offset, size)
            if order is not None:
                self._missing_size += size
            elif self._ahead[number]:
                self._written += size
            else:
                self.reused += size
            yield order

    async def _reuse_seed(self, sink: Sink, seed: Seed) -> None:
        """Fill places from a seed.

        Long extents are copied, then verified in the sink; other chunks are read one by one.
        """
        reusable = await in_cpu_thread(self._table.missing, Ordering.ANY)
        found = await in_cpu_thread(find_matches, reusable, seed.manifest)
        with self._checking(sum(place.size for place in found.places)):
            await self._reuse_found(sink, seed, found)

    async def _reuse_found(self, sink: Sink, seed: Seed, found: Matches) -> None:
        for extent in long_extents(found.places, found, sink, self._options):
            if await self._copy_extent(sink, seed, extent, found):
                await self._reuse_each(batches_by_size(extent, self._options), lambda batch: _held(sink, batch))
        rest = (place for place in found.places if self._table.is_missing(place.offsets[0]))
        for batch in batches_by_size(rest, self._options):
            places = await in_cpu_thread(_copied, sink, seed, batch, found)
            self._note_checked(batch)
            self._note_reused(places)

    async def _copy_extent(self, sink: Sink, seed: Seed, extent: Places, found: Matches) -> bool:
        first = extent[0].offsets[0]
        size = extent[-1].offsets[0] + extent[-1].chunk.size - first
        for start in range(0, size, self._options.copy_size):
            count = min(self._options.copy_size, size - start)
            if not await in_disk_thread(_copy, sink, seed, found[first] + start, first + start, count):
                return False
        return True

    async def _reuse_each(self, batches: Iterator[list[Place]], find: Callable[[list[Place]], list[Place]]) -> None:
        """Call `find` for each batch, and note the places that it returns as filled.

        Several batches are handled at a time.
        """

        async def worker() -> None:
            for batch in batches:
                places = await in_cpu_thread(find, batch)
                self._note_checked(batch)
                self._note_reused(places)

        async with task_group() as group:
            for _ in range(self._own_count):
                group.create_task(worker())

    def _begin_tasks(self, count: int, download: _Download) -> None:
        for _ in range(count):
            download.group.create_task(self._download_batches(download))

    async def _download_batches(self, download: _Download) -> None:
        for batch in download.batches:
            places = list(batch.places)
            shared: list[SharedPlace] = []
            own = places
            if download.shared is not None and download.shared.is_ready:
                if download.tasks_to_come:
                    # From now on more batches are under way.
                    count, download.tasks_to_come = download.tasks_to_come, 0
                    self._begin_tasks(count, download)
                shared, own = download.shared.divide(places, self._kept)
            # Buffers are taken in the order of the batches. So none waits for a batch that waits for a buffer.
            async with self._buffers.take() if own else nullcontext() as buffer:
                if shared and download.shared is not None:
                    size = await download.shared.receive(shared, self._count_moved)
                    self._under_way -= size
                    self._written += sum(place.size for place, _ in shared)
                if buffer is not None:
                    await self._receive(own, buffer, download.sink, batch.after)
            batch.written.set()
            self._unsynced += sum(place.size for place in places)
            self.report_progress()
            if self._unsynced >= self._options.sync_size and not self._syncing.locked():
                download.group.create_task(self._sync(download.sink))

    async def _receive(self, places: list[Place], buffer: memoryview, sink: Sink, after: asyncio.Event | None) -> None:
        known = await self._known(places, self._seeded)
        writer = _SinkWriter(sink, places)
        size = await self._batches.receive(_chunks(places), buffer, writer, known=known, after=after)
        self._under_way -= size
        reused = sum(
            place.size
            for place, content in zip(places, known, strict=False)
            if content is not None and not self._was_ahead(place)
        )
        self.reused += reused
        self._written += sum(place.size for place in places) - reused

    async def _sync(self, sink: Sink) -> None:
        async with self._syncing:
            self._unsynced = 0
            await in_disk_thread(sink.sync)

    def _was_ahead(self, place: Place) -> bool:
        """Return whether `content` has received a chunk."""
        return bool(self._ahead[self._chunks.number_at(place.offsets[0])])

    async def _known(self, places: list[Place], seeded: Sequence[_SeedMatches]) -> list[bytes | None]:
        """Return the content of the places that need not be received: kept chunks, and verified chunks of seeds.

        The list is empty if all of them must be received.
        """
        # Most fetches have no such seeds, so that they need no thread here.
        pieces = await in_cpu_thread(self._read_seeds, places, seeded) if seeded else {}
        if not pieces and not self._kept:
            return []
        return [pieces.get(place.offsets[0]) or self._kept.get(place.offsets[0]) for place in places]

    def _read_seeds(self, places: list[Place], seeded: Sequence[_SeedMatches]) -> dict[int, bytes]:
        """Return the content of the places whose chunk could be read from a seed and verified."""
        pieces = {}
        for place in places:
            offset, seed = _first_match(seeded, place)
            if seed is None:
                continue
            memory = bytearray(place.chunk.size)
            with suppress(SourceError), self._seed_lock:
                if seed.read_into(memoryview(memory), offset) and chunk_digest(memory) == place.chunk.digest:
                    pieces[place.offsets[0]] = bytes(memory)
        return pieces

    @contextmanager
    def _checking(self, size: int) -> Iterator[None]:
        """Report in the block that content on this machine is looked at, of which there are `size` bytes."""
        self._checked, self._to_check = 0, size
        self.report_progress()
        try:
            yield
        finally:
            self._checked = self._to_check = 0

    def _note_checked(self, places: list[Place]) -> None:
        self._checked = min(self._to_check, self._checked + sum(place.size for place in places))

    def _note_reused(self, places: list[Place]) -> None:
        for place in places:
            self._table.note_filled(place)
            self._missing_size -= place.size
            self.reused += place.size
        self.report_progress()

    def _count_moved(self, size: int) -> None:
        self.moved += size
        self._under_way += size
        self.report_progress()


@dataclass(slots=True)
class _Download:
    """What the tasks of one `download` share."""

    batches: Iterator[Batch]
    sink: Sink
    group: asyncio.TaskGroup
    shared: WorkerBatches | None = None
    """What worker processes receive, if the download has such processes."""
    tasks_to_come: int = 0
    """How many tasks begin when these are ready."""


class _SeedMatches(NamedTuple):
    """A seed, and the places whose chunks it should have."""

    seed: Seed
    found: Matches


def _look_up(places: Places, seeds: Sequence[Seed]) -> list[_SeedMatches]:
    """Find the chunks of places in the manifests of seeds. Return the seeds that have some."""
    matches = (_SeedMatches(seed, find_matches(places, seed.manifest)) for seed in seeds)
    return [match for match in matches if match.found.places]


def _first_match(seeded: Iterable[_SeedMatches], place: Place) -> tuple[int, Seed | None]:
    """Return the offset of a chunk in the first seed that should have it, and this seed. It is None if there is not one."""
    for seed, found in seeded:
        offset = found.get(place.offsets[0])
        if offset is not None:
            return offset, seed
    return 0, None


def _copy(sink: Sink, seed: Seed, seed_offset: int, offset: int, size: int) -> bool:
    sink.check_ours()
    located = seed.locate(seed_offset, size)
    return located is not None and sink.copy(located, offset, size)


def _held(sink: Sink, places: list[Place]) -> list[Place]:
    """Return the places whose chunk the sink has already at one of its offsets.

    Write such a chunk at its other offsets too.
    """
    found = []
    for place in places:
        content = scratch()[: place.chunk.size]
        for offset in place.offsets:
            if sink.read_into(content, offset) and chunk_digest(content) == place.chunk.digest:
                for other in place.offsets:
                    sink.write(content, other, is_held=other == offset)
                found.append(place)
                break
    return found


def _copied(sink: Sink, seed: Seed, places: list[Place], found: Matches) -> list[Place]:
    """Read the chunks of `places` from a seed, verify them and write them.

    Return the places for which this was possible.
    """
    sink.check_ours()
    copied = []
    for place in places:
        content = scratch()[: place.chunk.size]
        try:
            if not seed.read_into(content, found[place.offsets[0]]):
                continue
        except SourceError:
            continue
        if chunk_digest(content) == place.chunk.digest:
            for offset in place.offsets:
                sink.write(content, offset)
            copied.append(place)
    return copied


class _PieceWriter:
    """Keeps the content of a batch."""

    writes_files = False

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def begin(self) -> None:
        pass

    def take(self, number: int, content: memoryview) -> None:  # noqa: ARG002  # the protocol's
        self.pieces.append(bytes(content))


class _SinkWriter:
    """Writes the content of a batch to a sink."""

    writes_files = True

    def __init__(self, sink: Sink, places: Sequence[Place]) -> None:
        self._sink = sink
        self._places = places
        self.begin = sink.check_ours

    def take(self, number: int, content: memoryview) -> None:
        for offset in self._places[number].offsets:
            self._sink.write(content, offset)


def _chunks(places: Sequence[Place]) -> list[Chunk]:
    return [place.chunk for place in places]
