from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from filestore.format.chunking import gguf, safetensors
from filestore.format.chunking.containers import segmenter
from filestore.format.chunking.segments import POSITION_LIMIT
from tests.support.chunking import boundaries, chunk_sizes, pieces
from tests.support.generator import octets
from tests.support.models import ZipEntry, safetensors_from_header, zip_file

MIB = 1 << 20
DATA = octets(1, 700_000)
GOOD = b'"good":{"dtype":"I8","shape":[300000],"data_offsets":[0,300000]}'


def is_one_segment(content: bytes) -> bool:
    """Return whether `content`, whole and in pieces, is cut completely, without any trusted boundary."""
    found = boundaries(content, [len(content)])
    assert found == boundaries(content, pieces(997, whole=len(content)))
    assert len(content) == sum(chunk_sizes(content, [len(content)]))
    return found == []


@contextmanager
def memory_within(limit: int) -> Iterator[None]:
    """Check that Python never allocates more than `limit` bytes during the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_the_header_that_the_attacks_vary_is_trusted() -> None:
    """Without a forgery, boundaries are found. So the tests below do not pass for another reason."""
    assert not is_one_segment(safetensors_from_header(b"{" + GOOD + b"}", DATA))


NO_OFFSETS = """
    -1,300000  -300000,-1  300000,0  1,300001  0,9223372036854775808  0,100000000000000000000000
    0.0,300000.0  0,3e5  "0","300000"  true,300000  0,null  [0],300000  300000  0,300000,600000  0,NaN  0,Infinity  0,+300000
"""


@pytest.mark.parametrize("offsets", ["", *NO_OFFSETS.split()])
def test_lying_safetensors_offsets(offsets: str) -> None:
    """One negative, reversed, overlapping, huge or non-integer offset makes all tensors of the header untrusted."""
    header = b"{" + GOOD + b',"bad":{"dtype":"I8","shape":[1],"data_offsets":[' + offsets.encode() + b"]}}"
    assert is_one_segment(safetensors_from_header(header, DATA))


@pytest.mark.parametrize(
    "header",
    [
        b"{" + GOOD,
        b"{" + GOOD + b"}}",
        b"{" + GOOD + b",}",
        b"{" + GOOD + b"} x",
        b"{" + GOOD + b"," + GOOD + b"}",
        b"{" + GOOD + b',"\\u0067ood":{"data_offsets":[300000,300000]}}',
        b"{" + GOOD + b',"bad":{"data_offsets":[300000,300000],"data_offsets":[300000,300000]}}',
        b"{" + GOOD + b',"bad":{}}',
        b"{" + GOOD + b',"bad":[]}',
        b"{" + GOOD + b',"bad":0}',
        b"{" + GOOD + b',"bad":null}',
        b"{" + GOOD + b',"bad":{"data_offsets":[300000,300000],"x":{}}}',
        b"{" + GOOD + b',"__metadata__":{"x":[[]]}}',
        b"{" + GOOD + b',"__metadata__":7}',
        b"{" + GOOD + b',"\xff":{"data_offsets":[300000,300000]}}',
        b"{" + GOOD + b',"\xed\xa0\x80":{"data_offsets":[300000,300000]}}',
        b"{\xef\xbb\xbf" + GOOD + b"}",
        b"{" + GOOD + b',"a\nb":{"data_offsets":[300000,300000]}}',
        b"{" + GOOD + b',"bad":{"data_offsets":[300000,300000],"shape":[' + b"1" * 5000 + b"]}}",
        b"{}",
        b"{",
        b"{\0",
    ],
)
def test_broken_safetensors_headers(header: bytes) -> None:
    """A header that breaks any rule of the format ends segmentation."""
    assert is_one_segment(safetensors_from_header(header, DATA))


@pytest.mark.parametrize("depth", [2, 100, 5000, 200_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
def test_deeply_nested_safetensors_header(depth: int, brackets: tuple[bytes, bytes]) -> None:
    """Any excess depth ends segmentation, without a RecursionError, on every machine."""
    opened, closed = brackets
    nested = opened * depth + b"0" + closed * depth
    assert is_one_segment(safetensors_from_header(b"{" + GOOD + b',"__metadata__":{"x":' + nested + b"}}", DATA))


@pytest.mark.parametrize("claimed", [100 * MIB, safetensors.HEADER_LIMIT + 1, 2**63, 2**64 - 1, 0, 1])
def test_safetensors_header_length_beyond_the_limit(claimed: int) -> None:
    """A header of more than 16 MiB is not waited for, and neither is one that is too short for a brace."""
    with memory_within(8 * MIB):
        assert is_one_segment(safetensors_from_header(b"{" + GOOD + b"}", DATA, claimed=claimed))


def test_safetensors_header_length_beyond_the_file() -> None:
    """Cutting does not wait for the header, and takes memory only for the existing bytes."""
    content = safetensors_from_header(b"{" + GOOD + b"}", DATA, claimed=safetensors.HEADER_LIMIT)
    with memory_within(8 * MIB):
        assert is_one_segment(content)


def header_of(tensor_count: int) -> bytes:
    """Return a valid header of that many tensors of 300,000 bytes."""
    members = {
        f"model.layers.{place}.mlp.experts.down_proj.weight": {
            "dtype": "BF16",
            "shape": [300, 500],
            "data_offsets": [place * 300_000, (place + 1) * 300_000],
        }
        for place in range(tensor_count)
    }
    return json.dumps(members, separators=(",", ":")).encode()


@pytest.mark.slow
def test_safetensors_header_of_many_tensors() -> None:
    """60,000 tensors in one file are still segmented."""
    content = safetensors_from_header(header_of(60_000))
    segments = segmenter()
    with memory_within(64 * MIB):
        assert 60_001 == len(segments.feed(memoryview(content)))


@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b"0", b"{},[]"], ids=["arrays", "objects", "strings", "numbers", "mixed"])
def test_safetensors_header_of_millions_of_values(value: bytes) -> None:
    """Values are counted before they are made. 5 MiB of empty arrays would take 300 MiB."""
    header = b'{"__metadata__":{"x":[' + b",".join([value] * 1_500_000) + b"]}}"
    content = memoryview(safetensors_from_header(header))
    segments = segmenter()
    with memory_within(len(header) + 4 * MIB):
        segments.feed(content)
    assert POSITION_LIMIT == segments.known_until


def test_safetensors_header_of_one_long_string() -> None:
    """The most expensive text, 16 MiB with one character beyond the basic plane, takes a bounded amount of memory."""
    header = b'{"__metadata__":{"x":"' + b"a" * (safetensors.HEADER_LIMIT - 100) + "\N{GRINNING FACE}".encode() + b'"}}'
    content = memoryview(safetensors_from_header(header))
    segments = segmenter()
    with memory_within(224 * MIB):
        segments.feed(content)
    assert POSITION_LIMIT == segments.known_until


def text(value: bytes) -> bytes:
    """Return a GGUF string."""
    return struct.pack("<Q", len(value)) + value


def gguf_of(
    keys: bytes = b"", *, key_count: int = 1, tensors: bytes | None = None, tensor_count: int = 1, version: int = 3
) -> bytes:
    """Return a GGUF file with 700,000 bytes of data, and one tensor of 300,000 bytes unless a part is forged."""
    table = text(b"t") + struct.pack("<IQIQ", 1, 300_000, 24, 0) if tensors is None else tensors
    head = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, key_count if keys else 0) + keys + table
    return head + bytes(-len(head) % 32) + DATA


def aligned(alignment: int) -> bytes:
    """Return the metadata key with an alignment."""
    return text(b"general.alignment") + struct.pack("<II", 4, alignment)


def test_the_gguf_that_the_attacks_vary_is_trusted() -> None:
    """Without a forgery, boundaries are found. So the tests below do not pass for another reason."""
    assert not is_one_segment(gguf_of())
    assert not is_one_segment(gguf_of(aligned(32)))


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(struct.pack("<Q", 2**64 - 1), id="endless key"),
        pytest.param(text(b"k") + struct.pack("<I", 13), id="unknown type"),
        pytest.param(text(b"k") + struct.pack("<IQ", 8, 2**64 - 1), id="endless string"),
        pytest.param(text(b"k") + struct.pack("<IIQ", 9, 8, 2**64 - 1) + text(b"") * 1000, id="endless strings"),
        pytest.param(text(b"k") + struct.pack("<IIQ", 9, 4, 2**62), id="endless numbers"),
        pytest.param(text(b"k") + struct.pack("<IIQ", 9, 13, 0), id="array of an unknown type"),
        pytest.param(text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, id="deep arrays"),
        pytest.param(
            text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 4 + struct.pack("<IQ", 4, 0), id="one too deep"
        ),
        pytest.param(aligned(0), id="alignment 0"),
        pytest.param(aligned(4), id="alignment 4"),
        pytest.param(aligned(48), id="alignment 48"),
        pytest.param(aligned(1 << 31), id="alignment 2 GiB"),
        pytest.param(text(b"general.alignment") + struct.pack("<IQ", 10, 32), id="alignment of another type"),
    ],
)
def test_broken_gguf_metadata(keys: bytes) -> None:
    """Endless, unknown or deeply nested values end segmentation. No memory is allocated for stated sizes."""
    with memory_within(8 * MIB):
        assert is_one_segment(gguf_of(keys))


def test_gguf_alignment_that_stands_twice() -> None:
    """Readers differ in which of the two counts, so neither does."""
    assert is_one_segment(gguf_of(aligned(32) + aligned(32), key_count=2))


def entry(name: bytes, size: int, *, kind: int = 24, offset: int = 0) -> bytes:
    """Return a GGUF tensor of one dimension. Its type is I8, so its dimension is its size."""
    return text(name) + struct.pack("<IQIQ", 1, size, kind, offset)


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param([struct.pack("<Q", 2**64 - 1)], id="endless name"),
        pytest.param([text(b"t") + struct.pack("<I", 9)], id="9 dimensions"),
        pytest.param([entry(b"t", 300_000, offset=2**64 - 1)], id="offset at the end of the world"),
        pytest.param([text(b"t") + struct.pack("<I8QIQ", 8, *[2**64 - 1] * 8, 24, 0)], id="endless"),
        pytest.param([entry(b"t", 300_001, kind=8)], id="half a block"),
        pytest.param([entry(b"a", 300_000), entry(b"b", 300_000)], id="same place"),
        pytest.param([entry(b"a", 300_000), entry(b"b", 300_000, offset=299_999)], id="overlap"),
    ],
)
def test_broken_gguf_tensor_table(tensors: list[bytes]) -> None:
    """One impossible tensor makes the whole table untrusted."""
    assert is_one_segment(gguf_of(tensors=b"".join(tensors), tensor_count=len(tensors)))


@pytest.mark.parametrize(
    ("tensor_count", "key_count", "version"), [(2**63, 1, 3), (1, 2**63, 3), (1, 1, 1), (1, 1, 4), (gguf.COUNT_LIMIT + 1, 1, 3)]
)
def test_gguf_counts_and_versions_beyond_the_limits(tensor_count: int, key_count: int, version: int) -> None:
    """Counts are checked before they are used."""
    assert is_one_segment(gguf_of(aligned(32), key_count=key_count, tensor_count=tensor_count, version=version))


def test_gguf_header_beyond_the_limit() -> None:
    """A table that would end after 64 MiB is not waited for."""
    keys = text(b"k") + struct.pack("<IQ", 8, gguf.HEADER_LIMIT)
    segments = segmenter()
    segments.feed(memoryview(gguf_of(keys))[:100])
    assert POSITION_LIMIT == segments.known_until


def local_header(*, flags: int = 0, method: int = 0, packed_size: int = 0, size: int = 0, extra: bytes = b"") -> bytes:
    """Return a local header of an entry without a name."""
    return struct.pack("<4s5H3I2H", b"PK\3\4", 45, flags, method, 0, 0, 0, packed_size, size, 0, len(extra)) + extra


def wide_header(extra: bytes) -> bytes:
    """Return a local header whose sizes should be in `extra`."""
    return local_header(packed_size=0xFFFFFFFF, size=0xFFFFFFFF, extra=extra)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(wide_header(b""), id="no extra field"),
        pytest.param(wide_header(struct.pack("<HHQ", 1, 8, 300_000)), id="short extra field"),
        pytest.param(wide_header(struct.pack("<HHQQ", 1, 16, 300_000, 2**63)), id="endless"),
        pytest.param(wide_header(struct.pack("<HHQQ", 1, 16, 300_000, 2**64 - 1)), id="more than endless"),
        pytest.param(wide_header(struct.pack("<HHH", 7, 60_000, 1)), id="extra field beyond its end"),
        pytest.param(wide_header(b"\1\0\1"), id="extra field cut off"),
        pytest.param(local_header(flags=8, method=8), id="deflated of unknown size"),
        pytest.param(local_header(flags=9), id="encrypted of unknown size"),
    ],
)
def test_broken_local_headers(header: bytes) -> None:
    """A header with no size, or an impossible one, ends segmentation."""
    assert is_one_segment(header + DATA)


def test_zip_entry_that_ends_beyond_the_file() -> None:
    """Its start is a boundary. Nothing else of it counts, and cutting does not wait for more bytes."""
    content = local_header(packed_size=1 << 31, size=1 << 31) + DATA
    assert [30] == boundaries(content, [len(content)])
    assert len(content) == sum(chunk_sizes(content, [len(content)]))


def test_zip_whose_next_header_is_not_where_it_should_be() -> None:
    """The boundaries before it stay. After it there is one segment."""
    content = local_header(packed_size=300_000, size=300_000) + DATA
    assert [30, 300_030] == boundaries(content, [len(content)])


@pytest.mark.parametrize(
    "flood",
    [
        b"PK\7\10" * 100_000,
        struct.pack("<4s3I4s", b"PK\7\10", 0, 77, 77, b"PK\1\2") * 20_000,
        struct.pack("<4sI2Q4s", b"PK\7\10", 0, 77, 77, b"PK\1\2") * 15_000,
    ],
    ids=["signatures", "32 bits", "64 bits"],
)
def test_flood_of_false_descriptors(flood: bytes) -> None:
    """No false descriptor ends the entry."""
    content = local_header(flags=8) + flood
    assert [30] == boundaries(content, [len(content)])
    assert [30] == boundaries(content, pieces(997, whole=len(content)))


@pytest.mark.slow
def test_flood_of_tiny_entries() -> None:
    """Entries take no memory. A million of them are one segment."""
    content = memoryview(local_header() * 100_000)
    segments = segmenter()
    with memory_within(MIB):
        assert [] == segments.feed(content)


def test_zips_nested_without_end() -> None:
    """Every level below the second is one segment, whatever its content."""
    content = octets(1, 300_000)
    for _ in range(50):
        content = zip_file([ZipEntry("z", content)])
    starts = [boundary for boundary in boundaries(content, [len(content)]) if boundary < len(content) // 2]
    assert [31, 62, 93] == starts
    assert len(content) == sum(chunk_sizes(content, [len(content)]))


def test_container_signatures_alone() -> None:
    """A file may end after its first bytes."""
    for head in (
        local_header()[:29],
        b"PK\3\4",
        b"PK\3\4" + bytes(5),
        b"GGUF",
        b"GGUF" + bytes(5),
        struct.pack("<Q", 1000) + b"{",
        b"\2" + bytes(7),
    ):
        assert is_one_segment(head)
