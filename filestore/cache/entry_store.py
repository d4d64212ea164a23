"""Find, stage and publish the entries of one namespace of one repository. All functions block: call them in a thread."""

from __future__ import annotations

import errno
import glob
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from filestore.cache.entries import Entry, FileEntry, TreeEntry, encode_entry, read_entry, unseal
from filestore.cache.leases import LeaseSet
from filestore.core.digest import Digest
from filestore.core.manifest import HEADER_SIZE, MANIFEST_LIMIT, Manifest, stated_size
from filestore.core.names import checked_name, tree_name
from filestore.core.paths import hashed
from filestore.core.records import Kind, Record, record_from_json
from filestore.core.references import Reference
from filestore.errors import FilestoreError, StorageError
from filestore.format.zip.read import TAIL_SIZE, Member, ZipLimits, find_end, parse_central_directory
from filestore.system.files import (
    remove,
    remove_if_possible,
    storage_errors,
    sync_path,
    take_away,
    write_atomic,
    write_durably,
    write_error,
)
from filestore.system.owners import PRIVATE_FILE, make_private
from filestore.system.small_files import open_regular, read_json, read_small
from filestore.transfer.fetch import staging_file
from filestore.transfer.target import staging_folder

FOLDERS = {Kind.FILE: "files", Kind.DIRECTORY: "trees"}
SUFFIXES = {Kind.FILE: "", Kind.DIRECTORY: "-tree"}
USE_SECONDS = 60
_TAIL_LIMIT = 1 << 30
"""Bytes of the largest tail that is read. It holds the central directory of a zip file with ten million entries."""
_NO_LIMITS = ZipLimits(*[sys.maxsize] * 6)
"""Limits that allow everything. A tree in the cache was checked by the limits that held when it was unpacked."""


class WantedEntry(NamedTuple):
    """The kind and the digest that identify an entry.

    A zip file is one entry, and the tree that it unpacks to is another one.
    """

    kind: Kind
    digest: Digest

    @property
    def path(self) -> str:
        """The path of the entry's folder in an entry store."""
        return f"{FOLDERS[self.kind]}/{hashed(self.digest)}"

    @property
    def label(self) -> str:
        """The name of the entry's lock and of its staging folder."""
        return f"{self.digest}{SUFFIXES[self.kind]}"


def kept_name(kind: Kind, name: str) -> str:
    """Return the file or folder name of an entry's content, for a file that was pushed as `name`. Raises InvalidName."""
    checked_name(name)
    return tree_name(name) if kind is Kind.DIRECTORY else name


class EntryStore:
    """Find, stage and publish entries. Any number of processes may do so at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: Kind, reference: Reference, *, hold: LeaseSet | None = None) -> Path | None:
        """Return the path of an entry, or None if there is none or it is damaged. `hold` keeps the entry from eviction.

        An id is found only if this cache has seen its record before.
        """
        digest, name = reference.digest, reference.name
        if reference.id is not None:
            record = self._recall(reference.id)
            if record is None:
                return None
            digest, name = record.digest, record.name
        if digest is None:
            return None
        wanted = WantedEntry(kind, digest)
        folder = self.root / wanted.path

        def look() -> Path | None:
            path = self._look(folder, kind, name)
            if path is not None:
                note_use(folder)
            return path

        return look() if hold is None else hold.pin_found(self.key(wanted.label), look)

    def key(self, label: str) -> str:
        """Return the name that leases use for an entry or a download, by its label."""
        return ".".join((*self.root.parts[-2:], label))

    def _look(self, folder: Path, kind: Kind, name: str | None) -> Path | None:
        entry = read_entry(folder, kind)
        if entry is None:
            return None
        sound = sorted(_sound(folder, entry))
        if not sound and isinstance(entry, TreeEntry):
            entry = _grown(folder, entry) or entry
            sound = sorted(_sound(folder, entry))
        if not sound or name is None:
            return sound[0] if sound else None
        path = folder / "content" / kept_name(kind, name)
        if path not in sound:
            with storage_errors(self.root, translate=write_error), suppress(FileExistsError):
                _alias(kind, sound[0], path)
            # The path may exist already: another process made it, or it is damaged.
            return path if entry.is_intact(path) else None
        return path

    def manifest(self, digest: Digest) -> Manifest | None:
        """Return the manifest with this digest that an entry keeps, or None. The entry may be a file or a tree."""
        for kind in Kind:
            manifest = read_manifest(self.root / WantedEntry(kind, digest).path)
            if manifest is not None and manifest.digest == digest:
                return manifest
        return None

    def size(self, kind: Kind, path: Path) -> int:
        """Return the bytes of content of the entry at `path`. For a tree, these are the bytes of its zip."""
        try:
            if kind is Kind.FILE:
                return path.stat().st_size
            with open_regular(path.parents[1] / "manifest") as file:
                return stated_size(file.read(HEADER_SIZE))
        except (OSError, FilestoreError):
            return 0  # it was removed meanwhile, or an older program made it

    def lock_path(self, wanted: WantedEntry) -> Path:
        """Return the path of the lock file that a process holds while it fetches an entry."""
        return self.root / "locks" / wanted.label

    def new_staging_folder(self, wanted: WantedEntry, name: str, *, is_alone: bool, takes_over: bool = False) -> Path:
        """Return the path to which the content of an entry must be fetched.

        The data of a damaged entry, and with `is_alone` also what interrupted fetches have left, is put where the fetch
        verifies and reuses it. Give `is_alone` if no other process is making the entry. Without it, the process gets a
        folder of its own. Give `takes_over` to take the data that a suspended process has staged. Raises StorageError,
        StorageFull.
        """
        shared = self._staging / wanted.label
        folder = shared if is_alone else self._aside(wanted.label)
        target = folder / "content" / kept_name(wanted.kind, name)
        _remove_links(self._staging, shared, shared / "content")
        with storage_errors(self.root, translate=write_error):
            if takes_over:
                take_away(shared, folder)
            make_private(target.parent)
            if self.find(wanted.kind, Reference(digest=wanted.digest, name=name)) is None:
                # A damaged entry is in this place. Most of its bytes may be right.
                aside = self._aside(wanted.label)
                if take_away(self.root / wanted.path, aside):
                    _salvage(aside, target, wanted)
            if is_alone:
                for left in self._staging.glob(f".{wanted.label}.*"):
                    _salvage(left, target, wanted)
            if wanted.kind is Kind.DIRECTORY and target.exists():
                _reuse(target, target, wanted)  # a whole tree, whose process ended before it was published
        return target

    def publish(self, wanted: WantedEntry, target: Path, manifest: Manifest, *, tail: bytes | None = None) -> None:
        """Publish the entry whose content is at `target`. An entry that another process has published earlier stays.

        Raises StorageError, StorageFull.
        """
        folder = self._aside(wanted.label)
        content = folder / "content" / target.name
        with storage_errors(self.root, translate=write_error), suppress(FileNotFoundError):
            try:
                make_private(content.parent)
                # Move first: a read-only folder cannot be moved.
                target.rename(content)
                # Clear now. Together with the files below, both folders would take more than the reserved bytes. After
                # the entry has appeared, nobody would remove the rest.
                self.clear(target)
                entry: Entry = (
                    FileEntry.seal(content, chunking_version=manifest.chunking_version)
                    if tail is None
                    else TreeEntry.seal(content)
                )
                write_atomic(folder / "manifest", manifest.encoded)
                if tail is not None:
                    write_atomic(folder / "tail", tail)
                write_atomic(folder / "entry.json", encode_entry(entry))
                self._appear(folder, self.root / wanted.path)
            finally:
                remove_if_possible(folder)

    def clear(self, target: Path) -> None:
        """Remove the staging folder of a target, with everything in it."""
        remove_if_possible(target.parents[1])

    def clear_empty(self, target: Path) -> None:
        """Remove the staging folder of a target if nothing was staged in it."""
        with suppress(OSError):
            target.parent.rmdir()
            target.parents[1].rmdir()

    def remember(self, record: Record) -> None:
        """Save a record, so that the next resolve of its id needs no request."""
        path = self._record_path(record.id)
        if not path.exists():
            # If it cannot be kept, the next resolve asks the repository again.
            with suppress(StorageError):
                write_durably(path, record.as_json())

    def digest_of(self, file_id: str) -> Digest | None:
        """Return the digest of the file with this id, if this cache has seen its record before."""
        record = self._recall(file_id)
        return None if record is None else record.digest

    def _recall(self, file_id: str) -> Record | None:
        record = _read_record(self._record_path(file_id))
        return record if record is not None and record.id == file_id else None

    def _record_path(self, file_id: str) -> Path:
        return self.root / "records" / f"{file_id}.json"

    @property
    def _staging(self) -> Path:
        return self.root / "staging"

    def _aside(self, label: str) -> Path:
        """Return a new name in staging. What a crash leaves there is removed by the next fetch of the entry."""
        return self._staging / f".{label}.{uuid.uuid4().hex}"

    def _appear(self, folder: Path, place: Path) -> None:
        make_private(place.parent)
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        sync_path(place.parent)


def recall(root: Path, file_id: str) -> list[Record]:
    """Return the records with an id that the cache at `root` has saved. Each repository of the cache may have one."""
    paths = root.glob(f"*/*/records/{glob.escape(file_id)}.json") if "/" not in file_id else ()
    return [record for path in paths if (record := _read_record(path)) is not None]


def _read_record(path: Path) -> Record | None:
    try:
        return record_from_json(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, FilestoreError):
        return None


def read_manifest(folder: Path, *, limit: int = MANIFEST_LIMIT) -> Manifest | None:
    """Return the manifest of the entry in `folder`. Return None if it cannot be read or has more than `limit` bytes."""
    try:
        return None if folder.is_symlink() else Manifest.parse(read_small(folder / "manifest", limit=limit))
    except (OSError, FilestoreError):
        return None


def read_tail(folder: Path) -> bytes:
    """Return the tail of the zip from which the tree in `folder` was unpacked. Raises StorageError."""
    with storage_errors(folder):
        return read_small(folder / "tail", limit=_TAIL_LIMIT)


def read_members(tail: bytes, manifest: Manifest) -> Sequence[Member]:
    """Return the members of a zip with this tail. Raises InvalidArchive."""
    end = find_end(tail[-TAIL_SIZE:], manifest.size, limits=_NO_LIMITS)
    return parse_central_directory(memoryview(tail)[: end.size], end, limits=_NO_LIMITS)


def note_use(folder: Path) -> None:
    """Record that an entry is used now: set the mtime of its `entry.json`, at most once a minute."""
    path = folder / "entry.json"
    with suppress(OSError):  # a read-only cache evicts nothing, so it needs no times
        # A time in the future comes from a wrong clock. Left as it is, the entry would be evicted last for ever.
        if abs(time.time() - path.lstat().st_mtime) > USE_SECONDS:
            os.utime(path, follow_symlinks=False)


def contents(folder: Path) -> list[Path]:
    """Return the content of the entry in `folder`, under each of its names. There is none behind a link to another folder."""
    content = folder / "content"
    try:
        return [] if folder.is_symlink() or content.is_symlink() else sorted(content.iterdir())
    except OSError:
        return []


def _remove_links(*folders: Path) -> None:
    """Remove each of these that is a link: what is written to a folder of the cache must not go elsewhere."""
    for folder in folders:
        if folder.is_symlink():
            remove_if_possible(folder)


def _sound(folder: Path, entry: Entry) -> Iterator[Path]:
    return (path for path in contents(folder) if entry.is_intact(path))


def _alias(kind: Kind, sound: Path, path: Path) -> None:
    """Give the same bytes a second name, which takes no disk space. Raises OSError."""
    try:
        if kind is Kind.FILE:
            os.link(sound, path)
            return
    except FileExistsError:
        raise
    except OSError:
        pass  # this file system has no hard links
    path.symlink_to(sound.name)


def _grown(folder: Path, entry: TreeEntry) -> TreeEntry | None:
    """Return the new state of a tree to which something was added at the top, or None if anything else changed.

    Python's `__pycache__` is such an addition. The new state is saved, so that the next check is fast again.
    """
    manifest = read_manifest(folder)
    path = next((each for each in contents(folder) if not each.is_symlink()), None)
    if manifest is None or path is None:
        return None
    try:
        # Read the mtime first, so that an addition during this check is noticed by the next one.
        grown = replace(entry, mtime=path.stat().st_mtime_ns)
        if not grown.is_intact(path) or not _has_all(path, read_members(read_tail(folder), manifest)):
            return None
    except (OSError, FilestoreError):
        return None
    with suppress(OSError):
        write_atomic(folder / "entry.json", encode_entry(grown))
    return grown


def _has_all(root: Path, members: Iterable[Member]) -> bool:
    """Return whether the top of a tree has all its members, with the right types and sizes."""
    with os.scandir(root) as found:
        standing = {item.name: item for item in found}
    for member in members:
        top, _, below = member.path.partition("/")
        item = standing.get(top)
        if item is None:
            return False
        if below or member.is_folder:
            is_right = item.is_dir(follow_symlinks=False)
        elif member.is_link:
            is_right = item.is_symlink()
        else:
            is_right = item.is_file(follow_symlinks=False) and item.stat(follow_symlinks=False).st_size == member.size
        if not is_right:
            return False
    return True


def _salvage(folder: Path, target: Path, wanted: WantedEntry) -> None:
    """Move the content of an entry that is not visible any more to where a fetch reuses it, and remove the rest."""
    found = [each for each in contents(folder) if not each.is_symlink()]
    for path in found[1:]:
        remove_if_possible(path)  # another name of the same file
    for path in found[:1]:
        _reuse(path, target, wanted)
    remove_if_possible(folder)


def _reuse(path: Path, target: Path, wanted: WantedEntry) -> None:
    """Move content to the place where a fetch to `target` continues, so that it takes no more space than its entry.

    Remove the content if that place is taken, and a file that has a name outside the cache: the fetch would write to it.
    """
    with suppress(FileNotFoundError):
        try:
            if path.is_symlink():
                remove(path)
            elif wanted.kind is Kind.DIRECTORY:
                unseal(path)
                path.rename(staging_folder(target, wanted.digest))
            elif path.is_file() and path.stat().st_nlink == 1 and not staging_file(target, wanted.digest).exists():
                path.chmod(PRIVATE_FILE)
                path.rename(staging_file(target, wanted.digest))
            else:
                remove(path)
        except FileNotFoundError:
            raise
        except OSError:
            remove(path)
