"""Put single files and folders of stored directories in the cache.

    ROOT/<repository id>/<namespace>/
        stored-entries/<key>.json           the kind and the digest of the entry of the cache that has the content
        staging/<key>, staging/<key>-tree   a file or a folder that the holder of its lock is fetching
        locks/<key>, locks/<key>-tree

The key is made of the digest of the directory and of the path in it, so what is remembered under it never changes. A file
becomes the entry that it is when it is pushed alone, and a folder becomes the entry that it is when it is pushed alone. So
the same content in two directories is one entry, and all rules of the cache hold for it.

The digest of a file with chunks of its own is known before it is fetched; `Cache` fetches it like any other file. For
anything else, the digest is known when its content is here, so until then it is staged and locked by its key.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from filestore.cache.entry_store import EntryStore, WantedEntry
from filestore.cache.inventory import ENTRY_SIZE
from filestore.cache.leases import Leases, LeaseSet
from filestore.cache.options import CacheOptions
from filestore.cache.quota import Quota
from filestore.cache.seeds import find_seeds
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import plain_entry_name
from filestore.core.progress import Report
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import (
    FilestoreError,
    InvalidArchive,
    InvalidReference,
    LimitExceeded,
    SourceError,
    StorageError,
    StorageFull,
    TargetError,
)
from filestore.format.zip.read import ZipLimits
from filestore.repository.protocol import Repository
from filestore.system.files import in_blocks, storage_errors, write_durably, write_error
from filestore.system.locks import Lock, locked
from filestore.system.small_files import read_json
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done
from filestore.transfer.fetch import fetch_entry
from filestore.transfer.fetch_entry import HELD_LIMIT, FoundEntry, checked_kind, entry_key, tree_part
from filestore.transfer.fetch_tree import fetch_part
from filestore.transfer.push import packed_tree
from filestore.transfer.sinks.zip_index import Zip
from filestore.transfer.stored_tree import EntryKind

ATTEMPTS = 3
_DIRECTORY_ENTRY_SIZE = 256
"""Bytes of the central directory that a member takes at most, without its path."""
_MANIFEST_SHARE = 1024
"""A file has at least so many times the bytes of its manifest, for all but its first block."""


class StoredEntryCost(NamedTuple):
    """What it cost to put a file or a folder in the cache."""

    received: int
    reused: int


class _Fetched(NamedTuple):
    """Content in staging, as the entry that it becomes."""

    manifest: Manifest
    tail: bytes | None
    """The bytes of the zip file of a folder from its central directory on. None for a file."""
    cost: StoredEntryCost


class StoredEntries:
    """Find and make the entries of the cache that have one file or folder of a stored directory."""

    def __init__(
        self,
        repository: Repository,
        entry_store: EntryStore,
        leases: Leases,
        quota: Quota,
        *,
        limits: ZipLimits,
        options: CacheOptions,
    ) -> None:
        self._repository = repository
        self._entry_store = entry_store
        self._leases = leases
        self._quota = quota
        self._limits = limits
        self._options = options

    def find(
        self, directory: Digest, reference: Reference, kind: Kind | None, *, hold: LeaseSet | None = None
    ) -> tuple[Kind, Path] | None:
        """Return the kind and the path of what `reference` names in a directory, or None if the cache does not have it. Blocks.

        Raises InvalidReference if the cache has it, and it is not of this kind.
        """
        path = reference.entry_path or ""
        wanted = self._recall(entry_key(directory, path))
        if wanted is None:
            return None
        check_wanted_kind(reference, wanted.kind, kind)
        found = self._entry_store.find(wanted.kind, _named(wanted, path), hold=hold)
        return None if found is None else (wanted.kind, found)

    def remember(self, directory: Digest, path: str, wanted: WantedEntry) -> None:
        """Save which entry of the cache has the content of a path in a directory. Blocks."""
        place = self._path(entry_key(directory, path))
        if self._recall(entry_key(directory, path)) != wanted:
            # If it cannot be kept, the next resolve asks the repository again.
            try:
                write_durably(place, {"kind": wanted.kind.value, "digest": str(wanted.digest)})
            except StorageError:
                return

    async def make(
        self, record: Record, found: FoundEntry, caller: LeaseSet, report: Report | None
    ) -> tuple[WantedEntry, StoredEntryCost | None]:
        """Put a folder, or a file that shares chunks with other files, in the cache. `caller` then holds its entry.

        Returns the entry, and no cost if another process has made it meanwhile. Raises what `Cache.resolve` raises.
        """
        path = found.entry.path
        key = entry_key(record.digest, path)
        staged = WantedEntry(Kind.DIRECTORY if found.entry.kind is EntryKind.FOLDER else Kind.FILE, key)
        hold = self._leases.hold()
        try:
            # After this, no other process removes the staged data.
            await in_disk_thread(hold.pin, self._entry_store.key(staged.label))
            lock_path, beat_seconds = self._entry_store.lock_path(staged), self._options.beat_seconds
            async with locked(lock_path, lambda: self._present(key, path) is not None, beat_seconds=beat_seconds) as lock:
                # Another process may have made the entry while this one waited.
                wanted = await in_disk_thread(self._present, key, path)
                cost = None
                if wanted is None:
                    wanted, cost = await self._make(record, found, staged, lock, hold=hold, report=report)
                    await in_disk_thread(self.remember, record.digest, path, wanted)
            # This comes before `hold` ends, so that the entry cannot be evicted before the caller gets it.
            await in_disk_thread(hold.pin, self._entry_store.key(wanted.label))
            await in_disk_thread(hold.hand_over, self._entry_store.key(wanted.label), caller)
        finally:
            await shield_until_done(in_disk_thread(hold.release))
        return wanted, cost

    async def _make(
        self, record: Record, found: FoundEntry, staged: WantedEntry, lock: Lock, *, hold: LeaseSet, report: Report | None
    ) -> tuple[WantedEntry, StoredEntryCost]:
        name = plain_entry_name(found.entry.path)
        root = str(self._entry_store.root)
        failure: FilestoreError = StorageError(root, "another process keeps writing to what was fetched; try again")
        for attempt in range(ATTEMPTS):
            is_first = attempt == 0
            target = await in_disk_thread(
                self._entry_store.new_staging_folder,
                staged,
                name,
                is_alone=lock.is_held and is_first,
                takes_over=lock.passes_by and is_first,
            )
            try:
                fetched = await self._fetch(record, found, staged, target, hold=hold, report=report)
                wanted = WantedEntry(staged.kind, fetched.manifest.digest)
                if await self._publish(wanted, target, fetched, hold):
                    return wanted, fetched.cost
            except StorageFull:
                raise
            except (TargetError, StorageError) as error:
                # Another process may have assumed that this one is suspended, and have taken over its staging folder.
                failure = error
            except (InvalidArchive, LimitExceeded):
                await in_disk_thread(self._entry_store.clear, target)
                raise
            finally:
                await shield_until_done(in_disk_thread(self._entry_store.clear_empty, target))
        raise failure

    async def _fetch(
        self, record: Record, found: FoundEntry, staged: WantedEntry, target: Path, *, hold: LeaseSet, report: Report | None
    ) -> _Fetched:
        """Write a file or a folder to `target`. Return what a push of it alone would commit."""
        key, options = self._entry_store.key(staged.label), self._options.transfer
        if staged.kind is Kind.FILE:
            size = found.entry.size
            # A file that does not fit in memory is copied when all of it is here.
            size = in_blocks(size) * (1 if size <= HELD_LIMIT else 2) + in_blocks(size // _MANIFEST_SHARE + 1)
            await self._quota.reserve(hold, key, size + ENTRY_SIZE)
            file = await fetch_entry(self._repository, record, found, target=target, force=True, report=report, options=options)
            return _Fetched(file.manifest, None, StoredEntryCost(file.bytes_received, file.bytes_reused))
        part = await in_cpu_thread(tree_part, found.tree, found.entry.path)
        seeds = await in_disk_thread(find_seeds, self._entry_store.root, part.manifest, limits=self._limits)
        spared = {self._entry_store.key(seed.wanted.label) for seed in seeds}

        async def reserve(archive: Zip) -> None:
            size = await in_cpu_thread(_size_of, archive) + in_blocks(2 * len(part.manifest.encoded)) + ENTRY_SIZE
            await self._quota.reserve(hold, key, size, spared=spared)

        tree = await fetch_part(
            self._repository,
            record,
            part,
            target=target,
            seeds=[seed.seed for seed in seeds],
            report=report,
            reserve=reserve,
            options=options,
        )
        try:
            manifest, tail = await packed_tree(target, chunking_version=part.manifest.chunking_version)
        except SourceError as error:
            raise StorageError(str(target), str(error)) from None
        return _Fetched(manifest, tail, StoredEntryCost(tree.bytes_received, tree.bytes_reused))

    async def _publish(self, wanted: WantedEntry, staged: Path, fetched: _Fetched, hold: LeaseSet) -> bool:
        """Make an entry of what is staged, if there is none yet. Return whether it exists now. Raises StorageError."""

        def is_there() -> bool:
            return self._entry_store.find(wanted.kind, Reference(digest=wanted.digest)) is not None

        def publish() -> None:
            # Data in this place is damaged, or comes from a fetch that was cut.
            target = self._entry_store.new_staging_folder(wanted, staged.name, is_alone=lock.is_held, takes_over=lock.passes_by)
            with storage_errors(self._entry_store.root, translate=write_error):
                staged.rename(target)
            self._entry_store.publish(wanted, target, fetched.manifest, tail=fetched.tail)

        # This is the lock of the entry itself, because a fetch of the same content by its digest may make the same entry.
        await in_disk_thread(hold.pin, self._entry_store.key(wanted.label))
        async with locked(self._entry_store.lock_path(wanted), is_there, beat_seconds=self._options.beat_seconds) as lock:
            if not await in_disk_thread(is_there):
                await in_disk_thread(publish)
        await in_disk_thread(self._entry_store.clear, staged)
        return await in_disk_thread(is_there)

    # The methods below block.

    def _present(self, key: Digest, path: str) -> WantedEntry | None:
        wanted = self._recall(key)
        return wanted if wanted is not None and self._entry_store.find(wanted.kind, _named(wanted, path)) is not None else None

    def _recall(self, key: Digest) -> WantedEntry | None:
        try:
            values = read_json(self._path(key))
            return WantedEntry(Kind(values["kind"]), Digest.parse(values["digest"]))
        except (OSError, ValueError, KeyError, TypeError, FilestoreError):
            return None

    def _path(self, key: Digest) -> Path:
        return self._entry_store.root / "stored-entries" / f"{key}.json"


async def check_entry_kind(repository: Repository, reference: Reference, found: FoundEntry, wanted: Kind | None) -> None:
    """Raise InvalidReference for a link, and if the entry is not of the kind that is wanted."""
    if found.entry.kind is EntryKind.LINK:
        await checked_kind(repository, found, EntryKind.FILE)
    check_wanted_kind(reference, Kind.DIRECTORY if found.entry.kind is EntryKind.FOLDER else Kind.FILE, wanted)


def check_wanted_kind(reference: Reference, kind: Kind, wanted: Kind | None) -> None:
    """Raise InvalidReference if an entry is not of the kind that is wanted. None means either kind."""
    if wanted in {None, kind}:
        return
    reason = "it is a folder and not a file" if kind is Kind.DIRECTORY else "it is a file and not a folder"
    raise InvalidReference(str(reference), reason)


def _named(wanted: WantedEntry, path: str) -> Reference:
    return Reference(digest=wanted.digest, name=plain_entry_name(path))


def _size_of(archive: Zip) -> int:
    """Return the bytes of disk that a tree takes, with the central directory of its own zip file."""
    tail = sum(len(member.path.encode()) + _DIRECTORY_ENTRY_SIZE for member in archive.members)
    return archive.stored_size + in_blocks(tail + _DIRECTORY_ENTRY_SIZE)
