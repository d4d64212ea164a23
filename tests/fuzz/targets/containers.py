"""The containers in which the chunker finds segments: safetensors, GGUF, and zip files such as those of PyTorch."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping

from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import InvalidTensors
from filestore.format import tensors
from filestore.format.chunking import Chunker, gguf, safetensors
from filestore.format.chunking import zip as zips
from filestore.format.chunking.containers import segmenter
from filestore.format.chunking.segments import POSITION_LIMIT, SEGMENT_MIN
from filestore.format.tensors import HeaderReader, TensorTable, parse_tensors
from tests.fuzz.target import PlantedFault, Target, pieces_of

_FILLER = b"~FILL~"
"""Stands for 256 KiB in an input: only extents of that size are segments."""
_FILLER_LIMIT = 3
_PIECE = 70_001


def _expanded(data: bytes) -> bytes:
    return data.replace(_FILLER, bytes(SEGMENT_MIN), _FILLER_LIMIT)


def _large_pieces(content: bytes) -> list[bytes]:
    return [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]


def _boundaries(pieces: Iterable[bytes], *, known_limit: int) -> tuple[list[int], int]:
    """Return the boundaries of a file, and up to which position they are known."""
    segments, found, fed = segmenter(), list[int](), 0
    for piece in pieces:
        found += segments.feed(memoryview(piece))
        fed += len(piece)
        assert segments.known_until == POSITION_LIMIT or segments.known_until <= max(fed, known_limit)
    assert found == sorted(set(found))
    assert all(0 < boundary < POSITION_LIMIT for boundary in found)
    return found, segments.known_until


def _check(known_limit: int) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        """A container has the same segments in one piece and in many, and its chunks have all bytes."""
        content = _expanded(data)
        found = _boundaries([content], known_limit=known_limit)
        pieces = pieces_of(content) if len(content) == len(data) else _large_pieces(content)
        assert found == _boundaries(pieces, known_limit=known_limit)
        sizes = Chunker().cut(memoryview(content), final=True)
        assert len(content) == sum(sizes)
        assert all(0 < size <= CHUNK_LIMIT for size in sizes)

    return check


def _safetensors() -> list[bytes]:
    def file(header: Mapping[str, object], content: bytes) -> bytes:
        encoded = json.dumps(header).encode()
        return struct.pack("<Q", len(encoded)) + encoded + content

    small = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    large = {"w": {"dtype": "U8", "shape": [SEGMENT_MIN], "data_offsets": [0, SEGMENT_MIN]}}
    two = large | {"v": {"dtype": "U8", "shape": [4], "data_offsets": [SEGMENT_MIN, SEGMENT_MIN + 4]}}
    return [file(small, bytes(8)), file(large, _FILLER), file(two, _FILLER + b"tail"), file({}, b"")]


SAFETENSORS = Target(
    check=_check(safetensors.HEADER_LIMIT + 8),
    errors=(),
    seeds=_safetensors,
    fault=PlantedFault(
        owner=safetensors,
        function="is_head",
        old="return 2 <= _LENGTH.unpack_from(head)[0] <= HEADER_LIMIT and",
        new="return 2 <= _LENGTH.unpack_from(head)[0] and",
    ),
    parses=("filestore.format.chunking",),
)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf() -> list[bytes]:
    alignment = _text("general.alignment") + struct.pack("<II", 4, 32)
    array = _text("tokenizer.tokens") + struct.pack("<IIQ", 9, 8, 3) + _text("a") + _text("bc") + _text("")
    nested = _text("nested") + struct.pack("<IIQIQ", 9, 9, 1, 4, 2) + bytes(8)
    strings = struct.pack("<IQ", 8, 2) + _text("a") + _text("")
    deep = _text("deep") + struct.pack("<IIQ", 9, 9, 3) + strings + struct.pack("<IQ", 9, 1) + strings + struct.pack("<IQ", 0, 0)
    name = _text("general.name") + struct.pack("<I", 8) + _text("a model")
    tensor = _text("blk.0.weight") + struct.pack("<IQIQ", 1, SEGMENT_MIN, 24, 0)
    small = _text("norm") + struct.pack("<IQQIQ", 2, 32, 2, 2, SEGMENT_MIN)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 2, 4) + alignment + array + nested + name + tensor + small
    padded = head + bytes(-len(head) % 32)
    return [padded + _FILLER + bytes(36), struct.pack("<4sIQQ", b"GGUF", 2, 0, 2) + deep + name, head]


GGUF = Target(
    check=_check(gguf.HEADER_LIMIT),
    errors=(),
    seeds=_gguf,
    fault=PlantedFault(
        owner=gguf._Table,
        function="_check",
        old="if self._feed.position + size > self._limit:",
        new="if size > 1 << 66:",
    ),
    parses=("filestore.format.chunking",),
)


def _zips() -> list[bytes]:
    def archive(method: int, *contents: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as made:
            for number, content in enumerate(contents):
                made.writestr(f"archive/data/{number}", content)
        return file.getvalue()

    large = bytes(SEGMENT_MIN)
    pytorch = archive(zipfile.ZIP_STORED, b"\x80\x02pickle.", large).replace(large, _FILLER)
    inner = _safetensors()[1]
    nested = archive(zipfile.ZIP_STORED, inner.replace(_FILLER, large)).replace(large, _FILLER)
    wide = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 1, 20) + b"w"
    largest = wide + struct.pack("<HHQQ", 1, 16, POSITION_LIMIT - 99, POSITION_LIMIT - 99)
    wide += struct.pack("<HHQQ", 1, 16, SEGMENT_MIN, SEGMENT_MIN) + _FILLER
    unsized = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 8, 0, 0, 0, 0, 0, 0, 1, 0) + b"u" + _FILLER
    unsized += struct.pack("<4s3I", b"PK\7\10", 0, SEGMENT_MIN, SEGMENT_MIN) + b"PK\1\2" + bytes(20)
    return [archive(zipfile.ZIP_DEFLATED, b"a" * 100, b""), pytorch, nested, wide, largest, unsized]


ZIP_SEGMENTS = Target(
    check=_check(POSITION_LIMIT),
    errors=(),
    seeds=_zips,
    fault=PlantedFault(owner=zips, function="_sized", old="if end >= POSITION_LIMIT:", new="if end < 0:"),
    parses=("filestore.format.chunking",),
)


def _read_in_pieces(content: bytes) -> TensorTable:
    reader, fed = HeaderReader(len(content), name="x"), 0
    for piece in pieces_of(content):
        assert fed < reader.needed <= len(content)
        reader.feed(piece)
        fed += len(piece)
        if reader.table is not None:
            return reader.table
    raise InvalidTensors("x", "it ends inside its header")


def _check_tensors(data: bytes) -> None:
    """The tensors are the same in one piece and in many, are in the file, and share no byte."""
    content = _expanded(data)
    try:
        table = parse_tensors(content, name="x")
    except InvalidTensors:
        table = None
    try:
        found = _read_in_pieces(content)
    except InvalidTensors:
        found = None
    assert table == found
    reached = table.data_offset if table is not None else 0
    for tensor in () if table is None else table.tensors:
        assert reached <= tensor.offset <= tensor.offset + tensor.size <= len(content)
        reached = tensor.offset + tensor.size
        tensor.name.encode()


TENSORS = Target(
    check=_check_tensors,
    errors=(),
    seeds=lambda: [*_safetensors(), *_gguf()],
    fault=PlantedFault(owner=tensors, function="_checked", old="if reached > size:", new="if reached > 1 << 80:"),
    parses=("filestore.format.tensors", "filestore.format.chunking"),
)
