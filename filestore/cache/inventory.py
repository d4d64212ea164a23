"""List the entries of a cache, of all its repositories, with their disk usage, and remove them.

All functions block: call them in a thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filestore.cache.entries import FileEntry, TreeEntry, read_entry
from filestore.cache.entry_store import FOLDERS, SUFFIXES, contents
from filestore.cache.leases import Leases
from filestore.core.names import is_namespace
from filestore.core.records import Kind
from filestore.repository.format_file import REPOSITORY_ID_PATTERN
from filestore.system.files import (
    BLOCK_SIZE,
    CannotMoveError,
    in_blocks,
    is_atomic_staging,
    move_aside,
    remove_if_possible,
    remove_in_place,
    storage_errors,
    stored_size_of,
    take_away,
    write_error,
)

ENTRY_SIZE = 4 * BLOCK_SIZE
"""Bytes of disk that an entry takes in addition to content, manifest and tail: its folders and its `entry.json`."""


_UNFINISHED_SECONDS = 3600


class CachedEntry(NamedTuple):
    """An entry of a cache."""

    key: str
    """The name of the entry in leases."""
    folder: Path
    kind: Kind
    digest: str
    names: list[str]
    size: int
    """Bytes of content. For a tree, these are the bytes of its files."""
    stored_size: int
    """Bytes of disk that it takes."""
    used_at: float
    """Time of its last use, in seconds since 1970, to the minute."""


class StagedEntry(NamedTuple):
    """Data in staging: an entry that is being fetched or removed, or data that a process left when it ended.

    Several of these may have the same key.
    """

    key: str
    folder: Path
    stored_size: int
    used_at: float
    """Time of the last write, in seconds since 1970."""


def entries(root: Path) -> Iterator[CachedEntry]:
    """Yield the entries of the cache at `root`, intact or damaged."""
    found = stores(root)
    for kind, name in FOLDERS.items():
        for folder in (folder for store in found for folder in sorted(store.glob(f"{name}/??/??/*"))):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                yield _kept(folder, kind)


def staged(root: Path) -> Iterator[StagedEntry]:
    """Yield the data in staging of the cache at `root`."""
    for folder in (folder for store in stores(root) for folder in sorted(store.glob("staging/*"))):
        # <label>, or .<label>.<32 hex digits>
        label = folder.name[1:].partition(".")[0] if folder.name.startswith(".") else folder.name
        with suppress(FileNotFoundError):
            size, used_at = _stored_size(folder)
            yield StagedEntry(_key(folder.parents[1], label), folder, size, used_at)


def stores(root: Path) -> list[Path]:
    """Return the folders of the repositories and namespaces of the cache at `root`. Nothing else in it belongs to the cache."""
    return [
        folder
        for folder in sorted(root.glob("*/*"))
        if REPOSITORY_ID_PATTERN.match(folder.parent.name)
        and is_namespace(folder.name)
        and not folder.is_symlink()
        and not folder.parent.is_symlink()
    ]


def _stored_size(folder: Path) -> tuple[int, float]:
    """Return what `stored_size_of` does. A link counts itself, and not what it leads to."""
    if folder.is_symlink():
        return BLOCK_SIZE, folder.lstat().st_mtime
    return stored_size_of(folder)


def unfinished(root: Path) -> list[Path]:
    """Return the small files of the cache at `root` that a process was writing when it ended.

    They are beside the records and what URLs gave. To write one takes less than a second, so a file of the last hour is left
    out: its process may still run.
    """
    folders = (".", "repositories", "*/*/records", "*/*/urls", "*/*/sha256", "*/*/stored-entries")
    found = []
    for path in (path for folder in folders for path in root.glob(f"{folder}/.*") if is_atomic_staging(path.name)):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _UNFINISHED_SECONDS:
                found.append(path)
    return found


def discard(leases: Leases, item: CachedEntry | StagedEntry) -> bool:
    """Remove an entry or staged data by one rename. Return False, and keep it, if it is in use or already gone.

    Raises StorageError.
    """
    aside = _aside(item)
    with storage_errors(item.folder, translate=write_error):
        with leases.evicting():
            if leases.is_held(item.key):
                return False
            try:
                if not move_aside(item.folder, aside):
                    return False
            except CannotMoveError:
                return _discard_in_place(leases, item)
            if leases.is_held(item.key):
                # Locks do not work here, and another process began to use the entry meanwhile. If it has made a new
                # entry, the rename fails, and this one is not needed.
                with suppress(OSError):
                    aside.rename(item.folder)
                    return False
        remove_if_possible(aside)
    return True


def remove_damaged(item: CachedEntry) -> None:
    """Remove an entry, also while it is in use. A process that has it open can read it to the end. Raises StorageError."""
    aside = _aside(item)
    with storage_errors(item.folder, translate=write_error):
        if take_away(item.folder, aside):
            remove_if_possible(aside)


def _discard_in_place(leases: Leases, item: CachedEntry | StagedEntry) -> bool:
    """Do what `discard` does, for an entry that cannot be moved.

    Readers do not see an entry without `entry.json`, so that file is moved away first.
    """
    if isinstance(item, CachedEntry):
        seen = item.folder / "entry.json"
        unseen = item.folder / f".{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):  # the entry is damaged
            seen.rename(unseen)
            if leases.is_held(item.key):
                unseen.rename(seen)
                return False
    remove_in_place(item.folder)
    return True


def _aside(item: CachedEntry | StagedEntry) -> Path:
    """Return a new name in staging.

    What a crash leaves there is removed by the next fetch of the entry, or by an eviction.
    """
    repository, namespace, label = item.key.split(".", 2)
    entry_store = next(parent for parent in item.folder.parents if parent.parts[-2:] == (repository, namespace))
    return entry_store / "staging" / f".{label}.{uuid.uuid4().hex}"


def _kept(folder: Path, kind: Kind) -> CachedEntry:
    entry = read_entry(folder, kind)
    paths = contents(folder)
    beside = (folder / "manifest", folder / "tail")
    stored_size = ENTRY_SIZE + sum(in_blocks(path.lstat().st_size) for path in beside if path.exists())
    if isinstance(entry, TreeEntry):
        size = entry.size
        stored_size += entry.stored_size
    else:
        # A second name is a link to the first one, and takes no space.
        inodes = {status.st_ino: status.st_size for status in (path.lstat() for path in paths if not path.is_symlink())}
        size = entry.size if isinstance(entry, FileEntry) else 0
        stored_size += sum(map(in_blocks, inodes.values())) if kind is Kind.FILE else _stored_size(folder)[0]
    used = folder / "entry.json" if entry is not None else folder
    label = folder.name + SUFFIXES[kind]
    names = [path.name for path in paths]
    return CachedEntry(_key(folder.parents[3], label), folder, kind, folder.name, names, size, stored_size, used.lstat().st_mtime)


def _key(entry_store: Path, label: str) -> str:
    return ".".join((*entry_store.parts[-2:], label))
