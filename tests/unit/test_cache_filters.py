from __future__ import annotations

import pytest

from filestore_cli.filters import Filter
from filestore_cli.text import age

DAY = 86400


@pytest.mark.parametrize(
    ("text", "stored_size", "seconds", "takes"),
    [
        ("size>1GB", 10**9 + 1, 0, True),
        ("size>1GB", 10**9, 0, False),
        ("size>=1GiB", 1 << 30, 0, True),
        ("size<1.5kB", 1499, 0, True),
        ("size <= 12", 12, 0, True),
        ("accessed>7d", 0, 7 * DAY + 1, True),
        ("accessed>1w", 0, 7 * DAY, False),
        ("accessed<90min", 0, 5399, True),
        ("accessed<=2h", 0, 7201, False),
    ],
)
def test_a_filter_takes_what_it_says(text: str, stored_size: int, seconds: int, *, takes: bool) -> None:
    """Bytes of disk in decimal or binary units; the time since the last use."""
    assert takes is Filter.parse(text).takes(stored_size=stored_size, age=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "size", "size>", "size>GB", "size=1GB", "size>1x", "size>1.5B", "accessed>7", "accessed>7GB", "name>1", "size>-1"],
)
def test_what_is_not_a_filter_is_refused(text: str) -> None:
    """With an example of one that is."""
    with pytest.raises(ValueError, match=r"is not a filter; write one such as size>1GB .* accessed>7d"):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "now"), (59, "now"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86400, "1 d"), (10**8, "1157 d")],
)
def test_an_age_is_rough(seconds: int, said: str) -> None:
    """One number and one unit."""
    assert said == age(seconds)
