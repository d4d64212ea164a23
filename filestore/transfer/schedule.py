"""Decide in which order and in which batches missing chunks are downloaded."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from filestore.core.batches import batched_by_size
from filestore.format.codec import frame_limit
from filestore.format.zip.read import OFFSET_SPACE
from filestore.repository.protocol import TransferLimits
from filestore.transfer.parallelism import LARGE_SIZE, LEAST_SLOT, MOST_SLOT, Parallelism, fetch_parallelism
from filestore.transfer.partial_file import PartialFile
from filestore.transfer.places import Matches, Place, Places
from filestore.transfer.sinks.protocol import Ordering, Sink
from filestore.transfer.sinks.zip_index import GATHER_LIMIT

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """Internal. What a fetch uses as it is, without a setting: sizes, in bytes, and counts."""

    large_size: int = LARGE_SIZE
    """From so many missing bytes on, a fetch has worker processes."""
    batches_in_flight: int | None = None
    """Number of batches that one process receives and writes at a time. None means what cores and memory allow."""
    shared_min: int = 1 << 20
    """A worker process gets a part of a batch only if it has at least this size."""
    batch_size: int = MOST_SLOT
    """The most bytes of one batch, decoded. A smaller fetch has smaller ones: see `sized_for`."""
    batch_count: int = 4096
    """The most chunks of a batch."""
    followed_batch_size: int = 2 << 20
    """The size of a batch for a file that is read while it is fetched. It is small, so that a worker is soon free for
    the chunks that the reader waits for."""
    extent_min: int = 4 << 20
    """From this size on, the operating system copies an extent of a seed. It may share the disk blocks instead of a
    copy."""
    copy_size: int = 64 << 20
    """Bytes that one call copies. A cancelled fetch waits for the end of that call."""
    sync_size: int = 64 << 20
    """After this many written bytes, a sync starts while more chunks arrive. Otherwise the disk would be idle until the
    end."""
    gather_limit: int = GATHER_LIMIT
    """The largest entry with an order that is collected in memory."""
    offset_space: int = OFFSET_SPACE
    """The number modulo which a zip file without Zip64 has its offsets."""


DEFAULT_OPTIONS = TransferOptions()
_SMALL_BATCH_SIZE = 8 << 20
_BATCHES_WANTED = 16
"""A fetch has at least so many batches, unless they would be smaller than `_SMALL_BATCH_SIZE`."""


def parallelism_of(size: int, limits: TransferLimits, options: TransferOptions, *, file_count: int = 1) -> Parallelism:
    """Return what a fetch of `size` missing bytes into `file_count` files may do at the same time."""
    found = fetch_parallelism(size, limits, large_size=options.large_size, file_count=file_count)
    return found if options.batches_in_flight is None else found._replace(slots=options.batches_in_flight)


def sized_for(size: int, options: TransferOptions, *, most: int = LEAST_SLOT) -> TransferOptions:
    """Return the options for a fetch of `size` bytes, with batches of at most `most` bytes.

    Batches are large, as long as enough of them can be in flight.
    """
    return replace(options, batch_size=min(options.batch_size, max(_SMALL_BATCH_SIZE, size // _BATCHES_WANTED), most))


def own_batches(parallelism: Parallelism, options: TransferOptions) -> int:
    """Return how many batches the process of the fetch itself has in flight."""
    return parallelism.own_slots if parallelism.processes and options.batches_in_flight is None else parallelism.slots


class Batch(NamedTuple):
    """The chunks that one worker receives and writes at a time."""

    places: Places
    after: asyncio.Event | None
    """The event `written` of the batch that must be written before this one."""
    written: asyncio.Event


def batches_by_size(places: Iterable[Place], options: TransferOptions) -> Iterator[list[Place]]:
    """Yield the places in batches whose frames fit into `batch_size` bytes, and of at most `batch_count` places."""
    return _batched(places, lambda place: place.chunk.size, options)


def _batched(chunks: Iterable[T], size_of: Callable[[T], int], options: TransferOptions) -> Iterator[list[T]]:
    return batched_by_size(
        chunks, lambda chunk: frame_limit(size_of(chunk)), limit=options.batch_size, count_limit=options.batch_count
    )


def ordered_chains(places: Places, options: TransferOptions) -> Iterator[list[Batch]]:
    """Yield chains of batches. The batches of one chain must be written one after the other."""
    table = places.table
    chain: list[Batch] = []
    for extent in _unbroken(places):
        start = 0
        # A worker makes the places when it takes their batch: a chain may be the whole file.
        for numbers in _batched(extent.numbers, table.chunks.size_at, options):
            follows = table.orders[numbers[0]] == Ordering.AFTER
            if chain and not follows:
                yield chain
                chain = []
            after = chain[-1].written if follows and chain else None
            chain.append(Batch(extent[start : start + len(numbers)], after, asyncio.Event()))
            start += len(numbers)
    if chain:
        yield chain


def _unbroken(places: Places) -> Iterator[Places]:
    """Split `places` before each sequence of chunks that must follow each other, so that a batch begins there."""
    orders = places.orders()
    start = 0
    after = orders.find(Ordering.AFTER, 2)
    while after >= 0:
        if orders[after - 1] != Ordering.AFTER:
            yield places[start : after - 1]
            start = after - 1
        after = orders.find(Ordering.AFTER, after + 1)
    yield places[start:]


def asked_first(places: Places, partial_file: PartialFile, options: TransferOptions) -> Iterator[Batch]:
    """Yield small batches. A batch has the chunks that the reader waits for, or else the next chunks of the file.

    Each place is in one batch only.
    """
    table, firsts = places.table, places.table.firsts()
    waiting = bytearray(len(firsts))
    for number in places.numbers:
        waiting[number] = True

    def gathered(candidates: Iterator[int]) -> Places:
        batch = array("i")
        held = 0
        for number in candidates:
            if waiting[number]:
                waiting[number] = False
                batch.append(number)
                held += frame_limit(table.chunks.size_at(number))
            if held >= options.followed_batch_size or len(batch) == options.batch_count:
                break
        return Places(table, batch)

    rest = iter(places.numbers)
    while True:
        # The reader is asked again for each batch, since it may wait for other chunks by now.
        asked = (firsts[table.number_at(offset)] for offset in iter(partial_file.next_asked, None))
        batch = gathered(asked) or gathered(rest)
        if not batch:
            return
        yield Batch(batch, None, asyncio.Event())


def round_robin(chains: Iterator[list[Batch]], count: int) -> Iterator[Batch]:
    """Yield the batches of `count` chains alternately, so that workers seldom wait for each other.

    The batches of one chain stay in their order. Workers take batches in the order in which they are yielded, so a
    worker never waits for a batch that no worker has taken.
    """
    active: deque[Iterator[Batch]] = deque()
    for chain in chains:
        active.append(iter(chain))
        while len(active) >= count:
            yield from _next_round_robin(active)
    while active:
        yield from _next_round_robin(active)


def _next_round_robin(active: deque[Iterator[Batch]]) -> Iterator[Batch]:
    """Yield one batch of the first chain, and move this chain to the end."""
    chain = active.popleft()
    for batch in chain:
        active.append(chain)
        yield batch
        return


def long_extents(places: Places, found: Matches, sink: Sink, options: TransferOptions) -> Iterator[Places]:
    """Yield the extents that are long enough for a copy by the operating system.

    The chunks of an extent are neighbours in one file of the sink, and also in the seed.
    """
    start = size = 0
    current: tuple[int, int, int] | None = None  # the file, and the end of the extent in the sink and in the seed
    for number, place in enumerate(places):
        at = place.offsets[0]
        file = sink.file_at(at, place.chunk.size)
        if file is None or (file.number, at, found[at]) != current:
            if size >= options.extent_min:
                yield places[start:number]
            start, size = number, 0
        if file is None:
            start = number + 1
        else:
            size += place.chunk.size
            current = file.number, at + place.chunk.size, found[at] + place.chunk.size
    if size >= options.extent_min:
        yield places[start:]
