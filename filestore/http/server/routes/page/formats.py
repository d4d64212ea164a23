"""Write numbers, sizes and times as pages show them.

A page has them in English and in UTC, inside elements that also have the exact value. The script of the page writes them again
in the language and the time zone of the reader.
"""

from __future__ import annotations

from markupsafe import Markup

from filestore.core.timestamps import format_timestamp

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DATA = Markup('<data class="{}" value="{}">{}</data>')
_TIME = Markup('<time datetime="{}">{}</time>')


def size(number: int) -> Markup:
    """Return an element with a size in bytes, such as `90.9 MB`."""
    return _DATA.format("size", number, size_text(number))


def count(number: int) -> Markup:
    """Return an element with a whole number, such as `1,234`."""
    return _DATA.format("count", number, f"{number:,}")


def moment(microseconds: int) -> Markup:
    """Return an element with a time that is given in microseconds since 1970, such as `2026-11-30 17:39 UTC`."""
    text = format_timestamp(microseconds)
    return _TIME.format(text, f"{text[:10]} {text[11:16]} UTC")


def size_text(number: int) -> str:
    """Return a size in bytes with three digits and a decimal unit, such as `90.9 MB`."""
    value, place = float(number), 0
    while value >= 999.5 and place + 1 < len(_UNITS):
        value /= 1000
        place += 1
    digits = 0 if place == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[place]}"


def percent(part: float, whole: float) -> str:
    """Return a share in whole percent, such as `38 %`. That of nothing is `0 %`."""
    return f"{100 * part / whole if whole else 0:.0f} %"


def coordinate(value: float) -> str:
    """Return a number of a path of SVG, with one digit after the point, which is a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
