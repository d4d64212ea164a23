"""Make a new stored tree of a stored one and operations, and send only what the repository does not have."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from filestore.core.batches import batched_by_size
from filestore.core.content_digests import PACKED_SIZE
from filestore.core.manifest import Chunk, Manifest
from filestore.core.progress import Report
from filestore.errors import EntryNotFound, LimitExceeded
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.codec import frame_limit
from filestore.format.zip.checksum import crc32, crc32_combine
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.format.zip.write import Entry
from filestore.repository.protocol import Repository
from filestore.system.threads import in_thread, task_group, thread_pool
from filestore.transfer.edits.content import EditedTree, EntryContent, NewEntry, Sums
from filestore.transfer.edits.operations import (
    CopyFile,
    Operation,
    PutBytes,
    PutChunks,
    PutFile,
    PutSpan,
    checked_operations,
    plan,
)
from filestore.transfer.edits.stored_entries import (
    KEPT_SIZE,
    ChunkReader,
    ChunksContent,
    MemberContent,
    StoredEntries,
    seems_ours,
)
from filestore.transfer.push import WINDOWS_IN_FLIGHT, send
from filestore.transfer.receive_batch import BatchReceiver
from filestore.transfer.sources.file import WINDOW_SIZE
from filestore.transfer.sources.tree_fingerprint import are_chunks_of, held_chunks
from filestore.transfer.stored_tree import EntryKind, StoredTree

_THREADS = 4
"""The threads of edits, each of which may wait for the repository."""
_SUMMED_SIZE = 16 << 20
"""Bytes of a stored file that are read together for its checksum."""
_SUMMED_COUNT = 1024
_AROUND_SIZE = WINDOW_SIZE
"""Bytes of the old tree that are read and cut around changes, about."""
_ENTRY_SIZE = 700
"""Bytes of the objects of one entry."""


@dataclass(frozen=True, slots=True)
class EditResult:
    """What an edit stored. Nothing is recorded: commit `manifest` for that.

    manifest: The manifest of the zip of the new tree.
    entries: The files that were put or copied, in the order of the zip.
    size: Bytes of the zip.
    bytes_read: Bytes of content that were read: of new files, and of the old tree around them.
    bytes_sent: Bytes that were sent: encoded chunks.
    file_count: Files and links of the new tree.
    """

    manifest: Manifest = field(repr=False)
    entries: tuple[NewEntry, ...] = field(repr=False)
    size: int
    bytes_read: int
    bytes_sent: int
    file_count: int
    _sources: array[int] = field(repr=False, compare=False)
    """For each file of the new tree, in the order of the zip: its number among the files of the old tree, and -1 if it is new."""

    def tree_digests(self, old: bytes | None) -> bytes | None:
        """Return the packed secondary digests of all files of the new tree, in the order of its zip.

        `old` are those of the old tree; it is not needed if no file of it is left. Return None if some are not known.
        """
        new = iter(self.entries)
        packed = bytearray()
        for number in self._sources:
            entry = next(new) if number < 0 else None
            source = number if entry is None else entry.copied_file
            if entry is not None and entry.sums is not None:
                packed += entry.sums.sha256 + entry.sums.blob_id
            elif source is None or old is None:
                return None
            else:
                packed += old[source * PACKED_SIZE : (source + 1) * PACKED_SIZE]
        return bytes(packed)


class TreeEdit:
    """A stored tree with operations that make a new one of it.

    >>> edit = TreeEdit(repository, old, [PutBytes("README.md", b"..."), DeleteFolder("onnx")])
    >>> result = await edit.store()
    >>> await repository.commit(result.manifest.encoded, name="team/my-model", kind=Kind.DIRECTORY)

    The zip of the new tree is the one that a push of the resulting folder makes, byte for byte. So they have the same digest.
    Links and executable bits of the old tree stay. A folder whose last file is deleted is gone.

    Cost: what follows an unchanged file of 256 KiB or more, and does not change, is neither read nor cut. Around a change, some
    chunks are read and cut. A large file that is copied or renamed, or given by its chunks and its CRC-32, is not read. Of an
    old tree that another program made, all small files are read and written in our form.

    Memory: see `memory`.
    """

    def __init__(
        self,
        repository: Repository,
        old: StoredTree | None,
        operations: Iterable[Operation],
        *,
        name: str = "the tree",
        size_limit: int | None = None,
        limits: ZipLimits = DEFAULT_LIMITS,
    ) -> None:
        """Check the operations on their own. Without `old`, the old tree is empty. `name` is what errors call it.

        A zip of more than `size_limit` bytes is refused before anything is sent. A deflated old tree may become 200 times as
        large.

        Raises InvalidName for a path that no file may have; InvalidInput for two operations on one path; LimitExceeded.
        """
        self._repository = repository
        self._old = old
        self._operations = checked_operations(operations, limits=limits)
        self._name = name
        self._size_limit = size_limit
        self._limits = limits

    @property
    def memory(self) -> int:
        """About how many bytes of memory `store` takes: for the entries, and for what is scanned and sent at a time.

        Where nothing is known about the cuts around a change, it may be more, up to that of any push.
        """
        count = len(self._operations) + (0 if self._old is None else len(self._old.members))
        whole = 0 if self._old is None or seems_ours(self._old) else self._old.manifest.size
        size = min(whole + sum(map(_new_size, self._operations)) + _AROUND_SIZE, WINDOWS_IN_FLIGHT * WINDOW_SIZE)
        return 2 * size + KEPT_SIZE + count * _ENTRY_SIZE

    async def store(self, *, report: Report | None = None) -> EditResult:
        """Send the chunks of the new tree that the repository does not have, and call `report` as a push does.

        Cancellation: nothing is recorded, and chunks that were sent stay for the grace period.

        Raises EntryNotFound, InvalidInput or InvalidName if the operations do not fit the old tree; LimitExceeded; InvalidArchive
        if the old tree is not what its headers say; SourceUnreadable or SourceChanged for a file of this machine; DamagedChunk
        or ChunksMissing if the repository has lost a part of what is read; StorageError, StorageFull, QuotaExceeded,
        TransferError.
        """
        chunking_version = (await self._repository.identity()).chunking_version
        reader = ChunkReader(self._repository)
        threads = edit_threads()
        make = partial(_Prepared, self._old, self._operations, self._limits, reader, chunking_version, name=self._name)
        prepared = await in_thread(threads, make)
        try:
            if self._size_limit is not None and prepared.tree.size > self._size_limit:
                raise LimitExceeded("the file's size in bytes", prepared.tree.size, self._size_limit, "upload_limit")
            await prepared.sum_stored(self._repository)
            await in_thread(threads, prepared.reuse)
            sent = await send(self._repository, prepared.tree, threads=threads, report=report)
            return await in_thread(threads, prepared.result, sent)
        finally:
            prepared.tree.close()


def _new_size(operation: Operation) -> int:
    """Return about how many bytes of new content are read."""
    match operation:
        case PutBytes(_, content):
            return len(content)
        case PutSpan(_, _, _, size):
            return size
        case PutChunks(_, chunks, None):
            return sum(chunk.size for chunk in chunks)
        case PutFile():
            return WINDOWS_IN_FLIGHT * WINDOW_SIZE
        case _:
            return 0


def edit_threads() -> Executor:
    """Return the threads of edits. They may wait for the repository, so nothing that the repository needs may use them."""
    return thread_pool("edits", _THREADS)


class _Prepared:
    """An edit whose new tree is planned. Its methods block, but for `sum_stored`."""

    def __init__(
        self,
        old: StoredTree | None,
        operations: Sequence[Operation],
        limits: ZipLimits,
        reader: ChunkReader,
        chunking_version: int,
        *,
        name: str,
    ) -> None:
        """Plan the new tree. Raises what `TreeEdit.store` raises."""
        self._reader = reader
        self._old = None if old is None else StoredEntries(old, reader)
        self._name = name
        planned = plan(self._old, operations, self, name=name, limits=limits)
        self.tree = EditedTree(planned, self._old_content, chunking_version=chunking_version)
        self._operations = operations
        self._chunking_version = chunking_version

    def stored(self, chunks: Sequence[Chunk], *, crc: int | None, sums: Sums | None) -> EntryContent:
        """Return the content that has these chunks."""
        return ChunksContent(self._reader, chunks, crc=crc, sums=sums)

    def copied(self, path: str, tree: StoredTree | None) -> tuple[Entry, EntryContent | None]:
        """Return a file, or a link without content, of a stored tree, or of the old one. Raises EntryNotFound."""
        if tree is None and self._old is not None:
            tree = self._old.tree
        found = None if tree is None else tree.entry(path)
        if tree is None or found is None or found.kind is EntryKind.FOLDER or found.member_number is None:
            raise EntryNotFound(self._name, path)
        content = MemberContent(self._reader, tree, found.member_number)
        if found.kind is EntryKind.LINK:
            return Entry(path, found.size, target=content.link_target()), None
        return Entry(path, found.size, found.is_executable), content

    async def sum_stored(self, repository: Repository) -> None:
        """Compute the checksums of large files that are given by their chunks alone."""
        for entry, _, content in self.tree.planned:
            if isinstance(content, ChunksContent) and content.crc is None and entry.size >= SEGMENT_MIN:
                content.crc = await stored_crc(repository, content.chunks)
                self.tree.read += entry.size

    def reuse(self) -> None:
        """Take all chunks that are known, before the first scan."""
        tree, old = self.tree, self._old
        kept = _Kept(array("Q"), array("Q"))
        for place, (_, before, content) in enumerate(tree.planned):
            if before is not None and old is not None:
                kept.then.append(before)
                kept.now.append(place)
                tree.remember(place, old.crcs[before])
            elif content is not None and content.crc is not None:
                tree.remember(place, content.crc)
        if old is not None and old.layout is not None and old.tree.manifest.chunking_version == self._chunking_version:
            manifest, (offsets, ends) = old.tree.manifest, old.layout
            if are_chunks_of(manifest.chunks.sizes(), ends):
                unchanged = zip(*kept, strict=True)
                tree.hold(manifest, held_chunks(manifest.chunks.sizes(), ends, unchanged, offsets, tree.offsets))
        tree.put_known()

    def result(self, bytes_sent: int) -> EditResult:
        """Check what was read, and return the result."""
        self.tree.check_unchanged()
        sources = array("q")
        for entry, before, content in self.tree.planned:
            if content is not None:
                sources.append(-1)
            elif before is not None and self._old is not None and not entry.is_folder and entry.target is None:
                sources.append(self._old.file_numbers[before])
        return EditResult(
            manifest=self.tree.manifest(),
            entries=tuple(self._new_entries()),
            size=self.tree.size,
            bytes_read=self.tree.read,
            bytes_sent=bytes_sent,
            file_count=self.tree.file_count,
            _sources=sources,
        )

    def _new_entries(self) -> Iterator[NewEntry]:
        copies = [each for each in self._operations if isinstance(each, CopyFile)]
        copied: dict[str, int] = {}
        if self._old is not None:
            old = self._old
            copied = {each.path: old.file_number(each.source_path) for each in copies if each.tree in {None, old.tree}}
        for entry in self.tree.new_entries():
            yield entry._replace(copied_file=copied.get(entry.path))

    def _old_content(self, place: int) -> EntryContent:
        assert self._old is not None  # noqa: S101  # the place is one of it
        return self._old.content(place)


class _Kept(NamedTuple):
    """The places of the entries that are as they were, in the old zip and in the new one."""

    then: array[int]
    now: array[int]


async def stored_crc(repository: Repository, chunks: Sequence[Chunk]) -> int:
    """Return the CRC-32 of the content that has these stored chunks. It is read once, in two parts at a time of 16 MiB.

    Raises DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    receiving = BatchReceiver(repository, moved=lambda _: None)
    places = asyncio.Semaphore(2)
    crcs: dict[int, list[tuple[int, int]]] = {}

    async def add(number: int, batch: Sequence[Chunk]) -> None:
        try:
            writer = _Summed()
            buffer = memoryview(bytearray(sum(frame_limit(chunk.size) for chunk in batch)))
            await receiving.receive(batch, buffer, writer)
            crcs[number] = writer.crcs
        finally:
            places.release()

    async with task_group() as group:
        batches = batched_by_size(chunks, lambda chunk: chunk.size, limit=_SUMMED_SIZE, count_limit=_SUMMED_COUNT)
        for number, batch in enumerate(batches):
            await places.acquire()
            group.create_task(add(number, batch))
    whole = 0
    for number in range(len(crcs)):
        for crc, size in crcs[number]:
            whole = crc32_combine(whole, crc, size)
    return whole


class _Summed:
    """Keeps the checksum and the size of each chunk of a batch."""

    writes_files = False

    def __init__(self) -> None:
        self.crcs: list[tuple[int, int]] = []

    def begin(self) -> None:
        pass

    def take(self, _number: int, content: memoryview) -> None:
        self.crcs.append((crc32(content), len(content)))
