"""Fetch: repository, frames, chunks, path.

Chunks are written at their offsets into a staging file beside the target, in any order, each verified first; the file
appears under its name by one rename (I3). What is here already is not fetched: chunks that the staging file of a
fetch that was cut holds, chunks of the file that stands under the target's name, and those of seeds.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

from blake3 import blake3

from filestore.core.manifest import Manifest
from filestore.core.progress import Report
from filestore.core.records import Record
from filestore.errors import SourceError, StorageError, TargetError, TransferError, storage_error
from filestore.repository.protocol import Repository
from filestore.system.files import check_space, sync_descriptor, sync_path, write_at
from filestore.system.locks import FileLock, claim, is_claimed
from filestore.system.metrics import Stage, span
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.partial_file import PartialFile
from filestore.transfer.receiver import Receiver
from filestore.transfer.seeds import ContentRange, FileSeed, Seed, closing, copy_range, has_data, read_whole
from filestore.transfer.sinks.protocol import Ordering, OvertakenError
from filestore.transfer.sources.file import FileSource

ATTEMPTS = 3


class FetchResult(NamedTuple):
    """What a fetch did, in bytes."""

    path: Path
    size: int
    bytes_received: int
    """Encoded bytes of the frames that were received."""
    bytes_reused: int
    """Decoded bytes that were here already."""
    seconds: float
    manifest: Manifest


async def fetch(
    repository: Repository,
    record: Record,
    target: Path,
    *,
    manifest: Manifest | None = None,
    report: Report | None = None,
    seeds: Sequence[Seed] = (),
    partial_file: PartialFile | None = None,
    may_replace: bool = True,
) -> FetchResult:
    """Write the file of `record` to `target`, a path in an existing folder, replacing a file that is there.

    Unless it `may_replace`, only a file with the same content may be there, and then nothing is written.

    `manifest`: that of the file, where the caller has it already; else the repository is asked. `partial_file` is told of each
    chunk, and what is waited for there comes first.

    Every byte is verified before the file appears. Broken off, the staging file stays, and the next fetch continues it; refused
    before anything was written, nothing stays.
    Chunks that a seed holds are copied instead of received. The seeds are closed.

    Raises TargetError, StorageFull, StorageError, DamagedChunk, ChunksMissing, NotFound, TransferError.
    """
    started = time.monotonic()
    with closing(seeds):
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
        receiving = Receiver(repository, manifest, report)
        for attempt in count(1):
            try:
                await _fetch(receiving, manifest, target, seeds, partial_file, may_replace=may_replace)
            except OvertakenError:
                if attempt == ATTEMPTS:
                    reason = "its staging file was removed again and again by someone else"
                    raise TargetError(str(target), reason) from None
            else:
                seconds = time.monotonic() - started
                return FetchResult(target, manifest.size, receiving.moved, receiving.reused, seconds, manifest)
    raise AssertionError


async def _fetch(  # each is a part of the call
    receiving: Receiver,
    manifest: Manifest,
    target: Path,
    seeds: Sequence[Seed],
    partial_file: PartialFile | None,
    *,
    may_replace: bool,
) -> None:
    older = await _scan(target, manifest, receiving)
    if older is not None and older.digest == manifest.digest:
        receiving.note_whole()
        return
    if not may_replace:
        await in_disk_thread(_check_free, target)
    found = [] if older is None else [FileSeed(target, older)]
    with closing(found), _PartialFile(target, manifest, partial_file) as staging:
        await in_disk_thread(staging.open)
        await receiving.reuse(staging, [*found, *seeds], resume=staging.held)
        await in_disk_thread(staging.check_space, receiving.missing_size())
        await receiving.download(staging, partial_file=partial_file)
        if not may_replace:
            await in_disk_thread(_check_free, target)
        await in_disk_thread(staging.publish)


def _check_free(target: Path) -> None:
    """Raises TargetError when something has that name."""
    if os.path.lexists(target):
        reason = "something else stands there, and its name was chosen by whoever stored the file"
        raise TargetError(str(target), f"{reason}; give a target with -o, or --force to replace it")


async def _scan(target: Path, manifest: Manifest, receiving: Receiver) -> Manifest | None:
    """The chunks of the file that stands under the target's name, if one does and can be read."""
    try:
        with await in_disk_thread(FileSource, target, chunking_version=manifest.chunking_version) as source:
            return await receiving.scan(source)
    except SourceError:
        return None


class _PartialFile:
    """The file that becomes the target: a `Sink`. Its methods block: call them in a thread.

    Two processes that fetch the same file to the same target write the same verified bytes at the same offsets of one
    staging file; the one that comes too late starts over, and finds the file.
    """

    file_count = 1
    files_done = 0

    def __init__(self, target: Path, manifest: Manifest, partial_file: PartialFile | None = None) -> None:
        """Touches nothing yet."""
        self._partial_file = partial_file
        self._manifest = manifest
        self.held = False
        """Whether an earlier fetch has left something in it."""
        self._target = target
        # A name of fixed length, since the target's own may have 255 bytes already.
        label = blake3(os.fsencode(target.name)).hexdigest()[:16]
        self._path = target.with_name(f".{manifest.digest.hex()[:32]}-{label}.filestore-partial")
        self._descriptor = -1
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
        """Leave nothing behind of a fetch that was refused. Raises OvertakenError where there is nothing any more.

        Raises OSError, and StorageError where there are no locks.
        """
        self.check_ours()
        if not has_data(self._descriptor, 0, self._manifest.size) and not is_claimed(lock):
            self._path.unlink()

    def open(self) -> None:
        """Find or make the staging file. Raises TargetError, StorageFull, StorageError, OvertakenError."""
        try:
            if not stat.S_ISREG(self._target.stat().st_mode):
                raise TargetError(str(self._target), "what stands there is no regular file")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TargetError(str(self._target), error.strerror or str(error)) from None
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise TargetError(str(self._target), error.strerror or str(error)) from None
        self._lock = FileLock(self._descriptor, self._path, is_required=True)
        claim(self._lock)
        self.check_ours()
        try:
            self.held = os.fstat(self._descriptor).st_size > 0
            os.ftruncate(self._descriptor, self._manifest.size)
            if self._partial_file is not None:
                self._partial_file.begin(self._manifest, self._descriptor)
        except OSError as error:
            raise self._failure(error) from None

    def order(self, offset: int, size: int) -> Ordering | None:  # noqa: ARG002  # the protocol's
        return Ordering.ANY

    def file_at(self, offset: int, size: int) -> int | None:  # noqa: ARG002  # the protocol's
        return 0

    def read_into(self, memory: memoryview, offset: int) -> bool:
        return read_whole(self._descriptor, memory, offset)

    def copy(self, source: ContentRange, offset: int, size: int) -> bool:
        return copy_range(source, self._descriptor, offset, size)

    def take(self, content: memoryview, offset: int, *, is_held: bool = False) -> None:
        try:
            if not is_held:
                write_at(self._descriptor, content, offset)
        except OSError as error:
            raise self._failure(error) from None
        if self._partial_file is not None:
            self._partial_file.took(offset)

    def sync(self) -> None:
        try:
            with span(Stage.SYNC):
                sync_descriptor(self._descriptor)
        except OSError as error:
            raise self._failure(error) from None

    def check_ours(self) -> None:
        """What is published is not written to."""
        try:
            if os.path.samestat(os.fstat(self._descriptor), self._path.stat()):
                return
        except FileNotFoundError:
            pass
        raise OvertakenError

    def check_space(self, size: int) -> None:
        """Raises StorageFull when `size` more bytes cannot fit, before any is fetched."""
        check_space(self._descriptor, size, where=self._target.parent)

    def publish(self) -> None:
        """Make the file durable, then let it appear: after a crash the name never stands for less than the whole (I3)."""
        try:
            with span(Stage.SYNC):
                sync_descriptor(self._descriptor)
            self._path.rename(self._target)
            sync_path(self._target.parent)
        except FileNotFoundError:
            raise OvertakenError from None
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> StorageError:
        """What is full is the folder, what is too large is the file."""
        where = self._target if error.errno == errno.EFBIG else self._target.parent
        return storage_error(str(where), error)
