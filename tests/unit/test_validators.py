from __future__ import annotations

from urllib.parse import unquote

import pytest
from aiohttp import ETag
from hypothesis import given
from hypothesis import strategies as st

from filestore.errors import InvalidRange
from filestore.http.server.validators import attachment, matches_any, parse_range

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=0-999", range(SIZE)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=990-", range(990, SIZE)),
        ("bytes=0-", range(SIZE)),
        ("bytes=990-5000", range(990, SIZE)),
        ("bytes=-1", range(999, SIZE)),
        ("bytes=-5000", range(SIZE)),
        ("Bytes=1-2", range(1, 3)),
        ("bytes= 1 - 2 ", range(1, 3)),
        ("bytes=0-99999999999999999999", range(SIZE)),
    ],
)
def test_ranges_that_lie_in_the_content(header: str, asked: range) -> None:
    """First and last are both included; a last byte beyond the end means the end; a suffix counts from there."""
    assert asked == parse_range(header, SIZE)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=1-2,4-5",
        "bytes=1-2,",
        "bytes=0x0-5",
        "bytes=1-2-3",
        "lines=1-2",
        "1-2",
        "bytes=\u0661-\u0662",
        f"bytes=0-{'9' * 5000}",
    ],
)
def test_what_is_not_a_single_range_is_ignored(header: str | None) -> None:
    """RFC 9110, section 14.2: the whole content is the answer."""
    assert parse_range(header, SIZE) is None


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-2000", "bytes=99999999999999999999-", "bytes=-0"])
def test_ranges_that_hold_no_byte(header: str) -> None:
    """They are refused, with the size that the client may have been wrong about."""
    with pytest.raises(InvalidRange) as caught:
        parse_range(header, SIZE)
    assert SIZE == caught.value.size


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-5", "bytes=-5", "bytes=-0"])
def test_an_empty_content_has_no_ranges(header: str) -> None:
    """A client that resumes an empty file gets it."""
    assert parse_range(header, 0) is None


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8"), max_size=40), st.integers(0, 2000))
def test_no_header_does_harm(header: str, size: int) -> None:
    """A range inside the content, none, or a refusal."""
    try:
        found = parse_range(f"bytes={header}", size)
    except InvalidRange:
        return
    assert found is None or 0 <= found.start < found.stop <= size


@pytest.mark.parametrize(
    ("tags", "weakly", "strongly"),
    [
        (None, False, False),
        ((), False, False),
        ((ETag("*"),), True, True),
        ((ETag("a"),), True, True),
        ((ETag("a", is_weak=True),), True, False),
        ((ETag("b"), ETag("a")), True, True),
        ((ETag("b"),), False, False),
    ],
)
def test_entity_tags(tags: tuple[ETag, ...] | None, *, weakly: bool, strongly: bool) -> None:
    """RFC 9110, section 8.8.3.2: a weak tag matches in the weak comparison only."""
    assert (weakly, strongly) == (matches_any(tags, "a", weak=True), matches_any(tags, "a", weak=False))


def test_a_plain_name_needs_no_encoding() -> None:
    """As most are."""
    assert 'attachment; filename="model-v2 (1).safetensors"' == attachment("model-v2 (1).safetensors")


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8", min_codepoint=32), min_size=1, max_size=60))
def test_any_name_is_given_whole_and_breaks_no_header(name: str) -> None:
    """RFC 8187: it is percent-encoded, after a name that every client understands."""
    header = attachment(name)
    assert header.isascii()
    assert header.isprintable()
    plain = header.split('"')[1]
    _, _, encoded = header.partition("filename*=UTF-8''")
    assert name == (unquote(encoded) if encoded else plain)
    assert 2 == header.count('"')
    assert "\\" not in header
