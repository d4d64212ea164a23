"""Golden frames, one a codec: what any version ever wrote, every later version reads.

Only decoding is pinned: zstd may write other bytes in its next version. The frames were written once, by `Encoder(codec=...)`
with zstd 1.5.7, from content that a portable pseudo-random generator makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.format.codec import Codec, Decoder, Frame, decoded_size

FRAMES = Path(__file__).with_name("frames")

WORDS = b"layer weight bias norm query key value output".split()


def numbers(seed: int) -> Iterator[int]:
    """SplitMix64: 64-bit numbers, the same in any language."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)
        mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % (1 << 64)
        yield mixed ^ mixed >> 31


def random_bytes(size: int) -> bytes:
    """Nothing to save."""
    return bytes(number & 255 for number in islice(numbers(1), size))


def text(size: int) -> bytes:
    """Words from a list."""
    return b".".join(WORDS[number % len(WORDS)] for number in islice(numbers(2), size))[:size]


def weights(width: int, size: int) -> bytes:
    """Words of `width` random bytes, but for the last, which takes few values, as exponents do."""
    words = b"".join(
        (number % (1 << 8 * (width - 1))).to_bytes(width - 1, "little") + bytes([0x38 + (number >> 56).bit_count()])
        for number in islice(numbers(width), size // width + 1)
    )
    return words[:size]


GOLDEN: dict[Codec, tuple[Callable[[], bytes], str]] = {
    Codec.RAW: (lambda: random_bytes(257), "515c1ab9b4d2f41331e5a7fea3e74d4463d191488e1e7faeb2fff91b6e53337c"),
    Codec.ZSTD: (lambda: text(3001), "d2a19f05dde563b34a02b1d4c20e194929cd305bd6787528bc6fb5b94a1c18dc"),
    Codec.PLANES2_ZSTD: (lambda: weights(2, 3001), "ed8ac701a517e5147bbae34151980c649b2b004944a9dfed07c980442fecc101"),
    Codec.PLANES4_ZSTD: (lambda: weights(4, 3003), "59a71731d069788cdf7415e46b379572aa82ba3bf2fdc085f30d3414d81fd99d"),
}

each_codec = pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.name)


def golden_frame(codec: Codec) -> bytes:
    """The frame as it was once written."""
    return (FRAMES / f"{codec.name.lower()}.frame").read_bytes()


@each_codec
def test_generator_still_makes_the_content_of_the_golden_frames(codec: Codec) -> None:
    """The content, and with it the digest, is the same on every machine."""
    make, digest = GOLDEN[codec]

    assert digest == str(chunk_digest(make()))


@each_codec
def test_golden_frame_decodes_to_its_content(codec: Codec) -> None:
    """A frame that was written once is read for ever."""
    make, digest = GOLDEN[codec]
    frame = Frame(Digest.parse(digest), golden_frame(codec))

    assert make() == Decoder().decode(frame, memoryview(bytearray(CHUNK_LIMIT)))


@each_codec
def test_golden_frame_has_the_header_that_the_format_says(codec: Codec) -> None:
    """Codec, three zeros, decoded size in little-endian."""
    make, digest = GOLDEN[codec]
    frame = golden_frame(codec)

    assert bytes([codec, 0, 0, 0]) + len(make()).to_bytes(4, "little") == frame[:8]
    assert len(make()) == decoded_size(frame[:8], digest=Digest.parse(digest))


@pytest.mark.parametrize(("codec", "width"), [(Codec.PLANES2_ZSTD, 2), (Codec.PLANES4_ZSTD, 4)])
def test_golden_planes_lie_where_the_format_says(codec: Codec, width: int) -> None:
    """Lengths, planes in order, the bytes left over; a plane of random bytes is raw, and is every N-th byte of the content."""
    content = weights(width, 3001 if width == 2 else 3003)
    frame = golden_frame(codec)
    lengths = [int.from_bytes(frame[start : start + 4], "little") for start in range(8, 8 + 4 * width, 4)]
    planes = 8 + 4 * width
    magic = b"\x28\xb5\x2f\xfd"

    assert content[0 : width * (len(content) // width) : width] == frame[planes : planes + lengths[0]]
    assert [len(content) // width] * (width - 1) == lengths[:-1]
    assert magic == frame[planes + sum(lengths[:-1]) :][:4]
    assert len(content) % width == len(frame) - planes - sum(lengths)
    assert content[len(content) // width * width :] == frame[planes + sum(lengths) :]
