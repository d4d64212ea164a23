"""Timestamps as text: RFC 3339 in UTC with six digits of a second, such as `2026-11-24T05:57:45.535263Z`.

In the library, a time is a whole number of microseconds since 1970.
"""

from __future__ import annotations

from datetime import UTC, datetime


def format_timestamp(microseconds: int) -> str:
    """Return the text of a time. All times in JSON have this form."""
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_seconds(seconds: float) -> str:
    """Return the text of a time in seconds since 1970, as clocks and file systems give it."""
    return format_timestamp(int(seconds * 1_000_000))


def parse_timestamp(text: str) -> int:
    """Return the time of a text in any form of ISO 8601, in microseconds.

    Raises ValueError, also without a time zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time has a time zone")
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond
