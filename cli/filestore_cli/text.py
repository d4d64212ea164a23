"""Format texts and numbers for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from filestore.core.object_location import ObjectLocation

Rows: TypeAlias = Mapping[str, object]
"""The rows of a result for a person: the name of each, and its value."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def for_display(text: str | Path | ObjectLocation) -> str:
    """Return `text` as one line that cannot control a terminal: unprintable characters are escaped as in Python."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def lines_for_display(text: str) -> str:
    """Return `text` with its lines as they are, and everything else as `for_display` returns it."""
    return "\n".join(map(for_display, text.split("\n")))


def in_units(size: float) -> str:
    """Return a number of bytes with three digits and a decimal unit: `90.9 MB`."""
    for unit in _UNITS:
        if size < 999.5 or unit == _UNITS[-1]:
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def exactly(size: int) -> str:
    """Return a number of bytes, rounded and exact: `90.9 MB (90868376 bytes)`."""
    return f"{size} bytes" if size < 1000 else f"{in_units(size)} ({size} bytes)"


def duration(seconds: float, *, digits: int = 2) -> str:
    """Return a time such as `0.42 s`, `12 s`, `3 min 20 s`, `2 h 5 min`. `digits` are for less than 10 seconds."""
    if seconds < 10:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def age(seconds: float) -> str:
    """Return roughly how long ago a time was, such as `now`, `5 min`, `3 h` or `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return "now"


def minute(microseconds: int) -> str:
    """Format a time, given in microseconds since 1970, as `2026-11-24 05:57 UTC`."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def table(**rows: object) -> list[str]:
    """Return lines of a name and a value, with the values in one column. An underscore in a name becomes a space."""
    width = max(map(len, rows))
    return [f"{name.replace('_', ' '):<{width}}  {value}" for name, value in rows.items()]


def file_rows(count: int, *, is_tree: bool) -> Rows:
    """Return the row of a result that has the number of files in a tree."""
    return {"files": f"{count:,}"} if is_tree else {}


def time_taken(seconds: float, moved: int) -> str:
    """Return how long a transfer took, and the rate of the bytes that were moved, if there were some."""
    rate = f" ({in_units(moved / seconds)}/s)" if moved and seconds > 0 else ""
    return duration(seconds) + rate


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as lines under a header, in columns that are as wide as they must be. Without rows, return nothing.

    The values of a column whose header begins with `>` are at its right. The values must be for display.
    """
    lines = [[name.removeprefix(">") for name in header], *rows]
    if len(lines) == 1:
        return []
    sides = [">" if name.startswith(">") else "<" for name in header]
    widths = [max(map(len, values)) for values in zip(*lines, strict=True)]
    forms = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    return ["  ".join(form.format(value) for form, value in zip(forms, line, strict=True)).rstrip() for line in lines]
