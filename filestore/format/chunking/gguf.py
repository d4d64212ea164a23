"""Find the segments of a GGUF file, the data of its tensors, and what its header says about them.

Source: GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple, Protocol, TypeVar

from filestore.format.chunking.segments import Feed, NotThisFormat, Parsing

T = TypeVar("T")

SIGNATURE = b"GGUF"
HEADER_LIMIT = 64 << 20
"""The largest size in bytes from the signature to the end of the tensor table. Large vocabularies need 15 MiB."""
COUNT_LIMIT = 1 << 16
"""The largest number of tensors, and the largest number of metadata keys."""
NAME_LIMIT = 1 << 16
DIMENSIONS_LIMIT = 8
ARRAY_DEPTH_LIMIT = 4
ALIGNMENT_LIMIT = 1 << 16

_VERSIONS = (2, 3)
_HEAD = struct.Struct("<4sIQQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY = struct.Struct("<IQ")
_EXTENT = struct.Struct("<IQ")

_ALIGNMENT_KEY = b"general.alignment"
_DEFAULT_ALIGNMENT = 32
_UINT32, _STRING, _ARRAY_TYPE = 4, 8, 9
_VALUE_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_VALUES = {kind: struct.Struct(f"<{code}") for kind, code in zip(_VALUE_SIZES, "BbHhIif?Qqd", strict=True)}
_KINDS = {kind: "boolean" if kind == 7 else "number" for kind in _VALUE_SIZES} | {_STRING: "text"}


class Block(NamedTuple):
    """How a type stores its elements: so many of them in a block of so many bytes."""

    name: str
    elements: int
    size: int


# Q8_1 (9) is missing, because its size differs between sources, and no known file uses it.
BLOCKS = {
    0: Block("F32", 1, 4),
    1: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18),
    3: Block("Q4_1", 32, 20),
    6: Block("Q5_0", 32, 22),
    7: Block("Q5_1", 32, 24),
    8: Block("Q8_0", 32, 34),
    10: Block("Q2_K", 256, 84),
    11: Block("Q3_K", 256, 110),
    12: Block("Q4_K", 256, 144),
    13: Block("Q5_K", 256, 176),
    14: Block("Q6_K", 256, 210),
    15: Block("Q8_K", 256, 292),
    16: Block("IQ2_XXS", 256, 66),
    17: Block("IQ2_XS", 256, 74),
    18: Block("IQ3_XXS", 256, 98),
    19: Block("IQ1_S", 256, 50),
    20: Block("IQ4_NL", 32, 18),
    21: Block("IQ3_S", 256, 110),
    22: Block("IQ2_S", 256, 82),
    23: Block("IQ4_XS", 256, 136),
    24: Block("I8", 1, 1),
    25: Block("I16", 1, 2),
    26: Block("I32", 1, 4),
    27: Block("I64", 1, 8),
    28: Block("F64", 1, 8),
    29: Block("IQ1_M", 256, 56),
    30: Block("BF16", 1, 2),
    34: Block("TQ1_0", 256, 54),
    35: Block("TQ2_0", 256, 66),
    39: Block("MXFP4", 32, 17),
    40: Block("NVFP4", 64, 36),
    41: Block("Q1_0", 128, 18),
}


class Described(NamedTuple):
    """A tensor, as its row in the tensor table describes it."""

    name: bytes
    kind: int
    """The number of its type: a key of `BLOCKS`, or one that this cutting version does not know."""
    dimensions: tuple[int, ...]
    """The fastest first."""
    offset: int
    """From the start of the data, which follows the table at a multiple of the alignment."""
    size: int | None
    """None if this cutting version does not know the type of the tensor."""


class _Tensor(NamedTuple):
    offset: int
    size: int | None


def segment(feed: Feed) -> Parsing[None]:
    """Mark the start and the end of each large tensor. This waits until the whole tensor table has arrived.

    The table itself contains no boundary.
    """
    data, tensors = yield from read_table(feed, lambda found: _Tensor(found.offset, found.size))
    feed.mark_extents((data + begin, data + end) for begin, end in _extents(tensors))


class Notes(Protocol):
    """Takes what the metadata of a header says."""

    text_limit: int
    """Bytes of the longest text that it takes."""

    def add(self, key: bytes, value: float | bytes | None, *, kind: str, count: int) -> None:
        """Take one value: a number or a text, or None for an array of `count` values and for a text of so many bytes.

        `kind` is its type, or that of the values of an array.
        """


def read_table(feed: Feed, kept: Callable[[Described], T], notes: Notes | None = None) -> Parsing[tuple[int, list[T]]]:
    """Return where the data begins, and of each tensor what `kept` takes of it, in the order of the table.

    `notes` gets the metadata, which is only skipped without it.

    Raises NotThisFormat. The table may claim offsets and sizes that are outside the file.
    """
    table = _Table(feed)
    _, version, tensor_count, key_count = _HEAD.unpack((yield from table.read(_HEAD.size)))
    if version not in _VERSIONS or tensor_count > COUNT_LIMIT or key_count > COUNT_LIMIT:
        raise NotThisFormat("its version is unknown, or its counts are beyond the limits")
    alignment = yield from _alignment(table, key_count, notes)
    tensors: list[T] = []
    for _ in range(tensor_count):
        tensors.append(kept((yield from _tensor(table))))  # noqa: PERF401  # a comprehension cannot yield
    return feed.position + (feed.start - feed.position) % alignment, tensors


def _extents(tensors: Sequence[_Tensor]) -> Iterator[tuple[int, int]]:
    ordered = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size or 0))
    for tensor, following in pairwise(ordered):
        size = following.offset - tensor.offset if tensor.size is None else tensor.size
        yield tensor.offset, tensor.offset + size
    if ordered and ordered[-1].size is not None:
        yield ordered[-1].offset, ordered[-1].offset + ordered[-1].size


class _Table:
    """Reads the header from a feed. Raises NotThisFormat if the header is larger than `HEADER_LIMIT`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._limit = feed.start + HEADER_LIMIT

    def read(self, size: int) -> Parsing[bytearray]:
        self._check(size)
        return (yield from self._feed.read(size))

    def skip(self, size: int) -> Parsing[None]:
        self._check(size)
        yield from self._feed.skip(size)

    def number(self, layout: struct.Struct) -> Parsing[int]:
        return int(layout.unpack((yield from self.read(layout.size)))[0])

    def array_head(self) -> Parsing[tuple[int, int]]:
        """Return the type and the number of the values of the array that follows. It is not taken."""
        yield from self._feed.at_least(_ARRAY.size)
        kind, count = _ARRAY.unpack_from(self._feed.here())
        return kind, count

    def skip_strings(self, count: int) -> Parsing[None]:
        """Skip `count` strings. A vocabulary can have a million of them."""
        while count:
            yield from self._feed.at_least(_U64.size)
            size, passed = _strings(self._feed.here(), limit=count)
            count -= passed
            yield from self.skip(size)

    def skip_whole_arrays(self, limit: int, *, depth: int) -> Parsing[int]:
        """Skip up to `limit` arrays that have arrived completely, and return how many. The first one may be incomplete."""
        yield from self._feed.at_least(_ARRAY.size)
        size, passed = _whole_arrays(self._feed.here(), limit=limit, depth=depth)
        yield from self.skip(size)
        return passed

    def _check(self, size: int) -> None:
        if self._feed.position + size > self._limit:
            raise NotThisFormat("its header is beyond the limit")


def _alignment(table: _Table, key_count: int, notes: Notes | None) -> Parsing[int]:
    found: list[int] = []
    for _ in range(key_count):
        length = yield from table.number(_U64)
        if length >= NAME_LIMIT:
            raise NotThisFormat("a key is too long")
        key = yield from table.read(length)
        kind = yield from table.number(_U32)
        if key != _ALIGNMENT_KEY:
            yield from _skip_value(table, kind) if notes is None else _note_value(table, kind, bytes(key), notes)
        elif kind == _UINT32:
            found.append((yield from table.number(_U32)))
        else:
            raise NotThisFormat("its alignment is not a 32-bit number")
    if not found:
        return _DEFAULT_ALIGNMENT
    alignment = found[0]
    if len(found) > 1 or not 8 <= alignment <= ALIGNMENT_LIMIT or alignment & (alignment - 1):
        raise NotThisFormat("its alignment occurs twice, or is not a power of two in bounds")
    return alignment


def _strings(view: memoryview, *, limit: int) -> tuple[int, int]:
    """Return the total size and the number of strings that begin in `view`. The last one may end after `view`."""
    size = count = 0
    while count < limit and size + _U64.size <= len(view):
        size += _U64.size + _U64.unpack_from(view, size)[0]
        count += 1
    return size, count


def _skip_value(table: _Table, kind: int) -> Parsing[None]:
    if kind == _ARRAY_TYPE:
        yield from _skip_array(table, depth=1)
    elif kind == _STRING:
        yield from table.skip_strings(1)
    elif kind in _VALUE_SIZES:
        yield from table.skip(_VALUE_SIZES[kind])
    else:
        raise NotThisFormat("a value's type is unknown")


def _note_value(table: _Table, kind: int, key: bytes, notes: Notes) -> Parsing[None]:
    """Read a value for `notes`, and accept what `_skip_value` accepts."""
    if kind == _ARRAY_TYPE:
        item, count = yield from table.array_head()
        yield from _skip_array(table, depth=1)
        notes.add(key, None, kind=_KINDS.get(item, "array"), count=count)
    elif kind == _STRING:
        length = yield from table.number(_U64)
        if length > notes.text_limit:
            yield from table.skip(length)
            notes.add(key, None, kind="byte", count=length)
        else:
            notes.add(key, bytes((yield from table.read(length))), kind="text", count=1)
    elif kind in _VALUES:
        layout = _VALUES[kind]
        [value] = layout.unpack((yield from table.read(layout.size)))
        notes.add(key, value, kind=_KINDS[kind], count=1)
    else:
        raise NotThisFormat("a value's type is unknown")


def _whole_arrays(view: memoryview, *, limit: int, depth: int) -> tuple[int, int]:
    """Return the total size and the number of the arrays at the start of `view` that end in it."""
    size = passed = 0
    while passed < limit and (end := _array_end(view, size, depth=depth)):
        size, passed = end, passed + 1
    return size, passed


def _array_end(view: memoryview, start: int, *, depth: int) -> int:
    """Return where the array at `start` ends. Return 0 if it ends after the view or is malformed."""
    if depth > ARRAY_DEPTH_LIMIT or start + _ARRAY.size > len(view):
        return 0
    kind, count = _ARRAY.unpack_from(view, start)
    end = start + _ARRAY.size
    if kind in _VALUE_SIZES:
        end += count * _VALUE_SIZES[kind]
    elif kind == _STRING:
        size, passed = _strings(view[end:], limit=count)
        end = end + size if passed == count else len(view) + 1
    elif kind == _ARRAY_TYPE:
        while count and end:
            end = _array_end(view, end, depth=depth + 1)
            count -= 1
    else:
        return 0
    return end if end <= len(view) else 0


def _skip_arrays(table: _Table, count: int, *, depth: int) -> Parsing[None]:
    """Skip `count` arrays in an array.

    A header can have five million empty ones. Those that have arrived are skipped without a generator for each.
    """
    while count:
        passed = 0 if depth > ARRAY_DEPTH_LIMIT else (yield from table.skip_whole_arrays(count, depth=depth))
        if not passed:
            yield from _skip_array(table, depth=depth)
            passed = 1
        count -= passed


def _skip_array(table: _Table, *, depth: int) -> Parsing[None]:
    if depth > ARRAY_DEPTH_LIMIT:
        raise NotThisFormat("its arrays are nested too deep")
    kind, count = _ARRAY.unpack((yield from table.read(_ARRAY.size)))
    if kind == _STRING:
        yield from table.skip_strings(count)
    elif kind == _ARRAY_TYPE:
        yield from _skip_arrays(table, count, depth=depth + 1)
    elif kind in _VALUE_SIZES:
        yield from table.skip(count * _VALUE_SIZES[kind])
    else:
        raise NotThisFormat("an array's type is unknown")


def _tensor(table: _Table) -> Parsing[Described]:
    length = yield from table.number(_U64)
    if length >= NAME_LIMIT:
        raise NotThisFormat("a tensor's name is too long")
    name = yield from table.read(length)
    count = yield from table.number(_U32)
    if count > DIMENSIONS_LIMIT:
        raise NotThisFormat("a tensor has too many dimensions")
    dimensions = struct.unpack(f"<{count}Q", (yield from table.read(count * _U64.size)))
    kind, offset = _EXTENT.unpack((yield from table.read(_EXTENT.size)))
    return Described(bytes(name), kind, dimensions, offset, _size(kind, dimensions))


def _size(kind: int, dimensions: tuple[int, ...]) -> int | None:
    if kind not in BLOCKS:
        return None
    _, elements, size = BLOCKS[kind]
    if (dimensions[0] if dimensions else 1) % elements:
        raise NotThisFormat("a tensor's rows are not whole blocks")
    return prod(dimensions) // elements * size
