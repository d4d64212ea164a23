"""One entry of a zip file that arrives in order: header, content, descriptor, checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from filestore.format.zip import structures as zip_
from filestore.format.zip.checksum import crc32
from filestore.format.zip.inflate import PIECE_LIMIT, Inflater
from filestore.format.zip.read import (
    Extent,
    Member,
    check_crc,
    check_descriptor,
    check_local_header,
)
from filestore.system.files import write_at


class EntryStream:
    """A large entry whose bytes arrive in order."""

    def __init__(self, member: Member, create: Callable[[Member], int]) -> None:
        self._member = member
        self._create = create
        self._position = member.start
        self._head = bytearray()
        self._extent: Extent | None = None
        self._inflater = Inflater(member) if member.is_deflated else None
        self._crc = 0
        self._descriptor = -1
        self._written = 0
        self._last = b""
        self._rest = bytearray()

    def close(self) -> None:
        """Close the descriptor. It may be called more than once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def feed(self, start: int, piece: memoryview) -> bool:
        """Check and write the next piece of the entry.

        Return whether it was the last one. Raises OSError, InvalidArchive.
        """
        if start != self._position:
            raise AssertionError(f"the piece at {start} comes before that at {self._position}")
        piece = self._take_head(piece)
        if self._extent is not None:
            left = max(self._extent.end - self._position, 0)
            for content in self._contents(piece[:left]):
                self._put_last()
                self._last = content
            self._rest += piece[left:]
            self._position += len(piece)
        if self._position < self._member.end:
            return False
        check_descriptor(self._member, self._rest)
        if self._inflater is None:
            check_crc(self._member, self._crc)
        else:
            self._inflater.finish()
        self._put_last()
        self.close()
        return True

    def _take_head(self, piece: memoryview) -> memoryview:
        """Take the bytes of the local header. Return the rest of `piece`."""
        while self._extent is None and piece:
            part = piece[: self._head_size - len(self._head)]
            self._head += part
            self._position += len(part)
            piece = piece[len(part) :]
            if len(self._head) == self._head_size:
                self._extent = check_local_header(self._member, self._head)
        return piece

    @property
    def _head_size(self) -> int:
        """The size of the local header, or a lower limit until its fixed fields have arrived."""
        size = zip_.LOCAL_HEADER.size
        if len(self._head) >= size:
            *_, name_size, extra_size = zip_.LOCAL_HEADER.unpack_from(self._head)
            size += name_size + extra_size
        return min(size, self._member.head_size)

    def _contents(self, data: memoryview) -> Iterator[bytes]:
        if self._inflater is not None:
            yield from self._inflater.inflate(data)
            return
        for at in range(0, len(data), PIECE_LIMIT):
            # A copy, since the last piece is written after its memory is used again.
            piece = bytes(data[at : at + PIECE_LIMIT])
            self._crc = crc32(piece, self._crc)
            yield piece

    def _put_last(self) -> None:
        if self._last:
            if self._descriptor < 0:
                self._descriptor = self._create(self._member)
            self._written += write_at(self._descriptor, self._last, self._written)
            self._last = b""


def inflated(member: Member, data: memoryview) -> Iterator[bytes]:
    """Yield the inflated data of an entry. The last piece comes after all checks. Raises InvalidArchive."""
    inflater = Inflater(member)
    last = b""
    for piece in inflater.inflate(data):
        if last:
            yield last
        last = piece
    inflater.finish()
    if last:
        yield last
