"""Make one file of the parts of an upload. Parts are cut and stored while more arrive, so that finishing is quick."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple

from aiohttp import web

from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import (
    Busy,
    ChunksMissing,
    DamagedChunk,
    FilestoreError,
    InvalidInput,
    InvalidManifest,
    InvalidParts,
    InvalidReference,
    SourceChanged,
    StorageError,
    StorageFull,
    UploadNotFound,
)
from filestore.format.chunking import Chunker
from filestore.http.server.errors import FailureLog, log_failure
from filestore.http.server.pushes import push_memory
from filestore.http.server.routes.sdk.parts import PartsContent, UploadPart, unbroken
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import FILE_ID_START, ServedUpload, UploadStore
from filestore.http.server.stored_trees import SharedTrees
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.full_disk import with_reserve
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.buffers import Budget
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done, task_group, work_beside
from filestore.transfer.push import send, send_and_commit
from filestore.transfer.sources.file import WINDOW_SIZE, unpacked

logger = logging.getLogger("filestore.server")

AHEAD_SIZE = WINDOW_SIZE
"""With fewer uncut bytes than this, cutting waits for more parts, or for the end."""
FINISH_SECONDS = 240.0
"""How long finishing waits for another process that cuts. The SDK gives the request 300 seconds."""
CANCEL_SECONDS = 20.0
"""How long a cancel waits for another process that cuts, or that finishes."""
STOP_SECONDS = 1.0
"""A process that cuts looks so often whether it must stop, because somebody cancels the upload."""
CHUNKERS_KEPT = 4
"""Chunkers that wait for more parts; each holds up to 16 MiB of a container's header (I6). If one is dropped, its
successor must read all content that was cut before."""
SWEEP_SECONDS = 600.0
"""Longest time between two searches for abandoned uploads."""
REVOKED_SECONDS = 5.0
"""Time between two looks at the tokens. With its last token, a namespace loses its uploads in progress."""


class _SavedChunker(NamedTuple):
    """A chunker that waits for more parts."""

    tags: list[str]
    """Tags of the parts that the chunker has read, from the first one on."""
    chunks_size: int
    """Bytes of the packed chunks that had been cut by then."""
    chunker: Chunker


class Assembly:
    """Work on uploads in this process.

    Other processes of the server may too, but only one at a time works on an upload.
    """

    def __init__(
        self,
        uploads: UploadStore,
        store: ChunkStore,
        *,
        push_budget: Budget,
        idle_seconds: float,
        limit_seconds: float,
        quota: UploadQuota,
        revoked_namespaces: Callable[[], Awaitable[frozenset[str]]],
    ) -> None:
        """`revoked_namespaces` returns those that have lost their last token."""
        self.uploads = uploads
        self._store = store
        self.quota = quota
        self._revoked_namespaces = revoked_namespaces
        self._push_budget = push_budget
        self.idle_seconds = idle_seconds
        """How long an upload is kept of which no byte arrives."""
        self._limit_seconds = limit_seconds
        self._kept: OrderedDict[str, _SavedChunker] = OrderedDict()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work in the background during the block. Its end cancels the work, which any process can continue."""
        async with task_group() as group:
            self._group = group
            self.start(self._sweep())
            self.start(self._remove_revoked())
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks:
                    task.cancel()

    async def begin(self, repository: LocalRepository, *, name: str | None, upload_id: str | None = None) -> ServedUpload:
        """Begin an upload, as `UploadStore.begin` does.

        Raises UploadNotFound, OutsidePrefix, TooManyUploads, MinFreeReached, StorageFull, StorageError.
        """
        repository.check_name(name or FILE_ID_START)
        return await self.uploads.begin(repository, name=name, upload_id=upload_id)

    async def find(self, upload_id: str, repository: LocalRepository) -> ServedUpload:
        """Return an upload that is in progress, or was finished a short time ago. Raises UploadNotFound."""
        upload = await self.uploads.find(upload_id, namespace=repository.namespace)
        if not repository.sees(upload.name):
            raise UploadNotFound(upload_id)
        return upload

    def cut_ahead(self, upload: ServedUpload, repository: LocalRepository) -> None:
        """Cut and store the parts that arrived, in the background, unless this is being done already."""
        self.start(self._cut_ahead(upload, repository))

    async def finish(
        self,
        upload: ServedUpload,
        repository: LocalRepository,
        listed: Mapping[int, str],
        *,
        kind: Kind = Kind.FILE,
        trees: SharedTrees,
    ) -> Record:
        """Record the file that the listed parts make up, or the directory whose zip file they make up.

        `listed` has tags by part numbers. A zip file of a directory is checked with `trees`: it must be one that a fetch can
        unpack, as far as its central directory says.

        A second call with the same parts and the same kind returns the same record. Raises InvalidParts, InvalidArchive,
        LimitExceeded, UploadNotFound, Busy, InvalidInput for another kind, and NotFound if the record was removed.
        """
        tags = [listed[number] for number in sorted(listed)]
        async with self.waited_for(upload):
            finished = await upload.finished()
            if finished is None:
                # Somebody may have cancelled it while this waited. An empty file must not be made of it.
                await self.find(upload.id, repository)
                parts = _chosen(await upload.parts(), listed)
                record = await self._record(upload, repository, parts, kind=kind, trees=trees)
                await upload.save_first(FinishedUpload.of(tags, record.id))
                self._kept.pop(upload.id, None)
        if finished is None:
            self.retire(upload)
            return record
        if finished.tags_digest != FinishedUpload.of(tags, "").tags_digest:
            raise InvalidParts("it was already finished with other parts")
        record = await repository.record(Reference(id=finished.record_id))
        if record.kind is not kind:
            raise InvalidInput(f"the upload {upload.id} was already finished with the kind {record.kind}; begin another upload")
        return record

    async def cancel(self, upload: ServedUpload) -> None:
        """Remove an upload that is not finished, and free its space. A process that cuts it is asked to stop.

        A cancel that fails changes nothing. Raises UploadNotFound if the upload is finished, or gone; Busy while a process
        finishes it.
        """
        await _check_unfinished(upload)
        with suppress(StorageFull):  # it only saves time, and a cancel makes space
            await upload.request_stop()
        try:
            async with upload.locked(limit_seconds=CANCEL_SECONDS) as is_held:
                if not is_held:
                    raise Busy(f"the upload {upload.id}", "a process of the server is finishing it")
                # Nobody finishes it while this has the lock.
                await _check_unfinished(upload)
                await upload.cancel()
        except BaseException:
            with suppress(OSError, FilestoreError):
                await shield_until_done(upload.withdraw_stop())
            raise
        self._kept.pop(upload.id, None)

    async def chosen_parts(self, upload: ServedUpload, listed: Mapping[int, str]) -> list[UploadPart]:
        """Return the listed parts in order. `listed` has tags by part numbers. The caller holds the lock of the upload.

        Raises InvalidParts unless they are all parts that arrived and none is missing; UploadNotFound.
        """
        return _chosen(await upload.parts(), listed)

    async def send_parts(self, upload: ServedUpload, repository: LocalRepository, parts: Sequence[UploadPart]) -> Manifest:
        """Store the chunks of the file that `parts` make up, and return its manifest. Nothing is recorded.

        The caller holds the lock of the upload. Raises InvalidParts, UploadNotFound.
        """
        content = await self._resumed(upload, parts, is_whole=True)
        await self._send(repository, content)
        manifest = await in_cpu_thread(content.manifest)
        if manifest.size != content.size or await repository.missing([chunk.digest for chunk in manifest.chunks]):
            # As in `_record`.
            content = PartsContent(upload.path, parts, bytearray(), Chunker(), is_whole=True)
            await self._send(repository, content)
            manifest = await in_cpu_thread(content.manifest)
        self._kept.pop(upload.id, None)
        return manifest

    async def discard(self, upload: ServedUpload) -> None:
        """Remove an upload that can never be finished. The caller does not hold its lock. Raises OSError, StorageError."""
        await self.uploads.discard(upload)

    def retire(self, upload: ServedUpload) -> None:
        """Remove the folder of a finished upload in the background: a disk may need a long time to free gigabytes."""
        self.start(self._retire(upload))

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in the background. If this process is ending, do nothing: another process can do the work."""
        if self._group is None:
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        """Remove abandoned uploads, at regular intervals."""
        failures = FailureLog("abandoned uploads cannot be removed")
        while True:
            try:
                # The state of the uploads is written before any of them is removed.
                await with_reserve(self._store, self._expire)
                failures.succeeded()
            except (OSError, FilestoreError) as error:
                failures.failed(error)
            await asyncio.sleep(min(self.idle_seconds / 4, self._limit_seconds / 4, SWEEP_SECONDS))

    async def _remove_revoked(self) -> None:
        """Remove the uploads of each namespace that loses its last token, soon after that."""
        failures = FailureLog("uploads of removed tokens cannot be removed", level=logging.WARNING)
        while True:
            try:
                revoked = await self._revoked_namespaces()
                if revoked:
                    await self.uploads.remove_all(revoked)
                failures.succeeded()
            except (OSError, FilestoreError) as error:
                failures.failed(error)
            await asyncio.sleep(REVOKED_SECONDS)

    async def _expire(self) -> None:
        await self.uploads.expire(idle_seconds=self.idle_seconds, limit_seconds=self._limit_seconds)
        await in_disk_thread(self.quota.remove_ended_forms)

    async def _cut_ahead(self, upload: ServedUpload, repository: LocalRepository) -> None:
        try:
            # Look again after the lock is released: a part that arrived meanwhile found the lock taken.
            while contiguous := await _uncut_parts(upload):
                async with upload.locked(limit_seconds=0) as is_held:
                    if not is_held:
                        return
                    async with work_beside(_look_for_stop(upload)):
                        content = await self._resumed(upload, contiguous, is_whole=False)
                        await self._send(repository, content)
                    async with repository.space_for(len(content.chunks), place=self.uploads.place):
                        await self._save(upload, contiguous, content)
        except (UploadNotFound, InvalidParts) as error:
            logger.info("upload %s changed while it was cut: %s", upload.id, error)
        except Exception as error:  # noqa: BLE001  # finishing does it again, and answers with the error
            log_failure(f"upload {upload.id} is not cut ahead", error, level=logging.WARNING)

    async def _retire(self, upload: ServedUpload) -> None:
        # If this fails, the next search for abandoned uploads does it.
        with suppress(UploadNotFound, OSError, StorageError, Busy):
            async with upload.locked(limit_seconds=FINISH_SECONDS) as is_held:
                if is_held:
                    await upload.retire()

    async def _record(
        self, upload: ServedUpload, repository: LocalRepository, parts: Sequence[UploadPart], *, kind: Kind, trees: SharedTrees
    ) -> Record:
        content = await self._resumed(upload, parts, is_whole=True)
        try:
            return await self._push(upload, repository, content, kind=kind, trees=trees)
        except (ChunksMissing, DamagedChunk, InvalidManifest, InvalidReference, SourceChanged) as error:
            # The saved cut may be damaged, or its chunks may be gone. The parts themselves are what counts.
            log_failure(f"upload {upload.id} is cut once more, from its start", error)
            whole = PartsContent(upload.path, parts, bytearray(), Chunker(), is_whole=True)
            return await self._push(upload, repository, whole, kind=kind, trees=trees)

    async def _send(self, repository: LocalRepository, content: PartsContent) -> None:
        async with self._push_budget.take(push_memory(content.size - content.cut_size)):
            await send(repository, content)

    async def _push(
        self, upload: ServedUpload, repository: LocalRepository, content: PartsContent, *, kind: Kind, trees: SharedTrees
    ) -> Record:
        async with self._push_budget.take(push_memory(content.size - content.cut_size)):
            await send(repository, content)
            if kind is Kind.DIRECTORY:
                await trees.check(repository, await in_cpu_thread(content.manifest))
            # Where there are no locks, or this process has lost its own, somebody may have cancelled the upload meanwhile.
            await self.find(upload.id, repository)
            return await send_and_commit(repository, content, name=upload.name, kind=kind)

    async def _resumed(self, upload: ServedUpload, parts: Sequence[UploadPart], *, is_whole: bool) -> PartsContent:
        """Return the content of `parts`, continued after the chunks that any process has cut of it."""
        tags = [part.tag for part in parts]
        cut = await upload.cut()
        chunks = cut.chunks if cut.tags == tags[: len(cut.tags)] else bytearray()
        kept = self._kept.pop(upload.id, None)
        chunker = Chunker()
        # A chunker that read other bytes cannot go on. One that is ahead of the saved cut has forgotten boundaries that
        # are needed again.
        if kept is not None and kept.tags == tags[: len(kept.tags)] and kept.chunks_size <= len(chunks):
            chunker = kept.chunker
        return await in_cpu_thread(PartsContent, upload.path, parts, chunks, chunker, is_whole=is_whole)

    async def _save(self, upload: ServedUpload, parts: Sequence[UploadPart], content: PartsContent) -> None:
        tags = [part.tag for part in parts]
        await upload.save_cut(tags, content.chunks)
        if not content.chunker.needs_no_more:
            self._kept[upload.id] = _SavedChunker(tags, len(content.chunks), content.chunker)
            if len(self._kept) > CHUNKERS_KEPT:
                self._kept.popitem(last=False)

    @asynccontextmanager
    async def waited_for(self, upload: ServedUpload) -> AsyncIterator[None]:
        """Hold the lock for cutting and finishing during the block. Raises Busy, UploadNotFound.

        A finished upload may have no lock any more. It does not change, so the block runs without one.
        """
        async with AsyncExitStack() as stack:
            try:
                is_held = await stack.enter_async_context(upload.locked(limit_seconds=FINISH_SECONDS))
            except UploadNotFound:
                if await upload.finished() is None:
                    raise
                is_held = True
            if not is_held:
                raise Busy(f"the upload {upload.id}", "a process of the server is storing what arrived of it")
            yield


ASSEMBLY = web.AppKey("assembly", Assembly)


async def _uncut_parts(upload: ServedUpload) -> list[UploadPart]:
    """Return the parts without a gap from number 1 on. Return none if they have too little new content to cut."""
    contiguous = unbroken(await upload.parts())
    cut = await upload.cut()
    tags = [part.tag for part in contiguous]
    cut_size = sum(chunk.size for chunk in unpacked(cut.chunks)) if cut.tags == tags[: len(cut.tags)] else 0
    return contiguous if sum(part.size for part in contiguous) - cut_size >= AHEAD_SIZE else []


async def _check_unfinished(upload: ServedUpload) -> None:
    """Raise UploadNotFound if an upload is finished, as S3 does for one that is completed."""
    if await upload.finished() is not None:
        raise UploadNotFound(upload.id)


async def _look_for_stop(upload: ServedUpload) -> None:
    """Return never. Raises UploadNotFound soon after somebody began to cancel the upload."""
    while True:
        if await upload.is_stop_requested():
            raise UploadNotFound(upload.id)
        await asyncio.sleep(STOP_SECONDS)


def _chosen(parts: Sequence[UploadPart], listed: Mapping[int, str]) -> list[UploadPart]:
    """Return the listed parts in order. Raises InvalidParts unless they are all parts that arrived and none is missing."""
    arrived = {(part.number, part.tag): part for part in parts}
    numbers = {part.number for part in parts}
    chosen = []
    for number in range(1, max([*numbers, *listed], default=0) + 1):
        if number not in numbers:
            raise InvalidParts(f"part {number} never arrived")
        if number not in listed:
            raise InvalidParts(f"part {number} arrived and is not listed")
        part = arrived.get((number, listed[number]))
        if part is None:
            raise InvalidParts(f"part {number} has another ETag than the one that is listed")
        chosen.append(part)
    return chosen
