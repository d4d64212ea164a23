"""Keep a cache below its size limit, and enough of its disk free, also while entries are fetched.

Bytes are reserved before they are written. To make space for them, the least recently used entries that are not in use
are evicted. If a fetch cannot fit, CacheFull is raised before it begins. A lease shows the reservation to other
processes, so it ends with its process.

A reservation counts the whole entry, although its staging file is sparse at first. Two processes that reserve at the
same time first write their reservation and then count, so that each sees the other's. Without locks they may evict more
than needed, but they never exceed the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from filestore.cache.inventory import CachedEntry, StagedEntry, discard, entries, staged
from filestore.cache.leases import Leases, LeaseSet
from filestore.errors import CacheFull, StorageError
from filestore.system.files import free_space, storage_errors, sync_file_system, write_error
from filestore.system.locks import locked
from filestore.system.threads import in_disk_thread

STALL_SECONDS = 60
"""How long a reservation waits while other fetches make no progress. CacheFull is raised after that."""
SETTLE_SECONDS = 1
"""How long a reservation waits if nobody fetches. An entry that was just fetched may be in use only for a moment."""
_POLL_SECONDS = (0.05, 1.0)


class Quota:
    """Enforce the limits of one cache: bytes of everything below its root, and bytes of its disk that stay free."""

    def __init__(
        self,
        root: Path,
        leases: Leases,
        *,
        size_limit: int | None,
        min_free: int,
        stall_seconds: float = STALL_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._root = root
        self._leases = leases
        self._size_limit = size_limit
        self._min_free = min_free
        self._stall_seconds = stall_seconds
        self._settle_seconds = settle_seconds
        self._stuck: dict[Path, str] = {}
        """Folders that could not be removed, with the reason. Other entries are evicted instead."""

    async def reserve(self, hold: LeaseSet, key: str, size: int, *, spared: Collection[str] = ()) -> None:
        """Reserve `size` bytes of disk for the entry `key` and its staged data.

        The space stays reserved until `hold` is released, or until 0 bytes are reserved for the same key. To make
        space, entries that are not in use are evicted: the least recently used ones first, and those in `spared` after
        all others. If that is not enough and other processes are fetching, this waits, because their entries can be
        evicted later. Raises CacheFull if there is not enough space, StorageError.
        """
        patience = 0.0
        seen: tuple[frozenset[tuple[str, int, int]], bool] | None = None
        self._stuck = {}
        pause, longest = _POLL_SECONDS
        while True:
            async with locked(self._leases.quota_lock_path, lambda: False):
                refusal = await in_disk_thread(self._make, hold, key, size, spared)
            if refusal is None:
                return
            if seen != (refusal.under_way, refusal.is_passing):
                seen = (refusal.under_way, refusal.is_passing)
                patience = time.monotonic() + (self._stall_seconds if any(seen) else self._settle_seconds)
            if refusal.is_final or time.monotonic() > patience:
                raise CacheFull(str(self._root), refusal.reason, hint=refusal.hint)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def surplus(self) -> list[CachedEntry | StagedEntry]:
        """Return what can be removed: data that ended processes left in staging, and entries beyond the limits.

        Blocks. Raises StorageError.
        """
        usage = self._usage()
        found: list[CachedEntry | StagedEntry] = [item for item in usage.victims if isinstance(item, StagedEntry)]
        excess = self._excess(usage) - sum(item.stored_size for item in found)
        for item in usage.victims:
            if excess > 0 and isinstance(item, CachedEntry):
                found.append(item)
                excess -= item.stored_size
        return found

    def _make(self, hold: LeaseSet, key: str, size: int, spared: Collection[str]) -> _Refusal | None:
        """Try once to reserve. Return None if that worked, otherwise the refusal. Raises StorageError."""
        with storage_errors(self._root, translate=write_error):
            hold.reserve(key, size)
            try:
                refusal = self._refusal_for(key, size, spared)
            except BaseException:
                hold.reserve(key, 0)
                raise
            if refusal is not None:
                hold.reserve(key, 0)
        return refusal

    def _refusal_for(self, key: str, size: int, spared: Collection[str]) -> _Refusal | None:
        if self._size_limit is None and self._free() - sum(self._leases.held().values()) >= self._min_free:
            return None  # no fetch writes more than it has reserved
        usage = self._usage(spared)
        excess = self._excess(usage)
        if excess <= usage.evictable:
            self._evict(usage, excess)
            usage = self._usage(spared)
            excess = self._excess(usage)
            if excess <= 0:
                return None
        under_way = frozenset(other for other in usage.under_way if other[0] != key)
        reason, hint = self._reason(size, usage, sum(reserved for _, reserved, _ in under_way))
        return _Refusal(reason, hint, under_way, is_final=self._is_too_large(size), is_passing=excess <= usage.evictable)

    def _evict(self, usage: _Usage, excess: int) -> None:
        for item in usage.victims:
            if excess <= 0:
                excess = self._settled_excess()
            if excess <= 0:
                break
            try:
                is_gone = discard(self._leases, item)
            except StorageError as error:
                self._stuck[item.folder] = str(error)
                continue
            if is_gone:
                excess -= item.stored_size

    def _settled_excess(self) -> int:
        excess = self._excess(self._usage())
        if excess > 0:
            # Some file systems free space only after a sync. Data that two entries share is freed only with the second
            # one.
            sync_file_system(self._root)
            excess = self._excess(self._usage())
        return excess

    def _excess(self, usage: _Usage) -> int:
        """Return how many bytes must be removed to keep both limits. It is 0 or less if both are kept."""
        excess = self._min_free + usage.outstanding - self._free()
        return excess if self._size_limit is None else max(excess, usage.total - self._size_limit)

    def _free(self) -> int:
        with storage_errors(self._root):
            return free_space(self._root)

    def _usage(self, spared: Collection[str] = ()) -> _Usage:
        # Read the leases first: an entry that is published meanwhile is then counted at least as reserved.
        held = self._leases.held()
        items: list[CachedEntry | StagedEntry] = [*entries(self._root)]
        items += staged(self._root)
        return _Usage(items, held, spared, self._stuck)

    def _is_too_large(self, size: int) -> bool:
        return self._size_limit is not None and size > self._size_limit

    def _reason(self, size: int, usage: _Usage, fetched: int) -> tuple[str, str]:
        """Return the reason and advice for the error that there is not enough space, and its hint."""
        if self._is_too_large(size):
            reason = f"{size} bytes are needed, its limit is {self._size_limit}, and so they do not fit even if everything else"
            return f"{reason} is removed; raise the limit (setting cache_size_limit)", "cache-size-limit-too-small"
        used = f"{usage.pinned} bytes in it are in use and {fetched} are being fetched"
        if self._stuck:
            used += f", and what could not be removed stays ({next(iter(self._stuck.values()))})"
        if self._size_limit is not None and usage.total - usage.evictable > self._size_limit:
            reason = f"{size} bytes are needed, its limit is {self._size_limit}, {used}"
            return f"{reason}; raise the limit (setting cache_size_limit), or end what uses them", "cache-size-limit"
        reason = f"{size} bytes are needed, {self._free()} are free on its disk, of which {self._min_free} must stay free, {used}"
        what_to_do = "free some space, lower that limit (setting cache_min_free), or end what uses them"
        return f"{reason}; {what_to_do}", "cache-min-free"


class _Refusal(NamedTuple):
    reason: str
    hint: str
    under_way: frozenset[tuple[str, int, int]]
    """The entries that other fetches make, with their sizes. While this changes, it makes sense to wait."""
    is_final: bool
    """The entry is larger than the size limit, so it can never fit."""
    is_passing: bool
    """The entries to evict were in use when the eviction came to them, and are not in use any more."""


class _Usage:
    """How many bytes a cache has, how many are in use, and which entries can be evicted."""

    def __init__(
        self, items: list[CachedEntry | StagedEntry], held: Mapping[str, int], spared: Collection[str], stuck: Collection[Path]
    ) -> None:
        stored: dict[str, int] = {}
        for item in items:
            stored[item.key] = stored.get(item.key, 0) + item.stored_size
        self.total = sum(max(stored.get(key, 0), held.get(key, 0)) for key in stored.keys() | held.keys())
        self.outstanding = sum(max(size - stored.get(key, 0), 0) for key, size in held.items())
        """Bytes that are reserved and not yet written."""
        self.under_way = frozenset((key, size, stored.get(key, 0)) for key, size in held.items() if size)
        self.pinned = sum(stored.get(key, 0) for key, size in held.items() if not size)
        self.victims = sorted(
            (item for item in items if item.key not in held and item.folder not in stuck),
            key=lambda item: (item.key in spared, item.used_at, item.key),
        )
        self.evictable = sum(item.stored_size for item in self.victims)
