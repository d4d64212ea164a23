r"""Find the segments of a zip file: the data of its large entries. The local headers show where they are.

This also applies to `.pt`, `.pth`, `.bin`, `.npz` and `.keras`.

Source: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.7, 4.3.9 and
4.5.3.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from filestore.format.chunking.segments import POSITION_LIMIT, SEGMENT_MIN, Feed, NotThisFormat, Parsing, Segmenter
from filestore.format.zip.structures import (
    EXTRA_HEADER,
    EXTRA_ZIP64,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    LOCAL_HEADER,
    LOCAL_SIGNATURE,
    STORED,
    U32_MAX,
    U64,
)

Nest = Callable[[int], Segmenter]

# A descriptor: signature, checksum, and twice the same size, in 32 or in 64 bits; then a local or a central header. The
# look-ahead consumes nothing, so that a true descriptor inside a false one is found.
_DESCRIPTOR = re.compile(rb"PK\x07\x08(?=.{4}(?:(.{4})\1|(.{8})\2)PK(?:\x03\x04|\x01\x02))", re.DOTALL)
_DESCRIPTOR_SIZES = (16, 24)
_SPAN = _DESCRIPTOR_SIZES[1] + 4
"""The number of bytes, from a descriptor's start, that show whether it is one."""
_SLICE = 1 << 20
"""The number of bytes that are searched at a time. Other threads can run between two slices."""


class _Entry(NamedTuple):
    stored: bool
    """Whether the data is neither compressed nor encrypted, so that it is the content of the entry."""
    size: int | None
    """The size of the data. None if only the descriptor after the data gives it."""


def segment(feed: Feed, *, nest: Nest | None) -> Parsing[None]:
    """Mark the start and the end of the data of each large entry.

    If the entry is stored (neither compressed nor encrypted), also mark the boundaries inside it. The segmenter that
    `nest` makes finds them; None looks for none. Ends at the first position without a local header, or in an entry that
    is not stored and whose local header does not give its size.
    """
    while True:
        raw = yield from feed.read(LOCAL_HEADER.size)
        signature, _, flags, method, _, _, _, packed_size, size, name_length, extra_length = LOCAL_HEADER.unpack(raw)
        if signature != LOCAL_SIGNATURE:
            return
        yield from feed.skip(name_length)
        extra = yield from feed.read(extra_length)
        entry = _Entry(
            method == STORED and not flags & FLAG_ENCRYPTED,
            None if flags & FLAG_DESCRIPTOR else _known_size(packed_size, extra, position=8 if size == U32_MAX else 0),
        )
        if entry.size is not None:
            yield from _sized(feed, entry.size, nest=nest if entry.stored else None)
        elif entry.stored:
            yield from _unsized(feed, nest=nest)
        else:
            return


def _known_size(size: int, extra: bytearray, *, position: int) -> int:
    if size != U32_MAX:
        return size
    at = 0
    while at + EXTRA_HEADER.size <= len(extra):
        kind, length = EXTRA_HEADER.unpack_from(extra, at)
        at += EXTRA_HEADER.size
        if kind == EXTRA_ZIP64:
            field = extra[at : at + length]
            if position + U64.size <= len(field):
                return int(U64.unpack_from(field, position)[0])
            break
        at += length
    raise NotThisFormat("an entry's size is missing")


def _sized(feed: Feed, size: int, *, nest: Nest | None) -> Parsing[None]:
    end = feed.position + size
    if end >= POSITION_LIMIT:
        raise NotThisFormat("an entry ends out of bounds")
    if size < SEGMENT_MIN:
        yield from feed.skip(size)
        return
    feed.mark(feed.position)
    content = nest(feed.position) if nest else None
    while feed.position < end:
        count = min(feed.available(), end - feed.position)
        if not count:
            yield min(content.known_until, end) if content else end
            continue
        for boundary in content.feed(feed.here()[:count]) if content else ():
            if boundary < end:
                feed.mark(boundary)
        feed.advance(count)
    feed.mark(end)


def _unsized(feed: Feed, *, nest: Nest | None) -> Parsing[None]:
    """Read an entry of unknown size: search for the descriptor after its data.

    The start of the entry is a boundary when 256 KiB have been searched. Until then this is not known, so boundaries
    inside the entry are withheld.
    """
    start = feed.position
    content = nest(start) if nest else None
    withheld: deque[int] = deque()
    ended = 0
    while not ended:
        if feed.available() < _SPAN:
            yield min(content.known_until if content else feed.position, feed.position) if _is_large(feed, start) else start
            continue
        size, ended = _find_descriptor(feed.here()[:_SLICE], before=feed.position - start)
        if content:
            withheld.extend(content.feed(feed.here()[:size]))
        feed.advance(size)
        if _is_large(feed, start):
            feed.mark(start)
            while withheld and withheld[0] < feed.position:
                feed.mark(withheld.popleft())
    if _is_large(feed, start):
        feed.mark(feed.position)
    yield from feed.skip(ended)


def _is_large(feed: Feed, start: int) -> bool:
    return feed.position - start >= SEGMENT_MIN


def _find_descriptor(view: memoryview, *, before: int) -> tuple[int, int]:
    """Return the count of data bytes in `view`, and the size of the descriptor after them, or 0 if none is found.

    `before` bytes of data precede the view. The last bytes of the view are too few to decide, so they count as neither.
    """
    for match in _DESCRIPTOR.finditer(view):
        if match.start() > len(view) - _SPAN:
            break
        for size, found in zip(_DESCRIPTOR_SIZES, match.groups(), strict=True):
            if found is not None and int.from_bytes(found, "little") == before + match.start():
                return match.start(), size
    return len(view) - _SPAN + 1, 0
