"""The cache of a machine that runs models: verified, ready-to-open paths.

    ROOT/format                                     {"cache": 1}
    ROOT/repositories/<fingerprint>.json            which repository a location and token stand for
    ROOT/<repository id>/<namespace>/
        records/<file id>.json                      what an id means: it never changes
        files/ab/cd/<digest>/entry.json             size and mtime that a hit checks
        files/ab/cd/<digest>/content/<name>         the file, read-only
        staging/<digest>/...                        an entry that is being fetched
        locks/<digest>

An entry appears by one rename of its folder (I3). Locks save work and nothing more: where one fails, two processes fetch
the same entry, and the later rename finds the earlier one's.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from filestore.aio import SingleFlight, in_disk_thread
from filestore.digest import Digest
from filestore.durable import sync_descriptor, sync_path
from filestore.errors import FilestoreError, InvalidInput, StorageError, TargetError, UnknownFormat, storage_error
from filestore.fetch import fetch
from filestore.layout import hashed, unhashed
from filestore.objects import File, Record, Reference, Report, checked_namespace, record_from_json
from filestore.push import manifest_of
from filestore.repository import Identity, Repository

CACHE_VERSION = 1
ATTEMPTS = 10
LOCK_POLL_SECONDS = 0.05
STALE_SECONDS = 60
"""A staging folder that was not written to for this long is taken over, whoever holds its lock."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a hit checks. Times are nanoseconds."""

    size: int
    mtime: int
    cutting: int


class Cache:
    """Files of one repository on this machine.

    >>> cache = Cache("/var/cache/models", repository)
    >>> path = await cache.resolve(File(id="file_..."))
    """

    def __init__(self, root: str | Path, repository: Repository) -> None:
        """Touches nothing yet. Use a cache in one event loop; any number of processes may share `root`."""
        self._root = Path(root)
        self._repository = repository
        self._flights = SingleFlight()
        self._shelf: _Shelf | None = None

    async def resolve(self, file: File, *, report: Report | None = None) -> Path:
        """The path of the whole, verified file, under the name that it was pushed with; do not write to it.

        A hit asks no network and hashes nothing: size and mtime are checked. A miss fetches; callers that ask for the same file
        at the same time, in this process or another, wait for one fetch.

        Raises NotFound, InvalidReference, StorageFull, StorageError, DamagedChunk, TransferError, UnknownFormat.
        """
        reference = file.reference
        shelf = await self._opened()
        path = await in_disk_thread(shelf.find, reference)
        if path is not None:
            return path
        return await self._flights.run(reference, lambda: self._fill(shelf, reference, report))

    async def _opened(self) -> _Shelf:
        if self._shelf is None:
            await in_disk_thread(_check_format, self._root)
            remembered = self._root / "repositories" / f"{self._repository.fingerprint}.json"
            identity = await in_disk_thread(_read_identity, remembered)
            if identity is None:
                identity = await self._repository.identity()
                await in_disk_thread(_write_durably, remembered, identity._asdict())
            self._shelf = _Shelf(self._root / identity.id / identity.namespace)
        return self._shelf

    async def _fill(self, shelf: _Shelf, reference: Reference, report: Report | None) -> Path:
        record = await self._repository.record(reference)
        cutting = (await self._repository.identity()).cutting
        async with _locked(shelf, record.digest):
            path = await self._publish(shelf, record, cutting, report)
            await in_disk_thread(shelf.remember, record)
        return path

    async def _publish(self, shelf: _Shelf, record: Record, cutting: int, report: Report | None) -> Path:
        for attempt in count(1):
            # Another process may have filled it while this one waited.
            path = await in_disk_thread(shelf.find, Reference(digest=record.digest, name=record.name))
            if path is not None:
                return path
            staging = await in_disk_thread(shelf.stage, record.digest, record.name)
            try:
                await fetch(self._repository, record, staging / "content" / record.name, report=report)
            except TargetError:
                # Where locks do not work, another process may have published this very staging folder.
                if attempt == ATTEMPTS:
                    raise
            else:
                await in_disk_thread(shelf.publish, staging, record, cutting)
        raise AssertionError


class _Shelf:
    """The entries of one namespace of one repository. Its methods block: call them in a thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, reference: Reference) -> Path | None:
        """The path of a sound entry, or None. A record's id is looked up among those that are remembered."""
        digest, name = reference.digest, reference.name
        if reference.id is not None:
            record = self._recall(reference.id)
            if record is None:
                return None
            digest, name = record.digest, record.name
        if digest is None:
            return None
        folder = self._entry_path(digest)
        entry = _read_entry(folder)
        if entry is None:
            return None
        sound = [path for path in sorted((folder / "content").iterdir()) if _is_sound(path, entry)]
        if not sound or name is None:
            return sound[0] if sound else None
        path = folder / "content" / name
        if path not in sound:
            with _storage_errors(self._root), suppress(FileExistsError):
                self._alias(sound[0], path)
        return path

    def lock_path(self, digest: Digest) -> Path:
        """The file whose lock says that an entry is being fetched."""
        return self._root / "locks" / str(digest)

    def stage(self, digest: Digest, name: str) -> Path:
        """The staging folder of an entry, with what a fetch that was cut, or a damaged entry, left in it."""
        staging = self._root / "staging" / str(digest)
        content = staging / "content"
        with _storage_errors(self._root):
            content.mkdir(parents=True, exist_ok=True)
            # What stands in the place of a sound entry is damaged, and most of it may be right all the same.
            if self.find(Reference(digest=digest)) is None:
                aside = _take_aside(staging.parent, self._entry_path(digest))
                if aside is not None:
                    with suppress(OSError):
                        (aside / "content" / name).rename(content / name)
                    shutil.rmtree(aside, ignore_errors=True)
        return staging

    def staging_age(self, digest: Digest) -> float:
        """Seconds since anything was written to the staging folder of an entry; 0 where there is none."""
        try:
            newest = max(path.stat().st_mtime for path in (self._root / "staging" / str(digest) / "content").iterdir())
        except (OSError, ValueError):
            return 0
        return time.time() - newest

    def publish(self, staging: Path, record: Record, cutting: int) -> None:
        """Let the entry appear; where another process was earlier, its entry stands."""
        path = staging / "content" / record.name
        entry = self._entry_path(record.digest)
        with _storage_errors(self._root), suppress(FileNotFoundError):
            for other in path.parent.iterdir():
                if other != path:
                    # Left by a fetch of the same bytes under another name.
                    other.unlink(missing_ok=True)
            path.chmod(0o444)
            found = path.stat()
            _write_file(staging / "entry.json", asdict(_Entry(found.st_size, found.st_mtime_ns, cutting)))
            entry.parent.mkdir(parents=True, exist_ok=True)
            try:
                staging.rename(entry)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                shutil.rmtree(staging, ignore_errors=True)
            sync_path(entry.parent)

    def remember(self, record: Record) -> None:
        """Keep what an id means, so that the next resolve of it asks nobody."""
        path = self._record_path(record.id)
        if not path.exists():
            _write_durably(path, record.as_json())

    def _recall(self, file_id: str) -> Record | None:
        try:
            record = record_from_json(json.loads(self._record_path(file_id).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, FilestoreError):
            return None
        return record if record.id == file_id else None

    def _record_path(self, file_id: str) -> Path:
        return self._root / "records" / f"{file_id}.json"

    def _entry_path(self, digest: Digest) -> Path:
        return self._root / "files" / hashed(digest)

    def _alias(self, sound: Path, path: Path) -> None:
        """Give the same bytes a second name."""
        try:
            os.link(sound, path)
        except FileExistsError:
            raise
        except OSError:
            # No hard links here: a copy that becomes visible whole, with the time that a hit checks.
            copy = self._root / "staging" / uuid.uuid4().hex
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sound, copy)
            copy.rename(path)


async def verify_cache(root: Path) -> list[Path]:
    """Hash every entry of the cache at `root`, whichever repository it is of, and remove those that are damaged.

    Returns the paths that were removed; the next resolve fetches them anew. Cost: the whole cache is read once.
    Raises InvalidInput where there is no cache, UnknownFormat, StorageError.
    """
    if not await in_disk_thread((root / "format").exists):
        raise InvalidInput(f"there is no cache in {root}; give the folder of one")
    await in_disk_thread(_check_format, root)
    damaged = []
    for folder in await in_disk_thread(lambda: sorted(root.glob("*/*/files/??/??/*"))):
        for path in await _damaged(folder):
            damaged.append(path)
            await in_disk_thread(_discard, root, folder)
    return damaged


async def _damaged(folder: Path) -> list[Path]:
    """The files of an entry that are not what its digest says; the folder itself where that cannot be told."""
    try:
        digest = unhashed("/".join(folder.parts[-3:]))
    except FilestoreError:
        return [folder]
    entry = await in_disk_thread(_read_entry, folder)
    if entry is None:
        return [folder]
    for path in await in_disk_thread(lambda: sorted((folder / "content").iterdir())):
        try:
            manifest = await manifest_of(path, cutting=entry.cutting)
        except FilestoreError:
            return [path]
        if manifest.digest != digest or not await in_disk_thread(_is_sound, path, entry):
            return [path]
    return []


@asynccontextmanager
async def _locked(shelf: _Shelf, digest: Digest) -> AsyncIterator[None]:
    """Hold the lock of an entry, or go on without where locks do not work or its holder has stopped working."""
    descriptor = await in_disk_thread(_open_lock, shelf.lock_path(digest))
    try:
        while not await in_disk_thread(_try_lock, descriptor):
            if await in_disk_thread(shelf.staging_age, digest) > STALE_SECONDS:
                break
            await asyncio.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return -1


def _try_lock(descriptor: int) -> bool:
    """Whether to go on: the lock is held, or cannot be had on this file system."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _check_format(root: Path) -> None:
    path = root / "format"
    known = {"cache": CACHE_VERSION}
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        _write_durably(path, known)
        return
    except (OSError, ValueError) as error:
        raise StorageError(str(path), str(error)) from None
    if found != known:
        raise UnknownFormat(str(root), str(found), str(known))


def _read_identity(path: Path) -> Identity | None:
    try:
        found = json.loads(path.read_bytes())
        return Identity(str(found["id"]), checked_namespace(found["namespace"]), int(found["cutting"]))
    except (OSError, ValueError, KeyError, TypeError, FilestoreError):
        return None


def _read_entry(folder: Path) -> _Entry | None:
    try:
        return _Entry(**json.loads((folder / "entry.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_sound(path: Path, entry: _Entry) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime)


def _write_durably(path: Path, values: Mapping[str, object]) -> None:
    """Write a small file, and its folders. Raises StorageError, StorageFull."""
    with _storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(path, values)


def _write_file(path: Path, values: Mapping[str, object]) -> None:
    """Write a small file that appears whole, and stays. Raises OSError."""
    staging = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with staging.open("xb") as file:
            file.write(json.dumps(values).encode())
            file.flush()
            sync_descriptor(file.fileno())
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    sync_path(path.parent)


def _discard(root: Path, folder: Path) -> None:
    with _storage_errors(root):
        aside = _take_aside(root, folder)
        if aside is not None:
            shutil.rmtree(aside)


def _take_aside(where: Path, folder: Path) -> Path | None:
    """Take an entry out of readers' sight, the whole of it at once; None where there is none."""
    aside = where / f".{uuid.uuid4().hex}"
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return None
    return aside


@contextmanager
def _storage_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(str(where), error) from None
