"""Keep uploads in parts in an object store, where any server can go on with them.

    NAMESPACE/ID/upload.json             the ids and the name of the upload
    NAMESPACE/ID/parts/NUMBER/SIZE-TAG   a part that arrived whole; TAG identifies its bytes
    NAMESPACE/ID/cut                     the chunks that are cut and stored so far
    NAMESPACE/ID/stop                    somebody cancels the upload, and waits for the server that cuts
    NAMESPACE/ID/finished.json           how the upload was finished; it stays for a time when the parts are removed
    NAMESPACE/objects/SHA256             an LFS object: a line of JSON, and then its manifest

A part is in a file of this host while it arrives, and is put when it is whole. Ages are those of the objects, by the clock of the
object store. Two servers that finish an upload at once both write the same, and what was put first counts.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from weakref import WeakValueDictionary

from blake3 import blake3

from filestore.core.digest import Buffer
from filestore.core.manifest import Manifest
from filestore.errors import InvalidParts, PartRefused, TooManyUploads, UploadNotFound, UploadsTooLarge
from filestore.http.server.context import make_spool_folder, spooling
from filestore.http.server.lfs_objects import HEAD_LIMIT, LfsObject, parsed_object, parsed_whole
from filestore.http.server.routes.sdk.parts import UploadPart
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads, in_objects
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import FILE_ID_START, ArrivingPart, Cut, ServedUpload
from filestore.http.server.routes.sdk.upload_totals import ListedTotals, UploadTotals, note_totals, sum_of
from filestore.http.server.routes.sdk.uploads import encoded_cut, new_id, parsed_cut
from filestore.http.server.upload_quota import UPLOAD_ID
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.temporary import TemporaryObject, TemporaryObjects
from filestore.system.files import write_all
from filestore.system.threads import in_disk_thread, shield_until_done

LOCKS_LIMIT = 8
"""The most uploads that a process cuts or finishes at once."""
LOOK_SECONDS = 1.0
"""The time between two tries to get the lock of an upload that another server has."""
CLEARED_SECONDS = 600.0
"""So long, a namespace without tokens is not looked at again after its uploads were removed."""
EXPIRY_LOCK = "uploads"
"""The lock in the index of the server that looks for abandoned uploads."""
_DESCRIPTION, _PARTS, _CUT, _FINISHED, _STOP = "upload.json", "parts", "cut", "finished.json", "stop"
_OBJECTS = "objects"
_NO_LIMIT = 1 << 62


class ObjectPart(NamedTuple):
    """A part in an object."""

    number: int
    tag: str
    size: int
    name: str
    objects: TemporaryObjects
    loop: asyncio.AbstractEventLoop
    """The loop of the server. Reads come from other threads."""

    def read_into(self, memory: memoryview, offset: int) -> None:
        if not memory:
            return
        reading = self.objects.get(self.name, start=offset, size=len(memory))
        found = asyncio.run_coroutine_threadsafe(reading, self.loop).result()
        if found is None:
            raise InvalidParts(f"part {self.number} was removed while the upload was put together")
        if len(found) != len(memory):
            raise InvalidParts(f"part {self.number} is shorter than it was")
        memory[:] = found


class ObjectUploads:
    """The uploads of a repository in an object store."""

    place = None

    def __init__(
        self, objects: TemporaryObjects, index: Index, *, spool_folder: Path, size_limit: int | None, count_limit: int | None
    ) -> None:
        """A namespace may have `count_limit` unfinished uploads, with parts of `size_limit` bytes. None means no limit.

        The index has the locks that all servers share. A part that arrives is in a file of `spool_folder`.
        """
        self.objects = objects
        self.index = index
        self.spool_folder = spool_folder
        self._size_limit = size_limit
        self._count_limit = count_limit
        self.locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """The locks of the uploads that this process works on."""
        self.places = asyncio.Semaphore(LOCKS_LIMIT)
        self._cleared_at: dict[str, float] = {}
        self._totals = ListedTotals(self._list_totals)

    async def begin(self, repository: LocalRepository, *, name: str | None, upload_id: str | None) -> ObjectUpload:
        upload_id = new_id() if upload_id is None else upload_id
        if not UPLOAD_ID.match(upload_id):
            raise UploadNotFound(upload_id)
        namespace, file_id = repository.namespace, f"{FILE_ID_START}{upload_id}"
        upload = ObjectUpload(self, upload_id, file_id=file_id, name=name or file_id, namespace=namespace)
        description, key = {"file_id": file_id, "name": upload.name}, upload.key(_DESCRIPTION)
        async with self._taking_count(namespace, key, repository.quota.uploads):
            await self.objects.put(key, json.dumps(description).encode(), only_new=True)
        return upload

    async def find(self, upload_id: str, *, namespace: str) -> ObjectUpload:
        found = await self.objects.get(f"{namespace}/{upload_id}/{_DESCRIPTION}") if UPLOAD_ID.match(upload_id) else None
        # An object of another namespace has another name. Its upload is not known here.
        if found is None:
            raise UploadNotFound(upload_id)
        described = json.loads(found)
        return ObjectUpload(self, upload_id, file_id=described["file_id"], name=described["name"], namespace=namespace)

    async def discard(self, upload: ServedUpload) -> None:
        await self._remove_unlocked(upload.namespace, upload.id)

    async def expire(self, *, idle_seconds: float, limit_seconds: float) -> None:
        async with self.index.try_lock(EXPIRY_LOCK) as is_ours:
            if not is_ours:
                return
            now = await self.objects.clock()
            ages = _Ages(now - timedelta(seconds=idle_seconds), now - timedelta(seconds=limit_seconds))
            left = [await self._expire_namespace(namespace, ages) for namespace in await self.objects.folders("")]
            await note_totals(self.index, sum_of(*left))

    async def unfinished(self, namespace: str | None, *, prefix: str = "", limit: int) -> UnfinishedUploads:
        return await in_objects(self.objects, namespace, prefix=prefix, limit=limit)

    async def remove_all(self, namespaces: Collection[str]) -> None:
        for namespace in namespaces:
            if time.monotonic() < self._cleared_at.get(namespace, -CLEARED_SECONDS) + CLEARED_SECONDS:
                continue
            ids = [upload_id for upload_id in await self.objects.folders(namespace) if UPLOAD_ID.match(upload_id)]
            if all([await self._remove_unlocked(namespace, upload_id) for upload_id in ids]):
                self._cleared_at[namespace] = time.monotonic()

    async def keep_object(self, namespace: str, lfs_object: LfsObject, manifest: bytes) -> None:
        await self.objects.put(_object_key(namespace, lfs_object.sha256), lfs_object.encode() + b"\n" + manifest)

    async def find_object(self, namespace: str, sha256: bytes) -> LfsObject | None:
        found = await self.objects.get(_object_key(namespace, sha256), size=HEAD_LIMIT)
        return None if found is None else parsed_object(sha256, found.partition(b"\n")[0])

    async def find_object_with_manifest(self, namespace: str, sha256: bytes) -> tuple[LfsObject, Manifest] | None:
        found = await self.objects.get(_object_key(namespace, sha256))
        return None if found is None else await in_disk_thread(parsed_whole, sha256, found)

    async def check_size(self, namespace: str, more: int) -> None:
        """Raise UploadsTooLarge if the parts of a namespace and `more` bytes would be larger than its limit."""
        if self._size_limit is not None:
            limits = UploadTotals(_NO_LIMIT, self._size_limit)
            self._check_used(namespace, await self._totals.used_with(namespace, UploadTotals(0, more), limits), limits)

    @asynccontextmanager
    async def taking_size(self, namespace: str, name: str, size: int) -> AsyncIterator[None]:
        """Count a part that the block puts as an object with this name. Raises UploadsTooLarge."""
        if self._size_limit is None:
            yield
            return
        limits = UploadTotals(_NO_LIMIT, self._size_limit)
        async with self._totals.taking(namespace, name, UploadTotals(0, size), limits) as used:
            self._check_used(namespace, used, limits)
            yield

    @asynccontextmanager
    async def _taking_count(self, namespace: str, name: str, limit: int | None) -> AsyncIterator[None]:
        """Count an upload that the block begins. `limit` is that of the namespace, if it has one. Raises TooManyUploads."""
        setting = "uploads_limit" if limit is None else ""
        limit = self._count_limit if limit is None else limit
        if limit is None:
            yield
            return
        limits = UploadTotals(limit, _NO_LIMIT)
        async with self._totals.taking(namespace, name, UploadTotals(1, 0), limits) as used:
            if used.uploads > limit:
                what = f"the number of uploads in progress of the namespace {namespace}"
                raise TooManyUploads(what, used.uploads, limit, setting)
            yield

    @staticmethod
    def _check_used(namespace: str, used: UploadTotals, limits: UploadTotals) -> None:
        if used.size > limits.size:
            what = f"the size in bytes of the unfinished uploads of the namespace {namespace}"
            raise UploadsTooLarge(what, used.size, limits.size, "uploads_size_limit")

    async def _list_totals(self, namespace: str, *, without: Collection[str]) -> UploadTotals:
        return _totals_of([each for each in await self.objects.names(namespace) if each.name not in without])

    async def _expire_namespace(self, namespace: str, ages: _Ages) -> UploadTotals:
        """Remove what is too old. Return what is left."""
        found = await self.objects.names(namespace)
        old = [each.name for each in found if _id_of(each) == _OBJECTS and each.put_at < ages.idle]
        await self.objects.remove(old)
        uploads: dict[str, list[TemporaryObject]] = {}
        for each in found:
            if UPLOAD_ID.match(_id_of(each)):
                uploads.setdefault(_id_of(each), []).append(each)
        left = []
        for upload_id, of_upload in uploads.items():
            if not ages.are_over(of_upload) or not await self._remove_unlocked(namespace, upload_id):
                left += of_upload
        return _totals_of(left)

    async def _remove_unlocked(self, namespace: str, upload_id: str) -> bool:
        """Remove an upload, unless it is locked. Return whether it was removed."""
        upload = ObjectUpload(self, upload_id, file_id="", name="", namespace=namespace)
        async with upload.locked(limit_seconds=0) as is_held:
            if is_held:
                await self.remove(upload)
            return is_held

    async def remove(self, upload: ObjectUpload) -> None:
        """Remove all of an upload. A part that arrives meanwhile finds no description, and is not kept."""
        await self.objects.remove([upload.key(_DESCRIPTION)])
        await self.objects.remove([each.name for each in await self.objects.names(f"{upload.namespace}/{upload.id}")])


class ObjectUpload:
    """One upload in an object store."""

    def __init__(self, uploads: ObjectUploads, upload_id: str, *, file_id: str, name: str, namespace: str) -> None:
        self.id = upload_id
        self.file_id = file_id
        self.name = name
        self.namespace = namespace
        self.path = Path(f"upload-{upload_id}")
        self._uploads = uploads
        self._objects = uploads.objects

    def key(self, name: str) -> str:
        """Return the name of an object of the upload."""
        return f"{self.namespace}/{self.id}/{name}"

    @asynccontextmanager
    async def arriving(self, size: int) -> AsyncIterator[ArrivingPart]:
        await self._uploads.check_size(self.namespace, size)
        begun: list[_FilePart] = []
        try:
            await in_disk_thread(_begin_part, self._uploads.spool_folder, begun)
            yield begun[0]
        finally:
            for part in begun:
                await shield_until_done(in_disk_thread(part.close))

    async def keep(self, part: ArrivingPart, number: int, *, check_size: Callable[[int], None]) -> UploadPart:
        arrived = cast("_FilePart", part)
        if await self.finished() is not None:
            raise UploadNotFound(self.id)
        parts = await self._parts()
        tags = {other.tag for other in parts if other.number == number}
        if tags and arrived.tag not in tags:
            raise PartRefused(number)
        check_size(arrived.size + sum(other.size for other in parts if other.number != number))
        name = self.key(f"{_PARTS}/{number:05}/{arrived.size}-{arrived.tag}")
        async with self._uploads.taking_size(self.namespace, name, arrived.size):
            await self._objects.put(name, arrived.file if arrived.size else b"")
        # Who removes the upload removes the description first, and then all that is listed after that.
        if not await self._is_described():
            await self._objects.remove([name])
            raise UploadNotFound(self.id)
        return ObjectPart(number, arrived.tag, arrived.size, name, self._objects, asyncio.get_running_loop())

    async def arrived(self, number: int) -> UploadPart | None:
        found = await self._parts(f"/{number:05}")
        return found[0] if len(found) == 1 else None

    async def parts(self) -> Sequence[UploadPart]:
        return await self._parts()

    async def whole_parts(self) -> Sequence[UploadPart]:
        parts = await self._parts()
        counts = Counter(part.number for part in parts)
        return [part for part in parts if counts[part.number] == 1]

    async def cut(self) -> Cut:
        return parsed_cut(await self._objects.get(self.key(_CUT)) or b"")

    async def save_cut(self, tags: Sequence[str], chunks: Buffer) -> None:
        await self._objects.put(self.key(_CUT), encoded_cut(tags, chunks))

    async def finished(self) -> FinishedUpload | None:
        found = await self._objects.get(self.key(_FINISHED))
        return None if found is None else FinishedUpload.parse(found)

    async def save_first(self, finished: FinishedUpload) -> FinishedUpload:
        await self._objects.put(self.key(_FINISHED), finished.encode(), only_new=True)
        kept = await self.finished()
        if kept is None:
            raise UploadNotFound(self.id)
        return kept

    async def retire(self) -> None:
        if await self.finished() is not None:
            parts = [each.name for each in await self._objects.names(self.key(_PARTS))]
            await self._objects.remove([*parts, self.key(_CUT), self.key(_STOP)])

    async def request_stop(self) -> None:
        await self._objects.put(self.key(_STOP), b"stop")

    async def withdraw_stop(self) -> None:
        await self._objects.remove([self.key(_STOP)])

    async def is_stop_requested(self) -> bool:
        return await self._objects.get(self.key(_STOP), size=1) is not None or not await self._is_described()

    async def cancel(self) -> None:
        if not await self._is_described():
            raise UploadNotFound(self.id)
        await self._uploads.remove(self)

    async def _is_described(self) -> bool:
        return await self._objects.get(self.key(_DESCRIPTION), size=1) is not None

    @asynccontextmanager
    async def locked(self, *, limit_seconds: float) -> AsyncIterator[bool]:
        lock = self._uploads.locks.setdefault(self.id, asyncio.Lock())
        until = time.monotonic() + limit_seconds
        if not limit_seconds and (lock.locked() or self._uploads.places.locked()):
            yield False
            return
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(limit_seconds or None):
                    await stack.enter_async_context(lock)
                    await stack.enter_async_context(self._uploads.places)
            except TimeoutError:
                yield False
                return
            while True:
                async with self._uploads.index.try_lock(f"upload-{self.id}") as is_ours:
                    if is_ours or time.monotonic() >= until:
                        yield is_ours
                        return
                await asyncio.sleep(LOOK_SECONDS)

    async def _parts(self, below: str = "") -> list[ObjectPart]:
        loop = asyncio.get_running_loop()
        found = []
        for each in await self._objects.names(self.key(_PARTS + below)):
            number, _, rest = each.name.removeprefix(self.key(f"{_PARTS}/")).partition("/")
            with suppress(ValueError):
                found.append(ObjectPart(int(number), rest.partition("-")[2], each.size, each.name, self._objects, loop))
        return sorted(found, key=lambda part: (part.number, part.tag))


class _FilePart:
    """A part that arrives in a file without a name."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file = file
        self._digest = blake3()

    @property
    def tag(self) -> str:
        """64 hexadecimal digits that identify the bytes so far."""
        return self._digest.hexdigest()

    @property
    def file(self) -> BinaryIO:
        """The file, at its beginning."""
        self._file.seek(0)
        return self._file

    def write(self, piece: Buffer) -> None:
        self.size += len(piece)
        self._digest.update(piece)
        with spooling():
            write_all(self._file.fileno(), piece)

    def check_quota(self) -> None:
        """Do nothing: the size was checked as it was announced, and is checked again when the part is whole."""

    def close(self) -> None:
        """Free the space of the file."""
        self._file.close()


class _Ages(NamedTuple):
    """The times before which something is too old."""

    idle: datetime
    limit: datetime

    def are_over(self, objects: Iterable[TemporaryObject]) -> bool:
        """Return whether an upload is over, which has these objects."""
        # A cut is written later than the parts from which it is made, so only what arrives counts.
        arrived = [each.put_at for each in objects if not each.name.endswith((f"/{_CUT}", f"/{_STOP}"))]
        return not arrived or max(arrived) < self.idle or min(arrived) < self.limit


def _begin_part(folder: Path, begun: list[_FilePart]) -> None:
    make_spool_folder(folder)
    with spooling():
        begun.append(_FilePart(tempfile.TemporaryFile(buffering=0, dir=folder)))  # noqa: SIM115  # the caller closes it


def _id_of(found: TemporaryObject) -> str:
    return found.name.split("/", 2)[1]


def _totals_of(found: Sequence[TemporaryObject]) -> UploadTotals:
    """Return what the objects of a namespace are together."""
    kinds = Counter(each.name.rpartition("/")[2] for each in found)
    finished = {_id_of(each) for each in found if each.name.endswith(f"/{_FINISHED}")}
    size = sum(each.size for each in found if _is_part(each) and _id_of(each) not in finished)
    return UploadTotals(kinds[_DESCRIPTION] - kinds[_FINISHED], size)


def _is_part(found: TemporaryObject) -> bool:
    return found.name.split("/")[2:3] == [_PARTS]


def _object_key(namespace: str, sha256: bytes) -> str:
    return f"{namespace}/{_OBJECTS}/{sha256.hex()}"
