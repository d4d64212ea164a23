"""What a fetch of one file or one folder of a stored directory needs. Only the chunks that have a part of it are received.

A file of 256 KiB or more has chunks of its own, so it is fetched as if it had been pushed alone. Any other file is read from
the chunks that it shares, and then published in the same way. For a folder, the chunks that have a part of it are taken as a
zip file of their own, which has other bytes between its entries.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

from filestore.core.digest import Buffer, Digest, chunk_digest, manifest_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.progress import Progress, Report
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, InvalidReference, NotAnArchive
from filestore.format.chunking.chunker import Chunker
from filestore.format.zip.read import DEFAULT_LIMITS, End, Member, ZipLimits
from filestore.format.zip.tree import for_display
from filestore.repository.protocol import Repository, Wanted, checked_repository, reference_of
from filestore.system.files import check_space, storage_errors, target_error
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.seeds import ContentRange
from filestore.transfer.sinks.zip_index import Zip, ZipPart
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree, read_entry

HELD_LIMIT = 16 << 20
"""Bytes of a file that are kept in memory until it is whole. More are written to a file that has no name."""


class FoundEntry(NamedTuple):
    """An entry of a stored directory that a user named."""

    reference: str
    """The reference without the path of the entry."""
    tree: StoredTree
    entry: StoredEntry


class TreePart(NamedTuple):
    """A stored tree, or a folder of it as a zip file: the chunks that have a part of it, one after the other."""

    archive: Zip
    """Its members, with the paths that they have in the folder, and the offsets that they have in these chunks."""
    manifest: Manifest
    key: Digest
    """The digest of the manifest of a whole tree. That of a folder tells two folders apart that have the same chunks."""


class ReadContent(NamedTuple):
    """The content of an entry as a seed, and the encoded bytes that were received for it."""

    seed: ContentSeed
    bytes_received: int


async def find_wanted(repository: Repository, wanted: Wanted) -> tuple[Record, Reference]:
    """Return the record that `wanted` names, and its reference, in which the path of an entry may follow.

    A `Record` is returned unchanged, without a request to the repository. Raises InvalidReference, NotFound, TransferError.
    """
    repository = checked_repository(repository)
    reference = reference_of(wanted)
    return wanted if isinstance(wanted, Record) else await repository.record(reference.without_entry), reference


async def find_entry(
    repository: Repository,
    record: Record,
    reference: Reference,
    *,
    limits: ZipLimits = DEFAULT_LIMITS,
    manifest: Manifest | None = None,
) -> FoundEntry:
    """Return the entry that `reference` names in the stored directory or zip file of `record`.

    Without a path in the reference, that is the tree itself. `manifest` is the manifest of the record, if it is known already.

    Raises EntryNotFound; InvalidReference if the record is a file of another kind; InvalidArchive, LimitExceeded, NotFound,
    DamagedChunk, ChunksMissing, StorageError, TransferError.
    """
    path, directory = reference.entry_path or "", str(reference.without_entry)
    try:
        tree = await StoredTree.open(repository, record.digest, manifest=manifest, name=record.name, limits=limits)
    except NotAnArchive:
        raise InvalidReference(str(reference), "it is a single file and not a directory, so it has no entries") from None
    entry = tree.entry(path)
    if entry is None:
        raise EntryNotFound(directory, for_display(path))
    return FoundEntry(directory, tree, entry)


async def checked_kind(repository: Repository, found: FoundEntry, kind: EntryKind) -> None:
    """Raise InvalidReference if the entry is not of this kind: a file that `fetch` writes, or a folder that `fetch_tree` does."""
    entry = found.entry
    if entry.kind is kind:
        return
    if entry.kind is EntryKind.LINK:
        target = b"".join([piece async for piece in read_entry(repository, found.tree, entry)]).decode(errors="replace")
        reason = f"it is a symbolic link to {for_display(target)!r}; give the path that it leads to"
    elif entry.kind is EntryKind.FOLDER:
        reason = "it is a folder; fetch it as a tree"
    else:
        reason = "it is a file and not a folder; fetch it as a file"
    raise InvalidReference(f"{found.reference}:{entry.path}", reason)


def entry_key(directory: Digest, path: str) -> Digest:
    """Return what tells the content of a path in a stored directory apart. It is not a digest of that content."""
    return manifest_digest(directory + path.encode())


def own_manifest(found: FoundEntry) -> Manifest | None:
    """Return the manifest that a file has when it is pushed alone, or None if it shares a chunk with something else."""
    chunks = found.tree.chunks_of(found.entry)
    if chunks is None:
        return None
    return Manifest.build(chunks, chunking_version=found.tree.manifest.chunking_version)


async def content_of(repository: Repository, found: FoundEntry, target: Path, report: Report | None) -> ReadContent:
    """Read the content of a file that has no chunks of its own, and cut it as a push of the file alone does.

    What does not fit in memory is in a file without a name, next to `target`. Close the seed.

    Raises TargetError, InvalidArchive, DamagedChunk, ChunksMissing, StorageFull, StorageError, TransferError.
    """
    size = found.entry.size
    # What is in a file without a name is copied when all of it is there.
    await in_disk_thread(_check_target, target, size if size <= HELD_LIMIT else 2 * size)
    received = done = 0

    def count(size: int) -> None:
        nonlocal received
        received += size

    file = SpooledTemporaryFile(HELD_LIMIT, dir=str(target.parent))  # noqa: SIM115  # the seed closes it
    try:
        cutter = _Cutter(found.tree.manifest.chunking_version)
        async for piece in read_entry(repository, found.tree, found.entry, moved=count):
            await in_cpu_thread(cutter.take, piece)
            await in_disk_thread(_write, file, piece, target)
            done += len(piece)
            if report is not None:
                report(Progress(size, done, received, 0, 0, 1, 0))
        manifest = await in_cpu_thread(cutter.finish)
    except BaseException:
        file.close()
        raise
    return ReadContent(ContentSeed(file, manifest), received)


def tree_part(tree: StoredTree, folder: str) -> TreePart:
    """Return the part of a tree that is in `folder`, as a zip file of its own. It takes a `Member` in memory for each member."""
    prefix = f"{folder}/" if folder else ""
    members: list[Member] = []
    runs: list[range] = []
    for number in sorted(tree.member_numbers(folder)):
        member = tree.members[number]
        chunks = tree.overlapping(range(member.start, member.end))
        if runs and chunks.start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(chunks.stop, runs[-1].stop))
        else:
            runs.append(chunks)
        members.append(member._replace(path=member.path[len(prefix) :], full_path=member.path))
    moves, size = _moves(tree, runs)
    placed = [member._replace(start=member.start - moved, end=member.end - moved) for member, moved in _moved(members, moves)]
    chunks_of_runs = chain.from_iterable(tree.manifest.chunks.between(run.start, run.stop) for run in runs)
    manifest = Manifest.build(chunks_of_runs, chunking_version=tree.manifest.chunking_version)
    return TreePart(ZipPart(placed, End(size, 0, len(placed), 0), b""), manifest, entry_key(tree.manifest.digest, folder))


class ContentSeed:
    """Content that was read already, as a seed."""

    def __init__(self, file: IO[bytes], manifest: Manifest) -> None:
        self.manifest = manifest
        self._file = file

    def read_into(self, memory: memoryview, offset: int) -> bool:
        try:
            self._file.seek(offset)
            content = self._file.read(len(memory))
        except (OSError, ValueError):
            return False
        if len(content) != len(memory):
            return False
        memory[:] = content
        return True

    def locate(self, offset: int, size: int) -> ContentRange | None:  # noqa: ARG002  # the protocol's
        return None

    def close(self) -> None:
        self._file.close()


class _Cutter:
    """Cuts content that arrives in order into the chunks of a file. Its methods block."""

    def __init__(self, chunking_version: int) -> None:
        self._version = chunking_version
        self._chunker = Chunker(chunking_version=chunking_version)
        self._uncut = b""
        self._chunks: list[Chunk] = []

    def take(self, piece: Buffer, *, final: bool = False) -> None:
        data = memoryview(self._uncut + bytes(piece))
        start = 0
        for size in self._chunker.cut(data, final=final):
            self._chunks.append(Chunk(chunk_digest(data[start : start + size]), size))
            start += size
        self._uncut = bytes(data[start:])

    def finish(self) -> Manifest:
        self.take(b"", final=True)
        return Manifest.build(self._chunks, chunking_version=self._version)


def _check_target(target: Path, size: int) -> None:
    """Raise TargetError if the folder of the target is missing, StorageFull if it has no space for `size` bytes."""
    with storage_errors(target, translate=target_error):
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with storage_errors(target.parent):
            check_space(descriptor, size, where=target.parent)
    finally:
        os.close(descriptor)


def _write(file: IO[bytes], piece: bytes, target: Path) -> None:
    with storage_errors(target.parent):
        file.write(piece)


def _moves(tree: StoredTree, runs: Sequence[range]) -> tuple[list[tuple[int, int]], int]:
    """Return the offset in the tree's zip file of each run of chunks, with how far it is moved, and the size of all runs."""
    moves, size = [], 0
    for run in runs:
        start = tree.offsets[run.start]
        stop = tree.offsets[run.stop] if run.stop < len(tree.offsets) else tree.manifest.size
        moves.append((start, start - size))
        size += stop - start
    return moves, size


def _moved(members: Sequence[Member], moves: Sequence[tuple[int, int]]) -> Iterator[tuple[Member, int]]:
    starts = [start for start, _ in moves]
    for member in members:
        yield member, moves[bisect_right(starts, member.start) - 1][1]
