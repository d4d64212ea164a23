"""Let a fetch to another place copy what entries of the cache of this machine have."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from filestore.cache.cache import CACHE_VERSION
from filestore.cache.entry_store import FOLDERS, EntryStore, note_use
from filestore.cache.inventory import stores
from filestore.cache.leases import Leases
from filestore.cache.seeds import FoundSeed, find_same, find_seeds
from filestore.core.manifest import Manifest
from filestore.errors import FilestoreError
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.system.small_files import read_json
from filestore.system.threads import in_disk_thread
from filestore.transfer.local_seeds import LocalSeed
from filestore.transfer.receiver import Receiver

LEAST_SIZE = 1 << 20
"""Bytes of content below which only an entry with the same digest is looked for: to receive it is faster than the search."""


class CachedSeeds:
    """Finds entries of a cache, of all its repositories, that share chunks with what is fetched.

    What it finds is not evicted before the end of its block. Nothing is written to the cache but leases and times of use. A cache
    that is missing, damaged, from another user or of an unknown version gives nothing, and is not an error.
    """

    def __init__(self, root: Path, *, limits: ZipLimits = DEFAULT_LIMITS) -> None:
        """Set fields only: no file is touched."""
        self._root = root
        self._limits = limits
        self._leases = Leases(root)
        self._hold = self._leases.hold()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_disk_thread(self._leases.close)

    async def find(self, receiving: Receiver, manifest: Manifest, target: Path) -> list[LocalSeed]:  # noqa: ARG002  # the protocol's
        """Return the entry with the same digest, or at most 8 entries of each repository that share chunks."""
        found: list[FoundSeed] = []
        with suppress(OSError, FilestoreError):
            await in_disk_thread(self._find, manifest, found)
        return [LocalSeed(each.path, each.seed) for each in found]

    def _find(self, manifest: Manifest, found: list[FoundSeed]) -> None:
        if not _is_ours(self._root):
            return
        roots = [root for root in stores(self._root) if any((root / name).is_dir() for name in FOLDERS.values())]
        for root in roots:
            same = find_same(root, manifest, limits=self._limits)
            if same is not None:
                self._use(root, same, found)
                return
        if manifest.size >= LEAST_SIZE:
            for root in roots:
                for each in find_seeds(root, manifest, limits=self._limits):
                    self._use(root, each, found)

    def _use(self, root: Path, each: FoundSeed, found: list[FoundSeed]) -> None:
        # An entry that is evicted before this, or damaged, gives nothing: it is opened later, and all of it is verified.
        self._hold.pin(EntryStore(root).key(each.wanted.label))
        note_use(root / each.wanted.path)
        found.append(each)


def _is_ours(root: Path) -> bool:
    """Return whether this is a cache that only this user, or the administrator, has made. Raises OSError."""
    if root.stat().st_uid not in {0, os.geteuid()}:
        return False
    try:
        return bool(read_json(root / "format") == {"cache": CACHE_VERSION})
    except ValueError:
        return False
