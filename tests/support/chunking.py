"""Cut a whole file that arrives in pieces of any size, as a push does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION, Chunker
from filestore.format.chunking.containers import segmenter
from filestore.transfer.sources.file import WINDOW_SIZE, Content, scan_and_hash


def pieces(size: int, *, whole: int) -> Iterator[int]:
    """Return the ends of pieces of `size` bytes that make up `whole` bytes. The last one may be shorter."""
    yield from range(size, whole, size)
    yield whole


def chunk_sizes(content: bytes, ends: Iterable[int]) -> list[int]:
    """Return the chunk sizes of a `Chunker` that gets `content` up to each of `ends`. The last end is that of the file."""
    view = memoryview(content)
    chunker, sizes, start = Chunker(), list[int](), 0
    for end in ends:
        decided = chunker.cut(view[start:end], final=end == len(view))
        sizes += decided
        start += sum(decided)
    return sizes


def relayed_sizes(content: bytes, ends: Iterable[int]) -> list[int]:
    """Do what `chunk_sizes` does, by two chunkers in turn. Each passes over the bytes that the other one cut."""
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
    """Return the ends of segments inside `content`, found in pieces that end at each of `ends`."""
    view = memoryview(content)
    segments, found, start = segmenter(), list[int](), 0
    for end in ends:
        found += segments.feed(view[start:end])
        start = end
    return [boundary for boundary in found if boundary < len(view)]


def scan(content: Content) -> None:
    """Read the rest of a content to its end, and hash all of it."""
    buffer = memoryview(bytearray(WINDOW_SIZE))
    while not content.is_finished:
        scan_and_hash(content, buffer)


def cut(content: bytes) -> list[bytes]:
    """Return the chunks of `content`, given as a whole."""
    ends = accumulate(chunk_sizes(content, [len(content)]), initial=0)
    return [content[start:end] for start, end in pairwise(ends)]


def manifest_of(content: bytes) -> Manifest:
    """Return the manifest of `content`."""
    chunks = (Chunk(chunk_digest(piece), len(piece)) for piece in cut(content))
    return Manifest.build(chunks, chunking_version=CHUNKING_VERSION)
