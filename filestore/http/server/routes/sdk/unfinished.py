"""List the uploads in parts that are not finished, for a person who looks at them."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filestore.http.server.context import spooling
from filestore.http.server.upload_quota import DESCRIPTION_NAME, INCOMING_NAME, PART_NAME, UPLOAD_ID
from filestore.repository.stores.temporary import TemporaryObject, TemporaryObjects
from filestore.system.threads import task_group

FINISHED_NAME = "finished.json"
PARTS_NAME = "parts"
_SECOND = 1_000_000


class UnfinishedUpload(NamedTuple):
    """An upload that has begun. Times are in microseconds since 1970, by the clock of what keeps it."""

    id: str
    namespace: str
    name: str
    """The name that the file will have."""
    part_count: int
    """Parts that are whole."""
    size: int
    """Bytes of all parts; in a folder, also of those that are arriving."""
    begun_at: int
    used_at: int
    """When bytes of it last arrived: in an object store, whole parts."""


class UnfinishedUploads(NamedTuple):
    """The uploads that were used last, and how many more there are."""

    uploads: list[UnfinishedUpload]
    left_out: int = 0


def in_folder(folders: Path, namespace: str | None, *, prefix: str, limit: int) -> UnfinishedUploads:
    """Return the uploads in the folder of all of them. Blocks. Raises StorageError. None means all namespaces.

    The folder of each upload is looked at, and the files of those that are returned.
    """
    with spooling():
        return _newest(_described(folders, namespace, prefix), limit=limit)


async def in_objects(objects: TemporaryObjects, namespace: str | None, *, prefix: str, limit: int) -> UnfinishedUploads:
    """Return the uploads in an object store, whose objects are listed. Raises StorageError, Busy. None means all namespaces.

    With a `prefix`, only the `limit` uploads that were used last are looked at, whatever their names are.
    """
    found: list[tuple[str, str, list[TemporaryObject]]] = []
    for each in await objects.folders("") if namespace is None else [namespace]:
        uploads: dict[str, list[TemporaryObject]] = {}
        for known in await objects.names(each):
            upload_id = known.name.split("/", 2)[1]
            if UPLOAD_ID.match(upload_id):
                uploads.setdefault(upload_id, []).append(known)
        found += [(each, upload_id, of_upload) for upload_id, of_upload in uploads.items() if _is_open(of_upload)]
    newest = heapq.nlargest(limit, found, key=lambda upload: _put_at(upload[2]))
    async with task_group() as group:
        tasks = [group.create_task(_of_objects(objects, *each)) for each in newest]
    described = [upload for task in tasks if (upload := task.result()) is not None and upload.name.startswith(prefix)]
    return UnfinishedUploads(described, 0 if prefix else len(found) - len(newest))


def _described(folders: Path, namespace: str | None, prefix: str) -> Iterable[tuple[int, Path, dict[str, str]]]:
    """Yield when the folder of each upload changed, where it is, and its description."""
    with suppress(FileNotFoundError), os.scandir(folders) as entries:
        for entry in entries:
            # Another process may remove it at the same time.
            with suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
                folder = Path(entry.path)
                if UPLOAD_ID.match(entry.name) and not (folder / FINISHED_NAME).exists():
                    described = json.loads((folder / DESCRIPTION_NAME).read_bytes())
                    if namespace in (None, described["namespace"]) and described["name"].startswith(prefix):
                        yield entry.stat(follow_symlinks=False).st_mtime_ns, folder, described


def _newest(found: Iterable[tuple[int, Path, dict[str, str]]], *, limit: int) -> UnfinishedUploads:
    count = 0

    def counted() -> Iterable[tuple[int, Path, dict[str, str]]]:
        nonlocal count
        for each in found:
            count += 1
            yield each

    newest = heapq.nlargest(limit, counted(), key=lambda each: each[0])
    uploads = []
    for _, folder, described in newest:
        with suppress(FileNotFoundError, NotADirectoryError):
            uploads.append(_of_folder(folder, described))
    return UnfinishedUploads(sorted(uploads, key=lambda upload: -upload.used_at), count - len(newest))


def _of_folder(folder: Path, described: dict[str, str]) -> UnfinishedUpload:
    begun_at = used_at = (folder / DESCRIPTION_NAME).stat().st_mtime_ns // 1000
    count = size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            part = PART_NAME.match(entry.name)
            if part is None and not INCOMING_NAME.match(entry.name):
                continue
            with suppress(FileNotFoundError):  # it is whole now, or was dropped
                status = entry.stat(follow_symlinks=False)
                used_at = max(used_at, status.st_mtime_ns // 1000)
                count += part is not None
                size += status.st_size
    return UnfinishedUpload(folder.name, described["namespace"], described["name"], count, size, begun_at, used_at)


async def _of_objects(
    objects: TemporaryObjects, namespace: str, upload_id: str, found: list[TemporaryObject]
) -> UnfinishedUpload | None:
    description = await objects.get(f"{namespace}/{upload_id}/{DESCRIPTION_NAME}")
    if description is None:
        return None  # it was removed meanwhile
    name = str(json.loads(description)["name"])
    parts = [each for each in found if each.name.split("/")[2:3] == [PARTS_NAME]]
    begun_at = min(int(each.put_at.timestamp() * _SECOND) for each in found)
    size = sum(each.size for each in parts)
    return UnfinishedUpload(upload_id, namespace, name, len(parts), size, begun_at, int(_put_at(found) * _SECOND))


def _is_open(found: list[TemporaryObject]) -> bool:
    names = {each.name.rpartition("/")[2] for each in found}
    return DESCRIPTION_NAME in names and FINISHED_NAME not in names


def _put_at(found: list[TemporaryObject]) -> float:
    """Return when something of an upload last arrived. A cut is written later than its parts."""
    arrived = [each.put_at.timestamp() for each in found if not each.name.endswith("/cut")]
    return max(arrived)
