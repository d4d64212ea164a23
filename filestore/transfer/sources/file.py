"""The contract of a source, from which a push reads, and the source for a single file.

A source is read once, into buffers that are reused. It is cut and hashed meanwhile, and checked for changes. A file whose
structure is known is divided into regions that several threads read and cut at the same time; any other content is read in order.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
import struct
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from filestore.core.digest import DIGEST_AND_NUMBER, Buffer, Digest, chunk_digests
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import SourceChanged, SourceUnreadable
from filestore.format.chunking import CHUNKING_VERSION, LOOKAHEAD, Chunker
from filestore.format.chunking.segments import known_segments
from filestore.system.buffers import allocate_pages, copy_memory
from filestore.system.files import read_at, source_error, storage_errors
from filestore.system.metrics import Stage, span
from filestore.system.writeback import Writeback, write_back, write_back_part, writeback_of

WINDOW_SIZE = 16 << 20
"""Bytes that are read and cut at a time. It is larger than `LOOKAHEAD`, so that each window has at least one cut."""
FIRST_WINDOW_SIZE = 8 << 20
"""Bytes of the first window of a push, so that its frames are sent early. It is larger than `LOOKAHEAD` too."""
REGION_SIZE = 32 << 20
"""Bytes that each part of a file has at least which is cut on its own. The end of a region costs one short window. The last ones
are not scanned by all cores, so they must not be large."""
_REGIONS_LIMIT = 256
"""The most parts of a file. Each takes 2 KB, whatever its size."""
_TAIL_SIZE = 1 << 20
"""About how many bytes of a window stay uncut."""
SETTLED_NANOSECONDS = 2_000_000_000
"""If a file changed less than this before its state was read, a second change may have left its times as they are: both may
lie in one tick of its clock, and one long write sets the times only when it begins."""

_COPY_IT = "copy its content to another file (`cat FILE > COPY`) and push that one"
"""What to do with a file that reports a wrong size."""

LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR)
"""What an error means for a symbolic link: its target does not exist."""

MAKE_READABLE = "make it readable with `chmod`"
"""What to do if this user may not read a file or a folder."""

_NOTHING = memoryview(bytearray())
_STATE = struct.Struct("<QqqQQ")
_WRITTEN_BACK = b"file2"
"""The beginning of a fingerprint. Those of earlier versions, which wrote nothing back, are without it and not trusted."""
PACKED_SIZE = DIGEST_AND_NUMBER.size
"""Bytes of a packed chunk."""
STATE_SIZE = _STATE.size
"""Bytes of a packed state."""


class FileState(NamedTuple):
    """The state of a file, which shows whether it was written to. Times are nanoseconds since 1970."""

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """Return the state that a `stat` found."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    @staticmethod
    def packed(found: os.stat_result) -> bytes:
        """Return the same bytes as `of(found).pack()`, in a third of the time.

        A push of a tree calls it three times for each file.
        """
        return _STATE.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    @classmethod
    def unpack(cls, packed: Buffer, place: int = 0) -> Self:
        """Return the state at a place of `packed`, which has states one after the other. Raises struct.error."""
        return cls(*_STATE.unpack_from(packed, place * STATE_SIZE))

    def pack(self) -> bytes:
        """Return the state as `STATE_SIZE` bytes."""
        return _STATE.pack(*self)

    def is_settled(self, recorded_at: int) -> bool:
        """Return whether every change of the file after `recorded_at` gives it another state.

        `recorded_at` must not be later than the moment at which this state was read.

        An mtime in the future was set by hand. A later write sets another mtime, and another ctime.
        """
        is_mtime_settled = abs(recorded_at - self.mtime) > SETTLED_NANOSECONDS
        return is_mtime_settled and self.ctime + SETTLED_NANOSECONDS < recorded_at

    def check(self, now: FileState, path: Path | str) -> None:
        """Raise SourceChanged if `now` differs from this state."""
        if now == self:
            return
        for field, before, after in zip(self._fields, self, now, strict=True):
            if before != after:
                raise SourceChanged(str(path), f"its {field} was {before} and is now {after}")


class Origin(NamedTuple):
    """Where the content of a window is, so that another process can read it again."""

    open: Callable[[], int]
    """Returns a new descriptor of the file, which the caller closes. It blocks. Raises SourceChanged, SourceUnreadable."""
    offset: int
    """Where the content begins in this file."""
    path: str
    """The name of the file in errors."""


class Window(NamedTuple):
    """Neighbouring chunks in `content` that are not hashed yet. The memory belongs to the caller of `scan`."""

    content: memoryview
    sizes: list[int]
    row: bytearray
    """The packed chunks of the source. `hash` fills the part from `place` on, which is reserved for this window."""
    place: int
    origin: Origin | None = None
    """None if the content is not in one file as it is."""

    @classmethod
    def cut(cls, content: memoryview, sizes: list[int], row: bytearray, origin: Origin | None = None) -> Self:
        """Make a window of the first bytes of `content`: chunks of `sizes` bytes. Reserve the next part of `row` for them."""
        place = len(row)
        row += bytes(len(sizes) * PACKED_SIZE)
        return cls(content[: sum(sizes)], sizes, row, place, origin)

    def fill(self, packed: Buffer) -> None:
        """Take the packed chunks from who hashed this content elsewhere."""
        self.row[self.place : self.place + len(packed)] = packed

    def hash(self) -> list[tuple[Digest, memoryview]]:
        """Return the digest and the content of each chunk. Call it in a thread; the next scan may run meanwhile."""
        with span(Stage.HASH, len(self.content)):
            pieces = [self.content[end - size : end] for size, end in zip(self.sizes, accumulate(self.sizes), strict=True)]
            digests = chunk_digests(pieces)
            packed = b"".join(map(DIGEST_AND_NUMBER.pack, digests, self.sizes))
        self.row[self.place : self.place + len(packed)] = packed
        return list(zip(digests, pieces, strict=True))


class Region(NamedTuple):
    """A part of a file for another process, which reads, cuts and hashes it. It can be pickled."""

    number: int
    """Its number in the source."""
    place: int
    """The place of its first chunk in the row of the source's region."""
    offset: int
    size: int
    segments: list[int]
    """Where segments begin inside it: offsets from its start."""
    chunking_version: int
    path: str
    """The name of the file in errors."""
    is_written_back: bool
    """Whether each part is written back before it is read."""


class Hashed(NamedTuple):
    """What a `RegionScanner` tells about a window."""

    place: int
    """The place of its first chunk in the row of the source's region."""
    packed: bytes
    """Its packed chunks."""
    size: int
    is_written_back: bool
    """Whether what had to be written back was."""


class RegionScanner:
    """Reads, cuts and hashes a region, window by window. One thread at a time uses it.

    Bytes that were read and not cut are read again. They are few, and the system still has them in memory.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._chunker = Chunker(chunking_version=region.chunking_version, segments=known_segments(region.segments))
        self._place = region.place
        self._cut_size = 0
        self._is_written_back = True

    @property
    def is_finished(self) -> bool:
        """Whether everything is scanned."""
        return self._cut_size == self._region.size

    def scan(self, descriptor: int, buffer: memoryview) -> tuple[Hashed, list[tuple[Digest, memoryview]]]:
        """Read the next content of an open file into `buffer`, which has more than `LOOKAHEAD` bytes.

        Return what to tell about it, and the digest and the content of each chunk. Blocks.
        Raises SourceChanged, SourceUnreadable.
        """
        region, start = self._region, self._region.offset + self._cut_size
        left = region.size - self._cut_size
        content = buffer[: _even_part(left, len(buffer))]
        if region.is_written_back and self._is_written_back:
            self._is_written_back = write_back_part(descriptor, start, len(content))
        with span(Stage.READ, len(content)):
            read_exactly(descriptor, content, start, region.path)
        with span(Stage.CUT, len(content)):
            sizes = self._chunker.cut(content, final=len(content) == left)
        row = bytearray()
        window = Window.cut(content, sizes, row)
        chunks = window.hash()
        hashed = Hashed(self._place, bytes(row), len(window.content), self._is_written_back)
        self._place += len(sizes)
        self._cut_size += hashed.size
        return hashed, chunks


def _even_part(size: int, limit: int) -> int:
    """Return how much of `size` bytes to read into a buffer of `limit` bytes, so that the last window is not a short one."""
    if size <= limit:
        return size
    return min(limit, max(LOOKAHEAD, size // -(-size // (limit - _TAIL_SIZE)) + _TAIL_SIZE))


class CachedPush(NamedTuple):
    """What a push cache knows about an earlier push of the same path."""

    manifest: Manifest
    fingerprint: bytes
    """What `Source.fingerprint` returned at that push."""
    recorded_at: int
    """The `opened_at` of the source at that push."""


class Content(Protocol):
    """Bytes that are pushed. They are read once.

    Its methods block: call them in a thread, one at a time; for `scan`, see `scan_limit`. Other threads may read its numbers
    meanwhile.
    """

    path: Path
    size: int
    """Bytes of content. The content of a tree is its zip."""
    read: int
    """Bytes of files that were read so far."""
    cached_size: int
    """Bytes of content that are not read, since they are known from an earlier push. It may grow with each scan."""
    file_count: int

    @property
    def files_done(self) -> int:
        """Number of files that were read to their end, or are not read. It never becomes smaller."""

    @property
    def is_finished(self) -> bool:
        """Whether everything is scanned."""

    def scan_limit(self, wanted: int) -> int:
        """Return how many calls of `scan` may run at the same time from now on: at most `wanted`, and at least 1.

        It may rise and fall with each scan. It does not block. Content of which nobody knows where it may be divided is scanned
        in order, by one call at a time. With a `wanted` of 1, all content is.
        """

    def scan(self, buffer: memoryview) -> list[Window]:
        """Read the next content into `buffer`, which has `FIRST_WINDOW_SIZE` bytes or more, and cut it.

        The windows may be in another order than their content, and there may be none. They are views of `buffer`.
        Raises SourceChanged, SourceUnreadable. After an error, it must not be called again.
        """

    def manifest(self) -> Manifest:
        """Return the chunks of all windows and of cached content, in order.

        Call it when all windows are hashed. Raises LimitExceeded.
        """

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` with content from `offset` on. Call it after the last scan.

        Raises SourceChanged, SourceUnreadable.
        """

    def check_unchanged(self) -> None:
        """Raise SourceChanged if the source is not as it was when it was opened."""


class Source(Content, Protocol):
    """A file, or the zip of a directory, that may be pushed again later."""

    opened_at: int
    """A time just before the states of its files were read, in nanoseconds since 1970."""

    def located_size(self, least: int) -> int:
        """Return about how many bytes will come in windows of at least `least` bytes that have an origin.

        Call it before the first scan, and after `load_fingerprint`.
        """

    def load_fingerprint(self, cached: CachedPush) -> None:
        """Skip the content that has not changed since an earlier push: it is not read again.

        Call this before the first scan.

        A fingerprint that is damaged has no effect.
        """

    def fingerprint(self) -> bytes:
        """Return what `load_fingerprint` needs at a later push. Call it when all windows are hashed.

        It is empty where a later change might go unnoticed.
        """

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name, the start and the end of each entry in the content.

        Each starts where the one before it ends.
        """

    def close(self) -> None:
        """Close its descriptors. It may be called more than once."""


class DescriptorOwner:
    """An object that has at most one open file, and closes it at the end of its block."""

    _descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. It may be called more than once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Region:
    """A part of a file that is cut on its own: segments begin at its start and at its end. One thread scans it at a time."""

    def __init__(self, start: int, end: int, chunker: Chunker, carries: list[memoryview], segments: Sequence[int] = ()) -> None:
        """`carries` has memory of `LOOKAHEAD` bytes that no region uses now."""
        self.chunker = chunker
        self.segments = segments
        """The offsets in the file of the segments that begin inside it, as far as they are known."""
        self._carries = carries
        self.reached = start
        """The offset of the first byte that is not read yet."""
        self.end = end
        self.row = bytearray()
        """The packed chunks."""
        self.read_again = 0
        """Bytes that were read here, and that another process still has to read again."""
        self._uncut = _NOTHING
        self._uncut_size = 0

    @property
    def is_finished(self) -> bool:
        return self.reached == self.end

    @property
    def left(self) -> int:
        """Bytes that are not cut yet."""
        return self.end - self.reached + self._uncut_size

    def scan(
        self, buffer: memoryview, read: Callable[[memoryview, int], None], origin: Callable[[int], Origin]
    ) -> tuple[Window, int]:
        """Fill `buffer` by `read` and cut it. Return the window, and how many bytes were read. `origin` gets its offset."""
        kept, start = self._uncut_size, self.reached
        copy_memory(self._uncut[:kept], buffer)
        content = buffer[: kept + self.end - start]
        read(content[kept:], start)
        self.reached += len(content) - kept
        with span(Stage.CUT, len(content) - kept):
            sizes = self.chunker.cut(content, final=self.is_finished)
        window = Window.cut(content, sizes, self.row, origin(start - kept))
        self._keep(content[len(window.content) :])
        return window, len(content) - kept

    def _keep(self, uncut: memoryview) -> None:
        """Copy the bytes that the next scan begins with."""
        self._uncut_size = len(uncut)
        if self.is_finished:
            self._let_go()  # a large file has many regions
        elif not self._uncut:
            try:
                self._uncut = self._carries.pop()
            except IndexError:
                self._uncut = allocate_pages(LOOKAHEAD)
        copy_memory(uncut, self._uncut)

    def _let_go(self) -> None:
        if self._uncut:
            self._carries.append(self._uncut)
            self._uncut = _NOTHING

    def give(self, number: int, *, chunking_version: int, path: str, is_written_back: bool) -> Region:
        """Return what is not cut yet, for another process. Nothing of it is scanned here any more."""
        start = self.reached - self._uncut_size
        segments = [boundary - start for boundary in self.segments if boundary > start]
        place = len(self.row) // PACKED_SIZE
        self._let_go()
        self.read_again, self._uncut_size = self._uncut_size, 0
        self.reached = self.end
        return Region(number, place, start, self.end - start, segments, chunking_version, path, is_written_back)


class FileSource(DescriptorOwner):
    """An open regular file.

    It is not mapped into memory: mapped pages count as resident memory, and a file that is truncated meanwhile would
    kill the process.

    Another process may have it mapped. Each part is written back *before* it is read (see `filestore/system/writeback.py`).
    So a store after that moves the mtime, and a store before that is read. A store between a read and a later writeback would
    be neither read nor noticed. While a part is read, hashed and sent, the next one is written back.

    The header of some files, such as safetensors and GGUF, tells where all segments begin. What follows is then divided into
    regions at such places. Each has a chunker and a row of its own, so that several threads cut the file at the same time. Only
    the content of a segment decides where it is cut, so the chunks are the same.
    """

    file_count = 1

    def __init__(self, path: Path, *, chunking_version: int = CHUNKING_VERSION, is_remembered: bool = True) -> None:
        """Open the file. `is_remembered` says that a push cache asks for the fingerprint; nothing is written back without it.

        Raises SourceUnreadable, UnknownFormat.
        """
        self.path = path
        self.read = self.cached_size = 0
        self._chunking_version = chunking_version
        chunker = Chunker(chunking_version=chunking_version)
        self._cached: Manifest | None = None
        with storage_errors(path, translate=_source_error):
            # O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise SourceUnreadable(str(path), "it is not a regular file")
            self._writeback = writeback_of(self._descriptor) if is_remembered else Writeback.NEVER
            # Before the state is read: some file systems set the mtime only when they write back.
            if self._writeback is Writeback.WHOLE and not write_back(self._descriptor):
                self._writeback = Writeback.NEVER
            self.opened_at = time.time_ns()
            found = os.fstat(self._descriptor)
        except BaseException:
            self.close()
            raise
        self.state = FileState.of(found)
        self.size = self.state.size
        self._carries: list[memoryview] = []
        self._regions = [_Region(0, self.size, chunker, self._carries)]
        """All regions, in the order of the file."""
        self._idle = [0] if self.size else []
        """The numbers of the regions that are not finished, and that no thread scans now: a heap."""
        self._shared: list[int] = []
        """Those of them that are for other processes: a heap too."""
        self._share_limit = 0
        """The most bytes of a region for another process."""
        self._unfinished = len(self._idle)
        self._given_size = 0
        """Bytes that other processes still have to read."""
        self._is_divided = False
        self._lock = threading.Lock()
        """Threads hold it to change any of these, and `read`."""

    @property
    def files_done(self) -> int:
        return int(self.is_finished and not self._given_size)

    @property
    def is_finished(self) -> bool:
        return self._cached is not None or not self._unfinished

    def located_size(self, least: int) -> int:
        return 0 if self.is_finished or self.size < least else self.size

    def load_fingerprint(self, cached: CachedPush) -> None:
        same = cached.fingerprint == _WRITTEN_BACK + self.state.pack() and cached.manifest.size == self.size
        if same and self.state.is_settled(cached.recorded_at):
            self._cached = cached.manifest
            self.cached_size = self.size

    def fingerprint(self) -> bytes:
        return b"" if self._writeback is Writeback.NEVER else _WRITTEN_BACK + self.state.pack()

    def scan_limit(self, wanted: int) -> int:
        with self._lock:
            if wanted > 1:
                self._divide_once()
            return max(1, min(wanted, self._unfinished))

    def share_regions(self, largest: int) -> None:
        """Give regions of at most `largest` bytes to other processes from now on. It does not block.

        A larger one is scanned here: one process alone would need too long for it.
        """
        with self._lock:
            self._divide_once()
            if self._is_divided and self._share_limit != largest:
                self._share_limit = largest
                waiting = self._idle + self._shared
                self._idle, self._shared = [], []
                for number in waiting:
                    self._note_idle(number)

    @property
    def is_next_shared(self) -> bool:
        """Whether `next_region` has a region, and no thread of this process has anything to scan."""
        return bool(self._shared) and not self._idle

    def scan(self, buffer: memoryview) -> list[Window]:
        with self._lock:
            waiting = self._idle or self._shared
            if not waiting:
                return []  # other threads scan all that is left
            number = heapq.heappop(waiting)
        region = self._regions[number]
        window, size = region.scan(buffer, self._read, self._origin)
        with self._lock:
            self.read += size
            if region.is_finished:
                self._unfinished -= 1
            else:
                self._note_idle(number)
        return [window]

    def next_region(self) -> Region | None:
        """Return a part for another process, which no scan reads from now on, or None if there is none. It does not block.

        The manifest is whole when `take_hashed` has got all of it.
        """
        with self._lock:
            if not self._shared:
                return None
            number = heapq.heappop(self._shared)
            self._unfinished -= 1
            region = self._regions[number].give(
                number,
                chunking_version=self._chunking_version,
                path=str(self.path),
                is_written_back=self._writeback is Writeback.PARTS,
            )
            self._given_size += region.size
            return region

    def take_hashed(self, region: Region, hashed: Hashed) -> None:
        """Take what another process tells about a window of a region."""
        start, end = hashed.place * PACKED_SIZE, hashed.place * PACKED_SIZE + len(hashed.packed)
        with self._lock:
            given = self._regions[region.number]
            given.row += bytes(max(0, end - len(given.row)))
            given.row[start:end] = hashed.packed
            again = min(given.read_again, hashed.size)
            given.read_again -= again
            self.read += hashed.size - again
            self._given_size -= hashed.size
            if not hashed.is_written_back:
                self._writeback = Writeback.NEVER

    def manifest(self) -> Manifest:
        chunks = chain.from_iterable(unpacked(region.row) for region in self._regions)
        return self._cached or Manifest.build(chunks, chunking_version=self._chunking_version)

    def read_into(self, memory: memoryview, offset: int) -> None:
        read_exactly(self._descriptor, memory, offset, self.path)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        yield self.path.name, 0, self.size

    def check_unchanged(self) -> None:
        self.state.check(FileState.of(os.fstat(self._descriptor)), self.path)
        check_end(self._descriptor, self.size, self.path)

    def _origin(self, offset: int) -> Origin:
        return Origin(self.open_again, offset, str(self.path))

    def open_again(self) -> int:
        """Return a new descriptor of the file, which the caller closes. Raises SourceUnreadable."""
        with storage_errors(self.path, translate=source_error):
            return os.dup(self._descriptor)

    def _note_idle(self, number: int) -> None:
        heapq.heappush(self._shared if self._regions[number].left <= self._share_limit else self._idle, number)

    def _divide_once(self) -> None:
        # Not while a thread scans the only region. Once is enough: what is left never becomes more.
        if not self._is_divided and self._idle and self._regions[0].chunker.needs_no_more:
            self._is_divided = True
            self._divide()

    def _divide(self) -> None:
        """Divide what is not read yet into regions, as far as it is long enough and its segments permit it."""
        first = self._regions[0]
        boundaries = first.chunker.boundaries
        starts = _region_starts(boundaries, first.reached, self.size)
        for start, end in pairwise([*starts, self.size]):
            inner = boundaries[bisect_right(boundaries, start) : bisect_left(boundaries, end)]
            segments = known_segments([boundary - start for boundary in inner])
            chunker = Chunker(chunking_version=self._chunking_version, segments=segments)
            self._idle.append(len(self._regions))  # the numbers rise, so this stays a heap
            self._regions.append(_Region(start, end, chunker, self._carries, inner))
        self._unfinished += len(starts)
        if starts:
            first.end = starts[0]
        first.segments = boundaries[: bisect_left(boundaries, first.end)]

    def _read(self, memory: memoryview, offset: int) -> None:
        """Read a part for the first time."""
        if self._writeback is Writeback.PARTS and not write_back_part(self._descriptor, offset, len(memory)):
            self._writeback = Writeback.NEVER
        with span(Stage.READ, len(memory)):
            read_exactly(self._descriptor, memory, offset, self.path)


def _region_starts(boundaries: Sequence[int], start: int, end: int) -> list[int]:
    """Return some of `boundaries`, so that each part between two of them, `start` and `end` has at least `REGION_SIZE` bytes.

    There are at most `_REGIONS_LIMIT` parts.
    """
    least = max(REGION_SIZE, -(-(end - start) // _REGIONS_LIMIT))
    starts: list[int] = []
    for boundary in boundaries:
        if boundary - start >= least and end - boundary >= least:
            starts.append(boundary)
            start = boundary
    return starts


def check_end(descriptor: int, size: int, path: Path | str) -> None:
    """Check that a file ends at `size`. The size that a file reports may be wrong: files in /proc report 0.

    Raises SourceChanged if the file is longer now, SourceUnreadable if it has more bytes than it reports.
    """
    with storage_errors(path, translate=source_error):
        is_longer = bool(os.pread(descriptor, 1, size))
        reported = os.fstat(descriptor).st_size
    if is_longer and reported > size:
        raise SourceChanged(str(path), f"its size was {size} and is now {reported}")
    if is_longer:
        raise SourceUnreadable(str(path), f"it has more bytes than the {size} that it reports; {_COPY_IT}")


def read_exactly(descriptor: int, memory: memoryview, offset: int, path: Path | str) -> None:
    """Fill `memory` with the bytes from `offset` on.

    Raises SourceChanged if the file became shorter, SourceUnreadable if it cannot be read or has fewer bytes than it
    reports.
    """
    with storage_errors(path, translate=source_error):
        end = offset + read_at(descriptor, memory, offset)
        reported = os.fstat(descriptor).st_size if end < offset + len(memory) else end
    if reported > end:
        raise SourceUnreadable(str(path), f"it has {end} bytes and reports {reported}; {_COPY_IT}")
    if end < offset + len(memory):
        raise SourceChanged(str(path), "it became shorter")


def scan_and_hash(content: Content, buffer: memoryview) -> None:
    """Scan and hash the next content, for a caller that needs only the manifest. The chunks are discarded."""
    for window in content.scan(buffer):
        window.hash()


def unpacked(row: Buffer) -> Iterator[Chunk]:
    """Yield the chunks of a packed row. Chunks are kept packed, since a million objects would take 200 MiB (I6)."""
    for digest, size in DIGEST_AND_NUMBER.iter_unpack(row):
        yield Chunk(Digest(digest), size)


def _source_error(where: str, error: OSError) -> SourceUnreadable:
    """Make the error for a file that cannot be opened. It says where a link leads to that cannot be followed."""
    if error.errno in LEADS_NOWHERE or error.errno == errno.ELOOP:
        with suppress(OSError):
            # Fails where `where` is not a link.
            target = os.readlink(where)  # noqa: PTH115  # a Path would change the text
            if error.errno == errno.ELOOP:
                reason = "which leads round in a circle, or through too many links; correct the link"
            else:
                reason = "where nothing is; restore that file, or correct the link"
            return SourceUnreadable(where, f"it is a symbolic link to {target!r}, {reason}")
    return source_error(where, error)
