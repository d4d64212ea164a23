"""Find out how a namespace has grown: what was added in each hour, day or month, of all that is stored now."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from datetime import MAXYEAR, UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from filestore.core.records import Record
from filestore.repository.protocol import Usage

POINTS_LIMIT = 60
"""The most points of a curve."""
_SECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONTHS = 12

_Ints = npt.NDArray[np.int64]


class Span(StrEnum):
    """How long the time between two points of a curve is. Days and longer ones begin by the calendar, in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


class GrowthPoint(NamedTuple):
    """What was stored up to the end of an interval, of all that is stored now."""

    begins_at: int
    """When the interval begins, in microseconds since 1970."""
    version_count: int
    logical_size: int
    """Bytes of the content of these versions together."""
    distinct_size: int
    """Bytes of their chunks, each counted once."""
    stored_size: int
    """Bytes of the frames of these chunks."""


class Growth(NamedTuple):
    """The curve of a namespace: one point for each interval, from that of the oldest version to that of the newest one."""

    span: Span
    span_count: int
    """How many spans an interval has: more than one only of years."""
    points: tuple[GrowthPoint, ...]


class Space(NamedTuple):
    """What a namespace takes on disk now, and how it came to that."""

    usage: Usage
    growth: Growth


class GrowthSums:
    """Adds up what each interval has added. `measure_usage` gives it all versions first, and then the chunks in parts."""

    def __init__(self, *, limit: int = POINTS_LIMIT) -> None:
        """`limit` is the most intervals."""
        self._limit = limit
        self._span, self._span_count = Span.MINUTE, 1
        self._starts: list[int] = []
        self._counts, self._logical, self._distinct, self._stored = (np.zeros(0, np.int64) for _ in range(4))

    def begin(self, records: Iterable[Record]) -> None:
        """Choose the intervals, and count the versions. Call it once, before the other methods."""
        moments = [(record.created_at, record.size) for record in records]
        if not moments:
            return
        times = [moment for moment, _ in moments]
        self._span, self._span_count, self._starts = intervals(min(times), max(times), limit=self._limit)
        self._counts, self._logical, self._distinct, self._stored = (np.zeros(len(self._starts), np.int64) for _ in range(4))
        for moment, size in moments:
            number = self.interval_of(moment)
            self._counts[number] += 1
            self._logical[number] += size

    def interval_of(self, moment: int) -> int:
        """Return the number of the interval of a moment."""
        return max(bisect_right(self._starts, moment) - 1, 0)

    def add(self, numbers: npt.NDArray[np.int32], sizes: _Ints, stored_sizes: _Ints) -> None:
        """Add chunks. `numbers` has the interval in which each one was first stored."""
        np.add.at(self._distinct, numbers, sizes)
        np.add.at(self._stored, numbers, stored_sizes)

    def growth(self) -> Growth:
        """Return the curve."""
        columns = (
            self._starts,
            *(np.cumsum(each).tolist() for each in (self._counts, self._logical, self._distinct, self._stored)),
        )
        return Growth(self._span, self._span_count, tuple(map(GrowthPoint._make, zip(*columns, strict=True))))


def intervals(first: int, last: int, *, limit: int) -> tuple[Span, int, list[int]]:
    """Return the shortest span of which at most `limit` intervals cover all moments from `first` to `last`, and their starts.

    The second value is how many spans an interval has.
    """
    for span in Span:
        starts = _starts(span, 1, first, last, limit)
        if starts is not None:
            return span, 1, starts
    years = _moment(last).year - _moment(first).year + 1
    count = -(-years // limit)
    return Span.YEAR, count, _starts(Span.YEAR, count, first, last, limit) or [first]


def _starts(span: Span, count: int, first: int, last: int, limit: int) -> list[int] | None:
    """Return the starts of intervals of `count` spans, or None if there are more than `limit`."""
    begin, after = _RULES[span]
    start: datetime | None = begin(_moment(first))
    starts: list[int] = []
    while start is not None and (at := (start - _EPOCH) // timedelta(microseconds=1)) <= last:
        if len(starts) == limit:
            return None
        starts.append(at)
        start = after(start, count)
    return starts


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _added(step: timedelta) -> Callable[[datetime, int], datetime | None]:
    def after(start: datetime, count: int) -> datetime | None:
        try:
            return start + count * step
        except OverflowError:
            return None  # the calendar ends

    return after


def _months_later(start: datetime, count: int) -> datetime | None:
    years, month = divmod(start.month - 1 + count, _MONTHS)
    return None if start.year + years > MAXYEAR else start.replace(year=start.year + years, month=month + 1)


def _years_later(start: datetime, count: int) -> datetime | None:
    return _months_later(start, _MONTHS * count)


_RULES: dict[Span, tuple[Callable[[datetime], datetime], Callable[[datetime, int], datetime | None]]] = {
    Span.MINUTE: (lambda moment: moment.replace(second=0, microsecond=0), _added(timedelta(minutes=1))),
    Span.HOUR: (lambda moment: moment.replace(minute=0, second=0, microsecond=0), _added(timedelta(hours=1))),
    Span.DAY: (_midnight, _added(timedelta(days=1))),
    Span.WEEK: (lambda moment: _midnight(moment) - timedelta(days=moment.weekday()), _added(timedelta(weeks=1))),
    Span.MONTH: (lambda moment: _midnight(moment).replace(day=1), _months_later),
    Span.YEAR: (lambda moment: _midnight(moment).replace(month=1, day=1), _years_later),
}
