"""Write and read timestamps as text.

The text has the form of RFC 3339 in UTC, with six digits after the second, such as `2026-11-24T05:57:45.535263Z`.

In the library, a time is a whole number of microseconds since 1970.
"""

from __future__ import annotations

from datetime import UTC, datetime

LAST_MOMENT = 253_402_300_800_000_000
"""The first time that is not allowed: the start of the year 10000, in microseconds since 1970."""


def format_timestamp(microseconds: int) -> str:
    """Return a time in microseconds since 1970 as text. All times in JSON have this form."""
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_seconds(seconds: float) -> str:
    """Return a time in seconds since 1970 as text. Clocks and file systems give times in seconds."""
    return format_timestamp(int(seconds * 1_000_000))


def parse_timestamp(text: str) -> int:
    """Parse a text in a form of ISO 8601 that `datetime.fromisoformat` reads. Return microseconds since 1970.

    Raises ValueError if the text has another form, or if it has no time zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time has a time zone")
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond
