"""Make model files as other programs write them, without those programs: safetensors, GGUF, zip, `torch.save`.

The caller gives all sizes and contents; nothing is random. The files are valid: `safetensors`, `gguf`, `zipfile` and
`torch.load` read them.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from tests.support.generator import octets

_GGML_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "I8": 24, "BF16": 30}
_TORCH_STORAGES = {"F32": b"FloatStorage", "F16": b"HalfStorage", "BF16": b"BFloat16Storage", "I8": b"CharStorage"}
_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}

GgufValue = bool | int | float | str | Sequence[str] | Sequence[int]


class Tensor(NamedTuple):
    """A tensor: its name, type, dimensions (slowest first) and raw little-endian data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def tensor(name: str, *shape: int, seed: int, dtype: str = "F16") -> Tensor:
    """Return a tensor of `octets`. Its dtype is F32, F16, BF16 or I8."""
    return Tensor(name, dtype, shape, octets(seed, prod(shape) * _ITEM_SIZES[dtype]))


def safetensors_file(tensors: Iterable[Tensor], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file. Spaces pad the header to a multiple of 8 bytes."""
    members: dict[str, object] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    data = bytearray()
    for name, dtype, shape, raw in tensors:
        members[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(members, separators=(",", ":")).encode()
    return safetensors_from_header(header + b" " * (-len(header) % 8), bytes(data))


def safetensors_from_header(header: bytes, data: bytes = b"", *, claimed: int | None = None) -> bytes:
    """Return a safetensors file with any header, whose length `claimed` may state wrongly."""
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + data


def gguf_file(
    tensors: Iterable[Tensor], *, metadata: Mapping[str, GgufValue] | None = None, alignment: int | None = None
) -> bytes:
    """Return a GGUF file of version 3. `alignment` is written if it is given, else it is 32.

    Q8_0 data is given in blocks.
    """
    values = dict(metadata or {}) | ({} if alignment is None else {"general.alignment": alignment})
    boundary = alignment or 32
    table, data, count = bytearray(), bytearray(), 0
    for name, dtype, shape, raw in tensors:
        data += bytes(-len(data) % boundary)
        table += _gguf_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += struct.pack("<IQ", _GGML_TYPES[dtype], len(data))
        data += raw
        count += 1
    head = struct.pack("<4sIQQ", b"GGUF", 3, count, len(values))
    head += b"".join(_gguf_string(key) + _gguf_value(value) for key, value in values.items()) + table
    return head + bytes(-len(head) % boundary) + data + bytes(-len(data) % boundary)


def _gguf_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _gguf_value(value: GgufValue) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _gguf_string(value)
    strings = [item for item in value if isinstance(item, str)]
    numbers = [item for item in value if isinstance(item, int)]
    if strings:
        return struct.pack("<IIQ", 9, 8, len(strings)) + b"".join(map(_gguf_string, strings))
    return struct.pack(f"<IIQ{len(numbers)}i", 9, 5, len(numbers), *numbers)


class ZipEntry(NamedTuple):
    """Describe an entry of a zip file, and how it is written."""

    name: str
    content: bytes
    deflated: bool = False
    sizes_behind: bool = False
    """Sizes are only in a data descriptor after the data (flag bit 3), as streaming writers put them."""
    wide: bool = False
    """Sizes have 64 bits, in a Zip64 field of the local header or in the descriptor."""
    encrypted: bool = False
    """Only the flag is set. The data is not encrypted."""


def zip_file(entries: Iterable[ZipEntry], *, alignment: int = 1) -> bytes:
    """Return a zip file with Zip64 end records, as `torch.save` writes them. Data starts at multiples of `alignment`."""
    body, directory, count = bytearray(), bytearray(), 0
    for entry in entries:
        start = len(body)
        data = _packed(entry)
        body += _local_header(entry, data, start=start, alignment=alignment) + data
        if entry.sizes_behind:
            body += struct.pack("<4sI2Q" if entry.wide else "<4s3I", b"PK\7\10", zlib.crc32(entry.content), *_sizes(entry, data))
        directory += _central_header(entry, data, start=start)
        count += 1
    end = len(body) + len(directory)
    wide_end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(body))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    return bytes(body + directory + wide_end + locator) + struct.pack(
        "<4s4HIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0
    )


def _packed(entry: ZipEntry) -> bytes:
    if not entry.deflated:
        return entry.content
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(entry.content) + packer.flush()


def _sizes(entry: ZipEntry, data: bytes) -> tuple[int, int]:
    return len(data), len(entry.content)


def _flags(entry: ZipEntry) -> int:
    return 0x800 | entry.sizes_behind << 3 | entry.encrypted


def _local_header(entry: ZipEntry, data: bytes, *, start: int, alignment: int) -> bytes:
    name = entry.name.encode()
    packed_size, size = _sizes(entry, data)
    extra = b""
    if entry.sizes_behind:
        checksum = packed_size = size = 0
    else:
        checksum = zlib.crc32(entry.content)
        if entry.wide:
            extra = struct.pack("<HHQQ", 1, 16, size, packed_size)
            packed_size = size = 0xFFFFFFFF
    if alignment > 1:
        padding = -(start + 30 + len(name) + len(extra) + 4) % alignment
        extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    method = 8 if entry.deflated else 0
    numbers = (0, _flags(entry), method, 0, 0, checksum, packed_size, size, len(name), len(extra))
    return struct.pack("<4s5H3I2H", b"PK\3\4", *numbers) + name + extra


def _central_header(entry: ZipEntry, data: bytes, *, start: int) -> bytes:
    name = entry.name.encode()
    method = 8 if entry.deflated else 0
    numbers = (0, 0, _flags(entry), method, 0, 0, zlib.crc32(entry.content), *_sizes(entry, data))
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *numbers, len(name), 0, 0, 0, 0, 0, start) + name


def torch_file(tensors: Sequence[Tensor], *, name: str = "archive") -> bytes:
    """Return what `torch.save(state_dict, name + ".pt")` of torch 2.13 writes.

    Sizes come after the data, and data starts at multiples of 64.
    """
    parts = {
        "data.pkl": _state_dict(tensors),
        ".format_version": b"1",
        ".storage_alignment": b"64",
        "byteorder": b"little",
        **{f"data/{place}": item.data for place, item in enumerate(tensors)},
        "version": b"3\n",
        ".data/serialization_id": b"%040d" % zlib.crc32(repr([item[:3] for item in tensors]).encode()),
    }
    entries = [ZipEntry(f"{name}/{part}", content, sizes_behind=True) for part, content in parts.items()]
    return zip_file(entries, alignment=64)


def _state_dict(tensors: Sequence[Tensor]) -> bytes:
    """Return a pickle (protocol 2) of a dict of tensors, opcode by opcode, without memo."""
    items = b""
    for place, (name, dtype, shape, _) in enumerate(tensors):
        size = prod(shape)
        strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = _text("storage") + b"ctorch\n" + _TORCH_STORAGES[dtype] + b"\n" + _text(str(place)) + _text("cpu")
        items += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        items += b"(" + storage + _integer(size) + b"tQ" + _integer(0) + _integers(shape) + _integers(strides)
        items += b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR"
    return b"\x80\x02}(" + items + b"u."


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _integers(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
