"""Ingest: frames that arrive are staged, verified, synced and committed to a store and an index."""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Iterable
from dataclasses import dataclass

from filestore.core.digest import Buffer, Digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import (
    InvalidFrame,
)
from filestore.format.codec import HEADER_SIZE, Decoder, Frame, decoded_size, frame_limit
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.stores.protocol import ChunkStore, Staging
from filestore.system.buffers import Budget
from filestore.system.metrics import Stage, part, stage
from filestore.system.threads import in_cpu_thread, in_disk_thread, per_thread

_BUNDLE_SIZE = 4 << 20
"""Bytes, encoded and decoded, that are verified in one turn in a thread, and then synced in another: some frames."""
FRAME_LIMIT = frame_limit(CHUNK_LIMIT)


@dataclass(slots=True, eq=False)
class _Arrival:
    """A frame at the door."""

    digest: Digest
    stored_size: int
    staging: Staging
    header: bytes = b""
    """Its first 8 bytes, as far as they are here."""
    received: int = 0
    data: Buffer | None = None
    """All of it, where it did not come piece by piece."""
    row: ChunkRow | None = None
    """Known once it was verified."""
    is_synced: bool = False
    refusal: InvalidFrame | None = None

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes to verify it, by what it says of itself; a lie is refused before it costs any."""
        try:
            return self.stored_size + decoded_size(self.header, digest=self.digest)
        except InvalidFrame:
            return self.stored_size


class Delivery:
    """Frames on their way in from one connection, verified (I4) and synced in the background while more arrive.

    One frame is received at a time: `begin`, then `write` until it is whole, both in a thread; then `check`, back in the event
    loop. One that is written in one piece is verified there and then, while it is in the processor's cache. Or `add` one that
    is in memory. `keep` makes visible what was verified. Never use it from two places at once. A failing disk cancels the block
    that it was made for, which then raises StorageError or StorageFull.
    """

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        namespace: str,
        *,
        budget: Budget,
        group: asyncio.TaskGroup,
        staged: set[Staging],
    ) -> None:
        """`staged`: what is to be discarded in the end stands in this set of the caller's."""
        self._store = store
        self._index = index
        self._namespace = namespace
        self._budget = budget
        self._group = group
        self._staged = staged
        self._arrivals: list[_Arrival] = []
        self._arriving: _Arrival | None = None
        self._whole: list[_Arrival] = []
        self._bundle: list[_Arrival] = []
        self._bundle_weight = 0
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, digest: Digest, stored_size: int) -> None:
        """The next frame. One that is not whole by now never will be."""
        if self._arriving is not None:
            self._arriving.staging.rest()
        arrival = self._arrive(digest, stored_size)
        if stored_size > FRAME_LIMIT:
            arrival.refusal = InvalidFrame(str(digest), f"it has {stored_size} bytes, allowed are {FRAME_LIMIT}")
        self._arriving = arrival

    def write(self, piece: Buffer) -> None:
        """The next bytes of the frame that was begun, in any split; they go to its staging file at once (I6). Blocks.

        The caller may reuse `piece` afterwards. Raises StorageError, StorageFull.
        """
        arrival = self._arriving
        if arrival is None or arrival.received + len(piece) > arrival.stored_size:
            raise ValueError("no frame was begun that these bytes belong to")
        arrival.received += len(piece)
        if len(arrival.header) < HEADER_SIZE:
            arrival.header += bytes(memoryview(piece)[: HEADER_SIZE - len(arrival.header)])
        is_whole = len(piece) == arrival.stored_size
        if arrival.refusal is None and is_whole:
            _verify(arrival, piece)
        if arrival.refusal is None and len(piece):
            _write(arrival, piece)
        if arrival.received == arrival.stored_size:
            arrival.staging.rest()
            self._arriving = None
            self._whole.append(arrival)

    def check(self) -> None:
        """Begin to verify and sync the frames that are whole."""
        whole, self._whole = self._whole, []
        for arrival in whole:
            if arrival.refusal is None:
                self._take_in(arrival)

    def add(self, frame: Frame) -> None:
        """A frame that is in memory as a whole, and stays there until `keep` returns or the block ends."""
        arrival = self._arrive(frame.digest, len(frame.data))
        arrival.header = bytes(frame.data[:HEADER_SIZE])
        arrival.data = frame.data
        self._take_in(arrival)

    async def keep(self) -> int:
        """Make the frames visible, durably, that are whole and were verified; returns how many.

        Raises InvalidFrame for the first that was refused, after the others were kept.
        """
        self.check()
        self._start_bundle()
        if self._tasks:
            await asyncio.wait(self._tasks)
        arrivals, self._arrivals = self._arrivals, []
        verified = {arrival: arrival.row for arrival in arrivals if arrival.row is not None and arrival.is_synced}
        if verified:
            await self._publish(verified)
        for arrival in arrivals:
            if arrival.refusal is not None:
                raise arrival.refusal
        return len(verified)

    def stop(self) -> None:
        """Cancel what runs in the background."""
        for task in self._tasks:
            task.cancel()

    def _arrive(self, digest: Digest, stored_size: int) -> _Arrival:
        arrival = _Arrival(digest, stored_size, self._store.stage())
        self._arrivals.append(arrival)
        self._staged.add(arrival.staging)
        return arrival

    def _take_in(self, arrival: _Arrival) -> None:
        # Frames wait for others: a hop to a thread costs as much as hashing 200 KiB.
        self._bundle.append(arrival)
        self._bundle_weight += arrival.weight
        if self._bundle_weight >= _BUNDLE_SIZE:
            self._start_bundle()

    def _start_bundle(self) -> None:
        bundle, self._bundle = self._bundle, []
        self._bundle_weight = 0
        if bundle:
            self._tasks.append(self._group.create_task(self._check(bundle)))

    async def _check(self, bundle: list[_Arrival]) -> None:
        unverified = [arrival for arrival in bundle if arrival.row is None]
        if unverified:
            # I6: taken when the frames are whole, so that a slow peer never holds any of it.
            async with self._budget.take(sum(arrival.weight for arrival in unverified)):
                await in_cpu_thread(_verify_all, unverified)
        await in_disk_thread(_settle, [arrival for arrival in bundle if arrival.row is not None])

    async def _publish(self, verified: dict[_Arrival, ChunkRow]) -> None:
        async with self._index.transaction() as transaction:
            live = await transaction.sizes(self._namespace, [row.digest for row in verified.values()])
            # I1: the frame of a live row stays as it is. I2: of any other row it is renamed into place, whatever is there.
            new = {arrival: row for arrival, row in verified.items() if row.digest not in live}
            await self._store.publish(self._namespace, [(row.digest, arrival.staging) for arrival, row in new.items()])
            await transaction.add_chunks(self._namespace, list(new.values()))
            await transaction.refresh(self._namespace, list(live))
        self._staged.difference_update(arrival.staging for arrival in new)


_decoder = per_thread(Decoder)
_content_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, CHUNK_LIMIT)))
_frame_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, FRAME_LIMIT)))


def _verify_all(bundle: list[_Arrival]) -> None:
    for arrival in bundle:
        _verify(arrival, arrival.data)


def _verify(arrival: _Arrival, data: Buffer | None) -> None:
    """Give the frame its row, or the refusal if it does not decode to its digest. Without `data`, it lies in its staging file."""
    with stage(Stage.VERIFY) as verifying:
        if data is None:
            data = _frame_buffer()[: arrival.stored_size]
            arrival.staging.read_into(data)
        try:
            content = _decoder().decode(Frame(arrival.digest, data), _content_buffer())
        except InvalidFrame as refusal:
            arrival.refusal = refusal
        else:
            verifying.add(len(content))
            arrival.row = ChunkRow(arrival.digest, len(content), arrival.stored_size)


def is_intact(frame: Frame) -> bool:
    """Whether a frame decodes to its digest."""
    try:
        _decoder().decode(frame, _content_buffer())
    except InvalidFrame:
        return False
    return True


def _settle(arrivals: Iterable[_Arrival]) -> None:
    with stage(Stage.SYNC):
        for arrival in arrivals:
            if arrival.data is not None:
                _write(arrival, arrival.data)
            arrival.staging.sync()
            arrival.is_synced = True


def _write(arrival: _Arrival, data: Buffer) -> None:
    started = time.perf_counter()
    arrival.staging.write(data)
    part(Stage.WRITE, len(data), time.perf_counter() - started)


def discard_all(staged: Iterable[Staging]) -> None:
    """Remove staging files."""
    for staging in staged:
        staging.discard()
