"""Timestamps as text, everywhere in the same form."""

from __future__ import annotations

import pytest

from filestore.core.timestamps import format_seconds, format_timestamp, parse_timestamp


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
        (1_700_000_000_999_999, "2023-11-14T22:13:20.999999Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_timestamp_is_written_and_read_exactly(microseconds: int, text: str) -> None:
    """No digit is lost to a float."""
    assert (text, microseconds) == (format_timestamp(microseconds), parse_timestamp(text))


def test_times_of_files_have_the_same_form() -> None:
    """They come as seconds."""
    assert "2023-11-14T22:13:20.500000Z" == format_seconds(1_700_000_000.5)


@pytest.mark.parametrize("text", ["2023-11-14T23:13:20.000001+01:00", "20231114T221320.000001Z"])
def test_other_forms_are_read(text: str) -> None:
    """A server of another make may write them."""
    assert 1_700_000_000_000_001 == parse_timestamp(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("2023-11-14T22:13:20", "a time has a time zone"), ("yesterday", "Invalid isoformat"), ("", "Invalid isoformat")],
)
def test_what_names_no_moment_is_refused(text: str, reason: str) -> None:
    """A time without a time zone is another one on each machine."""
    with pytest.raises(ValueError, match=reason):
        parse_timestamp(text)
