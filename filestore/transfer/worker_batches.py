"""Hand out batches of a download, or parts of them, to worker processes, which receive, verify and write them."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from filestore.repository.protocol import AsksPeers, Moved, NamesPlaces, Repository
from filestore.system.threads import in_disk_thread
from filestore.transfer.places import Place
from filestore.transfer.receive_job import ReceiveJob, Write, WriteFailed
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.sinks.protocol import FilePart, Ordering, Sink
from filestore.transfer.workers import WorkerPool

_OPEN_FILES = 16
"""How many files stay open between two batches."""
_FILES_LIMIT = 32
"""The most files of one job. While it runs, both processes have them open. A batch seldom has more large files, but the same
chunk may be in any number of them."""


class SharedPlace(NamedTuple):
    """A place that a worker process can write."""

    place: Place
    parts: list[FilePart]
    """Where each of its offsets is."""


class WorkerBatches:
    """The batches of one download that its worker processes receive. For one event loop.

    Call `close` at the end.
    """

    def __init__(
        self,
        repository: Repository,
        sink: Sink,
        pool: WorkerPool,
        *,
        processes: int,
        slots: int,
        options: TransferOptions,
    ) -> None:
        """Each of the processes receives `slots` batches at a time. `repository` is that of the fetch."""
        self._repository = repository
        self._sink = sink
        self._pool = pool
        self._slots = slots
        self._options = options
        self._files = _OpenFiles(sink)
        # For all jobs together, half of the files that this process may open.
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = _FILES_LIMIT if limit == resource.RLIM_INFINITY else limit // 2 // max(1, processes * slots)
        self._files_limit = min(_FILES_LIMIT, share)

    @property
    def is_ready(self) -> bool:
        """Whether a worker process takes batches."""
        return self._pool.is_ready

    def close(self) -> None:
        """Close the files that were open for the processes."""
        self._files.close()

    def divide(self, places: list[Place], kept: Container[int]) -> tuple[list[SharedPlace], list[Place]]:
        """Divide a batch into what worker processes can receive and write, and what the process of the fetch must.

        `kept` has the offsets of chunks that need not be received.
        """
        if not self.is_ready:
            return [], places
        shared, own = [], []
        files: set[int] = set()
        for place in places:
            parts = None if place.offsets[0] in kept else self._parts(place)
            more = {part.number for part in parts or ()} - files
            if parts is None or len(files) + len(more) > self._files_limit:
                own.append(place)
            else:
                files |= more
                shared.append(SharedPlace(place, parts))
        is_worth_it = sum(place.size for place, _ in shared) >= self._options.shared_min
        return (shared, own) if is_worth_it else ([], places)

    async def receive(self, places: Sequence[SharedPlace], moved: Moved) -> int:
        """Let a worker process receive, verify and write these places. Return the bytes of the frames that it received.

        Raises what `Sink.write` raises, OvertakenError, DamagedChunk, ChunksMissing, TransferError.
        """
        numbers = sorted({part.number for _, parts in places for part in parts})
        files = {number: file for file, number in enumerate(numbers)}
        writes = [Write(number, files[part.number], part.offset) for number, (_, parts) in enumerate(places) for part in parts]
        offsets = [offset for place, _ in places for offset in place.offsets]
        chunks = [place.chunk for place, _ in places]
        named = None
        if isinstance(self._repository, NamesPlaces):
            named = await self._repository.name_places([chunk.digest for chunk in chunks])
        job = ReceiveJob.of(
            chunks,
            writes,
            staging=self._sink.staging,
            is_summed=self._sink.needs_checksums,
            buffer_size=self._options.batch_size,
            buffer_count=self._slots,
            places=named,
        )
        async with self._files.opened(numbers) as descriptors:
            try:
                received = await self._pool.run(job, descriptors=descriptors, moved=moved)
            except WriteFailed as error:
                raise self._sink.write_error(offsets[error.place], OSError(error.number, error.reason)) from None
        if isinstance(self._repository, AsksPeers):
            self._repository.peers_size += received.peers_size
        if self._sink.needs_checksums:
            await in_disk_thread(_note_written, self._sink, places, received.checksums)
        else:
            _note_written(self._sink, places, [0] * len(places))
        return received.stored_size

    def _parts(self, place: Place) -> list[FilePart] | None:
        """Return where another process can write a place, for each of its offsets. Return None if it must be this process."""
        # A job has no more writes than a batch has chunks at most.
        if place.order is not Ordering.ANY or len(place.offsets) > self._options.batch_count:
            return None
        parts = []
        for offset in place.offsets:
            part = self._sink.file_at(offset, place.chunk.size)
            if part is None:
                return None
            parts.append(part)
        return parts


class _OpenFiles:
    """The files of a sink that are open for worker processes. Most batches are of the same file as the ones before them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._descriptors: dict[int, int] = {}
        """The descriptors by the numbers of the files. The file that was opened last is the last one."""
        self._uses = Counter[int]()
        """How many batches use each file now."""

    @asynccontextmanager
    async def opened(self, numbers: Sequence[int]) -> AsyncIterator[list[int]]:
        """Return the descriptors of these files, which stay open during the block. Raises what `Sink.open_file` raises."""
        self._uses.update(numbers)
        try:
            if not self._descriptors.keys() >= set(numbers):
                await in_disk_thread(self._open, numbers)
            yield [self._descriptors[number] for number in numbers]
        finally:
            self._uses -= Counter(numbers)  # without those that nobody uses, of which a tree may have many
            # A list, because a thread may open another file meanwhile.
            unused = [number for number in list(self._descriptors) if number not in self._uses]
            for number in unused[:-_OPEN_FILES]:
                os.close(self._descriptors.pop(number))

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, numbers: Sequence[int]) -> None:
        # In the thread, so that a descriptor is noted even if the call is cancelled.
        for number in numbers:
            if number in self._descriptors:
                continue
            descriptor = self._sink.open_file(number)
            # Another batch may have opened it meanwhile.
            if self._descriptors.setdefault(number, descriptor) != descriptor:
                os.close(descriptor)


def _note_written(sink: Sink, places: Sequence[SharedPlace], checksums: Sequence[int]) -> None:
    for (place, _), checksum in zip(places, checksums, strict=True):
        for offset in place.offsets:
            sink.note_written(offset, place.chunk.size, checksum)
