"""Puts uploads in parts together: cuts and stores what arrived while more arrives, so that finishing has only the tail left."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import Busy, ChunksMissing, InvalidManifest, InvalidParts, InvalidReference, SourceChanged, UploadNotFound
from filestore.format.chunking import Chunker
from filestore.http.server.errors import log_failure
from filestore.http.server.pushes import push_memory
from filestore.http.server.routes.sdk import uploads
from filestore.http.server.routes.sdk.parts import PartsContent, UploadPart, unbroken
from filestore.http.server.routes.sdk.uploads import FinishedUpload, Upload
from filestore.repository.local import LocalRepository
from filestore.system.buffers import Budget
from filestore.system.threads import in_cpu_thread, in_disk_thread, task_group
from filestore.transfer.push import send, send_and_commit
from filestore.transfer.sources.file import WINDOW_SIZE, unpacked

logger = logging.getLogger("filestore.server")

AHEAD_SIZE = WINDOW_SIZE
"""Fewer uncut bytes than this wait for more, or for the end."""
FINISH_SECONDS = 240.0
"""How long finishing waits for another process that cuts: the SDK gives the request 300 seconds."""
CHUNKERS_KEPT = 4
"""Cutters that wait for more parts, each with up to 16 MiB of a container's header (I6). One that is dropped costs that its
successor looks through all that was cut before."""
SWEEP_SECONDS = 600.0
"""Between two looks for abandoned uploads, at most."""


class _SavedChunker(NamedTuple):
    """A cutter that waits for more."""

    tags: list[str]
    """Those of the parts that it was fed, from the first on."""
    chunks_size: int
    """Bytes of the chunks, packed, that were cut by then."""
    chunker: Chunker


class Assembly:
    """The uploads that this process of a server works on; others may work on the same ones, one at a time on each."""

    def __init__(self, folders: Path, *, push_budget: Budget, idle_seconds: float) -> None:
        self._folders = folders
        self._push_budget = push_budget
        self.idle_seconds = idle_seconds
        """How long an upload may lie still."""
        self._kept: OrderedDict[str, _SavedChunker] = OrderedDict()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work in the background until the end of the block; what is under way then is left to whoever goes on with it."""
        async with task_group() as group:
            self._group = group
            self._start(self._sweep())
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks:
                    task.cancel()

    async def begin(self, *, name: str | None, namespace: str) -> Upload:
        """Begin an upload. Raises StorageFull, StorageError."""
        return await in_disk_thread(uploads.begin, self._folders, name=name, namespace=namespace)

    async def find(self, upload_id: str, *, namespace: str) -> Upload:
        """An upload that is under way, or was finished not long ago. Raises UploadNotFound."""
        return await in_disk_thread(uploads.find, self._folders, upload_id, namespace=namespace, idle_seconds=self.idle_seconds)

    def cut_ahead(self, upload: Upload, repository: LocalRepository) -> None:
        """Have what arrived be cut and stored in the background, unless that is under way."""
        self._start(self._cut_ahead(upload, repository))

    async def finish(self, upload: Upload, repository: LocalRepository, listed: Mapping[int, str]) -> Record:
        """Record the file that the listed parts make up, tags by their numbers. Asked again with the same ones, the same record.

        Raises InvalidParts, UploadNotFound, NotFound once the record was removed, Busy.
        """
        async with self._waited_for(upload):
            finished = await in_disk_thread(upload.finished)
            if finished is None:
                parts = _chosen(await in_disk_thread(upload.parts), listed)
                record = await self._record(upload, repository, parts)
                await in_disk_thread(upload.save_finished, FinishedUpload([part.tag for part in parts], record.id))
                self._kept.pop(upload.id, None)
                # Not waited for: a disk takes its time to give up gigabytes.
                self._start(self._free(upload))
                return record
        if finished.tags != [listed[number] for number in sorted(listed)]:
            raise InvalidParts("it was finished before, with other parts")
        return await repository.record(Reference(id=finished.record_id))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Do this in the background; not at all once the process is about to end: it can be done by another one."""
        if self._group is None:
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        """Remove abandoned uploads, again and again."""
        while True:
            try:
                await in_disk_thread(uploads.expire, self._folders, idle_seconds=self.idle_seconds)
            except OSError as error:
                logger.error("abandoned uploads cannot be removed: %s", error)  # noqa: TRY400  # where it was raised says nothing
            await asyncio.sleep(min(self.idle_seconds / 4, SWEEP_SECONDS))

    async def _cut_ahead(self, upload: Upload, repository: LocalRepository) -> None:
        try:
            # Looked at again once the lock is given back: a part that came meanwhile found it taken.
            while contiguous := await in_disk_thread(_uncut_parts, upload):
                async with _locked(upload) as is_held:
                    if not is_held:
                        return
                    content = await self._resumed(upload, contiguous, is_whole=False)
                    async with self._push_budget.take(push_memory(content.size - content.cut_size)):
                        await send(repository, content)
                    await self._save(upload, contiguous, content)
        except (UploadNotFound, InvalidParts) as error:
            logger.info("upload %s changed while it was cut: %s", upload.id, error)
        except Exception as error:  # noqa: BLE001  # finishing does it again, and tells whoever asks
            log_failure(f"upload {upload.id} is not cut ahead", error, level=logging.WARNING)

    async def _free(self, upload: Upload) -> None:
        """Free the space of a finished upload's parts; what is left of it goes when it expires."""
        with suppress(UploadNotFound, OSError):
            await in_disk_thread(upload.free)

    async def _record(self, upload: Upload, repository: LocalRepository, parts: Sequence[UploadPart]) -> Record:
        content = await self._resumed(upload, parts, is_whole=True)
        try:
            return await self._push(upload, repository, content)
        except (ChunksMissing, InvalidManifest, InvalidReference, SourceChanged) as error:
            # What was kept of the cutting may be damaged, or its chunks be gone: the parts themselves decide.
            log_failure(f"upload {upload.id} is cut once more, from its start", error)
            whole = PartsContent(upload.folder, parts, bytearray(), Chunker(), is_whole=True)
            return await self._push(upload, repository, whole)

    async def _push(self, upload: Upload, repository: LocalRepository, content: PartsContent) -> Record:
        async with self._push_budget.take(push_memory(content.size - content.cut_size)):
            return await send_and_commit(repository, content, name=upload.name)

    async def _resumed(self, upload: Upload, parts: Sequence[UploadPart], *, is_whole: bool) -> PartsContent:
        """What `parts` make up, behind what is cut of it, by whatever process."""
        tags = [part.tag for part in parts]
        cut = await in_disk_thread(upload.cut)
        chunks = cut.chunks if cut.tags == tags[: len(cut.tags)] else bytearray()
        kept = self._kept.pop(upload.id, None)
        chunker = Chunker()
        # One that was fed other bytes, or is further than what is kept on disk, has forgotten boundaries that count again.
        if kept is not None and kept.tags == tags[: len(kept.tags)] and kept.chunks_size <= len(chunks):
            chunker = kept.chunker
        return await in_cpu_thread(PartsContent, upload.folder, parts, chunks, chunker, is_whole=is_whole)

    async def _save(self, upload: Upload, parts: Sequence[UploadPart], content: PartsContent) -> None:
        tags = [part.tag for part in parts]
        await in_disk_thread(upload.save_cut, tags, content.chunks)
        if not content.chunker.needs_no_more:
            self._kept[upload.id] = _SavedChunker(tags, len(content.chunks), content.chunker)
            if len(self._kept) > CHUNKERS_KEPT:
                self._kept.popitem(last=False)

    @asynccontextmanager
    async def _waited_for(self, upload: Upload) -> AsyncIterator[None]:
        """The lock of who cuts. Raises Busy."""
        async with _locked(upload, limit_seconds=FINISH_SECONDS) as is_held:
            if not is_held:
                raise Busy(f"the upload {upload.id}", "a process of the server is storing what arrived of it")
            yield


@asynccontextmanager
async def _locked(upload: Upload, *, limit_seconds: float = 0) -> AsyncIterator[bool]:
    """Whether the lock of who cuts could be had, for the block: False where somebody, in any process, has it."""
    with await in_disk_thread(upload.lock) as lock:
        yield await lock.acquire_soon(limit_seconds=limit_seconds)


ASSEMBLY = web.AppKey("assembly", Assembly)


def _uncut_parts(upload: Upload) -> list[UploadPart]:
    """The unbroken run of parts from the first on, if it is worth cutting what is new in it."""
    contiguous = unbroken(upload.parts())
    cut = upload.cut()
    tags = [part.tag for part in contiguous]
    cut_size = sum(chunk.size for chunk in unpacked(cut.chunks)) if cut.tags == tags[: len(cut.tags)] else 0
    return contiguous if sum(part.size for part in contiguous) - cut_size >= AHEAD_SIZE else []


def _chosen(parts: Sequence[UploadPart], listed: Mapping[int, str]) -> list[UploadPart]:
    """The listed parts in order. Raises InvalidParts unless they are all that arrived, and make up a whole."""
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
