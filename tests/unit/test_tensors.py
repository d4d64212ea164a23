"""The tensors of safetensors and GGUF files, from their headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence

import pytest

from filestore.errors import InvalidTensors
from filestore.format.tensors import (
    DIMENSIONS_LIMIT,
    METADATA_LIMIT,
    VALUE_LIMIT,
    HeaderReader,
    Tensor,
    TensorTable,
    parse_tensors,
)
from tests.support.models import GgufValue, gguf_file, safetensors_file, safetensors_from_header, tensor
from tests.support.models import Tensor as Item

TENSORS = [
    tensor("embedding", 5, 7, seed=1, dtype="F32"),
    tensor("a.weight", 3, 2, 4, seed=2, dtype="BF16"),
    tensor("scale", seed=3, dtype="F16"),
    tensor("empty", 0, 4, seed=4, dtype="I8"),
]


def header_of(members: Mapping[str, object], data: bytes = bytes(64)) -> bytes:
    """A safetensors file with this header."""
    return safetensors_from_header(json.dumps(members).encode(), data)


def reason_of(content: bytes) -> str:
    """Why a file is refused, in one piece and byte by byte."""
    with pytest.raises(InvalidTensors) as refused:
        parse_tensors(content, name="x")
    with pytest.raises(InvalidTensors) as in_pieces:
        read_in_pieces(content, 1)
    assert refused.value.reason == in_pieces.value.reason
    return refused.value.reason


def read_in_pieces(content: bytes, size: int) -> TensorTable:
    """The table of a file that arrives in pieces of `size` bytes; never more than the reader asks for by more than one piece."""
    reader, fed = HeaderReader(len(content), name="x"), 0
    while reader.table is None:
        assert fed < max(reader.needed, 1)
        reader.feed(content[fed : fed + size])
        fed += size
    return reader.table


@pytest.mark.parametrize("size", [1, 9, 100, 1 << 20])
@pytest.mark.parametrize("make", [safetensors_file, gguf_file])
def test_tensors_are_read_with_their_data(make: Callable[[Sequence[Item]], bytes], size: int) -> None:
    """Names, types and shapes are those of the file, and each place has the data."""
    content = make(TENSORS)
    table = parse_tensors(content, name="x")
    assert table == read_in_pieces(content, size)
    assert {item[:3] for item in TENSORS} == {found[:3] for found in table.tensors}
    assert list(table.tensors) == sorted(table.tensors, key=lambda found: found.offset)
    data = {found.name: content[found.offset : found.offset + found.size] for found in table.tensors}
    assert {item.name: item.data for item in TENSORS} == data


def test_only_the_header_of_a_safetensors_file_is_needed() -> None:
    """After nine bytes, the reader knows how long the header is."""
    content = safetensors_file(TENSORS)
    (length,) = struct.unpack("<Q", content[:8])
    reader = HeaderReader(len(content), name="x")
    assert reader.needed == 9
    reader.feed(content[:9])
    assert reader.needed == 8 + length
    reader.feed(content[9 : 8 + length])
    assert reader.table is not None
    assert reader.table.data_offset == 8 + length


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F8_E4M3", [3, 5], 15), ("F8_E5M2", [2], 2), ("F4", [2, 3], 3), ("F6_E2M3", [4], 3), ("C64", [1], 8), ("NEW_TYPE", [9], 2)],
)
def test_types_by_name(dtype: str, shape: list[int], size: int) -> None:
    """Types that numpy does not have are read too, also of less than a byte, and one that nobody knows yet."""
    content = header_of({"t": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}})
    (found,) = parse_tensors(content, name="x").tensors
    assert (dtype, tuple(shape), size) == (found.dtype, found.shape, found.size)


def test_blocks_and_unknown_types_of_gguf() -> None:
    """Quantised data has the size of its blocks. That of an unknown type goes to the next tensor, or to the end."""

    def row(name: bytes, kind: int, length: int, offset: int) -> bytes:
        return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, length, kind, offset)

    head = struct.pack("<4sIQQ", b"GGUF", 3, 3, 0) + row(b"q", 12, 512, 0) + row(b"n", 99, 5, 288) + row(b"z", 98, 5, 320)
    head += bytes(-len(head) % 32)
    content = head + bytes(330)
    data = len(head)
    assert parse_tensors(content, name="x").tensors == (
        Tensor("q", "Q4_K", (512,), data, 288),
        Tensor("n", "type 99", (5,), data + 288, 32),
        Tensor("z", "type 98", (5,), data + 320, 10),
    )
    assert "outside the file" in reason_of(content[:-330])


def test_a_file_without_tensors() -> None:
    """Both formats can have none."""
    assert parse_tensors(header_of({}), name="x").tensors == ()
    assert parse_tensors(gguf_file([], metadata={"general.name": "x"}), name="x").tensors == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"GGUF", b"PK\3\4" + bytes(60), bytes(9), b"\xff" * 8 + b"{"])
def test_another_file(content: bytes) -> None:
    """A file of another kind is refused after its first bytes."""
    assert reason_of(content) == "it is not a safetensors or GGUF file"


def test_a_file_that_ends_too_early() -> None:
    """A header that is cut off, and data that is."""
    whole = safetensors_file(TENSORS)
    assert reason_of(whole[:40]) == "it ends inside its header"
    assert reason_of(whole[:-1]) == "the data of a tensor is outside the file"
    model = gguf_file([tensor("t", 64, seed=1)])
    assert reason_of(model[:50]) == "it ends inside its header"
    assert reason_of(model[:-1]) == "the data of a tensor is outside the file"


FLAT = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"dtype": 7}, "dtype"),
        ({"dtype": ""}, "dtype"),
        ({"dtype": "X" * 33}, "dtype"),
        ({"dtype": "\ud800"}, "Unicode"),
        ({"shape": 4}, "shape"),
        ({"shape": [4.0]}, "shape"),
        ({"shape": [True, 4]}, "shape"),
        ({"shape": [-2, -2]}, "shape"),
        ({"shape": [1] * (DIMENSIONS_LIMIT + 1)}, "shape"),
        ({"shape": [5]}, "size"),
        ({"shape": [2**63, 2**63]}, "size"),
        ({"data_offsets": [0, 5]}, "size"),
        ({"data_offsets": [4, 0]}, "size"),
        ({"data_offsets": [-4, 0]}, "place"),
        ({"data_offsets": [80, 84]}, "outside"),
        ({"data_offsets": [2**63, 2**63 + 4]}, "outside"),
        ({"data_offsets": "0"}, "data_offsets"),
        ({"data_offsets": [0, 4, 8]}, "data_offsets"),
    ],
)
def test_a_lying_safetensors_header(changed: Mapping[str, object], word: str) -> None:
    """Each value of a tensor is checked, so that nothing outside its file can be asked for."""
    assert word in reason_of(header_of({"t": {**FLAT, **changed}}))


def test_tensors_that_share_bytes() -> None:
    """Two tensors do not overlap, and no two have one name."""
    assert "overlaps" in reason_of(header_of({"a": FLAT, "b": {**FLAT, "data_offsets": [3, 7]}}))
    twice = gguf_file([tensor("t", 64, seed=1), tensor("t", 64, seed=2)])
    assert reason_of(twice) == "two tensors have the same name"


def test_names_that_cannot_be_text() -> None:
    """A name of GGUF is UTF-8, and one of JSON has no half of a surrogate pair. Control characters are kept as they are."""
    assert "UTF-8" in reason_of(gguf_file([tensor("tt", 64, seed=1)]).replace(b"tt", b"\xff\xfe"))
    assert "Unicode" in reason_of(header_of({"\udfff": FLAT}))
    assert parse_tensors(header_of({"a\x1b[31m\n": FLAT}), name="x").tensors[0].name == "a\x1b[31m\n"


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_metadata(size: int) -> None:
    """What the header says besides, as text, in both formats. Of lists there is the size."""
    safetensors = safetensors_file(TENSORS, metadata={"format": "pt", "note": "<b>\x07", "": "nobody"})
    assert {"format": "pt", "note": "<b>\x07", "": "nobody"} == read_in_pieces(safetensors, size).metadata
    values: dict[str, GgufValue] = {
        "general.architecture": "llama",
        "llama.rope": 0.1,
        "many": 7,
        "is": True,
        "no": False,
        "tokens": ["a", "b"],
        "e": [1],
    }
    gguf = gguf_file(TENSORS, metadata=values)
    assert {
        "general.architecture": "llama",
        "llama.rope": "0.100000001",
        "many": "7",
        "is": "true",
        "no": "false",
        "tokens": "2 texts",
        "e": "1 number",
    } == read_in_pieces(gguf, size).metadata


@pytest.mark.parametrize("make", [safetensors_file, gguf_file])
def test_metadata_is_bounded(make: Callable[..., bytes]) -> None:
    """Of a long text there is its size, and what does not fit together is left out. The tensors are read all the same."""
    long = {"before": "1", "long": "x" * (VALUE_LIMIT + 1), "after": "2"}
    table = parse_tensors(make(TENSORS, metadata=long), name="x")
    assert ("1", "2") == (table.metadata["before"], table.metadata["after"])
    assert len(table.metadata["long"]) < 40
    table = parse_tensors(make(TENSORS, metadata={f"key {number}": "x" * VALUE_LIMIT for number in range(20)}), name="x")
    assert METADATA_LIMIT // VALUE_LIMIT - 1 == len(table.metadata)
    assert len(TENSORS) == len(table.tensors)


def test_metadata_of_other_types() -> None:
    """Values of another type than the format permits are left out, and halves of surrogate pairs are replaced."""
    content = header_of({"__metadata__": {"a": 1, "b": None, "c": [1], "d": "\ud800", "dtype": "x"}}, b"")
    assert {"d": "?", "dtype": "x"} == parse_tensors(content, name="x").metadata
