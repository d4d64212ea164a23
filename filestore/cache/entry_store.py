"""The entries of one namespace of one repository. All blocks: call it in a thread."""

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
from filestore.core.records import Kind, Record, parse_json, record_from_json
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
from filestore.transfer.target import staging_folder

FOLDERS = {Kind.FILE: "files", Kind.DIRECTORY: "trees"}
SUFFIXES = {Kind.FILE: "", Kind.DIRECTORY: "-tree"}
USE_SECONDS = 60
_NO_LIMITS = ZipLimits(*[sys.maxsize] * 6)
"""What is unpacked already was within those of its time."""


class WantedEntry(NamedTuple):
    """One entry: a zip file is one thing as a file, and another as the tree that it unpacks to."""

    kind: Kind
    digest: Digest

    @property
    def path(self) -> str:
        """Where it lies in an entry store."""
        return f"{FOLDERS[self.kind]}/{hashed(self.digest)}"

    @property
    def label(self) -> str:
        """What its lock and its staging folder are called."""
        return f"{self.digest}{SUFFIXES[self.kind]}"


def kept_name(kind: Kind, name: str) -> str:
    """What the content of an entry is called, of a file pushed under `name`, which becomes a path. Raises InvalidName."""
    checked_name(name)
    return tree_name(name) if kind is Kind.DIRECTORY else name


class EntryStore:
    """Finds, stages and publishes entries. Any number of processes do so at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: Kind, reference: Reference, *, hold: LeaseSet | None = None) -> Path | None:
        """The path of a sound entry, or None. A record's id is looked up among those that are remembered.

        Where there is one, `hold` pins it.
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
        """What leases call an entry, or what is downloaded, by its label."""
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
            # What stands there already may be another process's, or damaged.
            return path if entry.is_intact(path) else None
        return path

    def manifest(self, digest: Digest) -> Manifest | None:
        """The manifest that an entry of these bytes keeps, be it the file or the tree."""
        for kind in Kind:
            manifest = read_manifest(self.root / WantedEntry(kind, digest).path)
            if manifest is not None and manifest.digest == digest:
                return manifest
        return None

    def size(self, kind: Kind, path: Path) -> int:
        """Bytes of content of the entry that holds `path`: of a tree, those of its zip."""
        try:
            if kind is Kind.FILE:
                return path.stat().st_size
            with (path.parents[1] / "manifest").open("rb") as file:
                return stated_size(file.read(HEADER_SIZE))
        except (OSError, FilestoreError):
            return 0  # gone in the meantime, or made by an older program

    def lock_path(self, wanted: WantedEntry) -> Path:
        """The file whose lock says that an entry is being fetched."""
        return self.root / "locks" / wanted.label

    def new_staging_folder(self, wanted: WantedEntry, name: str, *, is_alone: bool, takes_over: bool = False) -> Path:
        """Where the content of an entry is to be made; what a crash, or damage, has left of it is near it, to be verified.

        `is_alone`: no other process is making the entry; else this one gets a place of its own. `takes_over`: that is what a
        process which got no further has staged. Raises StorageError, StorageFull.
        """
        shared = self._staging / wanted.label
        folder = shared if is_alone else self._aside(wanted.label)
        target = folder / "content" / kept_name(wanted.kind, name)
        with storage_errors(self.root, translate=write_error):
            if takes_over:
                take_away(shared, folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.find(wanted.kind, Reference(digest=wanted.digest, name=name)) is None:
                # What stands in the place of a sound entry is damaged, and most of it may be right all the same.
                aside = self._aside(wanted.label)
                if take_away(self.root / wanted.path, aside):
                    _salvage(aside, target, wanted)
            if is_alone:
                for left in self._staging.glob(f".{wanted.label}.*"):
                    _salvage(left, target, wanted)
            if wanted.kind is Kind.DIRECTORY and target.exists():
                _reuse(target, target, wanted)  # a whole tree that nobody came to publish
        return target

    def publish(self, wanted: WantedEntry, target: Path, manifest: Manifest, *, tail: bytes | None = None) -> None:
        """Let the entry appear whose content is at `target`; where another process was earlier, its entry stands.

        Raises StorageError, StorageFull.
        """
        folder = self._aside(wanted.label)
        content = folder / "content" / target.name
        with storage_errors(self.root, translate=write_error), suppress(FileNotFoundError):
            try:
                content.parent.mkdir(parents=True)
                # A folder can be moved only as long as it can be written to.
                target.rename(content)
                # Now: both folders, with what is written next, would take more than is reserved. Once the entry has appeared,
                # nobody would come back for what is left of it.
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
        """Remove what is staged near a target, and is of no use any more."""
        remove_if_possible(target.parents[1])

    def clear_empty(self, target: Path) -> None:
        """Remove the folder of a target in which nothing was staged."""
        with suppress(OSError):
            target.parent.rmdir()
            target.parents[1].rmdir()

    def remember(self, record: Record) -> None:
        """Keep what an id means, so that the next resolve of it asks nobody."""
        path = self._record_path(record.id)
        if not path.exists():
            # What cannot be kept here is asked for again.
            with suppress(StorageError):
                write_durably(path, record.as_json())

    def _recall(self, file_id: str) -> Record | None:
        record = _read_record(self._record_path(file_id))
        return record if record is not None and record.id == file_id else None

    def _record_path(self, file_id: str) -> Path:
        return self.root / "records" / f"{file_id}.json"

    @property
    def _staging(self) -> Path:
        return self.root / "staging"

    def _aside(self, label: str) -> Path:
        """A new name in staging. Whoever makes the entry next removes what a crash leaves there."""
        return self._staging / f".{label}.{uuid.uuid4().hex}"

    def _appear(self, folder: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        sync_path(place.parent)


def recall(root: Path, file_id: str) -> list[Record]:
    """What the cache at `root` remembers an id to mean, whichever repository it is of."""
    paths = root.glob(f"*/*/records/{glob.escape(file_id)}.json") if "/" not in file_id else ()
    return [record for path in paths if (record := _read_record(path)) is not None]


def _read_record(path: Path) -> Record | None:
    try:
        return record_from_json(parse_json(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, FilestoreError):
        return None


def read_manifest(folder: Path, *, limit: int = MANIFEST_LIMIT) -> Manifest | None:
    """The manifest that the entry in `folder` keeps; None where it keeps none, or one of more than `limit` bytes."""
    path = folder / "manifest"
    try:
        return Manifest.parse(path.read_bytes()) if path.stat().st_size <= limit else None
    except (OSError, FilestoreError):
        return None


def read_tail(folder: Path) -> bytes:
    """The tail of the zip that the tree in `folder` was unpacked from. Raises StorageError."""
    with storage_errors(folder):
        return (folder / "tail").read_bytes()


def read_members(tail: bytes, manifest: Manifest) -> Sequence[Member]:
    """What a zip with this tail unpacks to. Raises InvalidArchive."""
    end = find_end(tail[-TAIL_SIZE:], manifest.size, limits=_NO_LIMITS)
    return parse_central_directory(memoryview(tail)[: end.size], end, limits=_NO_LIMITS)


def note_use(folder: Path) -> None:
    """Say that an entry was used, by the mtime of its `entry.json`; once a minute is enough."""
    path = folder / "entry.json"
    with suppress(OSError):  # of a cache that is read-only nothing has to be known
        # A time in the future, from a clock that was wrong, would make the entry the last one to go for ever.
        if abs(time.time() - path.stat().st_mtime) > USE_SECONDS:
            os.utime(path)


def contents(folder: Path) -> list[Path]:
    """What the entry in `folder` holds, under each of its names."""
    try:
        return sorted((folder / "content").iterdir())
    except OSError:
        return []


def _sound(folder: Path, entry: Entry) -> Iterator[Path]:
    return (path for path in contents(folder) if entry.is_intact(path))


def _alias(kind: Kind, sound: Path, path: Path) -> None:
    """Give the same bytes a second name, which takes no room. Raises OSError."""
    try:
        if kind is Kind.FILE:
            os.link(sound, path)
            return
    except FileExistsError:
        raise
    except OSError:
        pass  # no hard links here
    path.symlink_to(sound.name)


def _grown(folder: Path, entry: TreeEntry) -> TreeEntry | None:
    """The entry of a tree to whose top something was added, such as Python's `__pycache__`, and that is as it was otherwise.

    It is noted as it stands, so that the next look at it is short again.
    """
    manifest = read_manifest(folder)
    path = next((each for each in contents(folder) if not each.is_symlink()), None)
    if manifest is None or path is None:
        return None
    try:
        # First: what is added while this goes on must show afterwards.
        grown = replace(entry, mtime=path.stat().st_mtime_ns)
        if not grown.is_intact(path) or not _has_all(path, read_members(read_tail(folder), manifest)):
            return None
    except (OSError, FilestoreError):
        return None
    with suppress(OSError):
        write_atomic(folder / "entry.json", encode_entry(grown))
    return grown


def _has_all(root: Path, members: Iterable[Member]) -> bool:
    """Whether all that is to stand at the top of a tree does, as far as a look shows."""
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
    """Have a fetch go on from the content of an entry that nobody sees any more."""
    for path in [each for each in contents(folder) if not each.is_symlink()][:1]:
        _reuse(path, target, wanted)
    remove_if_possible(folder)


def _reuse(path: Path, target: Path, wanted: WantedEntry) -> None:
    """Put content where a fetch to `target` looks for what it has made before; if something is there, that is as good."""
    with suppress(FileNotFoundError):
        try:
            if wanted.kind is Kind.DIRECTORY:
                unseal(path)
                path.rename(staging_folder(target, wanted.digest))
            elif path.is_file() and not target.exists():
                path.rename(target)
            else:
                remove(path)
        except FileNotFoundError:
            raise
        except OSError:
            remove(path)
