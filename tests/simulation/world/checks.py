"""Compare a whole repository with the model: what is listed, what can be read, and what is left over."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from filestore.backends import connect
from filestore.cache.inventory import CachedEntry, StagedEntry, discard, entries, staged
from filestore.cache.leases import Leases
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key, manifest_key
from filestore.format.codec import frame_limit
from filestore.repository.protocol import Repository
from filestore.transfer.receive_batch import verified
from tests.simulation.world.model import Fate, Model
from tests.simulation.world.servers import checking, collecting, opened


async def compare_all(root: Path, model: Model) -> None:
    """Compare listing and content of a repository on which nobody works. Find no damage."""
    async with connect(root) as repository:
        records = await repository.records()
        model.compare(records, is_quiet=True)
        for version in model.kept():
            if version.content != await _content(repository, version.digest):
                model.fail(f"{version.name} is read back with other bytes than were pushed")
    async with opened(root) as (store, index):
        await checking(model)(store, index)


async def _content(repository: Repository, digest: Digest) -> bytes | None:
    """Return the content of a file, or None if the repository does not have all of it."""
    manifest = Manifest.parse(await repository.manifest(digest))
    chunks = list(manifest.chunks)
    buffer = memoryview(bytearray(sum(frame_limit(chunk.size) for chunk in chunks)))
    frames = await repository.get([chunk.digest for chunk in chunks], buffer)
    pieces = []
    for chunk, frame in zip(chunks, frames, strict=True):
        if frame is None:
            return None
        pieces.append(bytes(verified(chunk, frame)))
    return b"".join(pieces)


async def compare_at_end(root: Path, model: Model) -> None:
    """Compare everything, then collect without a grace period. Each stored file must be what a record needs."""
    await compare_all(root, model)
    async with opened(root) as (store, index):
        # A second collection, with another filter, removes what the filter of the first one kept by chance.
        for _ in range(2):
            await collecting(0)(store, index)
    await compare_all(root, model)
    async with connect(root) as repository:
        needed = await _needed(repository, model)
    kept = {path.relative_to(root).as_posix() for path in _files(root / "chunks", root / "manifests")}
    if kept != needed:
        model.fail(f"after a collection {len(kept - needed)} files are left over, and {len(needed - kept)} are missing")


async def _needed(repository: Repository, model: Model) -> set[str]:
    """Return the paths of the frames and manifests that the records need."""
    needed = set()
    for version in model.versions.values():
        if version.fate is Fate.KEPT:
            manifest = Manifest.parse(await repository.manifest(version.digest))
            needed |= {chunk_key(DEFAULT_NAMESPACE, chunk.digest) for chunk in manifest.chunks}
            needed.add(manifest_key(DEFAULT_NAMESPACE, version.digest))
    return needed


def _files(*folders: Path) -> Iterable[Path]:
    for top in folders:
        for folder, _, names in os.walk(top):
            yield from (Path(folder, name) for name in names)


def empty_cache(cache: Path, model: Model) -> None:
    """Remove all entries of a cache that nobody uses. None may be kept by a process that has ended. Blocks."""
    leases = Leases(cache)
    items: list[CachedEntry | StagedEntry] = [*staged(cache), *entries(cache)]
    for item in items:
        if not discard(leases, item):
            model.fail(f"the cache entry {item.key} counts as in use, although all processes that used it have ended")
    if list(entries(cache)):
        model.fail("a cache that was emptied still has entries")


def check_left_over(root: Path, cache: Path, size_limit: int, model: Model) -> None:
    """Look at what the processes of a simulation left when all have ended. Call it between steps."""
    left = list(_files(root / "tmp"))
    if left:
        model.fail(f"staging files are left although nobody is running: {left}")
    size = sum(path.lstat().st_blocks * 512 for path in _files(cache))
    if size > size_limit:
        model.fail(f"the cache has {size} bytes, and its limit is {size_limit}")
