"""Keep uploads in parts on disk, where all processes of a server, and of the next one, share them.

    ID/upload.json              the ids, the name and the namespace of the upload
    ID/part-NUMBER-SIZE-TAG     a part that arrived whole; TAG identifies its bytes
    ID/incoming-RANDOM-SIZE     a part that is arriving, locked; SIZE is what its client announced, or 0
    ID/cut                      the chunks that are cut and stored so far
    ID/stop                     somebody cancels the upload, and waits for the process that cuts
    ID/finished.json            the record of the finished upload; the folder is removed soon after that
    ID/lock                     the lock of the process that cuts or finishes
    gone-ID                     an upload that is being removed
    form-NAMESPACE.RANDOM       a form that is arriving (`upload_quota`)
    objects-NAMESPACE           LFS objects that arrived, and are not committed yet (`lfs_objects`)
    state.json, state.lock      when uploads were used, and how the last ones were finished (`upload_state`)

These are in a folder of the spool folder. Each repository has such a folder, since its servers may share the spool
folder with those of other repositories. Every file gets its name by a rename, when it is whole. A process that changes
the set of parts locks the folder of the upload for that time. All functions block, unless they are coroutines.

A part never changes: other bytes for its number are refused. Only bytes that arrive are a use of an upload, so that
questions about it, or empty parts, do not keep it.

No lock here is required. Without locks, two processes that cut at the same time do the same work and write the same
result; two that finish at the same time make the same record; of two parts with one number that are kept at the same
time, both stay, and the list of the client says which one counts.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from filestore.core.digest import Buffer
from filestore.core.signing import sign
from filestore.errors import Busy, PartRefused, TooManyUploads, UploadNotFound
from filestore.http.server.context import spooling
from filestore.http.server.routes.sdk.parts import FilePart
from filestore.http.server.routes.sdk.upload_state import BUSY_SECONDS, FinishedUpload, UploadState
from filestore.http.server.routes.sdk.upload_store import FILE_ID_START, Cut
from filestore.http.server.upload_quota import DESCRIPTION_NAME, PART_NAME, UPLOAD_ID, UploadQuota, locked_file, remove_if_ended
from filestore.system.files import remove_if_possible, remove_in_place, sync_descriptor, sync_path, write_all, write_atomic
from filestore.system.locks import FileLock
from filestore.system.owners import PRIVATE_FILE, make_own
from filestore.transfer.sources.file import PACKED_SIZE

_INCOMING, _GONE = "incoming-", "gone-"
_CUT, _FINISHED, _LOCK, _STOP = "cut", "finished.json", "lock", "stop"


class Upload:
    """Read and change one upload. `begin` and `find` make it."""

    def __init__(self, folder: Path, *, file_id: str, name: str, namespace: str) -> None:
        self.folder = folder
        self.id = folder.name
        self.file_id = file_id
        self.name = name
        self.namespace = namespace

    def receive(self, size: int = 0) -> IncomingPart:
        """Make a file for a part that arrives, of which `size` bytes are announced.

        The caller must call `discard` on it in any case. Raises UploadNotFound.
        """
        with self._standing():
            return IncomingPart(*locked_file(self.folder, _INCOMING, f"-{size}"))

    def keep(self, incoming: IncomingPart, number: int, *, check_size: Callable[[int], None] = lambda _: None) -> FilePart:
        """Store a part that arrived, durably.

        `check_size` is called with the size of all parts together, and may raise LimitExceeded. Raises PartRefused if a
        part of that number is there with other bytes, and UploadNotFound.
        """
        with spooling():
            sync_descriptor(incoming.descriptor)
        part = FilePart(number, incoming.tag, incoming.size, self._path(f"part-{number:05}-{incoming.size}-{incoming.tag}"))
        with self._standing(), _locked_folder(self.folder):
            if self._path(_FINISHED).exists():
                raise UploadNotFound(self.id)
            parts = self.parts()
            arrived = {other.tag for other in parts if other.number == number}
            if arrived and part.tag not in arrived:
                raise PartRefused(number)
            check_size(part.size + sum(other.size for other in parts if other.number != number))
            incoming.path.rename(part.path)
            sync_path(self.folder)
        return part

    def arrived(self, number: int) -> FilePart | None:
        """Return the part of this number if it arrived and its file is as long as it must be. Raises UploadNotFound."""
        with self._standing():
            found = [part for part in self.parts() if part.number == number]
            return found[0] if len(found) == 1 and found[0].is_whole else None

    def whole_parts(self) -> list[FilePart]:
        """Return each part for which `arrived` returns one, in order. Raises UploadNotFound."""
        with self._standing():
            parts = self.parts()
            counts = Counter(part.number for part in parts)
            return [part for part in parts if counts[part.number] == 1 and part.is_whole]

    def parts(self) -> list[FilePart]:
        """Return all parts that arrived, in order. Raises UploadNotFound.

        There may be two parts of one number after a crash of an earlier version, which replaced parts.
        """
        with self._standing(), os.scandir(self.folder) as entries:
            found = [(match, Path(entry.path)) for entry in entries if (match := PART_NAME.match(entry.name))]
        return sorted(FilePart(int(match[1]), match[3], int(match[2]), path) for match, path in found)

    def cut(self) -> Cut:
        """Return the saved cut, or an empty one if it cannot be read."""
        try:
            return parsed_cut(self._path(_CUT).read_bytes())
        except OSError:
            return parsed_cut(b"")

    def save_cut(self, tags: Sequence[str], chunks: Buffer) -> None:
        """Save the chunks that are cut so far."""
        self._save(_CUT, encoded_cut(tags, chunks))

    def finished(self) -> FinishedUpload | None:
        """Return how the upload was finished, or None while it is in progress."""
        try:
            return FinishedUpload.parse(self._path(_FINISHED).read_bytes())
        except FileNotFoundError:
            if self.folder.exists():
                return None
        known = self._state.find(self.id)
        return None if known is None else FinishedUpload(known.tags_digest, known.record_id)

    def save_first(self, finished: FinishedUpload) -> FinishedUpload:
        """Save how the upload was finished, unless it was finished before. Return what is saved.

        No part is accepted after that.
        """
        with self._standing(), _locked_folder(self.folder):
            before = self.finished()
            if before is None:
                self._save(_FINISHED, finished.encode())
            return before or finished

    def retire(self, *, state: UploadState | None = None) -> None:
        """Remove the folder of a finished upload. How it was finished is remembered. The caller holds the lock."""
        finished = self.finished()
        if finished is not None and self.folder.exists():
            (state or self._state).remember(self.id, finished, file_id=self.file_id, name=self.name, namespace=self.namespace)
            with spooling():
                _take_away(self.folder)

    def request_stop(self) -> None:
        """Ask the process that cuts what arrived to stop. Raises UploadNotFound."""
        with self._standing():
            self._path(_STOP).touch(PRIVATE_FILE)

    def withdraw_stop(self) -> None:
        """Take `request_stop` back."""
        with spooling():
            self._path(_STOP).unlink(missing_ok=True)

    def is_stop_requested(self) -> bool:
        """Return whether somebody asks for a stop, or the upload is gone."""
        with spooling():
            return self._path(_STOP).exists() or not self.folder.exists()

    def cancel(self) -> None:
        """Remove the folder. The caller holds the lock, and the upload is not finished. Raises UploadNotFound."""
        with self._standing():
            _take_away(self.folder)

    def lock(self) -> FileLock:
        """Return the lock for cutting and finishing, which all processes share. The caller acquires and releases it.

        Raises UploadNotFound.
        """
        with self._standing():
            return FileLock.of_file(self._path(_LOCK), is_required=False)

    @property
    def _state(self) -> UploadState:
        return UploadState(self.folder.parent)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _save(self, name: str, content: Buffer) -> None:
        with self._standing():
            write_atomic(self._path(name), content)

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """Translate errors. Raises UploadNotFound if the folder is gone, StorageFull, StorageError."""
        with spooling():
            try:
                yield
            except FileNotFoundError:
                raise UploadNotFound(self.id) from None


class IncomingPart:
    """Write a part that is arriving."""

    def __init__(self, lock: FileLock, path: Path) -> None:
        self._lock = lock
        self.descriptor = lock.descriptor
        self.path = path
        self.size = 0
        self._digest = blake3()

    @property
    def tag(self) -> str:
        """64 hexadecimal digits that identify the bytes so far."""
        return self._digest.hexdigest()

    def write(self, piece: Buffer) -> None:
        """Append the next bytes. Raises UploadNotFound if the upload was removed meanwhile, StorageFull, StorageError."""
        self.size += len(piece)
        self._digest.update(piece)
        with spooling():
            if not os.fstat(self.descriptor).st_nlink:
                raise UploadNotFound(self.path.parent.name)
            write_all(self.descriptor, piece)

    def discard(self) -> None:
        """Close the file, and remove it unless it was kept."""
        self._lock.release()
        self.path.unlink(missing_ok=True)


def uploads_folder(spool_folder: Path, secret: bytes) -> Path:
    """Return the folder of a repository's uploads, whose name depends on its secret.

    Other users cannot guess the name, so they cannot create the folder first.
    """
    return spool_folder / f"uploads-{sign(secret, 'uploads', expires_at=0)[:32]}"


def encoded_cut(tags: Sequence[str], chunks: Buffer) -> bytes:
    """Return the chunks that are cut so far as they are kept."""
    return json.dumps(list(tags)).encode() + b"\n" + chunks


def parsed_cut(content: bytes) -> Cut:
    """Return what `encoded_cut` encoded, or an empty cut if it cannot be read."""
    with suppress(ValueError):
        head, _, chunks = content.partition(b"\n")
        if len(chunks) % PACKED_SIZE == 0:
            return Cut(json.loads(head), bytearray(chunks))
    return Cut([], bytearray())


def new_id() -> str:
    """Return the id of an upload that may be begun later. Nobody can guess it."""
    return secrets.token_hex(16)


def begin(
    folders: Path,
    *,
    name: str | None,
    namespace: str,
    upload_id: str | None = None,
    quota: UploadQuota | None = None,
    count_limit: int | None = None,
) -> Upload:
    """Begin an upload. Its name is its file id if `name` is None. `count_limit` is that of the namespace, if it has one.

    `upload_id` is what `new_id` gave for it; None means a new one. If the namespace has begun it already, it is returned.

    Raises UploadNotFound if nothing can have this id here; TooManyUploads if `quota` does not permit one more of its namespace;
    StorageFull, StorageError.
    """
    if quota is not None:
        quota.check_count(namespace, limit=count_limit)
    is_known = upload_id is not None
    upload_id = new_id() if upload_id is None else upload_id
    if not UPLOAD_ID.match(upload_id):
        raise UploadNotFound(upload_id)
    folder = folders / upload_id
    # This has the form of a record's id. The real id is unknown until the content is.
    file_id = f"{FILE_ID_START}{upload_id}"
    description = {"file_id": file_id, "name": name or file_id, "namespace": namespace}
    with spooling():
        # Somebody may have removed the spool folder since the server started.
        folder.parent.parent.mkdir(mode=0o700, exist_ok=True)
        make_own(folder.parent)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            described = _described(folder)
            # Another process may have made the folder just now.
            if not is_known or (described is not None and described.namespace != namespace):
                raise UploadNotFound(upload_id) from None
        write_atomic(folder / DESCRIPTION_NAME, json.dumps(description).encode())
        sync_path(folder.parent)
    if quota is not None and count_limit is not None:
        try:
            # Another process may have begun one at the same time.
            quota.check_count(namespace, limit=count_limit, more=0)
        except TooManyUploads:
            with spooling():
                _take_away(folder)
            raise
    return Upload(folder, **description)


def find(folders: Path, upload_id: str, *, namespace: str) -> Upload:
    """Return the upload with this id in a namespace. Raises UploadNotFound.

    An upload that was finished is found while it is remembered.
    """
    folder = folders / upload_id
    if not UPLOAD_ID.match(upload_id):
        raise UploadNotFound(upload_id)
    upload = _described(folder) or _remembered(folder)
    # The same answer as for an unknown id: a token of another namespace must not learn that the upload exists.
    if upload is None or upload.namespace != namespace:
        raise UploadNotFound(upload_id)
    return upload


def expire(
    folders: Path, *, idle_seconds: float, limit_seconds: float = math.inf, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Remove all uploads of which no byte arrived for `idle_seconds`, or that are older than `limit_seconds`.

    Uploads that are locked stay, and all finished ones are removed. `monotonic` is the clock of the machine that never
    jumps. Raises OSError, StorageError, StorageFull, Busy.
    """
    if not folders.is_dir():
        return
    state = UploadState(folders, monotonic=monotonic)
    for folder in list(folders.iterdir()):
        with suppress(OSError):  # another process may remove it at the same time
            if folder.name.startswith(_GONE):
                # The process that removed it ended too early.
                remove_if_possible(folder)
            elif UPLOAD_ID.match(folder.name) and (folder / _FINISHED).exists():
                # The process that finished it ended too early.
                _retire(folder, state)
            elif UPLOAD_ID.match(folder.name):
                _remove_ended_parts(folder)
    for upload_id in state.expired(lambda: _uses(folders), idle_seconds=idle_seconds, limit_seconds=limit_seconds):
        with suppress(OSError):
            _remove(folders / upload_id)


def discard(folder: Path) -> None:
    """Remove the folder of an upload that is not finished, unless a process cuts it. Raises OSError, StorageError."""
    with suppress(FileNotFoundError):  # another process may remove it at the same time
        _remove(folder)


def remove_all(folders: Path, namespaces: Collection[str]) -> None:
    """Remove all uploads of these namespaces, except those that are locked. Raises OSError."""
    if folders.is_dir():
        for folder in list(folders.iterdir()):
            upload = _described(folder) if UPLOAD_ID.match(folder.name) else None
            if upload is not None and upload.namespace in namespaces:
                with suppress(OSError):  # another process may remove it at the same time
                    _remove(folder)


def _described(folder: Path) -> Upload | None:
    with suppress(FileNotFoundError, ValueError):
        return Upload(folder, **json.loads((folder / DESCRIPTION_NAME).read_bytes()))
    return None


def _remembered(folder: Path) -> Upload | None:
    known = UploadState(folder.parent).find(folder.name)
    return None if known is None else Upload(folder, file_id=known.file_id, name=known.name, namespace=known.namespace)


def _uses(folders: Path) -> dict[str, str]:
    uses = {}
    for folder in folders.iterdir():
        if UPLOAD_ID.match(folder.name):
            with suppress(OSError), os.scandir(folder) as entries:  # another process may remove it at the same time
                uses[folder.name] = _use(list(entries))
    return uses


def _use(entries: Sequence[os.DirEntry[str]]) -> str:
    """Return a text that changes when bytes of an upload arrive, and only then."""
    arrived = sum(int(match[2]) for entry in entries if (match := PART_NAME.match(entry.name)))
    arriving = []
    for entry in entries:
        if entry.name.startswith(_INCOMING):
            with suppress(FileNotFoundError):  # it was renamed meanwhile
                arriving.append((entry.name, entry.stat().st_size))
    return " ".join([str(arrived), *(f"{name}={size}" for name, size in sorted(arriving) if size)])


def _remove_ended_parts(folder: Path) -> None:
    """Remove parts that were arriving when their process ended. Without locks, they stay as long as their upload."""
    for path in folder.glob(f"{_INCOMING}*-*"):
        remove_if_ended(path)


def _retire(folder: Path, state: UploadState) -> None:
    upload = _described(folder)
    if upload is not None:
        with upload.lock() as lock:
            if lock.try_acquire():
                upload.retire(state=state)


def _remove(folder: Path) -> None:
    with FileLock.of_file(folder / _LOCK, is_required=False) as lock:
        if lock.try_acquire():
            _take_away(folder)


def _take_away(folder: Path) -> None:
    gone = folder.with_name(_GONE + folder.name)
    try:
        folder.rename(gone)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        remove_in_place(folder)  # it came with a container image
    remove_if_possible(gone)


@contextmanager
def _locked_folder(folder: Path, *, limit_seconds: float = BUSY_SECONDS) -> Iterator[None]:
    with FileLock.of_folder(folder, is_required=False) as lock:
        if not lock.acquire(limit_seconds=limit_seconds):
            raise Busy(str(folder), f"{lock.holder()} of the server holds it")
        yield
