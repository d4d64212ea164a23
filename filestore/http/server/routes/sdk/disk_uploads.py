"""Uploads in a folder, as coroutines. `uploads` keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

from filestore.core.digest import Buffer
from filestore.core.manifest import Manifest
from filestore.http.server.context import make_spool_folder
from filestore.http.server.lfs_objects import LfsObject, LfsObjects, expire_objects
from filestore.http.server.routes.sdk import uploads
from filestore.http.server.routes.sdk.parts import UploadPart
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads, in_folder
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import ArrivingPart, Cut, ServedUpload
from filestore.http.server.upload_quota import UPLOAD_SIZE, UploadQuota
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_disk_thread, shield_until_done


class DiskUpload:
    """An upload in a folder."""

    def __init__(self, upload: uploads.Upload, quota: UploadQuota) -> None:
        self.id = upload.id
        self.file_id = upload.file_id
        self.name = upload.name
        self.namespace = upload.namespace
        self.path = upload.folder
        self._upload = upload
        self._quota = quota

    @asynccontextmanager
    async def arriving(self, size: int) -> AsyncIterator[ArrivingPart]:
        begun: list[uploads.IncomingPart] = []

        def begin() -> None:
            # In a list, so that a cancel finds it. Its file counts among the unfinished uploads until it is discarded.
            begun.append(self._upload.receive(size))

        try:
            await in_disk_thread(begin)
            part = _CountedPart(begun[0], partial(self._quota.check_size, self.namespace))
            await in_disk_thread(part.check_quota)
            yield part
        finally:
            for incoming in begun:
                await shield_until_done(in_disk_thread(incoming.discard))

    async def keep(self, part: ArrivingPart, number: int, *, check_size: Callable[[int], None]) -> UploadPart:
        return await in_disk_thread(self._upload.keep, cast("_CountedPart", part).incoming, number, check_size=check_size)

    async def arrived(self, number: int) -> UploadPart | None:
        return await in_disk_thread(self._upload.arrived, number)

    async def parts(self) -> Sequence[UploadPart]:
        return await in_disk_thread(self._upload.parts)

    async def whole_parts(self) -> Sequence[UploadPart]:
        return await in_disk_thread(self._upload.whole_parts)

    async def cut(self) -> Cut:
        return await in_disk_thread(self._upload.cut)

    async def save_cut(self, tags: Sequence[str], chunks: Buffer) -> None:
        await in_disk_thread(self._upload.save_cut, tags, chunks)

    async def finished(self) -> FinishedUpload | None:
        return await in_disk_thread(self._upload.finished)

    async def save_first(self, finished: FinishedUpload) -> FinishedUpload:
        return await in_disk_thread(self._upload.save_first, finished)

    async def retire(self) -> None:
        await in_disk_thread(self._upload.retire)

    async def request_stop(self) -> None:
        await in_disk_thread(self._upload.request_stop)

    async def withdraw_stop(self) -> None:
        await in_disk_thread(self._upload.withdraw_stop)

    async def is_stop_requested(self) -> bool:
        return await in_disk_thread(self._upload.is_stop_requested)

    async def cancel(self) -> None:
        await in_disk_thread(self._upload.cancel)

    @asynccontextmanager
    async def locked(self, *, limit_seconds: float) -> AsyncIterator[bool]:
        with await in_disk_thread(self._upload.lock) as lock:
            yield await lock.acquire_soon(limit_seconds=limit_seconds)


class DiskUploads:
    """The uploads in one folder."""

    def __init__(self, folders: Path, quota: UploadQuota) -> None:
        """`folders` is the folder of all uploads of the repository."""
        self.place = folders
        self._quota = quota

    async def begin(self, repository: LocalRepository, *, name: str | None, upload_id: str | None) -> DiskUpload:
        await in_disk_thread(make_spool_folder, self.place.parent)
        async with repository.space_for(UPLOAD_SIZE, place=self.place.parent):
            begin = partial(uploads.begin, self.place, name=name, namespace=repository.namespace, quota=self._quota)
            upload = await in_disk_thread(begin, upload_id=upload_id, count_limit=repository.quota.uploads)
        return DiskUpload(upload, self._quota)

    async def find(self, upload_id: str, *, namespace: str) -> DiskUpload:
        return DiskUpload(await in_disk_thread(uploads.find, self.place, upload_id, namespace=namespace), self._quota)

    async def discard(self, upload: ServedUpload) -> None:
        await in_disk_thread(uploads.discard, upload.path)

    async def expire(self, *, idle_seconds: float, limit_seconds: float) -> None:
        await in_disk_thread(uploads.expire, self.place, idle_seconds=idle_seconds, limit_seconds=limit_seconds)
        await in_disk_thread(expire_objects, self.place, idle_seconds=idle_seconds)

    async def unfinished(self, namespace: str | None, *, prefix: str = "", limit: int) -> UnfinishedUploads:
        return await in_disk_thread(in_folder, self.place, namespace, prefix=prefix, limit=limit)

    async def remove_all(self, namespaces: Collection[str]) -> None:
        await in_disk_thread(uploads.remove_all, self.place, namespaces)

    async def keep_object(self, namespace: str, lfs_object: LfsObject, manifest: bytes) -> None:
        await in_disk_thread(LfsObjects(self.place, namespace).keep, lfs_object, manifest)

    async def find_object(self, namespace: str, sha256: bytes) -> LfsObject | None:
        return await in_disk_thread(LfsObjects(self.place, namespace).find, sha256)

    async def find_object_with_manifest(self, namespace: str, sha256: bytes) -> tuple[LfsObject, Manifest] | None:
        return await in_disk_thread(LfsObjects(self.place, namespace).find_with_manifest, sha256)


class _CountedPart:
    """A part that arrives in a file, and counts for the quota of its namespace."""

    def __init__(self, incoming: uploads.IncomingPart, check_quota: Callable[[], None]) -> None:
        self.incoming = incoming
        self.check_quota = check_quota

    @property
    def size(self) -> int:
        return self.incoming.size

    @property
    def tag(self) -> str:
        return self.incoming.tag

    def write(self, piece: Buffer) -> None:
        self.incoming.write(piece)
