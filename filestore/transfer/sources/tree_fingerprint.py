"""What a push cache keeps of a directory, and what of it still holds at the next push.

A fingerprint has the name, the kind, the state and the checksum of each entry, also of folders and links. So the layout of the
zip of that time is known, and with the sizes of its chunks, where each chunk was. Entries that follow one another then and now,
and are all unchanged, are a *run*: the bytes of the zip are the same there, at another offset. A chunk that lies in a run still
holds, if a cut falls on its start.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import accumulate, repeat
from typing import NamedTuple, Self

from blake3 import blake3

from filestore.core.digest import DIGEST_AND_NUMBER, DIGEST_SIZE, Buffer
from filestore.format.chunking import CUT_MARGIN
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.format.zip.write import Entry, central_header_size, end_records, local_header_size
from filestore.transfer.sources.file import STATE_SIZE, FileState
from filestore.transfer.sources.walk import States

_MAGIC = b"tree3"
_EARLIER_MAGIC = b"tree2"
"""Files were not written back before a fingerprint with another magic was made, so it is not trusted."""
_COUNT = struct.Struct("<I")
_SIZE_ONLY = struct.Struct(f"<Q{STATE_SIZE - 8}x")
"""A state begins with the size. The state of a link is its size and the digest of its target."""
_LINK = struct.Struct(f"<Q{DIGEST_SIZE}s")

_EARLIER_COUNTS = struct.Struct("<II")
_EARLIER_FILE = struct.Struct("<HI")
_EARLIER_SEGMENT_SIZE = DIGEST_AND_NUMBER.size


class EntryKind(IntEnum):
    """The kind of an entry in a fingerprint.

    UNNOTICED: A file of which a later change might go unnoticed. Only its size counts.
    """

    FILE = 0
    EXECUTABLE = 1
    FOLDER = 2
    LINK = 3
    UNNOTICED = 4


class Listing(NamedTuple):
    """The entries of a tree, in the order of its zip, as columns. They are compared as a whole where a tree is unchanged."""

    kinds: bytes
    states: bytes
    names: bytes
    """The stored names, with a NUL between two of them. No name holds one."""

    @classmethod
    def of(cls, entries: Sequence[Entry], states: States) -> Self:
        """List the entries of a walk."""
        kinds = bytearray(entry.is_executable for entry in entries)
        links: dict[int, bytes] = {}
        for place, entry in enumerate(entries):
            if entry.is_folder:
                kinds[place] = EntryKind.FOLDER
            elif entry.target is not None:
                kinds[place] = EntryKind.LINK
                links[place] = _LINK.pack(entry.size, blake3(entry.target.encode()).digest())
        names = "\0".join([f"{entry.name}/" if entry.is_folder else entry.name for entry in entries])
        return cls(bytes(kinds), _with_links(states.encoded, links), names.encode())

    def each_name(self) -> Iterator[bytes]:
        """Yield the names one by one. A list of them would take 10 MB for 200,000 entries."""
        start = 0
        find = self.names.find
        while (end := find(b"\0", start)) >= 0:
            yield self.names[start:end]
            start = end + 1
        if self.kinds:
            yield self.names[start:]

    def is_settled(self, place: int, recorded_at: int) -> bool:
        """Return whether every change of an entry after `recorded_at` shows in its kind or its state."""
        return self.kinds[place] >= EntryKind.FOLDER or FileState.unpack(self.states, place).is_settled(recorded_at)

    def are_settled(self, recorded_at: int) -> bool:
        """Return whether this holds for all entries."""
        return all(map(self.is_settled, range(len(self.kinds)), repeat(recorded_at)))


class Fingerprint(NamedTuple):
    """The fingerprint of a directory."""

    listing: Listing
    crcs: Sequence[int]
    knows_kinds: bool = True
    """False for a fingerprint of an earlier version, which does not say what is executable."""

    def pack(self) -> bytes:
        """Return the fingerprint as bytes."""
        count = len(self.crcs)
        crcs = struct.pack(f"<{count}I", *self.crcs)
        return b"".join((_MAGIC, _COUNT.pack(count), self.listing.kinds, crcs, self.listing.states, self.listing.names))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse what `pack` returned, or an earlier version. Raises ValueError or struct.error if it is malformed."""
        if data.startswith(_EARLIER_MAGIC):
            return cls._parse_earlier(data)
        if not data.startswith(_MAGIC):
            raise ValueError("it is not the fingerprint of a directory")
        (count,) = _COUNT.unpack_from(data, len(_MAGIC))
        kinds_at = len(_MAGIC) + _COUNT.size
        crcs_at = kinds_at + count
        states_at = crcs_at + 4 * count
        names_at = states_at + STATE_SIZE * count
        listing = Listing(data[kinds_at:crcs_at], data[states_at:names_at], data[names_at:])
        if len(listing.states) != STATE_SIZE * count or listing.names.count(b"\0") != max(0, count - 1):
            raise ValueError("its columns have different lengths")
        return cls(listing, array("I", struct.unpack_from(f"<{count}I", data, crcs_at)))

    @classmethod
    def _parse_earlier(cls, data: bytes) -> Self:
        """Parse a fingerprint that has only files. Where the tree had other entries, its layout does not fit the manifest."""
        count, segment_count = _EARLIER_COUNTS.unpack_from(data, len(_EARLIER_MAGIC))
        at = len(_EARLIER_MAGIC) + _EARLIER_COUNTS.size + segment_count * _EARLIER_SEGMENT_SIZE
        crcs, states, names = array("I"), bytearray(), []
        for _ in range(count):
            length, crc = _EARLIER_FILE.unpack_from(data, at)
            at += _EARLIER_FILE.size
            names.append(data[at : at + length])
            states += data[at + length : at + length + STATE_SIZE]
            crcs.append(crc)
            at += length + STATE_SIZE
        if len(states) != count * STATE_SIZE:
            raise ValueError("it is too short")
        return cls(Listing(bytes(count), bytes(states), b"\0".join(names)), crcs, knows_kinds=False)

    def layout(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the offsets of the local headers and of the central directory, and the ends of the segments of the zip."""
        offsets, ends = array("Q"), array("Q")
        at = directory = 0
        for name, (size,) in zip(self.listing.each_name(), _SIZE_ONLY.iter_unpack(self.listing.states), strict=True):
            offsets.append(at)
            directory += central_header_size(len(name), size, at)
            at += local_header_size(len(name), size) + size
            if size >= SEGMENT_MIN:
                ends.append(at - size)
                ends.append(at)
        offsets.append(at)
        ends.append(at + directory + len(end_records(count=len(self.crcs), size=directory, offset=at)))
        return offsets, ends

    def unchanged(self, now: Listing, recorded_at: int) -> Iterator[tuple[int, int]]:
        """Yield the place then and the place now of each entry that is unchanged."""
        then = self.listing
        names = enumerate(then.each_name())
        before, before_name = next(names, (0, None))
        for place, name in enumerate(now.each_name()):
            # Both are in the order of names.
            while before_name is not None and before_name < name:
                before, before_name = next(names, (0, None))
            if before_name is None:
                return
            is_same = before_name == name and (not self.knows_kinds or then.kinds[before] == now.kinds[place])
            if is_same and _state(then, before) == _state(now, place) and now.is_settled(place, recorded_at):
                yield before, place


class HeldChunk(NamedTuple):
    """A chunk of an earlier push that still holds."""

    place: int
    """Its place in the manifest of that push."""
    start: int
    """Its offset in the zip now."""
    size: int


class _Run(NamedTuple):
    """A part of the zip that is the same then and now."""

    then: int
    now: int
    size: int


def are_chunks_of(sizes: Iterable[int], ends: Sequence[int]) -> bool:
    """Return whether a chunk ends at the end of each segment, and the last one at that of the last segment."""
    segment_ends = iter(ends)
    segment_end = next(segment_ends)
    at = 0
    for at in accumulate(sizes):
        if at == segment_end:
            segment_end = next(segment_ends, 0)
        elif at > segment_end:
            return False
    return at == ends[-1]


def held_chunks(
    sizes: Iterable[int], ends: Sequence[int], unchanged: Iterable[tuple[int, int]], then: Sequence[int], now: Sequence[int]
) -> Iterator[HeldChunk]:
    """Yield the chunks of an earlier push that still hold, in order.

    `sizes` are those of all its chunks, `ends` those of its segments. `unchanged` are the places of the unchanged entries, and
    `then` and `now` the offsets of the entries in both zips.
    """
    runs = _runs(unchanged, then, now)
    run = next(runs, None)
    segment_ends = iter(ends)
    segment_end = at = 0
    for place, size in enumerate(sizes):
        if at == segment_end:
            segment_end = next(segment_ends, 0)
        end = at + size
        while run is not None and run.then + run.size <= at:
            run = next(runs, None)
        # A run that reaches the end of a segment then reaches one now: the header or the content of the same large file.
        needed = end if end == segment_end else end + CUT_MARGIN
        if run is not None and run.then <= at and needed <= run.then + run.size:
            yield HeldChunk(place, at - run.then + run.now, size)
        at = end


def _runs(unchanged: Iterable[tuple[int, int]], then: Sequence[int], now: Sequence[int]) -> Iterator[_Run]:
    """Join the unchanged entries that follow one another, then and now."""
    start_then = start_now = end_then = end_now = 0
    for before, place in unchanged:
        if (then[before], now[place]) != (end_then, end_now):
            if end_then > start_then:
                yield _Run(start_then, start_now, end_then - start_then)
            start_then, start_now = then[before], now[place]
        end_then, end_now = then[before + 1], now[place + 1]
    if end_then > start_then:
        yield _Run(start_then, start_now, end_then - start_then)


def _with_links(states: bytes, links: dict[int, bytes]) -> bytes:
    if not links:
        return states  # no copy
    packed = bytearray(states)
    for place, state in links.items():
        packed[place * STATE_SIZE : (place + 1) * STATE_SIZE] = state
    return bytes(packed)


def _state(listing: Listing, place: int) -> Buffer:
    return listing.states[place * STATE_SIZE : (place + 1) * STATE_SIZE]
