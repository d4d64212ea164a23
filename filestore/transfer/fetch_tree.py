"""Unpack: the tree of a zip file in a repository, straight into place.

The central directory is read first, by range. Then chunks are written as they arrive, each where it belongs in its file:
the zip itself is never on a disk. What was staged is synced and appears by one rename (I3). What is here already is not
fetched: what the staging folder of a fetch that was cut holds, what the tree or file that is replaced holds, and what
seeds hold.

Where the target is an empty folder, such as a mounted volume, the staging folder lies inside it, and the names in it are
moved out one by one. That is not atomic: a reader may see some of them before the others. So it is with a target that came
with a container image: an overlay file system does not rename such a folder.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from filestore.core.manifest import Manifest
from filestore.core.progress import Report
from filestore.core.records import Record
from filestore.errors import (
    FilestoreError,
    InvalidArchive,
    LimitExceeded,
    TargetError,
    TransferError,
)
from filestore.format.zip.read import (
    DEFAULT_LIMITS,
    ZipLimits,
)
from filestore.repository.protocol import Repository
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.receiver import Receiver
from filestore.transfer.seeds import FileSeed, Seed, closing
from filestore.transfer.sinks.protocol import OvertakenError
from filestore.transfer.sinks.tree import TreeStaging
from filestore.transfer.sinks.zip_index import Zip
from filestore.transfer.sources.file import FileSource
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk
from filestore.transfer.target import ATTEMPTS, OWN_NAMES, Target
from filestore.transfer.tree_seed import TreeSeed, read_structure, tree_tail


class FetchTreeResult(NamedTuple):
    """What an unpack did, in bytes of the zip."""

    path: Path
    size: int
    file_count: int
    """Files and links of the tree."""
    bytes_received: int
    """Encoded bytes of the frames that were received."""
    bytes_reused: int
    """Decoded bytes that were here already."""
    seconds: float
    manifest: Manifest
    tail: bytes
    """The zip's bytes from its central directory on: with the manifest, what a `TreeSeed` of the tree needs."""
    is_atomic: bool
    """The tree appeared by one rename. Else the target was a folder that stays, and its names appeared one by one."""
    left: Path | None
    """What stood there before, or a part of it, where it could not be removed; None otherwise."""


async def fetch_tree(
    repository: Repository,
    record: Record,
    target: Path,
    *,
    force: bool = False,
    limits: ZipLimits = DEFAULT_LIMITS,
    manifest: Manifest | None = None,
    seeds: Sequence[Seed] = (),
    report: Report | None = None,
    reserve: Callable[[Zip], Awaitable[None]] | None = None,
) -> FetchTreeResult:
    """Make the tree of the zip of `record` at `target`: a name that is free in an existing folder, or an empty folder.

    `manifest`: that of the zip, where the caller has it already; else the repository is asked. `reserve` is awaited before
    anything of the tree is written, and says by raising that there is no room for it.

    With `force`, what stands there, a file or a folder with all that is in it, is replaced; a link never is. Every byte is
    verified before anything appears, but for a target that is an empty folder or a mounted one: there names appear one by one.
    Refused, an archive leaves nothing behind, nor does what was refused before anything was written. Broken off otherwise, the
    staging folder stays, and the next unpack to the same target continues it. Chunks that a seed holds are copied instead of
    received. The seeds are closed.

    Raises NotAnArchive, InvalidArchive, LimitExceeded, TargetError, Busy, StorageFull, StorageError, DamagedChunk,
    ChunksMissing, NotFound, TransferError.
    """
    started = time.monotonic()
    with closing(seeds):
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
        place = Target(target, manifest.digest, force=force)
        is_moved = await in_disk_thread(place.look)
        receiving = Receiver(repository, manifest, report, seeds=seeds)
        try:
            archive = await read_structure(receiving, record.name, manifest.size, limits)
            if is_moved and await in_disk_thread(place.holds, archive):
                receiving.note_whole()
            else:
                if is_moved:
                    await in_disk_thread(place.look)
                if reserve is not None:
                    await reserve(archive)
                await _fetch_tree(receiving, archive, manifest, place, seeds)
        except (InvalidArchive, LimitExceeded):
            await in_disk_thread(place.discard)
            raise
    return FetchTreeResult(
        target,
        manifest.size,
        archive.file_count,
        receiving.moved,
        receiving.reused,
        time.monotonic() - started,
        manifest,
        archive.tail,
        not place.is_inside,
        place.left,
    )


async def _fetch_tree(receiving: Receiver, archive: Zip, manifest: Manifest, place: Target, seeds: Sequence[Seed]) -> None:
    for attempt in count(1):
        try:
            await _attempt(receiving, archive, manifest, place, seeds)
        except OvertakenError:
            if await in_disk_thread(place.holds, archive):
                await in_disk_thread(place.discard)
                receiving.note_whole()
                return
            if attempt == ATTEMPTS:
                reason = "its staging folder was removed again and again by someone else"
                raise TargetError(str(place.path), reason) from None
            await in_disk_thread(place.look)
        else:
            return


async def _attempt(receiving: Receiver, archive: Zip, manifest: Manifest, place: Target, seeds: Sequence[Seed]) -> None:
    older = await _older(receiving, manifest, place)
    if isinstance(older, TreeSeed) and older.manifest.digest == manifest.digest:
        receiving.note_whole()
        return
    found = [] if older is None else [older]
    with closing(found), TreeStaging(place.staging, place.path, archive) as staging:
        try:
            await in_disk_thread(staging.prepare)
            await receiving.reuse(staging, [*found, *seeds], resume=not staging.is_fresh)
            await in_disk_thread(staging.check_space)
            await receiving.download(staging)
            await in_disk_thread(staging.finish)
        except TargetError:
            await in_disk_thread(place.discard)
            raise
        except FilestoreError as error:
            # Nothing stays behind of what was refused before anything was written.
            if not isinstance(error, TransferError) and await in_disk_thread(staging.is_unused):
                await in_disk_thread(place.discard)
            raise
        await in_disk_thread(place.publish, staging)


async def _older(receiving: Receiver, manifest: Manifest, place: Target) -> Seed | None:
    """What is to be replaced, as a seed, if it can be read."""
    if not place.is_replaced:
        return None
    try:
        if await in_disk_thread(place.path.is_dir):
            walked = await in_disk_thread(walk, place.path, symlinks=Symlinks.KEEP, exclude=[OWN_NAMES])
            with await in_cpu_thread(TreeSource, walked, chunking_version=manifest.chunking_version) as tree:
                older = await receiving.scan(tree)
                return TreeSeed(place.path, older, await in_cpu_thread(tree_tail, tree))
        with await in_disk_thread(FileSource, place.path, chunking_version=manifest.chunking_version) as file:
            return FileSeed(place.path, await receiving.scan(file))
    except FilestoreError:
        return None
