"""What this machine has that may be like the content that is fetched, as seeds. Nothing of it is trusted."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from filestore.core.manifest import Manifest
from filestore.errors import FilestoreError, LimitExceeded, SourceChanged, SourceError, SourceUnreadable
from filestore.system.files import given_path
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.receiver import Receiver
from filestore.transfer.seeds import FileSeed, Seed
from filestore.transfer.sources.file import FileSource
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk
from filestore.transfer.target import OWN_NAMES
from filestore.transfer.tree_seed import TreeSeed, tree_tail


class LocalSeed(NamedTuple):
    """A seed, and the path of its file or folder."""

    path: Path
    seed: Seed


class SeedFinder(Protocol):
    """Finds seeds for a fetch when the content is known, and only where it is not at the target already."""

    async def find(self, receiving: Receiver, manifest: Manifest, target: Path) -> list[LocalSeed]:
        """Return seeds for the content of `manifest`, which is fetched to `target`. The caller closes them.

        Raises SourceUnreadable for a path that the user named and that cannot be read.
        """


SeedSource: TypeAlias = str | Path | SeedFinder
"""A path of a file or folder, or what finds such paths."""


class PathSeed:
    """A file or folder that the user named. It is hashed once, also where several fetches use it."""

    def __init__(self, path: str | Path) -> None:
        """Set fields only. Raises InvalidInput for an empty text."""
        self._path = given_path(path)
        self._scanned: _Scanned | None = None

    async def find(self, receiving: Receiver, manifest: Manifest, target: Path) -> list[LocalSeed]:
        if await in_disk_thread(_is_same, self._path, target):
            return []  # the fetch looks at its target anyway
        version = manifest.chunking_version
        if self._scanned is None or self._scanned.manifest.chunking_version != version:
            try:
                self._scanned = await scan_path(receiving, self._path, chunking_version=version)
            except SourceChanged:
                return []  # another program writes to it: what it has now may be gone in a moment
            except SourceUnreadable:
                raise
            except (SourceError, LimitExceeded) as error:
                raise SourceUnreadable(str(self._path), str(error)) from error
        return [LocalSeed(self._path, self._scanned.seed(self._path))]


class _Scanned(NamedTuple):
    """What a scan of a path found."""

    manifest: Manifest
    tail: bytes | None
    """The end of the zip file of a folder. None for a file."""

    def seed(self, path: Path) -> Seed:
        return FileSeed(path, self.manifest) if self.tail is None else TreeSeed(path, self.manifest, self.tail)


def finders_of(seeds: Sequence[SeedSource]) -> list[SeedFinder]:
    """Return what finds these seeds. Raises InvalidInput for an empty path."""
    return [PathSeed(each) if isinstance(each, str | Path) else each for each in seeds]


async def find_seeds(
    receiving: Receiver, manifest: Manifest, target: Path, finders: Iterable[SeedFinder], *, older: LocalSeed | None
) -> list[LocalSeed]:
    """Return `older`, which will be replaced, and what the finders find. One with the whole content is the only one."""
    found = [] if older is None else [older]
    try:
        for finder in finders:
            for each in await finder.find(receiving, manifest, target):
                found.append(each)
                if each.seed.manifest.digest == manifest.digest:
                    return found
    except BaseException:
        for each in found:
            each.seed.close()
        raise
    return found


async def scan_path(receiving: Receiver, path: Path, *, chunking_version: int, sizes: range | None = None) -> _Scanned:
    """Cut and hash a file, or a folder as a push of it does.

    `sizes` are the sizes of content that are worth it: of a file, or of the zip file of a folder. Any other is refused unread.

    Raises SourceError, LimitExceeded.
    """
    if not await in_disk_thread(path.is_dir):
        with await in_disk_thread(FileSource, path, chunking_version=chunking_version) as file:
            return _Scanned(await receiving.scan(file), None)
    walked = await in_disk_thread(lambda: walk(path, symlinks=Symlinks.KEEP, exclude=_own_names(path)))
    with await in_cpu_thread(TreeSource, walked, chunking_version=chunking_version) as tree:
        if sizes is not None and tree.size not in sizes:
            raise SourceUnreadable(str(path), "its size is another one")
        manifest = await receiving.scan(tree)
        return _Scanned(manifest, await in_cpu_thread(tree_tail, tree))


def _own_names(folder: Path) -> list[str]:
    """Return globs for what a fetch keeps in a folder. One for all of it would match a part of a path too."""
    with suppress(OSError):  # the walk says so
        return [glob.escape(each.name) for each in folder.iterdir() if fnmatchcase(each.name, OWN_NAMES)]
    return []


async def seed_of(receiving: Receiver, path: Path, *, chunking_version: int) -> LocalSeed | None:
    """Return a file or folder as a seed, or None if it cannot be read."""
    try:
        return LocalSeed(path, (await scan_path(receiving, path, chunking_version=chunking_version)).seed(path))
    except FilestoreError:
        return None


def _is_same(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return path.samefile(other)
    return False
