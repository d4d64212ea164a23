"""The job of a worker process in a fetch: receive a batch, verify it, and write it to the files that are staged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.manifest import Chunk
from filestore.format.zip.checksum import crc32
from filestore.repository.protocol import NamesPlaces, take_peers_size
from filestore.system.buffers import BufferPool
from filestore.system.mappings import SharedFile
from filestore.transfer.receive_batch import BatchReceiver
from filestore.transfer.sinks.protocol import Staging
from filestore.transfer.workers import Worker


class Write(NamedTuple):
    """Where a chunk is written."""

    number: int
    """The number of the chunk in its batch."""
    file: int
    """The number of the file among the open files that the job gets."""
    offset: int


class Received(NamedTuple):
    """What a job did."""

    stored_size: int
    """Bytes of the frames that were received."""
    checksums: array[int]
    """The CRC-32 of each chunk, if the job was asked for them."""
    peers_size: int
    """Bytes that peers gave to the process since the job before."""


class WriteFailed(Exception):
    """The operating system refused a write. The process that gave the job knows the name of the file."""

    def __init__(self, place: int, number: int, reason: str) -> None:
        """`place` is the number of the write in the job, `number` the number of the error."""
        super().__init__(place, number, reason)
        self.place = place
        self.number = number
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ReceiveJob:
    """Receive the chunks of a batch, verify them and write them, in a worker process. Its descriptors are the files.

    Raises OvertakenError, WriteFailed, DamagedChunk, ChunksMissing, TransferError.
    """

    digests: bytes
    sizes: array[int]
    numbers: array[int]
    """The fields of each `Write`, in the order of the chunks."""
    files: array[int]
    offsets: array[int]
    staging: Staging
    is_summed: bool
    """Whether checksums are returned."""
    buffer_size: int
    buffer_count: int
    """How many such jobs a process does at the same time."""
    places: object | None = None
    """Where the frames are, if the process that transfers knows it."""

    @classmethod
    def of(  # the fields of a job
        cls,
        chunks: Sequence[Chunk],
        writes: Iterable[Write],
        *,
        staging: Staging,
        is_summed: bool,
        buffer_size: int,
        buffer_count: int,
        places: object | None = None,
    ) -> Self:
        """Make a job. `writes` are in the order of the chunks, and each chunk has at least one."""
        numbers, files, offsets = zip(*writes, strict=True)
        return cls(
            b"".join(chunk.digest for chunk in chunks),
            array("I", [chunk.size for chunk in chunks]),
            array("I", numbers),
            array("I", files),
            array("q", offsets),
            staging,
            is_summed,
            buffer_size,
            buffer_count,
            places,
        )

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> Received:
        starts = range(0, len(self.digests), DIGEST_SIZE)
        chunks = [
            Chunk(Digest(self.digests[start : start + DIGEST_SIZE]), size) for start, size in zip(starts, self.sizes, strict=True)
        ]
        make = partial(BufferPool, count=self.buffer_count, size=self.buffer_size)
        writer = _FileWriter(self, descriptors)
        if self.places is not None and isinstance(worker.repository, NamesPlaces):
            worker.repository.take_places([chunk.digest for chunk in chunks], self.places)
        async with worker.kept(f"batches of {self.buffer_size}", make).take() as buffer:
            size = await BatchReceiver(worker.repository, moved=worker.moved).receive(chunks, buffer, writer)
        return Received(size, writer.checksums, take_peers_size(worker.repository))


class _FileWriter:
    """Writes the content of a batch to open files.

    A file in memory may be mapped meanwhile, because all processes write to the same file. So a worker process may end by
    SIGBUS if someone cuts that file short. The process of the caller never does: it does not map it.
    """

    writes_files = True

    def __init__(self, job: ReceiveJob, descriptors: Sequence[int]) -> None:
        self.checksums = array("I")
        self.begin = job.staging.check
        self._job = job
        self._files = [SharedFile(descriptor) for descriptor in descriptors]
        self._place = 0

    def take(self, number: int, content: memoryview) -> None:
        job = self._job
        while self._place < len(job.numbers) and job.numbers[self._place] == number:
            try:
                self._files[job.files[self._place]].write(content, job.offsets[self._place])
            except OSError as error:
                raise WriteFailed(self._place, error.errno or 0, error.strerror or str(error)) from None
            self._place += 1
        if job.is_summed:
            self.checksums.append(crc32(content))
