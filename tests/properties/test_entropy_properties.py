"""The shares by which a codec is chosen, whatever the chunks are."""

from __future__ import annotations

import math
from collections import Counter
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.format.codec import Codec, Encoder, frame_limit
from filestore.format.entropy import FREQUENCY_SLICE_SIZE, huffman_shares, sample
from filestore.format.planes import merge_planes, take_plane

few = st.builds(
    lambda values, count: bytes(values) * count, st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 3000)
)
noise = st.builds(
    lambda seed, count: b"".join(chunk_digest(seed + place.to_bytes(4, "little")) for place in range(count)),
    st.binary(max_size=8),
    st.integers(1, 400),
)
words = st.builds(lambda content: b"".join(bytes([byte, byte & 3]) for byte in content), noise)
contents = st.one_of(st.binary(min_size=4, max_size=300), few, noise, words).filter(lambda content: len(content) >= 4)


def share(plane: bytes) -> float:
    """The share that Huffman coding leaves of `plane`, by the formula, for one plane."""
    counts = Counter(plane).values()
    total = len(plane)
    if len(counts) == 1:
        return 0.0
    bits = math.log2(total) - sum(count * math.log2(count) for count in counts) / total
    bits += (len(counts) - 1) / (2 * total * math.log(2))
    frequency = max(counts) / total
    if frequency > 0.5:
        bits += 1 + frequency * math.log2(frequency) + (1 - frequency) * math.log2(1 - frequency)
    return min(bits / 8, 1.0)


@settings(max_examples=100)
@given(st.lists(contents, min_size=1, max_size=6))
def test_shares_are_those_of_the_formula(chunks: list[bytes]) -> None:
    """With numpy, they are measured for all chunks in one pass. Without it, one by one."""
    expected = []
    for chunk in chunks:
        taken = sample(memoryview(chunk), FREQUENCY_SLICE_SIZE)
        expected.append([share(taken[place::count]) for count in (1, 2, 4) for place in range(count)])

    for numpy in (np, None):
        for wanted, found in zip(expected, huffman_shares([memoryview(chunk) for chunk in chunks], numpy), strict=True):
            assert wanted == pytest.approx(found, abs=1e-12)


@settings(max_examples=100)
@given(st.lists(contents, min_size=1, max_size=6))
def test_shares_do_not_depend_on_the_other_chunks(chunks: list[bytes]) -> None:
    """Bit by bit, so that a chunk has the same frame in each window."""
    views = [memoryview(chunk) for chunk in chunks]

    assert [huffman_shares([view], np)[0] for view in views] == huffman_shares(views, np)


@settings(max_examples=100)
@given(st.lists(st.one_of(contents, st.binary(min_size=1, max_size=70)), min_size=1, max_size=8), st.sampled_from((None, *Codec)))
def test_frames_of_several_chunks_are_those_of_each(chunks: list[bytes], codec: Codec | None) -> None:
    """`encode_all` writes the frames of `encode`, one after the other."""
    encoder = Encoder(codec=codec)
    expected = []
    for chunk in chunks:
        out = memoryview(bytearray(frame_limit(len(chunk))))
        expected.append(bytes(out[: encoder.encode(memoryview(chunk), out)]))
    out = memoryview(bytearray(sum(frame_limit(len(chunk)) for chunk in chunks)))

    lengths = encoder.encode_all([memoryview(chunk) for chunk in chunks], out)

    assert list(map(len, expected)) == lengths
    assert b"".join(expected) == out[: sum(lengths)]


@settings(max_examples=100)
@given(st.one_of(contents, words), st.sampled_from((2, 4)))
def test_planes_are_the_same_without_numpy(content: bytes, count: int) -> None:
    """A process that has not loaded numpy yet takes the same planes, and merges them to the same content."""
    size = len(content) // count
    for numpy in (np, None):
        planes = [memoryview(bytearray(size)) for _ in range(count)]
        for place, plane in enumerate(planes):
            take_plane(memoryview(content), place, count, plane, numpy)
        merged = memoryview(bytearray(b"\xff" * (size * count)))  # it is used again and again
        merge_planes(iter(planes[::-1]), merged, count, numpy)

        assert [content[place : size * count : count] for place in range(count)] == planes
        assert content[: size * count] == merged


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("numpy", [np, None])
def test_short_planes_are_merged(size: int, count: int, numpy: ModuleType | None) -> None:
    """A frame of somebody else may have planes of any size, and their words may end with the memory."""
    planes = [memoryview(bytes(range(place, size * count, count))) for place in range(count)]
    merged = memoryview(bytearray(b"\xff" * (size * count)))
    merge_planes(iter(planes[::-1]), merged, count, numpy)
    assert bytes(range(size * count)) == merged
