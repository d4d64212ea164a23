from __future__ import annotations

import pytest

from filestore_cli.text import duration, exactly, for_display, in_units, minute, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model v2 é 模型.bin", "model v2 é 模型.bin"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    """A name cannot control a terminal; readable characters stay."""
    assert expected == for_display(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9999, "10.0 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (90_868_376, "90.9 MB"),
        (5 * 10**17, "500 PB"),
        (10**19, "10000 PB"),
    ],
)
def test_in_units(size: int, expected: str) -> None:
    """Every size has three digits, and no size is shown as 1000."""
    assert expected == in_units(size)


def test_exactly() -> None:
    """A size is shown with all its digits."""
    assert exactly(12) == "12 bytes"
    assert exactly(90_868_376) == "90.9 MB (90868376 bytes)"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.421, "0.42 s"), (9.99, "9.99 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, expected: str) -> None:
    """Two units are enough."""
    assert expected == duration(seconds)


def test_table() -> None:
    """The values are in one column."""
    assert table(id=1, size="2 bytes") == ["id    1", "size  2 bytes"]


def test_moment() -> None:
    """To the minute, in a time zone that is named."""
    assert "2023-11-14 22:13 UTC" == minute(1_700_000_000_999_999)
