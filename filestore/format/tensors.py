"""The tensors of a safetensors or GGUF file: names, types, shapes, and where the data of each one is.

    reader = HeaderReader(size, name="model.safetensors")
    while reader.table is None:
        reader.feed(the next bytes of the file, at least up to reader.needed)
    for tensor in reader.table.tensors: ...

The header comes from outside (I4). The parsers are those that find where a file is cut, with their limits. What they need
not know is checked here: types, shapes, and that the data of each tensor is in the file and shared by no other one.

Sources: safetensors format, https://github.com/huggingface/safetensors#format; GGUF specification,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from filestore.core.digest import Buffer
from filestore.errors import InvalidTensors
from filestore.format.chunking import gguf, safetensors
from filestore.format.chunking.segments import Feed, NotThisFormat, Parsing

DIMENSIONS_LIMIT = 64
"""The most dimensions of a tensor. numpy has the same limit."""
DTYPE_LIMIT = 32
"""The most characters in the name of a type."""
METADATA_LIMIT = 1 << 20
"""The most characters of metadata that are kept."""
VALUE_LIMIT = 64 << 10
"""The most bytes of one value of it."""
_VALUE_COST = 64
"""Characters that each value counts for besides, so that there are not too many small ones."""

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
}
"""Bits of an element of each type of safetensors. A tensor of a type that is not here is accepted with any size."""


class Tensor(NamedTuple):
    """A tensor of a file.

    name: As the file has it: any characters, also control characters.
    dtype: As the format calls it, such as `BF16`, `F8_E4M3` or `Q4_K`. `type N` is a type of GGUF that has no name here.
    shape: The slowest dimension first, as numpy and torch have it. Empty for a single number.
    offset: Where its data begins in the file.
    size: Bytes of its data. For `type N`, this goes to the next tensor, or to the end of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class TensorTable(NamedTuple):
    """What the header of a file says."""

    format: str
    """`safetensors` or `gguf`."""
    data_offset: int
    """Bytes of the file before the data of the tensors."""
    tensors: tuple[Tensor, ...]
    """In the order of their data. No two have the same name."""
    metadata: Mapping[str, str]
    """What the header says besides, as text, in its order: values of at most 64 KiB, 1 MiB of them together. Of an array and of a
    longer value, it has the type and the number of items.
    """


class HeaderReader:
    """Reads the header of a file from its first bytes, which arrive in pieces.

    It keeps the header, which is at most 16 MiB in safetensors, and of a GGUF file the names of its tensors.
    """

    def __init__(self, size: int, *, name: str) -> None:
        """`size` is that of the whole file, and `name` what errors call it."""
        self.table: TensorTable | None = None
        """None until enough bytes were given."""
        self.needed = min(safetensors.SNIFF_SIZE, size)
        """Bytes of the file that are certainly needed, counted from its start."""
        self._size = size
        self._name = name
        self._fed = 0
        self._feed = Feed(0)
        self._parsing = _parse(self._feed, size)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the file, which are not kept. Raises InvalidTensors where it has no tensors that can be read."""
        data = memoryview(data)
        self._fed += len(data)
        self._feed.refill(data)
        try:
            known = next(self._parsing)
        except StopIteration as end:
            self.table = end.value
            self._feed.let_go()
            return
        except NotThisFormat as error:
            raise InvalidTensors(self._name, str(error)) from None
        if max(known, self._fed + 1) > self._size:
            raise InvalidTensors(self._name, "it ends inside its header")
        self._feed.settle()
        self.needed = max(known, self._fed + 1)


def parse_tensors(content: Buffer, *, name: str) -> TensorTable:
    """Return the tensors of a file that is in memory. Raises InvalidTensors."""
    reader = HeaderReader(len(memoryview(content)), name=name)
    reader.feed(content)
    if reader.table is None:
        raise InvalidTensors(name, "it ends inside its header")
    return reader.table


def _parse(feed: Feed, size: int) -> Parsing[TensorTable]:
    if size < safetensors.SNIFF_SIZE:
        raise NotThisFormat("it is not a safetensors or GGUF file")
    yield from feed.at_least(safetensors.SNIFF_SIZE)
    head = bytes(feed.here()[: safetensors.SNIFF_SIZE])
    if head.startswith(gguf.SIGNATURE):
        notes = _Notes()
        data, rows = yield from gguf.read_table(feed, lambda row: row, notes)
        return TensorTable("gguf", data, _checked(_of_gguf(rows, data, size), data, size), notes.values)
    if safetensors.is_head(head):
        header = yield from safetensors.read_header(feed)
        data = feed.position
        members = safetensors.members_of(header, keeps_others=True)
        notes = _metadata(members.pop(safetensors.METADATA, None))
        return TensorTable("safetensors", data, _checked(_of_safetensors(members, data), data, size), notes.values)
    raise NotThisFormat("it is not a safetensors or GGUF file")


def _checked(tensors: Iterable[Tensor], data: int, size: int) -> tuple[Tensor, ...]:
    """Return the tensors in the order of their data. Raises NotThisFormat where one is outside the file, or two share bytes."""
    ordered = tuple(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)))
    reached = data
    for tensor in ordered:
        if tensor.offset < reached or tensor.size < 0:
            raise NotThisFormat("the data of two tensors overlaps, or a tensor has an impossible place")
        reached = tensor.offset + tensor.size
        if reached > size:
            raise NotThisFormat("the data of a tensor is outside the file")
    if len({tensor.name for tensor in ordered}) != len(ordered):
        raise NotThisFormat("two tensors have the same name")
    return ordered


class _Notes:
    """The metadata of a header, as far as there is room for it."""

    text_limit = VALUE_LIMIT

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._left = METADATA_LIMIT

    def add(self, key: bytes, value: float | bytes | None, *, kind: str, count: int) -> None:
        if value is None:
            text = f"{count} {kind}{'' if count == 1 else 's'}"
        elif isinstance(value, bytes):
            text = value.decode(errors="replace")
        elif isinstance(value, bool):
            text = str(value).lower()
        else:
            text = f"{value:.9g}" if isinstance(value, float) else str(value)
        self.add_text(key.decode(errors="replace"), text)

    def add_text(self, key: str, text: str) -> None:
        if len(text) > VALUE_LIMIT:
            text = f"{len(text)} characters"
        self._left -= len(key) + len(text) + _VALUE_COST
        if self._left >= 0:
            self.values[key] = text


def _metadata(found: safetensors.Flat | None) -> _Notes:
    """Return the metadata of a safetensors header. The format has only texts in it; what is none is left out."""
    notes = _Notes()
    for key, value in () if found is None or found.others is None else found.others.items():
        if isinstance(value, str):
            notes.add_text(_replaced(key), _replaced(value))
    return notes


def _replaced(text: str) -> str:
    """Return a text that can be printed: without halves of surrogate pairs."""
    return text.encode(errors="replace").decode()


def _of_safetensors(members: Mapping[str, safetensors.Flat], data: int) -> Iterator[Tensor]:
    for name, found in members.items():
        begin, end = safetensors.extent(found.data_offsets)
        dtype, shape = _dtype(found.dtype), _shape(found.shape)
        bits = BITS.get(dtype)
        if bits is not None and prod(shape) * bits != (end - begin) * 8:
            raise NotThisFormat("a tensor's data does not have the size that its shape and type need")
        yield Tensor(_text(name), dtype, shape, data + begin, end - begin)


def _dtype(dtype: object) -> str:
    if not isinstance(dtype, str) or not 0 < len(dtype) <= DTYPE_LIMIT:
        raise NotThisFormat("a tensor's dtype is not a short text")
    return _text(dtype)


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_LIMIT:
        raise NotThisFormat("a tensor's shape is not a list of dimensions")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise NotThisFormat("a tensor's shape is not a list of numbers")
    return tuple(shape)


def _text(text: str) -> str:
    """Return `text`. Raises NotThisFormat for one with half a surrogate pair, as JSON can have it: it cannot be printed."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotThisFormat("a name in its header is not Unicode text") from None
    return text


def _of_gguf(rows: Sequence[gguf.Described], data: int, size: int) -> Iterator[Tensor]:
    ends = _ends({row.offset for row in rows}, size - data)
    for row in rows:
        block = gguf.BLOCKS.get(row.kind)
        try:
            name = row.name.decode()
        except UnicodeDecodeError:
            raise NotThisFormat("the name of a tensor is not UTF-8") from None
        length = ends[row.offset] - row.offset if row.size is None else row.size
        dtype = f"type {row.kind}" if block is None else block.name
        yield Tensor(name, dtype, row.dimensions[::-1], data + row.offset, length)


def _ends(offsets: set[int], size: int) -> dict[int, int]:
    """Return, for each offset in the data, where the next tensor begins, or where the file ends."""
    return dict(pairwise([*sorted(offsets), size]))
