"""A local repository: a chunk store and an index in this process. It does writes to them in the right order.

`ARCHITECTURE.md` states the invariants I1 to I9 that are cited here.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Never

from blake3 import blake3

from filestore.core.digest import Digest, manifest_digest
from filestore.core.manifest import CHUNK_LIMIT, Manifest
from filestore.core.names import DEFAULT_NAMESPACE, checked_namespace, checked_new_name, shortened
from filestore.core.paths import run_path
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.signing import signed_path
from filestore.errors import (
    Busy,
    DamagedRecord,
    FileInUse,
    InvalidManifest,
    NotFound,
    ReadOnly,
    RecordChanged,
    StorageError,
    UsedAfterFork,
)
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.repository.format_file import read_format
from filestore.repository.full_disk import with_reserve
from filestore.repository.index.protocol import ChunkRow, Index, Transaction, Use
from filestore.repository.ingest import Ingest, discard_all, is_intact
from filestore.repository.listing import listing_file, read_lines
from filestore.repository.maintenance.hold import hold_of
from filestore.repository.maintenance.selection import VersionRule
from filestore.repository.maintenance.versions import list_versions, summary
from filestore.repository.manifest_check import check_chunks
from filestore.repository.protocol import (
    GRACE_SECONDS,
    SIGNED_SECONDS,
    FreedContent,
    Identity,
    Moved,
    Usage,
    VersionPage,
    Wanted,
    closed_error,
    reference_of,
)
from filestore.repository.stores.protocol import ChunkStore, SpaceClaim, Staging
from filestore.system.buffers import Budget
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done, task_group

IN_FLIGHT_LIMIT = 64 << 20
"""The default limit for the bytes that a repository decodes at the same time."""
READ_ONE_IN = 100
"""One frame of so many is read when a push asks whether its chunk is missing."""
_CHECKS = 3
"""How often the chunks of a manifest are checked before the transaction that commits it."""
_REMOVAL_SLICE = 1024
"""The most chunks that are condemned, or removed, in one write transaction."""
_VERIFY_SLICE = 256
"""The most frames that are read in one write transaction."""
_RECORDS_AT_ONCE = 1000
_FAR_FUTURE = 1 << 62
"""A time in microseconds since 1970 that is later than the last-seen time of any chunk."""


class LocalRepository:
    """A repository made of a chunk store and an index in this process, for one namespace.

    Several such objects may share a store, an index and a budget.
    """

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        *,
        location: str,
        namespace: str = DEFAULT_NAMESPACE,
        budget: Budget | None = None,
        signed_seconds: float = SIGNED_SECONDS,
        read_only: bool = False,
    ) -> None:
        """`budget` limits the bytes in flight (I6). The caller must not hold any of it while it waits for a verb.

        `signed_seconds` is how long a signed path is valid. With `read_only`, verbs that write raise ReadOnly. Raises
        InvalidName.
        """
        self.location = location
        self.fingerprint = blake3(f"{location}\0{namespace}".encode(errors="surrogateescape")).hexdigest()
        self._opened_store = store
        self._opened_index = index
        self._pid = os.getpid()
        self._namespace = checked_namespace(namespace)
        self._budget = Budget(IN_FLIGHT_LIMIT) if budget is None else budget
        self._signed_seconds = signed_seconds
        self._read_only = read_only
        self._identity: Identity | None = None
        self._is_closed = False

    def __reduce__(self) -> Never:
        raise TypeError(f"{self.location}: an open repository cannot be sent to another process; open it there by connect()")

    @property
    def _store(self) -> ChunkStore:
        self._check_process()
        return self._opened_store

    @property
    def _index(self) -> Index:
        self._check_process()
        return self._opened_index

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise UsedAfterFork(self.location, self._pid)
        if self._is_closed:
            raise closed_error(self.location)

    @property
    def namespace(self) -> str:
        """The namespace of this object. Unlike the rest of `identity`, it is known without reading from the disk."""
        return self._namespace

    @property
    def waited_seconds(self) -> float | None:
        return None

    async def identity(self) -> Identity:
        if self._is_closed:
            raise closed_error(self.location)
        if self._identity is None:
            repository_id, chunking_version = await read_format(self._store, location=self.location)
            self._identity = Identity(repository_id, self._namespace, chunking_version)
        return self._identity

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return the chunks that must be sent. Look at the frames of the others, so that a push repairs what is lost.

        The kind and size of each of these frames is checked, and one in a hundred is read.
        """
        rows = await self._index.refreshed_rows(self._namespace, digests)
        lost = await self._forget_damaged(await self._suspects(rows))
        present = {row.digest for row in rows}.difference(lost)
        return [digest for digest in dict.fromkeys(digests) if digest not in present]

    async def _suspects(self, rows: Sequence[ChunkRow]) -> list[Digest]:
        """Return the chunks whose frames have another size than their rows state, or were read and are not intact."""
        if not rows:
            return []
        sizes = await self._store.sizes(self._namespace, [row.digest for row in rows])
        suspects = [row.digest for row, size in zip(rows, sizes, strict=True) if size != row.stored_size]
        if len(suspects) < len(rows):
            suspects += await self._damaged_sample(set(suspects), rows)
        return suspects

    async def _damaged_sample(self, known: set[Digest], rows: Sequence[ChunkRow]) -> list[Digest]:
        sample = {row.digest: row for row in rows if random.random() * READ_ONE_IN < 1 and row.digest not in known}  # noqa: S311
        if not sample:
            return []
        damaged = []
        async with self._budget.take(FRAME_LIMIT + CHUNK_LIMIT):
            buffer = memoryview(bytearray(max(row.stored_size for row in sample.values())))
            for digest, row in sample.items():
                try:
                    (frame,) = await self._store.read_into(self._namespace, [digest], buffer)
                except ValueError:  # it has grown since
                    frame = None
                if frame is None or not await in_cpu_thread(_is_intact, row, frame):
                    damaged.append(digest)
        return damaged

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        async with self.space_for(sum(len(frame.data) for frame in frames)), self.ingest() as ingest:
            for frame in frames:
                ingest.add(frame)
            await ingest.commit()
        if moved is not None:
            moved(sum(len(frame.data) for frame in frames))

    def space_for(self, size: int, *, place: Path | None = None) -> AbstractAsyncContextManager[SpaceClaim]:
        """Promise space for `size` bytes during an `async with` block, as `ChunkStore.space_for` does."""
        self._check_writable()
        return self._store.space_for(size, place=place)

    @asynccontextmanager
    async def ingest(self) -> AsyncIterator[Ingest]:
        """Give an `Ingest` for frames that arrive one after the other.

        Frames that are not committed are discarded when the block ends. Raises ReadOnly if the repository is read-only.
        """
        self._check_writable()
        staged: set[Staging] = set()
        try:
            async with task_group() as group:
                ingest = Ingest(self._store, self._index, self._namespace, budget=self._budget, group=group, staged=staged)
                try:
                    yield ingest
                finally:
                    ingest.stop()
        finally:
            if staged:
                await shield_until_done(in_disk_thread(discard_all, staged))

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """Read frames.

        If the frame of a live row is missing in the store, or cannot be read, the row is removed, so that the next push
        sends it.
        """
        try:
            frames = await self._store.read_into(self._namespace, digests, buffer)
        except ValueError:
            # The frame of another chunk may be in the place of a smaller one, and take the space of those that follow.
            wrong = set(await self._damaged(digests))
            if not wrong:
                raise
            intact = [digest for digest in digests if digest not in wrong]
            found = iter(await self._store.read_into(self._namespace, intact, buffer))
            frames = [None if digest in wrong else next(found) for digest in digests]
        await self._forget_lost(digest for digest, frame in zip(digests, frames, strict=True) if frame is None)
        if moved is not None:
            moved(sum(len(frame) for frame in frames if frame is not None))
        return frames

    async def open(self, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Open frames for `sendfile`, in the order of `digests`. The result has None for an absent frame.

        The caller must close each file. The rows of absent frames are removed, as in `get`.
        """
        files = await self._store.open(self._namespace, digests)
        try:
            await self._forget_lost(digest for digest, file in zip(digests, files, strict=True) if file is None)
        except BaseException:
            _close(files)
            raise
        return files

    async def frame_sizes(self, digests: Sequence[Digest]) -> list[int]:
        """Return the size of each frame, in the order of `digests`, or 0 if it is absent. Frames are not opened."""
        sizes = await self._store.sizes(self._namespace, digests)
        await self._forget_lost(digest for digest, size in zip(digests, sizes, strict=True) if not size)
        return sizes

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        async with self._budget.take(FRAME_LIMIT + CHUNK_LIMIT):
            suspects = await self._damaged(digests)
        return await self._forget_damaged(suspects)

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        self._check_writable()
        checked_new_name(name)
        parsed = await in_cpu_thread(Manifest.parse, manifest)
        identity = await self.identity()
        if parsed.chunking_version != identity.chunking_version:
            raise InvalidManifest(
                f"its cutting version is {parsed.chunking_version}, but this repository's is {identity.chunking_version}"
            )
        async with self.space_for(len(parsed.encoded)), self._transaction_for(parsed) as transaction:
            return await self._add_record(transaction, name=name, digest=parsed.digest, size=parsed.size, kind=kind)

    @asynccontextmanager
    async def _transaction_for(self, manifest: Manifest) -> AsyncIterator[Transaction]:
        """Give a transaction in which all chunks of a manifest are live, and the manifest is durable (I2).

        They are checked before the transaction, and their last-seen times are set to now (I9), because a huge manifest takes
        seconds. The transaction checks only whether rows were condemned or removed since. Then it is left, and all is checked
        again. If that happens at each of a few attempts, the check is a part of the transaction.

        Raises ChunksMissing if rows are missing, and InvalidManifest if a size is wrong.
        """
        for _ in range(_CHECKS):
            removals = await self._index.removals(self._namespace)
            await check_chunks(manifest, self._refreshed_sizes)
            await self._store.put_manifest(self._namespace, manifest.digest, manifest.encoded)
            async with self._index.transaction() as transaction:
                # A collection may have removed the manifest, which has no record yet. During this transaction it cannot.
                is_kept = await self._store.has_manifest(self._namespace, manifest.digest)
                if is_kept and removals == await transaction.removals(self._namespace):
                    yield transaction
                    return
        async with self._index.transaction() as transaction:
            await check_chunks(manifest, partial(transaction.sizes, self._namespace))
            await self._store.put_manifest(self._namespace, manifest.digest, manifest.encoded)
            yield transaction

    async def _refreshed_sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        return {row.digest: row.size for row in await self._index.refreshed_rows(self._namespace, digests)}

    async def _add_record(self, transaction: Transaction, *, name: str, digest: Digest, size: int, kind: Kind) -> Record:
        return await transaction.add_record(self._namespace, name=name, digest=digest, size=size, kind=kind)

    async def manifest(self, digest: Digest) -> bytes:
        encoded = await self._store.manifest(self._namespace, digest)
        if encoded is None:
            raise NotFound(str(digest))
        if await in_cpu_thread(manifest_digest, encoded) != digest:
            raise InvalidManifest(f"the stored manifest {digest} is damaged; push the file again")
        return encoded

    async def record(self, wanted: Wanted) -> Record:
        reference = reference_of(wanted)
        record = await self._index.record(self._namespace, reference)
        if record is None and reference.name_otherwise is not None:
            record = await self._index.record(self._namespace, Reference(name=reference.name_otherwise))
        if record is None:
            raise NotFound(str(reference))
        return record

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        return await self._index.records(self._namespace, limit=limit, before=before)

    async def iter_records(self) -> AsyncGenerator[Record, None]:
        with listing_file() as file:
            await self.write_listing(file)
            try:
                async for record in read_lines(file):
                    yield record
            except ValueError as error:
                raise StorageError(self.location, str(error)) from None

    async def write_listing(self, file: BinaryIO) -> None:
        """Replace the content of `file` by the listing of all records that `filestore.repository.listing` describes."""
        await self._index.write_listing(self._namespace, file)

    async def versions(
        self,
        wanted: Wanted,
        *,
        limit: int = 1000,
        before: int | None = None,
        keep_last: int | None = None,
        older_than_seconds: float | None = None,
    ) -> VersionPage:
        reference = reference_of(wanted)
        first = await self.record(reference)
        rule = None
        if keep_last is not None or older_than_seconds is not None:
            rule = VersionRule(keep_last=keep_last, older_than_seconds=older_than_seconds)
        return await list_versions(self._index, self._namespace, reference, first=first, rule=rule, limit=limit, before=before)

    async def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        from filestore.repository.maintenance.usage import measure_freed  # noqa: PLC0415  # heavy: numpy

        return await measure_freed(self._store, self._index, self._namespace, file_ids)

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        from filestore.repository.maintenance.usage import measure_usage  # noqa: PLC0415  # heavy: numpy

        return await measure_usage(
            self._store,
            self._index,
            self._namespace,
            now=time.time_ns() // 1000,
            grace_seconds=GRACE_SECONDS if grace_seconds is None else grace_seconds,
            name_limit=name_limit,
        )

    async def sign(self, file_id: str) -> str:
        record = await self.record(Reference(id=file_id))
        path = f"/{run_path(record.id, shortened(record.name))}"
        expires_at = int(time.time() + self._signed_seconds)
        secret = await self._index.secret()
        return signed_path(secret, "GET", path, namespace=self._namespace, expires_at=expires_at).removeprefix("/")

    async def remove(
        self,
        file_id: str,
        *,
        with_chunks: bool = False,
        force: bool = False,
        updated_at: int | None = None,
        unless_newest: bool = False,
    ) -> Record:
        self._check_writable()

        async def removed() -> Record:
            return await self._remove(
                file_id, with_chunks=with_chunks, force=force, updated_at=updated_at, unless_newest=unless_newest
            )

        return await with_reserve(self._store, removed)

    async def _remove(
        self, file_id: str, *, with_chunks: bool, force: bool, updated_at: int | None, unless_newest: bool
    ) -> Record:
        chunks: dict[Digest, None] = {}
        seen_until = 0
        # Files without a name may need the chunks. A collection removes them after the hold.
        with_chunks = with_chunks and await hold_of(self._index, self._namespace) is None
        if with_chunks:
            chunks = await self._chunks_of(await self.record(Reference(id=file_id)))
            seen_until = await self._keep_needed(chunks, without=file_id)
        async with self._index.transaction() as transaction:
            if with_chunks:
                # Check the records that were committed since. During this transaction none is committed.
                await self._keep_needed(chunks, without=file_id, since=seen_until)
            await self._check_unchanged(file_id, updated_at=updated_at, unless_newest=unless_newest)
            users = [] if force else await transaction.uses_of(self._namespace, file_id)
            if users:
                raise FileInUse(file_id, summary([use.pipeline_name for use in users]))
            record = await transaction.remove_record(self._namespace, file_id)
            if record is None:
                raise NotFound(file_id)
        if with_chunks:
            # The record is gone, so this part alone is repeated on a full disk.
            await with_reserve(self._store, partial(self._remove_unneeded, record, chunks, since=seen_until))
        return record

    async def _remove_unneeded(self, removed: Record, chunks: dict[Digest, None], *, since: int) -> None:
        """Remove those of `chunks` that no record and no other chunk needs, in slices, so that others can write meanwhile.

        Only records with a position after `since` are read: those that were stored since the search began. If this is
        interrupted, a collection removes the rest.
        """
        # I2: first the record, then the rows are condemned, then frame and row are removed.
        waiting = sorted(chunks)
        for start in range(0, len(waiting), _REMOVAL_SLICE):
            since = await self._keep_needed(chunks, without=removed.id, since=since)
            async with self._index.transaction() as transaction:
                # During this transaction no record is stored.
                since = await self._keep_needed(chunks, without=removed.id, since=since)
                unneeded = [digest for digest in waiting[start : start + _REMOVAL_SLICE] if digest in chunks]
                for base in await transaction.needed_bases(self._namespace, unneeded):
                    chunks.pop(base)
                    unneeded.remove(base)
                await transaction.condemn(self._namespace, unneeded, unseen_since=_FAR_FUTURE)
        await self._remove_condemned(removed.digest, list(chunks))

    async def _check_unchanged(self, file_id: str, *, updated_at: int | None, unless_newest: bool) -> None:
        """Check a record before its removal. Call this during a write transaction, so that nobody changes it afterwards."""
        record = await self._index.record(self._namespace, Reference(id=file_id))
        if record is None:
            raise NotFound(file_id)
        if updated_at not in {None, record.updated_at}:
            raise RecordChanged(file_id, "it was stored again since")
        newest = await self._index.record(self._namespace, Reference(name=record.name))
        if unless_newest and newest == record:
            raise RecordChanged(file_id, f"it is now the newest version of {record.name!r}")

    async def uses(self) -> list[Use]:
        """Return all uses of records by pipelines."""
        return await self._index.uses(self._namespace)

    async def ids_of_content(self, digest: Digest) -> list[str]:
        """Return the ids of all records with a digest, the newest first."""
        return await self._index.ids_of_content(self._namespace, digest)

    async def add_uses(self, added: Sequence[Use]) -> None:
        """Record that pipelines use records. Uses of records that do not exist are skipped."""
        async with self._index.transaction() as transaction:
            await transaction.add_uses(self._namespace, added)

    async def remove_uses(self, pipeline_id: str, *, graph_ids: Sequence[str]) -> None:
        """Remove the graphs of a pipeline and all its uses of records, in one transaction. Missing ones do not matter."""

        async def removed() -> None:
            async with self._index.transaction() as transaction:
                for graph_id in graph_ids:
                    await transaction.remove_record(self._namespace, graph_id)
                await transaction.remove_uses(self._namespace, pipeline_id)

        await with_reserve(self._store, removed)

    async def _chunks_of(self, record: Record) -> dict[Digest, None]:
        """Return the chunks that a record needs. Return no chunks if the record was removed meanwhile.

        Raises DamagedRecord if its manifest is missing or damaged, and StorageError.
        """
        try:
            manifest = await in_cpu_thread(Manifest.parse, await self.manifest(record.digest))
        except (NotFound, InvalidManifest) as error:
            # A record is removed before its manifest (I2), and an id is never used again.
            if await self._index.record(self._namespace, Reference(id=record.id)) is None:
                return {}
            how = "missing" if isinstance(error, NotFound) else "damaged"
            raise DamagedRecord(record.id, record.name, f"its manifest {record.digest} is {how}") from error
        return dict.fromkeys(chunk.digest for chunk in manifest.chunks)

    async def _keep_needed(self, chunks: dict[Digest, None], *, without: str, since: int = 0) -> int:
        """Remove from `chunks` each chunk that a record needs. The record with the id `without` does not count.

        Only records with a position after `since` are read. Return the position of the last record that was read.
        """
        while chunks:
            page = await self._index.records_after(self._namespace, since, limit=_RECORDS_AT_ONCE)
            if not page:
                break
            for position, record in page:
                since = position
                if record.id != without:
                    for digest in await self._chunks_of(record):
                        chunks.pop(digest, None)
        return since

    async def _remove_condemned(self, manifest: Digest, chunks: Sequence[Digest]) -> None:
        """Remove each chunk of `chunks` whose row is condemned. Also remove the manifest if no record needs it."""
        for start in range(0, len(chunks), _REMOVAL_SLICE):
            async with self._index.transaction() as transaction:
                condemned = await transaction.condemned(self._namespace, chunks[start : start + _REMOVAL_SLICE])
                # Another chunk may have come that needs one of them.
                needed_bases = set(await transaction.needed_bases(self._namespace, condemned))
                condemned = [digest for digest in condemned if digest not in needed_bases]
                await self._store.remove(self._namespace, condemned)
                await transaction.forget_chunks(self._namespace, condemned)
        async with self._index.transaction():
            if await self._index.record(self._namespace, Reference(digest=manifest)) is None:
                await self._store.remove_manifest(self._namespace, manifest)

    async def close(self) -> None:
        """Close the store and the index, also for other objects that share them. A second call does nothing.

        In a forked child, the parent's files stay open.
        """
        self._is_closed = True
        try:
            await self._opened_store.close()
        finally:
            await self._opened_index.close()

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly(self.location)

    async def _forget_lost(self, absent: Iterable[Digest]) -> None:
        """Remove the rows of chunks whose frames are missing in the store, or cannot be read."""
        asked = list(dict.fromkeys(absent))
        if not asked:
            return
        without_row = set(await self._index.missing(self._namespace, asked))
        await self._forget_damaged([digest for digest in asked if digest not in without_row])

    async def _forget_damaged(self, suspects: Sequence[Digest]) -> list[Digest]:
        """Remove the rows of those chunks whose frames are absent or damaged. Return their digests.

        A repository that was opened for reading removes them only if this process may write. Otherwise it returns
        `suspects`.
        """
        damaged: list[Digest] = []
        for start in range(0, len(suspects), _VERIFY_SLICE):
            part = suspects[start : start + _VERIFY_SLICE]
            try:
                async with self._index.transaction() as transaction:
                    # Another push may have repaired it since. During a write transaction none can.
                    live = await transaction.sizes(self._namespace, part)
                    found = await self._damaged(list(live))
                    await transaction.forget_chunks(self._namespace, found)
                    damaged += found
            except (StorageError, Busy):
                if not self._read_only:
                    raise
                damaged += part
        return damaged

    async def _damaged(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests whose frames are absent or damaged. This needs memory for one frame and one chunk."""
        buffer = memoryview(bytearray(FRAME_LIMIT)) if digests else memoryview(b"")
        damaged = []
        for digest in dict.fromkeys(digests):
            (frame,) = await self._store.read_into(self._namespace, [digest], buffer)
            if frame is None or not await in_cpu_thread(is_intact, Frame(digest, frame)):
                damaged.append(digest)
        return damaged


def _is_intact(row: ChunkRow, frame: memoryview) -> bool:
    if row.frame_digest is not None and blake3(frame).digest() == row.frame_digest:
        return True
    return is_intact(Frame(row.digest, frame))


def _close(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
