"""The chunked transfer coding of answers."""

from __future__ import annotations

import pytest

from filestore.http.client.chunked import EXCESS_LIMIT, LINE_LIMIT, TRAILERS_LIMIT, ChunkedCoding
from tests.support.coding import decoded


@pytest.mark.parametrize(
    ("coded", "expected"),
    [
        (b"0\r\n\r\n", b""),
        (b"0000000000000000\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"0000000000000003\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", 2 * b"0123456789"),
        (b'3;a\r\nabc\r\n0;b=c;d="e"\r\n\r\n', b"abc"),
        (b"3 ;a\r\nabc\r\n0\t ; b\r\n\r\n", b"abc"),
        (b"3;\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        (b"0\r\nX: y\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        (b"3;" + b"x" * (LINE_LIMIT - 4) + b"\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"0\r\nX: " + b"y" * (TRAILERS_LIMIT - 7) + b"\r\n\r\n", b""),
        (b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n", b"x" * 50_000),
    ],
)
def test_bodies(coded: bytes, expected: bytes) -> None:
    """RFC 9112, section 7.1. What follows the end of the body is left alone."""
    assert (expected, b"") == decoded([coded])
    assert (expected, b"HTTP/1.1 200") == decoded([coded + b"HTTP/1.1 200"])


@pytest.mark.parametrize(
    "coded",
    [
        b"\r\n",
        b"+3\r\n",
        b"-3\r\n",
        b"0x3\r\n",
        b"3_0\r\n",
        b"\xb2\r\n",
        b"g\r\n",
        b" 3\r\n",
        b"3 \r\n",
        b"3 3\r\n",
        b"3 x\r\n",
        b"3,a\r\n",
        b"00000000000000003\r\n",
        b"3\n",
        b"3\r\r\n",
        b"3;a\n",
        b"3;a\0b\r\n",
        b"3;a\rb\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n",
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nabc\r\r\n",
        b"3\r\nabc \r\n",
        b"0\r\n\n",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n X: y\r\n\r\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\nX: a\0b\r\n\r\n",
        b"0\r\nHTTP/1.1 200 OK\r\n",
        b"3;" + b"x" * (LINE_LIMIT - 3) + b"\r\n",
        b"1" * LINE_LIMIT,
        b"0\r\nX: " + b"y" * (TRAILERS_LIMIT - 6) + b"\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * (TRAILERS_LIMIT // 6 + 1) + b"\r\n",
        (b"1;" + b"x" * 100 + b"\r\nx\r\n") * (EXCESS_LIMIT // 80),
    ],
)
def test_what_is_not_the_chunked_coding(coded: bytes) -> None:
    """Two readers could find different ends of such a body, or it is mostly lines."""
    with pytest.raises(ValueError, match="chunked coding"):
        decoded([coded])


@pytest.mark.parametrize("coded", [b"", b"3", b"3\r\n", b"3\r\nabc\r\n", b"0\r\n", b"0\r\nX: y\r\n", b"3;abc"])
def test_a_body_whose_end_has_not_arrived(coded: bytes) -> None:
    """It is not over."""
    with pytest.raises(EOFError):
        decoded([coded])


def test_the_largest_size() -> None:
    """Sixteen digits are read as they are. Whoever receives the piece has limits of its own."""
    assert (18, (1 << 64) - 1) == ChunkedCoding().read(memoryview(b"f" * 16 + b"\r\nabc"))
