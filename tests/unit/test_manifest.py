from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from itertools import repeat

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import CHUNK_LIMIT, MANIFEST_LIMIT, Chunk, Manifest
from filestore.errors import InvalidManifest, LimitExceeded

CHUNKS = [Chunk(chunk_digest(bytes([number])), number * 1000 + 1) for number in range(5)]


def test_parse_is_the_inverse_of_build() -> None:
    """A built manifest is read back, from any kind of memory."""
    built = Manifest.build(CHUNKS, chunking_version=7)
    for encoded in (built.encoded, bytearray(built.encoded), memoryview(built.encoded)):
        parsed = Manifest.parse(encoded)
        assert built == parsed
        assert (7, 10_005, CHUNKS) == (parsed.chunking_version, parsed.size, list(parsed.chunks))


def test_an_empty_file_has_a_manifest() -> None:
    """No chunks, no bytes, a digest of its own."""
    empty = Manifest.build([], chunking_version=0)
    assert (0, 0, []) == (empty.size, len(empty.chunks), list(empty.offsets()))
    assert empty == Manifest.parse(empty.encoded)


def test_offsets_are_where_chunks_begin() -> None:
    """One for each chunk, the sum of the sizes before it."""
    assert [0, 1, 1002, 3003, 6004] == list(Manifest.build(CHUNKS, chunking_version=0).offsets())


@pytest.mark.parametrize("count", [0, 1, 5, 20_000])
def test_offsets_are_kept_as_numbers(count: int) -> None:
    """The table has the same offsets, for few chunks and for many."""
    found = Manifest.build((CHUNKS[number % 5] for number in range(count)), chunking_version=0)
    assert list(found.offsets()) == list(found.offset_table())
    assert found == Manifest.parse(found.encoded)


@pytest.mark.parametrize("size", [0, CHUNK_LIMIT + 1])
def test_a_wrong_size_among_many_is_found(size: int) -> None:
    """Also where sizes are checked together."""
    encoded = bytearray(Manifest.build((CHUNKS[number % 5] for number in range(20_000)), chunking_version=0).encoded)
    struct.pack_into("<I", encoded, 24 + 36 * 15_000 + 32, size)
    with pytest.raises(InvalidManifest, match=f"has {size} bytes"):
        Manifest.parse(encoded)


def test_chunks_are_a_sequence() -> None:
    """They are counted, indexed, sliced and compared as a tuple of them would be."""
    chunks = Manifest.build(CHUNKS, chunking_version=0).chunks
    assert len(CHUNKS) == len(chunks)
    assert (CHUNKS[0], CHUNKS[3], CHUNKS[-1]) == (chunks[0], chunks[3], chunks[-1])
    assert tuple(CHUNKS[1:4]) == chunks[1:4]
    assert tuple(CHUNKS[::-2]) == chunks[::-2]
    assert tuple(CHUNKS) == chunks
    assert chunks == Manifest.build(CHUNKS, chunking_version=1).chunks
    assert chunks != Manifest.build(CHUNKS[1:], chunking_version=0).chunks
    assert CHUNKS[2] in chunks
    for place in (5, -6):
        with pytest.raises(IndexError):
            chunks[place]


def test_the_same_chunks_cut_otherwise_are_another_file() -> None:
    """The cutting version and the order of chunks are part of the digest."""
    digests = {
        Manifest.build(chunks, chunking_version=chunking_version).digest
        for chunks in (CHUNKS, CHUNKS[::-1])
        for chunking_version in (0, 1)
    }
    assert 4 == len(digests)


@pytest.mark.parametrize("size", [-1, 0, CHUNK_LIMIT + 1, 1 << 32])
def test_refuses_chunks_of_impossible_size(size: int) -> None:
    """A chunk has 1 byte to 4 MiB."""
    with pytest.raises(InvalidManifest, match=f"has {size} bytes"):
        Manifest.build([CHUNKS[0], Chunk(CHUNKS[1].digest, size)], chunking_version=0)


@pytest.mark.parametrize("chunking_version", [-1, 1 << 16])
def test_refuses_a_chunking_version_that_does_not_fit(chunking_version: int) -> None:
    """It has 16 bits."""
    with pytest.raises(InvalidManifest, match=f"its cutting version is {chunking_version}"):
        Manifest.build(CHUNKS, chunking_version=chunking_version)


def packed(place: str, offset: int, value: int) -> Callable[[bytearray], None]:
    """A change of one number."""
    return lambda raw: struct.pack_into(place, raw, offset, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda raw: raw.clear(), "shorter than its header", id="empty"),
        pytest.param(lambda raw: raw.__delitem__(slice(23, None)), "shorter than its header", id="cut off in the header"),
        pytest.param(lambda raw: raw.pop(), "not the length", id="one byte short"),
        pytest.param(lambda raw: raw.append(0), "not the length", id="one byte more"),
        pytest.param(packed("<B", 7, 1), "magic", id="other magic"),
        pytest.param(packed("<H", 8, 2), "version is 2", id="other version"),
        pytest.param(packed("<I", 12, 2**32 - 1), "not the length", id="count that lies"),
        pytest.param(packed("<Q", 16, 10_004), "add up to 10005", id="size that lies"),
        pytest.param(packed("<Q", 16, 2**64 - 1), "add up to 10005", id="endless size"),
        pytest.param(packed("<I", 24 + 32, 0), "has 0 bytes", id="empty chunk"),
        pytest.param(packed("<I", 24 + 32, CHUNK_LIMIT + 1), f"has {CHUNK_LIMIT + 1} bytes", id="chunk too large"),
    ],
)
def test_refuses_what_is_not_canonical(change: Callable[[bytearray], None], reason: str) -> None:
    """Each file has exactly one encoding. Any other one is refused, with the fault."""
    raw = bytearray(Manifest.build(CHUNKS, chunking_version=0).encoded)
    change(raw)
    with pytest.raises(InvalidManifest, match=reason):
        Manifest.parse(raw)


@pytest.mark.slow
def test_refuses_to_build_beyond_the_limit() -> None:
    """More chunks than a manifest can hold are refused before the rest is asked for."""
    with pytest.raises(LimitExceeded):
        Manifest.build(repeat(CHUNKS[0]), chunking_version=0)


def test_refuses_to_parse_beyond_the_limit() -> None:
    """The length is checked before anything is read."""
    with pytest.raises(LimitExceeded):
        Manifest.parse(bytes(MANIFEST_LIMIT + 1))


def test_parsing_takes_little_more_memory_than_the_bytes() -> None:
    """I6: a manifest of 64 MiB must not take several times that, so chunks are made when they are asked for."""
    encoded = Manifest.build(CHUNKS * 10_000, chunking_version=0).encoded
    tracemalloc.start()
    try:
        manifest = Manifest.parse(encoded)
        assert tracemalloc.get_traced_memory()[1] < len(encoded) + 10_000
    finally:
        tracemalloc.stop()
    assert 50_000 == len(manifest.chunks)
