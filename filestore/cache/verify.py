"""Verify a cache: read every byte of it once, and remove what is damaged."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from filestore.cache.cache import check_cache
from filestore.cache.entries import Entry, FileEntry, read_entry
from filestore.cache.entry_store import contents, read_manifest, read_members, read_tail
from filestore.cache.inventory import entries, remove_damaged
from filestore.core.digest import Digest
from filestore.core.paths import unhashed
from filestore.core.records import Kind
from filestore.errors import FilestoreError
from filestore.format.zip.read import Member
from filestore.system.files import storage_errors
from filestore.system.threads import in_disk_thread
from filestore.transfer.push import manifest_of
from filestore.transfer.sinks.compare import has_modes, is_from_push, matches_disk
from filestore.transfer.sources.walk import Symlinks

_BYTECODE = "__pycache__"
"""Folders that Python adds to a tree from which it imports."""


async def verify_cache(root: Path) -> list[Path]:
    """Hash every entry of the cache at `root`, of all its repositories, and remove those that are damaged.

    A tree is hashed as the zip file that a push would make of it. If another program made the zip file of a tree, a
    push would make a different one. Such a tree is compared with the central directory of its zip file, which the cache
    keeps: names, sizes, checksums, links and executable bits. The folders `__pycache__` that Python adds to a tree are
    not damage. A damaged entry is removed even while it is in use.

    Returns the paths that were removed. The next resolve fetches them again. Cost: the whole cache is read once. Raises
    InvalidInput if `root` is not a cache, UnknownFormat, StorageError.
    """
    await in_disk_thread(check_cache, root)
    removed = []
    for kept in await in_disk_thread(lambda: list(entries(root))):
        damaged = await _damaged(kept.folder, kept.kind)
        if damaged is not None:
            removed.append(damaged)
            await in_disk_thread(remove_damaged, kept)
    return removed


async def _damaged(folder: Path, kind: Kind) -> Path | None:
    """Return the path of content in an entry that does not match its digest. Return None if all content matches.

    If it is not known what the entry should contain, return the path of its folder.
    """
    try:
        digest = unhashed("/".join(folder.parts[-3:]))
    except FilestoreError:
        return folder
    entry = await in_disk_thread(read_entry, folder, kind)
    if entry is None:
        return folder
    paths = await in_disk_thread(contents, folder)
    for path in paths:
        try:
            if not (await in_disk_thread(entry.is_intact, path) and await _is_right(path, digest, entry)):
                return path
        except FilestoreError:
            return path
    return None if paths else folder


async def _is_right(path: Path, digest: Digest, entry: Entry) -> bool:
    if isinstance(entry, FileEntry):
        return (await manifest_of(path, chunking_version=entry.chunking_version)).digest == digest
    # Any other name of a tree is a link to it.
    return await in_disk_thread(path.is_symlink) or await _is_tree(path, digest)


async def _is_tree(path: Path, digest: Digest) -> bool:
    folder = path.parent.parent
    manifest = await in_disk_thread(read_manifest, folder)
    if manifest is None or manifest.digest != digest:
        return False
    tail = await in_disk_thread(read_tail, folder)
    members = await in_disk_thread(read_members, tail, manifest)
    ignored = set() if any(_BYTECODE in member.path.split("/") for member in members) else {_BYTECODE}
    if is_from_push(members, tail):
        exclude = [glob for name in ignored for glob in (name, f"*/{name}")]
        found = await manifest_of(path, chunking_version=manifest.chunking_version, symlinks=Symlinks.KEEP, exclude=exclude)
        return found.digest == digest
    return await in_disk_thread(_is_theirs, path, members, ignored)


def _is_theirs(path: Path, members: Sequence[Member], ignored: Collection[str]) -> bool:
    """Return whether a tree matches the directory of its zip."""
    with storage_errors(path):
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return matches_disk(root, members, ignored=ignored) and has_modes(root, members)
        finally:
            os.close(root)
