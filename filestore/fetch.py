"""Fetch: repository, frames, chunks, path.

Chunks are written at their offsets into a staging file beside the target, in any order, each verified first; the file
appears under its name by one rename (I3). What is here already is not fetched: chunks that the staging file of a
fetch that was cut holds, and chunks of the file that stands under the target's name. No journal is trusted for that,
only digests.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

from blake3 import blake3

from filestore.aio import BufferPool, in_cpu_thread, in_disk_thread, per_thread, task_group
from filestore.codec import Decoder, frame_limit
from filestore.digest import Digest, chunk_digest
from filestore.durable import sync_descriptor, sync_path
from filestore.errors import (
    ChunksMissing,
    DamagedChunk,
    FilestoreError,
    InvalidFrame,
    InvalidManifest,
    SourceError,
    StorageFull,
    TargetError,
    storage_error,
)
from filestore.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.objects import Frame, Progress, Record, Report
from filestore.repository import Repository
from filestore.source import WINDOW_SIZE, Scanner, Source

ATTEMPTS = 3
BATCHES_IN_FLIGHT = 4
BATCH_SIZE = 8 << 20
"""Decoded bytes of one batch."""

_thread_decoder = per_thread(Decoder)
_thread_scratch = per_thread(lambda: memoryview(bytearray(CHUNK_LIMIT)))


class Fetched(NamedTuple):
    """What a fetch did, in bytes."""

    path: Path
    size: int
    bytes_received: int
    """Encoded bytes of the frames that were received."""
    bytes_reused: int
    """Decoded bytes that were here already."""
    seconds: float


async def fetch(repository: Repository, record: Record, target: Path, *, report: Report | None = None) -> Fetched:
    """Write the file of `record` to `target`, a path in an existing folder, replacing a file that is there.

    Every byte is verified before the file appears. Broken off, the staging file stays, and the next fetch continues it.

    Raises TargetError, StorageFull, StorageError, DamagedChunk, ChunksMissing, NotFound, TransferError.
    """
    started = time.monotonic()
    manifest = Manifest.parse(await repository.manifest(record.digest))
    for attempt in count(1):
        try:
            moved, reused = await _fetch(repository, manifest, target, report)
        except _OvertakenError:
            if attempt == ATTEMPTS:
                raise TargetError(str(target), "its staging file was removed again and again by someone else") from None
        else:
            return Fetched(target, manifest.size, moved, reused, time.monotonic() - started)
    raise AssertionError


async def _fetch(repository: Repository, manifest: Manifest, target: Path, report: Report | None) -> tuple[int, int]:
    fetching = _Fetching(repository, manifest, report)
    older = await fetching.scan_older(target)
    if older is not None and older.chunks == manifest.chunks:
        return 0, manifest.size
    with await in_disk_thread(_Staging, target, manifest) as staging:
        await fetching.resume(staging)
        if older is not None:
            await fetching.copy_older(target, older, staging)
        await in_disk_thread(staging.check_space, fetching.missing_size())
        await fetching.download(staging)
        await in_disk_thread(staging.publish)
    return fetching.moved, fetching.reused


class _OvertakenError(Exception):
    """Another process has published or removed the staging file."""


class _Place(NamedTuple):
    """A chunk and everywhere it stands in the file."""

    chunk: Chunk
    offsets: list[int]

    @property
    def size(self) -> int:
        """Bytes that this chunk fills of the file."""
        return self.chunk.size * len(self.offsets)


class _Older(NamedTuple):
    """Another version of the file, that stands under the target's name."""

    chunks: tuple[Chunk, ...]
    offsets: dict[Digest, int]


class _Staging:
    """The file that becomes the target. Its methods block: call them in a thread.

    Two processes that fetch the same file to the same target write the same verified bytes at the same offsets of one
    staging file; the one that comes too late starts over, and finds the file.
    """

    def __init__(self, target: Path, manifest: Manifest) -> None:
        self._target = target
        self._size = manifest.size
        # A name of fixed length, since the target's own may have 255 bytes already.
        label = blake3(os.fsencode(target.name)).hexdigest()[:16]
        self._path = target.with_name(f".{manifest.digest.hex()[:32]}-{label}.filestore-partial")
        try:
            if not stat.S_ISREG(target.stat().st_mode):
                raise TargetError(str(target), "what stands there is no regular file")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TargetError(str(target), error.strerror or str(error)) from None
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise TargetError(str(target), error.strerror or str(error)) from None
        try:
            self.held = os.fstat(self._descriptor).st_size > 0
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            os.close(self._descriptor)
            raise storage_error(str(self._target.parent), error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def has_data(self, offset: int, size: int) -> bool:
        """Whether anything may have been written there. A hole says no without being read."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) < offset + size
        except OSError as error:
            return error.errno != errno.ENXIO

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Whether `buffer` was filled from `offset` on."""
        try:
            return os.preadv(self._descriptor, [buffer], offset) == len(buffer)
        except OSError:
            return False

    def write(self, content: memoryview, offset: int) -> None:
        """Raises StorageFull, StorageError."""
        written = 0
        try:
            while written < len(content):
                written += os.pwrite(self._descriptor, content[written:], offset + written)
        except OSError as error:
            raise storage_error(str(self._target.parent), error) from None

    def check_ours(self) -> None:
        """Raises _OvertakenError when another process has published this very file: what is published is not written to."""
        try:
            if os.path.samestat(os.fstat(self._descriptor), self._path.stat()):
                return
        except FileNotFoundError:
            pass
        raise _OvertakenError

    def check_space(self, size: int) -> None:
        """Raises StorageFull when `size` more bytes cannot fit, before any is fetched."""
        found = os.fstatvfs(self._descriptor)
        free = found.f_bavail * found.f_frsize
        if size > free:
            raise StorageFull(str(self._target.parent), f"{size} bytes are needed and {free} are free")

    def publish(self) -> None:
        """Make the file durable, then let it appear: after a crash the name never stands for less than the whole (I3)."""
        try:
            sync_descriptor(self._descriptor)
            self._path.rename(self._target)
            sync_path(self._target.parent)
        except FileNotFoundError:
            raise _OvertakenError from None
        except OSError as error:
            raise storage_error(str(self._target.parent), error) from None


class _Fetching:
    """One fetch under way: its counters, and the places that are still to be filled."""

    def __init__(self, repository: Repository, manifest: Manifest, report: Report | None) -> None:
        self._repository = repository
        self._manifest = manifest
        self._report = report
        self._missing: dict[Digest, _Place] = {}
        for chunk, offset in zip(manifest.chunks, manifest.offsets(), strict=True):
            self._missing.setdefault(chunk.digest, _Place(chunk, [])).offsets.append(offset)
        self._read = self._written = self._under_way = self._done = 0
        self.moved = self.reused = 0
        self._report_progress()

    async def scan_older(self, target: Path) -> _Older | None:
        """The chunks of the file that stands under the target's name, if one does and can be read."""
        chunks: list[Chunk] = []
        offsets: dict[Digest, int] = {}
        try:
            with await in_disk_thread(Source, target) as source:
                scanner = Scanner(source, cutting=self._manifest.cutting)
                async with BufferPool(count=1, size=WINDOW_SIZE).take() as buffer:
                    end = 0
                    while not scanner.finished:
                        for chunk in (await in_cpu_thread(scanner.scan, buffer)).chunks:
                            chunks.append(chunk)
                            offsets.setdefault(chunk.digest, end)
                            end += chunk.size
                        self._read = scanner.read
                        self._report_progress()
        except SourceError:
            return None
        return _Older(tuple(chunks), offsets)

    async def resume(self, staging: _Staging) -> None:
        """Find out what a fetch that was cut has left in the staging file."""
        if not staging.held:
            return
        for batch in _batches(self._missing.values()):
            self._note_reused(await in_cpu_thread(_held, staging, batch))

    async def copy_older(self, target: Path, older: _Older, staging: _Staging) -> None:
        """Fill places from the file under the target's name; what changed in it meanwhile is left to be fetched."""
        found = [place for digest, place in self._missing.items() if digest in older.offsets]
        try:
            with await in_disk_thread(Source, target) as source:
                for batch in _batches(found):
                    self._note_reused(await in_cpu_thread(_copied, source, older, staging, batch))
        except SourceError:
            return

    def missing_size(self) -> int:
        """Bytes that are still to be filled."""
        return sum(place.size for place in self._missing.values())

    async def download(self, staging: _Staging) -> None:
        """Fill what is missing from the repository, several batches at a time."""
        batches = _batches(list(self._missing.values()))
        async with task_group() as group:
            for _ in range(BATCHES_IN_FLIGHT):
                group.create_task(self._download_batches(batches, staging))

    async def _download_batches(self, batches: Iterator[list[_Place]], staging: _Staging) -> None:
        async with BufferPool(count=1, size=BATCH_SIZE).take() as buffer:
            for batch in batches:
                digests = [place.chunk.digest for place in batch]
                frames = await self._repository.get(digests, buffer, moved=self._count_moved)
                try:
                    await in_cpu_thread(_write, staging, batch, frames)
                except DamagedChunk:
                    # Whoever pushes the file again mends it: the repository must know that it has to ask for it.
                    with suppress(FilestoreError):
                        await self._repository.recheck(digests)
                    raise
                self._under_way -= sum(len(frame) for frame in frames if frame is not None)
                self._written += sum(place.size for place in batch)
                self._report_progress()

    def _note_reused(self, places: list[_Place]) -> None:
        for place in places:
            del self._missing[place.chunk.digest]
            self.reused += place.size
        self._report_progress()

    def _count_moved(self, size: int) -> None:
        self.moved += size
        self._under_way += size
        self._report_progress()

    def _report_progress(self) -> None:
        if self._report is not None:
            # What is under way counts with its encoded bytes; what a retry takes back is not taken off the bar.
            self._done = max(self._done, min(self._manifest.size, self.reused + self._written + self._under_way))
            self._report(Progress(self._manifest.size, self._done, self.moved, self.reused, self._read))


def _batches(places: Iterable[_Place]) -> Iterator[list[_Place]]:
    batch: list[_Place] = []
    held = 0
    for place in list(places):
        size = frame_limit(place.chunk.size)
        if held + size > BATCH_SIZE:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += size
    if batch:
        yield batch


def _held(staging: _Staging, places: list[_Place]) -> list[_Place]:
    """Those of `places` whose chunk the staging file holds; afterwards it holds it everywhere."""
    found = []
    for place in places:
        content = _thread_scratch()[: place.chunk.size]
        for offset in place.offsets:
            if not staging.has_data(offset, place.chunk.size) or not staging.read_into(content, offset):
                continue
            if chunk_digest(content) == place.chunk.digest:
                for other in place.offsets:
                    if other != offset:
                        staging.write(content, other)
                found.append(place)
                break
    return found


def _copied(source: Source, older: _Older, staging: _Staging, places: list[_Place]) -> list[_Place]:
    """Those of `places` whose chunk could be copied from the older file."""
    found = []
    for place in places:
        content = _thread_scratch()[: place.chunk.size]
        source.read_into(content, older.offsets[place.chunk.digest])
        if chunk_digest(content) == place.chunk.digest:
            for offset in place.offsets:
                staging.write(content, offset)
            found.append(place)
    return found


def _write(staging: _Staging, places: list[_Place], frames: list[memoryview | None]) -> None:
    """Decode, verify and write each frame. Raises DamagedChunk, ChunksMissing, InvalidManifest, _OvertakenError."""
    staging.check_ours()
    for place, frame in zip(places, frames, strict=True):
        digest, size = place.chunk
        if frame is None:
            raise ChunksMissing(str(digest))
        try:
            content = _thread_decoder().decode(Frame(digest, frame), _thread_scratch())
        except InvalidFrame as error:
            raise DamagedChunk(str(digest), error.reason) from None
        if len(content) != size:
            raise InvalidManifest(f"chunk {digest} has {len(content)} bytes, it says {size}")
        for offset in place.offsets:
            staging.write(content, offset)
