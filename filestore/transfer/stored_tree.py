"""The members of a stored directory or zip file, and the content of one of them, without the rest of the file.

    tree = await StoredTree.open(repository, record.digest)
    entry = tree.entry("tokenizer/config.json")
    async for piece in read_entry(repository, tree, entry): ...

Only the central directory is read first. Then only the chunks are read that have a part of what is asked for. All of them
are verified.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from enum import StrEnum
from typing import NamedTuple

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Chunks, Manifest
from filestore.errors import NotFound
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.codec import frame_limit
from filestore.format.zip.checksum import crc32
from filestore.format.zip.inflate import Inflater
from filestore.format.zip.read import (
    DEFAULT_LIMITS,
    TAIL_SIZE,
    End,
    Extent,
    Member,
    Members,
    ZipLimits,
    check_crc,
    check_descriptor,
    check_local_header,
    find_end,
)
from filestore.repository.protocol import Moved, Repository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.receive_batch import BatchReceiver
from filestore.transfer.receiver import Receiver
from filestore.transfer.tree_seed import check_other_parts, read_directory

READ_SIZE = 4 << 20
"""Decoded bytes of chunks that `read_entry` receives together. A single chunk is at most as large."""
READ_COUNT = 1024
"""Chunks that it receives together, if they are tiny."""
_INFLATED_SIZE = 1 << 20
"""Bytes that are inflated in one call in a thread, and given together."""
_FIXED_SIZE = 4096
"""Bytes of the objects of a tree, apart from its tables."""
_AFTER = "\x01"
"""Follows the character that stands for `/` in a key: with it behind the key of a folder, a key is behind all that is in it."""


class EntryKind(StrEnum):
    """What an entry of a stored tree is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


class StoredEntry(NamedTuple):
    """A file, a link or a folder of a stored tree."""

    path: str
    """Relative, its parts joined by `/`. Empty for the tree itself."""
    kind: EntryKind
    size: int = 0
    """Bytes of its content. The content of a link is its target. A folder has none."""
    is_executable: bool = False
    member_number: int | None = None
    """Its place in `StoredTree.members`. None for a folder that is only implied by the paths in it."""
    extent: Extent | None = None
    """The range of its data in the zip file. None for a folder, and where only the local header says where the data begins."""
    is_deflated: bool = False
    """Whether its data must be inflated. Otherwise the data is the content."""


class StoredTree:
    """The members of a stored zip file, by their paths. It never changes, and needs no repository after `open`.

    Its order is that of paths, part by part: what is in a folder follows the folder directly.

    It keeps the central directory and a few arrays, and makes an entry when it is asked for: about 130 bytes for each
    member with a path of 60 bytes. A look-up takes about 0.2 ms in a tree of a million members.
    """

    def __init__(self, manifest: Manifest, tail: bytes, end: End, members: Members, order: array[int]) -> None:
        """`order` has the numbers of the members in the order of their paths. `open` makes all of this."""
        self.manifest = manifest
        self.offsets = manifest.offset_table()
        """Where each chunk begins in the zip file."""
        self.tail = tail
        """The bytes of the zip file from the central directory on."""
        self.end = end
        self.members = members
        """In the order of their data."""
        self._order = order

    @classmethod
    async def open(
        cls,
        repository: Repository,
        digest: Digest,
        *,
        manifest: Manifest | None = None,
        name: str = "",
        limits: ZipLimits = DEFAULT_LIMITS,
    ) -> StoredTree:
        """Read the central directory of the stored file with this digest. `name` is what errors call it.

        While it is checked, it takes up to 1 KB of memory for each member; `limits` bounds the members.

        Raises NotAnArchive, InvalidArchive, LimitExceeded, NotFound, DamagedChunk, ChunksMissing, StorageError, TransferError.
        """
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(digest))
        receiving = Receiver(repository, manifest, None)
        end, tail = await read_directory(receiving, name or str(digest), manifest.size, limits)
        tree = await in_cpu_thread(_parsed, manifest, tail, end, limits)
        await check_other_parts(receiving, tree.members, end)
        return tree

    @classmethod
    def of_tail(cls, manifest: Manifest, tail: bytes, *, limits: ZipLimits = DEFAULT_LIMITS) -> StoredTree:
        """Return the tree of a zip file of ours, from its bytes from the central directory on.

        Raises InvalidArchive, LimitExceeded.
        """
        return _parsed(manifest, tail, find_end(tail[-TAIL_SIZE:], manifest.size, limits=limits), limits)

    @property
    def size_in_memory(self) -> int:
        """Bytes of memory that it takes."""
        arrays = len(self._order) * self._order.itemsize + 8 * len(self.offsets)
        return self.members.size_in_memory + arrays + len(self.manifest.encoded) + _FIXED_SIZE

    def entry(self, path: str) -> StoredEntry | None:
        """Return the entry at `path`, or None if there is none. The empty path is the tree itself."""
        if not path:
            return StoredEntry("", EntryKind.FOLDER)
        if "\0" in path:
            return None
        at = self._place(_key(path))
        if at == len(self._order):
            return None
        found = self.members.path(self._order[at])
        if found == path:
            return self._entry(at)
        return StoredEntry(path, EntryKind.FOLDER) if found.startswith(f"{path}/") else None

    def entries(self, folder: str = "", *, recursive: bool, after: str | None = None) -> Iterator[StoredEntry]:
        """Yield what is in a folder, in the order of the paths. With `recursive`, also what is in its folders.

        With `after`, a path in the folder, yield only what follows this path, so that a listing can go on where another one
        ended. Without such a folder, it yields nothing.
        """
        prefix = f"{folder}/" if folder else ""
        at = 0 if after is None else self._place(_key(after))
        at = max(at, self._place(_key(prefix)))
        latest = after
        """The path before the next one: the folders that both are in were yielded."""
        while at < len(self._order):
            path = self.members.path(self._order[at])
            if not path.startswith(prefix):
                return
            if not recursive:
                child = prefix + path[len(prefix) :].partition("/")[0]
                if child != latest:
                    yield self._entry(at) if child == path else StoredEntry(child, EntryKind.FOLDER)
                at = self._place(_key(child) + _AFTER) if child != path or self._is_folder(at) else at + 1
                latest = child
                continue
            for implied in _folders_between(prefix, latest, path):
                yield StoredEntry(implied, EntryKind.FOLDER)
            if path != latest:
                yield self._entry(at)
            latest = path
            at += 1

    def chunks_of(self, entry: StoredEntry) -> Chunks | None:
        """Return the chunks that have exactly the content of a file, so that their manifest is that of the file alone.

        Return None for an entry whose content shares a chunk with something else, such as a file of less than 256 KiB.
        """
        if entry.kind is not EntryKind.FILE:
            return None
        if not entry.size:
            return self.manifest.chunks.between(0, 0)
        if entry.size < SEGMENT_MIN or entry.is_deflated or entry.extent is None:
            return None
        first = bisect_left(self.offsets, entry.extent.start)
        stop = bisect_left(self.offsets, entry.extent.end, first)
        if first == len(self.offsets) or self.offsets[first] != entry.extent.start:
            return None
        end = self.offsets[stop] if stop < len(self.offsets) else self.manifest.size
        return self.manifest.chunks.between(first, stop) if end == entry.extent.end else None

    def member_numbers(self, folder: str) -> array[int]:
        """Return the numbers of all members that are in a folder, also in folders of it, in the order of their paths."""
        if not folder:
            return self._order
        return self._order[self._place(_key(folder) + "\0") : self._place(_key(folder) + _AFTER)]

    def overlapping(self, wanted: range) -> range:
        """Return the numbers of the chunks that have a part of these bytes of the zip file."""
        if not wanted:
            return range(0)
        return range(bisect_right(self.offsets, wanted.start) - 1, bisect_left(self.offsets, wanted.stop))

    def _place(self, key: str) -> int:
        """Return the place in `_order` of the first member whose key is not less."""
        return bisect_left(self._order, key, key=lambda number: _key(self.members.path(number)))

    def _is_folder(self, at: int) -> bool:
        return self.members[self._order[at]].is_folder

    def _entry(self, at: int) -> StoredEntry:
        number = self._order[at]
        member = self.members[number]
        if member.is_folder:
            return StoredEntry(member.path, EntryKind.FOLDER, member_number=number)
        kind = EntryKind.LINK if member.is_link else EntryKind.FILE
        return StoredEntry(member.path, kind, member.size, member.is_executable, number, member.extent, member.is_deflated)


async def read_entry(
    repository: Repository,
    tree: StoredTree,
    entry: StoredEntry,
    start: int = 0,
    stop: int | None = None,
    *,
    moved: Moved | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield the content of a file or a link, or the part of it from `start` to `stop`, in pieces of at most 4 MiB.

    Only the chunks are received that have a part of the content; `moved` is called with the encoded bytes that arrive. A
    deflated entry is received and inflated from its beginning on.
    Where the whole content is read, the last piece comes after all checks: a caller that counts the bytes sees whether they
    passed.

    Raises InvalidArchive if the data of the entry is not what the central directory says; NotFound for a folder; DamagedChunk,
    ChunksMissing, StorageError, TransferError.
    """
    if entry.member_number is None or entry.kind is EntryKind.FOLDER:
        raise NotFound(entry.path)
    member = tree.members[entry.member_number]
    stop = member.size if stop is None else min(stop, member.size)
    start = min(start, stop)
    reader = _ChunkReader(repository, tree, moved)
    extent = entry.extent or check_local_header(member, await reader.all_of(range(member.start, member.start + member.head_size)))
    if entry.is_deflated:
        pieces = _inflated(reader, member, extent, start, stop)
    else:
        wanted = range(extent.start + start, extent.start + stop)
        pieces = _checked(reader, member, wanted) if len(wanted) == member.size else reader.pieces(wanted)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


async def _checked(reader: _ChunkReader, member: Member, wanted: range) -> AsyncGenerator[bytes, None]:
    """Yield the whole content of a stored entry. The last piece comes after the check of its checksum."""
    crc, last = 0, b""
    async for piece in reader.pieces(wanted):
        if last:
            yield last
        crc, last = await in_cpu_thread(crc32, piece, crc), piece
    await reader.check_end(member, wanted.stop)
    check_crc(member, crc)
    if last:
        yield last


async def _inflated(reader: _ChunkReader, member: Member, extent: Extent, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    """Yield a part of the content of a deflated entry. The last piece of the whole comes after all checks."""
    inflater = Inflater(member)
    last = b""
    at = 0
    async for data in reader.pieces(range(extent.start, extent.end)):
        source = inflater.inflate(data)
        while piece := await in_cpu_thread(_gathered, source):
            part = piece[max(start - at, 0) : max(stop - at, 0)]
            at += len(piece)
            if part:
                if last:
                    yield last
                last = part
            if at >= stop and stop < member.size:
                if last:
                    yield last
                return
    await reader.check_end(member, extent.end)
    inflater.finish()
    if last:
        yield last


def _gathered(source: Iterator[bytes]) -> bytes:
    """Return the next pieces of `source`, or nothing at its end."""
    pieces: list[bytes] = []
    size = 0
    for piece in source:
        pieces.append(piece)
        size += len(piece)
        if size >= _INFLATED_SIZE:
            break
    return b"".join(pieces)


class _ChunkReader:
    """Receives ranges of a stored file."""

    def __init__(self, repository: Repository, tree: StoredTree, moved: Moved | None) -> None:
        self._tree = tree
        self._batches = BatchReceiver(repository, moved=moved or (lambda _: None))

    async def pieces(self, wanted: range) -> AsyncGenerator[bytes, None]:
        """Yield these bytes, verified. Raises DamagedChunk, ChunksMissing, StorageError, TransferError."""
        numbers = self._tree.overlapping(wanted)
        at = self._tree.offsets[numbers.start] if numbers else 0
        chunks = (self._tree.manifest.chunks[number] for number in numbers)
        for batch in batched_by_size(chunks, lambda chunk: chunk.size, limit=READ_SIZE, count_limit=READ_COUNT):
            writer = _Gatherer(batch, at, wanted)
            buffer = memoryview(bytearray(sum(frame_limit(chunk.size) for chunk in batch)))
            await self._batches.receive(batch, buffer, writer)
            at += sum(chunk.size for chunk in batch)
            yield b"".join(writer.parts)

    async def all_of(self, wanted: range) -> bytes:
        """Return these bytes, verified."""
        return b"".join([piece async for piece in self.pieces(wanted)])

    async def check_end(self, member: Member, end: int) -> None:
        """Check the descriptor of an entry whose data ends at `end`, if it has one. Raises InvalidArchive."""
        if end < member.end:
            check_descriptor(member, await self.all_of(range(end, member.end)))


class _Gatherer:
    """Keeps the wanted part of each chunk of a batch."""

    writes_files = False

    def __init__(self, batch: Sequence[Chunk], start: int, wanted: range) -> None:
        self.parts: list[bytes] = []
        self._starts = [start]
        for chunk in batch:
            self._starts.append(self._starts[-1] + chunk.size)
        self._wanted = wanted

    def begin(self) -> None:
        pass

    def take(self, number: int, content: memoryview) -> None:
        start = self._starts[number]
        self.parts.append(bytes(content[max(self._wanted.start - start, 0) : max(self._wanted.stop - start, 0)]))


def _parsed(manifest: Manifest, tail: bytes, end: End, limits: ZipLimits) -> StoredTree:
    members = Members.checked(tail, end, limits=limits)
    order = array("I")
    latest = ""  # some archives have an entry for the tree itself, and some name a folder twice
    keys = [_key(members.path(number)) for number in range(len(members))]
    for number in sorted(range(len(keys)), key=keys.__getitem__):
        if keys[number] != latest:
            order.append(number)
            latest = keys[number]
    del keys
    return StoredTree(manifest, tail, end, members, order)


def _key(path: str) -> str:
    """Return what paths are sorted by. No path has a NUL, so all that a folder has follows the folder itself."""
    return path.replace("/", "\0")


def _folders_between(prefix: str, latest: str | None, path: str) -> Iterator[str]:
    """Yield the folders below `prefix` that `path` is in and `latest`, the path before it, neither is nor is in."""
    before = f"{latest}/" if latest is not None else ""
    end = path.find("/", len(prefix))
    while end >= 0:
        if not before.startswith(path[: end + 1]):
            yield path[:end]
        end = path.find("/", end + 1)
