"""Cut the zip file for a directory into chunks, and read each byte of each file only once.

The zip is a sequence of segments. The content of every file of at least 256 KiB is one segment. The small files and
headers between two of them are another segment, a *header segment*. The entries alone determine the position of each
segment, and the bytes of a segment alone determine how it is cut. At first only the checksums are unknown. A header
segment ends with the header of the file that follows it, which holds that file's checksum. So the end of a header
segment is cut after the content of that file. Only the manifest has an order.

A chunk depends only on the bytes from its start to a little after its end. So in a header segment with a few changes, most
chunks of an earlier push still hold. They are *recalled*: where a cut falls on the start of such a chunk, the chunk is passed
over, and its files are not read. Only the bytes from there to the next such cut are read and cut.

Invariant, checked by a property test: the chunks, in the order of their segments, are those that `Chunker` gives for
the zip.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from filestore.errors import LimitExceeded
from filestore.format.chunking import CHUNKING_VERSION, CUT_MARGIN, LOOKAHEAD, Chunker
from filestore.format.chunking.containers import segmenter
from filestore.format.chunking.segments import SEGMENT_MIN, Feed, Parsing, Segmenter
from filestore.format.zip.checksum import crc32
from filestore.format.zip.write import (
    NAME_LIMIT,
    SIZE_LIMIT,
    Entry,
    PlacedEntry,
    central_header,
    central_header_size,
    end_records,
    local_header,
    local_header_size,
    sorted_entries,
)

WINDOW_MIN = LOOKAHEAD + SEGMENT_MIN + NAME_LIMIT + 256
"""The minimum buffer size for `TreeChunker.scan`: space for uncut bytes, and for one small file with its header."""
_SLICE = 1 << 20
"""The number of bytes that are read before they are added to a checksum. They are still in the processor's cache then."""

Read = Callable[[int, int, memoryview], None]
"""A function `read(index, offset, memory)`. It fills `memory` with content of an entry, from `offset` on, or raises.

`index` is the place of the entry in `TreeChunker.entries`.
"""

_Part = tuple[int, Callable[[memoryview], None]]
"""A part of a header segment: its size, and a function that writes its bytes to memory of this size."""


class Segment(NamedTuple):
    """A part of the zip that is cut separately."""

    start: int
    size: int
    entries: range
    """The indices of the entries whose content is in the segment. Empty for a header segment with headers only."""
    is_content: bool
    """True for the content of one large file, False for a header segment."""


class Cut(NamedTuple):
    """Chunks of one segment. They follow the chunks of that segment in earlier cuts."""

    segment: int
    """The index of the segment in `TreeChunker.segments`."""
    content: memoryview
    """The chunks back to back, in the caller's buffer."""
    sizes: list[int]


class RecalledCut(NamedTuple):
    """Chunks of a header segment that were recalled. They follow the chunks of that segment in earlier cuts."""

    segment: int
    """The index of the segment in `TreeChunker.segments`."""
    chunks: range
    """Their places among the chunks that were given to `TreeChunker.recall`."""
    passed: range
    """The indices of the entries that end in them and were not read."""


class KnownChunks(NamedTuple):
    """Chunks of an earlier push, in the order of the zip."""

    starts: Sequence[int]
    """Offsets in the zip."""
    sizes: Sequence[int]


class TreeChunker:
    """Cuts the zip file for one tree. It is not thread-safe, and blocks only while `read` blocks.

    `scan` reads the files in the order of the archive. Data that an earlier push knows is not read again: call
    `remember` with the checksums of unchanged files, `skip` for the unchanged segments and `recall` for what is unchanged in
    the others, all before the first `scan`.
    Between calls the chunker keeps at most twice `LOOKAHEAD` bytes of content.

    Raises InvalidName, LimitExceeded, UnknownFormat.
    """

    def __init__(self, entries: Iterable[Entry], read: Read, *, chunking_version: int = CHUNKING_VERSION) -> None:
        self.entries = sorted_entries(entries)
        name_sizes = array("H", (len(entry.stored_name) for entry in self.entries))
        self.offsets = _offsets(self.entries, name_sizes)
        """The offsets of the local headers. The last number is the offset of the central directory."""
        self.segments = _segments(self.entries, self.offsets, name_sizes)
        """Header segments and contents in turn, without gaps. The first and the last one are header segments."""
        self.size = self.segments[-1].start + self.segments[-1].size
        if self.size >= SIZE_LIMIT:
            raise LimitExceeded("the size of the archive", self.size, SIZE_LIMIT - 1)
        self.crcs = [_known_crc(entry) for entry in self.entries]
        """The checksums of the entries' content. None if the checksum is not known yet."""
        self._read = read
        self._chunking_version = chunking_version
        Chunker(chunking_version=chunking_version)  # refuses an unknown version before anything is read
        self._waiting = set(range(len(self.segments)))
        self._known: dict[int, KnownChunks] = {}
        self._spares = memoryview(bytearray(LOOKAHEAD)), memoryview(bytearray(LOOKAHEAD))
        self._work = self._streams()
        self._stream: _Stream | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the chunks of all segments were returned, except those of skipped segments."""
        return not self._waiting

    def waiting_contents(self) -> Iterator[int]:
        """Yield the size of the content of each large file that is not cut to its end."""
        for number, segment in enumerate(self.segments):
            if segment.is_content and number in self._waiting:
                yield segment.size

    def remember(self, place: int, crc: int) -> None:
        """Set the known checksum of an entry's content.

        If the content is read nevertheless, its new checksum replaces it.
        """
        self.crcs[place] = crc

    def skip(self, number: int) -> None:
        """Do not produce segment `number`, because its chunks are known. The checksums of its entries must be known."""
        if any(self.crcs[place] is None for place in self.segments[number].entries):
            raise ValueError(f"segment {number} cannot be skipped: the checksum of an entry in it is not known")
        self._waiting.discard(number)

    def recall(self, number: int, chunks: KnownChunks) -> None:
        """Take a chunk of header segment `number` from `chunks` wherever a cut falls on its start.

        `chunks` come from an earlier push. The bytes of each, and `CUT_MARGIN` bytes after it, must be the same at its offset
        now, and all be in the segment. A chunk that ends at the end of the segment must have ended a segment then. The
        checksums of the entries that it touches must be known.
        """
        self._known[number] = chunks

    def scan(self, buffer: memoryview) -> list[Cut | RecalledCut]:
        """Read and cut as much as fits into `buffer`, which has at least `WINDOW_MIN` bytes.

        Some bytes at the end of the buffer may stay unused. Bytes that were read and are not cut yet are kept. After an
        error of `read`, `scan` must not be called again.
        """
        if len(buffer) < WINDOW_MIN:
            raise ValueError(f"the buffer has {len(buffer)} bytes; {WINDOW_MIN} are needed")
        cuts: list[Cut | RecalledCut] = []
        if self._stream is None:
            self._stream = next(self._work, None)
        while self._stream is not None and self._stream.buffer_size <= len(buffer):
            stream = self._stream
            if recalled := stream.recall():
                chunks, start, end = recalled
                passed = range(bisect_right(self.offsets, start) - 1, bisect_right(self.offsets, end) - 1)
                cuts.append(RecalledCut(stream.number, chunks, passed))
            if sizes := stream.scan(buffer):
                cuts.append(Cut(stream.number, buffer[: sum(sizes)], sizes))
                buffer = buffer[sum(sizes) :]
            if not stream.remaining:
                self._waiting.discard(stream.number)
            if stream.rests:
                self._stream = next(self._work, None)
        return cuts

    def _streams(self) -> Iterator[_Stream]:
        """Yield the segments to scan, in order.

        A header segment comes twice: before and after the content that follows it.
        """
        for number in range(0, len(self.segments), 2):
            headers, content = number, number + 1
            stream = None
            if headers in self._waiting:
                chunker = Chunker(chunking_version=self._chunking_version, segments=_unsegmented())
                known = self._known.get(headers, KnownChunks((), ()))
                parts = partial(self._parts, headers)
                stream = _HeaderSegment(headers, self.segments[headers], chunker, self._spares[0], parts=parts, known=known)
                yield stream
            if content in self._waiting:
                chunker = Chunker(chunking_version=self._chunking_version, segments=segmenter(depth=1))
                yield _Content(content, self.segments[content], chunker, self._spares[1], self._fill)
            if stream is not None and stream.remaining:
                stream.resume()
                yield stream

    def _parts(self, number: int, start: int) -> Iterator[_Part | None]:
        """Yield the parts of a header segment from the offset `start` in the zip on.

        The parts after a None need the checksum of the content that follows.
        """
        entries = self.segments[number].entries
        for place in entries[max(0, bisect_right(self.offsets, start) - 1 - entries.start) :]:
            before = max(0, start - self.offsets[place])
            write = partial(self._write_rest, place, before) if before else partial(self._write_small, place)
            yield self.offsets[place + 1] - self.offsets[place] - before, write
        yield None
        before = max(0, start - self.offsets[entries.stop])
        for header in self._behind(number):
            if before < len(header):
                yield len(header) - before, partial(_write, header[before:])
            before = max(0, before - len(header))

    def _behind(self, number: int) -> Iterator[bytes]:
        """Yield what follows the last small file of a header segment: the next header, or the central directory."""
        if number + 1 < len(self.segments):
            yield self._local_header(self.segments[number + 1].entries.start)
            return
        size = 0
        for place, entry in enumerate(self.entries):
            header = central_header(PlacedEntry(entry, self._crc(place), self.offsets[place]))
            size += len(header)
            yield header
        yield end_records(count=len(self.entries), size=size, offset=self.offsets[-1])

    def _local_header(self, place: int) -> bytes:
        return local_header(self.entries[place], self._crc(place))

    def _crc(self, place: int) -> int:
        crc = self.crcs[place]
        if crc is None:
            raise ValueError(f"the content of {self.entries[place].name!r} is not known yet")
        return crc

    def _write_small(self, place: int, memory: memoryview) -> None:
        """Write an entry, from its header to the end of its content.

        The header is written last, because it holds the checksum.
        """
        entry = self.entries[place]
        content = memory[len(memory) - entry.size :]
        if entry.target is not None:
            content[:] = entry.target.encode()
        elif entry.size:
            self.crcs[place] = 0
            self._fill(place, 0, content)
        memory[: len(memory) - entry.size] = self._local_header(place)

    def _write_rest(self, place: int, before: int, memory: memoryview) -> None:
        """Write an entry without its first `before` bytes. Its checksum is known."""
        entry = self.entries[place]
        header = self._local_header(place)
        rest = header[before:] + (entry.target or "").encode()[max(0, before - len(header)) :]
        memory[: len(rest)] = rest
        if len(rest) < len(memory):
            self._read(place, max(0, before - len(header)), memory[len(rest) :])

    def _fill(self, place: int, offset: int, memory: memoryview) -> None:
        """Read content and add it to the checksum. Calls for one entry come in order."""
        crc = self._crc(place) if offset else 0
        for at in range(0, len(memory), _SLICE):
            piece = memory[at : at + _SLICE]
            self._read(place, offset + at, piece)
            crc = crc32(piece, crc)
        self.crcs[place] = crc


class _Stream:
    """A segment that is being cut."""

    def __init__(self, number: int, segment: Segment, chunker: Chunker, spare: memoryview) -> None:
        self.number = number
        self.remaining = segment.size
        """The number of bytes of the segment that were not made yet."""
        self.rests = False
        """True if the stream must not be scanned: until `resume` is called, or because it is finished."""
        self._chunker = chunker
        self._lookahead = LOOKAHEAD
        self._spare = spare
        self._uncut = 0

    @property
    def buffer_size(self) -> int:
        """The smallest buffer with which `scan` makes progress."""
        return min(self._uncut + self.remaining, WINDOW_MIN)

    def recall(self) -> tuple[range, int, int] | None:
        """Pass over the chunks that are known from here on.

        Return their places among the known chunks, where the bytes end that were made before, and where the chunks end. Return
        None if the next chunk is not known.
        """
        return None

    def scan(self, buffer: memoryview) -> list[int]:
        """Make bytes until the buffer is full or the stream rests.

        Returns the sizes of the chunks at the start of the buffer.
        """
        buffer[: self._uncut] = self._spare[: self._uncut]
        end = self._make(buffer, self._uncut)
        self.remaining -= end - self._uncut
        sizes = self._chunker.cut(buffer[:end], final=not self.remaining, lookahead=self._lookahead)
        decided = sum(sizes)
        self._uncut = end - decided
        self._spare[: self._uncut] = buffer[decided:end]
        return sizes

    def _make(self, buffer: memoryview, start: int) -> int:
        """Write the next bytes of the segment to `buffer`, from `start` on. Return where they end."""
        raise NotImplementedError


class _HeaderSegment(_Stream):
    """A header segment: small files and headers."""

    def __init__(
        self,
        number: int,
        segment: Segment,
        chunker: Chunker,
        spare: memoryview,
        *,
        parts: Callable[[int], Iterator[_Part | None]],
        known: KnownChunks,
    ) -> None:
        """`parts` returns the parts from an offset in the zip on."""
        super().__init__(number, segment, chunker, spare)
        self._segment = segment
        self._end = segment.start + segment.size
        self._parts_from = parts
        self._parts = parts(segment.start)
        self._part = next(self._parts)
        self._known = known
        self._is_resumed = False
        if known.starts:
            self._lookahead = 0  # so that a cut is found as soon as its bytes are there

    def resume(self) -> None:
        """Continue after the checksum of the following content is known."""
        self._part = next(self._parts)
        self._is_resumed = True
        self.rests = False

    def recall(self) -> tuple[range, int, int] | None:
        made = self._end - self.remaining
        start = made - self._uncut
        starts, sizes = self._known
        first = last = bisect_left(starts, start)
        end = start
        while last < len(starts) and starts[last] == end:
            end += sizes[last]
            last += 1
        if first == last:
            return None
        self._chunker.pass_over(memoryview(b""), until=end - self._segment.start)
        # Nothing was made beyond the end: at most one part was made beyond the cut, which is smaller than a chunk.
        self._uncut = 0
        self.remaining = self._end - end
        self._parts = self._parts_from(end)
        self._part = next(self._parts)
        if self._part is None and self._is_resumed:
            self._part = next(self._parts, None)
        self.rests = self._part is None
        return range(first, last), made, end

    def _make(self, buffer: memoryview, start: int) -> int:
        at = start
        until = min(len(buffer), self._enough(start))
        # A part is never split: a part that does not fit into the buffer is the first one in the next buffer.
        while self._part is not None and at < until and at + self._part[0] <= len(buffer):
            size, write = self._part
            write(buffer[at : at + size])
            at += size
            self._part = next(self._parts, None)
        self.rests = self._part is None
        return at

    def _enough(self, uncut: int) -> int:
        """Return how many uncut bytes show whether a cut falls on the next known chunk, of which `uncut` are there."""
        made = self._end - self.remaining
        next_known = bisect_left(self._known.starts, made - CUT_MARGIN + 1)
        if next_known == len(self._known.starts):
            return uncut + self.remaining
        return uncut + self._known.starts[next_known] + CUT_MARGIN - made


class _Content(_Stream):
    """The content of a large file."""

    def __init__(
        self,
        number: int,
        segment: Segment,
        chunker: Chunker,
        spare: memoryview,
        fill: Callable[[int, int, memoryview], None],
    ) -> None:
        super().__init__(number, segment, chunker, spare)
        self._fill = partial(fill, segment.entries.start)
        self._offset = 0

    def _make(self, buffer: memoryview, start: int) -> int:
        end = min(len(buffer), start + self.remaining)
        self._fill(self._offset, buffer[start:end])
        self._offset += end - start
        self.rests = end - start == self.remaining
        return end


def _write(content: bytes, memory: memoryview) -> None:
    memory[:] = content


def _known_crc(entry: Entry) -> int | None:
    if entry.target is not None:
        return crc32(entry.target.encode())
    return None if entry.size else 0


def _offsets(entries: Sequence[Entry], name_sizes: Sequence[int]) -> list[int]:
    headers = map(local_header_size, name_sizes, map(attrgetter("size"), entries))
    return list(accumulate((header + entry.size for header, entry in zip(headers, entries, strict=True)), initial=0))


def _segments(entries: Sequence[Entry], offsets: Sequence[int], name_sizes: Sequence[int]) -> list[Segment]:
    segments = []
    start = first = 0
    for place, entry in enumerate(entries):
        if entry.size >= SEGMENT_MIN:
            end = offsets[place + 1]
            content = end - entry.size
            segments.append(Segment(start, content - start, range(first, place), is_content=False))
            segments.append(Segment(content, entry.size, range(place, place + 1), is_content=True))
            start, first = end, place + 1
    size = sum(map(central_header_size, name_sizes, map(attrgetter("size"), entries), offsets))
    tail = size + len(end_records(count=len(entries), size=size, offset=offsets[-1]))
    segments.append(Segment(start, offsets[-1] - start + tail, range(first, len(entries)), is_content=False))
    return segments


def _unsegmented() -> Segmenter:
    """Return a segmenter without boundaries: a header segment is one segment."""

    def parse(_: Feed) -> Parsing[None]:
        yield from ()

    return Segmenter(parse)
