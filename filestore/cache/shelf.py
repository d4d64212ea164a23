"""The entries of one namespace of one repository. All blocks: call it in a thread."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filestore.cache.disk import remove, remove_if_possible, storage_errors, take_aside, write_durably, write_whole
from filestore.cache.entries import Entry, FileEntry, TreeEntry, encode_entry, read_entry, unseal
from filestore.digest import Digest
from filestore.durable import sync_path
from filestore.errors import FilestoreError
from filestore.layout import hashed
from filestore.manifest import HEADER_SIZE, MANIFEST_LIMIT, Manifest, stated_size
from filestore.objects import Kind, Record, Reference, record_from_json, tree_name
from filestore.unpack import staging_folder

FOLDERS = {Kind.FILE: "files", Kind.DIRECTORY: "trees"}
_SUFFIXES = {Kind.FILE: "", Kind.DIRECTORY: "-tree"}


class Wanted(NamedTuple):
    """One entry: a zip file is one thing as a file, and another as the tree that it unpacks to."""

    kind: Kind
    digest: Digest

    @property
    def path(self) -> str:
        """Where it lies on a shelf."""
        return f"{FOLDERS[self.kind]}/{hashed(self.digest)}"

    @property
    def label(self) -> str:
        """What its lock and its staging folder are called."""
        return f"{self.digest}{_SUFFIXES[self.kind]}"


def kept_name(kind: Kind, name: str) -> str:
    """What the content of an entry is called, of a file that was pushed under `name`."""
    return tree_name(name) if kind is Kind.DIRECTORY else name


class Shelf:
    """Finds, stages and publishes entries. Any number of processes do so at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: Kind, reference: Reference) -> Path | None:
        """The path of a sound entry, or None. A record's id is looked up among those that are remembered."""
        digest, name = reference.digest, reference.name
        if reference.id is not None:
            record = self._recall(reference.id)
            if record is None:
                return None
            digest, name = record.digest, record.name
        if digest is None:
            return None
        folder = self.root / Wanted(kind, digest).path
        entry = read_entry(folder, kind)
        if entry is None:
            return None
        sound = sorted(_sound(folder, entry))
        if not sound or name is None:
            return sound[0] if sound else None
        path = folder / "content" / kept_name(kind, name)
        if path not in sound:
            with storage_errors(self.root), suppress(FileExistsError):
                self._alias(Wanted(kind, digest), sound[0], path)
            # What stands there already may be another process's, or damaged.
            return path if entry.is_sound(path) else None
        return path

    def manifest(self, digest: Digest) -> Manifest | None:
        """The manifest that an entry of these bytes keeps, be it the file or the tree."""
        for kind in Kind:
            manifest = read_manifest(self.root / Wanted(kind, digest).path)
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

    def lock_path(self, wanted: Wanted) -> Path:
        """The file whose lock says that an entry is being fetched."""
        return self.root / "locks" / wanted.label

    def stage(self, wanted: Wanted, name: str, *, is_alone: bool, takes_over: bool = False) -> Path:
        """Where the content of an entry is to be made; what a crash, or damage, has left of it is near it, to be verified.

        `is_alone`: no other process is making the entry; else this one gets a place of its own. `takes_over`: that is what a
        process which got no further has staged. Raises StorageError, StorageFull.
        """
        shared = self._staging / wanted.label
        folder = shared if is_alone else self._aside(wanted.label)
        target = folder / "content" / kept_name(wanted.kind, name)
        with storage_errors(self.root):
            if takes_over:
                take_aside(shared, folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.find(wanted.kind, Reference(digest=wanted.digest, name=name)) is None:
                # What stands in the place of a sound entry is damaged, and most of it may be right all the same.
                aside = self._aside(wanted.label)
                if take_aside(self.root / wanted.path, aside):
                    _salvage(aside, target, wanted)
            if is_alone:
                for left in self._staging.glob(f".{wanted.label}.*"):
                    _salvage(left, target, wanted)
            if wanted.kind is Kind.DIRECTORY and target.exists():
                _reuse(target, target, wanted)  # a whole tree that nobody came to publish
        return target

    def publish(self, wanted: Wanted, target: Path, manifest: Manifest, *, tail: bytes | None = None) -> None:
        """Let the entry appear whose content is at `target`; where another process was earlier, its entry stands.

        Raises StorageError, StorageFull.
        """
        folder = self._aside(wanted.label)
        content = folder / "content" / target.name
        with storage_errors(self.root), suppress(FileNotFoundError):
            try:
                content.parent.mkdir(parents=True)
                # A folder can be moved only as long as it can be written to.
                target.rename(content)
                entry: Entry = FileEntry.seal(content, cutting=manifest.cutting) if tail is None else TreeEntry.seal(content)
                write_whole(folder / "manifest", manifest.encoded)
                if tail is not None:
                    write_whole(folder / "tail", tail)
                write_whole(folder / "entry.json", encode_entry(entry))
                # Before the entry appears: afterwards nobody would come back for what is left of it.
                self.clear(target)
                self._appear(folder, self.root / wanted.path)
            finally:
                remove_if_possible(folder)

    def clear(self, target: Path) -> None:
        """Remove what is staged near a target, and is of no use any more."""
        remove_if_possible(target.parents[1])

    def discard(self, kind: Kind, folder: Path) -> None:
        """Remove an entry by its folder, the whole of it at once. Raises StorageError."""
        aside = self._aside(folder.name + _SUFFIXES[kind])
        with storage_errors(self.root):
            if take_aside(folder, aside):
                remove_if_possible(aside)

    def remember(self, record: Record) -> None:
        """Keep what an id means, so that the next resolve of it asks nobody."""
        path = self._record_path(record.id)
        if not path.exists():
            write_durably(path, record.as_json())

    def _recall(self, file_id: str) -> Record | None:
        try:
            record = record_from_json(json.loads(self._record_path(file_id).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, FilestoreError):
            return None
        return record if record.id == file_id else None

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

    def _alias(self, wanted: Wanted, sound: Path, path: Path) -> None:
        """Give the same bytes a second name."""
        if wanted.kind is Kind.DIRECTORY:
            path.symlink_to(sound.name)
            return
        try:
            os.link(sound, path)
        except FileExistsError:
            raise
        except OSError:
            # No hard links here: a copy that becomes visible whole, with the time that a hit checks.
            copy = self._aside(wanted.label)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sound, copy)
            copy.rename(path)


def read_manifest(folder: Path, *, limit: int = MANIFEST_LIMIT) -> Manifest | None:
    """The manifest that the entry in `folder` keeps; None where it keeps none, or one of more than `limit` bytes."""
    path = folder / "manifest"
    try:
        return Manifest.parse(path.read_bytes()) if path.stat().st_size <= limit else None
    except (OSError, FilestoreError):
        return None


def contents(folder: Path) -> list[Path]:
    """What the entry in `folder` holds, under each of its names."""
    try:
        return sorted((folder / "content").iterdir())
    except OSError:
        return []


def _sound(folder: Path, entry: Entry) -> Iterator[Path]:
    return (path for path in contents(folder) if entry.is_sound(path))


def _salvage(folder: Path, target: Path, wanted: Wanted) -> None:
    """Have a fetch go on from the content of an entry that nobody sees any more."""
    for path in [each for each in contents(folder) if not each.is_symlink()][:1]:
        _reuse(path, target, wanted)
    remove_if_possible(folder)


def _reuse(path: Path, target: Path, wanted: Wanted) -> None:
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
