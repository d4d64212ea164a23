"""List the frames or the manifests of a namespace on a disk, folder by folder.

`top` is the folder of the namespace, and `root` the folder of the store, which errors name. Files with other names than
ours are left out. Raises StorageError.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from filestore.core.digest import Digest
from filestore.core.paths import unhashed
from filestore.errors import InvalidReference
from filestore.repository.stores.disk_errors import translated
from filestore.system.threads import in_disk_thread


async def digests_below(top: Path, *, root: Path) -> AsyncIterator[Digest]:
    """Yield the digests. About 1/256 of them are in memory at a time."""
    for folder in await in_disk_thread(contents_of, top, root):
        for digest in await in_disk_thread(_digests_of, folder, root):
            yield digest


async def size_pages(top: Path, *, root: Path) -> AsyncIterator[list[tuple[Digest, int]]]:
    """Yield digests and sizes of files, in order. A page has about 1/256 of them."""
    for folder in sorted(await in_disk_thread(contents_of, top, root)):
        yield await in_disk_thread(_sizes_below, folder, root)


def contents_of(folder: Path, root: Path) -> list[Path]:
    """Return what is in a folder. Return nothing if it does not exist. Blocks."""
    with translated(root):
        try:
            return list(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _digests_of(folder: Path, root: Path) -> list[Digest]:
    digests = []
    for inner in contents_of(folder, root):
        for path in contents_of(inner, root):
            with suppress(InvalidReference):  # a stranger's file
                digests.append(unhashed("/".join(path.parts[-3:])))
    return digests


def _sizes_below(folder: Path, root: Path) -> list[tuple[Digest, int]]:
    found = []
    for inner in contents_of(folder, root):
        with translated(root):
            found += _sizes_in(inner)
    return sorted(found)


def _sizes_in(folder: Path) -> list[tuple[Digest, int]]:
    """Return the digests that the names of the files in `folder` have, and the sizes of the files. Raises OSError."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(InvalidReference, FileNotFoundError):  # a stranger's file, or one that was removed meanwhile
                digest = unhashed("/".join((*folder.parts[-2:], entry.name)))
                found.append((digest, entry.stat(follow_symlinks=False).st_size))
    return found
