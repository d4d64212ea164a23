"""The zip of an edited tree, as content to send. Only what is new in it is read, cut and hashed."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.digest import Buffer, Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.zip.chunker import Cut, RecalledCut, TreeChunker
from filestore.format.zip.virtual import VirtualZip
from filestore.format.zip.write import Entry, local_header_size
from filestore.system.files import source_error, storage_errors
from filestore.system.metrics import Stage, span
from filestore.transfer.sources.file import DescriptorOwner, Window, check_end, read_exactly, unpacked
from filestore.transfer.sources.segment_chunks import HeldChunks, SegmentChunks
from filestore.transfer.sources.tree_fingerprint import HeldChunk


class Sums(NamedTuple):
    """The secondary digests of a content."""

    sha256: bytes
    """32 bytes."""
    blob_id: bytes
    """Git's name of the content: 20 bytes."""


class Summer:
    """Computes `Sums` of a content that comes in order."""

    def __init__(self, size: int) -> None:
        self._sha256 = hashlib.sha256()
        self._blob_id = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def add(self, piece: Buffer) -> None:
        """Add the next bytes."""
        self._sha256.update(piece)
        self._blob_id.update(piece)

    def sums(self) -> Sums:
        """Return the digests of all that was added."""
        return Sums(self._sha256.digest(), self._blob_id.digest())


class EntryContent(Protocol):
    """The content of an entry. One thread at a time uses it."""

    size: int

    @property
    def crc(self) -> int | None:
        """Its CRC-32, if that is known before it is read."""

    @property
    def sums(self) -> Sums | None:
        """Its secondary digests, if they are known before it is read."""

    @property
    def chunks(self) -> Sequence[Chunk] | None:
        """Its chunks, if they are stored and are those of the content alone."""

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` with the bytes from `offset` on. Blocks. What it raises ends the edit."""

    def check(self, crc: int) -> None:
        """Raise an error if the whole content, which was read and has this checksum, is not what it should be."""

    def close(self) -> None:
        """Give up what it has open. It may be read again."""


class BytesContent:
    """Content in memory."""

    crc = sums = chunks = None

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self.size = len(content)

    def read_into(self, memory: memoryview, offset: int) -> None:
        memory[:] = self._content[offset : offset + len(memory)]

    def check(self, crc: int) -> None:
        """Do nothing: memory does not change."""

    def close(self) -> None:
        """Do nothing, because nothing is open."""


class FileContent(DescriptorOwner):
    """The content of a regular file on this machine, which nobody changes. It is open only while it is read."""

    crc = chunks = None

    def __init__(self, path: Path, *, sums: Sums | None = None) -> None:
        """Blocks. Raises SourceUnreadable."""
        self.sums = sums
        self._path = path
        with storage_errors(path, translate=source_error):
            self.size = path.stat().st_size

    def read_into(self, memory: memoryview, offset: int) -> None:
        if self._descriptor < 0:
            with storage_errors(self._path, translate=source_error):
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        read_exactly(self._descriptor, memory, offset, self._path)
        if offset + len(memory) == self.size:
            check_end(self._descriptor, self.size, self._path)

    def check(self, crc: int) -> None:
        """Do nothing: its size was checked while it was read."""


class SpanContent:
    """A part of an open file, which the caller closes."""

    crc = chunks = None

    def __init__(self, descriptor: int, start: int, size: int, *, sums: Sums | None = None) -> None:
        self.size = size
        self.sums = sums
        self._descriptor = descriptor
        self._start = start

    def read_into(self, memory: memoryview, offset: int) -> None:
        read_exactly(self._descriptor, memory, self._start + offset, "the file with new content")

    def check(self, crc: int) -> None:
        """Do nothing: its size was checked while it was read."""

    def close(self) -> None:
        """Do nothing, because the caller closes the file."""


class PlannedEntry(NamedTuple):
    """An entry of the new tree."""

    entry: Entry
    place: int | None = None
    """Its place in the old tree, if it is as it was. `EditedTree` gets its content from there."""
    content: EntryContent | None = None
    """The content of a new file. None for what is in the old tree, and for a new link."""


class NewEntry(NamedTuple):
    """A file that an edit put or copied."""

    path: str
    digest: Digest
    """Its file digest: the digest of the manifest of this file alone."""
    size: int
    crc: int
    start: int
    """Where its content begins in the zip of the new tree."""
    sums: Sums | None
    """None where nothing of it was read, and the operation did not give them."""
    copied_file: int | None = None
    """Its number among the files of the old tree, in the order of their data, if it is a copy of one of them."""


class EditedTree:
    """The zip of a tree, as `Content`. It is scanned in one thread, which may wait for the repository (see `ChunkReader`)."""

    def __init__(
        self, planned: Sequence[PlannedEntry], old_content: Callable[[int], EntryContent], *, chunking_version: int
    ) -> None:
        """`planned` is in the order of the zip. `old_content` returns the content of the entry at a place of the old tree.

        Raises InvalidName for entries that do not fit together, LimitExceeded.
        """
        self.path = Path("the edited tree")
        self.planned = planned
        self._old_content = old_content
        self._chunking_version = chunking_version
        self._chunker = TreeChunker((each.entry for each in planned), self._read, chunking_version=chunking_version)
        self.size = self._chunker.size
        self.read = self.cached_size = 0
        self.file_count = sum(not entry.is_folder for entry in self._chunker.entries)
        self._chunks = SegmentChunks(self._chunker)
        self._opened = -1
        self._content: EntryContent | None = None
        self._summer: Summer | None = None
        self._digests: dict[int, Digest] = {}
        """The file digests of the new small files that were read."""
        self._sums: dict[int, Sums] = {}
        self._whole: list[int] = []
        """The places of the entries that were read to their ends."""

    @property
    def offsets(self) -> Sequence[int]:
        """The offsets of the local headers, and then that of the central directory."""
        return self._chunker.offsets

    def remember(self, place: int, crc: int) -> None:
        """Set the checksum of an entry, as `TreeChunker.remember` does."""
        self._chunker.remember(place, crc)

    def hold(self, old: Manifest, held: Iterator[HeldChunk]) -> None:
        """Take the chunks of the old zip that still hold, before the first scan. The checksums of their entries are known."""
        self.cached_size += sum(segment.size for segment in self._chunks.hold(HeldChunks.of(old.chunks, held)))

    def put_known(self) -> None:
        """Take the chunks of large files that are stored and whose checksums are known, before the first scan."""
        for number, segment in self._contents():
            if not self._chunks.row(number) and self._chunker.crcs[segment] is not None:
                content = self._content_of(segment)
                chunks = content.chunks
                if chunks is not None:
                    self._chunks.put(number, chunks)
                    self.cached_size += content.size

    @property
    def files_done(self) -> int:
        return self.file_count if self.is_finished else 0

    @property
    def is_finished(self) -> bool:
        return self._chunker.is_finished

    def scan_limit(self, wanted: int) -> int:  # noqa: ARG002
        return 1

    def scan(self, buffer: memoryview) -> list[Window]:
        with span(Stage.CUT) as cutting:
            cuts = self._chunker.scan(buffer)
            cutting.add(sum(len(cut.content) for cut in cuts if isinstance(cut, Cut)))
        windows = []
        for cut in cuts:
            if isinstance(cut, RecalledCut):
                self.cached_size += self._chunks.take_recalled(cut)
            else:
                windows.append(Window.cut(cut.content, cut.sizes, self._chunks.row(cut.segment)))
        return windows

    def manifest(self) -> Manifest:
        return Manifest.build(self._chunks, chunking_version=self._chunking_version)

    def read_into(self, memory: memoryview, offset: int) -> None:
        self._virtual.read_into(memory, offset)

    def check_unchanged(self) -> None:
        """Check what was read to its end. Raises InvalidArchive for a file of the old tree that is not what its headers say."""
        for place in self._whole:
            self._content_of(place).check(self._crc(place))
        self._whole.clear()

    def new_entries(self) -> Iterator[NewEntry]:
        """Yield the new files in the order of the zip. Call it when all windows are hashed."""
        numbers = {place: number for number, place in self._contents()}
        for place, (entry, _, content) in enumerate(self.planned):
            if content is None:
                continue
            if place in numbers:
                chunks = unpacked(self._chunks.row(numbers[place]))
                digest = Manifest.build(chunks, chunking_version=self._chunking_version).digest
            else:
                digest = self._digests.get(place) or Manifest.build((), chunking_version=self._chunking_version).digest
            start = self.offsets[place] + local_header_size(len(entry.stored_name), entry.size)
            sums = content.sums or self._sums.get(place)
            if not entry.size:
                sums = Summer(0).sums()
            yield NewEntry(entry.name, digest, entry.size, self._crc(place), start, sums)

    def close(self) -> None:
        """Give up what is open."""
        if self._content is not None:
            self._content.close()
        self._opened, self._content, self._summer = -1, None, None

    @cached_property
    def _virtual(self) -> VirtualZip:
        crcs = array("I", (crc or 0 for crc in self._chunker.crcs))
        return VirtualZip(self._chunker.entries, crcs, self._chunker.offsets, self._read_again)

    def _contents(self) -> Iterator[tuple[int, int]]:
        """Yield the number of each segment that is the content of one large file, and the place of that file."""
        for number, segment in enumerate(self._chunker.segments):
            if segment.is_content:
                yield number, segment.entries.start

    def _crc(self, place: int) -> int:
        crc = self._chunker.crcs[place]
        assert crc is not None  # noqa: S101  # everything was scanned
        return crc

    def _content_of(self, place: int) -> EntryContent:
        planned = self.planned[place]
        if planned.content is not None:
            return planned.content
        assert planned.place is not None  # noqa: S101  # a new link is not read
        return self._old_content(planned.place)

    def _open(self, place: int) -> EntryContent:
        if self._content is None or place != self._opened:
            self.close()
            self._opened, self._content = place, self._content_of(place)
        return self._content

    def _read(self, place: int, offset: int, memory: memoryview) -> None:
        """Read content for the first time, in order."""
        content = self._open(place)
        with span(Stage.READ, len(memory)):
            content.read_into(memory, offset)
        self.read += len(memory)
        is_new = self.planned[place].content is not None
        is_end = offset + len(memory) == content.size
        if is_new and content.sums is None:
            if not offset:
                self._summer = Summer(content.size)
            assert self._summer is not None  # noqa: S101  # what is new is read from its start
            self._summer.add(memory)
            if is_end:
                self._sums[place] = self._summer.sums()
        if is_new and content.size < SEGMENT_MIN:
            # It is read in one call. A file of this size is one chunk.
            chunk = Chunk(chunk_digest(memory), len(memory))
            self._digests[place] = Manifest.build([chunk], chunking_version=self._chunking_version).digest
        if is_end:
            if not offset or is_new or content.size >= SEGMENT_MIN:
                self._whole.append(place)
            self.close()

    def _read_again(self, place: int, offset: int, memory: memoryview) -> None:
        self._open(place).read_into(memory, offset)
