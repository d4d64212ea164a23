"""The entries of a stored tree as a push would list them, and their content, for threads that may wait for the repository."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from itertools import accumulate
from typing import NamedTuple

from filestore.core.manifest import Chunk
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.codec import frame_limit
from filestore.format.zip.checksum import crc32
from filestore.format.zip.inflate import Inflater
from filestore.format.zip.read import Extent, Member, check_crc, check_descriptor, check_local_header, link_target
from filestore.format.zip.write import Entry, PlacedEntry, central_header, end_records, local_header_size
from filestore.repository.protocol import Repository
from filestore.transfer.edits.content import Sums
from filestore.transfer.receive_batch import BatchReceiver
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree

KEPT_SIZE = 8 << 20
"""Bytes of the chunks that were read last. Neighbouring small files are in one chunk."""
_DEFLATED_SIZE = 1 << 20
"""Bytes of deflated data that are read at a time."""


class ChunkReader:
    """Reads chunks for one thread at a time, which waits while the event loop receives them.

    Make it in the task that stores. No thread may use it that the repository may need meanwhile: neither those for work of the
    processor nor those that wait for a disk.
    """

    def __init__(self, repository: Repository) -> None:
        self._batches = BatchReceiver(repository, moved=lambda _: None)
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept_size = 0
        self.read = 0
        """Bytes of the chunks that were read so far."""

    def content(self, chunk: Chunk) -> bytes:
        """Return the verified content of a chunk. Raises DamagedChunk, ChunksMissing, StorageError, TransferError."""
        found = self._kept.get(chunk.digest)
        if found is None:
            # In the context of the task that stores, so that it counts as work for its namespace.
            receiving = self._context.copy().run(asyncio.run_coroutine_threadsafe, self._receive(chunk), self._loop)
            found = receiving.result()
            self.read += len(found)
            self._keep(chunk, found)
        self._kept.move_to_end(chunk.digest)
        return found

    def read_into(self, chunks: Sequence[Chunk], offsets: Sequence[int], memory: memoryview, at: int) -> None:
        """Fill `memory` with the bytes from `at` on of a content that has these chunks, which begin at these offsets."""
        number = bisect_right(offsets, at) - 1
        while memory:
            content = self.content(chunks[number])
            start = at - offsets[number]
            part = memory[: len(content) - start]
            part[:] = memoryview(content)[start : start + len(part)]
            memory = memory[len(part) :]
            at += len(part)
            number += 1

    async def _receive(self, chunk: Chunk) -> bytes:
        writer = _Copy()
        await self._batches.receive([chunk], memoryview(bytearray(frame_limit(chunk.size))), writer)
        return writer.content

    def _keep(self, chunk: Chunk, content: bytes) -> None:
        self._kept[chunk.digest] = content
        self._kept_size += len(content)
        while self._kept_size > KEPT_SIZE and len(self._kept) > 1:
            self._kept_size -= len(self._kept.popitem(last=False)[1])


class _Copy:
    """Keeps the content of one chunk."""

    writes_files = False
    content = b""

    def begin(self) -> None:
        pass

    def take(self, _number: int, content: memoryview) -> None:
        self.content = bytes(content)


class ChunksContent:
    """The content of a file of which all chunks are stored."""

    def __init__(self, reader: ChunkReader, chunks: Sequence[Chunk], *, crc: int | None = None, sums: Sums | None = None) -> None:
        self.chunks = chunks
        self.crc = crc
        self.sums = sums
        self._reader = reader
        self._offsets = array("Q", accumulate((chunk.size for chunk in chunks), initial=0))
        self.size = self._offsets.pop()

    def read_into(self, memory: memoryview, offset: int) -> None:
        self._reader.read_into(self.chunks, self._offsets, memory, offset)

    def check(self, crc: int) -> None:
        """Do nothing: all chunks were verified."""

    def close(self) -> None:
        """Do nothing, because nothing is open."""


class MemberContent:
    """The content of a member of a stored zip file. Its structure is checked while it is read, as where it is unpacked."""

    sums = None

    def __init__(self, reader: ChunkReader, tree: StoredTree, number: int, *, extent: Extent | None = None) -> None:
        """`extent` is where its data is, if that needs no look at its local header."""
        self._member = tree.members[number]
        self._number = number
        self._reader = reader
        self._tree = tree
        self._extent = extent
        self._inflated: Iterator[bytes] = iter(())
        self._inflater: Inflater | None = None
        self._piece = memoryview(b"")
        self._reached = 0
        """Where the inflated content begins that was not read yet, with `_piece`."""
        self.size = self._member.size
        self.crc = self._member.crc

    @property
    def chunks(self) -> Sequence[Chunk] | None:
        """Its chunks, if they are those of the file alone."""
        member = self._member
        kind = EntryKind.LINK if member.is_link else EntryKind.FILE
        entry = StoredEntry(member.path, kind, member.size, member.is_executable, self._number, member.extent, member.is_deflated)
        return self._tree.chunks_of(entry)

    def read_into(self, memory: memoryview, offset: int) -> None:
        extent = self._located()
        if not self._member.is_deflated:
            self._read(memory, extent.start + offset)
            return
        if offset < self._reached or self._inflater is None:
            self._inflater = Inflater(self._member)
            self._inflated = self._inflate(self._inflater, extent)
            self._piece, self._reached = memoryview(b""), 0
        self._skip(offset - self._reached)
        while memory:
            part = self._next(len(memory))
            memory[: len(part)] = part
            memory = memory[len(part) :]
        if self._reached == self.size:
            deque(self._inflated, maxlen=0)  # refuses what follows
            self._inflater.finish()

    def link_target(self) -> str:
        """Read the target of a link. Raises InvalidArchive for one that is never allowed."""
        content = bytearray(self.size)
        self.read_into(memoryview(content), 0)
        self.check(crc32(content))
        return link_target(self._member, content)

    def check(self, crc: int) -> None:
        """Check the checksum of what was read. Raises InvalidArchive."""
        check_crc(self._member, crc)

    def close(self) -> None:
        """Forget what is inflated."""
        self._inflater, self._inflated, self._piece, self._reached = None, iter(()), memoryview(b""), 0

    def _located(self) -> Extent:
        if self._extent is None:
            member = self._member
            head = bytearray(member.head_size)
            self._read(memoryview(head), member.start)
            extent = check_local_header(member, head)
            behind = bytearray(member.end - extent.end)
            self._read(memoryview(behind), extent.end)
            check_descriptor(member, behind)
            self._extent = extent
        return self._extent

    def _read(self, memory: memoryview, at: int) -> None:
        self._reader.read_into(self._tree.manifest.chunks, self._tree.offsets, memory, at)

    def _inflate(self, inflater: Inflater, extent: Extent) -> Iterator[bytes]:
        data = memoryview(bytearray(min(_DEFLATED_SIZE, extent.end - extent.start)))
        for start in range(extent.start, extent.end, _DEFLATED_SIZE):
            part = data[: extent.end - start]
            self._read(part, start)
            yield from inflater.inflate(part)

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._next(size))

    def _next(self, limit: int) -> memoryview:
        """Return the next inflated bytes, at most `limit`. Raises InvalidArchive."""
        if not self._piece:
            piece = next(self._inflated, None)
            if piece is None:
                check_crc(self._member, None)
            self._piece = memoryview(piece or b"")
        part, self._piece = self._piece[:limit], self._piece[limit:]
        self._reached += len(part)
        return part


class Layout(NamedTuple):
    """Where things are in a zip that our writer made."""

    offsets: Sequence[int]
    """The offsets of the local headers, and then that of the central directory."""
    ends: Sequence[int]
    """The ends of the segments."""


class StoredEntries:
    """The entries of a stored tree, in the order of a zip that a push makes of its folder.

    Making it reads the targets of links.
    """

    def __init__(self, tree: StoredTree, reader: ChunkReader) -> None:
        """Blocks. Raises InvalidArchive, DamagedChunk, ChunksMissing, StorageError, TransferError."""
        self.tree = tree
        self._reader = reader
        found = sorted(self._listed(), key=lambda each: sort_key(each.entry))
        self.entries = [each.entry for each in found]
        self.crcs = array("I", (each.crc for each in found))
        self.file_numbers = array("Q", (each.file_number for each in found))
        """The place of each among the files of the zip, in the order of their data. It counts for files only."""
        self._numbers = array("Q", (each.number for each in found))
        self.layout = self._own_layout()
        """None for a zip that another program made. Nothing is known about what is between its contents."""

    def content(self, place: int) -> MemberContent:
        """Return the content of a file or a link."""
        member = self.tree.members[self._numbers[place]]
        extent = None if self.layout is None else member.extent
        return MemberContent(self._reader, self.tree, self._numbers[place], extent=extent)

    def file_number(self, path: str) -> int:
        """Return the number of the file at a path, which exists, among the files of the zip."""
        return self.file_numbers[bisect_left(self.entries, path, key=sort_key)]

    def _listed(self) -> Iterator[_Listed]:
        folders = {""}
        own_entries: dict[str, int] = {}
        file_number = 0
        for number, member in enumerate(self.tree.members):
            _note_folders(member.path, folders)
            if member.is_folder:
                own_entries.setdefault(member.path, number)
                continue
            yield _Listed(self._entry(number, member), member.crc, number, file_number)
            file_number += not member.is_link
        # A push lists only empty folders.
        for path in own_entries.keys() - folders:
            yield _Listed(Entry(path, is_folder=True), 0, own_entries[path], 0)

    def _entry(self, number: int, member: Member) -> Entry:
        if not member.is_link:
            return Entry(member.path, member.size, member.is_executable)
        target = MemberContent(self._reader, self.tree, number).link_target()
        return Entry(member.path, member.size, target=target)

    def _own_layout(self) -> Layout | None:
        """Return the layout if the central directory is the one that our writer makes, byte for byte."""
        tail, directory_size, at = self.tree.tail, 0, 0
        offsets, ends = array("Q"), array("Q")
        for entry, crc in zip(self.entries, self.crcs, strict=True):
            header = central_header(PlacedEntry(entry, crc, at))
            if not tail.startswith(header, directory_size):
                return None
            directory_size += len(header)
            offsets.append(at)
            at += local_header_size(len(entry.stored_name), entry.size) + entry.size
            if entry.size >= SEGMENT_MIN:
                ends.append(at - entry.size)
                ends.append(at)
        size = self.tree.manifest.size
        if tail[directory_size:] != end_records(count=len(offsets), size=directory_size, offset=at) or at + len(tail) != size:
            return None
        offsets.append(at)
        ends.append(size)
        return Layout(offsets, ends)


def seems_ours(tree: StoredTree) -> bool:
    """Return whether the first header of a zip is one that our writer makes. `StoredEntries` looks at all of them."""
    if not tree.members or tree.members[0].start:
        return not tree.members
    member = tree.members[0]
    if member.is_link:
        return True  # its target is in its content
    entry = Entry(member.path, member.size, member.is_executable, member.is_folder)
    return tree.tail.startswith(central_header(PlacedEntry(entry, member.crc, 0)))


class _Listed(NamedTuple):
    entry: Entry
    crc: int
    number: int
    file_number: int


def sort_key(entry: Entry) -> str:
    """Return what the entries of a zip are sorted by. The order of code points is that of their UTF-8."""
    return f"{entry.name}/" if entry.is_folder else entry.name


def _note_folders(path: str, folders: set[str]) -> None:
    """Add the folders that a path is in."""
    end = path.rfind("/")
    while end >= 0 and path[:end] not in folders:
        folders.add(path[:end])
        end = path.rfind("/", 0, end)
