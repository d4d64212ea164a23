"""The two sides of a comparison: a stored file or directory, or what a push of a local path would store."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filestore.core.manifest import Chunks, Manifest
from filestore.core.progress import Report
from filestore.core.records import Kind
from filestore.format.zip.read import ZipLimits
from filestore.repository.protocol import Repository, Wanted
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.fetch_entry import find_entry, find_wanted
from filestore.transfer.push import scanned_source
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.stored_ranges import Piece, StoredRanges
from filestore.transfer.stored_tensors import Content
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree
from filestore.transfer.tree_seed import tree_tail

if TYPE_CHECKING:
    from filestore.transfer.sources.file import Source

_READ_SIZE = 1 << 20
"""Bytes of a local file that are read together for its header."""


class ComparedFile(NamedTuple):
    """A file or link of a side."""

    path: str
    size: int
    start: int | None
    """Where its content begins in the stored file. None where only its local header says so, and if it is compressed."""
    kind: EntryKind = EntryKind.FILE
    is_executable: bool = False
    crc: int | None = None


class Side:
    """One of the two that are compared."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        content: Content,
        *,
        tree: StoredTree | None = None,
        file: ComparedFile | None = None,
        folder: str = "",
        is_local: bool = False,
        file_name: str | None = None,
    ) -> None:
        """`name` is how messages call it. `file_name` is the name of a single file, if it is not in `name`: an id has none."""
        self.name = name
        self.file_name = name if file_name is None else file_name
        self.manifest = manifest
        self.content = content
        """Of the whole file, or of the zip file."""
        self.tree = tree
        """None for a single file, which `file` is then."""
        self.is_local = is_local
        self.is_part = bool(folder) or (file is not None and file.size != manifest.size)
        """Whether the stored file has more than what is compared."""
        self._file = file
        self._folder = folder
        self.offsets = manifest.offset_table() if tree is None else tree.offsets

    def files(self) -> Iterator[ComparedFile]:
        """Yield the files and links in the order of their paths, part by part."""
        if self.tree is None:
            if self._file is not None:
                yield self._file
            return
        skipped = len(self._folder) + 1 if self._folder else 0
        for entry in self.tree.entries(self._folder, recursive=True):
            if entry.kind is not EntryKind.FOLDER:
                yield _of_entry(self.tree, entry, entry.path[skipped:])

    def chunks_of(self, start: int, stop: int) -> Chunks | None:
        """Return the chunks that have exactly these bytes, or None if one of them has others too."""
        if start == stop:
            return self.manifest.chunks.between(0, 0)
        first, last = bisect_left(self.offsets, start), bisect_left(self.offsets, stop)
        if first == len(self.offsets) or self.offsets[first] != start:
            return None
        end = self.offsets[last] if last < len(self.offsets) else self.manifest.size
        return self.manifest.chunks.between(first, last) if end == stop else None

    def chunks_around(self, start: int, stop: int) -> tuple[int, Chunks]:
        """Return the chunks that have a part of these bytes, of which there are some, and where they begin in the first one."""
        first = bisect_right(self.offsets, start) - 1
        return start - self.offsets[first], self.manifest.chunks.between(first, bisect_left(self.offsets, stop))


class Part:
    """A part of a content, as a content."""

    def __init__(self, content: Content, start: int, size: int) -> None:
        self.size = size
        self._content = content
        self._start = start

    def stop_of_chunk(self, offset: int) -> int:
        return min(self._content.stop_of_chunk(self._start + offset) - self._start, self.size)

    async def read_into(self, pieces: Sequence[Piece]) -> None:
        await self._content.read_into([(self._start + offset, memory) for offset, memory in pieces])


class _SourceContent:
    """The content that a push would send. It is read again from the files."""

    def __init__(self, source: Source) -> None:
        self.size = source.size
        self._source = source
        self._lock = asyncio.Lock()

    def stop_of_chunk(self, offset: int) -> int:
        return min(offset + _READ_SIZE, self.size)

    async def read_into(self, pieces: Sequence[Piece]) -> None:
        async with self._lock:  # a source has one open file
            for offset, memory in pieces:
                await in_disk_thread(self._source.read_into, memory, offset)


async def stored_side(repository: Repository, wanted: Wanted, *, limits: ZipLimits) -> Side:
    """Read the manifest of a stored file, and of a directory its list of entries.

    Raises InvalidReference, NotFound, EntryNotFound, InvalidArchive, LimitExceeded, and what a read of the repository raises.
    """
    record, reference = await find_wanted(repository, wanted)
    name = str(reference)
    manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
    content = StoredRanges(repository, manifest)
    if record.kind is not Kind.DIRECTORY and reference.entry_path is None:
        return Side(name, manifest, content, file=ComparedFile("", manifest.size, 0), file_name=record.name)
    found = await find_entry(repository, record, reference, limits=limits, manifest=manifest)
    return side_of_tree(name, content, found.tree, found.entry)


def side_of_tree(name: str, content: Content, tree: StoredTree, entry: StoredEntry) -> Side:
    """Return a file, a link or a folder of a stored tree as a side. `content` is that of the whole zip file."""
    if entry.kind is EntryKind.FOLDER:
        return Side(name, tree.manifest, content, tree=tree, folder=entry.path)
    return Side(name, tree.manifest, content, file=_of_entry(tree, entry, ""))


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How a local path is read: the arguments of a push of it."""

    push_cache: PushCache | None
    report: Report | None
    symlinks: Symlinks | str
    include: Sequence[str]
    exclude: Sequence[str]


@asynccontextmanager
async def local_side(repository: Repository, path: Path, options: PushOptions, *, limits: ZipLimits) -> AsyncIterator[Side]:
    """Cut and hash what a push of `path` would send, and keep it open for a block. Raises what `push` raises for its source."""
    chosen = {field.name: getattr(options, field.name) for field in fields(options)}
    async with scanned_source(path, await repository.identity(), **chosen) as (source, manifest):
        content, name = _SourceContent(source), str(path)
        if not isinstance(source, TreeSource):
            yield Side(name, manifest, content, file=ComparedFile("", manifest.size, 0), is_local=True)
            return
        tail = await in_cpu_thread(tree_tail, source)
        tree = await in_cpu_thread(partial(StoredTree.of_tail, limits=limits), manifest, tail)
        yield Side(name, manifest, content, tree=tree, is_local=True)


def _of_entry(tree: StoredTree, entry: StoredEntry, path: str) -> ComparedFile:
    start = None if entry.extent is None or entry.is_deflated else entry.extent.start
    crc = None if entry.member_number is None else tree.members[entry.member_number].crc
    return ComparedFile(path, entry.size, start, entry.kind, entry.is_executable, crc)
