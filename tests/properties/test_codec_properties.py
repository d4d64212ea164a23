"""Frames, whatever the content and whatever happens to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import InvalidFrame
from filestore.format.codec import Codec, Decoder, Encoder, Frame, decoded_size, frame_limit

ENCODERS = {codec: Encoder(codec=codec) for codec in (None, *Codec)}
DECODER = Decoder()
SCRATCH = memoryview(bytearray(CHUNK_LIMIT + 8))

random_bytes = st.binary(min_size=1, max_size=3000)
repetitions = st.builds(lambda piece, count: piece * count, st.binary(min_size=1, max_size=9), st.integers(1, 3000))
floats = st.builds(
    lambda width, seed, count, start: weights(width, seed, count)[start:],
    st.sampled_from((2, 4, 8)),
    st.binary(min_size=16, max_size=64),
    st.integers(1, 3000),
    st.integers(0, 1),
)
contents = st.one_of(random_bytes, repetitions, floats).filter(len)
codecs = st.sampled_from((None, *Codec))


def weights(width: int, seed: bytes, count: int) -> bytes:
    """`count` words of `width` bytes, of which the last takes few values and the others many."""
    noise = b"".join(chunk_digest(seed + place.to_bytes(4, "little")) for place in range(count * width // 32 + 1))
    words = bytearray(noise[: count * width])
    words[width - 1 :: width] = bytes(0x38 + (byte & 3) for byte in words[width - 1 :: width])
    return bytes(words)


def encoded(content: bytes, codec: Codec | None, offset: int = 0) -> bytes:
    """The frame of `content`, read and written `offset` bytes from where memory begins."""
    memory = memoryview(bytearray(offset + len(content)))
    memory[offset:] = content
    out = memoryview(bytearray(offset + frame_limit(len(content))))[offset:]
    return bytes(out[: ENCODERS[codec].encode(memory[offset:], out)])


@pytest.mark.slow
@settings(max_examples=300)
@given(contents, codecs, st.integers(0, 7), st.integers(0, 7))
def test_decoding_is_the_inverse_of_encoding(content: bytes, codec: Codec | None, offset: int, scratch_offset: int) -> None:
    """For any content, any codec and any alignment, within the limit."""
    frame = encoded(content, codec, offset)

    assert len(frame) <= frame_limit(len(content))
    assert len(content) == decoded_size(frame, digest=chunk_digest(content))
    assert content == DECODER.decode(Frame(chunk_digest(content), frame), SCRATCH[scratch_offset:])


@settings(max_examples=200)
@given(contents, st.integers(1, 7))
def test_alignment_does_not_change_the_frame(content: bytes, offset: int) -> None:
    """The same chunk makes the same frame, wherever in memory it lies."""
    assert encoded(content, None) == encoded(content, None, offset)


def cut_off(frame: bytes, place: int, _: bytes) -> bytes:
    """A frame that ends early."""
    return frame[:place]


def overwritten(frame: bytes, place: int, piece: bytes) -> bytes:
    """A frame with other bytes in it."""
    return (frame[:place] + piece + frame[place + len(piece) :])[: len(frame)]


def extended(frame: bytes, _: int, piece: bytes) -> bytes:
    """A frame with bytes after its end."""
    return frame + piece


def inserted(frame: bytes, place: int, piece: bytes) -> bytes:
    """A frame with bytes inserted."""
    return frame[:place] + piece + frame[place:]


Damage = Callable[[bytes, int, bytes], bytes]
damages = st.sampled_from((cut_off, overwritten, extended, inserted))


@pytest.mark.slow
@settings(max_examples=500)
@given(contents, codecs, damages, st.data())
def test_damaged_frame_decodes_to_its_content_or_not_at_all(
    content: bytes, codec: Codec | None, damage: Damage, data: st.DataObject
) -> None:
    """No damage gives other content, or another error than InvalidFrame."""
    frame = encoded(content, codec)
    place = data.draw(st.one_of(st.integers(0, min(40, len(frame) - 1)), st.integers(0, len(frame) - 1)))
    damaged = damage(frame, place, data.draw(st.binary(min_size=1, max_size=16)))

    try:
        found = DECODER.decode(Frame(chunk_digest(content), damaged), SCRATCH)
    except InvalidFrame:
        return
    assert content == found


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from(Codec), st.integers(0, 100), st.binary(max_size=200))
def test_any_bytes_are_refused_for_a_digest_they_do_not_have(codec: Codec, size: int, payload: bytes) -> None:
    """Bytes that nobody encoded decode to nothing, and raise nothing but InvalidFrame."""
    frame = bytes([codec, 0, 0, 0]) + size.to_bytes(4, "little") + payload

    with pytest.raises(InvalidFrame):
        DECODER.decode(Frame(chunk_digest(b"something else"), frame), SCRATCH)
