"""Send the chunks of windows: in the process that pushes, or as a job of a worker process.

A worker process gets a region of an open file, which it reads, cuts and hashes itself. Of a file that nobody can divide, it gets
the place of a window, and how it was cut. It reads this window again, which the system still has in memory, and hashes it.

Then it asks the process that pushes which of the chunks of a window are new to the push. It asks the repository about these,
encodes those that are missing, and puts them over its own connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from filestore.core.digest import Digest
from filestore.errors import SourceChanged
from filestore.format.codec import Codec, Encoder, Frame
from filestore.format.zip.checksum import crc32
from filestore.repository.protocol import Moved, Repository
from filestore.system.buffers import BufferPool
from filestore.system.metrics import Stage, span
from filestore.system.threads import in_cpu_thread, per_thread, task_group
from filestore.transfer.sources.file import WINDOW_SIZE, Region, RegionScanner, Window, read_exactly
from filestore.transfer.workers import Worker

T = TypeVar("T")

_HEADERS_SIZE = 64 << 10
"""Bytes that the frames of a window may have more than their content. The window of a tree may contain many small segments."""


class ChunkSender:
    """Encodes chunks and puts them into a repository. It keeps `count` buffers for the frames of windows of `size` bytes."""

    def __init__(self, repository: Repository, *, codec: Codec | None, count: int, size: int = WINDOW_SIZE) -> None:
        self._repository = repository
        self._encoder = per_thread(partial(Encoder, codec=codec))
        self._frames = BufferPool(count=count, size=size + _HEADERS_SIZE)

    async def send(self, pieces: Sequence[tuple[Digest, memoryview]], *, moved: Moved, encoded: Callable[[], None]) -> int:
        """Send the digest and the content of each chunk, and return the size of all frames.

        `encoded` is called as soon as the memory of `pieces` is no longer needed.
        """
        waiting = deque(pieces)
        size = 0
        async with self._frames.take() as out:
            while waiting:
                frames = await in_cpu_thread(self._encode, waiting, out)
                if not waiting:
                    encoded()
                await self._repository.put(frames, moved=moved)
                size += sum(len(frame.data) for frame in frames)
        return size

    def _encode(self, waiting: deque[tuple[Digest, memoryview]], out: memoryview) -> list[Frame]:
        """Encode chunks, and remove them from `waiting`, until the next one might not fit into `out`."""
        frames = []
        start = 0
        with span(Stage.ENCODE) as encoding:
            for length in self._encoder().encode_all([piece for _, piece in waiting], out):
                digest, piece = waiting.popleft()
                encoding.add(len(piece))
                frames.append(Frame(digest, out[start : start + length]))
                start += length
        return frames


class _Kept:
    """What a worker process keeps between two jobs."""

    def __init__(self, repository: Repository, *, codec: Codec | None, count: int) -> None:
        self.windows = BufferPool(count=count, size=WINDOW_SIZE)
        self.sender = ChunkSender(repository, codec=codec, count=count)

    @classmethod
    def of(cls, worker: Worker, *, codec: Codec | None, slots: int) -> _Kept:
        """Return what the process of `worker` keeps."""
        return worker.kept("push", partial(cls, worker.repository, codec=codec, count=slots))

    async def filled(self, fill: Callable[[memoryview], T]) -> tuple[T, _Lent]:
        """Call `fill` with a buffer of a window, in a thread. Return its result, and the buffer, which the caller gives back."""
        buffer = await self.windows.acquire()
        lent = _Lent(self.windows, buffer)
        try:
            return await in_cpu_thread(fill, buffer), lent
        except BaseException:
            lent.release()
            raise


class _Lent:
    """A buffer of a window, which is given back once."""

    def __init__(self, pool: BufferPool, buffer: memoryview) -> None:
        self._pool = pool
        self._buffer: memoryview | None = buffer

    def release(self) -> None:
        """Give it back, if that was not done."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._pool.release(buffer)


async def _send_new(worker: Worker, kept: _Kept, question: object, chunks: list[tuple[Digest, memoryview]], lent: _Lent) -> int:
    """Send the chunks that are new to the push and missing in the repository. Return how many bytes of content these have.

    The process that pushes gets `question`, and answers with the places of the chunks that are new to it.
    """
    try:
        places = await worker.ask(question)
        pieces = dict([chunks[place] for place in places])
        missing = await worker.repository.missing(list(pieces)) if pieces else []
        if not missing:
            return 0
        sent = [(digest, pieces[digest]) for digest in missing]
        size = sum([len(piece) for _, piece in sent])
        await kept.sender.send(sent, moved=worker.moved, encoded=lent.release)
        return size
    finally:
        lent.release()


@dataclass(frozen=True, slots=True)
class SendWindow:
    """The `Job` of one window. Its result is how many bytes of content were missing in the repository, and were sent."""

    path: str
    """For errors."""
    offset: int
    sizes: Sequence[int]
    checksum: int
    """The CRC-32 of the content that was cut."""
    codec: Codec | None
    slots: int
    """How many windows one worker process has at a time."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> int:
        """Send the missing chunks. Raises SourceChanged, SourceUnreadable, and what `Repository.put` raises."""
        kept = _Kept.of(worker, codec=self.codec, slots=self.slots)
        (row, chunks), lent = await kept.filled(partial(self._hashed, descriptors[0]))
        return await _send_new(worker, kept, row, chunks, lent)

    def _hashed(self, descriptor: int, buffer: memoryview) -> tuple[bytes, list[tuple[Digest, memoryview]]]:
        """Read the window again. Return its packed chunks, and the digest and the content of each."""
        content = buffer[: sum(self.sizes)]
        with span(Stage.READ, len(content)):
            read_exactly(descriptor, content, self.offset, self.path)
            # A store through a mapping may change no time of the file. A zip has checksums of what was read first.
            if crc32(content) != self.checksum:
                raise SourceChanged(self.path, f"the bytes at offset {self.offset} changed while they were read")
        row = bytearray()
        chunks = Window.cut(content, list(self.sizes), row).hash()
        return bytes(row), chunks


@dataclass(frozen=True, slots=True)
class SendRegion:
    """The `Job` of one region, which is read here for the first time. It asks once for each window, with a `Hashed`.

    Its result is how many bytes of content were missing in the repository, and were sent.
    """

    region: Region
    codec: Codec | None
    slots: int
    """How many windows one worker process has at a time."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> int:
        """Send the missing chunks. Raises SourceChanged, SourceUnreadable, and what `Repository.put` raises."""
        kept = _Kept.of(worker, codec=self.codec, slots=self.slots)
        scanner = RegionScanner(self.region)
        sending = []
        async with task_group() as group:
            while not scanner.is_finished:
                (hashed, chunks), lent = await kept.filled(partial(scanner.scan, descriptors[0]))
                sending.append(group.create_task(_send_new(worker, kept, hashed, chunks, lent)))
        return sum([task.result() for task in sending])
