"""Draw the chunks of a file: rows of boxes as wide as the chunks are large, filled as high as their frames are large.

The result is text for the attributes of SVG paths: one path for each colour, so that 500 boxes take some 30 KB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from filestore.http.server.routes.page.formats import coordinate

if TYPE_CHECKING:  # it imports numpy, which is heavy
    from filestore.http.server.routes.page.chunk_cells import Encoding, Piece, Sharing

K = TypeVar("K", bound=IntEnum)

WIDTH = 1000
"""The width of the picture, in its own units."""
ROW_HEIGHT = 36
BOX_HEIGHT = 24
"""The height of a box whose frame saves nothing."""
CODEC_HEIGHT = 4
"""The height of the line below a box that shows the codec."""
_PIECES_IN_ROW = 64
_ROWS_LIMIT = 16


class Picture(NamedTuple):
    """The paths of a picture, as texts for the attribute `d`."""

    height: int
    boxes: dict[Sharing, str]
    """The whole of each box."""
    filled: dict[Sharing, str]
    """What is left of it in storage."""
    codecs: dict[Encoding, str]


class _Box(NamedTuple):
    row: int
    x: float
    width: float


def draw(pieces: Sequence[Piece]) -> Picture:
    """Draw pieces whose sizes add up to that of the file."""
    total = sum(piece.size for piece in pieces)
    row_count = min(max(1, -(-len(pieces) // _PIECES_IN_ROW)), _ROWS_LIMIT)
    boxes: dict[Sharing, list[str]] = defaultdict(list)
    filled: dict[Sharing, list[str]] = defaultdict(list)
    codecs: dict[Encoding, list[str]] = defaultdict(list)
    for (sharing, encoding), together in _together(pieces):
        start = together[0][0]
        stop = together[-1][0] + together[-1][1].size
        for box in _boxes(start, stop, total, row_count):
            top = box.row * ROW_HEIGHT
            boxes[sharing].append(_rectangle(box, top, BOX_HEIGHT))
            codecs[encoding].append(_rectangle(box, top + BOX_HEIGHT + 2, CODEC_HEIGHT))
    at = 0
    for piece in pieces:
        height = BOX_HEIGHT * min(piece.stored_size / piece.size, 1.0)
        for box in _boxes(at, at + piece.size, total, row_count):
            filled[piece.sharing].append(_rectangle(box, (box.row * ROW_HEIGHT) + BOX_HEIGHT - height, height))
        at += piece.size
    return Picture(row_count * ROW_HEIGHT, _joined(boxes), _joined(filled), _joined(codecs))


def _together(pieces: Sequence[Piece]) -> Iterator[tuple[tuple[Sharing, Encoding], list[tuple[int, Piece]]]]:
    """Yield neighbouring pieces with the same colours, each with where it begins."""
    at = 0
    group: list[tuple[int, Piece]] = []
    for piece in pieces:
        if group and (group[0][1].sharing, group[0][1].encoding) != (piece.sharing, piece.encoding):
            yield (group[0][1].sharing, group[0][1].encoding), group
            group = []
        group.append((at, piece))
        at += piece.size
    if group:
        yield (group[0][1].sharing, group[0][1].encoding), group


def _boxes(start: int, stop: int, total: int, row_count: int) -> Iterator[_Box]:
    """Yield the boxes of a range of the file: one, or one for each row that it is in."""
    row = start * row_count // total
    while start < stop:
        row_start = -(-row * total // row_count)
        row_stop = min(-(-(row + 1) * total // row_count), total)
        end = min(stop, row_stop)
        if end > start:
            scale = WIDTH / max(row_stop - row_start, 1)
            yield _Box(row, (start - row_start) * scale, (end - start) * scale)
        start, row = max(end, start), row + 1


def _rectangle(box: _Box, top: float, height: float) -> str:
    return f"M{coordinate(box.x)} {coordinate(top)}h{coordinate(box.width)}v{coordinate(height)}h-{coordinate(box.width)}z"


def _joined(paths: Mapping[K, list[str]]) -> dict[K, str]:
    return {kind: "".join(parts) for kind, parts in sorted(paths.items())}
