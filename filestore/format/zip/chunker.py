"""Cut the zip file for a directory into chunks, and read each byte of each file only once.

The zip is a sequence of segments. The content of every file of at least 256 KiB is one segment. The small files and
headers between two of them are another segment, a *header segment*. The entries alone determine the position of each
segment, and the bytes of a segment alone determine how it is cut. At first only the checksums are unknown. A header
segment ends with the header of the file that follows it, which holds that file's checksum. So the end of a header
segment is cut after the content of that file. Only the manifest has an order.

Invariant, checked by a property test: the chunks, in the order of their segments, are those that `Chunker` gives for
the zip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from filestore.errors import LimitExceeded
from filestore.format.chunking import CHUNKING_VERSION, LOOKAHEAD, Chunker
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


class TreeChunker:
    """Cuts the zip file for one tree. It is not thread-safe, and blocks only while `read` blocks.

    `scan` reads the files in the order of the archive. Data that an earlier push knows is not read again: call
    `remember` with the checksums of unchanged files and `skip` for the unchanged segments, all before the first `scan`.
    Between calls the chunker keeps at most twice `LOOKAHEAD` bytes of content.

    Raises InvalidName, LimitExceeded, UnknownFormat.
    """

    def __init__(self, entries: Iterable[Entry], read: Read, *, chunking_version: int = CHUNKING_VERSION) -> None:
        self.entries = sorted_entries(entries)
        self.offsets = _offsets(self.entries)
        """The offsets of the local headers. The last number is the offset of the central directory."""
        self.segments = _segments(self.entries, self.offsets)
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
        self._spares = memoryview(bytearray(LOOKAHEAD)), memoryview(bytearray(LOOKAHEAD))
        self._work = self._streams()
        self._stream: _Stream | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the chunks of all segments were returned, except those of skipped segments."""
        return not self._waiting

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

    def headers_of(self, number: int) -> Iterator[bytes]:
        """Yield all bytes of a header segment except the content of its files, piece by piece.

        These are the headers of its own entries and of the next entry. For the last header segment, they are the
        headers of every entry. A header segment is unchanged if these bytes and its files are unchanged.

        Raises ValueError at the first checksum that is not known.
        """
        for place in self.segments[number].entries:
            yield self._local_header(place) + (self.entries[place].target or "").encode()
        yield from self._behind(number)

    def scan(self, buffer: memoryview) -> list[Cut]:
        """Read and cut as much as fits into `buffer`, which has at least `WINDOW_MIN` bytes.

        Some bytes at the end of the buffer may stay unused. Bytes that were read and are not cut yet are kept. After an
        error of `read`, `scan` must not be called again.
        """
        if len(buffer) < WINDOW_MIN:
            raise ValueError(f"the buffer has {len(buffer)} bytes; {WINDOW_MIN} are needed")
        cuts = []
        if self._stream is None:
            self._stream = next(self._work, None)
        while self._stream is not None and self._stream.buffer_size <= len(buffer):
            stream = self._stream
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
                stream = _HeaderSegment(headers, self.segments[headers], chunker, self._spares[0], self._parts(headers))
                yield stream
            if content in self._waiting:
                chunker = Chunker(chunking_version=self._chunking_version, segments=segmenter(depth=1))
                yield _Content(content, self.segments[content], chunker, self._spares[1], self._fill)
            if stream is not None and stream.remaining:
                stream.resume()
                yield stream

    def _parts(self, number: int) -> Iterator[_Part | None]:
        """Yield the parts of a header segment. The parts after a None need the checksum of the content that follows."""
        for place in self.segments[number].entries:
            yield self.offsets[place + 1] - self.offsets[place], partial(self._write_small, place)
        yield None
        for header in self._behind(number):
            yield len(header), partial(_write, header)

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
        self._spare = spare
        self._uncut = 0

    @property
    def buffer_size(self) -> int:
        """The smallest buffer with which `scan` makes progress."""
        return min(self._uncut + self.remaining, WINDOW_MIN)

    def scan(self, buffer: memoryview) -> list[int]:
        """Make bytes until the buffer is full or the stream rests.

        Returns the sizes of the chunks at the start of the buffer.
        """
        buffer[: self._uncut] = self._spare[: self._uncut]
        end = self._make(buffer, self._uncut)
        self.remaining -= end - self._uncut
        sizes = self._chunker.cut(buffer[:end], final=not self.remaining)
        decided = sum(sizes)
        self._uncut = end - decided
        self._spare[: self._uncut] = buffer[decided:end]
        return sizes

    def _make(self, buffer: memoryview, start: int) -> int:
        """Write the next bytes of the segment to `buffer`, from `start` on. Return where they end."""
        raise NotImplementedError


class _HeaderSegment(_Stream):
    """A header segment: small files and headers."""

    def __init__(self, number: int, segment: Segment, chunker: Chunker, spare: memoryview, parts: Iterator[_Part | None]) -> None:
        super().__init__(number, segment, chunker, spare)
        self._parts = parts
        self._part = next(parts)

    def resume(self) -> None:
        """Continue after the checksum of the following content is known."""
        self._part = next(self._parts)
        self.rests = False

    def _make(self, buffer: memoryview, start: int) -> int:
        at = start
        # A part is never split: a part that does not fit into the buffer is the first one in the next buffer.
        while self._part is not None and at + self._part[0] <= len(buffer):
            size, write = self._part
            write(buffer[at : at + size])
            at += size
            self._part = next(self._parts, None)
        self.rests = self._part is None
        return at


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


def _offsets(entries: Sequence[Entry]) -> list[int]:
    return list(accumulate((local_header_size(entry) + entry.size for entry in entries), initial=0))


def _segments(entries: Sequence[Entry], offsets: Sequence[int]) -> list[Segment]:
    segments = []
    start = first = 0
    for place, entry in enumerate(entries):
        if entry.size >= SEGMENT_MIN:
            end = offsets[place + 1]
            content = end - entry.size
            segments.append(Segment(start, content - start, range(first, place), is_content=False))
            segments.append(Segment(content, entry.size, range(place, place + 1), is_content=True))
            start, first = end, place + 1
    size = sum(map(central_header_size, entries, offsets))
    tail = size + len(end_records(count=len(entries), size=size, offset=offsets[-1]))
    segments.append(Segment(start, offsets[-1] - start + tail, range(first, len(entries)), is_content=False))
    return segments


def _unsegmented() -> Segmenter:
    """Return a segmenter without boundaries: a header segment is one segment."""

    def parse(_: Feed) -> Parsing[None]:
        yield from ()

    return Segmenter(parse)
