"""Compute the secondary digests of a stored file, or of all files of a stored tree, from their verified chunks.

    hashing = TreeHashing(repository, tree, pause=pause)
    large = await hashing.large_files()
    packed = await hashing.run(what the index knows of them, keep=keep)

The chunks are read in the order of the zip file, each once, and those of files whose digests are known are not read. One
batch is in memory at a time.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from filestore.core.batches import batched_by_size
from filestore.core.content_digests import EMPTY, PACKED_SIZE, ContentHasher, FileDigests
from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.codec import frame_limit
from filestore.format.zip.checksum import crc32
from filestore.format.zip.inflate import Inflater
from filestore.format.zip.read import Extent, Member, check_crc, check_descriptor, check_local_header
from filestore.repository.protocol import Repository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.receive_batch import BatchReceiver, BatchWriter
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree

READ_SIZE = 4 << 20
"""Decoded bytes of chunks that are read, decoded and hashed together, in one thread."""
READ_COUNT = 256
"""Chunks that are read together, if they are tiny."""
KEEP_SIZE = 64 << 20
"""Large files of about so many bytes are hashed between two calls of `keep`, so that little is done again after a kill."""


class Work(NamedTuple):
    """What one batch took in its thread."""

    size: int
    """Bytes of content."""
    seconds: float
    cpu_seconds: float
    """Less than `seconds` by how long the thread waited for a core, or for the interpreter lock."""


Pause = Callable[[Work], Awaitable[None]]
"""Called after each batch. It may wait, so that others have the cores."""


class LargeFile(NamedTuple):
    """A file of a tree whose chunks are its own, so that they are the same in every tree that has it."""

    digest: Digest
    """The digest of the manifest that it would have alone."""
    size: int
    start: int
    """Where its content begins in the zip file."""


Keep = Callable[[Sequence[tuple[LargeFile, FileDigests]]], Awaitable[None]]
"""Called with large files that were hashed."""


async def hash_file(repository: Repository, manifest: Manifest, *, pause: Pause) -> FileDigests:
    """Return the digests of a stored file.

    Raises DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    writer = _WholeFile(manifest.size)
    batches = batched_by_size(manifest.chunks, lambda chunk: chunk.size, limit=READ_SIZE, count_limit=READ_COUNT)
    await _read(repository, batches, writer, pause)
    return writer.hasher.digests()


class TreeHashing:
    """The computation of the digests of all files of a tree. Use it once."""

    def __init__(self, repository: Repository, tree: StoredTree, *, pause: Pause) -> None:
        self._repository = repository
        self._tree = tree
        self._pause = pause
        self._survey: _Survey | None = None

    async def large_files(self) -> list[LargeFile]:
        """Return the large files, equal ones once. Their secondary digests may be known from another tree."""
        survey = await self._surveyed()
        return list({file.digest: file for file in reversed(survey.large.values())}.values())

    async def run(self, known: Mapping[Digest, FileDigests], *, keep: Keep) -> bytes:
        """Return the packed digests of all files, in the order of the members.

        `known` has secondary digests by file digests. `keep` is called with the large files that are not in it.

        Raises InvalidArchive if the data of a file is not what the central directory says; DamagedChunk, ChunksMissing,
        StorageError, TransferError.
        """
        files = await in_cpu_thread(_Files, self._tree, await self._surveyed(), known)
        unkept = 0

        async def keep_some(work: Work) -> None:
            nonlocal unkept
            unkept += work.size
            if unkept >= KEEP_SIZE and files.ended:
                unkept = 0
                await keep(files.take_ended())
            await self._pause(work)

        await _read(self._repository, files.batches(), files, keep_some)
        if files.ended:
            await keep(files.take_ended())
        return await in_cpu_thread(files.packed)

    async def _surveyed(self) -> _Survey:
        if self._survey is None:
            self._survey = await in_cpu_thread(_surveyed, self._tree)
        return self._survey


async def _read(repository: Repository, batches: Iterator[list[Chunk]], writer: _Timed, pause: Pause) -> None:
    """Give the verified content of batches to `writer`."""
    receiver = BatchReceiver(repository, moved=lambda _: None)
    memory = memoryview(b"")
    while (batch := await in_cpu_thread(next, batches, None)) is not None:
        space = sum(frame_limit(chunk.size) for chunk in batch)
        if space > len(memory):
            memory = memoryview(bytearray(space))
        await receiver.receive(batch, memory[:space], writer)
        await pause(writer.work())


class _Timed(BatchWriter):
    """Measures the thread that takes a batch."""

    writes_files = False

    def __init__(self) -> None:
        self._size = 0
        self._began = self._ended = (0.0, 0.0)

    def begin(self) -> None:
        self._size = 0
        self._began = self._ended = (time.perf_counter(), time.thread_time())

    def take(self, number: int, content: memoryview) -> None:
        self.hash(number, content)
        self._size += len(content)
        self._ended = (time.perf_counter(), time.thread_time())

    def hash(self, number: int, content: memoryview) -> None:
        """Take the content of a chunk, as `take` does."""
        raise NotImplementedError

    def work(self) -> Work:
        """Return what the last batch took."""
        return Work(self._size, self._ended[0] - self._began[0], self._ended[1] - self._began[1])


class _WholeFile(_Timed):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.hasher = ContentHasher(size)

    def hash(self, number: int, content: memoryview) -> None:  # noqa: ARG002  # they come in order
        self.hasher.update(content)


class _Survey:
    """Where the files of a tree are in its zip file, by their numbers, which count the files in the order of the members."""

    def __init__(self) -> None:
        self.members = array("I")
        """The number of the member that each file is."""
        self.starts = array("Q")
        self.stops = array("Q")
        """The bytes that its digests need. There are none if it is empty."""
        self.large: dict[int, LargeFile] = {}
        """The large files."""


class _Files(_Timed):
    """The files of a tree, in the order of their data. Its methods but `take_ended` are called in threads."""

    def __init__(self, tree: StoredTree, survey: _Survey, known: Mapping[Digest, FileDigests]) -> None:
        super().__init__()
        self.ended: list[tuple[LargeFile, FileDigests]] = []
        """Large files that were hashed."""
        self._tree = tree
        self._survey = survey
        self._found = dict(known)
        self._packed = bytearray(len(survey.members) * PACKED_SIZE)
        self._chunk_numbers: list[int] = []
        """The chunks of the batch that was given last."""
        seen = set(known)
        self._skipped: set[int] = set()
        """Files that need not be read: they are known, or equal to one before them."""
        for number, file in survey.large.items():
            if file.digest in seen:
                self._skipped.add(number)
            seen.add(file.digest)
        self._numbers = self._to_read()
        self._number = next(self._numbers, None)
        """The file that is read now."""
        self._hasher: _EntryHasher | None = None

    def take_ended(self) -> list[tuple[LargeFile, FileDigests]]:
        """Return the large files that were hashed since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def batches(self) -> Iterator[list[Chunk]]:
        """Yield the chunks to read. A batch must be taken before the next one is asked for."""
        chunks = self._tree.manifest.chunks
        numbered = ((number, chunks[number]) for number in self._chunks_to_read())
        for batch in batched_by_size(numbered, lambda each: each[1].size, limit=READ_SIZE, count_limit=READ_COUNT):
            self._chunk_numbers = [number for number, _ in batch]
            yield [chunk for _, chunk in batch]

    def hash(self, number: int, content: memoryview) -> None:
        start = self._tree.offsets[self._chunk_numbers[number]]
        stop = start + len(content)
        while self._number is not None and (begin := self._survey.starts[self._number]) < stop:
            end = self._survey.stops[self._number]
            if self._hasher is None:
                self._hasher = _EntryHasher(self._tree.members[self._survey.members[self._number]], begin)
            self._hasher.update(content[max(begin - start, 0) : end - start])
            if end > stop:
                return
            self._end(self._number, self._hasher.finish())
            self._number, self._hasher = next(self._numbers, None), None

    def packed(self) -> bytes:
        """Return the digests of all files, when all chunks were taken."""
        survey = self._survey
        for number, file in survey.large.items():
            self._put(number, self._found[file.digest])
        for number, (start, stop) in enumerate(zip(survey.starts, survey.stops, strict=True)):
            if start == stop and number not in survey.large:
                self._put(number, EMPTY)
        return bytes(self._packed)

    def _to_read(self) -> Iterator[int]:
        """Yield the files that must be read."""
        survey = self._survey
        for number, (start, stop) in enumerate(zip(survey.starts, survey.stops, strict=True)):
            if start < stop and number not in self._skipped:
                yield number

    def _chunks_to_read(self) -> Iterator[int]:
        offsets = self._tree.offsets
        following = 0
        for number in self._to_read():
            first = max(bisect_right(offsets, self._survey.starts[number]) - 1, following)
            following = max(bisect_left(offsets, self._survey.stops[number], first), following)
            yield from range(first, following)

    def _end(self, number: int, digests: FileDigests) -> None:
        self._put(number, digests)
        large = self._survey.large.get(number)
        if large is not None:
            self._found[large.digest] = digests
            self.ended.append((large, digests))

    def _put(self, number: int, digests: FileDigests) -> None:
        self._packed[number * PACKED_SIZE : (number + 1) * PACKED_SIZE] = digests.packed


class _EntryHasher:
    """The content of one file, from the bytes of its entry that arrive in order."""

    def __init__(self, member: Member, start: int) -> None:
        """The bytes begin at `start`: with its data, or with its local header."""
        self._member = member
        self._position = start
        self._head = bytearray()
        self._rest = bytearray()
        self._extent: Extent | None = None if start == member.start else member.extent
        self._inflater = Inflater(member) if member.is_deflated else None
        self._hasher = ContentHasher(member.size)
        self._crc = 0

    def update(self, piece: memoryview) -> None:
        """Take the next bytes. Raises InvalidArchive."""
        if self._extent is None:
            # Content may follow in the same piece: `head_size` is a limit where a descriptor follows the data.
            part = piece[: self._member.head_size - len(self._head)]
            self._head += part
            if len(self._head) < self._member.head_size:
                return
            self._extent = check_local_header(self._member, self._head)
            begun = memoryview(self._head)[self._extent.start - self._member.start :]
            self._position = self._extent.start
            self._take(begun)
            piece = piece[len(part) :]
        self._take(piece)

    def finish(self) -> FileDigests:
        """Return the digests of the content, when all bytes were taken. Raises InvalidArchive."""
        if self._rest:
            check_descriptor(self._member, self._rest)
        if self._inflater is None:
            check_crc(self._member, self._crc)
        else:
            self._inflater.finish()
        return self._hasher.digests()

    def _take(self, piece: memoryview) -> None:
        if self._extent is None:
            raise AssertionError("the local header comes first")
        data = piece[: max(self._extent.end - self._position, 0)]
        self._position += len(piece)
        self._rest += piece[len(data) :]
        if self._inflater is None:
            self._crc = crc32(data, self._crc)
            self._hasher.update(data)
            return
        for content in self._inflater.inflate(data):
            self._hasher.update(content)


def _surveyed(tree: StoredTree) -> _Survey:
    survey = _Survey()
    for member_number, member in enumerate(tree.members):
        if member.is_folder or member.is_link:
            continue
        number = len(survey.members)
        extent = member.extent
        # The local header says where the data begins, unless the central directory does.
        start, stop = (member.start, member.end) if extent is None or member.is_deflated else extent
        survey.members.append(member_number)
        survey.starts.append(start)
        survey.stops.append(stop if member.size else start)
        if member.size >= SEGMENT_MIN and extent is not None and not member.is_deflated:
            large = _large_file(tree, member, extent)
            if large is not None:
                survey.large[number] = large
    return survey


def _large_file(tree: StoredTree, member: Member, extent: Extent) -> LargeFile | None:
    """Return a file as a large one, if its chunks are its own."""
    chunks = tree.chunks_of(StoredEntry(member.path, EntryKind.FILE, member.size, extent=extent))
    if chunks is None:
        return None
    return LargeFile(Manifest.build(chunks, chunking_version=tree.manifest.chunking_version).digest, member.size, extent.start)
