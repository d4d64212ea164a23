"""The chunked coding of an answer gives the same body, or the same error, however its bytes arrive."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.support.coding import decoded

_EXTENSIONS = st.sampled_from([b"", b";", b";a=b", b' ; a="b;c"'])
_PIECES = st.lists(st.tuples(st.binary(min_size=1, max_size=40), _EXTENSIONS, st.booleans()), max_size=5)
_TRAILERS = st.lists(st.sampled_from([b"X: y\r\n", b"Content-Length: 3\r\n"]), max_size=3)


def _outcome(arriving: Iterable[bytes]) -> bytes | str:
    try:
        return decoded(arriving)[0]
    except (EOFError, ValueError) as error:
        return repr(error)


def _split(coded: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({place % (len(coded) + 1) for place in places} | {0, len(coded)})
    return [coded[start:end] for start, end in pairwise(ends)]


def _coded(pieces: list[tuple[bytes, bytes, bool]], trailers: list[bytes]) -> bytes:
    lines = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece, extension, _ in pieces]
    padded = [b"00" * is_padded + line for line, (_, _, is_padded) in zip(lines, pieces, strict=True)]
    return b"".join([*padded, b"0\r\n", *trailers, b"\r\n"])


@given(_PIECES, _TRAILERS, st.lists(st.integers(0, 1 << 16), max_size=8))
def test_any_split_gives_the_body(pieces: list[tuple[bytes, bytes, bool]], trailers: list[bytes], places: list[int]) -> None:
    """Also where a line is cut."""
    coded = _coded(pieces, trailers)
    body = b"".join(piece for piece, _, _ in pieces)
    assert body == _outcome(_split(coded, places)) == _outcome(coded[at : at + 1] for at in range(len(coded)))


@given(
    _PIECES,
    _TRAILERS,
    st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from(b"\r\n0;fx \0")), min_size=1, max_size=3),
    st.lists(st.integers(0, 1 << 16), max_size=8),
    st.integers(0, 1 << 16),
)
def test_any_split_gives_the_same_error(
    pieces: list[tuple[bytes, bytes, bool]], trailers: list[bytes], changes: list[tuple[int, int]], places: list[int], cut: int
) -> None:
    """Bytes that are changed or cut give one outcome, which is a body, an error of the coding or a missing end."""
    coded = bytearray(_coded(pieces, trailers))
    for place, byte in changes:
        coded[place % len(coded)] = byte
    del coded[cut % (len(coded) + 1) :]
    whole = _outcome([bytes(coded)])
    assert whole == _outcome(_split(bytes(coded), places)) == _outcome(bytes([byte]) for byte in coded)
