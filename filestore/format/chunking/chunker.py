"""The cutter: chunks of one file, from its bytes as they come.

Source: W. Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems", IEEE
TPDS 31(9), 2020 (FastCDC with two bytes a step), as in `pyfastcdc`; sizes and masks: `docs/format.md`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import MissingCompiledPart, UnknownFormat
from filestore.format.chunking.containers import segmenter
from filestore.format.chunking.segments import POSITION_LIMIT, Segmenter

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

CHUNKING_VERSION = 1

LOOKAHEAD = 5 << 20
"""With at least this many uncut bytes, `Chunker.cut` decides at least one chunk; with fewer it waits for more.

A segmenter is never further behind than 256 KiB and a few bytes (a zip entry of unknown size), and no chunk is larger than
4 MiB. The rest is slack: it makes sure that much is new whenever bytes are scanned a second time.
"""

_CHUNK_MIN = 512 << 10
_CHUNK_AVERAGE = 768 << 10
"""Up to this size a cut is harder to find, and easier behind it: what `pyfastcdc` calls the average. It comes out at 1.2 MiB."""


class Chunker:
    """Cuts one file. Not thread-safe; releases the GIL while it scans.

    `segments` finds the boundaries where it is not left to the file's first bytes: a stretch of a container can so be cut as
    it is cut inside the whole.

    Raises UnknownFormat for a cutting version that this program does not know, MissingCompiledPart where it would be slow.
    """

    def __init__(self, *, chunking_version: int = CHUNKING_VERSION, segments: Segmenter | None = None) -> None:
        if chunking_version != CHUNKING_VERSION:
            raise UnknownFormat("the chunking version", str(chunking_version), str(CHUNKING_VERSION))
        self._scanner = _scanner()
        self._segmenter = segments or segmenter()
        self._boundaries: deque[int] = deque()
        self._start = 0  # of the first uncut byte
        self._fed = 0  # bytes that the segmenter has seen

    def cut(self, data: memoryview, *, final: bool) -> list[int]:
        """The sizes of the chunks that are decided at the start of `data`, in order.

        `data` begins at the first byte that is not cut yet and holds all that was read since; pass what remains again, with
        more behind it. `final`: no more bytes come, all is cut. How a file is split over calls changes neither its chunks nor
        the cost of a byte. `data` is not kept.
        """
        if len(data) < LOOKAHEAD and not final:
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
        """Bytes from the start of the file in which boundaries were looked for."""
        return self._fed

    @property
    def needs_no_more(self) -> bool:
        """Whether all boundaries are known, whatever bytes are still to come."""
        return self._segmenter.known_until == POSITION_LIMIT

    def pass_over(self, data: memoryview, *, until: int) -> None:
        """Go on at `until`, where a chunk ends that was cut elsewhere.

        `data` holds the bytes from `fed` to there; a cutter that needs no more of them goes without.
        """
        self._boundaries.extend(self._segmenter.feed(data))
        self._fed = max(self._fed, until)
        self._start = until

    def _segment_end(self, known: int, *, final: bool) -> tuple[int, bool]:
        """Where the segment ends, and whether it does: or else only what is known of it."""
        while self._boundaries and self._boundaries[0] <= self._start:
            self._boundaries.popleft()
        if self._boundaries and self._boundaries[0] <= known:
            return self._boundaries[0], True
        return known, final

    def _scan(self, segment: memoryview, *, whole: bool) -> list[int]:
        """The chunks of a segment; where it is not whole, without one that ends where it does: more bytes may move that end."""
        sizes = [chunk.length for chunk in self._scanner.cut_buf(segment)]
        if not whole and sizes[-1] < CHUNK_LIMIT:
            sizes.pop()
        return sizes


def _scanner() -> FastCDC:
    from pyfastcdc import FastCDC  # noqa: PLC0415  # takes a while, and most processes never cut

    if FastCDC.__module__.partition(".")[2].startswith("py."):
        raise MissingCompiledPart("pyfastcdc")
    return FastCDC(avg_size=_CHUNK_AVERAGE, min_size=_CHUNK_MIN, max_size=CHUNK_LIMIT)
