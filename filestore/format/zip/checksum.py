"""Compute the CRC-32 of content from pieces that come in any order."""

from __future__ import annotations

from isal import isal_zlib
from isal.isal_zlib import crc32_combine

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked

__all__ = ["Checksum", "crc32", "crc32_combine"]

_LARGE = 64 << 10
"""From so many bytes on, a checksum takes long enough to be measured. It gives up the interpreter lock from 5 KiB on."""


def crc32(content: Buffer, crc: int = 0) -> int:
    """Return the CRC-32 of the bytes of which `crc` is the checksum, followed by `content`."""
    # Small files and their headers are so many that the measurement would cost more than the checksum.
    return isal_zlib.crc32(content, crc) if len(content) < _LARGE else unlocked(isal_zlib.crc32, content, crc)


class Checksum:
    """Computes a CRC-32 from pieces in any order. Not thread-safe.

    Neighbouring pieces are joined at once, so the memory grows with the number of gaps.
    """

    def __init__(self) -> None:
        self._ends: dict[int, tuple[int, int]] = {}  # start of joined pieces: their end and their checksum
        self._begins: dict[int, int] = {}  # end of joined pieces: their start

    def add(self, offset: int, piece: Buffer) -> None:
        """Add the piece at `offset`. No byte may be added twice."""
        self.add_summed(offset, len(piece), crc32(piece))

    def add_summed(self, offset: int, size: int, crc: int) -> None:
        """Add a piece of `size` bytes at `offset`. Its checksum `crc` is already known, so the bytes are not needed."""
        if not size:
            return
        begin, end = offset, offset + size
        if begin in self._begins:
            begin = self._begins.pop(begin)
            _, before = self._ends.pop(begin)
            crc = crc32_combine(before, crc, size)
        if end in self._ends:
            following = end
            end, after = self._ends.pop(following)
            crc = crc32_combine(crc, after, end - following)
        self._ends[begin] = end, crc
        self._begins[end] = begin

    def of(self, size: int) -> int | None:
        """Return the checksum of the first `size` bytes, or None unless exactly these bytes were added."""
        if not size:
            return 0 if not self._ends else None
        end, crc = self._ends.get(0, (0, 0))
        return crc if end == size and len(self._ends) == 1 else None
