"""Measure the unfinished uploads of each namespace, and refuse more than its share of the disk.

The names of files say what an upload takes, so all processes of a server see the same, and nothing has to be counted
again after a crash (`routes/sdk/uploads.py`). A form that arrives has no name. It has a file of its own here, of the
form's size, without any blocks on the disk:

    form-NAMESPACE.RANDOM       locked while the form arrives

Bytes are first made visible here and then measured, so that of two uploads that begin at the same time, none passes
unseen. Each of these files is locked by its process. What a killed process left is removed as soon as it would make a
limit refuse something. All functions block, unless they are coroutines.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filestore.errors import StorageError, TooManyUploads, UploadsTooLarge
from filestore.system.files import BLOCK_SIZE, free_space, storage_errors
from filestore.system.locks import FileLock
from filestore.system.threads import in_disk_thread, shield_until_done

UPLOAD_ID = re.compile(r"[0-9a-f]{32}\Z")
PART_NAME = re.compile(r"part-([0-9]{5})-([0-9]+)-([0-9a-f]{64})\Z")
INCOMING_NAME = re.compile(r"incoming-[0-9a-f]+(?:-([0-9]+))?\Z")
DESCRIPTION_NAME = "upload.json"
UPLOAD_SIZE = 3 * BLOCK_SIZE
"""What an upload without any parts takes."""
STEP_SIZE = 16 << 20
"""Content of unknown size is measured whenever this many more bytes of it have arrived."""

_FORM_NAME = re.compile(r"form-(.+)\.[0-9a-f]{16}\Z")
_SETTLED_SECONDS = 1
"""A folder that changed so short a time before it was read may have changed once more within the same moment."""
_spooling = partial(storage_errors, "the spool folder of the server")


class _Content(NamedTuple):
    """What is in the folder of an upload."""

    changed_at: int
    """The folder's time of modification, in nanoseconds."""
    read_at: int
    parts_size: int
    parts_used: int
    """The same, if each part takes a block at least."""
    incoming: tuple[tuple[str, int], ...]
    """The names of parts that arrive, and the bytes that were announced of each."""


class UploadQuota:
    """The limits of unfinished uploads. Several threads may use it."""

    def __init__(self, folders: Path, *, size_limit: int | None = None, count_limit: int | None = None) -> None:
        """`folders` is the folder of all uploads. A namespace may have unfinished uploads of `size_limit` bytes.

        None means half of the space that would be free without them. `count_limit` limits their number.
        """
        self._folders = folders
        self._size_limit = size_limit
        self._count_limit = count_limit
        self._namespaces: dict[str, str] = {}
        """The namespace of each upload by its id. It never changes."""
        self._contents: dict[str, _Content] = {}

    def check_count(self, namespace: str, *, limit: int | None = None, more: int = 1) -> None:
        """Raise TooManyUploads if `more` uploads of a namespace would be too many. Raises StorageError.

        `limit` is that of the namespace, if it has one.
        """
        setting = "uploads_limit" if limit is None else ""
        limit = self._count_limit if limit is None else limit
        if limit is None:
            return
        with _spooling(), self._entries() as entries:
            count = more + sum(self._namespace_of(entry.name) == namespace for entry in entries if UPLOAD_ID.match(entry.name))
        if count > limit:
            what = f"the number of uploads in progress of the namespace {namespace}"
            raise TooManyUploads(what, count, limit, setting)

    def check_size(self, namespace: str) -> None:
        """Raise UploadsTooLarge if the unfinished uploads of a namespace are larger than its limit. Raises StorageError."""
        with _spooling():
            used, limit = self._used_and_limit(namespace)
            if used > limit and self._remove_ended(namespace):
                used, limit = self._used_and_limit(namespace)
        if used > limit:
            what = f"the size in bytes of the unfinished uploads of the namespace {namespace}"
            raise UploadsTooLarge(what, used, limit, "uploads_size_limit")

    def totals(self) -> tuple[int, int]:
        """Return the number of unfinished uploads of all namespaces, and what they take. Raises StorageError."""
        with _spooling(), self._entries() as entries:
            found = [entry for entry in entries if _FORM_NAME.match(entry.name) or UPLOAD_ID.match(entry.name)]
            size = 0
            for entry in found:
                with suppress(FileNotFoundError):  # it may end at the same time
                    is_form = entry.name.startswith("form-")
                    size += entry.stat(follow_symlinks=False).st_size if is_form else self._sizes_of(entry.name)[0]
        return len(found), size

    @asynccontextmanager
    async def form(self, namespace: str, size: int) -> AsyncIterator[FormClaim]:
        """Count a form of a namespace during the block. `size` is its announced size, 0 if that is not known.

        Raises UploadsTooLarge, StorageError, StorageFull.
        """
        claims: list[FormClaim] = []
        try:
            await in_disk_thread(self._claim, namespace, size, claims)
            yield claims[0]
        finally:
            for claim in claims:
                await shield_until_done(in_disk_thread(claim.end))

    def remove_ended_forms(self) -> None:
        """Remove the files of forms whose processes ended too early. Raises OSError."""
        for path in list(self._folders.glob("form-*")):
            # Without locks, the file of a form that arrives is removed too. Then this form is not counted.
            with suppress(FileNotFoundError), FileLock.of_file(path, is_required=False) as lock:
                if lock.try_acquire():
                    path.unlink()

    def _claim(self, namespace: str, size: int, claims: list[FormClaim]) -> None:
        with _spooling():
            # Somebody may have removed the folders since the server started.
            self._folders.parent.mkdir(mode=0o700, exist_ok=True)
            self._folders.mkdir(mode=0o700, exist_ok=True)
            lock, path = locked_file(self._folders, f"form-{namespace}.")
            claim = FormClaim(self, namespace, lock, path)
            claims.append(claim)
            # With a size that is not known, the event loop measures only what comes after the first step.
            claim.grow(size or STEP_SIZE)
        self.check_size(namespace)

    def _used_and_limit(self, namespace: str) -> tuple[int, int]:
        used, written = self._measure(namespace)
        if self._size_limit is not None:
            return used, self._size_limit
        return used, (free_space(self._folders) + written) // 2

    def _remove_ended(self, namespace: str) -> bool:
        """Remove what the processes of forms and parts left that were killed. Return whether there was anything."""
        with self._entries() as entries:
            paths = [Path(entry.path) for entry in entries if _is_form_of(entry.name, namespace)]
        for upload_id, content in list(self._contents.items()):
            if self._namespaces.get(upload_id) == namespace:
                paths += [self._folders / upload_id / name for name, _ in content.incoming]
        return sum(map(remove_if_ended, paths)) > 0

    def _measure(self, namespace: str) -> tuple[int, int]:
        """Return what the unfinished uploads of a namespace take, and how many bytes of it are on the disk already."""
        used = written = 0
        seen = set()
        with self._entries() as entries:
            for entry in entries:
                if _is_form_of(entry.name, namespace):
                    with suppress(FileNotFoundError):
                        used += entry.stat(follow_symlinks=False).st_size
                elif UPLOAD_ID.match(entry.name):
                    seen.add(entry.name)
                    if self._namespace_of(entry.name) == namespace:
                        with suppress(FileNotFoundError):  # another process may remove it at the same time
                            size_used, size_written = self._sizes_of(entry.name)
                            used += size_used
                            written += size_written
        for upload_id in set(self._namespaces).difference(seen):
            self._namespaces.pop(upload_id, None)
            self._contents.pop(upload_id, None)
        return used, written

    def _sizes_of(self, upload_id: str) -> tuple[int, int]:
        folder = f"{self._folders}/{upload_id}"  # no Path for each of many folders
        changed_at = os.lstat(folder).st_mtime_ns
        content = self._contents.get(upload_id)
        is_settled = content is not None and content.read_at - content.changed_at > _SETTLED_SECONDS * 10**9
        if content is None or not is_settled or content.changed_at != changed_at:
            content = self._contents[upload_id] = _content_of(folder, changed_at)
        used, written = UPLOAD_SIZE + content.parts_used, content.parts_size
        for name, announced in content.incoming:
            with suppress(FileNotFoundError):  # it is whole now, or was dropped
                size = os.lstat(f"{folder}/{name}").st_size
                used += max(announced, size, BLOCK_SIZE)
                written += size
        return used, written

    def _namespace_of(self, upload_id: str) -> str | None:
        known = self._namespaces.get(upload_id)
        if known is None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                description = json.loads((self._folders / upload_id / DESCRIPTION_NAME).read_bytes())
                known = self._namespaces[upload_id] = str(description["namespace"])
        return known

    @contextmanager
    def _entries(self) -> Iterator[Iterator[os.DirEntry[str]]]:
        try:
            entries = os.scandir(self._folders)
        except FileNotFoundError:
            yield iter(())
            return
        with entries:
            yield entries


class FormClaim:
    """What a form that arrives takes. `UploadQuota.form` makes it."""

    def __init__(self, quota: UploadQuota, namespace: str, lock: FileLock, path: Path) -> None:
        self._quota = quota
        self._namespace = namespace
        self._lock = lock
        self._path = path
        self._written = 0
        self._size = 0

    def grow(self, size: int) -> None:
        """Count `size` bytes. Raises OSError."""
        os.ftruncate(self._lock.descriptor, size)
        self._size = size

    def written(self, size: int) -> None:
        """Say that `size` more bytes are written. Raises UploadsTooLarge, StorageError, StorageFull.

        What was announced takes no time. Any more is measured at sizes that double, because the event loop calls this.
        """
        self._written += size
        if self._written > self._size:
            with _spooling():
                self.grow(2 * self._size)
            self._quota.check_size(self._namespace)

    def end(self) -> None:
        """Do not count the form any more."""
        with suppress(OSError):
            self._path.unlink()
        self._lock.release()


def locked_file(folder: Path, before: str, after: str = "") -> tuple[FileLock, Path]:
    """Make a file that is locked while it exists, for a form or a part that arrives. Its name has random digits.

    Raises OSError.
    """
    while True:
        path = folder / f"{before}{secrets.token_hex(8)}{after}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = FileLock(os.open(path, flags, 0o600), path, is_required=False)
        # `remove_if_ended` of another thread or process may have been faster than the lock.
        if lock.try_acquire() and os.fstat(lock.descriptor).st_nlink:
            return lock, path
        lock.release()


def remove_if_ended(path: Path) -> bool:
    """Remove the file of a form or a part that no process has locked. Return whether it was removed.

    Where there are no locks, nobody can know, and it stays. Raises OSError.
    """
    with suppress(FileNotFoundError, StorageError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        with FileLock(descriptor, path, is_required=True) as lock:
            if lock.try_acquire():
                path.unlink()
                return True
    return False


def _is_form_of(name: str, namespace: str) -> bool:
    form = _FORM_NAME.match(name)
    return form is not None and form[1] == namespace


def _content_of(folder: str, changed_at: int) -> _Content:
    read_at = time.time_ns()
    parts_size = parts_used = 0
    incoming = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if part := PART_NAME.match(entry.name):
                parts_size += int(part[2])
                parts_used += max(int(part[2]), BLOCK_SIZE)
            elif arriving := INCOMING_NAME.match(entry.name):
                incoming.append((entry.name, int(arriving[1] or 0)))
    return _Content(changed_at, read_at, parts_size, parts_used, tuple(incoming))
