"""Segments: what is known of a file's structure while its bytes come in.

A container's parser is a generator over a `Feed`. It takes bytes, marks boundaries, and where it runs dry yields the
position up to which it has marked all of them. When it returns or doubts, no more boundaries come: a lying or broken
header never does more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Parsing: TypeAlias = Generator[int, None, T]

SEGMENT_MIN = 256 << 10
"""Tensors and entries of at least this size are segments; smaller ones run together with their neighbours."""
POSITION_LIMIT = 1 << 63
"""No container is larger: one that claims to be is doubted."""
PEEK_LIMIT = 64
"""The most that `Feed.at_least` can be asked for."""

_NOTHING = memoryview(b"")


class NotThisFormat(Exception):
    """A container is not what it says. Never leaves this package."""


class Feed:
    """The bytes of one container as they come in pieces, and the boundaries that its parser marks.

    Positions are offsets in the file, also where the container lies inside another. A piece belongs to the caller: fewer
    than 64 bytes of it are kept between calls.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.position = start
        """Of the first byte that is not taken yet."""
        self._carry = b""
        self._piece = _NOTHING
        self._at = 0  # of `position` in the piece; negative while it still lies in the carry
        self._marked: list[int] = []
        self._last = start

    def refill(self, piece: memoryview) -> None:
        """Go on with `piece`. The parser must have seen all that came before."""
        self._piece = piece
        self._at = -len(self._carry)

    def settle(self) -> None:
        """Let go of the piece, and keep what the parser looked at and did not take."""
        self._carry = bytes(self.here())
        self.let_go()

    def let_go(self) -> None:
        """Let go of the piece."""
        self._piece = _NOTHING

    def available(self) -> int:
        """The length of what `here` gives: 0 only where all is taken."""
        if self._at >= 0:
            return len(self._piece) - self._at
        return min(len(self._piece), PEEK_LIMIT) - self._at

    def here(self) -> memoryview:
        """What is here from `position` on, maybe not all of it. A parser must not keep it over a yield."""
        if self._at >= 0:
            return self._piece[self._at :]
        return memoryview(self._carry[self._at :] + bytes(self._piece[:PEEK_LIMIT]))

    def advance(self, size: int) -> None:
        """Take `size` bytes of what `here` gave."""
        self._at += size
        self.position += size

    def at_least(self, size: int) -> Parsing[None]:
        """Wait until `size` (at most 64) bytes are here. Takes nothing."""
        while self.available() < size:
            yield self.position

    def take(self, size: int, *, known: int | None = None) -> Parsing[bytearray]:
        """The next `size` bytes; no boundary lies before `known`, where that is more than what was taken."""
        taken = bytearray()
        while len(taken) < size:
            if count := min(self.available(), size - len(taken)):
                taken += self.here()[:count]
                self.advance(count)
            else:
                yield self.position if known is None else known
        return taken

    def skip(self, size: int) -> Parsing[None]:
        """Pass over `size` bytes in which no boundary lies."""
        end = self.position + size
        while self.position < end:
            if count := min(self.available(), end - self.position):
                self.advance(count)
            else:
                yield end

    def mark(self, boundary: int) -> None:
        """A segment ends and another one starts at `boundary`. Boundaries are marked in order; once more is no harm."""
        if boundary > self._last:
            self._marked.append(boundary)
            self._last = boundary

    def mark_extents(self, extents: Iterable[tuple[int, int]]) -> None:
        """Mark both ends of each (begin, end) that is large enough. Doubts what overlaps, runs backwards or ends nowhere."""
        reached = self.position
        large: list[tuple[int, int]] = []
        for begin, end in sorted(extents):
            if not reached <= begin <= end < POSITION_LIMIT:
                raise NotThisFormat("its extents overlap or run out of all bounds")
            reached = end
            if end - begin >= SEGMENT_MIN:
                large.append((begin, end))
        for begin, end in large:
            self.mark(begin)
            self.mark(end)

    def marked(self) -> list[int]:
        """The boundaries that were marked since the last call, in order."""
        marked, self._marked = self._marked, []
        return marked


class Segmenter:
    """Runs a parser over bytes as they come."""

    def __init__(self, parse: Callable[[Feed], Parsing[None]], *, start: int = 0) -> None:
        self.known_until = start
        """All boundaries before this position have been returned by `feed`."""
        self._feed = Feed(start)
        self._parsing = parse(self._feed)

    def feed(self, data: memoryview) -> list[int]:
        """Take the bytes that follow those of the last call; return the boundaries found in them, in order.

        No call returns one that lies before those of another call. `data` is not kept.
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
