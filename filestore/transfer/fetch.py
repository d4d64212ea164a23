"""Fetch a stored file: receive the chunks that are not on this machine, and write the verified file to its target.

Chunks are verified and written at their offsets into a staging file next to the target, in any order. The file appears under
its name by one rename (I3). Chunks that are on this machine are not fetched: those in the staging file of an earlier fetch
that did not end, those in the file that has the target's name, and those of seeds.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

from blake3 import blake3

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.progress import Progress, Report
from filestore.core.records import Record
from filestore.errors import SourceError, StorageError, TargetError, TransferError, storage_error
from filestore.repository.protocol import Repository, Wanted
from filestore.system.files import check_space, given_path, storage_errors, sync_descriptor, sync_path, target_error, write_at
from filestore.system.locks import FileLock, claim, is_claimed
from filestore.system.metrics import Stage, span
from filestore.system.owners import PRIVATE_FILE, is_ours, tighten_descriptor, usual_mode
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.fetch_entry import FoundEntry, checked_kind, content_of, find_entry, find_wanted, own_manifest
from filestore.transfer.local_seeds import LocalSeed, SeedFinder, SeedSource, find_seeds, finders_of
from filestore.transfer.parents import with_parents
from filestore.transfer.partial_file import PartialFile
from filestore.transfer.receiver import Receiver
from filestore.transfer.schedule import DEFAULT_OPTIONS, TransferOptions
from filestore.transfer.seeds import ContentRange, FileSeed, Seed, closing, copy_range, has_data, read_whole
from filestore.transfer.sinks.protocol import FilePart, Ordering, OvertakenError, Staging
from filestore.transfer.sources.file import FileSource
from filestore.transfer.staging_name import STAGING_END, find_staging
from filestore.transfer.stored_tree import EntryKind

ATTEMPTS = 3
_FOLDER_THERE = "a folder is there, which a single file does not replace, not even by force; give another target"


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What a fetch of a file did.

    record: The record that was fetched.
    path: Where the file is: the target.
    size: Bytes of the file.
    bytes_received: Bytes that were received: compressed chunks with their headers.
    bytes_reused: Bytes of the file that were on this machine already.
    reused_from: The part of these bytes that came from each file or folder of this machine, by its path.
    seconds: How long the fetch took.
    was_there: True where the same file was at the target: it was verified, and nothing was replaced.
    manifest: The list of the file's chunks.
    """

    record: Record
    path: Path
    size: int
    bytes_received: int
    bytes_reused: int
    reused_from: Mapping[Path, int]
    seconds: float
    was_there: bool
    manifest: Manifest = field(repr=False, compare=False)


async def fetch(
    repository: Repository,
    wanted: Wanted,
    *,
    target: str | Path,
    force: bool = False,
    seeds: Sequence[SeedSource] = (),
    report: Report | None = None,
) -> FetchResult:
    """Write a stored file to the path `target`, every byte verified.

    >>> result = await fetch(repository, "model.safetensors", target="/models/model.safetensors")
    >>> print(result.size, result.bytes_received)

    A directory is written as the zip file that it is stored as; `fetch_tree` writes its tree. One file of a directory is written
    by its path:

    >>> await fetch(repository, "my_model.zip:tokenizer/config.json", target="config.json")

    repository: what `connect` gives.
    wanted: a name, an id, a digest or a stored path as a text, or a `Reference`, `Record`, `File` or `Directory`. A name means
        the newest file of that name. `:` and the path of a file may follow the text.
    target: the path of the file itself. Missing folders above it are made.
    force: replace a file with other content that is at `target`, or a symbolic link to one. Without it, such a file is an
        error. Chunks that the old file and the new one share are copied and not received.
    seeds: paths of files or folders of this machine that may have parts of the content, such as an older version. They are read
        and hashed. Chunks that they have are copied, verified, and not received. A file that changes meanwhile is left out.
    report: called with a `Progress` at each step, in the thread of the event loop.

    Idempotent: where the file is at `target` already, it is read and verified, and nothing is received or written.

    Cost: what is received is decoded, hashed and written once. Memory stays below about 150 MiB, whatever the size.

    Cancellation: the file is at `target` as a whole or not at all. A hidden file next to it, whose name ends in
    `.filestore-partial`, keeps the chunks that were received. The next fetch to the same target continues there. Where nothing
    was received, no such file is left.

    Raises InvalidReference or NotFound where `wanted` names nothing; EntryNotFound, InvalidArchive or LimitExceeded where the
    file of a directory cannot be read; SourceUnreadable where a seed cannot be read; TargetError, StorageFull or StorageError
    where the file cannot be written; DamagedChunk or ChunksMissing where the repository has lost a part of it; Unauthorized or
    TransferError where a server refuses or cannot be reached.
    """
    path, finders = given_path(target), finders_of(seeds)
    record, reference = await find_wanted(repository, wanted)
    if reference.entry_path is None:
        return await fetch_record(repository, record, target=path, force=force, finders=finders, report=report)
    found = await find_entry(repository, record, reference)
    return await fetch_entry(repository, record, found, target=path, force=force, finders=finders, report=report)


async def fetch_entry(
    repository: Repository,
    record: Record,
    found: FoundEntry,
    *,
    target: Path,
    force: bool = False,
    finders: Sequence[SeedFinder] = (),
    report: Report | None = None,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> FetchResult:
    """Write one file of the stored directory of `record`, or of any stored zip file, to `target`, as `fetch` does.

    Only the chunks are received that have a part of it. A file of 256 KiB or more in a pushed directory is resumed like any
    file.

    Raises InvalidReference for a folder and a link, InvalidArchive, and what `fetch_record` raises.
    """
    started = time.monotonic()
    await checked_kind(repository, found, EntryKind.FILE)
    is_executable = found.entry.is_executable
    manifest = await in_cpu_thread(own_manifest, found)
    if manifest is not None:
        result = await fetch_record(
            repository,
            record,
            target=target,
            force=force,
            manifest=manifest,
            finders=finders,
            report=report,
            is_executable=is_executable,
            options=options,
        )
        return replace(result, seconds=time.monotonic() - started)
    async with with_parents(target):
        read = await content_of(repository, found, target, report)
        result = await fetch_record(
            repository,
            record,
            target=target,
            force=force,
            manifest=read.seed.manifest,
            seeds=[read.seed],
            is_executable=is_executable,
            options=options,
        )
    if report is not None:
        report(Progress(result.size, result.size, read.bytes_received, 0, 0, 1, 1))
    return replace(result, bytes_received=read.bytes_received, bytes_reused=0, reused_from={}, seconds=time.monotonic() - started)


async def fetch_record(
    repository: Repository,
    record: Record,
    *,
    target: Path,
    force: bool = False,
    manifest: Manifest | None = None,
    report: Report | None = None,
    seeds: Sequence[Seed] = (),
    finders: Sequence[SeedFinder] = (),
    partial_file: PartialFile | None = None,
    is_executable: bool = False,
    options: TransferOptions = DEFAULT_OPTIONS,
) -> FetchResult:
    """Write the file of `record` to `target`, as `fetch` does, with help from other local data.

    `manifest` is the manifest of the file. Without it, the function asks the repository for it. Chunks that a seed
    holds are copied instead of received. All seeds are closed at the end. `finders` find more of them. `partial_file` is
    told the offset of each chunk that was written. Chunks that its reader waits for are fetched first. With
    `is_executable`, a new file can be executed.

    Raises TargetError, StorageFull, StorageError, DamagedChunk, ChunksMissing, NotFound, TransferError.
    """
    started = time.monotonic()
    with closing(seeds):
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
        receiving = Receiver(repository, manifest, report, options=options)
        async with with_parents(target):
            for attempt in count(1):
                try:
                    await _fetch(
                        receiving,
                        manifest,
                        target,
                        seeds,
                        partial_file,
                        finders=finders,
                        force=force,
                        is_executable=is_executable,
                    )
                except OvertakenError:
                    if attempt == ATTEMPTS:
                        reason = "its staging file was removed again and again by someone else"
                        raise TargetError(str(target), reason) from None
                else:
                    break
        return FetchResult(
            record=record,
            path=target,
            size=manifest.size,
            bytes_received=receiving.moved,
            bytes_reused=receiving.reused,
            reused_from=receiving.reused_from,
            seconds=time.monotonic() - started,
            was_there=receiving.is_whole,
            manifest=manifest,
        )


async def _fetch(  # each is a part of the call
    receiving: Receiver,
    manifest: Manifest,
    target: Path,
    seeds: Sequence[Seed],
    partial_file: PartialFile | None,
    *,
    finders: Sequence[SeedFinder],
    force: bool,
    is_executable: bool,
) -> None:
    is_free = not await in_disk_thread(os.path.lexists, target)
    older = await _scan(target, manifest, receiving)
    if older is not None and older.digest == manifest.digest:
        receiving.note_whole()
        return
    if not force:
        await in_disk_thread(_check_free, target, was_free=is_free)
    found = await find_seeds(
        receiving, manifest, target, finders, older=None if older is None else LocalSeed(target, FileSeed(target, older))
    )
    local = [each.seed for each in found]
    with closing(local), _PartialFile(target, manifest, partial_file) as staging:
        await in_disk_thread(staging.open)
        await receiving.reuse(staging, [*local, *seeds], resume=staging.held)
        receiving.note_sources(found)
        await in_disk_thread(staging.check_space, receiving.missing_size())
        await receiving.download(staging, partial_file=partial_file)
        if not force:
            await in_disk_thread(staging.check_first)
        await in_disk_thread(staging.publish, is_executable=is_executable)


def _check_free(target: Path, *, was_free: bool) -> None:
    """Raise TargetError if a file, a folder or a link exists at the path of the target.

    If nothing was there before, raise OvertakenError: another fetch may have published the same file.
    """
    if was_free and os.path.lexists(target):
        raise OvertakenError
    if target.is_dir():
        raise TargetError(str(target), _FOLDER_THERE)
    if os.path.lexists(target):
        reason = "another file is there; give another target, or replace it by force"
        raise TargetError(str(target), reason, hint="choose-target")


async def _scan(target: Path, manifest: Manifest, receiving: Receiver) -> Manifest | None:
    """Return the manifest of the file at `target`. Return None if no file is there, or if it cannot be read."""
    try:
        with await in_disk_thread(FileSource, target, chunking_version=manifest.chunking_version) as source:
            return await receiving.scan(source)
    except SourceError:
        return None


def staging_file(target: Path, digest: Digest) -> Path:
    """Return the file in which the content with this digest is staged for `target`.

    The next fetch treats a file there like the rest of an interrupted fetch: what is right in it is kept, and the file
    becomes the target. Where another user could have made that file, a fetch chooses another one: `find_staging`.
    """
    # A name of fixed length, since the target's own may have 255 bytes already.
    label = blake3(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".{digest.hex()[:32]}-{label}{STAGING_END}")


class _PartialFile:
    """The staging file that becomes the target: a `Sink`. Its methods block: call them in a thread.

    Two processes that fetch the same file to the same target write the same verified bytes at the same offsets of one
    staging file. The process that is too late starts over, and finds the finished file.
    """

    file_count = 1
    files_done = 0
    needs_checksums = False

    def __init__(self, target: Path, manifest: Manifest, partial_file: PartialFile | None = None) -> None:
        """Set fields only: nothing on the disk is touched."""
        self._partial_file = partial_file
        self._manifest = manifest
        self.held = False
        """Whether an earlier fetch left content in the staging file."""
        self._target = target
        self._path = staging_file(target, manifest.digest)
        self._write_errors = partial(storage_errors, target, translate=_write_error)
        self._descriptor = -1
        self._staging: Staging | None = None
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        if self._lock is not None:
            if isinstance(error, Exception) and not isinstance(error, TransferError):
                with suppress(OSError, StorageError, OvertakenError):
                    self._remove_if_empty(self._lock)
            self._lock.release()

    def _remove_if_empty(self, lock: FileLock) -> None:
        """Remove the staging file if it has no content and no other process uses it.

        It is called when a fetch fails, so that a fetch that was refused leaves no file. Raises OvertakenError if
        another process has published or removed the staging file, StorageError if file locks do not work, OSError.
        """
        self.check_ours()
        if not has_data(self._descriptor, 0, self._manifest.size) and not is_claimed(lock):
            self._path.unlink()

    def open(self) -> None:
        """Open the staging file, or make it if it does not exist.

        Raises TargetError, StorageFull, StorageError, OvertakenError.
        """
        with storage_errors(self._target, translate=target_error):
            with suppress(FileNotFoundError):
                mode = self._target.stat().st_mode
                if stat.S_ISDIR(mode):
                    raise TargetError(str(self._target), _FOLDER_THERE)
                if not stat.S_ISREG(mode):
                    raise TargetError(str(self._target), "it exists and is not a regular file; give another target")
            self._path = find_staging(self._path)
            self._descriptor = self._open_private()
        self._lock = FileLock(self._descriptor, self._path, is_required=True)
        self._staging = Staging.of(self._descriptor, self._path)
        claim(self._lock)
        self.check_ours()
        with self._write_errors():
            self.held = os.fstat(self._descriptor).st_size > 0
            os.ftruncate(self._descriptor, self._manifest.size)
            if self._partial_file is not None:
                self._partial_file.begin(self._manifest, self._descriptor)

    def _open_private(self) -> int:
        """Open the staging file, or make it so that nobody else can open it.

        Raises OvertakenError if another user has put something there meanwhile. Raises OSError.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
        except FileExistsError:
            pass
        try:
            descriptor = os.open(self._path, flags | os.O_NONBLOCK)
        except FileNotFoundError:
            raise OvertakenError from None
        if not is_ours(os.fstat(descriptor)):
            os.close(descriptor)
            raise OvertakenError
        tighten_descriptor(descriptor)
        return descriptor

    def order(self, offset: int, size: int) -> Ordering | None:  # noqa: ARG002  # the protocol's
        return Ordering.ANY

    @property
    def staging(self) -> Staging:
        if self._staging is None:
            raise AssertionError("the staging file is not open")
        return self._staging

    def file_at(self, offset: int, size: int) -> FilePart | None:  # noqa: ARG002  # the protocol's
        return FilePart(0, offset)

    def open_file(self, number: int) -> int:  # noqa: ARG002  # the protocol's
        with self._write_errors():
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                raise OvertakenError from None
        if not os.path.samestat(os.fstat(descriptor), os.fstat(self._descriptor)):
            os.close(descriptor)
            raise OvertakenError
        return descriptor

    def note_written(self, offset: int, size: int, checksum: int) -> None:  # noqa: ARG002  # the protocol's
        if self._partial_file is not None:
            self._partial_file.took(offset)

    def write_error(self, offset: int, error: OSError) -> Exception:  # noqa: ARG002  # the protocol's
        return _write_error(str(self._target), error)

    def read_into(self, memory: memoryview, offset: int) -> bool:
        return read_whole(self._descriptor, memory, offset)

    def copy(self, source: ContentRange, offset: int, size: int) -> bool:
        return copy_range(source, self._descriptor, offset, size)

    def write(self, content: memoryview, offset: int, *, is_held: bool = False) -> None:
        if not is_held:
            with self._write_errors():
                write_at(self._descriptor, content, offset)
        if self._partial_file is not None:
            self._partial_file.took(offset)

    def sync(self) -> None:
        with self._write_errors(), span(Stage.SYNC):
            sync_descriptor(self._descriptor)

    def check_ours(self) -> None:
        """Raise OvertakenError if another process has published or removed the staging file.

        A file that is published is never written to.
        """
        self.staging.check()

    def check_first(self) -> None:
        """Raise OvertakenError if something is at the target already, which another fetch may have published.

        The staging file is removed, unless another process uses it. The fetch then looks at the target again.
        """
        if os.path.lexists(self._target):
            if self._lock is not None:
                with suppress(OSError, StorageError):
                    self.check_ours()
                    if not is_claimed(self._lock):
                        self._path.unlink()
            raise OvertakenError

    def check_space(self, size: int) -> None:
        """Raise StorageFull if `size` more bytes do not fit. It is called before any of them is fetched."""
        check_space(self._descriptor, size, where=self._target.parent)

    def publish(self, *, is_executable: bool) -> None:
        """Make the file durable, then rename it to the target.

        So after a crash, the name of the target never means a part of the file (I3).
        """
        with self._write_errors():
            with suppress(PermissionError):  # some file systems have no permissions
                os.fchmod(self._descriptor, usual_mode(0o777 if is_executable else 0o666))
            with span(Stage.SYNC):
                sync_descriptor(self._descriptor)
            self.check_ours()
            try:
                self._path.rename(self._target)
            except FileNotFoundError:
                raise OvertakenError from None
            sync_path(self._target.parent)


def _write_error(target: str, error: OSError) -> StorageError:
    """Return the error to raise for an error of the operating system.

    If the file is too large for the file system, the error names the file. Any other error names its folder.
    """
    return storage_error(target if error.errno == errno.EFBIG else str(Path(target).parent), error)
