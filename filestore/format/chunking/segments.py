"""Find the segments of a file from its structure, while its bytes arrive.

A container's parser is a generator over a `Feed`. It takes bytes and marks boundaries. When it needs more bytes, it
yields the position before which it has marked all boundaries. After it returns or raises NotThisFormat, no more
boundaries come. This is the worst effect of a false or broken header.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Parsing: TypeAlias = Generator[int, None, T]

SEGMENT_MIN = 256 << 10
"""Tensors and entries of at least this size are segments. Smaller ones are in one segment with their neighbours."""
POSITION_LIMIT = 1 << 63
"""The limit for the size of a container. A container that claims to be larger is abandoned."""
PEEK_LIMIT = 64
"""The largest size that `Feed.at_least` accepts."""

_NOTHING = memoryview(b"")


class NotThisFormat(Exception):
    """A container has another format than its first bytes say. This error is never raised outside `filestore.format`."""


class Feed:
    """Holds the bytes of one container while they arrive in pieces, and the boundaries that its parser marks.

    Positions are offsets in the file, also for a container inside another one. The caller owns each piece: fewer than
    64 bytes of it are kept between calls.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.position = start
        """The offset of the first byte that the parser has not taken yet."""
        self._carry = b""
        self._piece = _NOTHING
        self._at = 0  # index of `position` in the piece; negative while it is still in the carry
        self._marked: list[int] = []
        self._last = start

    def refill(self, piece: memoryview) -> None:
        """Continue with `piece`. The parser must have seen all bytes before it."""
        self._piece = piece
        self._at = -len(self._carry)

    def settle(self) -> None:
        """Release the piece. Keep a copy of the bytes that the parser has not taken."""
        self._carry = bytes(self.here())
        self.let_go()

    def let_go(self) -> None:
        """Release the piece."""
        self._piece = _NOTHING

    def available(self) -> int:
        """Return the length of the result of `here`. It is 0 only if all bytes are taken."""
        if self._at >= 0:
            return len(self._piece) - self._at
        return min(len(self._piece), PEEK_LIMIT) - self._at

    def here(self) -> memoryview:
        """Return bytes from `position` on. These may be fewer bytes than have arrived.

        A parser must not keep them over a yield.
        """
        if self._at >= 0:
            return self._piece[self._at :]
        return memoryview(self._carry[self._at :] + bytes(self._piece[:PEEK_LIMIT]))

    def advance(self, size: int) -> None:
        """Take `size` of the bytes that `here` returned."""
        self._at += size
        self.position += size

    def at_least(self, size: int) -> Parsing[None]:
        """Wait until `size` (at most 64) bytes have arrived. Takes none of them."""
        while self.available() < size:
            yield self.position

    def read(self, size: int, *, known: int | None = None) -> Parsing[bytearray]:
        """Return the next `size` bytes.

        `known` is a later position. The parser tells the caller that no boundary comes before it.
        """
        taken = bytearray()
        while len(taken) < size:
            if count := min(self.available(), size - len(taken)):
                taken += self.here()[:count]
                self.advance(count)
            else:
                yield self.position if known is None else known
        return taken

    def skip(self, size: int) -> Parsing[None]:
        """Skip `size` bytes that contain no boundary."""
        end = self.position + size
        while self.position < end:
            if count := min(self.available(), end - self.position):
                self.advance(count)
            else:
                yield end

    def mark(self, boundary: int) -> None:
        """Mark `boundary` as the end of one segment and the start of the next.

        Call in order; a repeated call has no effect.
        """
        if boundary > self._last:
            self._marked.append(boundary)
            self._last = boundary

    def mark_extents(self, extents: Iterable[tuple[int, int]]) -> None:
        """Mark both ends of each (start, end) that is large enough.

        Raises NotThisFormat for extents that overlap, end before they start, or end beyond `POSITION_LIMIT`.
        """
        reached = self.position
        large: list[tuple[int, int]] = []
        for begin, end in sorted(extents):
            if not reached <= begin <= end < POSITION_LIMIT:
                raise NotThisFormat("its extents overlap or are out of bounds")
            reached = end
            if end - begin >= SEGMENT_MIN:
                large.append((begin, end))
        for begin, end in large:
            self.mark(begin)
            self.mark(end)

    def marked(self) -> list[int]:
        """Return the boundaries that were marked since the last call, in order."""
        marked, self._marked = self._marked, []
        return marked


class Segmenter:
    """Runs the parser of a container over the bytes of a file, while they arrive."""

    def __init__(self, parse: Callable[[Feed], Parsing[None]], *, start: int = 0) -> None:
        self.known_until = start
        """`feed` has returned all boundaries before this position."""
        self._feed = Feed(start)
        self._parsing = parse(self._feed)

    def feed(self, data: memoryview) -> list[int]:
        """Parse the next bytes of the file, and return the boundaries that are found, in order.

        A boundary is never before one that an earlier call returned. `data` is not kept.
        """
        if self.known_until == POSITION_LIMIT:
            return []
        self._feed.refill(data)
        try:
            self.known_until = next(self._parsing, POSITION_LIMIT)
        except NotThisFormat:
            self.known_until = POSITION_LIMIT
        if self.known_until == POSITION_LIMIT:
            self._feed.let_go()
        else:
            self._feed.settle()
        return self._feed.marked()


def known_segments(boundaries: Iterable[int] = ()) -> Segmenter:
    """Return a segmenter for content whose boundaries are known before its first byte, in order. It looks at no byte."""

    def parse(feed: Feed) -> Parsing[None]:
        for boundary in boundaries:
            feed.mark(boundary)
        yield from ()

    return Segmenter(parse)
