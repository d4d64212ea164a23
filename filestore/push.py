"""Push: path, chunks, frames, repository.

A window of the file is read, cut and hashed in one thread; what the repository is missing of it is encoded in another
and put, while the next window is read. Only the manifest has an order: windows may overtake one another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from filestore.aio import BufferPool, in_cpu_thread, in_disk_thread, per_thread, task_group
from filestore.chunking import CUTTING_VERSION
from filestore.codec import Codec, Encoder, frame_limit
from filestore.digest import Digest, chunk_digest
from filestore.errors import ChunksMissing, InvalidReference, SourceChanged
from filestore.journal import Journal
from filestore.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.objects import Frame, Progress, Record, Report, checked_name
from filestore.repository import Repository
from filestore.source import WINDOW_SIZE, Scanner, Source, Window

WINDOWS_IN_FLIGHT = 4
COMMIT_ATTEMPTS = 3


class Place(NamedTuple):
    """Where a chunk lies in the source."""

    offset: int
    size: int


class Pushed(NamedTuple):
    """What a push did, in bytes."""

    record: Record
    bytes_sent: int
    """Encoded bytes of the frames that were sent."""
    bytes_shared: int
    """Decoded bytes that were not sent, because the repository, or this push, had them already."""
    bytes_read: int
    seconds: float


async def push(
    repository: Repository,
    path: Path,
    *,
    name: str | None = None,
    journal: Journal | None = None,
    rehash: bool = False,
    codec: Codec | None = None,
    report: Report | None = None,
) -> Pushed:
    """Store the file at `path` under `name` (its own where none is given), sending what the repository has not got.

    With `journal`, a file in the same state as at its last push to this repository is not read; `rehash` reads it all the same.
    `codec` forces one for all chunks. Cancelled or broken off, what was sent stays, and the next push does not send it again.

    Raises SourceUnreadable, SourceIsDirectory, SourceChanged, InvalidName, LimitExceeded, StorageError, TransferError.
    """
    started = time.monotonic()
    with await in_disk_thread(Source, path) as source:
        kept_name = checked_name(path.name if name is None else name)
        identity = await repository.identity()
        sending = _Sending(repository, source, cutting=identity.cutting, codec=codec, report=report)
        manifest = None
        if journal is not None and not rehash:
            manifest = await in_disk_thread(journal.find, identity, path, source.state)
        if manifest is None:
            manifest = await sending.send_all()
        else:
            sending.shared = manifest.size
            sending.report_progress()
        record = await _commit(sending, manifest, kept_name)
        if journal is not None:
            await in_disk_thread(journal.record, identity, path, source.state, manifest)
    return Pushed(record, sending.moved, sending.shared, sending.read, time.monotonic() - started)


async def manifest_of(path: Path, *, cutting: int = CUTTING_VERSION, report: Report | None = None) -> Manifest:
    """The manifest that a push of `path` would commit; its digest is the file digest. Asks no repository.

    Raises SourceUnreadable, SourceIsDirectory, SourceChanged.
    """
    with await in_disk_thread(Source, path) as source:
        scanner = Scanner(source, cutting=cutting)
        chunks: list[Chunk] = []
        async with BufferPool(count=1, size=WINDOW_SIZE).take() as buffer:
            while not scanner.finished:
                window = await in_cpu_thread(scanner.scan, buffer)
                chunks.extend(window.chunks)
                if report is not None:
                    report(Progress(source.state.size, scanner.read, 0, 0, scanner.read))
        source.check_unchanged()
    return Manifest.build(chunks, cutting=cutting)


async def _commit(sending: _Sending, manifest: Manifest, name: str) -> Record:
    for attempt in count(1):
        # Nothing of a file that changed meanwhile is recorded: what was cut may be of two versions.
        sending.source.check_unchanged()
        try:
            return await sending.repository.commit(manifest.encoded, name=name)
        except ChunksMissing as error:
            if attempt == COMMIT_ATTEMPTS:
                raise
            await sending.send_again(manifest, {Digest.parse(text) for text in error.digests})
    raise AssertionError


class _Sending:
    """One push under way: its counters, its buffers, and what it has asked the repository for."""

    def __init__(
        self, repository: Repository, source: Source, *, cutting: int, codec: Codec | None, report: Report | None
    ) -> None:
        self.repository = repository
        self.source = source
        self.read = self.moved = self.shared = 0
        self._sent = self._under_way = self._done = 0
        self._cutting = cutting
        self._report = report
        self._asked: set[Digest] = set()
        self._encoder = per_thread(lambda: Encoder(codec=codec))
        self._windows = BufferPool(count=WINDOWS_IN_FLIGHT, size=WINDOW_SIZE)
        self._frames = BufferPool(count=WINDOWS_IN_FLIGHT - 1, size=frame_limit(WINDOW_SIZE))

    async def send_all(self) -> Manifest:
        """Read the source once and send what is missing; the manifest of what was read."""
        scanner = Scanner(self.source, cutting=self._cutting)
        chunks: list[Chunk] = []
        self.report_progress()
        async with task_group() as group:
            while not scanner.finished:
                buffer = await self._windows.acquire()
                window = await in_cpu_thread(scanner.scan, buffer)
                self.read = scanner.read
                chunks.extend(window.chunks)
                self.report_progress()
                group.create_task(self._send_window(window, buffer))
        return Manifest.build(chunks, cutting=self._cutting)

    async def send_again(self, manifest: Manifest, digests: set[Digest]) -> None:
        """Send those chunks of the source. Raises SourceChanged when they are not what the manifest says."""
        wanted = {
            chunk.digest: Place(offset, chunk.size)
            for offset, chunk in zip(manifest.offsets(), manifest.chunks, strict=True)
            if chunk.digest in digests
        }
        if len(wanted) != len(digests):
            raise InvalidReference(str(manifest.digest), "the repository asks for chunks that its manifest does not name")
        async with self._windows.take() as buffer:
            for group in _batches(wanted, limit=WINDOW_SIZE - CHUNK_LIMIT):
                pieces = await in_cpu_thread(self._read_chunks, group, buffer)
                self.shared = max(0, self.shared - sum(len(piece) for _, piece in pieces))
                await self._send_chunks(pieces)

    def report_progress(self) -> None:
        """Tell how far it is."""
        if self._report is not None:
            total = self.source.state.size
            # What is under way counts with its encoded bytes; what a retry takes back is not taken off the bar.
            self._done = max(self._done, min(total, self._sent + self.shared + self._under_way))
            self._report(Progress(total, self._done, self.moved, self.shared, self.read))

    async def _send_window(self, window: Window, buffer: memoryview) -> None:
        try:
            pieces: dict[Digest, memoryview] = {}
            offset = 0
            for chunk in window.chunks:
                if chunk.digest not in self._asked:
                    pieces[chunk.digest] = window.content[offset : offset + chunk.size]
                offset += chunk.size
            self._asked.update(pieces)
            missing = await self.repository.missing(list(pieces)) if pieces else []
            self.shared += offset - sum(len(pieces[digest]) for digest in missing)
            self.report_progress()
            await self._send_chunks([(digest, pieces[digest]) for digest in missing])
        finally:
            self._windows.release(buffer)

    async def _send_chunks(self, pieces: list[tuple[Digest, memoryview]]) -> None:
        waiting = deque(pieces)
        async with self._frames.take() as out:
            while waiting:
                frames = await in_cpu_thread(self._encode, waiting, out)
                await self.repository.put(frames, moved=self._count_moved)
                self._under_way -= sum(len(frame.data) for frame in frames)
        self._sent += sum(len(piece) for _, piece in pieces)
        self.report_progress()

    def _read_chunks(self, chunks: list[tuple[Digest, Place]], buffer: memoryview) -> list[tuple[Digest, memoryview]]:
        pieces = []
        start = 0
        for digest, (offset, size) in chunks:
            piece = buffer[start : start + size]
            self.source.read_into(piece, offset)
            if chunk_digest(piece) != digest:
                raise SourceChanged(str(self.source.path), f"the bytes at offset {offset} are others")
            pieces.append((digest, piece))
            start += size
        self.read += start
        return pieces

    def _encode(self, waiting: deque[tuple[Digest, memoryview]], out: memoryview) -> list[Frame]:
        """Take as many of `waiting` as surely fit into `out`."""
        encoder = self._encoder()
        frames = []
        start = 0
        while waiting and start + frame_limit(len(waiting[0][1])) <= len(out):
            digest, piece = waiting.popleft()
            end = start + encoder.encode(piece, out[start:])
            frames.append(Frame(digest, out[start:end]))
            start = end
        return frames

    def _count_moved(self, size: int) -> None:
        self.moved += size
        self._under_way += size
        self.report_progress()


def _batches(wanted: dict[Digest, Place], *, limit: int) -> Iterator[list[tuple[Digest, Place]]]:
    batch: list[tuple[Digest, Place]] = []
    held = 0
    for digest, place in wanted.items():
        batch.append((digest, place))
        held += place.size
        if held >= limit:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
