"""Resolve what is stored, or a URL, to a verified path on this machine."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias, TypeVar

from filestore.cache.entry_store import EntryStore, WantedEntry
from filestore.cache.inventory import ENTRY_SIZE
from filestore.cache.leases import Leases, LeaseSet
from filestore.cache.options import DEFAULT_CACHE_OPTIONS, CacheOptions
from filestore.cache.quota import Quota
from filestore.cache.seeds import find_seeds
from filestore.cache.stored_entries import StoredEntries, check_entry_kind, check_wanted_kind
from filestore.cache.streaming import StreamingFile, opened_while
from filestore.cache.urls import UrlResult, Urls
from filestore.core.manifest import Manifest
from filestore.core.names import plain_entry_name
from filestore.core.progress import Report
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, FileURL, Reference
from filestore.download.download import DEFAULT_DOWNLOAD_LIMITS, DownloadLimits
from filestore.errors import (
    FilestoreError,
    InvalidArchive,
    InvalidInput,
    InvalidReference,
    LimitExceeded,
    StorageError,
    StorageFull,
    TargetError,
    UnknownFormat,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.repository.format_file import checked_identity
from filestore.repository.protocol import Identity, Repository, checked_repository
from filestore.system.blocks import AsyncBlock
from filestore.system.files import home_path, in_blocks, storage_errors, write_durably
from filestore.system.locks import Lock, locked
from filestore.system.metrics import Event, count
from filestore.system.owners import tighten, warn_of_others
from filestore.system.small_files import read_json
from filestore.system.threads import SingleFlight, in_cpu_thread, in_disk_thread, shield_until_done, tell_of_forks
from filestore.transfer.fetch import fetch_record
from filestore.transfer.fetch_entry import find_entry, own_manifest
from filestore.transfer.fetch_tree import fetch_record_tree
from filestore.transfer.partial_file import PartialFile
from filestore.transfer.sinks.zip_index import Zip

T = TypeVar("T")

Resolvable: TypeAlias = File | Directory | FileURL | Record | str
"""The values that a cache accepts. A record means its `File` or its `Directory`. A text means one file or folder of a stored
directory: a reference, `:` and a path."""

CACHE_VERSION = 1
ATTEMPTS = 3

_WRITING = re.compile(r"\.[0-9a-f]{32}")
"""Matches the name of a small file that is being written."""


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """What a resolve did.

    path: The verified file, or the folder of the tree.
    bytes_received: Bytes that were received: compressed chunks with their headers, or the bytes that the server of
        a URL sent.
    bytes_reused: Bytes of content that other entries of the cache had, or that an earlier fetch that did not end
        had received.
    seconds: How long the resolve took.
    was_cached: True where this call fetched nothing: the cache had it, or another call or another process fetched
        it.
    """

    path: Path
    bytes_received: int
    bytes_reused: int
    seconds: float
    was_cached: bool


@dataclass(frozen=True, slots=True)
class CachedPath:
    """A file or tree that the cache has.

    path: The verified file, or the folder of the tree.
    size: Bytes of content: those of the file, or those of the zip of the tree.
    """

    path: Path
    size: int


class _FillResult(NamedTuple):
    """The result of making an entry that the cache did not have."""

    known: Reference
    """The digest and the name of the file that was asked for."""
    cost: _Cost | None
    """The cost of the fetch. None if another process made the entry first."""


class _Cost(NamedTuple):
    received: int
    reused: int


class Cache:
    """Keep files and directories of one repository on this machine, as verified local paths.

    >>> async with Cache("/var/cache/models", repository, size_limit=200 << 30) as cache:
    ...     path = await cache.resolve(File(id="file_..."))
    ...     async with cache.lease(Directory(id="file_...")) as folder:
    ...         ...

    root: the folder of the cache, which is made where there is none. A `~/` at the beginning is the home folder. Any number of
        processes may share it.
    repository: what `connect` gives.
    limits: what a zip file may ask of this machine when it is resolved as a directory; see `ZipLimits`.
    downloads: what a URL may ask of this machine when it is resolved; see `DownloadLimits`.
    size_limit: bytes of disk that everything below `root` may use, of all repositories, unfinished fetches included. None
        means without a limit.
    min_free: bytes of the disk that stay free.
    options: internal, for the tests of this project. It is not part of the interface, and may change at any time.

    Both limits hold during a fetch too. The entries that were not used for the longest time are removed to make room. What is
    in use is never removed: a path that `resolve` returned until the cache is closed, a path that `lease` gave until the end of
    its block, and neither after the end of this process.

    Use a cache in one event loop. After a fork, the cache works in the child, which uses nothing of its parent's.
    """

    def __init__(
        self,
        root: str | Path,
        repository: Repository,
        *,
        limits: ZipLimits = DEFAULT_LIMITS,
        downloads: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
        size_limit: int | None = None,
        min_free: int = 0,
        options: CacheOptions = DEFAULT_CACHE_OPTIONS,
    ) -> None:
        """Make a cache; no file is touched yet. Raises InvalidSetting for a `~` without a home folder.

        Raises InvalidInput for a value that is not a repository.
        """
        self._root = home_path(root)
        self._repository = checked_repository(repository)
        self._limits = limits
        self._downloads = downloads
        self._size_limit = size_limit
        self._min_free = min_free
        self._options = options
        self._entry_store: EntryStore | None = None
        self._chunking_version = CHUNKING_VERSION
        self._begin_process()
        tell_of_forks(self)

    def _begin_process(self) -> None:
        self._flights = SingleFlight()
        self._leases = Leases(self._root, lock_seconds=self._options.lock_seconds)
        self._resolved = self._leases.hold()
        self._quota = Quota(
            self._root,
            self._leases,
            size_limit=self._size_limit,
            min_free=self._min_free,
            stall_seconds=self._options.stall_seconds,
            settle_seconds=self._options.settle_seconds,
        )

    def after_fork(self) -> None:
        """Start the child of a fork without leases and without fetches. Those that exist belong to the parent."""
        self._begin_process()

    def __reduce__(self) -> tuple[Callable[[], Cache], tuple[()]]:
        """Let processes that are started by spawn or forkserver have the same cache, with leases of their own."""
        make = partial(
            Cache,
            self._root,
            self._repository,
            limits=self._limits,
            downloads=self._downloads,
            size_limit=self._size_limit,
            min_free=self._min_free,
            options=self._options,
        )
        return make, ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the use of all paths that this cache gave, so that they may be removed. Another call does nothing.

        The repository stays open.
        """
        await in_disk_thread(self._leases.close)

    async def resolve(self, wanted: Resolvable, *, report: Report | None = None) -> Path:
        """Return the path of a whole, verified file, or of the tree that a zip file unpacks to. Do not write to it.

        The path stays until the cache is closed. Use `lease` for what is needed for a short time, such as the input of one run.
        A file has the name that it was pushed with; a tree has that name without `.zip`.

        wanted: a `File`, a `Directory` (any stored zip file can be one), a `FileURL`, or a `Record`, which stands for the `File`
            or the `Directory` that it is. `:` and a path after a reference, an id or a digest mean one file or folder of a stored
            directory: `"my_model.zip:tokenizer/config.json"`, `Directory(id="file_...:tokenizer")`. It has the last part of
            the path as its name.
        report: called with a `Progress` at each step of a fetch, in the thread of the event loop.

        Cost: where the cache has it, no network is used and nothing is hashed. Size and mtime are checked: those of the file, or
        those of the 100 largest files of a tree and the mtime of its folder. Otherwise the chunks that other entries of the
        cache have are copied, and the rest is fetched. Calls that ask for the same at the same time, in this process or another
        one, wait for one fetch. The server of a URL is asked each time whether the file has changed, unless the value says
        otherwise. The repository is asked each time which version a name means.

        Cancellation: the fetch ends, unless another call waits for it too. The next call continues where it ended.

        Raises NotFound, EntryNotFound, InvalidReference, InvalidArchive, LimitExceeded, CacheFull, StorageFull, StorageError,
        DamagedChunk, TransferError, UnknownFormat; for a URL also DownloadRefused and UnexpectedContent.
        """
        return (await self.resolved(wanted, report=report)).path

    async def resolved(self, wanted: Resolvable, *, report: Report | None = None) -> ResolveResult:
        """Do what `resolve` does, and tell what it cost. Where calls share one fetch, only the call that began it has the cost.

        Raises what `resolve` raises.
        """
        return await self._resolve(wanted, self._resolved, report)

    def lease(self, wanted: Resolvable, *, report: Report | None = None) -> AbstractAsyncContextManager[Path]:
        """Do what `resolve` does, for the length of an `async with` block: its end allows the cache to remove the path.

        Raises what `resolve` raises.
        """
        return AsyncBlock(self._leased(wanted, report), kind=Path, how="cache.lease(...) as path")

    @asynccontextmanager
    async def _leased(self, wanted: Resolvable, report: Report | None) -> AsyncIterator[Path]:
        hold = self._leases.hold()
        try:
            yield (await self._resolve(wanted, hold, report)).path
        finally:
            await shield_until_done(in_disk_thread(hold.release))

    def open(self, wanted: File | Record | str, *, report: Report | None = None) -> AbstractAsyncContextManager[StreamingFile]:
        """Open a file that can be read before all of it is on this machine, for the length of an `async with` block.

        >>> async with cache.open(File(id="file_...")) as opened:
        ...     header = await opened.read(0, 8)

        Ranges that are read are fetched first. The rest of the file is fetched in the background. The block begins when the list
        of the file's chunks is known. Without an error, it ends when the whole file is in the cache, as after `resolve`. Where
        another task or another process fetches the file already, for a URL, and for a file of a stored directory that shares
        chunks with other files (one of less than 256 KiB), the block begins when that fetch has ended.

        Cancellation: an error or a cancel in the block stops the fetch. The next call continues there. A fetch that fails
        cancels the block, which then raises the error of the fetch.

        Raises what `resolve` raises.
        """
        return AsyncBlock(self._opened(wanted, report), kind=StreamingFile, how="cache.open(...) as opened")

    @asynccontextmanager
    async def _opened(self, wanted: File | Record | str, report: Report | None) -> AsyncIterator[StreamingFile]:
        hold = self._leases.hold()

        async def resolve(partial_file: PartialFile) -> Path:
            return (await self._resolve(wanted, hold, report, partial_file)).path

        try:
            async with opened_while(resolve) as opened:
                yield opened
        finally:
            await shield_until_done(in_disk_thread(hold.release))

    async def _resolve(
        self, wanted: Resolvable, hold: LeaseSet, report: Report | None, partial_file: PartialFile | None = None
    ) -> ResolveResult:
        """Resolve `wanted`. `hold` keeps the entry from eviction."""
        started = time.monotonic()
        source, kind = _meaning(wanted)
        entry_store = await self._open_entry_store()
        asked = _ResolveRequest(entry_store, kind or Kind.FILE, hold, report, partial_file)
        if isinstance(source, FileURL):
            resolved = await self._resolve_url(asked, source)
        elif source.entry_path is not None:
            resolved = await self._resolve_entry(asked, source, kind if partial_file is None else Kind.FILE)
        else:
            resolved = await self._resolve_stored(asked, source)
        count(Event.CACHE_LOOKUPS, "files", "hit" if resolved.was_cached else "miss")
        return replace(resolved, seconds=time.monotonic() - started)

    async def _resolve_url(self, asked: _ResolveRequest, origin: FileURL) -> ResolveResult:
        entry_store, kind = asked.entry_store, asked.kind
        urls = self._urls(entry_store)
        bytes_received = 0
        for _ in range(ATTEMPTS):
            digest = await in_disk_thread(urls.find, origin, kind)
            obtained = UrlResult(digest) if digest is not None else await self._obtained(urls, kind, origin, asked.report)
            bytes_received += obtained.bytes_received
            hold = self._leases.hold()
            try:
                # The tree is made of the zip file in the cache, as from a seed, without a request. So that file must
                # stay until then.
                await in_disk_thread(hold.pin, entry_store.key(WantedEntry(Kind.FILE, obtained.digest).label))
                await in_disk_thread(hold.pin, entry_store.key(WantedEntry(kind, obtained.digest).label))
                if not await in_disk_thread(urls.has, kind, obtained.digest):
                    continue  # another process has evicted it
                record = Record("", origin.name, obtained.digest, 0, kind, entry_store.root.name, 0, 0)
                reference = Reference(digest=obtained.digest, name=origin.name)
                resolved = await self._resolve_stored(asked, reference, record=record)
            finally:
                await shield_until_done(in_disk_thread(hold.release))
            if not bytes_received and obtained.was_cached:
                return resolved
            return replace(resolved, bytes_received=bytes_received, bytes_reused=obtained.bytes_resumed, was_cached=False)
        raise self._lost()

    def _urls(self, entry_store: EntryStore) -> Urls:
        return Urls(
            entry_store,
            self._leases,
            self._quota,
            chunking_version=self._chunking_version,
            limits=self._downloads,
            options=self._options.download,
            clock=self._options.clock,
        )

    async def _obtained(self, urls: Urls, kind: Kind, origin: FileURL, report: Report | None) -> UrlResult:
        obtained, is_ours = await self._once(("url", kind, origin), lambda: urls.obtain(origin, kind, report=report))
        return obtained if is_ours else UrlResult(obtained.digest)

    async def _resolve_entry(self, asked: _ResolveRequest, reference: Reference, kind: Kind | None) -> ResolveResult:
        """Resolve a reference with a path in a directory. `kind` is what must be there, or None for a file or a folder."""
        if not reference.entry_path:
            check_wanted_kind(reference, Kind.DIRECTORY, kind)
            return await self._resolve_stored(asked._replace(kind=Kind.DIRECTORY), reference.without_entry)
        entry_store, whole = asked.entry_store, reference.without_entry
        stored_entries = self._stored_entries(entry_store)
        directory = whole.digest if whole.id is None else await in_disk_thread(entry_store.digest_of, whole.id)
        record: Record | None = None
        if directory is None:
            record = await self._record(entry_store, whole)
            directory = record.digest
        cost: _Cost | None = None
        for _ in range(ATTEMPTS):
            found = await in_disk_thread(stored_entries.find, directory, reference, kind, hold=asked.hold)
            if found is not None:
                received, reused = cost or (0, 0)
                return ResolveResult(found[1], received, reused, 0, was_cached=cost is None)
            if record is None:
                record = await self._record(entry_store, whole)
                directory = record.digest
            fill = partial(self._fill_entry, asked, reference, kind, record)
            spent, is_ours = await self._once(("entry", directory, reference.entry_path, kind), fill)
            if is_ours and spent is not None:
                cost = _sum(cost, spent)
        raise self._lost()

    async def _record(self, entry_store: EntryStore, reference: Reference) -> Record:
        record, _ = await self._once(("record", reference), lambda: self._repository.record(reference))
        await in_disk_thread(entry_store.remember, record)
        return record

    async def _fill_entry(self, asked: _ResolveRequest, reference: Reference, kind: Kind | None, record: Record) -> _Cost | None:
        """Put a file or a folder of a directory in the cache. Return what this cost, or None if it was there."""
        entry_store = asked.entry_store
        stored_entries = self._stored_entries(entry_store)
        manifest = await self._manifest(entry_store, record)
        found = await find_entry(self._repository, record, reference, limits=self._limits, manifest=manifest)
        await check_entry_kind(self._repository, reference, found, kind)
        own = await in_cpu_thread(own_manifest, found)
        if own is None:
            _, spent = await stored_entries.make(record, found, asked.hold, asked.report)
            return None if spent is None else _Cost(*spent)
        # It has chunks of its own, so it is fetched as the file that it is when it is pushed alone.
        name = plain_entry_name(found.entry.path)
        alone = replace(record, id="", name=name, owner=None, digest=own.digest, size=own.size, kind=Kind.FILE)
        known = Reference(digest=own.digest, name=name)
        resolved = await self._resolve_stored(asked._replace(kind=Kind.FILE), known, record=alone, manifest=own)
        await in_disk_thread(stored_entries.remember, record.digest, found.entry.path, WantedEntry(Kind.FILE, own.digest))
        return None if resolved.was_cached else _Cost(resolved.bytes_received, resolved.bytes_reused)

    def _stored_entries(self, entry_store: EntryStore) -> StoredEntries:
        return StoredEntries(self._repository, entry_store, self._leases, self._quota, limits=self._limits, options=self._options)

    async def _resolve_stored(
        self,
        asked: _ResolveRequest,
        reference: Reference,
        *,
        record: Record | None = None,
        manifest: Manifest | None = None,
    ) -> ResolveResult:
        """Resolve a reference. `record` is its record, or None if the repository must be asked for it.

        `manifest` is its manifest, if it is known.
        """
        entry_store, kind = asked.entry_store, asked.kind
        known = reference
        cost: _Cost | None = None
        for _ in range(ATTEMPTS):
            path = await in_disk_thread(entry_store.find, kind, known, hold=asked.hold)
            if path is not None:
                received, reused = cost or (0, 0)
                return ResolveResult(path, received, reused, 0, was_cached=cost is None)
            filled, is_ours = await self._once((kind, reference), lambda: self._fill(asked, reference, record, manifest))
            known = filled.known
            if is_ours and filled.cost is not None:
                cost = _sum(cost, filled.cost)
        raise self._lost()

    def _lost(self) -> StorageError:
        return StorageError(str(self._root), "another process keeps removing what was fetched; try again")

    async def _once(self, key: Hashable, function: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Share one call of `function` among all callers that give the same `key` at the same time.

        Return its result, and whether this caller began it.
        """
        is_ours = False

        async def call() -> T:
            nonlocal is_ours
            is_ours = True
            return await function()

        return await self._flights.run(key, call), is_ours

    async def cached(self, wanted: Resolvable) -> CachedPath | None:
        """Return what the cache has, or None.

        The repository is asked for nothing but its identity, and only if the cache has not saved that. So a file or a folder of a
        directory is only found by an id or a digest, such as `"file_...:config.json"`.

        The path may be removed at any time. Use `resolve` or `lease` for a path that stays.

        Raises InvalidReference, StorageError, UnknownFormat, TransferError.
        """
        source, kind = _meaning(wanted)
        if isinstance(source, Reference) and source.id is None and source.digest is None:
            reason = "only the repository knows which version a name means; give an id or a digest, or resolve it"
            raise InvalidReference(str(source), reason)
        entry_store = await self._open_entry_store()
        found = await in_disk_thread(self._find, entry_store, source, kind)
        return None if found is None else CachedPath(found[1], await in_disk_thread(entry_store.size, *found))

    def _find(self, entry_store: EntryStore, source: FileURL | Reference, kind: Kind | None) -> tuple[Kind, Path] | None:
        if isinstance(source, Reference) and source.entry_path is not None:
            return self._find_entry(entry_store, source, kind)
        kind = kind or Kind.FILE
        path = self._find_url(entry_store, kind, source) if isinstance(source, FileURL) else entry_store.find(kind, source)
        return None if path is None else (kind, path)

    def _find_entry(self, entry_store: EntryStore, reference: Reference, kind: Kind | None) -> tuple[Kind, Path] | None:
        directory = reference.digest if reference.id is None else entry_store.digest_of(reference.id)
        if not reference.entry_path:
            check_wanted_kind(reference, Kind.DIRECTORY, kind)
            path = entry_store.find(Kind.DIRECTORY, reference.without_entry)
            return None if path is None else (Kind.DIRECTORY, path)
        return None if directory is None else self._stored_entries(entry_store).find(directory, reference, kind)

    def _find_url(self, entry_store: EntryStore, kind: Kind, origin: FileURL) -> Path | None:
        digest = self._urls(entry_store).find(origin, kind)
        return None if digest is None else entry_store.find(kind, Reference(digest=digest, name=origin.name))

    async def _open_entry_store(self) -> EntryStore:
        if self._entry_store is None:
            await in_disk_thread(check_format, self._root)
            remembered = self._root / "repositories" / f"{self._repository.fingerprint}.json"
            identity = await in_disk_thread(_read_identity, remembered)
            if identity is None:
                identity = await self._repository.identity()
                await in_disk_thread(_remember, remembered, identity)
            self._entry_store = EntryStore(self._root / identity.id / identity.namespace)
            self._chunking_version = identity.chunking_version
        return self._entry_store

    async def _fill(
        self, asked: _ResolveRequest, reference: Reference, known_record: Record | None, manifest: Manifest | None = None
    ) -> _FillResult:
        entry_store, kind = asked.entry_store, asked.kind
        record = await self._repository.record(reference) if known_record is None else known_record
        wanted = WantedEntry(kind, record.digest)
        known = Reference(digest=record.digest, name=record.name)
        hold = self._leases.hold()
        try:
            # After this, no other process removes the staged data.
            await in_disk_thread(hold.pin, entry_store.key(wanted.label))
            lock_path, beat_seconds = entry_store.lock_path(wanted), self._options.beat_seconds
            async with locked(lock_path, lambda: entry_store.find(kind, known) is not None, beat_seconds=beat_seconds) as lock:
                # Another process may have made the entry while this one waited.
                path = await in_disk_thread(entry_store.find, kind, known)
                making = _FillRequest(entry_store, wanted, record, hold, asked.report, asked.partial_file, manifest)
                cost = None if path is not None else await self._make(making, lock)
                if known_record is None:
                    await in_disk_thread(entry_store.remember, record)
            # This comes before `hold` ends, so that the entry cannot be evicted before the caller gets it.
            await in_disk_thread(hold.hand_over, entry_store.key(wanted.label), asked.hold)
        finally:
            await shield_until_done(in_disk_thread(hold.release))
        return _FillResult(known, cost)

    async def _make(self, making: _FillRequest, lock: Lock) -> _Cost:
        """Fetch and publish an entry, and return what this cost. Another process may do the same at the same time."""
        entry_store, wanted, record = making.entry_store, making.wanted, making.record
        manifest = making.manifest or await self._manifest(entry_store, record)
        known = Reference(digest=record.digest, name=record.name)
        failure: FilestoreError = StorageError(
            str(entry_store.root), "another process keeps writing to what was fetched; try again"
        )
        cost: _Cost | None = None
        for attempt in range(ATTEMPTS):
            is_first = attempt == 0
            target = await in_disk_thread(
                entry_store.new_staging_folder,
                wanted,
                record.name,
                is_alone=lock.is_held and is_first,
                takes_over=lock.passes_by and is_first,
            )
            try:
                spent, tail = await self._receive(making, manifest, target)
                cost = _sum(cost, spent)
                await in_disk_thread(entry_store.publish, wanted, target, manifest, tail=tail)
            except StorageFull:
                raise
            except (TargetError, StorageError) as error:
                # Another process may have assumed that this one is suspended, and have taken over its staging folder.
                failure = error
            except (InvalidArchive, LimitExceeded):
                await in_disk_thread(entry_store.clear, target)
                raise
            finally:
                if cost is None:
                    await shield_until_done(in_disk_thread(entry_store.clear_empty, target))
            if cost is not None and await in_disk_thread(entry_store.find, wanted.kind, known) is not None:
                return cost
        raise failure

    async def _manifest(self, entry_store: EntryStore, record: Record) -> Manifest:
        """Return the manifest of a record from the cache if possible.

        A zip file that is resolved as a file and as a tree needs one request.
        """
        manifest = await in_disk_thread(entry_store.manifest, record.digest)
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await self._repository.manifest(record.digest))
        return manifest

    async def _receive(self, making: _FillRequest, manifest: Manifest, target: Path) -> tuple[_Cost, bytes | None]:
        """Fetch the content of an entry to `target`. Return the cost, and for a tree the tail of its zip."""
        entry_store, record, report = making.entry_store, making.record, making.report
        found = await in_disk_thread(find_seeds, entry_store.root, manifest, limits=self._limits)
        spared = {entry_store.key(seed.wanted.label) for seed in found}
        seeds = [seed.seed for seed in found]

        async def reserve(content_size: int) -> None:
            size = content_size + in_blocks(len(manifest.encoded)) + ENTRY_SIZE
            await self._quota.reserve(making.hold, entry_store.key(making.wanted.label), size, spared=spared)

        async def reserve_tree(archive: Zip) -> None:
            await reserve(await in_cpu_thread(lambda: archive.stored_size) + in_blocks(len(archive.tail)))

        if making.wanted.kind is Kind.FILE:
            await reserve(in_blocks(manifest.size))
            fetched = await fetch_record(
                self._repository,
                record,
                target=target,
                force=True,
                manifest=manifest,
                seeds=seeds,
                report=report,
                partial_file=making.partial_file,
                options=self._options.transfer,
            )
            return _Cost(fetched.bytes_received, fetched.bytes_reused), None
        unpacked = await fetch_record_tree(
            self._repository,
            record,
            target=target,
            manifest=manifest,
            limits=self._limits,
            seeds=seeds,
            report=report,
            reserve=reserve_tree,
            options=self._options.transfer,
        )
        return _Cost(unpacked.bytes_received, unpacked.bytes_reused), unpacked.tail


class _ResolveRequest(NamedTuple):
    """The arguments that one call of `resolve` passes on."""

    entry_store: EntryStore
    kind: Kind
    hold: LeaseSet
    """The leases of the caller, which will pin the entry."""
    report: Report | None
    partial_file: PartialFile | None


class _FillRequest(NamedTuple):
    """The arguments for making one entry."""

    entry_store: EntryStore
    wanted: WantedEntry
    record: Record
    hold: LeaseSet
    report: Report | None
    partial_file: PartialFile | None
    manifest: Manifest | None
    """Its manifest, if it is known already."""


def _sum(first: _Cost | None, second: _Cost) -> _Cost:
    # An attempt may reuse what the one before it received, so the reused bytes are not added up.
    return second if first is None else _Cost(first.received + second.received, second.reused)


def _meaning(wanted: object) -> tuple[FileURL | Reference, Kind | None]:
    """Return what to find, and whether this must be a file or a directory. A text means a path in a directory, of either kind.

    Raises InvalidReference for a local path; InvalidInput.
    """
    if isinstance(wanted, str) and ":" in wanted:
        reference = Reference.parse(wanted)
        if reference.entry_path is not None:
            return reference, None
    if isinstance(wanted, FileURL):
        return wanted, Kind.FILE
    if isinstance(wanted, File | Directory):
        return wanted.origin or wanted.reference, Kind.DIRECTORY if isinstance(wanted, Directory) else Kind.FILE
    if not isinstance(wanted, Record):
        given = repr(wanted) if isinstance(wanted, str) else f"a value of the type {type(wanted).__name__}"
        raise InvalidInput(
            f"a cache cannot resolve {given}, which says neither file nor directory; give File(id=...) or Directory(id=...), or"
            " the record that `repository.record` returns for a name"
        )
    return File(id=wanted.id).reference, wanted.kind


def check_format(root: Path) -> None:
    """Write the format file of a new cache, or check that the version of an existing cache is known. Blocks.

    Raises InvalidInput, UnknownFormat, StorageError.
    """
    path = root / "format"
    known = {"cache": CACHE_VERSION}
    with storage_errors(path):
        try:
            found = read_json(path)
        except FileNotFoundError:
            _check_can_become_one(root)
            _make_private(root)
            write_durably(path, known)
            return
        except ValueError as error:
            raise StorageError(str(path), str(error)) from None
    if found != known:
        raise UnknownFormat(str(root), str(found), str(known))
    _make_private(root)


def _make_private(root: Path) -> None:
    """Take the permissions of other users from the folder of a cache, or warn that they could change what is in it."""
    with suppress(FileNotFoundError):
        tighten(root)
        warn_of_others(root, "the cache")


def _check_can_become_one(root: Path) -> None:
    """Raise InvalidInput if a folder without a format file contains other things. Also raises StorageError."""
    with storage_errors(root):
        names = sorted(path.name for path in root.iterdir()) if root.exists() else []
    # Ignore what another process writes that makes this cache right now, and what belongs to a file system.
    strange = [name for name in names if name != "lost+found" and not _WRITING.fullmatch(name)]
    if strange and not (root / "format").exists():
        raise InvalidInput(f"{root} is not a cache: it holds other things, such as {strange[0]!r}; give a new or an empty folder")


def check_cache(root: Path) -> None:
    """Check that there is a cache, and that its version is known. Blocks.

    Raises InvalidInput, UnknownFormat, StorageError.
    """
    if not (root / "format").exists():
        raise InvalidInput(f"there is no cache in {root}; give the folder of one")
    check_format(root)


def _remember(path: Path, identity: Identity) -> None:
    # A read-only cache that was made elsewhere works without this file.
    with suppress(StorageError):
        write_durably(path, {"id": identity.id, "namespace": identity.namespace, "cutting": identity.chunking_version})


def _read_identity(path: Path) -> Identity | None:
    try:
        found = read_json(path)
        if found["cutting"] != CHUNKING_VERSION:
            return None  # the repository says what it is
        return checked_identity(found["id"], found["namespace"], found["cutting"])
    except (OSError, ValueError, KeyError, TypeError, FilestoreError):
        return None
