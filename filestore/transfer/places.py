"""The places of a file that a fetch must fill. They are kept in arrays, so that millions of chunks take little memory.

A manifest from a server may have two million chunks of one byte. So no object of a chunk exists before its batch is
received, and nothing here takes more time than the number of chunks does.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import MANY_CHUNKS, Chunk, Manifest
from filestore.transfer.sinks.protocol import Ordering

_NOT_NEEDED = 255
"""Stands in the array of orders for a chunk that the sink does not need."""
_SLICE = 1 << 16
"""Digests that are compared together."""
_KEY_SIZE = 8
"""Bytes of a digest by which rows are sorted, as one number."""


class Place(NamedTuple):
    """A chunk and its offsets in the file."""

    chunk: Chunk
    offsets: Sequence[int]
    order: Ordering = Ordering.ANY

    @property
    def size(self) -> int:
        """The bytes of the file that this chunk fills."""
        return self.chunk.size * len(self.offsets)


class Places(Sequence[Place]):
    """Some of the places of a file, in its order. A `Place` is made when it is read."""

    __slots__ = ("numbers", "table")

    def __init__(self, table: PlaceTable, numbers: Sequence[int]) -> None:
        """`numbers` are the numbers of the first chunks of these places, in order."""
        self.table = table
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Place]:
        return map(self.table.place, self.numbers)

    @overload
    def __getitem__(self, at: int) -> Place: ...
    @overload
    def __getitem__(self, at: slice) -> Places: ...
    def __getitem__(self, at: int | slice) -> Place | Places:
        if isinstance(at, slice):
            return Places(self.table, self.numbers[at])
        return self.table.place(self.numbers[at])

    def orders(self) -> bytes:
        """Return the order of each place."""
        return bytes(map(self.table.orders.__getitem__, self.numbers))


class PlaceTable:
    """All places of a file, and which of them are still to be filled.

    A place has the number of its first chunk in the manifest.
    """

    def __init__(self, manifest: Manifest) -> None:
        """At first, each chunk is a place of its own, and none is to be filled."""
        self.chunks = manifest.chunks
        self.offsets = manifest.offset_table()
        self.orders = bytearray(len(self.chunks))
        """The `Ordering` of each chunk."""
        self._missing = bytearray(len(self.chunks))
        self._next: array[int] | None = None
        """The number of the next chunk of the same place, or -1."""

    def number_at(self, offset: int) -> int:
        """Return the number of the chunk that contains a byte."""
        return bisect_right(self.offsets, offset) - 1

    def place(self, number: int) -> Place:
        """Return the place whose first chunk has this number."""
        offsets: Sequence[int] = (self.offsets[number],)
        if self._next is not None and self._next[number] >= 0:
            offsets = array("q", offsets)
            following = number
            while (following := self._next[following]) >= 0:
                offsets.append(self.offsets[following])
        return Place(self.chunks[number], offsets, Ordering(self.orders[number]))

    def overlapping(self, wanted: range) -> Places:
        """Return the chunks that contain a part of `wanted`."""
        if not wanted:
            return Places(self, range(0))
        return Places(self, range(self.number_at(wanted.start), bisect_left(self.offsets, wanted.stop)))

    def fill(self, orders: Iterable[Ordering | None]) -> None:
        """Set what a sink says about each chunk: when it can be taken, or None if it is not needed.

        Chunks that can be taken at any time and have the same digest become one place. The others are places of their own.
        """
        for number, order in enumerate(orders):
            self.orders[number] = _NOT_NEEDED if order is None else order
            self._missing[number] = order is not None
        if len(self.chunks) < MANY_CHUNKS:
            self._link()
        else:
            self._link_many()

    def _link(self) -> None:
        last: dict[bytes, int] = {}
        for number, chunk in enumerate(self.chunks):
            if self.orders[number] == Ordering.ANY:
                if chunk.digest in last:
                    self._links()[last[chunk.digest]] = number
                    self._missing[number] = False
                last[chunk.digest] = number

    def _link_many(self) -> None:
        import numpy as np  # noqa: PLC0415  # heavy

        numbers = np.flatnonzero(np.frombuffer(self.orders, "u1") == Ordering.ANY).astype("i4")
        rows = self.chunks.row_array()
        keys = rows[numbers, :_KEY_SIZE].view("u8").ravel()
        in_order = np.argsort(keys, kind="stable")
        keys, numbers = keys[in_order], numbers[in_order]
        del in_order
        # Different digests with the same key come only from someone who made them up: they cost a repeated chunk.
        maybe = np.flatnonzero(keys[1:] == keys[:-1])
        del keys
        for start in range(0, len(maybe), _SLICE):
            at = maybe[start : start + _SLICE]
            equal = at[(rows[numbers[at], :DIGEST_SIZE] == rows[numbers[at + 1], :DIGEST_SIZE]).all(axis=1)]
            np.frombuffer(self._links(), "i4")[numbers[equal]] = numbers[equal + 1]
            np.frombuffer(self._missing, "u1")[numbers[equal + 1]] = 0

    def _links(self) -> array[int]:
        if self._next is None:
            self._next = array("i", [-1]) * len(self.chunks)
        return self._next

    def is_missing(self, offset: int) -> bool:
        """Return whether the place whose first chunk is at `offset` is still to be filled."""
        return bool(self._missing[self.number_at(offset)])

    def note_filled(self, place: Place) -> None:
        """Note that a place is filled."""
        self._missing[self.number_at(place.offsets[0])] = False

    def missing(self, *orders: Ordering) -> Places:
        """Return the places that are still to be filled, of these orders only."""
        chosen = bytes(order in orders for order in range(256))
        marks = self.orders.translate(chosen)
        return Places(self, memoryview(array("i", _where_both(self._missing, marks))))

    def firsts(self) -> array[int]:
        """Return for each chunk the number of its place."""
        firsts = array("i", range(len(self.chunks)))
        if self._next is not None:
            for number, following in enumerate(self._next):
                if following >= 0:
                    firsts[following] = firsts[number]
        return firsts


class Matches:
    """The places whose chunks are in another file, and their offsets there."""

    def __init__(self, places: Places, offsets: array[int]) -> None:
        self.places = places
        self._offsets = offsets

    def get(self, offset: int) -> int | None:
        """Return the offset in the other file for a place whose first offset is `offset`. Return None if it is not there."""
        number = self.places.table.number_at(offset)
        at = bisect_left(self.places.numbers, number)
        if at == len(self.places.numbers) or self.places.numbers[at] != number:
            return None
        return self._offsets[at]

    def __getitem__(self, offset: int) -> int:
        found = self.get(offset)
        if found is None:
            raise KeyError(offset)
        return found


def find_matches(places: Places, other: Manifest) -> Matches:
    """Find the chunks of places in another manifest. The first chunk there of each digest counts."""
    if not places or not len(other.chunks):
        return Matches(places[:0], array("q"))
    return _find(places, other) if len(places) + len(other.chunks) < MANY_CHUNKS else _find_many(places, other)


def _find(places: Places, other: Manifest) -> Matches:
    offsets: dict[bytes, int] = {}
    for chunk, offset in zip(other.chunks, other.offsets(), strict=True):
        offsets.setdefault(chunk.digest, offset)
    found = [(number, offsets.get(places.table.chunks[number].digest, -1)) for number in places.numbers]
    numbers = array("i", [number for number, offset in found if offset >= 0])
    return Matches(Places(places.table, numbers), array("q", [offset for _, offset in found if offset >= 0]))


def _find_many(places: Places, other: Manifest) -> Matches:
    import numpy as np  # noqa: PLC0415  # heavy

    mine = places.table.chunks.row_array()
    theirs = other.chunks.row_array()
    keys = np.ascontiguousarray(theirs[:, :_KEY_SIZE]).view("u8").ravel()
    in_order = np.argsort(keys, kind="stable").astype("i4")
    keys = keys[in_order]
    their_offsets = other.offset_table()
    numbers, offsets = array("i"), array("q")
    all_numbers = np.asarray(places.numbers, "i4")
    for start in range(0, len(all_numbers), _SLICE):
        part = all_numbers[start : start + _SLICE]
        at = np.searchsorted(keys, mine[part, :_KEY_SIZE].view("u8").ravel())
        found = in_order[np.minimum(at, len(keys) - 1)]
        # A key that two digests share finds one of them. A chunk that is not found is received, which is right too.
        equal = (mine[part, :DIGEST_SIZE] == theirs[found, :DIGEST_SIZE]).all(axis=1)
        numbers.frombytes(part[equal].tobytes())
        offsets.extend(their_offsets[number] for number in found[equal].tolist())
    return Matches(Places(places.table, numbers), offsets)


def _where_both(one: bytearray, other: bytearray) -> Iterator[int]:
    """Yield the positions at which both have a 1."""
    return (number for number, (mine, its) in enumerate(zip(one, other, strict=True)) if mine and its)
