"""Recognise containers, such as zip or GGUF, by the first bytes of a file or of a stored zip entry."""

from __future__ import annotations

from functools import partial

from filestore.format.chunking import gguf, safetensors, zip  # noqa: A004  # the container's name
from filestore.format.chunking.segments import Feed, Parsing, Segmenter
from filestore.format.zip.structures import LOCAL_SIGNATURE

DEPTH_LIMIT = 2
"""How deep containers may be inside other containers. The file itself has depth 0."""


def segmenter(start: int = 0, *, depth: int = 0) -> Segmenter:
    """Return a segmenter for content that starts at the offset `start` of a file, inside `depth` containers."""
    return Segmenter(partial(_parse, depth=depth), start=start)


def _parse(feed: Feed, *, depth: int) -> Parsing[None]:
    yield from feed.at_least(safetensors.SNIFF_SIZE)
    head = bytes(feed.here()[: safetensors.SNIFF_SIZE])
    if head.startswith(LOCAL_SIGNATURE):
        nest = partial(segmenter, depth=depth + 1) if depth < DEPTH_LIMIT else None
        yield from zip.segment(feed, nest=nest)
    elif head.startswith(gguf.SIGNATURE):
        yield from gguf.segment(feed)
    elif safetensors.is_head(head):
        yield from safetensors.segment(feed)
