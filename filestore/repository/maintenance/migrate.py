"""Move a repository from a folder to an object store and PostgreSQL, while servers go on serving the folder.

Content is copied in passes, in which the rows of both indexes are compared, so what is there is not copied again. Each pass is
shorter than the one before, because it copies only what was stored meanwhile, and compares only those parts of the rows of
chunks that have changed since. Then the rows of all other tables are made the same. The last pass has the lock by which all
writers to the folder exclude each other. At its end, and in the same transaction, the folder notes where the repository is now.
So what a writer was told is stored is either in the last pass, or was refused. Only after that the target becomes a repository.

A migration that is interrupted is continued by the next. Until the end, the target cannot be opened.
"""

from __future__ import annotations

import marshal
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from blake3 import blake3

from filestore.core.batches import batched_by_size
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.object_names import ObjectName
from filestore.errors import (
    Busy,
    InvalidManifest,
    LimitExceeded,
    NotARepository,
    NotFound,
    RepositoryMoved,
    StorageError,
)
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.format_file import read_format
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.protocol import ChunkRow, PositionedRecord
from filestore.repository.index.row_pages import CHUNKS, TABLES, Row, RowSource, Table
from filestore.repository.index.sqlite import SqliteIndex
from filestore.repository.ingest import discard_all
from filestore.repository.maintenance.content import DamagedFile, row_of, write_frame
from filestore.repository.maintenance.pace import Pace
from filestore.repository.manifest_check import read_manifest
from filestore.repository.object_repository import MIGRATION, NO_NAMESPACE, TASK, ObjectStore, known_id
from filestore.repository.stores.protocol import ChunkStore, Staging
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done, task_group

LOCK = "migration"

_PAGE = 2000
_BATCH_SIZE = 16 << 20
_BATCH_COUNT = 256
"""Frames are put and get their rows in batches of at most so many bytes and frames."""
_TOGETHER = 2
"""How many batches are under way at the same time."""
_MANIFESTS_TOGETHER = 8
_PASSES = 8
"""The most passes before the last one, and how much a pass may have copied if the next one is to be the last."""
_LAST_SIZE = 64 << 20
_LAST_COUNT = 1000
_IS_CONDEMNED = itemgetter(CHUNKS.all_columns.index("going"))
_STORED_SIZE = itemgetter(CHUNKS.all_columns.index("stored_size"))


@dataclass(slots=True)
class MigrationCounts:
    """What was done so far."""

    pass_number: int = 0
    is_last: bool = False
    """Whether the last pass has begun, during which nobody writes to the folder."""
    record_count: int = 0
    chunk_count: int = 0
    stored_size: int = 0
    """The records and chunks that this pass has looked at, and the bytes of their frames."""
    copied_count: int = 0
    copied_size: int = 0
    """The frames and manifests that were copied, or with `dry_run` would be, and their bytes, in all passes."""
    lost_count: int = 0
    """The frames and manifests that are missing or damaged in the folder, in this pass."""
    row_count: int = 0
    """The rows of other tables that were written."""
    damaged: list[DamagedFile] = field(default_factory=list)
    """The records that are not whole, at the end."""
    repository_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSource:
    """The repository in a folder, or a copy of its index with a store that has its content."""

    store: ChunkStore
    index: SqliteIndex
    location: str
    repository_id: str | None = None
    """None means that of the format file in `store`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationTarget:
    """An object store and an index that become the repository."""

    store: ObjectStore
    index: PostgresIndex
    location: str


async def migrate(
    source: MigrationSource,
    target: MigrationTarget,
    *,
    rate: int | None = None,
    dry_run: bool = False,
    is_backup: bool = False,
    counts: MigrationCounts | None = None,
) -> MigrationCounts:
    """Move a repository. Nobody else may have opened the target; any number of processes may use the source.

    With `is_backup`, all records are checked at the end: a backup has no rows of chunks that were lost before it was made.

    A frame is copied only if it decodes to its chunk. `rate` is the most bytes per second
    of the passes before the last one. With `dry_run`, nothing is written to the target but its tables, and nothing to the source.
    Memory does not depend on the number of chunks, records and other rows.

    Raises NotARepository if the target has anything else, or the repository is there already; RepositoryMoved if it has moved to
    another place; Busy if another migration to the target runs, or a process writes to the source for a minute; StorageError,
    StoreRefused, StorageFull.
    """
    counts = MigrationCounts() if counts is None else counts
    counts.repository_id = source.repository_id or (await read_format(source.store, location=source.location))[0]
    async with target.index.try_lock(LOCK) as has_lock:
        if not has_lock:
            raise Busy(target.location, "another migration to it runs")
        is_moved = await _check(source, target, counts.repository_id)
        if not dry_run:
            await _claim(target, counts.repository_id)
        copy = _Copy(source, target, counts, dry_run=dry_run)
        if dry_run:
            await copy.content(Pace(rate))
            return counts
        await _copy_online(copy, counts, Pace(rate))
        async with _nobody_writing(source, target, is_moved=is_moved):
            counts.is_last = True
            await copy.content(Pace(None))
            await copy.rows(is_last=True)
            await target.index.replace_secrets(await source.index.signing_keys())
        # Not before the source says that it has moved: until then, a writer may still be told that it has stored something there.
        async with target.index.transaction() as transaction:
            await transaction.count_again()  # names are counted for one row at a time, and there were many
            await transaction.set_task_state(NO_NAMESPACE, TASK, {"id": counts.repository_id})
            await transaction.set_task_state(NO_NAMESPACE, MIGRATION, None)
        if counts.lost_count or is_backup:
            counts.damaged = [damaged async for damaged in _damaged_files(source, target)]
    return counts


async def _copy_online(copy: _Copy, counts: MigrationCounts, pace: Pace) -> None:
    """Copy while others write, until little is left."""
    is_long = True
    while is_long and counts.pass_number < _PASSES:
        before_count, before_size = counts.copied_count, counts.copied_size
        await copy.content(pace)
        await copy.rows(is_last=False)
        is_long = counts.copied_count - before_count > _LAST_COUNT or counts.copied_size - before_size > _LAST_SIZE


async def _check(source: MigrationSource, target: MigrationTarget, repository_id: str) -> bool:
    """Check that the source may be copied to the target. Return whether the source says already that it has moved there.

    Raises NotARepository, RepositoryMoved.
    """
    moved_to = await source.index.moved_to()
    if moved_to not in (None, target.location):
        raise RepositoryMoved(source.location, str(moved_to))
    claimed = await target.index.task_state(NO_NAMESPACE, MIGRATION)
    found = await known_id(target.index) or (None if claimed is None else str(claimed.get("id")))
    if found is None and (await target.index.namespaces() or await target.store.namespaces()):
        raise NotARepository(target.location, "it has content already", "give an empty database and a new bucket or prefix")
    if await target.store.is_initialised():
        in_store = (await read_format(target.store, location=target.location))[0]
        found = in_store if in_store != repository_id else found
    if found not in (None, repository_id):
        found_there = f"it has the repository {found}, and {source.location} is {repository_id}"
        raise NotARepository(target.location, found_there, "give an empty database and a new bucket or prefix")
    if claimed is None and found is not None and await known_id(target.index) is not None:
        found_there = "the repository is there already" + ("" if moved_to else ", and servers may have written to it since")
        raise NotARepository(target.location, found_there, "serve it from there")
    return moved_to is not None


async def _claim(target: MigrationTarget, repository_id: str) -> None:
    """Let the target be that of this migration, and of no other."""
    async with target.index.transaction() as transaction:
        await transaction.set_task_state(NO_NAMESPACE, MIGRATION, {"id": repository_id})
    kept, _ = await read_format(target.store, location=target.location, new_id=repository_id)
    if kept != repository_id:
        raise NotARepository(target.location, f"it has the repository {kept}", "give a new bucket or prefix")


@asynccontextmanager
async def _nobody_writing(source: MigrationSource, target: MigrationTarget, *, is_moved: bool) -> AsyncIterator[None]:
    """Keep writers out of the source for a block, and for ever if the block succeeds."""
    if is_moved:
        yield
        return
    await source.index.secret()  # it is made here if nobody needed it so far
    async with source.index.transaction() as transaction:
        yield
        await transaction.set_moved(target.location)


class _Page(NamedTuple):
    """A part of the rows of a table."""

    source: list[Row]
    differing: list[tuple[Row | None, Row | None]]
    """The rows that differ: that of the source, and that of the target with the same key."""
    end: Row | None
    """The key with which it ends. None for the end of the table."""


class _Part(NamedTuple):
    """A part of the rows of chunks, after the one before it."""

    end: Row | None
    fingerprint: bytes | None
    """The hash of the rows of the source for which the target has all. None if something is lost."""


class _Copy:
    """Copies what one pass finds."""

    def __init__(self, source: MigrationSource, target: MigrationTarget, counts: MigrationCounts, *, dry_run: bool) -> None:
        self._source = source
        self._target = target
        self._counts = counts
        self._dry_run = dry_run
        self._parts: list[_Part] = []
        """All parts of the rows of chunks, as the last pass has left them. Only this migration writes to the target."""
        self._buffers = [memoryview(bytearray(FRAME_LIMIT)) for _ in range(_TOGETHER)]

    async def content(self, pace: Pace) -> None:
        """Copy the frames and manifests that the target lacks, and remove the rows of those that the source lacks."""
        counts = self._counts
        counts.pass_number += 1
        counts.record_count = counts.chunk_count = counts.stored_size = counts.lost_count = 0
        await self._frames(pace)
        for namespace in await self._source.index.namespaces():
            await self._manifests(namespace, pace)

    async def rows(self, *, is_last: bool) -> None:
        """Make the rows of all other tables the same. All rows that differ are removed first, so that none contradict others."""
        for table in TABLES:
            async for page in self._compared(table):
                removed = [table.key_of(target) for _, target in page.differing if target is not None]
                await self._replace(table, removed, [], is_last=is_last)
        for table in TABLES:
            async for page in self._compared(table):
                added = [source for source, _ in page.differing if source is not None]
                await self._replace(table, [], added, is_last=is_last)

    def _compared(self, table: Table) -> AsyncIterator[_Page]:
        return _compared(self._source.index, self._target.index, table)

    async def _replace(self, table: Table, removed: Sequence[Row], added: Sequence[Row], *, is_last: bool) -> None:
        if removed or added:
            count = await self._target.index.replace_rows(table, removed, added)
            if is_last and count < len(added):
                raise StorageError(self._target.location, f"rows of {table.name} contradict each other")
            self._counts.row_count += count

    async def _frames(self, pace: Pace) -> None:
        known, self._parts = self._parts, []
        async for page in _changed(self._source.index, self._target.index, CHUNKS, known):
            lost_count = self._counts.lost_count
            live = [row for row in page.source if not _IS_CONDEMNED(row)]
            self._counts.chunk_count += len(live)
            self._counts.stored_size += sum(map(_STORED_SIZE, live))
            lacking: dict[str, list[ChunkRow]] = defaultdict(list)
            removed: dict[str, list[Digest]] = defaultdict(list)
            for source, target in page.differing:
                if source is None and target is not None:
                    removed[target[0]].append(Digest(target[1]))
                elif source is not None and not _IS_CONDEMNED(source) and (target is None or _IS_CONDEMNED(target)):
                    lacking[source[0]].append(ChunkRow(Digest(source[1]), source[2], source[3]))
            for namespace, rows in lacking.items():
                await self._copy_frames(namespace, rows, pace)
            for namespace, digests in removed.items():
                await self._remove_frames(namespace, digests)
            is_lost = self._counts.lost_count != lost_count
            self._parts.append(_Part(page.end, None if is_lost else await in_cpu_thread(_fingerprint, page.source)))

    async def _remove_frames(self, namespace: str, removed: Sequence[Digest]) -> None:
        if not self._dry_run:
            async with self._target.index.transaction(namespace) as transaction:
                names = await transaction.forget_chunks(namespace, removed)
            await self._target.store.remove(namespace, names)

    async def _copy_frames(self, namespace: str, lacking: Sequence[ChunkRow], pace: Pace) -> None:
        if self._dry_run:
            self._counts.copied_count += len(lacking)
            self._counts.copied_size += sum(row.stored_size for row in lacking)
            return
        batches = list(batched_by_size(lacking, lambda row: row.stored_size, limit=_BATCH_SIZE, count_limit=_BATCH_COUNT))

        async def copy_each(worker: int) -> None:
            for batch in batches[worker::_TOGETHER]:
                await self._copy_batch(namespace, batch, self._buffers[worker], pace)

        async with task_group() as group:
            for worker in range(_TOGETHER):
                group.create_task(copy_each(worker))

    async def _copy_batch(self, namespace: str, batch: Sequence[ChunkRow], buffer: memoryview, pace: Pace) -> None:
        store, index = self._target.store, self._target.index
        staged: list[tuple[Digest, Staging]] = []
        rows: list[ChunkRow] = []
        try:
            for row in batch:
                frame = await self._read_frame(namespace, row.digest, buffer)
                found = None if frame is None else await in_cpu_thread(row_of, row, frame)
                if frame is None or found is None:
                    self._counts.lost_count += 1
                    continue
                await pace.take(len(frame))
                staging = store.new_staging()
                staged.append((row.digest, staging))
                rows.append(found)
                await in_disk_thread(write_frame, staging, frame)
            if not rows:
                return
            await in_disk_thread(store.sync, namespace, staged)
            named = [row._replace(object_id=staging.object_id) for row, (_, staging) in zip(rows, staged, strict=True)]
            async with index.transaction(namespace) as transaction:
                await store.publish(namespace, staged)
                await transaction.add_chunks(namespace, named)
        finally:
            await shield_until_done(in_disk_thread(discard_all, [staging for _, staging in staged]))
        self._counts.copied_count += len(rows)
        self._counts.copied_size += sum(row.stored_size for row in rows)

    async def _read_frame(self, namespace: str, digest: Digest, buffer: memoryview) -> memoryview | None:
        try:
            (frame,) = await self._source.store.read_into(namespace, [digest], buffer)
        except (StorageError, ValueError):
            return None  # what cannot be read, or has more bytes than a frame, is damaged
        return frame

    async def _manifests(self, namespace: str, pace: Pace) -> None:
        position = 0
        while page := await self._source.index.records_after(namespace, position, limit=_PAGE):
            position = page[-1].position
            self._counts.record_count += len(page)
            digests = list(dict.fromkeys(found.record.digest for found in page))
            kept = await self._target.index.kept_manifests(namespace, digests)
            lacking = [digest for digest in digests if digest not in kept]
            for start in range(0, len(lacking), _MANIFESTS_TOGETHER):
                await self._copy_manifests(namespace, lacking[start : start + _MANIFESTS_TOGETHER], pace)

    async def _copy_manifests(self, namespace: str, digests: Sequence[Digest], pace: Pace) -> None:
        async with task_group() as group:
            tasks = [group.create_task(self._put_manifest(namespace, digest, pace)) for digest in digests]
        names = [name for task in tasks if (name := task.result()) is not None]
        if names and not self._dry_run:
            async with self._target.index.transaction(namespace) as transaction:
                for name in names:
                    await transaction.keep_manifest(namespace, name)

    async def _put_manifest(self, namespace: str, digest: Digest, pace: Pace) -> ObjectName | None:
        try:
            encoded = await read_manifest(self._source.store, namespace, digest)
        except (NotFound, InvalidManifest, StorageError):
            self._counts.lost_count += 1
            return None
        await pace.take(len(encoded))
        object_id = b"" if self._dry_run else await self._target.store.put_manifest(namespace, digest, encoded)
        self._counts.copied_count += 1
        self._counts.copied_size += len(encoded)
        return ObjectName(digest, object_id)


async def _damaged_files(source: MigrationSource, target: MigrationTarget) -> AsyncIterator[DamagedFile]:
    """Yield the records that are not whole in the target."""
    for namespace in await target.index.namespaces():
        async for found in _records(target.index, namespace):
            manifest = await _manifest_of(source, target, namespace, found.record.digest)
            if manifest is None:
                yield DamagedFile(found.record, 0)
                continue
            chunks, missing = manifest.chunks, 0
            for start in range(0, len(chunks), _PAGE):
                missing += len(await target.index.unknown(namespace, list(dict(chunks[start : start + _PAGE]))))
            if missing:
                yield DamagedFile(found.record, missing)


async def _manifest_of(source: MigrationSource, target: MigrationTarget, namespace: str, digest: Digest) -> Manifest | None:
    """Return a manifest if the target has it. It is read from the folder if it is intact there, because that takes no request."""
    if await target.index.manifest_object(namespace, digest) is None:
        return None
    with suppress(InvalidManifest, LimitExceeded, NotFound, StorageError):
        return await in_cpu_thread(Manifest.parse, await read_manifest(source.store, namespace, digest))
    with suppress(InvalidManifest, LimitExceeded, NotFound):
        return await in_cpu_thread(Manifest.parse, await read_manifest(target.store, namespace, digest))
    return None


async def _records(index: PostgresIndex, namespace: str) -> AsyncIterator[PositionedRecord]:
    position = 0
    while page := await index.records_after(namespace, position, limit=_PAGE):
        for found in page:
            yield found
        position = page[-1].position


async def _compared(source: RowSource, target: RowSource, table: Table) -> AsyncIterator[_Page]:
    """Yield the rows of both indexes in the order of their keys, part by part.

    The rows of a part that was yielded may be changed in the target.
    """
    after: Row | None = None
    while True:
        yield (page := await _compared_page(source, target, table, after, until=None))
        if page.end is None:
            return
        after = page.end


async def _changed(source: RowSource, target: RowSource, table: Table, known: Sequence[_Part]) -> AsyncIterator[_Page]:
    """Do what `_compared` does. The target is not read for those `known` parts whose rows in the source are the same."""
    parts = deque(known)
    after: Row | None = None
    while True:
        part = parts[0] if parts else _Part(None, None)
        page = None if part.fingerprint is None else await _unchanged_page(source, table, after, part)
        if page is None:
            page = await _compared_page(source, target, table, after, until=part.end)
        yield page
        if page.end is None:
            return
        if page.end == part.end:
            parts.popleft()
        after = page.end


async def _unchanged_page(source: RowSource, table: Table, after: Row | None, part: _Part) -> _Page | None:
    """Return the rows of a part, or None if they have changed."""
    page = await source.row_page(table, after)
    rows = _up_to(part.end, page, table)
    is_whole = len(page) < table.page or (part.end is not None and table.key_of(page[-1]) >= part.end)
    is_same = is_whole and await in_cpu_thread(_fingerprint, rows) == part.fingerprint
    return _Page(rows, [], part.end) if is_same else None


async def _compared_page(source: RowSource, target: RowSource, table: Table, after: Row | None, *, until: Row | None) -> _Page:
    async with task_group() as group:
        reading = [group.create_task(index.row_page(table, after)) for index in (source, target)]
    pages = [task.result() for task in reading]
    # Beyond the end of a page that is full, there may be more rows.
    ends = [table.key_of(page[-1]) for page in pages if len(page) == table.page]
    end = min(ends if until is None else [*ends, until], default=None)
    rows, target_rows = (_up_to(end, page, table) for page in pages)
    return _Page(rows, [] if rows == target_rows else _differing(rows, target_rows, table), end)


def _up_to(end: Row | None, rows: list[Row], table: Table) -> list[Row]:
    return rows if end is None else [row for row in rows if table.key_of(row) <= end]


def _fingerprint(rows: list[Row]) -> bytes:
    # In its first version, equal values have equal bytes. A later one tells apart which of them are one object.
    return blake3(marshal.dumps(rows, 0)).digest()


def _differing(source: list[Row], target: list[Row], table: Table) -> list[tuple[Row | None, Row | None]]:
    there = {table.key_of(row): row for row in target}
    pairs: list[tuple[Row | None, Row | None]] = [(row, there.pop(table.key_of(row), None)) for row in source]
    return [(row, other) for row, other in pairs if row != other] + [(None, row) for row in there.values()]
