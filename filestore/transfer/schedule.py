"""In which order and in which batches missing chunks are downloaded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from filestore.core.batches import batched_by_size
from filestore.core.manifest import Chunk
from filestore.format.codec import frame_limit
from filestore.transfer.partial_file import PartialFile
from filestore.transfer.sinks.protocol import Ordering, Sink

BATCHES_IN_FLIGHT = 4
BATCH_SIZE = 8 << 20
"""Decoded bytes of one batch."""
FOLLOWED_BATCH_SIZE = 2 << 20
"""Decoded bytes from which on a batch is large enough where someone waits for parts of a file: a worker is free again soon."""
EXTENT_MIN = 4 << 20
"""Bytes from which on content of a seed is copied by the operating system, which may share it instead."""


class Place(NamedTuple):
    """A chunk and where it stands in the file."""

    chunk: Chunk
    offsets: list[int]
    order: Ordering = Ordering.ANY

    @property
    def size(self) -> int:
        """Bytes that this chunk fills of the file."""
        return self.chunk.size * len(self.offsets)


class Batch(NamedTuple):
    """What one worker receives and writes at a time."""

    places: list[Place]
    after: asyncio.Event | None
    """Set when the batch was written that this one must follow."""
    written: asyncio.Event


def batches_by_size(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Places in batches whose frames fit into `BATCH_SIZE` bytes."""
    return batched_by_size(list(places), lambda place: frame_limit(place.chunk.size), limit=BATCH_SIZE)


def ordered_chains(places: Sequence[Place]) -> Iterator[list[Batch]]:
    """Batches, and with each those that must be written after it, one after the other."""
    chain: list[Batch] = []
    for extent in _unbroken(places):
        for batch in batches_by_size(extent):
            follows = batch[0].order is Ordering.AFTER
            if chain and not follows:
                yield chain
                chain = []
            chain.append(Batch(batch, chain[-1].written if follows and chain else None, asyncio.Event()))
    if chain:
        yield chain


def _unbroken(places: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """Parts of `places`: where a row of chunks begins that follow each other, so does a part, and thus a batch."""
    start = 0
    for at in range(1, len(places) - 1):
        if places[at].order is not Ordering.AFTER and places[at + 1].order is Ordering.AFTER:
            yield places[start:at]
            start = at
    yield places[start:]


def asked_first(places: Sequence[Place], partial_file: PartialFile) -> Iterator[Batch]:
    """Small batches of what is waited for, where something is, else of what comes next in the file; each place once."""
    by_offset = {offset: place for place in places for offset in place.offsets}
    taken: set[int] = set()

    def gathered(candidates: Iterator[Place]) -> list[Place]:
        batch: list[Place] = []
        held = 0
        for place in candidates:
            if place.offsets[0] not in taken:
                taken.add(place.offsets[0])
                batch.append(place)
                held += frame_limit(place.chunk.size)
            if held >= FOLLOWED_BATCH_SIZE:
                break
        return batch

    rest = iter(places)
    while True:
        # Asked anew for each batch: a worker that is free takes what was asked for meanwhile.
        asked = (by_offset[offset] for offset in iter(partial_file.next_asked, None) if offset in by_offset)
        batch = gathered(asked) or gathered(rest)
        if not batch:
            return
        yield Batch(batch, None, asyncio.Event())


def round_robin(chains: Iterator[list[Batch]]) -> Iterator[Batch]:
    """The batches of some chains at a time in turns, so that workers seldom wait for each other; of one chain, in its order.

    A batch comes after the one that it follows. Workers take them in this order, so that what a worker waits for is under way.
    """
    active: deque[Iterator[Batch]] = deque()
    for chain in chains:
        active.append(iter(chain))
        while len(active) >= BATCHES_IN_FLIGHT:
            yield from _next_round_robin(active)
    while active:
        yield from _next_round_robin(active)


def _next_round_robin(active: deque[Iterator[Batch]]) -> Iterator[Batch]:
    """One batch of the chain whose turn it is."""
    chain = active.popleft()
    for batch in chain:
        active.append(chain)
        yield batch
        return


def long_extents(places: Sequence[Place], found: Mapping[int, int], sink: Sink) -> Iterator[list[Place]]:
    """Rows of chunks that lie back to back in one file of the sink and in the seed alike, if they are long."""
    extent: list[Place] = []
    current: tuple[int, int, int] | None = None  # the file, and where the row goes on, here and in the seed
    for place in places:
        at = place.offsets[0]
        file = sink.file_at(at, place.chunk.size)
        if file is None or (file, at, found[at]) != current:
            yield from _long(extent)
            extent = []
        if file is not None:
            extent.append(place)
            current = file, at + place.chunk.size, found[at] + place.chunk.size
    yield from _long(extent)


def _long(extent: list[Place]) -> Iterator[list[Place]]:
    if sum(place.chunk.size for place in extent) >= EXTENT_MIN:
        yield extent
