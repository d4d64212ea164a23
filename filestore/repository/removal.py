"""Remove a record, and at once the chunks that only this record needs. Without the second, a collection removes them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import DamagedRecord, FileInUse, InvalidManifest, NotFound, RecordChanged, VersionLabelled
from filestore.repository.full_disk import with_reserve
from filestore.repository.index.protocol import Index, Transaction
from filestore.repository.maintenance.hold import hold_of
from filestore.repository.maintenance.versions import summary
from filestore.repository.manifest_batches import read_of_records
from filestore.repository.manifest_check import read_manifest
from filestore.repository.stores.protocol import ChunkStore
from filestore.repository.unneeded import Unneeded
from filestore.system.threads import in_cpu_thread

_SLICE = 1024
"""The most chunks that are condemned in one write transaction."""
_REMOVED_AT_ONCE = 256
_MANIFEST_ATTEMPTS = 3
"""The most chunks whose frames are removed in one write transaction."""
_RECORDS_AT_ONCE = 1000
_READ_CHUNKS = 16384
"""A transaction reads no more records after those that have so many chunks."""
_FAR_FUTURE = 1 << 62
"""A time in microseconds since 1970 that is later than the last-seen time of any chunk."""


async def remove_record(
    store: ChunkStore,
    index: Index,
    namespace: str,
    file_id: str,
    *,
    with_chunks: bool,
    force: bool,
    updated_at: int | None,
    unless_newest: bool,
) -> Record:
    """Do what `Repository.remove` does. Call it again if it raises StorageFull: nothing was removed then."""
    chunks = UnneededChunks(store, index, namespace, without=file_id)
    # Files without a name may need the chunks. A collection removes them after the hold.
    with_chunks = with_chunks and await hold_of(index, namespace) is None
    if with_chunks:
        await chunks.find()
    async with chunks.transaction() if with_chunks else index.transaction(namespace) as transaction:
        await _check_unchanged(index, namespace, file_id, updated_at=updated_at, unless_newest=unless_newest)
        users = [] if force else await transaction.uses_of(namespace, file_id)
        if users:
            raise FileInUse(file_id, summary([use.pipeline_name for use in users]))
        labels = [] if force else await transaction.labels_of(namespace, file_id)
        if labels:
            raise VersionLabelled(file_id, summary(labels))
        record = await transaction.remove_record(namespace, file_id)
        if record is None:
            raise NotFound(file_id)
    if with_chunks:
        # The record is gone, so this part alone is repeated on a full disk.
        await with_reserve(store, partial(chunks.remove, record.digest))
    return record


async def _check_unchanged(index: Index, namespace: str, file_id: str, *, updated_at: int | None, unless_newest: bool) -> None:
    """Check a record before its removal. Call this during a write transaction, so that nobody changes it afterwards."""
    record = await index.record(namespace, Reference(id=file_id))
    if record is None:
        raise NotFound(file_id)
    if updated_at not in {None, record.updated_at}:
        raise RecordChanged(file_id, "it was stored again since")
    newest = await index.record(namespace, Reference.of_name(record.full_name))
    if unless_newest and newest == record:
        raise RecordChanged(file_id, f"it is now the newest version of {record.full_name!r}")


class UnneededChunks:
    """The chunks of one record that no other record needs."""

    def __init__(self, store: ChunkStore, index: Index, namespace: str, *, without: str) -> None:
        """`without` is the id of the record."""
        self._store = store
        self._index = index
        self._namespace = namespace
        self._without = without
        self._chunks: dict[Digest, None] = {}
        self._since = 0
        """The position of the last record that was read."""

    async def find(self) -> None:
        """Find the chunks. Raises NotFound if the record does not exist, DamagedRecord and StorageError."""
        record = await self._index.record(self._namespace, Reference(id=self._without))
        if record is None:
            raise NotFound(self._without)
        manifest = await self._manifest_of(record)
        if manifest is not None:
            self._chunks = dict.fromkeys(chunk.digest for chunk in manifest.chunks)
        await self.leave_out_needed()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Begin a transaction in which the chunks that records need are left out.

        It is begun again after records with many chunks were stored meanwhile, since others wait for it. This ends, because
        such a record is read faster than it is stored.
        """
        is_done = False
        while not is_done:
            await self.leave_out_needed()
            async with self._index.transaction(self._namespace) as transaction:
                # During this transaction no record is stored.
                is_done = await self.leave_out_needed(chunk_limit=_READ_CHUNKS)
                if is_done:
                    yield transaction

    async def leave_out_needed(self, *, chunk_limit: float = math.inf) -> bool:
        """Leave out the chunks that records need. Only records that were stored since the last call are read.

        Return False after records that together have `chunk_limit` chunks: more may follow.
        """
        count = 0
        while self._chunks:
            page = await self._index.records_after(self._namespace, self._since, limit=_RECORDS_AT_ONCE)
            if not page:
                break
            others = (found for found in page if found.record.id != self._without)
            async for batch in read_of_records(others, self._manifest_of, chunk_limit=chunk_limit):
                for _, manifest in batch:
                    for chunk in () if manifest is None else manifest.chunks:
                        count += 1
                        self._chunks.pop(chunk.digest, None)
                # Last: after an error, these records are read again.
                self._since = batch[-1][0].position
                if count >= chunk_limit:
                    return False
            self._since = page[-1].position
        return True

    async def remove(self, manifest: Digest) -> None:
        """Remove the chunks, in slices, so that others can write meanwhile. Also remove the manifest if no record needs it.

        Call this after the record was removed. If this is interrupted, a collection removes the rest.
        """
        # I2: first the record, then the rows are condemned, then frame and row are removed.
        waiting = sorted(self._chunks)
        for start in range(0, len(waiting), _SLICE):
            async with self.transaction() as transaction:
                free = [digest for digest in waiting[start : start + _SLICE] if digest in self._chunks]
                for base in await transaction.needed_bases(self._namespace, free):
                    self._chunks.pop(base)
                    free.remove(base)
                await transaction.condemn(self._namespace, free, unseen_since=_FAR_FUTURE)
        await self._remove_condemned(list(self._chunks))
        unneeded = Unneeded(self._store, self._namespace)
        async with self._index.transaction(self._namespace) as transaction:
            if await self._index.record(self._namespace, Reference(digest=manifest)) is None:
                await unneeded.remove_manifest(transaction, manifest)
        await unneeded.remove_objects()

    async def _remove_condemned(self, chunks: Sequence[Digest]) -> None:
        """Remove each chunk of `chunks` whose row is condemned."""
        for start in range(0, len(chunks), _REMOVED_AT_ONCE):
            unneeded = Unneeded(self._store, self._namespace)
            async with self._index.transaction(self._namespace) as transaction:
                condemned = await transaction.condemned(self._namespace, chunks[start : start + _REMOVED_AT_ONCE])
                # Another chunk may have come that needs one of them.
                needed_bases = set(await transaction.needed_bases(self._namespace, condemned))
                condemned = [digest for digest in condemned if digest not in needed_bases]
                await unneeded.remove_frames(transaction, condemned)
            await unneeded.remove_objects()

    async def _manifest_of(self, record: Record) -> Manifest | None:
        """Return the manifest of a record. Return None if the record was removed meanwhile, and no other one has this manifest.

        Raises DamagedRecord if its manifest is missing or damaged, and StorageError.
        """
        for _ in range(_MANIFEST_ATTEMPTS):
            try:
                encoded = await read_manifest(self._store, self._namespace, record.digest)
                return await in_cpu_thread(Manifest.parse, encoded)
            except (NotFound, InvalidManifest) as error:
                how = "missing" if isinstance(error, NotFound) else "damaged"
            # A record is removed before its manifest (I2), and an id is never used again.
            if await self._index.record(self._namespace, Reference(id=record.id)) is not None:
                break
            # The manifest is read for one of its records only.
            others = [each for each in await self._index.ids_of_content(self._namespace, record.digest) if each != self._without]
            if not others:
                return None
            record = await self._index.record(self._namespace, Reference(id=others[0])) or record
        raise DamagedRecord(record.id, record.full_name, f"its manifest {record.digest} is {how}")
