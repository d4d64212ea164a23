"""Find the segments of a safetensors file, the data of its tensors, and what its header says about them.

Source: safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from filestore.format.chunking.segments import Feed, NotThisFormat, Parsing

HEADER_LIMIT = 16 << 20
VALUES_LIMIT = 1 << 19
"""The largest number of commas and opening brackets in a header. A tensor has 8. This limits the memory for parsing."""
SNIFF_SIZE = 9

_LENGTH = struct.Struct("<Q")
_NUMBER_LIMIT = 20  # characters; every 64-bit number fits


def is_head(head: bytes) -> bool:
    """Return whether a safetensors file can begin with these 9 bytes: the length of the header and an opening brace."""
    return 2 <= _LENGTH.unpack_from(head)[0] <= HEADER_LIMIT and head[8:9] == b"{"


def segment(feed: Feed) -> Parsing[None]:
    """Mark the start and the end of each large tensor. This waits until the whole header has arrived.

    The header contains no boundary, so cutting does not wait for it.
    """
    header = yield from read_header(feed)
    feed.mark_extents((feed.position + begin, feed.position + end) for begin, end in _extents(header))


def read_header(feed: Feed) -> Parsing[bytearray]:
    """Return the JSON text of the header. The data of the tensors begins at the position of the feed after it."""
    (length,) = _LENGTH.unpack((yield from feed.read(_LENGTH.size)))
    return (yield from feed.read(length, known=feed.position + length))


METADATA = "__metadata__"
"""The name of the member of a header that is about the file, and no tensor."""


class Flat(NamedTuple):
    """A JSON object that contains no other objects: those members of it that describe a tensor."""

    data_offsets: object
    dtype: object
    shape: object
    others: dict[str, object] | None
    """All members of an object that describes no tensor, where they are asked for."""


def described(header: bytearray) -> Iterator[tuple[str, Flat]]:
    """Yield the name and the description of each tensor, in the order of the header. The values were not checked.

    Raises NotThisFormat.
    """
    return ((name, found) for name, found in members_of(header).items() if name != METADATA)


def members_of(header: bytearray, *, keeps_others: bool = False) -> dict[str, Flat]:
    """Return the tensors of a header, and its metadata if it has some. The values were not checked.

    `keeps_others` tells whether the result has the members of an object that describes no tensor. Raises NotThisFormat.
    """
    if sum(header.count(mark) for mark in (b",", b"[", b"{")) > VALUES_LIMIT:
        raise NotThisFormat("its header holds too many values")
    try:
        tensors = json.loads(
            header.decode(),
            object_pairs_hook=partial(_object, keeps_others=keeps_others),
            parse_int=_integer,
            parse_float=str,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        raise NotThisFormat("its header is not JSON") from None
    if isinstance(tensors, Flat) and not header.strip(b" \t\r\n{}"):
        return {}  # a file without tensors
    if not isinstance(tensors, dict):
        raise NotThisFormat("its header is not an object of objects")
    return tensors


def _extents(header: bytearray) -> Iterator[tuple[int, int]]:
    for _, tensor in described(header):
        yield extent(tensor.data_offsets)


def extent(offsets: object) -> tuple[int, int]:
    """Return the start and the end of a tensor in the data. Raises NotThisFormat where they are not two integers."""
    match offsets:
        case [int(begin), int(end)] if not isinstance(begin, bool) and not isinstance(end, bool):
            return begin, end
    raise NotThisFormat("a tensor's data_offsets are not a pair of integers")


def _object(pairs: list[tuple[str, object]], *, keeps_others: bool) -> Flat | dict[str, object]:
    """Convert a JSON object of the header. Raises NotThisFormat if it is nested too deep or has a name twice.

    The header is an object of flat objects. It becomes a dict, and a flat object becomes a `Flat`.

    The allowed depth is part of the format, because the depth at which a JSON parser gives up depends on the machine.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotThisFormat("a name occurs twice in its header")
    if members and all(isinstance(value, Flat) for value in members.values()):
        return members
    if any(_is_nested(value) for value in members.values()):
        raise NotThisFormat("its header is not nested like a description of tensors")
    found = Flat(members.get("data_offsets"), members.get("dtype"), members.get("shape"), None)
    return found._replace(others=members) if keeps_others and found.data_offsets is None else found


def _is_nested(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, list | dict | Flat) for item in value)
    return isinstance(value, dict | Flat)


def _integer(text: str) -> int:
    if len(text) > _NUMBER_LIMIT:
        raise NotThisFormat("a number in its header is too long")
    return int(text)


def _refuse(text: str) -> object:
    raise NotThisFormat(f"{text} is not JSON")
