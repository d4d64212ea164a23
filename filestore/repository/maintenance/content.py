"""Bring a store and an index into agreement: copy what the store lacks, and forget what cannot be had.

A backup with content does this with its own store and its copy of the index; a restore does it in the other direction.
It can be interrupted at any moment and done again: a frame that is there with the right size is not copied again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.errors import InvalidManifest, LimitExceeded, NotFound, StorageError, StoreRefused
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.ingest import discard_all, is_intact
from filestore.repository.maintenance.pace import Pace
from filestore.repository.manifest_check import read_manifest
from filestore.repository.stores.protocol import ChunkStore, Staging
from filestore.system.threads import in_cpu_thread, in_disk_thread, run_in_parallel, shield_until_done

_PAGE = 1000
_BATCH_SIZE = 32 << 20
_BATCH_COUNT = 256
"""Frames are synced and renamed in batches of at most so many bytes and frames."""
_READ_TOGETHER = 16
_READ_SIZE = 16 << 20
"""So many frames, and bytes of them, are read together from an object store."""


class DamagedFile(NamedTuple):
    """A record that is not whole: its manifest cannot be read, or some of its chunks are missing."""

    record: Record
    missing_count: int
    """The number of missing chunks. 0 if the manifest itself is missing or damaged."""


@dataclass(slots=True)
class ContentCounts:
    """What was done so far."""

    record_count: int = 0
    chunk_count: int = 0
    stored_size: int = 0
    """The chunks that the store has now, and the bytes of their frames."""
    copied_count: int = 0
    copied_size: int = 0
    """The frames and manifests that were copied, and their bytes."""
    forgotten_count: int = 0
    """The chunks that are in neither store."""
    damaged: list[DamagedFile] = field(default_factory=list)
    on_progress: Callable[[], object] = lambda: None


async def complete(
    store: ChunkStore, index: Index, *, source: ChunkStore | None, counts: ContentCounts, rate: int | None = None
) -> None:
    """Give `store` the frames and manifests that `index` names, and make `index` name what `store` has.

    Frames and manifests that `store` lacks are copied from `source`, if it is given. A frame is copied only if it has
    the digest that its row states, or decodes to its chunk. The rows of chunks that `store` then lacks are removed. A
    frame without a row gets one, if a record needs it.

    Nobody else may use `store` for writing, or `index`. `source` may change meanwhile. `rate` is the most bytes per
    second. Memory does not depend on the number of chunks. Raises StorageError, StorageFull.
    """
    pace = Pace(rate)
    for namespace in await index.namespaces():
        copy = _NamespaceCopy(store, index, namespace, source=source, counts=counts, pace=pace)
        await copy.frames()
        await copy.records()


class _NamespaceCopy:
    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        namespace: str,
        *,
        source: ChunkStore | None,
        counts: ContentCounts,
        pace: Pace,
    ) -> None:
        self._store = store
        self._index = index
        self._namespace = namespace
        self._source = source
        self._counts = counts
        self._pace = pace
        self._buffer = memoryview(bytearray(FRAME_LIMIT))
        """The frame of the own store that is being looked at."""
        self._read_together = _READ_TOGETHER if source is not None and source.has_object_ids else 1
        self._read_ahead = memoryview(bytearray(_READ_SIZE if self._read_together > 1 else FRAME_LIMIT))
        """The frames of the source that are being looked at."""

    async def frames(self) -> None:
        """Copy the frames that the store lacks, and correct the rows."""
        after: Digest | None = None
        while page := await self._index.chunk_rows(self._namespace, after, limit=_PAGE):
            after = page[-1].row.digest
            rows = [state.row for state in page if state.is_live]
            sizes = await self._store.sizes(self._namespace, [row.digest for row in rows])
            there = [row for row, size in zip(rows, sizes, strict=True) if size == row.stored_size]
            self._count(there)
            lacking = [row for row, size in zip(rows, sizes, strict=True) if size != row.stored_size]
            # A condemned row means a chunk that no record of this index needs.
            condemned = [state.row.digest for state in page if not state.is_live]
            for start in range(0, len(lacking), _BATCH_COUNT):
                await self._settle(lacking[start : start + _BATCH_COUNT], forget=condemned if not start else [])
            if condemned and not lacking:
                await self._settle([], forget=condemned)

    async def records(self) -> None:
        """Copy the manifests that the store lacks, and find the records that are not whole."""
        async for record in _records(self._index, self._namespace):
            self._counts.record_count += 1
            try:
                encoded = await self._manifest(record.digest)
                missing = None if encoded is None else await self._missing(await in_cpu_thread(Manifest.parse, encoded))
            except (InvalidManifest, LimitExceeded):
                missing = None
            if missing is None or missing:
                self._counts.damaged.append(DamagedFile(record, len(missing or ())))

    async def _settle(self, rows: Sequence[ChunkRow], *, forget: Sequence[Digest]) -> None:
        """Find a frame for each row. Correct the rows whose frame has another size; forget those without a frame."""
        changed: list[ChunkRow] = []
        lost = list(forget)
        staged: list[tuple[Digest, Staging]] = []
        try:
            size = 0
            async for row, frame in self._of_source(rows):
                found = await self._find(row, frame, staged)
                if found is None:
                    lost.append(row.digest)
                    self._counts.forgotten_count += 1
                    continue
                self._count([found])
                if found != row:
                    changed.append(found)
                size += found.stored_size
                if size >= _BATCH_SIZE:
                    await self._publish(staged)
                    size = 0
            await self._publish(staged)
        finally:
            if staged:
                await shield_until_done(in_disk_thread(discard_all, [staging for _, staging in staged]))
        if changed or lost:
            async with self._index.transaction(self._namespace) as transaction:
                await transaction.add_chunks(self._namespace, changed)
                await transaction.forget_chunks(self._namespace, lost)

    async def _of_source(self, rows: Sequence[ChunkRow]) -> AsyncIterator[tuple[ChunkRow, memoryview | None]]:
        """Yield each row with its frame of the source, which is valid until the next one is asked for, or None.

        Several are read together from an object store, each of whose answers takes some time.
        """
        parts = batched_by_size(rows, _read_size, limit=len(self._read_ahead), count_limit=self._read_together)
        for part in parts:
            frames = await self._read_frames(self._source, part, self._read_ahead)
            if frames is not None:
                for row, frame in zip(part, frames, strict=True):
                    yield row, frame
                continue
            for row in part:
                one = await self._read_frames(self._source, [row], self._read_ahead)
                yield row, None if one is None else one[0]

    async def _find(self, row: ChunkRow, frame: memoryview | None, staged: list[tuple[Digest, Staging]]) -> ChunkRow | None:
        """Return the row of the frame that the store has, or that was staged for it. Return None if there is none."""
        found = None if frame is None else await in_cpu_thread(row_of, row, frame)
        if frame is not None and found is not None:
            await self._pace.take(len(frame))
            staging = self._store.new_staging()
            staged.append((row.digest, staging))
            await in_disk_thread(write_frame, staging, frame)
            self._counts.copied_count += 1
            self._counts.copied_size += len(frame)
            self._counts.on_progress()
            return found
        # A push may have stored the chunk again with another codec.
        own = await self._read_frames(self._store, [row], self._buffer)
        return None if own is None or own[0] is None else await in_cpu_thread(row_of, row, own[0])

    async def _publish(self, staged: list[tuple[Digest, Staging]]) -> None:
        if not staged:
            return
        await in_disk_thread(run_in_parallel, lambda each: self._store.sync(self._namespace, [each]), staged)
        await self._store.publish(self._namespace, staged)
        staged.clear()

    async def _manifest(self, digest: Digest) -> bytes | None:
        """Return the manifest, and copy it if the store has none that is intact. Return None if there is none."""
        kept = await self._intact_manifest(self._store, digest)
        if kept is not None or self._source is None:
            return kept
        encoded = await self._intact_manifest(self._source, digest)
        if encoded is not None:
            await self._pace.take(len(encoded))
            await self._store.put_manifest(self._namespace, digest, encoded)
            self._counts.copied_count += 1
            self._counts.copied_size += len(encoded)
            self._counts.on_progress()
        return encoded

    async def _intact_manifest(self, store: ChunkStore, digest: Digest) -> bytes | None:
        try:
            return await read_manifest(store, self._namespace, digest)
        except StoreRefused:
            raise
        except (NotFound, InvalidManifest, StorageError):
            return None  # what cannot be read is damaged

    async def _missing(self, manifest: Manifest) -> list[Digest]:
        """Return the chunks of a manifest that the store lacks. Add rows for those that it has without a row."""
        missing: list[Digest] = []
        for start in range(0, len(manifest.chunks), _PAGE):
            part = dict(manifest.chunks[start : start + _PAGE])
            absent = await self._index.missing(self._namespace, list(part))
            sizes = await self._store.sizes(self._namespace, absent)
            found = [digest for digest, size in zip(absent, sizes, strict=True) if size]
            missing += [digest for digest, size in zip(absent, sizes, strict=True) if not size]
            if self._source is not None:
                # The copy of the index has no row, for example because damage was found since. The source may have it.
                sizes = await self._source.sizes(self._namespace, missing)
                found += [digest for digest, size in zip(missing, sizes, strict=True) if size]
                missing = [digest for digest, size in zip(missing, sizes, strict=True) if not size]
            before = self._counts.forgotten_count
            await self._settle([ChunkRow(digest, part[digest], -1) for digest in found], forget=[])
            if self._counts.forgotten_count != before:
                self._counts.forgotten_count = before
                missing += await self._index.missing(self._namespace, found)
        return missing

    async def _read_frames(
        self, store: ChunkStore | None, rows: Sequence[ChunkRow], buffer: memoryview
    ) -> list[memoryview | None] | None:
        """Return the frames of chunks, each None if it is absent. Return None if not all can be read together."""
        if store is None:
            return [None] * len(rows)
        try:
            return await store.read_into(self._namespace, [row.digest for row in rows], buffer)
        except StoreRefused:
            raise
        except (StorageError, ValueError):
            return None  # what cannot be read, or is larger than a frame, is damaged

    def _count(self, rows: Sequence[ChunkRow]) -> None:
        self._counts.chunk_count += len(rows)
        self._counts.stored_size += sum(row.stored_size for row in rows)


async def replace_manifest(store: ChunkStore, index: Index, namespace: str, digest: Digest, encoded: bytes) -> None:
    """Store the manifest of a record whose manifest is missing or damaged. Raises StorageError, StorageFull, Busy."""
    if not store.has_object_ids:
        # A collection removes manifests without a record inside a write transaction.
        async with index.transaction(namespace):
            await store.put_manifest(namespace, digest, encoded)
        return
    object_id = await store.put_manifest(namespace, digest, encoded)
    async with index.transaction(namespace) as transaction:
        # The object that the row named has no name from now on, and is removed as abandoned.
        await transaction.forget_manifest(namespace, digest)
        await transaction.keep_manifest(namespace, ObjectName(digest, object_id))


async def _records(index: Index, namespace: str) -> AsyncIterator[Record]:
    position = 0
    while page := await index.records_after(namespace, position, limit=_PAGE):
        for found in page:
            yield found.record
        position = page[-1].position


def _read_size(row: ChunkRow) -> int:
    return row.stored_size if 0 < row.stored_size <= FRAME_LIMIT else FRAME_LIMIT


def row_of(row: ChunkRow, frame: memoryview) -> ChunkRow | None:
    """Return the row for a frame of the chunk of `row`. Return None if the frame is damaged."""
    frame_digest = Digest(blake3(frame).digest())
    is_known = len(frame) == row.stored_size and row.frame_digest == frame_digest
    if not is_known and not is_intact(Frame(row.digest, frame)):
        return None
    return ChunkRow(row.digest, row.size, len(frame), frame_digest)


def write_frame(staging: Staging, frame: memoryview) -> None:
    """Write a whole frame. Blocks."""
    staging.write(frame)
    staging.rest()
