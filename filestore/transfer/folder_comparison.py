"""Compare a folder on this machine with a stored tree, path by path.

No link is followed. A file of 256 KiB or more is compared by the digests of its chunks, and a smaller one by its size and CRC-32:
what differs is transferred, and verified then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from enum import Enum, auto
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunks
from filestore.errors import storage_error
from filestore.format.zip.checksum import crc32
from filestore.system.files import read_at, source_error, storage_errors
from filestore.transfer.receive_batch import scratch
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree
from filestore.transfer.target import OWN_NAMES

_EXECUTES = stat.S_IXUSR


class Match(Enum):
    """What is at a path on this machine, beside an entry of a stored tree."""

    ABSENT = auto()
    SAME = auto()
    DIFFERENT = auto()
    """A file or a link, which one rename replaces."""
    OTHER_KIND = auto()
    """A folder in the place of a file or link, or something else in the place of a folder."""


class LocalPath(NamedTuple):
    """A path in a folder of this machine, relative to it."""

    path: str
    size: int
    is_folder: bool


def match(path: Path, tree: StoredTree, entry: StoredEntry, *, target: str | None = None) -> Match:
    """Say what is at `path`. `target` is the target of an entry that is a link. Blocks. Raises SourceUnreadable."""
    with storage_errors(path, translate=source_error):
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return Match.ABSENT
        if stat.S_ISDIR(found.st_mode) or entry.kind is EntryKind.FOLDER:
            return Match.SAME if stat.S_ISDIR(found.st_mode) and entry.kind is EntryKind.FOLDER else Match.OTHER_KIND
        if stat.S_ISLNK(found.st_mode):
            is_same = entry.kind is EntryKind.LINK and os.readlink(path) == target  # noqa: PTH115  # as the link has it
            return Match.SAME if is_same else Match.DIFFERENT
        if not stat.S_ISREG(found.st_mode):
            return Match.OTHER_KIND
        if entry.kind is EntryKind.LINK or bool(found.st_mode & _EXECUTES) is not entry.is_executable:
            return Match.DIFFERENT
        return Match.SAME if found.st_size == entry.size and has_content(path, tree, entry) else Match.DIFFERENT


def has_content(path: Path | str, tree: StoredTree, entry: StoredEntry) -> bool:
    """Return whether a file of the same size has the content of an entry. Blocks. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        chunks = tree.chunks_of(entry)
        return _has_sum(descriptor, tree, entry) if chunks is None else _has_chunks(descriptor, chunks)
    finally:
        os.close(descriptor)


def _has_chunks(descriptor: int, chunks: Chunks) -> bool:
    at = 0
    for chunk in chunks:
        content = scratch()[: chunk.size]
        if read_at(descriptor, content, at) != chunk.size or chunk_digest(content) != chunk.digest:
            return False
        at += chunk.size
    return True


def _has_sum(descriptor: int, tree: StoredTree, entry: StoredEntry) -> bool:
    crc, at = 0, 0
    while size := read_at(descriptor, scratch(), at):
        crc = crc32(scratch()[:size], crc)
        at += size
    return at == entry.size and entry.member_number is not None and crc == tree.members[entry.member_number].crc


def are_equal(tree: StoredTree, entry: StoredEntry, other: StoredTree, other_entry: StoredEntry) -> bool:
    """Return whether two stored entries are equal, as far as their central directories and manifests say."""
    if entry.kind is not other_entry.kind or (entry.size, entry.is_executable) != (other_entry.size, other_entry.is_executable):
        return False
    if entry.member_number is None or other_entry.member_number is None:
        return entry.member_number is other_entry.member_number
    chunks, others = tree.chunks_of(entry), other.chunks_of(other_entry)
    if chunks is not None and others is not None:
        return [chunk.digest for chunk in chunks] == [chunk.digest for chunk in others]
    return tree.members[entry.member_number].crc == other.members[other_entry.member_number].crc


def extras(root: Path, tree: StoredTree) -> Iterator[LocalPath]:
    """Yield what is in a folder and not in a stored tree, what is in a folder before the folder. Blocks. Raises StorageError.

    What an interrupted fetch has left there is not yielded.
    """
    for folder, folders, files in os.walk(root, topdown=False, onerror=_raise):
        prefix = _prefix(root, folder)
        if any(is_own(part) for part in prefix.split("/")):
            continue
        for name in sorted([*files, *folders]):
            if is_own(name) or tree.entry(prefix + name) is not None:
                continue
            with storage_errors(root):
                found = os.lstat(f"{folder}/{name}")
            is_folder = stat.S_ISDIR(found.st_mode)
            yield LocalPath(prefix + name, 0 if is_folder else found.st_size, is_folder)


def own_paths(root: Path) -> list[str]:
    """Return the paths of what an interrupted fetch has left in a folder. Blocks. What cannot be read is left out."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        found += [_prefix(root, folder) + name for name in (*folders, *files) if is_own(name)]
        folders[:] = [name for name in folders if not is_own(name)]
    return found


def _prefix(root: Path, folder: str) -> str:
    """Return what the paths of all that is in a folder below `root` begin with."""
    inside = os.path.relpath(folder, root)
    return "" if inside == "." else f"{inside}/"


def is_own(name: str) -> bool:
    """Return whether a name is one of those under which a fetch keeps what has arrived."""
    return fnmatchcase(name, OWN_NAMES)


def _raise(error: OSError) -> None:
    raise storage_error(str(error.filename), error) from error
