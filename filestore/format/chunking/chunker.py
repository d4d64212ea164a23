"""Cut a file into chunks while its bytes arrive.

Source: W. Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems", IEEE
TPDS 31(9), 2020 (FastCDC with two bytes a step), as in `pyfastcdc`; sizes and masks: `docs/format.md`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from filestore.core.manifest import CHUNK_LIMIT
from filestore.core.unlocked import unlocked
from filestore.errors import MissingCompiledPart, UnknownFormat
from filestore.format.chunking.containers import segmenter
from filestore.format.chunking.segments import POSITION_LIMIT, Segmenter

if TYPE_CHECKING:
    from pyfastcdc import Chunk, FastCDC

CHUNKING_VERSION = 1

LOOKAHEAD = 5 << 20
"""With at least this many uncut bytes, `Chunker.cut` decides at least one chunk. With fewer it waits for more.

A segmenter is at most 256 KiB and a few bytes behind (for a zip entry of unknown size), and a chunk has at most 4 MiB.
The rest is a margin: it ensures that enough bytes are new whenever bytes are scanned a second time.
"""

CUT_MARGIN = 2
"""A chunk that does not end at the end of its segment stays the same as long as its own bytes and this many bytes after it
are the same. The first byte after a cut decides on it, and of an odd number of bytes the last one is not looked at."""

_CHUNK_MIN = 512 << 10
_CHUNK_AVERAGE = 768 << 10
"""FastCDC's normal size: below it a stricter mask, above it a looser one. `pyfastcdc` calls it the average; the
measured average is 1.2 MiB."""


class Chunker:
    """Cuts one file into chunks. It is not thread-safe, and releases the GIL while it scans.

    `segments` finds the boundaries in place of the parser that the file's first bytes would choose. With it, a part of
    a container is cut in the same way as inside the whole.

    Raises UnknownFormat for a cutting version that this program does not know, and MissingCompiledPart if only the slow
    fallback of `pyfastcdc` is installed.
    """

    def __init__(self, *, chunking_version: int = CHUNKING_VERSION, segments: Segmenter | None = None) -> None:
        if chunking_version != CHUNKING_VERSION:
            raise UnknownFormat("the chunking version", str(chunking_version), str(CHUNKING_VERSION))
        self._scanner = _scanner()
        self._segmenter = segments or segmenter()
        self._boundaries: deque[int] = deque()
        self._start = 0  # offset of the first uncut byte
        self._fed = 0  # bytes that the segmenter has seen

    def cut(self, data: memoryview, *, final: bool, lookahead: int = LOOKAHEAD) -> list[int]:
        """Return the sizes of the chunks that are decided at the start of `data`, in order.

        `data` begins at the first uncut byte and holds all bytes that were read since. Pass the remaining bytes again
        in the next call, followed by new ones. `final` says that no more bytes come, so that everything is cut. The
        split of a file over calls changes neither its chunks nor the cost of a byte. `data` is not kept.

        With fewer bytes than `lookahead`, nothing is cut. With a smaller one than `LOOKAHEAD`, a chunk may be cut as soon as
        `CUT_MARGIN` bytes after it are there, but bytes may be scanned again and again.
        """
        if len(data) < lookahead and not final:
            return []
        base = self._start
        self._boundaries.extend(self._segmenter.feed(data[self._fed - base :]))
        self._fed = base + len(data)
        known = self._fed if final else min(self._fed, self._segmenter.known_until)
        sizes: list[int] = []
        whole = True
        while whole and self._start < known:
            end, whole = self._segment_end(known, final=final)
            decided = self._scan(data[self._start - base : end - base], whole=whole)
            sizes += decided
            self._start += sum(decided)
        return sizes

    @property
    def fed(self) -> int:
        """The number of bytes, from the start of the file, that were searched for boundaries."""
        return self._fed

    @property
    def needs_no_more(self) -> bool:
        """Whether all boundaries are known, so that the chunker need not read the bytes that follow."""
        return self._segmenter.known_until == POSITION_LIMIT

    @property
    def boundaries(self) -> list[int]:
        """The boundaries of segments that were found and are not reached yet, in order. They are offsets in the file."""
        return [boundary for boundary in self._boundaries if boundary > self._start]

    def pass_over(self, data: memoryview, *, until: int) -> None:
        """Continue at `until`, the end of a chunk that was cut elsewhere.

        `data` holds the bytes from `fed` to `until`. If `needs_no_more` is true, `data` may be empty.
        """
        self._boundaries.extend(self._segmenter.feed(data))
        self._fed = max(self._fed, until)
        self._start = until

    def _segment_end(self, known: int, *, final: bool) -> tuple[int, bool]:
        """Return where the current segment ends, and True. If this is not known, return `known` and `final`."""
        while self._boundaries and self._boundaries[0] <= self._start:
            self._boundaries.popleft()
        if self._boundaries and self._boundaries[0] <= known:
            return self._boundaries[0], True
        return known, final

    def _scan(self, segment: memoryview, *, whole: bool) -> list[int]:
        """Return the chunks of a segment.

        If the segment is not whole, a chunk that ends at its end is left out, because more bytes may move that end.
        """
        chunks: list[Chunk] = unlocked(list, self._scanner.cut_buf(segment))
        sizes = [chunk.length for chunk in chunks]
        if not whole and sizes[-1] < CHUNK_LIMIT:
            sizes.pop()
        return sizes


def _scanner() -> FastCDC:
    from pyfastcdc import FastCDC  # noqa: PLC0415  # the import is slow, and most processes never cut

    if FastCDC.__module__.partition(".")[2].startswith("py."):
        raise MissingCompiledPart("pyfastcdc")
    return FastCDC(avg_size=_CHUNK_AVERAGE, min_size=_CHUNK_MIN, max_size=CHUNK_LIMIT)
