"""A chunk store in a bucket of an object store that has the S3 API. `s3_keys` lists its objects.

The key of an object is never used twice: each put of a frame or manifest makes a new one, and its row in the index says which
object it is. So a removal that arrives late, of a process that was cut off, removes only what nobody names any more. An object
that no row names is invisible; `s3_sweep` removes it after some hours.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import obstore

from filestore.core.digest import Buffer, Digest
from filestore.core.object_names import FrameObject, ObjectName
from filestore.errors import ReadOnly, StorageError, UsedAfterFork
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.stores.disk import DiskStore, open_store
from filestore.repository.stores.disk_errors import translated
from filestore.repository.stores.object_map import ObjectMap
from filestore.repository.stores.protocol import FrameProblem, FrameState, FrameUrl, Removed, SpaceClaim, Staging
from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_format import initialise
from filestore.repository.stores.s3_keys import FORMAT_KEY, FRAMES, MANIFESTS, damaged_key, frame_key, manifest_key, parse_key
from filestore.repository.stores.s3_staging import (
    MEMORY_SIZE,
    FrameMemory,
    Puts,
    S3Placement,
    S3Staging,
    new_object_id,
    staged_here,
)
from filestore.repository.stores.s3_sweep import Sweep
from filestore.repository.stores.s3_temporary import S3Temporary
from filestore.repository.stores.temporary import TemporaryObjects
from filestore.system.buffers import Budget
from filestore.system.files import write_all
from filestore.system.metrics import Stage, async_span
from filestore.system.threads import in_cpu_thread, in_disk_thread, task_group

T = TypeVar("T")

logger = logging.getLogger("filestore.store")

_READ_TOGETHER = 8
"""How many frames `read_each` reads while the ones before are visited."""
_SPOOLED_SIZE = 64 << 20
"""The most bytes of frames that `open` reads and has not written to files yet."""
_MISSING = FrameState(0, FrameProblem.MISSING, "it is missing")


class S3Store:
    """Stores frames and manifests in objects. Make it with `open_s3_store`.

    A frame or manifest is there if a row of the index names its object, and the object is there with the size that the row
    states. An object that is not is logged, and counts as absent.
    """

    has_object_ids = True

    def __init__(
        self,
        client: S3Client,
        objects: ObjectMap,
        scratch: DiskStore,
        *,
        folder: Path,
        read_only: bool = False,
    ) -> None:
        """Make a store. `scratch` is a store in `folder`, of which only the staging files are used.

        With `read_only`, methods that receive frames and the format file raise ReadOnly.
        """
        self.client = client
        self.temporary: TemporaryObjects | None = S3Temporary(client)
        self._objects = objects
        self._scratch = scratch
        self._folder = folder
        self._read_only = read_only
        self._puts = Puts(client)
        self._memory = FrameMemory(MEMORY_SIZE)
        self._spooled = Budget(_SPOOLED_SIZE)
        self._pid = os.getpid()
        self._format: bytes | None = None

    async def is_initialised(self) -> bool:
        """Return whether the repository has a format file. Raises StorageError."""
        return await self.client.get(FORMAT_KEY) is not None

    async def initialise(self, text: bytes) -> bytes:
        if self._format is None:
            if self._read_only:
                kept = await self.client.get(FORMAT_KEY)
                if kept is None:
                    raise ReadOnly(str(self.client.location))
                self._format = bytes(kept)
            else:
                self._format = await initialise(self.client, text)
        return self._format

    def new_staging(self) -> S3Staging:
        if self._read_only:
            raise ReadOnly(str(self.client.location))
        if self._pid != os.getpid():
            raise UsedAfterFork(str(self.client.location), self._pid)
        return S3Staging(self._memory, self._scratch.new_staging)

    def space_for(
        self, size: int, *, place: Path | None = None, for_reader: bool = False
    ) -> AbstractAsyncContextManager[SpaceClaim]:
        """Promise space in the scratch folder, where large frames are until they are put."""
        return self._scratch.space_for(size, place=place, for_reader=for_reader)

    async def disk(self) -> None:
        return None

    async def release_reserve(self) -> bool:
        return False

    async def make_reserve(self) -> bool:
        """Return True: a removal needs no space."""
        return True

    def sync(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Put the frames side by side, each in a new object."""
        self._puts.put_all(namespace, staged_here(staged))

    def placement(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> S3Placement:  # noqa: ARG002  # of the protocol
        return S3Placement(str(self.client.location), staged_here(staged))

    async def publish(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Check only that the objects are young enough. The caller commits the rows that name them."""
        placement = self.placement(namespace, staged)
        placement.prepare()
        placement.rename({digest for digest, _ in staged})

    async def open(self, namespace: str, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        """Read frames side by side into files of the scratch folder that have no name. Also raises MinFreeReached, for that."""
        objects = await self._objects.frame_objects(namespace, digests)
        opened: list[BinaryIO | None] = [None] * len(digests)
        size = sum(objects[digest].stored_size for digest in digests if digest in objects)

        async def open_one(place: int, digest: Digest, row: FrameObject) -> None:
            # I6: until they are in the file.
            async with self._spooled.take(row.stored_size):
                found = await self._read(namespace, digest, row)
                if found is not None:
                    await in_disk_thread(self._spool, found, opened, place)

        try:
            async with self._scratch.space_for(size, for_reader=True), task_group() as group:
                for place, digest in enumerate(digests):
                    if digest in objects:
                        group.create_task(open_one(place, digest, objects[digest]))
        except BaseException:
            # A cancel arrives after the threads have ended, so `opened` holds all files that must be closed.
            _close(opened)
            raise
        return opened

    async def frame_urls(self, namespace: str, digests: Sequence[Digest], *, seconds: float) -> list[FrameUrl | None]:
        objects = await self._objects.frame_objects(namespace, digests)
        keys = [frame_key(namespace, ObjectName(digest, found.object_id)) for digest, found in objects.items()]
        urls = dict(zip(objects, await self.client.urls(keys, seconds=seconds) if keys else (), strict=True))
        return [FrameUrl(urls[digest], objects[digest].stored_size) if digest in urls else None for digest in digests]

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        """Return the sizes that the rows state. The object store is not asked."""
        objects = await self._objects.frame_objects(namespace, digests)
        return [objects[digest].stored_size if digest in objects else 0 for digest in digests]

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        """Read frames side by side. One whose object is absent leaves its part of `buffer` unused."""
        objects = await self._objects.frame_objects(namespace, digests)
        parts: list[memoryview | None] = [None] * len(digests)
        if sum(objects[digest].stored_size for digest in digests if digest in objects) > len(buffer):
            raise ValueError("the frames do not fit into the buffer")

        async def read_one(place: int, digest: Digest, part: memoryview) -> None:
            found = await self._read(namespace, digest, objects[digest])
            if found is not None:
                part[:] = memoryview(found)
                parts[place] = part

        start = 0
        with async_span(Stage.READ):
            async with task_group() as group:
                for place, digest in enumerate(digests):
                    if digest in objects:
                        end = start + objects[digest].stored_size
                        group.create_task(read_one(place, digest, buffer[start:end]))
                        start = end
        return parts

    async def inspect(self, namespace: str, digests: Sequence[Digest]) -> list[FrameState]:
        """Ask the object store for the size of each object."""
        objects = await self._objects.frame_objects(namespace, digests)
        async with task_group() as group:
            tasks = [group.create_task(self._state(namespace, digest, objects.get(digest))) for digest in digests]
        return [task.result() for task in tasks]

    async def read_each(
        self,
        namespace: str,
        digests: Sequence[Digest],
        buffer: memoryview,  # noqa: ARG002  # frames are in memory of obstore already
        visit: Callable[[Digest, memoryview], T],
    ) -> list[T | FrameState]:
        objects = await self._objects.frame_objects(namespace, digests)
        results: list[T | FrameState] = []
        for start in range(0, len(digests), _READ_TOGETHER):
            together = digests[start : start + _READ_TOGETHER]
            async with task_group() as group:
                tasks = [group.create_task(self._whole(namespace, digest, objects.get(digest))) for digest in together]
            for digest, task in zip(together, tasks, strict=True):
                whole = task.result()
                if isinstance(whole, FrameState):
                    results.append(whole)
                else:
                    results.append(await in_cpu_thread(visit, digest, memoryview(whole)))
        return results

    async def set_aside(self, namespace: str, name: ObjectName) -> str | None:
        """Copy the object to a key below `damaged`. The caller removes it when nothing names it any more."""
        where = damaged_key(namespace, name)
        if not await self.client.copy(frame_key(namespace, name), where):
            return None
        return f"{self.client.location}/{where}"

    async def read_object(self, namespace: str, name: ObjectName) -> Buffer | None:
        found = await self.client.get(frame_key(namespace, name), size=FRAME_LIMIT)
        return None if found is None else memoryview(found)

    async def namespaces(self) -> list[str]:
        return await self.client.folders(FRAMES)

    async def remove(self, namespace: str, names: Sequence[ObjectName]) -> None:
        await self.client.delete([frame_key(namespace, name) for name in names])

    async def digests(self, namespace: str) -> AsyncIterator[Digest]:
        async for page in self.frame_pages(namespace):
            for digest, _ in page:
                yield digest

    async def frame_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        """Yield the objects that rows name. What is in the place of a frame with another size is listed with its own."""
        async for page in self.client.pages(f"{FRAMES}/{namespace}"):
            found = {name: listed.size for listed in page if (name := parse_key(listed.key)) is not None}
            objects = await self._objects.frame_objects(namespace, [name.digest for name in found])
            named = {ObjectName(digest, each.object_id) for digest, each in objects.items()}
            yield [(name.digest, size) for name, size in found.items() if name in named]

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> bytes:
        """Put a new object. `Transaction.keep_manifest` then says whether it is the one that stays."""
        object_id = new_object_id()
        # A copy, because a request that was cancelled may read it for another moment.
        await self.client.put(manifest_key(namespace, ObjectName(digest, object_id)), bytes(encoded))
        return object_id

    async def has_manifest(self, namespace: str, digest: Digest) -> bool:
        return await self._objects.manifest_object(namespace, digest) is not None

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        object_id = await self._objects.manifest_object(namespace, digest)
        if object_id is None:
            return None
        found = await self.client.get(manifest_key(namespace, ObjectName(digest, object_id)))
        if found is None:
            logger.warning("the object of the manifest %s in the namespace %s is missing", digest, namespace)
        return None if found is None else bytes(found)

    async def open_manifest(self, namespace: str, digest: Digest) -> BinaryIO | None:
        encoded = await self.manifest(namespace, digest)
        if encoded is None:
            return None
        opened: list[BinaryIO | None] = [None]
        try:
            await in_disk_thread(self._spool, encoded, opened, 0)
        except BaseException:
            _close(opened)
            raise
        return opened[0]

    async def remove_manifest(self, namespace: str, name: ObjectName) -> None:
        await self.client.delete([manifest_key(namespace, name)])

    async def manifests(self, namespace: str) -> AsyncIterator[Digest]:
        async for page in self.manifest_pages(namespace):
            for digest, _ in page:
                yield digest

    async def manifest_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        """Yield the objects that rows name."""
        async for page in self.client.pages(f"{MANIFESTS}/{namespace}"):
            found = {name: listed.size for listed in page if (name := parse_key(listed.key)) is not None}
            unnamed = set(await self._objects.unnamed_manifests(namespace, list(found)))
            yield [(name.digest, size) for name, size in found.items() if name not in unnamed]

    async def remove_abandoned(self, *, dry_run: bool = False) -> Removed:
        """Remove the objects that no row has named for hours, and what ended processes left in the scratch folder."""
        local = await self._scratch.remove_abandoned(dry_run=dry_run)
        objects = await Sweep(self.client, self._objects, dry_run=dry_run).run()
        return Removed(local.count + objects.count, local.size + objects.size)

    async def close(self) -> None:
        """Remove the staging files of this process."""
        await self._scratch.close()

    async def _read(self, namespace: str, digest: Digest, row: FrameObject | None) -> obstore.Bytes | None:
        """Return the bytes of a frame. Return None if it has no row, or if its object is not there with the right size."""
        if row is None:
            return None
        key = frame_key(namespace, ObjectName(digest, row.object_id))
        found = await self.client.get(key, size=row.stored_size)
        if found is None:
            logger.warning("the object %s of a frame is missing in %s", key, self.client.location)
        elif len(found) != row.stored_size:
            logger.warning("the object %s in %s has not the %d bytes of its row", key, self.client.location, row.stored_size)
            return None
        return found

    async def _whole(self, namespace: str, digest: Digest, row: FrameObject | None) -> obstore.Bytes | FrameState:
        """Return the bytes of an object, or its state if it is absent, or has too many bytes or not those of its row."""
        if row is not None and row.stored_size <= FRAME_LIMIT:
            found = await self.client.get(frame_key(namespace, ObjectName(digest, row.object_id)), size=row.stored_size)
            if found is not None and len(found) <= row.stored_size:
                return found
        return await self._state(namespace, digest, row)

    async def _state(self, namespace: str, digest: Digest, row: FrameObject | None) -> FrameState:
        if row is None:
            return _MISSING
        size = await self.client.size(frame_key(namespace, ObjectName(digest, row.object_id)))
        return _MISSING if size is None else FrameState(size)

    def _spool(self, content: Buffer | obstore.Bytes, opened: list[BinaryIO | None], place: int) -> None:
        with translated(self._folder):
            file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115  # the caller closes it
            opened[place] = file
            write_all(file.fileno(), memoryview(content))
            file.seek(0)


async def open_store_of(
    client: S3Client, objects: ObjectMap, *, scratch: Path | None, min_free: int | None = None, read_only: bool = False
) -> S3Store:
    """Open a store. `scratch` is a folder on a disk of this machine, for content that is on its way. It is made.

    None means one among the temporary folders, which all processes of this user share. Each removes there what others left that
    were killed. `min_free` is how many bytes of its disk stay free. Raises StorageError, StorageFull.
    """
    folder = await in_disk_thread(_temporary_folder) if scratch is None else Path(os.path.abspath(scratch))  # noqa: ASYNC240, PTH100  # no look at the disk
    return S3Store(client, objects, await open_store(folder, min_free=min_free), folder=folder, read_only=read_only)


def _temporary_folder() -> Path:
    """Make a folder that only this user can use, and return it."""
    folder = Path(tempfile.gettempdir()) / f"filestore-{os.getuid()}"
    with translated(folder):
        with suppress(FileExistsError):
            folder.mkdir(0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return folder
    raise StorageError(str(folder), "it must be a folder that only this user can use; remove it, or set TMPDIR to another one")


def _close(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
