"""Inflate deflated content piece by piece, in order.

Source: RFC 1951. Compared with zlib on damaged input: if zlib inflates a stream, this gives the same bytes. ISA-L
accepts some streams with incomplete Huffman codes that zlib refuses. Their size and checksum are checked like all
others.
"""

from __future__ import annotations

from collections.abc import Iterator

from isal import isal_zlib
from isal.igzip_lib import IsalError

from filestore.core.digest import Buffer
from filestore.errors import InvalidArchive
from filestore.format.zip import read
from filestore.format.zip.checksum import crc32
from filestore.format.zip.read import Member, check_crc
from filestore.format.zip.tree import for_display

PIECE_LIMIT = 256 << 10
"""The largest piece of output, in bytes."""

_INPUT_SLICE = 16 << 10
"""Input that is not inflated yet is copied for each piece. With slices of this size, a zip bomb costs no more than its
output."""

_RATIO_MAX = 1032
"""Deflate makes at most this many bytes from one byte."""


class Inflater:
    """Inflates the data of one entry. It is not thread-safe, and releases the GIL.

    Raises InvalidArchive as soon as the output is larger than the entry declares, and in `finish` for other faults.
    """

    def __init__(self, member: Member, *, offset_space: int = read.OFFSET_SPACE) -> None:
        """A size that does not fit below `offset_space` may be written modulo it."""
        self.size = 0
        """The number of bytes of output so far."""
        self._member = member
        self._offset_space = offset_space
        self._stream = isal_zlib.decompressobj(wbits=-isal_zlib.MAX_WBITS)
        self._crc = 0

    def inflate(self, data: Buffer) -> Iterator[bytes]:
        """Yield the output for the next bytes of the data, in pieces of at most `PIECE_LIMIT`.

        Exhaust it before the next call.
        """
        view = memoryview(data)
        for at in range(0, len(view), _INPUT_SLICE):
            yield from self._pieces(view[at : at + _INPUT_SLICE])

    def finish(self) -> None:
        """Check the end of the stream, its size and its checksum. Call this after all data. Raises InvalidArchive."""
        if not self._stream.eof:
            raise self._refused("its data ends too early")
        if self.size != self._member.size:
            raise self._refused(f"it states {self._member.size} bytes, but has {self.size}")
        check_crc(self._member, self._crc)

    def _pieces(self, data: Buffer) -> Iterator[bytes]:
        pending = data
        while True:
            if self._stream.eof:
                raise self._refused("bytes follow the end of its data")
            try:
                piece = self._stream.decompress(pending, PIECE_LIMIT)
            except IsalError as error:  # type: ignore[misc]  # its stub declares an instance
                raise self._refused(f"its data cannot be inflated: {error}") from None
            self.size += len(piece)
            if self.size > self._member.size:
                raise self._refused(f"it states {self._member.size} bytes, but has more{self._cause}")
            self._crc = crc32(piece, self._crc)
            if piece:
                yield piece
            if self._stream.unused_data:
                raise self._refused("bytes follow the end of its data")
            pending = self._stream.unconsumed_tail
            # ISA-L may hold more output, even without input, as long as it returns full pieces.
            if self._stream.eof or (not pending and len(piece) < PIECE_LIMIT):
                return

    @property
    def _cause(self) -> str:
        """A possible cause for the error text: a file of 4 GiB or more. Empty if the data is too small for this."""
        if self._member.size >= self._offset_space or self._member.stored_size * _RATIO_MAX < self._offset_space:
            return ""
        return f", which is also what macOS Finder writes for a file of 4 GiB or more; {read.MAC_WAY_OUT}"

    def _refused(self, reason: str) -> InvalidArchive:
        return InvalidArchive(for_display(self._member.path), reason)
