"""Collection: remove the chunks, frames and manifests that no record needs any more.

It marks and sweeps one namespace after the other, while pushes, removals and other collections go on (I2, I9):

1. Mark: read the manifests of all records into a filter of digests, whose size has a limit.
2. Sweep the rows in the order of their digests, in pages. One transaction marks what was stored since, and condemns the
   rows of a page that are not in the filter, and that no push has used during the grace period. A second transaction
   removes the frames and rows that are still condemned. Before both, a killed collection leaves condemned rows, which
   the next one removes.
3. Remove frames that have no row, and manifests that have no record. Both are made only inside of write transactions,
   together with what they need, so what has neither inside of a transaction is left over.

What a filter keeps by chance, the next pass removes, because each pass has a salt of its own.

Source: Douglis et al., "The Logic of Physical Garbage Collection in Deduplicating Storage", FAST 2017.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any

from filestore.core.batches import in_batches
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import DamagedRecord, InvalidDigest, InvalidManifest, LimitExceeded, StorageError
from filestore.repository.index.protocol import ChunkState, Index, Transaction
from filestore.repository.maintenance.collection_plan import TASK
from filestore.repository.maintenance.digest_filter import DigestFilter
from filestore.repository.maintenance.hold import hold_of
from filestore.repository.maintenance.policy import apply_policy, old_versions
from filestore.repository.maintenance.results import Outcome, ResultKind, kept
from filestore.repository.manifest_batches import read_of_records, read_together
from filestore.repository.protocol import GRACE_SECONDS
from filestore.repository.stores.protocol import ChunkStore
from filestore.repository.unneeded import Unneeded
from filestore.system.threads import in_cpu_thread

_ROWS_AT_ONCE = 2048
_REMOVED_AT_ONCE = 256
"""How many frames are removed in one transaction, for which all writers wait."""
_RECORDS_AT_ONCE = 500
_MARKED_CHUNKS = 16384
"""A transaction marks no more records after those that have so many chunks."""
_SMALL_FILTER = 16 << 20
_MANIFEST_ATTEMPTS = 3
_SECOND = 1_000_000
_SKIPPED_MICROSECONDS = 3600 * _SECOND
"""`Transaction.refresh` leaves times that are at most this old. So a chunk may have been used up to an hour after it."""
_DIGEST_SPACE = 1 << 64

Stop = Callable[[], bool]


@dataclass(slots=True)
class Freed:
    """A number of things, and the bytes that they take in the store."""

    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        """Count one more."""
        self.count += 1
        self.size += size


@dataclass(slots=True)
class CollectionReport:
    """What a collection of one namespace has removed and why; in a dry run, what one would remove."""

    namespace: str
    old_versions: int = 0
    """How many records the policy of the namespace removed."""
    removed_files: Freed = field(default_factory=Freed)
    """Chunks of files that were removed, which no other file needs."""
    abandoned_pushes: Freed = field(default_factory=Freed)
    """Chunks of pushes that ended before their file was recorded."""
    frames_without_rows: Freed = field(default_factory=Freed)
    """Frames that the index does not know, left by a crash."""
    manifests: Freed = field(default_factory=Freed)
    """Manifests of files that were removed."""
    waiting: Freed = field(default_factory=Freed)
    """Chunks that no file needs, and that a push has used during the grace period. A later collection removes them."""
    kept: Freed = field(default_factory=Freed)
    """Chunks that stay."""
    is_complete: bool = False

    @property
    def freed(self) -> Freed:
        """What was removed in all."""
        parts = (self.removed_files, self.abandoned_pushes, self.frames_without_rows, self.manifests)
        return Freed(sum(part.count for part in parts), sum(part.size for part in parts))

    def summary(self) -> str:
        """Return what was removed, in one line."""
        parts = {
            "chunks of removed files": self.removed_files,
            "chunks of abandoned pushes": self.abandoned_pushes,
            "frames without a row": self.frames_without_rows,
            "manifests of removed files": self.manifests,
        }
        words = [f"{part.count} {name}" for name, part in parts.items() if part.count]
        if self.old_versions:
            words.append(f"{self.old_versions} old versions")
        return f"{', '.join(words) or 'nothing'}; {self.freed.size} bytes"

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {**asdict(self), "freed": asdict(self.freed)}


class Collection:
    """One pass over one namespace. Make an object for each pass. A pass that failed may be run again."""

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        namespace: str,
        *,
        grace_seconds: float = GRACE_SECONDS,
        dry_run: bool = False,
        rate: float | None = None,
        stop: Stop = lambda: False,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`rate` is how many chunks a second are looked at. `stop` is asked between two pages whether to end early.

        With `dry_run`, nothing is written, and the index may be open for reading only.
        """
        self._store = store
        self._index = index
        self._namespace = namespace
        self._grace = int(grace_seconds * _SECOND)
        self._dry_run = dry_run
        self._rate = rate
        self._stop = stop
        self._now = now
        self._state: dict[str, Any] = {}
        """What is kept of this task in the index."""
        self._old: set[str] = set()
        """The ids of the records that the policy removes after the mark, or would remove."""
        self._position = 0
        """The position of the last record whose chunks are marked."""
        self._needed = DigestFilter(0)
        """The chunks and manifests of records."""
        self._removed = DigestFilter(0)
        """The chunks of manifests without a record: they belonged to files that were removed."""
        self._waiting = DigestFilter(0)
        """The chunks that no record needs, and that stay for now."""
        self._blocked = 0
        """How many chunks stay only because another chunk needs them, which may have been removed since."""
        self.report = CollectionReport(namespace)

    async def run(self) -> CollectionReport:
        """Collect. What an interrupted collection had left to do is done first.

        Raises DamagedRecord, and removes nothing more, if the manifest of a record is missing or damaged: nobody knows
        what the record needs. Raises CollectionHeld, and removes nothing, if the collection is held; a dry run goes on.
        Raises InvalidInput if the policy of the namespace is not valid; StorageError, Busy.

        The result is kept in the index, and also that of a collection that failed.
        """
        if self._dry_run:
            return await self._run()
        async with kept(self._index, self._namespace, ResultKind.COLLECTION, now=self._now) as attempt:
            attempt.facts = self._facts
            report = await self._run()
            if not report.is_complete:
                attempt.outcome = Outcome.STOPPED
            is_known = self._namespace in await self._index.namespaces()
        if not is_known:
            await self._forget()
        return report

    async def _run(self) -> CollectionReport:
        started_at = self._now()
        hold = None if self._dry_run else await hold_of(self._index, self._namespace)
        if hold is not None:
            raise hold.error()
        # An earlier attempt may have failed on a full disk. The new filters have none of what it marked.
        self._position, self._old = 0, set()
        self._state = await self._index.task_state(self._namespace, TASK) or {}
        async for found in old_versions(self._index, self._namespace, now=started_at):
            self._old.update(each.record.id for each in found)
        # Before anything is removed, because a damaged manifest stops the collection.
        await self._mark()
        await self._remove_old_versions(started_at)
        cursor = _digest(self._state.get("cursor"))
        while not self._stop():
            freed = self.report.freed.count
            self._blocked = 0
            self.report.kept, self.report.waiting = Freed(), Freed()
            await self._sweep(cursor, None)
            if cursor is not None:
                await self._sweep(None, cursor)
            cursor = None
            # A chunk that another one needed may be free now.
            if self._dry_run or not self._blocked or freed == self.report.freed.count:
                break
        await self._remove_unknown_frames()
        await self._remove_lost_frames()
        await self._remove_manifests()
        self.report.is_complete = not self._stop()
        if not self._dry_run and self.report.is_complete:
            await self._finish(started_at)
        return self.report

    async def _remove_old_versions(self, now: int) -> None:
        """Remove the records that the policy removes. Mark those of them that stay, because they changed since."""
        removed = self._old if self._dry_run else await apply_policy(self._index, self._namespace, now=now)
        self.report.old_versions += len(removed)
        for file_id in self._old - removed:
            record = await self._index.record(self._namespace, Reference(id=file_id))
            if record is not None:
                await self._mark_chunks(await self._manifest_of(record))
        if not self._dry_run:
            self._old = set()

    async def _finish(self, started_at: int) -> None:
        """Keep the result. Forget the namespace if nothing of it is left."""
        is_empty = not await self._index.chunk_rows(self._namespace, limit=1)
        async for _ in self._store.manifests(self._namespace):
            is_empty = False
            break
        state = {"started_at": started_at, "ended_at": self._now(), "report": self.report.as_json()}
        async with self._index.transaction(self._namespace) as transaction:
            await transaction.set_task_state(self._namespace, TASK, None if is_empty else state)
        if self.report.freed.count:
            await self._index.compact()

    def _facts(self) -> dict[str, int]:
        """Return what is kept of the report in the index."""
        report = self.report
        return {
            "freed_count": report.freed.count,
            "freed_size": report.freed.size,
            "old_versions": report.old_versions,
            "waiting_count": report.waiting.count,
            "waiting_size": report.waiting.size,
            "kept_count": report.kept.count,
            "kept_size": report.kept.size,
        }

    async def _forget(self) -> None:
        """Forget the results of a namespace of which nothing is left, so that names that come and go take no space."""
        if self._namespace == DEFAULT_NAMESPACE:
            return
        async with self._index.transaction(self._namespace) as transaction:
            for kind in ResultKind:
                await transaction.set_task_state(self._namespace, kind, None)

    # Mark.

    async def _mark(self) -> None:
        """Mark what the records need, without those that the policy removes, and what was removed earlier."""
        count = await self._estimate_rows()
        self._needed = DigestFilter(count)
        self._removed = DigestFilter(count, size_limit=_SMALL_FILTER)
        self._waiting = DigestFilter(count, size_limit=_SMALL_FILTER)
        await self._mark_new_records()
        async for page in self._store.manifest_pages(self._namespace):
            contained = self._needed.contained([digest for digest, _ in page])
            removed = [found for found, is_needed in zip(page, contained, strict=True) if not is_needed]
            async for batch in read_together(removed, lambda found: self._manifest(found[0]), size=itemgetter(1)):
                for _, manifest in batch:
                    if manifest is not None:
                        await in_cpu_thread(self._removed.add_chunks, manifest.chunks)

    async def _estimate_rows(self) -> int:
        """Return about how many rows there are: digests are random, so a few of them show how dense all are."""
        page = await self._index.chunk_rows(self._namespace, limit=_ROWS_AT_ONCE)
        if len(page) < _ROWS_AT_ONCE:
            return len(page)
        return len(page) * _DIGEST_SPACE // (int.from_bytes(page[-1].row.digest[:8], "big") + 1)

    async def _mark_new_records(self, *, chunk_limit: float = math.inf) -> bool:
        """Mark what the records need that were stored since the last call. Raises DamagedRecord.

        Return False after records that together have `chunk_limit` chunks: more may follow.
        """
        count = 0
        while page := await self._index.records_after(self._namespace, self._position, limit=_RECORDS_AT_ONCE):
            needed = (found for found in page if found.record.id not in self._old)
            async for batch in read_of_records(needed, self._manifest_of, chunk_limit=chunk_limit):
                for _, manifest in batch:
                    count += await self._mark_chunks(manifest)
                self._position = batch[-1][0].position
                if count >= chunk_limit:
                    return False
            self._position = page[-1].position
        return True

    async def _mark_chunks(self, manifest: Manifest | None) -> int:
        """Mark a manifest and its chunks. Return their number."""
        if manifest is None:
            return 0
        self._needed.add([manifest.digest])
        await in_cpu_thread(self._needed.add_chunks, manifest.chunks)
        return len(manifest.chunks)

    async def _manifest_of(self, record: Record) -> Manifest | None:
        """Return the manifest of a record, or None if neither it nor another one needs the manifest any more."""
        for _ in range(_MANIFEST_ATTEMPTS):
            manifest = await self._manifest(record.digest)
            if manifest is not None:
                return manifest
            # I2: a record is removed before its manifest. It may also have been stored again since, and others may need it.
            user = await self._index.record(self._namespace, Reference(digest=record.digest))
            if user is None:
                return None
            record = user
        raise DamagedRecord(record.id, record.full_name, f"its manifest {record.digest} is missing or damaged")

    async def _manifest(self, digest: Digest) -> Manifest | None:
        """Return a manifest of the store, or None if it is missing or damaged."""
        try:
            encoded = await self._store.manifest(self._namespace, digest)
            manifest = None if encoded is None else await in_cpu_thread(Manifest.parse, encoded)
        except (InvalidManifest, LimitExceeded, StorageError):
            return None
        return manifest if manifest is not None and manifest.digest == digest else None

    # Sweep.

    async def _sweep(self, after: Digest | None, until: Digest | None) -> None:
        """Look at the rows whose digests are after `after` and up to `until`."""
        while not self._stop():
            page = await self._index.chunk_rows(self._namespace, after, limit=_ROWS_AT_ONCE)
            if until is not None:
                page = [state for state in page if state.row.digest <= until]
            if not page:
                return
            started = time.monotonic()
            await self._sweep_page(page)
            await self._keep_rate(len(page), time.monotonic() - started)
            after = page[-1].row.digest

    async def _sweep_page(self, page: Sequence[ChunkState]) -> None:
        needed = await in_cpu_thread(self._needed.contained, [state.row.digest for state in page])
        unneeded = {state.row.digest: state for state, found in zip(page, needed, strict=True) if not found}
        for state in (state for state, found in zip(page, needed, strict=True) if found):
            self.report.kept.add(state.row.stored_size)
        if not unneeded:
            return
        if self._dry_run:
            self._count_page(unneeded)
            return
        async with self._writing_marked() as transaction:
            contained = self._needed.contained(unneeded)
            unneeded = {digest: unneeded[digest] for digest, found in zip(unneeded, contained, strict=True) if not found}
            condemned = await self._condemn(transaction, unneeded)
            kept_state = {**self._state, "cursor": str(page[-1].row.digest)}
            await transaction.set_task_state(self._namespace, TASK, kept_state)
        self._note_waiting([state for digest, state in unneeded.items() if digest not in condemned])
        for start in range(0, len(condemned), _REMOVED_AT_ONCE):
            await self._remove_condemned([unneeded[digest] for digest in condemned[start : start + _REMOVED_AT_ONCE]])

    def _count_page(self, unneeded: dict[Digest, ChunkState]) -> None:
        freed = [state for state in unneeded.values() if not state.is_live or state.last_seen < self._unseen_since()]
        self._count_freed(freed)
        free = {state.row.digest for state in freed}
        self._note_waiting([state for digest, state in unneeded.items() if digest not in free])

    async def _condemn(self, transaction: Transaction, unneeded: dict[Digest, ChunkState]) -> list[Digest]:
        """Condemn those rows that may go. Return them, and those that an earlier collection condemned."""
        digests = list(unneeded)
        needed_bases = set(await transaction.needed_bases(self._namespace, digests))
        self._blocked += len(needed_bases)
        free = [digest for digest in digests if digest not in needed_bases]
        # From a clock that was wrong: such a row would never be old enough.
        future = [digest for digest in free if unneeded[digest].last_seen > self._now()]
        if future:
            await transaction.refresh(self._namespace, future)
        await transaction.condemn(self._namespace, free, unseen_since=self._unseen_since())
        return await transaction.condemned(self._namespace, free)

    def _unseen_since(self) -> int:
        return self._now() - self._grace - min(_SKIPPED_MICROSECONDS, self._grace)

    async def _remove_condemned(self, states: Sequence[ChunkState]) -> None:
        """Remove those that are still condemned (I2): a push may have put some again."""
        by_digest = {state.row.digest: state for state in states}
        unneeded = Unneeded(self._store, self._namespace)
        async with self._writing() as transaction:
            condemned = await transaction.condemned(self._namespace, list(by_digest))
            # Another chunk may have come that needs one of them.
            needed_bases = set(await transaction.needed_bases(self._namespace, condemned))
            free = [digest for digest in condemned if digest not in needed_bases]
            await unneeded.remove_frames(transaction, free)
        await unneeded.remove_objects()
        self._count_freed([by_digest[digest] for digest in free])

    def _count_freed(self, states: Sequence[ChunkState]) -> None:
        removed = self._removed.contained(state.row.digest for state in states)
        for state, is_of_removed_file in zip(states, removed, strict=True):
            part = self.report.removed_files if is_of_removed_file else self.report.abandoned_pushes
            part.add(state.row.stored_size)

    def _note_waiting(self, states: Sequence[ChunkState]) -> None:
        self._waiting.add(state.row.digest for state in states)
        for state in states:
            self.report.waiting.add(state.row.stored_size)

    # What has no row or no record.

    async def _remove_unknown_frames(self) -> None:
        if self._store.has_object_ids:
            return  # those that no row has named for hours are removed by `remove_abandoned`; the others may get a row
        async for digests in in_batches(self._store.digests(self._namespace), _ROWS_AT_ONCE):
            if self._stop():
                return
            unknown = await self._index.unknown(self._namespace, digests)
            # A frame that a record needs may have lost its row. It may be the only copy, and a repair gives it a row.
            contained = self._needed.contained(unknown)
            unknown = [digest for digest, needed in zip(unknown, contained, strict=True) if not needed]
            for start in range(0, len(unknown), _REMOVED_AT_ONCE):
                await self._remove_unknown(unknown[start : start + _REMOVED_AT_ONCE])
            await self._keep_rate(len(digests), 0)

    async def _remove_unknown(self, digests: Sequence[Digest]) -> None:
        if self._dry_run:
            for size in await self._store.sizes(self._namespace, digests):
                self.report.frames_without_rows.add(size)
            return
        async with self._writing():
            # A push publishes frames and adds their rows in one transaction, and no other one is open now.
            unknown = await self._index.unknown(self._namespace, digests)
            sizes = await self._store.sizes(self._namespace, unknown)
            await self._store.remove(self._namespace, [ObjectName(digest) for digest in unknown])
        for size in sizes:
            self.report.frames_without_rows.add(size)

    async def _remove_lost_frames(self) -> None:
        """Forget the objects that could not be read, of chunks that no record needs any more, and remove them."""
        after: ObjectName | None = None
        while not self._dry_run and (page := await self._index.lost_frames(self._namespace, after, limit=_ROWS_AT_ONCE)):
            after = page[-1]
            unneeded = self._not_needed(page)
            if unneeded and not self._stop():
                async with self._writing_marked() as transaction:
                    unneeded = await transaction.forget_lost(self._namespace, self._not_needed(unneeded))
                await self._store.remove(self._namespace, unneeded)

    def _not_needed(self, names: Sequence[ObjectName]) -> list[ObjectName]:
        contained = self._needed.contained(name.digest for name in names)
        return [name for name, needed in zip(names, contained, strict=True) if not needed]

    async def _remove_manifests(self) -> None:
        async for digests in in_batches(self._store.manifests(self._namespace), _ROWS_AT_ONCE):
            if self._stop():
                return
            contained = self._needed.contained(digests)
            for digest in [digest for digest, found in zip(digests, contained, strict=True) if not found]:
                await self._remove_manifest(digest)

    async def _remove_manifest(self, digest: Digest) -> None:
        """Remove a manifest without a record. It stays while chunks of it wait, so that a later report tells why they go."""
        encoded = await self._store.manifest(self._namespace, digest)
        manifest = await self._manifest(digest)
        if encoded is None or (manifest is not None and await in_cpu_thread(self._has_waiting, manifest)):
            return
        if not self._dry_run:
            unneeded = Unneeded(self._store, self._namespace)
            async with self._writing() as transaction:
                if await self._index.record(self._namespace, Reference(digest=digest)) is not None:
                    return
                await unneeded.remove_manifest(transaction, digest)
            await unneeded.remove_objects()
        self.report.manifests.add(len(encoded))

    def _has_waiting(self, manifest: Manifest) -> bool:
        return any(any(self._waiting.contained(digests)) for digests in self._needed.absent_chunks(manifest.chunks))

    @asynccontextmanager
    async def _writing_marked(self) -> AsyncIterator[Transaction]:
        """Begin a transaction in which all that was stored since the mark is marked too.

        Most of it is marked before, since others wait for the transaction. This ends, because a record with many chunks is
        marked faster than it is stored.
        """
        is_done = False
        while not is_done:
            await self._mark_new_records()
            async with self._writing() as transaction:
                # During this transaction nothing is stored.
                is_done = await self._mark_new_records(chunk_limit=_MARKED_CHUNKS)
                if is_done:
                    yield transaction

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Transaction]:
        """Begin a transaction. After it, wait for as long as it took, so that others can write."""
        async with self._index.transaction(self._namespace) as transaction:
            started = time.monotonic()
            yield transaction
        await asyncio.sleep(time.monotonic() - started)

    async def _keep_rate(self, count: int, taken_seconds: float) -> None:
        """Wait until the rate allows the next page."""
        await asyncio.sleep(max(0.0, count / self._rate - taken_seconds) if self._rate else 0)


def _digest(text: object) -> Digest | None:
    """Return the digest in a state, or None if it has none that can be used."""
    try:
        return Digest.parse(text) if isinstance(text, str) else None
    except InvalidDigest:
        return None
