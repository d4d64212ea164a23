"""Draw how a namespace has grown: areas in steps, one step for each interval. The result is text for attributes of SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from filestore.http.server.routes.page.formats import coordinate

WIDTH = 1000
"""The width of the chart, in its own units."""
HEIGHT = 240


class Curves(NamedTuple):
    """The areas of a chart."""

    areas: tuple[str, ...]
    """For each column of the figures, the attribute `d` of its area."""
    top: int
    """What the upper edge stands for: the largest figure."""


def draw_curves(rows: Sequence[Sequence[int]]) -> Curves:
    """Draw the columns of `rows`, which all have the same number of figures, none below 0."""
    top = max((figure for row in rows for figure in row), default=0)
    columns = list(zip(*rows, strict=True))
    return Curves(tuple(_area(column, top) for column in columns), top)


def _area(figures: Sequence[int], top: int) -> str:
    step = WIDTH / len(figures)
    path = f"M0 {HEIGHT}"
    for number, figure in enumerate(figures):
        height = HEIGHT * (1 - figure / top) if top else HEIGHT
        path += f"V{coordinate(height)}H{coordinate((number + 1) * step)}"
    return f"{path}V{HEIGHT}z"
