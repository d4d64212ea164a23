"""What a namespace takes on disk, by name, and what sharing and encoding have saved over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from filestore.http.server.context import RequestContext
from filestore.http.server.measuring import MEASURING
from filestore.http.server.routes.page.paging import Paging
from filestore.http.server.routes.page.rendering import render
from filestore.http.server.routes.page.reports import REFRESH, REPORTS, state_of
from filestore.http.server.routes.page.space_chart import Curves, draw_curves
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import QuotaUse

if TYPE_CHECKING:  # it imports numpy, which is heavy
    from filestore.repository.maintenance.growth import Growth, GrowthPoint, Space

NAMES_LIMIT = 1000
"""How many names the report has: those that take the most."""
NAMES_AT_ONCE = 50
"""The names on one page."""
_DETAIL_RATIO = 4

_SPAN_FORMATS = {
    "minute": "%Y-%m-%d %H:%M",
    "hour": "%Y-%m-%d %H:%M",
    "day": "%Y-%m-%d",
    "week": "%Y-%m-%d",
    "month": "%Y-%m",
    "year": "%Y",
}
_LIMIT_WORDS = {"size": "Content of all versions", "stored_size": "Stored bytes", "name_count": "Names"}


class _Report(NamedTuple):
    space: Space
    made_at: int


class _Interval(NamedTuple):
    """A row of the table below the curve."""

    begins: str
    added_count: int
    added_size: int
    added_stored: int
    point: GrowthPoint


class _Chart(NamedTuple):
    title: str
    top: int
    """Bytes that the upper edge stands for."""
    areas: list[tuple[str, str, str]]
    """The class of each area, what it is, and its path."""


class _Limit(NamedTuple):
    """A limit of the namespace, and what counts for it."""

    words: str
    limit: int
    used: int
    is_size: bool


async def show_space(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Show what the namespace takes. If it takes long to measure, say so, and let the browser ask again."""
    report = await _report(context, repository)
    if report is None:
        return await render(context, "space.html", headers=REFRESH, usage=None)
    usage, growth = report.space
    paging = Paging.of(context.request, len(usage.names), limit=NAMES_AT_ONCE)
    return await render(
        context,
        "space.html",
        usage=usage,
        growth=growth,
        made_at=report.made_at,
        paging=paging,
        names=usage.names[paging.start : paging.stop],
        charts=_charts(growth),
        intervals=_intervals(growth),
        first_begins=_begins(growth, growth.points[0]) if growth.points else "",
        last_begins=_begins(growth, growth.points[-1]) if growth.points else "",
        grace=_duration(usage.grace_seconds),
        limits=_limits(usage.quota),
        disk_size=usage.needed_size + usage.manifests_size + usage.free_size + usage.waiting_size,
    )


async def _report(context: RequestContext, repository: LocalRepository) -> _Report | None:
    app, namespace, grace_seconds = context.request.app, repository.namespace, context.grace_seconds
    question = ("space", repository.prefix, await state_of(repository))
    work = app[MEASURING].space(repository, grace_seconds=grace_seconds, name_limit=NAMES_LIMIT)
    found = await app[REPORTS].get(namespace, question, work)
    return None if found is None else _Report(*found)


def _intervals(growth: Growth) -> list[_Interval]:
    """Return the rows of the table, the newest first. Intervals that added nothing are left out."""
    rows = []
    count = size = stored = 0
    for point in growth.points:
        added = point.version_count - count
        if added:
            rows.append(_Interval(_begins(growth, point), added, point.logical_size - size, point.stored_size - stored, point))
        count, size, stored = point.version_count, point.logical_size, point.stored_size
    return rows[::-1]


def _charts(growth: Growth) -> list[_Chart]:
    """Return a chart of all curves, and one without the content where that leaves no height for the others."""
    styles = (("logical", "content of all versions"), ("distinct", "different chunks"), ("stored", "stored"))
    whole = draw_curves([point[2:] for point in growth.points])
    charts = [_Chart("All versions and what they take", whole.top, _areas(styles, whole))]
    detail = draw_curves([point[3:] for point in growth.points])
    if detail.top * _DETAIL_RATIO < whole.top:
        charts.append(_Chart("Only what they take", detail.top, _areas(styles[1:], detail)))
    return charts


def _areas(styles: Sequence[tuple[str, str]], curves: Curves) -> list[tuple[str, str, str]]:
    return [(style, words, area) for (style, words), area in zip(styles, curves.areas, strict=True)] if curves.areas else []


def _begins(growth: Growth, point: GrowthPoint) -> str:
    return datetime.fromtimestamp(point.begins_at // 1_000_000, UTC).strftime(_SPAN_FORMATS[growth.span])


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:g} hours" if hours >= 1 else f"{seconds / 60:g} minutes"


def _limits(quota: QuotaUse | None) -> list[_Limit]:
    if quota is None:
        return []
    limits = quota.limits._asdict()
    return [
        _Limit(words, limits[name], quota.used[name], name != "name_count")
        for name, words in _LIMIT_WORDS.items()
        if limits[name] is not None
    ]
