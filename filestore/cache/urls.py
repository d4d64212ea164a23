"""Download files from third-party servers into the cache, and remember what those servers said about them.

    ROOT/<repository id>/<namespace>/
        urls/<BLAKE3 of a URL>.json         the entry that the URL gave last, its validators, and the time
        sha256/<64 hex>.json                the entry whose bytes have this SHA-256
        staging/url-<BLAKE3 of a URL>       a download by the holder of its lock, or a cut one that will be continued
        staging/.url-<BLAKE3 of a URL>.*    a download without a lock
        locks/url-<BLAKE3 of a URL>

A downloaded file becomes an entry like any other. The same bytes behind two URLs, or in a repository, are one entry. A
URL itself is not stored, because its query may contain a secret.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from filestore.cache.entry_store import EntryStore, WantedEntry
from filestore.cache.inventory import ENTRY_SIZE
from filestore.cache.leases import Leases, LeaseSet
from filestore.cache.quota import Quota
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.progress import Report
from filestore.core.records import Kind
from filestore.core.references import FileURL, Reference
from filestore.download.download import (
    DEFAULT_DOWNLOAD_OPTIONS,
    PARTIAL_NAME,
    DownloadLimits,
    DownloadOptions,
    DownloadResult,
    Validators,
    download,
    validators_from,
)
from filestore.errors import (
    DownloadRefused,
    FilestoreError,
    LimitExceeded,
    ServerError,
    StorageError,
    TransferError,
    UnexpectedContent,
)
from filestore.system.files import in_blocks, remove_if_possible, storage_errors, take_away, write_durably, write_error
from filestore.system.locks import Lock, locked
from filestore.system.owners import make_private
from filestore.system.small_files import read_json
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done
from filestore.transfer.push import manifest_of

STALE_SECONDS = 10.0
"""How long an origin is tried again before the last copy is used, where that is allowed."""
ATTEMPTS = 3


class UrlResult(NamedTuple):
    """The digest of the entry with the content of a URL, and the cost in bytes."""

    digest: Digest
    bytes_received: int = 0
    bytes_resumed: int = 0
    was_cached: bool = True
    """True if no content was downloaded."""


class _UrlState(NamedTuple):
    """The last answer of a URL. `asked_at` is by the clock of this machine, in seconds since 1970."""

    digest: Digest
    validators: Validators
    asked_at: float


class Urls:
    """Download the content of URLs into one entry store. Any number of processes may do so at the same time."""

    def __init__(
        self,
        entry_store: EntryStore,
        leases: Leases,
        quota: Quota,
        *,
        chunking_version: int,
        limits: DownloadLimits,
        options: DownloadOptions = DEFAULT_DOWNLOAD_OPTIONS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`chunking_version` is the chunking version by which the entries get their digests."""
        self._entry_store = entry_store
        self._leases = leases
        self._quota = quota
        self._chunking_version = chunking_version
        self._limits = limits
        self._options = options
        self._clock = clock

    def find(self, origin: FileURL, kind: Kind) -> Digest | None:
        """Return an entry that can be used without a request, or None. Blocks.

        Such an entry has the expected digest, or the origin was asked about it less than `max_age_seconds` ago.
        """
        if origin.expected is not None:
            digest = self._with_digest(origin.expected)
        else:
            known = self._recall(origin)
            age = self._clock() - known.asked_at if known is not None else 0
            digest = known.digest if known is not None and 0 <= age < (origin.max_age_seconds or 0) else None
        return digest if digest is not None and self.has(kind, digest) else None

    def has(self, kind: Kind, digest: Digest) -> bool:
        """Return whether the cache has the entry, or the zip file from which it can be unpacked. Blocks."""
        return any(self._entry_store.find(each, Reference(digest=digest)) is not None for each in {kind, Kind.FILE})

    async def obtain(self, origin: FileURL, kind: Kind, *, report: Report | None = None) -> UrlResult:
        """Make sure that the cache has the content of `origin`: the file, or for a directory the tree or the file.

        The origin is asked once for all processes that call this at the same time. Raises what `download` raises, and
        UnexpectedContent.
        """
        began = self._clock()

        def settled() -> Digest | None:
            known = self._recall(origin) if origin.expected is None else None
            if known is not None and began <= known.asked_at <= self._clock() and self.has(kind, known.digest):
                return known.digest  # another process asked while this one waited
            return self.find(origin, kind)

        label = _label(origin)
        hold = self._leases.hold()
        try:
            # After this, no other process removes the staged data.
            await in_disk_thread(hold.pin, self._entry_store.key(label))
            async with locked(self._entry_store.root / "locks" / label, lambda: settled() is not None) as lock:
                digest = await in_disk_thread(settled)
                return UrlResult(digest) if digest is not None else await self._ask(origin, kind, lock, hold, report)
        finally:
            await shield_until_done(in_disk_thread(hold.release))

    async def _ask(self, origin: FileURL, kind: Kind, lock: Lock, hold: LeaseSet, report: Report | None) -> UrlResult:
        known = await in_disk_thread(self._usable, origin, kind)
        received = 0
        for attempt in range(ATTEMPTS):
            folder = await in_disk_thread(self._stage, _label(origin), lock, is_first=attempt == 0)
            try:
                downloaded = await self._download(origin, folder, known, hold, report)
                if downloaded is None:
                    if known is None:
                        raise AssertionError("the origin said that an unknown content is unchanged")
                    await in_disk_thread(remove_if_possible, folder)
                    return await self._confirm(origin, known)
                received += downloaded.bytes_received
                digest = await self._keep(origin, downloaded, hold)
            except TransferError as error:
                if known is None or not origin.stale_ok or origin.expected is not None or not _is_out_of_reach(error):
                    raise
                return UrlResult(known.digest)
            if digest is not None:
                return UrlResult(digest, received, downloaded.bytes_resumed, was_cached=False)
        raise StorageError(str(self._entry_store.root), "another process keeps writing to what was downloaded; try again")

    async def _download(
        self, origin: FileURL, folder: Path, known: _UrlState | None, hold: LeaseSet, report: Report | None
    ) -> DownloadResult | None:
        """Download to `folder`. If the download fails, leave in it only what the next attempt can continue."""

        async def reserve(size: int) -> None:
            await self._quota.reserve(hold, self._entry_store.key(_label(origin)), in_blocks(size) + ENTRY_SIZE)

        validators = None if known is None else known.validators
        limits = self._limits
        if known is not None and origin.stale_ok:
            limits = replace(limits, retry_seconds=min(limits.retry_seconds, STALE_SECONDS))
        downloaded = None
        try:
            downloaded = await download(
                origin,
                folder,
                limits=limits,
                known=validators,
                report=report,
                reserve=reserve,
                options=self._options,
            )
        except (DownloadRefused, LimitExceeded, ServerError) as error:
            if not error.retryable:
                await in_disk_thread(remove_if_possible, folder)
            raise
        finally:
            if downloaded is None:
                await shield_until_done(in_disk_thread(_clear_empty, folder))
        return downloaded

    async def _keep(self, origin: FileURL, downloaded: DownloadResult, hold: LeaseSet) -> Digest | None:
        """Verify a download and make an entry of it. Return None if it must be downloaded again.

        Raises UnexpectedContent.
        """
        sha256 = await self._sha256(origin, downloaded.path)
        manifest = await manifest_of(downloaded.path, chunking_version=self._chunking_version)
        found = manifest.digest if isinstance(origin.expected, Digest) else sha256
        if origin.expected is not None and found != origin.expected:
            await in_disk_thread(remove_if_possible, downloaded.path.parent)
            if downloaded.bytes_resumed:
                return None  # it may be a mixture of two versions of the file
            raise UnexpectedContent(origin.redacted_url, str(found), str(origin.expected))
        if not await self._publish(origin, downloaded, manifest, hold):
            return None
        await in_disk_thread(self._remember, origin, _UrlState(manifest.digest, downloaded.validators, self._clock()))
        return manifest.digest

    async def _publish(self, origin: FileURL, downloaded: DownloadResult, manifest: Manifest, hold: LeaseSet) -> bool:
        """Make an entry of a download if there is none yet. Return whether it exists now. Raises StorageError."""
        wanted = WantedEntry(Kind.FILE, manifest.digest)

        def is_there() -> bool:
            return self._entry_store.find(Kind.FILE, Reference(digest=manifest.digest)) is not None

        def publish() -> None:
            # Data in this place is damaged, or comes from a fetch that was cut.
            target = self._entry_store.new_staging_folder(wanted, origin.name, is_alone=lock.is_held, takes_over=lock.passes_by)
            with storage_errors(self._entry_store.root, translate=write_error), suppress(FileNotFoundError):
                downloaded.path.rename(target)
                self._entry_store.publish(wanted, target, manifest)

        # This is the lock of the entry itself, because a fetch from the repository may make the same entry.
        await in_disk_thread(hold.pin, self._entry_store.key(wanted.label))
        async with locked(self._entry_store.lock_path(wanted), is_there) as lock:
            if not await in_disk_thread(is_there):
                await in_disk_thread(publish)
        await in_disk_thread(remove_if_possible, downloaded.path.parent)
        return await in_disk_thread(is_there)

    async def _confirm(self, origin: FileURL, known: _UrlState) -> UrlResult:
        """Return the known entry after the origin said that it is unchanged. Raises UnexpectedContent."""
        if isinstance(origin.expected, str):
            path = await in_disk_thread(self._entry_store.find, Kind.FILE, Reference(digest=known.digest))
            sha256 = await self._sha256(origin, path) if path is not None else None
            if sha256 != origin.expected:
                raise UnexpectedContent(origin.redacted_url, str(sha256), origin.expected)
        elif origin.expected not in {None, known.digest}:
            raise UnexpectedContent(origin.redacted_url, str(known.digest), str(origin.expected))
        # If this cannot be saved, because the disk is full or read-only, the next resolve asks again.
        with suppress(StorageError):
            await in_disk_thread(self._remember, origin, known._replace(asked_at=self._clock()))
        return UrlResult(known.digest)

    async def _sha256(self, origin: FileURL, path: Path) -> str | None:
        """Return the SHA-256 of a file, if one is expected. Hashing takes as long as everything else together."""
        return await in_cpu_thread(_sha256_of, path) if isinstance(origin.expected, str) else None

    # The methods below block.

    def _usable(self, origin: FileURL, kind: Kind) -> _UrlState | None:
        """Return the last answer of the URL, if its entry exists and can be compared with the expected digest.

        Otherwise return None.
        """
        known = self._recall(origin)
        kind = Kind.FILE if isinstance(origin.expected, str) else kind
        return known if known is not None and self.has(kind, known.digest) else None

    def _with_digest(self, expected: Digest | str) -> Digest | None:
        if isinstance(expected, Digest):
            return expected
        values = _read(self._sha256_path(expected))
        try:
            return Digest.parse(values["digest"])
        except (KeyError, TypeError, FilestoreError):
            return None

    def _recall(self, origin: FileURL) -> _UrlState | None:
        values = _read(self._record_path(origin))
        try:
            asked_at = values["asked_at"]
            if type(asked_at) not in {int, float}:
                return None
            return _UrlState(Digest.parse(values["digest"]), validators_from(values["validators"]), asked_at)
        except (KeyError, TypeError, ValueError, FilestoreError):
            return None

    def _remember(self, origin: FileURL, known: _UrlState) -> None:
        """Save what a URL gave. Raises StorageError, StorageFull.

        Call it after the entry exists. The state of an entry that does not exist does no harm: it only costs a check.
        """
        if isinstance(origin.expected, str):
            write_durably(self._sha256_path(origin.expected), {"digest": str(known.digest)})
        values = {"digest": str(known.digest), "validators": known.validators, "asked_at": known.asked_at}
        write_durably(self._record_path(origin), values)

    def _stage(self, label: str, lock: Lock, *, is_first: bool) -> Path:
        """Return a folder to download to.

        It may have data of a download that was interrupted. Raises StorageError, StorageFull.
        """
        shared = self._entry_store.root / "staging" / label
        aside = shared.with_name(f".{label}.{uuid.uuid4().hex}")
        is_alone = lock.is_held and is_first
        if shared.is_symlink():
            remove_if_possible(shared)
        folder = shared if is_alone else aside
        with storage_errors(self._entry_store.root, translate=write_error):
            if lock.passes_by and is_first:
                take_away(shared, aside)
            make_private(folder)
            if is_alone:
                for left in shared.parent.glob(f".{label}.*"):
                    remove_if_possible(left)
        return folder

    def _record_path(self, origin: FileURL) -> Path:
        return self._entry_store.root / "urls" / f"{_key(origin)}.json"

    def _sha256_path(self, sha256: str) -> Path:
        return self._entry_store.root / "sha256" / f"{sha256}.json"


def _clear_empty(folder: Path) -> None:
    """Remove the folder of a download unless it has data with which the download can be continued."""
    partial = folder / PARTIAL_NAME
    with suppress(OSError):
        if not partial.exists() or not partial.stat().st_size:
            remove_if_possible(folder)


def _is_out_of_reach(error: TransferError) -> bool:
    """Return whether an origin did not answer, or could not for now. A refusal is an answer."""
    return not isinstance(error, ServerError) or error.status_code == 429 or error.status_code >= 500


def _key(origin: FileURL) -> str:
    return blake3(origin.url.encode()).hexdigest()


def _label(origin: FileURL) -> str:
    return f"url-{_key(origin)}"


def _sha256_of(path: Path) -> str:
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a small JSON file. It is empty if the file is missing or malformed."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
