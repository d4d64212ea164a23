"""Resolve: a value that names what is stored becomes a path on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from filestore.aio import SingleFlight, in_cpu_thread, in_disk_thread
from filestore.archive.read import DEFAULT_LIMITS, Limits
from filestore.cache.disk import write_durably
from filestore.cache.lock import Lock, locked
from filestore.cache.seeds import find_seeds
from filestore.cache.shelf import Shelf, Wanted
from filestore.errors import FilestoreError, InvalidArchive, LimitExceeded, StorageError, StorageFull, TargetError, UnknownFormat
from filestore.fetch import fetch
from filestore.manifest import Manifest
from filestore.objects import Directory, File, Kind, Record, Reference, Report, checked_namespace
from filestore.repository import Identity, Repository
from filestore.unpack import unpack

CACHE_VERSION = 1
ATTEMPTS = 3


class Cache:
    """Files and directories of one repository on this machine.

    >>> cache = Cache("/var/cache/models", repository)
    >>> path = await cache.resolve(File(id="file_..."))
    >>> folder = await cache.resolve(Directory(id="file_..."))
    """

    def __init__(self, root: str | Path, repository: Repository, *, limits: Limits = DEFAULT_LIMITS) -> None:
        """Touches nothing yet. Use a cache in one event loop; any number of processes may share `root`.

        `limits`: what a zip file may ask of whoever resolves it as a directory.
        """
        self._root = Path(root)
        self._repository = repository
        self._limits = limits
        self._flights = SingleFlight()
        self._shelf: Shelf | None = None

    async def resolve(self, wanted: File | Directory, *, report: Report | None = None) -> Path:
        """The path of the whole, verified file, or of the tree that a zip file unpacks to; do not write to it.

        A file has the name that it was pushed with, a tree that name without `.zip`. A hit asks no network and hashes nothing:
        size and mtime are checked, of a tree those of its 100 largest files and the mtime of its folder. A miss takes what it
        shares with other entries from these, and fetches the rest; callers that ask for the same at the same time, in this
        process or another, wait for one fetch.

        Raises NotFound, InvalidReference, InvalidArchive, LimitExceeded, StorageFull, StorageError, DamagedChunk,
        TransferError, UnknownFormat.
        """
        kind = Kind.DIRECTORY if isinstance(wanted, Directory) else Kind.FILE
        reference = wanted.reference
        shelf = await self._opened()
        path = await in_disk_thread(shelf.find, kind, reference)
        if path is not None:
            return path
        return await self._flights.run((kind, reference), lambda: self._fill(shelf, kind, reference, report))

    async def _opened(self) -> Shelf:
        if self._shelf is None:
            await in_disk_thread(check_format, self._root)
            remembered = self._root / "repositories" / f"{self._repository.fingerprint}.json"
            identity = await in_disk_thread(_read_identity, remembered)
            if identity is None:
                identity = await self._repository.identity()
                await in_disk_thread(write_durably, remembered, identity._asdict())
            self._shelf = Shelf(self._root / identity.id / identity.namespace)
        return self._shelf

    async def _fill(self, shelf: Shelf, kind: Kind, reference: Reference, report: Report | None) -> Path:
        record = await self._repository.record(reference)
        wanted = Wanted(kind, record.digest)
        known = Reference(digest=record.digest, name=record.name)
        async with locked(shelf.lock_path(wanted), lambda: shelf.find(kind, known) is not None) as lock:
            # Another process may have filled it while this one waited.
            path = await in_disk_thread(shelf.find, kind, known)
            if path is None:
                path = await self._make(shelf, wanted, record, lock, report)
            await in_disk_thread(shelf.remember, record)
        return path

    async def _make(self, shelf: Shelf, wanted: Wanted, record: Record, lock: Lock, report: Report | None) -> Path:
        """The path of the entry, which another process may make at the same time."""
        manifest = await self._manifest(shelf, record)
        known = Reference(digest=record.digest, name=record.name)
        failure: FilestoreError = StorageError(str(shelf.root), "someone else writes to what was fetched, again and again")
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
                tail = await self._receive(shelf, wanted.kind, record, manifest, target, report=report)
                await in_disk_thread(shelf.publish, wanted, target, manifest, tail=tail)
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
                return path
        raise failure

    async def _manifest(self, shelf: Shelf, record: Record) -> Manifest:
        """What is wanted, from what is here where it is: a zip file that is resolved in both ways is asked for once."""
        manifest = await in_disk_thread(shelf.manifest, record.digest)
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await self._repository.manifest(record.digest))
        return manifest

    async def _receive(  # what is fetched, and to where
        self, shelf: Shelf, kind: Kind, record: Record, manifest: Manifest, target: Path, *, report: Report | None
    ) -> bytes | None:
        """Make the content of an entry at `target`; the tail of a tree's zip."""
        seeds = await in_disk_thread(find_seeds, shelf.root, manifest, limits=self._limits)
        if kind is Kind.FILE:
            await fetch(self._repository, record, target, manifest=manifest, seeds=seeds, report=report)
            return None
        unpacked = await unpack(
            self._repository, record, target, manifest=manifest, limits=self._limits, seeds=seeds, report=report
        )
        return unpacked.tail


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
