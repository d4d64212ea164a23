"""Resolve: a value that names what is stored becomes a path on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import NamedTuple, TypeVar

from filestore.aio import SingleFlight, in_cpu_thread, in_disk_thread
from filestore.archive.read import DEFAULT_LIMITS, Limits
from filestore.cache.disk import write_durably
from filestore.cache.lock import Lock, locked
from filestore.cache.seeds import find_seeds
from filestore.cache.shelf import Shelf, Wanted
from filestore.cache.urls import Obtained, Urls
from filestore.chunking import CUTTING_VERSION
from filestore.errors import FilestoreError, InvalidArchive, LimitExceeded, StorageError, StorageFull, TargetError, UnknownFormat
from filestore.fetch import fetch
from filestore.http.download import DEFAULT_DOWNLOAD_LIMITS, DownloadLimits
from filestore.manifest import Manifest
from filestore.objects import Directory, File, FileURL, Kind, Record, Reference, Report, checked_namespace
from filestore.repository import Identity, Repository
from filestore.unpack import unpack

T = TypeVar("T")

CACHE_VERSION = 1
ATTEMPTS = 3


class Resolved(NamedTuple):
    """What a resolve did, in bytes."""

    path: Path
    bytes_received: int
    """Encoded bytes of the frames that were received."""
    bytes_reused: int
    """Decoded bytes that were copied from other entries, or were here from a fetch that was cut."""
    seconds: float
    was_cached: bool
    """Nothing was fetched for this call: it was here, or someone else has fetched it, meanwhile or at the same time."""


class Cached(NamedTuple):
    """What is here already."""

    path: Path
    size: int
    """Bytes of content: of a tree, those of its zip."""


class _Filled(NamedTuple):
    """What a miss cost; None where another process was quicker."""

    path: Path
    received: _Received | None


class _Received(NamedTuple):
    moved: int
    reused: int
    tail: bytes | None
    """That of a tree's zip."""


class Cache:
    """Files and directories of one repository on this machine.

    >>> cache = Cache("/var/cache/models", repository)
    >>> path = await cache.resolve(File(id="file_..."))
    >>> folder = await cache.resolve(Directory(id="file_..."))
    """

    def __init__(
        self,
        root: str | Path,
        repository: Repository,
        *,
        limits: Limits = DEFAULT_LIMITS,
        downloads: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
    ) -> None:
        """Touches nothing yet. Use a cache in one event loop; any number of processes may share `root`.

        `limits`: what a zip file may ask of whoever resolves it as a directory; `downloads`: what a URL may ask of whoever
        resolves it.
        """
        self._root = Path(root)
        self._repository = repository
        self._limits = limits
        self._downloads = downloads
        self._flights = SingleFlight()
        self._shelf: Shelf | None = None
        self._cutting = CUTTING_VERSION

    async def resolve(self, wanted: File | Directory | FileURL, *, report: Report | None = None) -> Path:
        """The path of the whole, verified file, or of the tree that a zip file unpacks to; do not write to it.

        A file has the name that it was pushed with, a tree that name without `.zip`. A hit asks no network and hashes nothing:
        size and mtime are checked, of a tree those of its 100 largest files and the mtime of its folder. A miss takes what it
        shares with other entries from these, and fetches the rest; callers that ask for the same at the same time, in this
        process or another, wait for one fetch. The origin of a URL is asked each time, unless the value says otherwise.

        Raises NotFound, InvalidReference, InvalidArchive, LimitExceeded, StorageFull, StorageError, DamagedChunk,
        TransferError, UnknownFormat; of a URL also RefusedUrl and UnexpectedContent.
        """
        return (await self.resolved(wanted, report=report)).path

    async def resolved(self, wanted: File | Directory | FileURL, *, report: Report | None = None) -> Resolved:
        """`resolve`, with what it cost. Of callers that share one fetch, it is told to who began it."""
        started = time.monotonic()
        kind = _kind(wanted)
        shelf = await self._opened()
        if isinstance(wanted, FileURL):
            resolved = await self._resolved_url(shelf, kind, wanted, report)
        elif wanted.origin is not None:
            resolved = await self._resolved_url(shelf, kind, wanted.origin, report)
        else:
            resolved = await self._resolved_stored(shelf, kind, wanted.reference, report)
        return resolved._replace(seconds=time.monotonic() - started)

    async def _resolved_url(self, shelf: Shelf, kind: Kind, origin: FileURL, report: Report | None) -> Resolved:
        urls = Urls(shelf, cutting=self._cutting, limits=self._downloads)
        digest = await in_disk_thread(urls.find, origin, kind)
        obtained = Obtained(digest) if digest is not None else await self._obtained(urls, kind, origin, report)
        # A tree is made of the zip file that is here now, as of any entry that shares chunks with it: nobody is asked for them.
        record = Record("", origin.name, obtained.digest, 0, kind, shelf.root.name, 0, 0)
        reference = Reference(digest=obtained.digest, name=origin.name)
        resolved = await self._resolved_stored(shelf, kind, reference, report, record=record)
        if obtained.was_cached:
            return resolved
        return resolved._replace(bytes_received=obtained.bytes_received, bytes_reused=obtained.bytes_resumed, was_cached=False)

    async def _obtained(self, urls: Urls, kind: Kind, origin: FileURL, report: Report | None) -> Obtained:
        obtained, is_ours = await self._once(("url", kind, origin), lambda: urls.obtain(origin, kind, report=report))
        return obtained if is_ours else Obtained(obtained.digest)

    async def _resolved_stored(
        self, shelf: Shelf, kind: Kind, reference: Reference, report: Report | None, *, record: Record | None = None
    ) -> Resolved:
        """`record`: what `reference` means, where the repository need not, or cannot, be asked."""
        path = await in_disk_thread(shelf.find, kind, reference)
        if path is not None:
            return Resolved(path, 0, 0, 0, was_cached=True)
        filled, is_ours = await self._once((kind, reference), lambda: self._fill(shelf, kind, reference, report, record))
        if filled.received is None or not is_ours:
            return Resolved(filled.path, 0, 0, 0, was_cached=True)
        return Resolved(filled.path, filled.received.moved, filled.received.reused, 0, was_cached=False)

    async def _once(self, key: Hashable, function: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """What a call gives that is shared by all who ask for the same meanwhile, and whether it is this one's."""
        is_ours = False

        async def call() -> T:
            nonlocal is_ours
            is_ours = True
            return await function()

        return await self._flights.run(key, call), is_ours

    async def cached(self, wanted: File | Directory) -> Cached | None:
        """What `resolve` would give at once, or None; asks no network, once this folder knows the repository."""
        kind = _kind(wanted)
        shelf = await self._opened()
        path = await in_disk_thread(shelf.find, kind, wanted.reference)
        return None if path is None else Cached(path, await in_disk_thread(shelf.size, kind, path))

    async def _opened(self) -> Shelf:
        if self._shelf is None:
            await in_disk_thread(check_format, self._root)
            remembered = self._root / "repositories" / f"{self._repository.fingerprint}.json"
            identity = await in_disk_thread(_read_identity, remembered)
            if identity is None:
                identity = await self._repository.identity()
                await in_disk_thread(write_durably, remembered, identity._asdict())
            self._shelf = Shelf(self._root / identity.id / identity.namespace)
            self._cutting = identity.cutting
        return self._shelf

    async def _fill(
        self, shelf: Shelf, kind: Kind, reference: Reference, report: Report | None, known_record: Record | None = None
    ) -> _Filled:
        record = await self._repository.record(reference) if known_record is None else known_record
        wanted = Wanted(kind, record.digest)
        known = Reference(digest=record.digest, name=record.name)
        async with locked(shelf.lock_path(wanted), lambda: shelf.find(kind, known) is not None) as lock:
            # Another process may have filled it while this one waited.
            path = await in_disk_thread(shelf.find, kind, known)
            made = _Filled(path, None) if path is not None else await self._make(shelf, wanted, record, lock, report)
            if known_record is None:
                await in_disk_thread(shelf.remember, record)
        return made

    async def _make(self, shelf: Shelf, wanted: Wanted, record: Record, lock: Lock, report: Report | None) -> _Filled:
        """The path of the entry, which another process may make at the same time."""
        manifest = await self._manifest(shelf, record)
        known = Reference(digest=record.digest, name=record.name)
        failure: FilestoreError = StorageError(str(shelf.root), "someone else writes to what was fetched, again and again")
        cost: _Received | None = None
        for attempt in range(ATTEMPTS):
            is_first = attempt == 0
            target = await in_disk_thread(
                shelf.stage,
                wanted,
                record.name,
                is_alone=lock.is_held and is_first,
                takes_over=lock.passes_by and is_first,
            )
            try:
                received = await self._receive(shelf, wanted.kind, record, manifest, target, report=report)
                cost = received if cost is None else received._replace(moved=cost.moved + received.moved)
                await in_disk_thread(shelf.publish, wanted, target, manifest, tail=received.tail)
            except StorageFull:
                raise
            except (TargetError, StorageError) as error:
                # Another process may have passed this one by, and have taken what it was writing to.
                failure = error
            except (InvalidArchive, LimitExceeded):
                await in_disk_thread(shelf.clear, target)
                raise
            path = await in_disk_thread(shelf.find, wanted.kind, known)
            if path is not None:
                return _Filled(path, cost)
        raise failure

    async def _manifest(self, shelf: Shelf, record: Record) -> Manifest:
        """What is wanted, from what is here where it is: a zip file that is resolved in both ways is asked for once."""
        manifest = await in_disk_thread(shelf.manifest, record.digest)
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await self._repository.manifest(record.digest))
        return manifest

    async def _receive(  # what is fetched, and to where
        self, shelf: Shelf, kind: Kind, record: Record, manifest: Manifest, target: Path, *, report: Report | None
    ) -> _Received:
        """Make the content of an entry at `target`."""
        seeds = await in_disk_thread(find_seeds, shelf.root, manifest, limits=self._limits)
        if kind is Kind.FILE:
            fetched = await fetch(self._repository, record, target, manifest=manifest, seeds=seeds, report=report)
            return _Received(fetched.bytes_received, fetched.bytes_reused, None)
        unpacked = await unpack(
            self._repository, record, target, manifest=manifest, limits=self._limits, seeds=seeds, report=report
        )
        return _Received(unpacked.bytes_received, unpacked.bytes_reused, unpacked.tail)


def _kind(wanted: File | Directory | FileURL) -> Kind:
    return Kind.DIRECTORY if isinstance(wanted, Directory) else Kind.FILE


def check_format(root: Path) -> None:
    """Mark a new cache as one, or check that an old one is known. Blocks. Raises UnknownFormat, StorageError."""
    path = root / "format"
    known = {"cache": CACHE_VERSION}
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        write_durably(path, known)
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
