"""Segments of a safetensors file: the data of its tensors.

Source: safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

from filestore.format.chunking.segments import Feed, NotThisFormat, Parsing

HEADER_LIMIT = 16 << 20
VALUES_LIMIT = 1 << 19
"""Commas and opening brackets in a header, 8 a tensor: they bound the values in it, and so the memory that reading it takes."""
SNIFF_SIZE = 9

_LENGTH = struct.Struct("<Q")
_NUMBER_LIMIT = 20  # characters: all that 64 bits need


def is_head(head: bytes) -> bool:
    """Whether a safetensors file can begin with these 9 bytes: the header's length, and its opening brace."""
    return 2 <= _LENGTH.unpack_from(head)[0] <= HEADER_LIMIT and head[8:9] == b"{"


def segment(feed: Feed) -> Parsing[None]:
    """Mark the tensors' data, once the whole header is there. No boundary lies in the header, so nobody waits for it."""
    (length,) = _LENGTH.unpack((yield from feed.take(_LENGTH.size)))
    data = feed.position + length
    header = yield from feed.take(length, known=data)
    feed.mark_extents((data + begin, data + end) for begin, end in _extents(header))


class _Flat(NamedTuple):
    """What is needed of an object in which nothing is nested."""

    data_offsets: object


def _extents(header: bytearray) -> Iterator[tuple[int, int]]:
    if sum(header.count(mark) for mark in (b",", b"[", b"{")) > VALUES_LIMIT:
        raise NotThisFormat("its header holds too many values")
    try:
        tensors = json.loads(
            header.decode(), object_pairs_hook=_object, parse_int=_integer, parse_float=str, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        raise NotThisFormat("its header is no JSON") from None
    if not isinstance(tensors, dict):
        raise NotThisFormat("its header is no object of objects")
    for name, tensor in tensors.items():
        if name != "__metadata__":
            yield _extent(tensor.data_offsets)


def _extent(offsets: object) -> tuple[int, int]:
    match offsets:
        case [int(begin), int(end)] if not isinstance(begin, bool) and not isinstance(end, bool):
            return begin, end
    raise NotThisFormat("a tensor's data_offsets are no pair of integers")


def _object(pairs: list[tuple[str, object]]) -> _Flat | dict[str, object]:
    """A flat object, or the object of flat objects that a header is; any other nesting is doubted.

    The depth is part of the format: how deep a JSON parser gets before it gives up depends on the machine.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotThisFormat("a name stands twice in its header")
    if members and all(isinstance(value, _Flat) for value in members.values()):
        return members
    if any(_is_nested(value) for value in members.values()):
        raise NotThisFormat("its header is nested in another way than tensors are described")
    return _Flat(members.get("data_offsets"))


def _is_nested(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, list | dict | _Flat) for item in value)
    return isinstance(value, dict | _Flat)


def _integer(text: str) -> int:
    if len(text) > _NUMBER_LIMIT:
        raise NotThisFormat("a number in its header is too long")
    return int(text)


def _refuse(text: str) -> object:
    raise NotThisFormat(f"{text} is no JSON")
