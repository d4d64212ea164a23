"""What must be true of the folder of a cache after a kill. Everything is read from the disk, by this process itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from filestore.cache.entries import read_entry
from filestore.cache.entry_store import contents, read_manifest
from filestore.cache.inventory import CachedEntry, entries, staged
from filestore.cache.leases import Leases
from filestore.system.files import is_atomic_staging
from tests.kills.cache_world import World
from tests.support.usage import disk_usage

_BESIDE = 64 << 10
"""Bytes of disk for the small files of a cache that are not entries: records, what URLs gave, its format."""


def broken_rules(world: World, *, is_keeping: bool) -> Iterator[str]:
    """Yield each rule that is broken while no process works. `is_keeping` says whether one process has a lease."""
    root = world.cache
    for entry in entries(root):
        yield from _damage(world, entry)
    yield from over_limit(world)
    held = Leases(root).held()
    if any(held.values()):
        yield f"bytes are reserved by nobody: {held}"
    if bool(held) != is_keeping:
        yield f"{'no' if is_keeping else 'a'} lease is there: {held}"
    holders = [path.name for path in (root / "leases").iterdir() if path.is_dir()]
    if len(holders) != is_keeping:
        yield f"leases of processes that have ended stay: {holders}"


def over_limit(world: World) -> Iterator[str]:
    """Yield a text if the cache takes more of the disk than its limit. No process may work at the same time."""
    used = disk_usage(world.cache)
    if used > world.size_limit + _BESIDE:
        yield f"the cache takes {used} bytes, and its limit is {world.size_limit}"


def leftovers(world: World) -> list[str]:
    """Return what interrupted processes have left: staged data, and small files that were being written."""
    return [str(item.folder) for item in staged(world.cache)] + [str(path) for path in _small_files(world)]


def let_time_pass(world: World) -> None:
    """Make small files that were being written look as if that was long ago. No process may work at the same time."""
    for path in _small_files(world):
        os.utime(path, (0, 0))


def _small_files(world: World) -> list[Path]:
    return [path for path in world.cache.rglob(".*") if is_atomic_staging(path.name)]


def staged_labels(world: World) -> list[str]:
    """Return the labels of the entries that have staged data."""
    return [item.key.rpartition(".")[2] for item in staged(world.cache)]


def _damage(world: World, entry: CachedEntry) -> Iterator[str]:
    """Yield what is wrong with an entry. It must be complete, and each of its paths must have the right bytes."""
    paths = contents(entry.folder)
    seal = read_entry(entry.folder, entry.kind)
    if seal is None or not paths:
        yield f"{entry.folder} is half an entry: {sorted(path.name for path in entry.folder.iterdir())}"
        return
    manifest = read_manifest(entry.folder)
    if manifest is None or str(manifest.digest) != entry.digest:
        yield f"{entry.folder} has no manifest, or another one"
    for path in paths:
        if not seal.is_intact(path):
            yield f"{path} is not as it was published"
        if not world.items[path.name].is_at(path):
            yield f"{path} has wrong bytes"


def entry_folders(world: World) -> dict[Path, list[str]]:
    """Return the folder of each entry with the names of its content."""
    return {entry.folder: entry.names for entry in entries(world.cache)}
