"""Read the chunked transfer coding of an answer: a proxy between client and server may send a body of unknown length in it.

What HTTP calls a chunk is called a piece here, because a chunk is a part of a file elsewhere. What stands around the pieces is
read strictly, so that no two readers find different ends of one body.
Source: RFC 9112, section 7.1.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from filestore.http.client.heads import FIELD

LINE_LIMIT = 4096
"""Bytes of the largest line that begins a piece, with its extensions."""
EXCESS_LIMIT = 16 << 10
"""How many bytes of lines there may be beyond what pieces of a useful size need. Source: CVE-2023-39326 of Go's net/http."""
TRAILERS_LIMIT = 64 << 10
"""Bytes of the largest trailers, as much as a head has."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_NEXT_PIECE = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})\r\n")
_MALFORMED = "the chunked coding of its answer is malformed"


class _Line(Enum):
    """The lines around the pieces, by what they do."""

    SIZE = auto()
    """Begins a piece, or says that none follows."""
    END = auto()
    """Ends a piece."""
    TRAILER = auto()
    """A field after the pieces, or the empty line that ends the body."""


class ChunkedCoding:
    """What stands around the pieces of one body. It is read as it arrives, in any split."""

    def __init__(self) -> None:
        """Begin with the line of the first piece."""
        self.is_over = False
        """Whether the end of the body was read."""
        self._awaited = _Line.SIZE
        self._line = bytearray()
        """The beginning of a line that has not arrived completely."""
        self._excess = 0
        self._trailers_left = TRAILERS_LIMIT

    def read(self, arrived: memoryview) -> tuple[int, int]:
        """Read the beginning of `arrived`, which is not empty, up to the next piece or the end of the body.

        Return how many bytes were read, and the size of the piece that follows them. The size is 0 at the end of the body, and if
        more lines must arrive first; then all bytes were read. Raises ValueError with a reason.
        """
        if self._awaited is _Line.END and not self._line:
            # Nearly all lines are like this. It says what the loop below would say, in a quarter of the time.
            found = _NEXT_PIECE.match(arrived)
            if found is not None and (size := int(found[1], 16)):
                self._note_line(found.end() - 2, size)
                return found.end(), size
        read = size = 0
        while read < len(arrived) and not size and not self.is_over:
            limit = self._trailers_left if self._awaited is _Line.TRAILER else LINE_LIMIT
            part = bytes(arrived[read : read + limit - len(self._line)])
            part = part[: part.find(b"\n") + 1] or part
            self._line += part
            read += len(part)
            if part.endswith(b"\n"):
                size = self._take(bytes(self._line))
                self._line.clear()
            elif len(self._line) >= limit:
                raise ValueError("the chunked coding of its answer has a line or trailers of too many bytes")
        return read, size

    def _take(self, line: bytes) -> int:
        """Take a whole line. Return the size of the piece that it begins, or 0."""
        match self._awaited:
            case _Line.SIZE:
                found = _SIZE_LINE.fullmatch(line)
                if found is None:
                    raise ValueError(_MALFORMED)
                size = int(found[1], 16)
                self._note_line(len(line), size)
                self._awaited = _Line.END if size else _Line.TRAILER
                return size
            case _Line.END:
                if line != b"\r\n":
                    raise ValueError(_MALFORMED)
                self._awaited = _Line.SIZE
            case _Line.TRAILER:
                self._trailers_left -= len(line)
                self.is_over = line == b"\r\n"
                if not self.is_over and (not line.endswith(b"\r\n") or FIELD.fullmatch(line[:-2]) is None):
                    raise ValueError(_MALFORMED)
        return 0

    def _note_line(self, line_size: int, size: int) -> None:
        # A piece of 1 byte with a short line is allowed, and long extensions are where the pieces are large.
        self._excess = max(0, self._excess + line_size - 16 - 2 * size)
        if self._excess > EXCESS_LIMIT:
            raise ValueError("the chunked coding of its answer is much larger than its content")
