"""Fetch the tree of a stored directory, or of any stored zip file, and write it to its target.

The central directory of the zip is read first, by range. Then each chunk is written to its place in its file when it
arrives: the zip itself is never on a disk. The staged tree is synced and appears by one rename (I3). Chunks that are on
this machine are not fetched: the chunks in the staging folder of an earlier fetch that did not end, the chunks of the
tree or file that is replaced, and the chunks of seeds.

Where the target is an empty folder, such as a mounted volume, the staging folder is inside it, and its names are moved out
one by one. That is not atomic: a reader may see some names before the others. The same holds for a target that came with a
container image, since an overlay file system does not rename such a folder.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

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
from filestore.repository.protocol import Repository, Wanted
from filestore.system.files import given_path
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.fetch_entry import FoundEntry, TreePart, checked_kind, find_entry, find_wanted, tree_part
from filestore.transfer.local_seeds import LocalSeed, SeedFinder, SeedSource, find_seeds, finders_of, seed_of
from filestore.transfer.parents import with_parents
from filestore.transfer.receiver import Receiver
from filestore.transfer.schedule import DEFAULT_OPTIONS, TransferOptions
from filestore.transfer.seeds import Seed, closing
from filestore.transfer.sinks.compare import is_from_push
from filestore.transfer.sinks.protocol import OvertakenError
from filestore.transfer.sinks.tree import TreeStaging
from filestore.transfer.sinks.zip_index import Zip
from filestore.transfer.stored_tree import EntryKind
from filestore.transfer.target import ATTEMPTS, Target
from filestore.transfer.tree_seed import TreeSeed, read_structure


@dataclass(frozen=True, slots=True)
class FetchTreeResult:
    """What a fetch of a tree did.

    record: The record that was fetched.
    path: Where the tree is: the target.
    size: Bytes of the zip that the tree is stored as; for a folder of a tree, of the chunks that have a part of it.
    file_count: Number of files and links in the tree.
    bytes_received: Bytes that were received: compressed chunks with their headers.
    bytes_reused: Bytes of the zip that were on this machine already.
    reused_from: The part of these bytes that came from each file or folder of this machine, by its path.
    seconds: How long the fetch took.
    is_atomic: False where the target was a folder that stays, and its names appeared one by one. True otherwise:
        one rename.
    left: The old content of the target, or a part of it, where it could not be removed; None otherwise.
    was_there: True where the same tree was at the target: it was verified, and nothing was replaced.
    manifest: The list of the zip's chunks.
    tail: The zip's bytes from its central directory on. With the manifest, a `TreeSeed` of the tree is made of
        them.
    """

    record: Record
    path: Path
    size: int
    file_count: int
    bytes_received: int
    bytes_reused: int
    reused_from: Mapping[Path, int]
    seconds: float
    is_atomic: bool
    left: Path | None
    was_there: bool
    manifest: Manifest = field(repr=False, compare=False)
    tail: bytes = field(repr=False, compare=False)


async def fetch_tree(
    repository: Repository,
    wanted: Wanted,
    *,
    target: str | Path,
    force: bool = False,
    seeds: Sequence[SeedSource] = (),
    limits: ZipLimits = DEFAULT_LIMITS,
    report: Report | None = None,
) -> FetchTreeResult:
    """Write the tree of a stored directory, or of any stored zip file, to the path `target`, every byte verified.

    >>> result = await fetch_tree(repository, "my_model.zip", target="/models/my_model")
    >>> print(result.file_count, result.bytes_received)

    The zip itself is not written: each file of the tree is written to its place when its bytes arrive. One folder of the tree is
    written by its path:

    >>> await fetch_tree(repository, "my_model.zip:tokenizer", target="/models/tokenizer")

    repository: what `connect` gives.
    wanted: a name, an id, a digest or a stored path as a text, or a `Reference`, `Record`, `File` or `Directory`. A name means
        the newest file of that name. `:` and the path of a folder may follow the text.
    target: the path of the tree itself: a new name, or an empty folder. Missing folders above it are made.
    force: replace the file at `target`, or the folder with all that is in it. Without it, a folder that is not empty is an
        error, unless it is the same tree. A symbolic link is never replaced. Files that the old tree and the new one share are
        copied and not received.
    seeds: paths of files or folders of this machine that may have parts of the content, as for `fetch`. A folder is read as a
        push of it reads it, and its links are not followed.
    limits: what the zip file may ask of this machine; see `ZipLimits`.
    report: called with a `Progress` at each step, in the thread of the event loop.

    Idempotent: where the same tree is at `target` already, it is read and verified, and nothing but its list of entries is
    received. The tree of a pushed directory is hashed. The tree of another zip file, or of a part of a directory, is compared
    with the checksums in the list of entries.

    Cost: what is received is decoded, hashed and written once. Memory stays below about 100 MiB, whatever the size.

    Cancellation: the tree is at `target` as a whole or not at all. A hidden folder next to it keeps what was received, and the
    next fetch to the same target continues there. Where nothing was written, or the zip file is refused, no such folder is
    left. The exception is an empty or a mounted folder as the target: names appear in it one by one, see
    `FetchTreeResult.is_atomic`.

    Raises InvalidReference, NotFound or EntryNotFound where `wanted` names nothing; NotAnArchive, InvalidArchive or
    LimitExceeded where the file cannot be unpacked; SourceUnreadable where a seed cannot be read; TargetError, StorageFull or
    StorageError where the tree cannot be written; DamagedChunk or ChunksMissing where the repository has lost a part of it;
    Unauthorized or TransferError where a server refuses or cannot be reached.

    Source: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, for zip files.
    """
    path, finders = given_path(target), finders_of(seeds)
    record, reference = await find_wanted(repository, wanted)
    if not reference.entry_path:
        return await fetch_record_tree(
            repository, record, target=path, force=force, limits=limits, finders=finders, report=report
        )
    found = await find_entry(repository, record, reference, limits=limits)
    return await fetch_entry_tree(repository, record, found, target=path, force=force, finders=finders, report=report)


async def fetch_record_tree(
    repository: Repository,
    record: Record,
    *,
    target: Path,
    force: bool = False,
    limits: ZipLimits = DEFAULT_LIMITS,
    manifest: Manifest | None = None,
    seeds: Sequence[Seed] = (),
    finders: Sequence[SeedFinder] = (),
    report: Report | None = None,
    reserve: Callable[[Zip], Awaitable[None]] | None = None,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> FetchTreeResult:
    """Write the tree of the zip of `record` to `target`, as `fetch_tree` does, with help from other local data.

    `manifest` is the manifest of the zip. Without it, the function asks the repository for it. `reserve` is awaited
    before any part of the tree is written, and may raise an error if there is not enough space. Chunks that a seed
    holds are copied instead of received. All seeds are closed at the end.

    Raises NotAnArchive, InvalidArchive, LimitExceeded, TargetError, Busy, StorageFull, StorageError, DamagedChunk,
    ChunksMissing, NotFound, TransferError.
    """
    started = time.monotonic()
    with closing(seeds):
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
        place = Target(target, manifest.digest, force=force)
        async with with_parents(place.path):
            is_moved = await in_disk_thread(place.look)
            receiving = Receiver(repository, manifest, report, seeds=seeds, options=options)
            try:
                archive = await read_structure(receiving, record.name, manifest.size, limits, offset_space=options.offset_space)
                part = TreePart(archive, manifest, manifest.digest)
                await _write(receiving, part, place, seeds, finders, is_moved=is_moved, reserve=reserve, options=options)
            except (InvalidArchive, LimitExceeded):
                await in_disk_thread(place.discard)
                raise
    return _result(record, part, receiving, place, target=target, seconds=time.monotonic() - started)


async def fetch_entry_tree(
    repository: Repository,
    record: Record,
    found: FoundEntry,
    *,
    target: Path,
    force: bool = False,
    finders: Sequence[SeedFinder] = (),
    report: Report | None = None,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> FetchTreeResult:
    """Write one folder of the stored directory of `record`, or of any stored zip file, to `target`, as `fetch_tree` does.

    Only the chunks are received that have a part of it.

    Raises InvalidReference for a file and a link, and what `fetch_record_tree` raises.
    """
    started = time.monotonic()
    await checked_kind(repository, found, EntryKind.FOLDER)
    part = await in_cpu_thread(tree_part, found.tree, found.entry.path)
    result = await fetch_part(
        repository, record, part, target=target, force=force, finders=finders, report=report, options=options
    )
    return replace(result, seconds=time.monotonic() - started)


async def fetch_part(
    repository: Repository,
    record: Record,
    part: TreePart,
    *,
    target: Path,
    force: bool = False,
    seeds: Sequence[Seed] = (),
    finders: Sequence[SeedFinder] = (),
    report: Report | None = None,
    reserve: Callable[[Zip], Awaitable[None]] | None = None,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> FetchTreeResult:
    """Write a part of a tree to `target`. `seeds` and `reserve` are as in `fetch_record_tree`.

    Raises what `fetch_record_tree` raises.
    """
    started = time.monotonic()
    with closing(seeds):
        place = Target(target, part.key, force=force)
        async with with_parents(place.path):
            is_moved = await in_disk_thread(place.look)
            receiving = Receiver(repository, part.manifest, report, seeds=seeds, options=options)
            try:
                await _write(receiving, part, place, seeds, finders, is_moved=is_moved, reserve=reserve, options=options)
            except (InvalidArchive, LimitExceeded):
                await in_disk_thread(place.discard)
                raise
    return _result(record, part, receiving, place, target=target, seconds=time.monotonic() - started)


def _result(
    record: Record, part: TreePart, receiving: Receiver, place: Target, *, target: Path, seconds: float
) -> FetchTreeResult:
    return FetchTreeResult(
        record=record,
        path=target,
        size=part.manifest.size,
        file_count=part.archive.file_count,
        bytes_received=receiving.moved,
        bytes_reused=receiving.reused,
        reused_from=receiving.reused_from,
        seconds=seconds,
        is_atomic=not place.is_inside,
        left=place.left,
        was_there=receiving.is_whole,
        manifest=part.manifest,
        tail=part.archive.tail,
    )


async def _write(
    receiving: Receiver,
    part: TreePart,
    place: Target,
    seeds: Sequence[Seed],
    finders: Sequence[SeedFinder],
    *,
    is_moved: bool,
    reserve: Callable[[Zip], Awaitable[None]] | None,
    options: TransferOptions,
) -> None:
    """Write a tree to its target, unless an earlier fetch has published it there and did not end."""
    place.check_names(part.archive)
    if is_moved and await in_disk_thread(place.holds, part.archive):
        receiving.note_whole()
        return
    if is_moved:
        await in_disk_thread(place.look)
    if place.is_kept and await _is_there(receiving, part, place):
        await in_disk_thread(place.discard)
        receiving.note_whole()
        return
    place.refuse_kept()
    if reserve is not None:
        await reserve(part.archive)
    await _fetch_tree(receiving, part, place, seeds, finders, options=options)


async def _fetch_tree(
    receiving: Receiver,
    part: TreePart,
    place: Target,
    seeds: Sequence[Seed],
    finders: Sequence[SeedFinder],
    *,
    options: TransferOptions,
) -> None:
    for attempt in count(1):
        try:
            await _attempt(receiving, part, place, seeds, finders, options=options)
        except OvertakenError:
            if await in_disk_thread(place.holds, part.archive):
                await in_disk_thread(place.discard)
                receiving.note_whole()
                return
            if attempt == ATTEMPTS:
                reason = "another process removed its staging folder again and again; end that process, and fetch again"
                raise TargetError(str(place.path), reason) from None
            await in_disk_thread(place.look)
            place.refuse_kept()
        else:
            return


async def _is_there(receiving: Receiver, part: TreePart, place: Target) -> bool:
    """Return whether the tree is at the target already. Its content is read only if its names and sizes are right.

    The tree that a push stored is hashed. For any other one, and for a part of a tree, no digest is known: its files are
    compared with the checksums in the central directory.
    """
    if not await in_disk_thread(place.resembles, part.archive):
        return False
    if await in_cpu_thread(is_from_push, part.archive.members, part.archive.tail):
        older = await _older(receiving, part.manifest, place)
        return older is not None and older.seed.manifest.digest == part.key
    return await in_disk_thread(place.holds_all, part.archive)


async def _attempt(
    receiving: Receiver,
    part: TreePart,
    place: Target,
    seeds: Sequence[Seed],
    finders: Sequence[SeedFinder],
    *,
    options: TransferOptions,
) -> None:
    older = await _older(receiving, part.manifest, place)
    # The key of a folder is never the digest of a tree.
    if older is not None and isinstance(older.seed, TreeSeed) and older.seed.manifest.digest == part.key:
        await in_disk_thread(place.discard)
        receiving.note_whole()
        return
    found = await find_seeds(receiving, part.manifest, place.path, finders, older=older)
    local = [each.seed for each in found]
    staging = TreeStaging(place.staging, place.path, part.archive, gather_limit=options.gather_limit)
    with closing(local), staging:
        try:
            await in_disk_thread(staging.prepare)
            await receiving.reuse(staging, [*local, *seeds], resume=not staging.is_fresh)
            receiving.note_sources(found)
            await in_disk_thread(staging.check_space)
            await receiving.download(staging)
            await in_disk_thread(staging.finish)
        except TargetError:
            await in_disk_thread(place.discard)
            raise
        except FilestoreError as error:
            # A fetch that is refused before it writes anything leaves nothing.
            if not isinstance(error, TransferError) and await in_disk_thread(staging.is_unused):
                await in_disk_thread(place.discard)
            raise
        await in_disk_thread(place.publish, staging)


async def _older(receiving: Receiver, manifest: Manifest, place: Target) -> LocalSeed | None:
    """Return the file or tree that will be replaced, as a seed. Return None if it is missing or cannot be read."""
    if not place.is_replaced:
        return None
    return await seed_of(receiving, place.path, chunking_version=manifest.chunking_version)
