"""Cutting a whole file from whatever pieces it comes in, as a pusher does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION, Chunker
from filestore.format.chunking.containers import segmenter
from filestore.transfer.sources.file import WINDOW_SIZE, Content, scan_and_hash


def pieces(size: int, *, whole: int) -> Iterator[int]:
    """The ends of pieces of `size` bytes, the last one shorter, of `whole` bytes."""
    yield from range(size, whole, size)
    yield whole


def chunk_sizes(content: bytes, ends: Iterable[int]) -> list[int]:
    """What a `Chunker` decides, given `content` up to each of `ends` in turn; the last of them is the end of the file."""
    view = memoryview(content)
    chunker, sizes, start = Chunker(), list[int](), 0
    for end in ends:
        decided = chunker.cut(view[start:end], final=end == len(view))
        sizes += decided
        start += sum(decided)
    return sizes


def relayed_sizes(content: bytes, ends: Iterable[int]) -> list[int]:
    """`chunk_sizes` by two chunkers that take turns, one for each of `ends`; each passes over what the other one cut."""
    view = memoryview(content)
    chunker, other, sizes, start = Chunker(), Chunker(), list[int](), 0
    for end in ends:
        passed = view[:0] if chunker.needs_no_more else view[chunker.fed : max(chunker.fed, start)]
        chunker.pass_over(passed, until=start)
        decided = chunker.cut(view[start:end], final=end == len(view))
        sizes += decided
        start += sum(decided)
        chunker, other = other, chunker
    return sizes


def boundaries(content: bytes, ends: Iterable[int]) -> list[int]:
    """Where segments end inside `content`, found in pieces that end at each of `ends`."""
    view = memoryview(content)
    segments, found, start = segmenter(), list[int](), 0
    for end in ends:
        found += segments.feed(view[start:end])
        start = end
    return [boundary for boundary in found if boundary < len(view)]


def scan(content: Content) -> None:
    """What is left of it, to its end; all is hashed."""
    buffer = memoryview(bytearray(WINDOW_SIZE))
    while not content.is_finished:
        scan_and_hash(content, buffer)


def cut(content: bytes) -> list[bytes]:
    """The chunks of `content`, given whole."""
    ends = accumulate(chunk_sizes(content, [len(content)]), initial=0)
    return [content[start:end] for start, end in pairwise(ends)]


def manifest_of(content: bytes) -> Manifest:
    """The manifest of `content`."""
    chunks = (Chunk(chunk_digest(piece), len(piece)) for piece in cut(content))
    return Manifest.build(chunks, chunking_version=CHUNKING_VERSION)
