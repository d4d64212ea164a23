"""The chart of growth: each step is as high as its figure, and the steps are as wide as the chart."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from filestore.http.server.routes.page.space_chart import HEIGHT, WIDTH, draw_curves

STEP = re.compile(r"V([\d.]+)H([\d.]+)")
figures = st.integers(0, 1 << 62)


@given(rows=st.lists(st.tuples(figures, figures, figures), max_size=60))
def test_steps_are_as_high_as_their_figures(rows: list[tuple[int, int, int]]) -> None:
    """The largest figure reaches the upper edge. Nothing is drawn for nothing."""
    curves = draw_curves(rows)
    assert max((figure for row in rows for figure in row), default=0) == curves.top
    assert (3 if rows else 0) == len(curves.areas)
    for column, area in enumerate(curves.areas):
        steps = [tuple(map(float, step)) for step in STEP.findall(area)]
        assert area == f"M0 {HEIGHT}{''.join(found.group() for found in STEP.finditer(area))}V{HEIGHT}z"
        assert len(rows) == len(steps)
        assert WIDTH == steps[-1][1]
        for (top, right), row, number in zip(steps, rows, range(len(rows)), strict=True):
            share = row[column] / curves.top if curves.top else 0
            assert abs(HEIGHT * (1 - share) - top) <= 0.1
            assert abs((number + 1) * WIDTH / len(rows) - right) <= 0.1
