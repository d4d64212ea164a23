"""Receive frames: write them to staging, verify and sync them, and commit them to a store and an index."""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Collection, Container, Iterable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass

from blake3 import blake3

from filestore.core.digest import Buffer, Digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.core.object_names import ObjectName
from filestore.core.quotas import NO_QUOTA, Quota
from filestore.core.unlocked import unlocked
from filestore.errors import (
    InvalidFrame,
)
from filestore.format.codec import FRAME_LIMIT, HEADER_SIZE, CheckedFrame, Codec, Decoder, Frame, check_frame, decoded_size
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.quota_check import check_stored
from filestore.repository.stores.protocol import ChunkStore, Placement, Staging
from filestore.repository.unneeded import remove_duplicates
from filestore.system.buffers import Budget
from filestore.system.metrics import Event, Stage, count, part, span
from filestore.system.threads import (
    calls_ended,
    disk_threads,
    in_cpu_thread,
    in_thread,
    per_thread,
    shield_until_done,
    thread_pool,
)

_VERIFY_GROUP_SIZE = 4 << 20
"""Frames are verified and synced in groups of about this many bytes. Decoded bytes are added if they are not verified yet."""
_SETTLED_AT_ONCE = 16
"""How many groups are put into an object store at the same time."""
PUBLISHED_AT_ONCE = 64
"""The most frames of a verify group, and the most that one transaction makes visible."""


@dataclass(slots=True, eq=False)
class _IncomingFrame:
    """A frame that is being received."""

    digest: Digest
    stored_size: int
    staging: Staging
    header: bytes = b""
    """The first 8 bytes of the frame, as far as they have arrived."""
    received: int = 0
    data: Buffer | None = None
    """The whole frame, if it did not arrive piece by piece."""
    row: ChunkRow | None = None
    """The row for the index. None until the frame is verified."""
    is_synced: bool = False
    refusal: InvalidFrame | None = None

    @property
    def weight(self) -> int:
        """How many bytes of memory are needed to verify the frame, calculated from its header, if it is not verified yet.

        A frame with an invalid header is refused before memory is used.
        """
        if self.row is not None:
            return self.stored_size
        try:
            return self.stored_size + decoded_size(self.header, digest=self.digest)
        except InvalidFrame:
            return self.stored_size


class Ingest:
    """Receives frames from one connection. It verifies (I4) and syncs them in the background while more arrive.

    Frames are received one at a time. Call `start`, then `write` until the frame is whole, both in a thread; then
    `submit` in the event loop. A frame that is written in one piece is verified at once, while it is in the processor's
    cache. For a frame in memory, call `add` instead. `commit` makes the verified frames visible. Do not use one object
    from two places at the same time.

    If the disk fails, the block that uses the object is cancelled and raises StorageError or StorageFull.
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
        quota: Quota = NO_QUOTA,
    ) -> None:
        """Prepare to receive frames. `staged` is a set that belongs to the caller.

        It always contains the staging files that the caller must discard at the end. `quota` is that of the namespace.
        """
        self._store = store
        self._index = index
        self._namespace = namespace
        self._budget = budget
        self._group = group
        self._staged = staged
        self._quota = quota
        self._incoming_frames: list[_IncomingFrame] = []
        self._current: _IncomingFrame | None = None
        self._whole: list[_IncomingFrame] = []
        self._verify_group: list[_IncomingFrame] = []
        self._verify_group_weight = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: list[Future[None]] = []
        """The syncs of frames that are verified."""
        self._loop = asyncio.get_running_loop()

    def start(self, digest: Digest, stored_size: int) -> None:
        """Start the next frame. If the frame before is not complete, it is never stored."""
        if self._current is not None:
            self._current.staging.rest()
        incoming = self._new_frame(digest, stored_size)
        if stored_size > FRAME_LIMIT:
            incoming.refusal = InvalidFrame(str(digest), f"it has {stored_size} bytes; allowed are {FRAME_LIMIT}")
        self._current = incoming

    def write(self, piece: Buffer) -> None:
        """Write the next bytes of the current frame to its staging file (I6). Blocks.

        Pieces may have any size. The caller may reuse `piece` afterwards. Raises StorageError, StorageFull.
        """
        incoming = self._current
        if incoming is None or incoming.received + len(piece) > incoming.stored_size:
            raise ValueError("these bytes belong to a frame that was not started")
        incoming.received += len(piece)
        if len(incoming.header) < HEADER_SIZE:
            incoming.header += bytes(memoryview(piece)[: HEADER_SIZE - len(incoming.header)])
        is_whole = len(piece) == incoming.stored_size
        if incoming.refusal is None and is_whole:
            _verify(incoming, piece)
        if incoming.refusal is None and len(piece):
            _write(incoming, piece)
        if incoming.received == incoming.stored_size:
            incoming.staging.rest()
            self._current = None
            self._whole.append(incoming)

    def write_whole(self, frames: Sequence[tuple[Digest, memoryview]]) -> None:
        """Verify frames that have arrived whole, and write them to their staging files. Blocks.

        It is as `start` and `write` for each, and costs less: most frames arrive like this, and what Python does between the
        calls that give up the interpreter's lock limits how many frames a process receives. The caller may reuse the memory
        afterwards. Raises StorageError, StorageFull.
        """
        if self._current is not None:
            raise ValueError("a frame was started, and is not complete")
        new_staging = self._store.new_staging
        incoming_frames = [_IncomingFrame(digest, len(data), new_staging()) for digest, data in frames]
        self._incoming_frames += incoming_frames
        self._staged.update([incoming.staging for incoming in incoming_frames])
        wholes = [data for _, data in frames]
        with span(Stage.VERIFY, times=len(frames)) as verifying:
            verifying.add(_verify_whole(incoming_frames, wholes))
            began = time.perf_counter()
            intact = [each for each in zip(incoming_frames, wholes, strict=True) if each[0].row is not None]
            for incoming, data in intact:
                incoming.staging.write(data)
                incoming.staging.rest()
                self._whole.append(incoming)
            part(Stage.WRITE, sum(len(data) for _, data in intact), time.perf_counter() - began, times=len(intact))

    def submit(self) -> None:
        """Start to verify and sync the frames that are complete."""
        whole, self._whole = self._whole, []
        for incoming in whole:
            if incoming.refusal is None:
                self._add_to_group(incoming)
        self._start_large_group()

    def add(self, frame: Frame) -> None:
        """Add a complete frame. The caller must keep its memory unchanged until `commit` returns or the block ends."""
        incoming = self._new_frame(frame.digest, len(frame.data))
        incoming.header = bytes(frame.data[:HEADER_SIZE])
        incoming.data = frame.data
        self._add_to_group(incoming)

    async def commit(self) -> int:
        """Wait until all complete frames are verified, and make them visible, durably. Return their number.

        If frames were refused, the others are stored, and then InvalidFrame is raised for the first refused frame. Raises
        QuotaExceeded if the namespace would keep more than its quota permits. Some frames may be stored before that.
        """
        self.submit()
        self._start_verify_group()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await calls_ended(self._calls)
        for call in self._calls:
            call.result()
        incoming_frames, self._incoming_frames = self._incoming_frames, []
        verified = {incoming: incoming.row for incoming in incoming_frames if incoming.row is not None and incoming.is_synced}
        waiting = list(verified.items())
        # In slices, because others wait for each transaction. If one fails, the slices before it stay: they are complete.
        for start in range(0, len(waiting), PUBLISHED_AT_ONCE):
            await self._publish(dict(waiting[start : start + PUBLISHED_AT_ONCE]))
        for incoming in incoming_frames:
            if incoming.refusal is not None:
                raise incoming.refusal
        return len(verified)

    async def stop(self) -> None:
        """Cancel the background work. When this returns or raises, no thread syncs a frame any more."""
        for task in self._tasks:
            task.cancel()
        running = [call for call in self._calls if not call.cancel()]
        if not all(call.done() for call in running):
            await shield_until_done(calls_ended(running))

    def _new_frame(self, digest: Digest, stored_size: int) -> _IncomingFrame:
        incoming = _IncomingFrame(digest, stored_size, self._store.new_staging())
        self._incoming_frames.append(incoming)
        self._staged.add(incoming.staging)
        return incoming

    def _add_to_group(self, incoming: _IncomingFrame) -> None:
        # Collect frames first, because a change of threads costs as much as hashing 200 KiB.
        self._verify_group.append(incoming)
        self._verify_group_weight += incoming.weight
        # A frame that is verified needs no memory any more. Those of a slice are synced together.
        if incoming.row is None:
            self._start_large_group()

    def _start_large_group(self) -> None:
        if self._verify_group_weight >= _VERIFY_GROUP_SIZE or len(self._verify_group) >= PUBLISHED_AT_ONCE:
            self._start_verify_group()

    def _start_verify_group(self) -> None:
        verify_group, self._verify_group = self._verify_group, []
        self._verify_group_weight = 0
        verified = [incoming for incoming in verify_group if incoming.row is not None]
        if len(verified) < len(verify_group):
            self._tasks.append(self._group.create_task(self._check(verify_group)))
        elif verified:
            # Not a task for each: the loop has nothing to do until all are synced, or one fails.
            call = self._settling_threads().submit(_settle, self._store, self._namespace, verified)
            self._calls.append(call)
            call.add_done_callback(self._note_end)

    def _note_end(self, call: Future[None]) -> None:
        """End the block that uses this object if a sync has failed. This runs in a thread."""
        failure = None if call.cancelled() else call.exception()
        if failure is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._fail, failure)

    def _fail(self, failure: BaseException) -> None:
        raising = _raise(failure)
        try:
            self._group.create_task(raising)
        except RuntimeError:  # the block has ended
            raising.close()

    async def _check(self, verify_group: list[_IncomingFrame]) -> None:
        unverified = [incoming for incoming in verify_group if incoming.row is None]
        if unverified:
            # I6: the budget is taken when the frames are whole, so that a slow peer never holds any of it.
            async with self._budget.take(sum(incoming.weight for incoming in unverified)):
                await in_cpu_thread(_verify_all, unverified)
        intact = [incoming for incoming in verify_group if incoming.row is not None]
        await in_thread(self._settling_threads(), _settle, self._store, self._namespace, intact)

    def _settling_threads(self) -> Executor:
        # Requests take far longer than a disk, and what is sent to clients needs the threads of a disk too.
        return thread_pool("settling", _SETTLED_AT_ONCE) if self._store.has_object_ids else disk_threads()

    async def _publish(self, verified: dict[_IncomingFrame, ChunkRow]) -> None:
        staged = {row.digest: incoming.staging for incoming, row in verified.items()}
        rows = {row.digest: row for row in verified.values()}
        if self._store.has_object_ids:
            rows = {digest: row._replace(object_id=staged[digest].object_id) for digest, row in rows.items()}
        placement = self._store.placement(self._namespace, list(staged.items()))
        new = await self._index.publish(FramePublication(self._namespace, list(rows.values()), placement, self._quota))
        self._staged.difference_update(staged[row.digest] for row in new)
        if self._store.has_object_ids:
            unneeded = rows.keys() - {row.digest for row in new}
            names = [ObjectName(digest, rows[digest].object_id) for digest in unneeded]
            await remove_duplicates(self._store, self._namespace, frames=names)
        _count_stored(new)


class FramePublication:
    """The frames of one transaction."""

    def __init__(self, namespace: str, rows: Sequence[ChunkRow], placement: Placement, quota: Quota) -> None:
        self.namespace = namespace
        self.rows = rows
        self.is_limited = quota.stored_size is not None
        self._placement = placement
        self._quota = quota

    def prepare(self) -> None:
        self._placement.prepare()

    def check(self, stored_size: int) -> None:
        check_stored(self.namespace, self._quota, stored_size)

    def rename(self, digests: Container[Digest]) -> None:
        self._placement.rename(digests)

    def sync(self) -> None:
        self._placement.sync()

    def close(self) -> None:
        self._placement.close()


async def _raise(failure: BaseException) -> None:
    raise failure


_decoder = per_thread(Decoder)
_content_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, CHUNK_LIMIT)))
_frame_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, FRAME_LIMIT)))


def _count_stored(rows: Collection[ChunkRow]) -> None:
    sizes = [(row.size, row.stored_size) for row in rows]
    count(Event.CHUNKS_STORED, amount=len(sizes))
    count(Event.CHUNKS_STORED_SIZE, amount=sum([size for size, _ in sizes]))
    count(Event.FRAMES_STORED_SIZE, amount=sum([stored_size for _, stored_size in sizes]))
    # The frame of a chunk that cannot be compressed is a little larger than the chunk.
    count(Event.ENCODING_SAVED_SIZE, amount=sum([size - stored_size for size, stored_size in sizes if size > stored_size]))


def _verify_all(verify_group: list[_IncomingFrame]) -> None:
    for incoming in verify_group:
        _verify(incoming, incoming.data)


def _verify(incoming: _IncomingFrame, data: Buffer | None) -> None:
    """Verify a frame. If its content has its digest, set `row`. Otherwise set `refusal`.

    If `data` is None, the frame is read from its staging file.
    """
    with span(Stage.VERIFY) as verifying:
        if data is None:
            data = _frame_buffer()[: incoming.stored_size]
            incoming.staging.read_into(data)
        verifying.add(_verify_whole([incoming], [data]))


def _verify_whole(incoming_frames: Sequence[_IncomingFrame], wholes: Sequence[Buffer]) -> int:
    """Verify frames, and set `row` or `refusal` of each. Return the decoded size of those with a row.

    All are checked before the first one is decoded: to decode a frame empties the processor's cache, and what Python does next is
    then several times as slow.
    """
    decoder, scratch = _decoder(), _content_buffer()
    checked_frames: list[tuple[_IncomingFrame, CheckedFrame, Buffer]] = []
    for incoming, data in zip(incoming_frames, wholes, strict=True):
        try:
            checked_frames.append((incoming, check_frame(Frame(incoming.digest, data)), data))
        except InvalidFrame as refusal:
            incoming.refusal = refusal
    verified = []
    for incoming, checked, data in checked_frames:
        try:
            decoder.decode_checked(checked, scratch)
        except InvalidFrame as refusal:
            incoming.refusal = refusal
        else:
            verified.append((incoming, checked.size, frame_digest(data)))
    for incoming, size, digest in verified:
        incoming.row = ChunkRow(incoming.digest, size, incoming.stored_size, digest)
    return sum(size for _, size, _ in verified)


def frame_digest(data: Buffer) -> Digest | None:
    """Return the BLAKE3 of an intact frame, by which a check verifies it later without decoding it.

    Return None for a raw frame: to verify its content costs as much as to hash the frame.
    """
    return None if data[0] == Codec.RAW else Digest(unlocked(blake3, data).digest())


def is_intact(frame: Frame) -> bool:
    """Return whether a frame can be decoded to content with its digest."""
    try:
        _decoder().decode(frame, _content_buffer())
    except InvalidFrame:
        return False
    return True


def _settle(store: ChunkStore, namespace: str, incoming_frames: Sequence[_IncomingFrame]) -> None:
    with span(Stage.SYNC):
        for incoming in incoming_frames:
            if incoming.data is not None:
                _write(incoming, incoming.data)
        store.sync(namespace, [(incoming.digest, incoming.staging) for incoming in incoming_frames])
        for incoming in incoming_frames:
            incoming.is_synced = True


def _write(incoming: _IncomingFrame, data: Buffer) -> None:
    started = time.perf_counter()
    incoming.staging.write(data)
    part(Stage.WRITE, len(data), time.perf_counter() - started)


def discard_all(staged: Iterable[Staging]) -> None:
    """Discard all these staging files."""
    for staging in staged:
        staging.discard()
