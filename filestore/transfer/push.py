"""Push a file or directory: read it, cut it into chunks, and send the chunks that the repository does not have.

A window of the content is read and cut in one thread, and hashed in another thread while the next window is read. The chunks
that the repository does not have are then encoded and put. Windows may overtake one another; only the manifest has an order.

A large push has worker processes: see `send_window`. They scan the regions of a file that can be divided. Of other content, this
process reads and cuts the windows. It remembers what was asked for, counts what has moved, and commits.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from filestore.core.batches import batched_by_size
from filestore.core.commits import COMMIT_ATTEMPTS, MAIN, PLAIN_COMMIT, NewCommit, checked_new_commit
from filestore.core.digest import DIGEST_AND_NUMBER, Digest, chunk_digest
from filestore.core.manifest import Manifest
from filestore.core.names import archive_name, checked_new_full_name
from filestore.core.progress import Progress, Report, without_repeats
from filestore.core.records import Kind, Record
from filestore.errors import (
    ChunksMissing,
    InvalidDigest,
    InvalidInput,
    InvalidName,
    InvalidReference,
    LimitExceeded,
    ServerError,
    SourceChanged,
    SourceUnreadable,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import Codec
from filestore.format.zip.checksum import crc32
from filestore.repository.protocol import Identity, Repository, checked_repository
from filestore.system.buffers import BufferPool
from filestore.system.files import given_path
from filestore.system.threads import cpu_threads, in_cpu_thread, in_disk_thread, in_stoppable_thread, task_group
from filestore.transfer.parallelism import Parallelism, limits_of, push_parallelism
from filestore.transfer.send_window import ChunkSender, SendRegion, SendWindow
from filestore.transfer.sources.file import (
    FIRST_WINDOW_SIZE,
    WINDOW_SIZE,
    Content,
    FileSource,
    Hashed,
    Origin,
    Region,
    Source,
    Window,
    scan_and_hash,
)
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.stream import StreamSource
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, checked_symlinks, walk
from filestore.transfer.tree_seed import tree_tail
from filestore.transfer.workers import Job, WorkerPool, worker_pool

WINDOWS_IN_FLIGHT = 3
"""The windows of a push that does not follow the cores. One window is read, the repository is asked about the second one, and the
third one is encoded. There are as many buffers of frames. A window is free as soon as it is encoded."""
ASKED_LIMIT = 1 << 18
"""The number of chunks that a push remembers as asked for. To ask again costs less than to remember more of them
(I6)."""
_ASKED_AT_ONCE = 1 << 16
"""Chunks of an unchanged file that the repository is asked about in one request."""

_JOB_MIN = 4 << 20
"""A window with fewer bytes of content is not worth a message to a worker process."""
_ONE_PROCESS = Parallelism(processes=0, slots=WINDOWS_IN_FLIGHT)


class Place(NamedTuple):
    """The position of a chunk in the source, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did.

    record: The record that was made, or that was there already. Its `id` is what a fetch asks for.
    bytes_sent: Bytes that were sent: compressed chunks with their headers.
    bytes_shared: Bytes of content that were not sent, because the repository had them or this push had sent them
        already.
    bytes_read: Bytes of content that were read from the disk. A push cache makes this 0 for an unchanged file.
    file_count: Number of files: those of a directory, or 1.
    seconds: How long the push took.
    """

    record: Record
    bytes_sent: int
    bytes_shared: int
    bytes_read: int
    file_count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """One file of a `PushPlan`.

    name: The name of the file, or its path inside the directory that is pushed.
    size: Bytes of content. A file in a directory is counted with its headers in the zip.
    bytes_new: Bytes of these that lie in chunks which the repository does not have.
    """

    name: str
    size: int
    bytes_new: int


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would do.

    digest: The digest that the record would have.
    size: Bytes of content: those of the file, or those of the zip that a directory is stored as.
    entries: The file, or each file of the directory, in the order of the zip.
    bytes_new: Bytes of content that the push would send. They are compressed first, so that fewer go over the
        network.
    bytes_shared: Bytes of content that the repository has already.
    bytes_read: Bytes of content that were read from the disk for this plan.
    seconds: How long the plan took.
    """

    digest: Digest
    size: int
    entries: tuple[PlannedEntry, ...] = field(repr=False)
    bytes_new: int
    bytes_shared: int
    bytes_read: int
    seconds: float


async def push(
    repository: Repository,
    path: str | Path,
    *,
    name: str | None = None,
    message: str = "",
    author: str = "",
    branch: str = MAIN,
    parent: str | None = None,
    push_cache: PushCache | None = None,
    rehash: bool = False,
    codec: Codec | str | None = None,
    report: Report | None = None,
    symlinks: Symlinks | str = Symlinks.INSIDE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> PushResult:
    """Store the file or directory at `path` in a repository, and send only the chunks that the repository does not have.

    >>> result = await push(repository, "my_model/", exclude=["*.tmp"])
    >>> result.record.id

    A directory is stored as the zip of its tree, `my_model.zip` for `my_model`, and its record has the kind "directory".

    repository: what `connect` gives.
    path: a file or a directory of this machine. A file must not change during the push.
    name: the name of the record, without `@` and `:`. It may have an owner, `OWNER/NAME`. The default is the name of the file, or
        that of the directory with `.zip` after it.
    message: what the commit of this version says, at most 2048 bytes.
    author: who the commit is by, at most 255 bytes. A server takes the label of the token instead.
    branch: the branch of the name on which the commit is made. One other than "main" must exist.
    parent: the id of the commit that must be the newest of the branch, so that nothing is lost which somebody else commits
        meanwhile. An empty text means that there must be none. The default, None, is any.
    push_cache: what remembers earlier pushes. What has not changed since its last push to this repository is then not read.
    rehash: read everything, whatever the push cache says.
    codec: one codec for all chunks: a `Codec`, or "raw", "zstd", "planes2+zstd" or "planes4+zstd". The default, None or "auto",
        picks the best codec for each chunk.
    report: called with a `Progress` at each step, in the thread of the event loop.
    symlinks: what becomes of the symbolic links in a directory: a `Symlinks`, or "inside", "follow", "keep" or "refuse". For a
        file, only the default is accepted.
    include, exclude: a glob or a list of globs for paths inside a directory, such as `*.safetensors`; a `*` also matches `/`.
        Only files that match one of `include` are taken (all files where there is none), and none that matches one of `exclude`.
        They are refused for a file.

    Cost: each byte is read and hashed once; with worker processes, it is read a second time from the memory of the system. Memory
    is bounded, whatever the size: about 200 MiB on two cores, and the limit that `connect` was given on many. A second push of
    the same content sends no chunks and gives the same record.

    Cancellation: nothing is recorded. The chunks that were sent stay, and the next push does not send them again.

    Raises SourceUnreadable, SourceChanged, SourceRefused or NothingMatches where `path` cannot be pushed; InvalidName or
    InvalidInput where another argument is wrong; NotFound or RevisionNotFound where the branch does not exist; HeadMoved where
    `parent` is not its newest commit; OwnerTaken; LimitExceeded; StorageError, StorageFull, ReadOnly or Busy where a repository
    in a folder cannot be written; Unauthorized or TransferError where a server refuses or cannot be reached.

    Source: W. Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems", IEEE TPDS
    31(9), 2020, for where content is cut; BLAKE3 specification, for digests. The whole format is docs/format.md.
    """
    path = given_path(path)
    chosen = checked_codec(codec)
    started = time.monotonic()
    new = checked_new_commit(NewCommit(message, author, branch, parent))
    kept_name = checked_new_full_name(await in_disk_thread(default_name, path) if name is None else name)
    identity = await checked_repository(repository).identity()
    await check_at_repository(repository, kept_name, branch=branch)
    async with _opened_source(
        path, identity, push_cache, rehash=rehash, symlinks=symlinks, include=include, exclude=exclude
    ) as source:
        _check_size(source, identity)
        # Only what worker processes can take: not what is known, and not the small files of a tree.
        parallelism = push_parallelism(source.located_size(_JOB_MIN), limits_of(repository), file_count=source.file_count)
        sending = _Sender(repository, source, codec=chosen, report=report, parallelism=parallelism)
        async with worker_pool(
            repository, count=parallelism.processes, slots=parallelism.slots, modules=[SendWindow.__module__]
        ) as pool:
            await sending.send_all(pool)
        manifest = await in_cpu_thread(source.manifest)
        if source.cached_size:
            await sending.send_lost(manifest)
        kind = Kind.DIRECTORY if isinstance(source, TreeSource) else Kind.FILE
        record = await _commit(sending, manifest, kept_name, kind, new)
        if push_cache is not None:
            fingerprint = await in_cpu_thread(source.fingerprint)
            if fingerprint:
                await in_disk_thread(push_cache.record, identity, path, manifest, fingerprint, opened_at=source.opened_at)
    read = source.read + sending.read_again
    return PushResult(record, sending.moved, sending.shared, read, source.file_count, time.monotonic() - started)


async def check_at_repository(repository: Repository, name: str, *, branch: str) -> None:
    """Raise the error of a commit for its name and its branch, before anything is sent."""
    if branch != MAIN or "/" in name:
        # Only these can be refused for what the repository knows, and a question costs a round trip.
        await repository.check_new_name(name, branch=branch)


async def send(repository: Repository, content: Content, *, threads: Executor | None = None, report: Report | None = None) -> int:
    """Send the chunks of `content` that the repository does not have, and record nothing. Return how many bytes were sent.

    It starts where the scan of `content` is: chunks that were scanned before are not sent. It is scanned in `threads`, if its
    scan waits for more than a file, and otherwise in those for work of the processor. `report` is called as by a push.

    Raises SourceUnreadable, StorageError, TransferError.
    """
    sending = _Sender(repository, content, codec=None, report=report, threads=threads)
    await sending.send_all()
    return sending.moved


async def send_and_commit(repository: Repository, content: Content, *, name: str, kind: Kind = Kind.FILE) -> Record:
    """Send as `send` does, then record the whole `content` with the name `name`. What is a directory, the caller knows.

    Raises what `send` raises, and SourceChanged, InvalidName, InvalidManifest, LimitExceeded.
    """
    return (await push_content(repository, content, name=name, kind=kind)).record


async def push_content(
    repository: Repository,
    content: Content,
    *,
    name: str,
    kind: Kind = Kind.FILE,
    commit: NewCommit = PLAIN_COMMIT,
    codec: Codec | None = None,
    report: Report | None = None,
    parallelism: Parallelism = _ONE_PROCESS,
    threads: Executor | None = None,
) -> PushResult:
    """Store `content` with the name `name`, as `push` does with a path. `threads` is as in `send`.

    Raises what `send_and_commit` raises, and SourceUnreadable for a stream without any bytes.
    """
    started = time.monotonic()
    sending = _Sender(repository, content, codec=codec, report=report, parallelism=parallelism, threads=threads)
    await sending.send_all()
    if isinstance(content, StreamSource) and not content.size:
        reason = "no bytes arrived, so that what should have written to it has most likely failed"
        raise SourceUnreadable(str(content.path), f"{reason}; to store an empty file, push a file that is empty")
    manifest = await in_cpu_thread(content.manifest)
    record = await _commit(sending, manifest, name, kind, commit)
    seconds = time.monotonic() - started
    return PushResult(record, sending.moved, sending.shared, content.read + sending.read_again, content.file_count, seconds)


async def plan_push(
    repository: Repository,
    path: str | Path,
    *,
    push_cache: PushCache | None = None,
    rehash: bool = False,
    report: Report | None = None,
    symlinks: Symlinks | str = Symlinks.INSIDE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> PushPlan:
    """Tell what a push of `path` would send, file by file. This is the dry run of `push`: it sends and records nothing.

    >>> plan = await plan_push(repository, "my_model/")
    >>> print(f"{plan.bytes_new} of {plan.size} bytes are new")

    The arguments are those of `push`.

    Cost: each byte is read and hashed once, as by a push. The server is asked once which chunks it does not have.

    Cancellation: nothing is left.

    Raises what `push` raises, except what only a write can raise.
    """
    path = given_path(path)
    started = time.monotonic()
    identity = await checked_repository(repository).identity()
    async with _opened_source(
        path, identity, push_cache, rehash=rehash, symlinks=symlinks, include=include, exclude=exclude
    ) as source:
        _check_size(source, identity)
        manifest = await _scan_all(source, report)
        missing = set(await repository.missing(list(dict.fromkeys(chunk.digest for chunk in manifest.chunks))))
        entries = await in_cpu_thread(_planned, source, manifest, frozenset(missing))
    new = sum({chunk.digest: chunk.size for chunk in manifest.chunks if chunk.digest in missing}.values())
    seconds = time.monotonic() - started
    return PushPlan(manifest.digest, manifest.size, tuple(entries), new, manifest.size - new, source.read, seconds)


@asynccontextmanager
async def scanned_source(
    path: Path,
    identity: Identity,
    *,
    push_cache: PushCache | None = None,
    report: Report | None = None,
    symlinks: Symlinks | str = Symlinks.INSIDE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> AsyncIterator[tuple[FileSource | TreeSource, Manifest]]:
    """Give the file or directory that a push would send, open for a block, and the manifest that it would commit.

    Raises what `push` raises because of its source.
    """
    async with _opened_source(
        path, identity, push_cache, rehash=False, symlinks=symlinks, include=include, exclude=exclude
    ) as source:
        yield source, await _scan_all(source, report)


def _check_size(source: FileSource | TreeSource, identity: Identity) -> None:
    """Raise LimitExceeded before anything is sent, if the repository would refuse the file at the end."""
    if identity.upload_limit is not None and source.size > identity.upload_limit:
        raise LimitExceeded("the file's size in bytes", source.size, identity.upload_limit, "upload_limit")


async def manifest_of(
    path: Path,
    *,
    chunking_version: int = CHUNKING_VERSION,
    report: Report | None = None,
    symlinks: Symlinks | str = Symlinks.INSIDE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Manifest:
    """Return the manifest that a push of `path` would commit. Its digest is the file digest. No repository is asked.

    Raises SourceUnreadable, SourceChanged, SourceRefused, NothingMatches, InvalidName, LimitExceeded.
    """
    with ExitStack() as stack:
        source = await in_disk_thread(
            _open_source,
            stack,
            path,
            chunking_version,
            is_remembered=False,
            symlinks=symlinks,
            include=include,
            exclude=exclude,
        )
        return await _scan_all(source, report)


async def packed_tree(path: Path, *, chunking_version: int) -> tuple[Manifest, bytes]:
    """Return the manifest of the zip file that a push of a directory makes, and the zip's bytes from its central directory on.

    Links are kept. Raises SourceUnreadable, SourceChanged, SourceRefused, LimitExceeded.
    """
    with ExitStack() as stack:
        walked = await in_disk_thread(walk, path, symlinks=Symlinks.KEEP)
        tree = stack.enter_context(
            await in_cpu_thread(partial(TreeSource, chunking_version=chunking_version, is_remembered=False), walked)
        )
        manifest = await _scan_all(tree, None)
        return manifest, await in_cpu_thread(tree_tail, tree)


def _open_source(
    stack: ExitStack,
    path: Path,
    chunking_version: int,
    *,
    is_remembered: bool,
    symlinks: Symlinks | str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> FileSource | TreeSource:
    """Open the file or directory to push. `stack` closes it, also if the caller is cancelled and never receives it."""
    if path.is_dir():
        walked = walk(path, symlinks=symlinks, include=include, exclude=exclude)
        return stack.enter_context(TreeSource(walked, chunking_version=chunking_version, is_remembered=is_remembered))
    if path.exists():
        if include or exclude:
            raise InvalidInput(f"{path} is not a directory; include and exclude are only for directories")
        if checked_symlinks(symlinks) is not Symlinks.INSIDE:
            raise InvalidInput(f"{path} is not a directory; symlinks={str(symlinks)!r} is only for directories")
    return stack.enter_context(FileSource(path, chunking_version=chunking_version, is_remembered=is_remembered))


def checked_codec(codec: Codec | str | None) -> Codec | None:
    """Return the codec for all chunks, or None for the best codec of each chunk. Raises InvalidInput."""
    if codec is None or isinstance(codec, Codec) or codec == "auto":
        return codec if isinstance(codec, Codec) else None
    for known in Codec:
        if codec == _codec_name(known):
            return known
    raise InvalidInput(f"{codec!r} is not a codec; give one of auto, {', '.join(map(_codec_name, Codec))}")


def _codec_name(codec: Codec) -> str:
    """Return the name of a codec that users write, such as "planes2+zstd"."""
    return codec.name.lower().replace("_", "+")


def default_name(path: Path) -> str:
    """Return the default name of the record for `path`. For `.` and `..`, it is made from the real name of the folder.

    It may be a name that a new record must not have: see `checked_new_name`. Raises InvalidName.
    """
    if not path.is_dir():
        return path.name
    folder = path.name if path.name not in {"", ".."} else path.resolve().name
    if not folder:
        raise InvalidName("", "the root of the file system has no name; give one", hint="choose-name")
    return archive_name(folder)


@asynccontextmanager
async def _opened_source(
    path: Path,
    identity: Identity,
    push_cache: PushCache | None,
    *,
    rehash: bool,
    symlinks: Symlinks | str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> AsyncIterator[FileSource | TreeSource]:
    """Open the file or directory to push. Content that `push_cache` knows is not read again, unless `rehash` is set.

    `identity` is the identity of the repository, which the push cache needs.
    """
    with ExitStack() as stack:
        source = await in_disk_thread(
            _open_source,
            stack,
            path,
            identity.chunking_version,
            is_remembered=push_cache is not None,
            symlinks=symlinks,
            include=include,
            exclude=exclude,
        )
        cached = await in_disk_thread(push_cache.find, identity, source.path) if push_cache is not None and not rehash else None
        if cached is not None:
            await in_cpu_thread(source.load_fingerprint, cached)
        yield source


async def _scan_all(source: Source, report: Report | None) -> Manifest:
    async with BufferPool(count=1, size=WINDOW_SIZE).take() as buffer:
        while not source.is_finished:
            await in_cpu_thread(scan_and_hash, source, buffer)
            if report is not None:
                done = min(source.size, source.read + source.cached_size)
                report(Progress(source.size, done, 0, 0, source.read, source.file_count, source.files_done))
    await in_cpu_thread(source.check_unchanged)
    return await in_cpu_thread(source.manifest)


def _planned(source: Source, manifest: Manifest, missing: frozenset[Digest]) -> list[PlannedEntry]:
    """Count the bytes of each entry that are in missing chunks.

    Entries and chunks are both in the order of their offsets.
    """
    chunks = zip(manifest.offsets(), manifest.chunks, strict=True)
    offset, end, is_new = 0, 0, False
    entries = []
    for name, start, stop in source.spans():
        new = 0
        at = start
        while at < stop:
            while end <= at:
                offset, chunk = next(chunks)
                end, is_new = offset + chunk.size, chunk.digest in missing
            until = min(stop, end)
            new += (until - at) * is_new
            at = until
        entries.append(PlannedEntry(name, stop - start, new))
    return entries


async def _commit(sending: _Sender, manifest: Manifest, name: str, kind: Kind, new: NewCommit = PLAIN_COMMIT) -> Record:
    for attempt in count(1):
        # A source that changed meanwhile is not recorded: its chunks may come from two versions.
        await in_cpu_thread(sending.source.check_unchanged)
        try:
            return await sending.repository.commit(manifest.encoded, name=name, kind=kind, commit=new)
        except ChunksMissing as error:
            if attempt == COMMIT_ATTEMPTS:
                raise
            try:
                missing = {Digest.parse(text) for text in error.digests}
            except (InvalidDigest, TypeError):
                # I4: a server says this.
                reason = "it names missing chunks by texts that are not digests"
                raise ServerError(sending.repository.location, HTTPStatus.CONFLICT, reason) from None
            if attempt == 1 and missing.difference(chunk.digest for chunk in manifest.chunks):
                continue  # a bit may have flipped on the way: ask once more
            if error.is_full:
                # Only `missing` names all of them. Otherwise, each commit would bring as many as an error may list.
                await sending.send_missing(manifest)
            else:
                await sending.send_again(manifest, missing)
    raise AssertionError


class _Sender:
    """The state of one push: its counters, its buffers, and the chunks that it has asked the repository about."""

    def __init__(
        self,
        repository: Repository,
        source: Content,
        *,
        codec: Codec | None,
        report: Report | None,
        parallelism: Parallelism = _ONE_PROCESS,
        threads: Executor | None = None,
    ) -> None:
        self.repository = repository
        self.source = source
        self._threads = cpu_threads() if threads is None else threads
        self.moved = 0
        self.read_again = 0
        self._shared = 0
        self._sent = self._under_way = self._done = 0
        self._report = report and without_repeats(report)
        self._asked: set[bytes] = set()
        self._codec = codec
        self._slots = parallelism.slots
        self._cutters = 0
        self._cutter_limit = parallelism.cutters
        self._region_limit = source.size // (2 * parallelism.processes or 1)
        # With worker processes, this process sends only what they do not: until they are ready, and small windows.
        own = WINDOWS_IN_FLIGHT if parallelism.processes else parallelism.slots
        self._windows = BufferPool(count=max(own, parallelism.cutters), size=parallelism.slot_size)
        self._sender = ChunkSender(repository, codec=codec, count=own, size=parallelism.slot_size)
        self._jobs = asyncio.Semaphore(parallelism.processes * parallelism.slots + parallelism.cutters)
        """A worker process reads a window again, which must still be in the memory of the system."""

    @property
    def shared(self) -> int:
        """Bytes of content that were not sent. What the source knows from an earlier push may become more with each scan."""
        return self._shared + self.source.cached_size

    async def send_all(self, pool: WorkerPool | None = None) -> None:
        """Read the source once, and send the chunks that the repository does not have."""
        self.report_progress()
        self._cutters = 1
        async with task_group() as group:
            await self._cut(group, pool)

    async def _cut(self, group: asyncio.TaskGroup, pool: WorkerPool | None) -> None:
        """Read and cut the source, beside other tasks that do this as far as it permits, and send the windows in `group`."""
        source, wanted = self.source, self._cutter_limit
        while not source.is_finished and self._cutters <= source.scan_limit(wanted):
            if pool is not None and self._is_next_shared(pool):
                await self._share_region(group, pool)
                continue
            buffer = await self._windows.acquire()
            if pool is not None and self._is_next_shared(pool):
                # They became ready meanwhile: all windows may have waited for this process to encode them.
                self._windows.release(buffer)
                continue
            has_workers = pool is not None and pool.is_ready
            memory = buffer if source.read else buffer[:FIRST_WINDOW_SIZE]
            stop = source.stop if isinstance(source, StreamSource) else _stop_nothing
            own, shared = await in_stoppable_thread(self._threads, stop, _scanned, source, memory, has_workers=has_workers)
            self.report_progress()
            if own:
                group.create_task(self._send_windows(own, buffer))
            else:
                self._windows.release(buffer)
            if pool is not None:
                for each in shared:
                    await self._jobs.acquire()
                    group.create_task(self._send_by_worker(each, pool))
            while self._cutters < source.scan_limit(wanted):
                self._cutters += 1
                group.create_task(self._cut(group, pool))
        self._cutters -= 1

    def _is_next_shared(self, pool: WorkerPool) -> bool:
        """Return whether what comes next is a region for a worker process."""
        if not isinstance(self.source, FileSource) or not pool.is_ready:
            return False
        self.source.share_regions(self._region_limit)
        return self.source.is_next_shared

    async def _share_region(self, group: asyncio.TaskGroup, pool: WorkerPool) -> None:
        """Give the next region, if there is still one, to a worker process that has time for it."""
        await self._jobs.acquire()
        source = self.source
        if isinstance(source, FileSource) and (region := source.next_region()) is not None:
            group.create_task(self._send_region(source, region, pool))
        else:
            self._jobs.release()

    async def send_again(self, manifest: Manifest, digests: set[Digest]) -> None:
        """Read these chunks of the source again, and send them. Raises SourceChanged if their content has changed."""
        async with self._windows.take() as buffer:
            for batch in batched_by_size(_placed(manifest, digests), lambda each: each[1].size, limit=WINDOW_SIZE):
                pieces = await in_cpu_thread(self._read_chunks, batch, buffer)
                size = sum(len(piece) for _, piece in pieces)
                self.read_again += size
                self._shared = max(-self.source.cached_size, self._shared - size)
                await self._send_chunks(pieces)

    async def send_lost(self, manifest: Manifest) -> None:
        """Ask about the chunks that were not read because the push cache knows them, and send those that are missing.

        The repository looks at the frames of the others. A commit looks only at their rows.
        """
        await self._send_missing(manifest, self._asked)

    async def send_missing(self, manifest: Manifest) -> None:
        """Ask about all chunks, also those that were asked about before, and send those that are missing."""
        await self._send_missing(manifest, frozenset())

    async def _send_missing(self, manifest: Manifest, asked: Collection[bytes]) -> None:
        chunks = iter(manifest.chunks)
        while part := list(islice(chunks, _ASKED_AT_ONCE)):
            unasked = dict.fromkeys(chunk.digest for chunk in part if chunk.digest not in asked)
            missing = await self.repository.missing(list(unasked)) if unasked else []
            if missing:
                await self.send_again(manifest, set(missing))

    def report_progress(self) -> None:
        """Call `report` with the progress of the push."""
        if self._report is not None:
            source = self.source
            # Frames in flight count with their encoded bytes. The bar does not move back when a retry starts again.
            self._done = max(self._done, min(source.size, self._sent + self.shared + self._under_way))
            self._report(
                Progress(
                    source.size,
                    self._done,
                    self.moved,
                    self.shared,
                    source.read,
                    source.file_count,
                    source.files_done,
                    is_total_known=source.is_finished or not isinstance(source, StreamSource),
                )
            )

    async def _send_windows(self, windows: list[Window], buffer: memoryview) -> None:
        """Send the missing chunks of the windows in `buffer`. The buffer is released as soon as they are encoded."""
        with ExitStack() as stack:
            stack.callback(self._windows.release, buffer)
            pieces, size = self._new(await in_cpu_thread(_hash, windows))
            missing = await self.repository.missing(list(pieces)) if pieces else []
            self._shared += size - sum(len(pieces[digest]) for digest in missing)
            self.report_progress()
            if missing:
                await self._send_chunks([(digest, pieces[digest]) for digest in missing], encoded=stack.close)

    def _new(self, chunks: list[tuple[Digest, memoryview]]) -> tuple[dict[Digest, memoryview], int]:
        """Return the chunks that this push has not asked the repository about yet, and the size of all `chunks`."""
        pieces = {digest: piece for digest, piece in chunks if digest not in self._asked}
        size = sum(len(piece) for _, piece in chunks)
        self._note_asked(pieces)
        return pieces, size

    def _note_asked(self, digests: Collection[bytes]) -> None:
        if len(self._asked) + len(digests) > ASKED_LIMIT:
            self._asked.clear()
        self._asked.update(digests)

    async def _send_by_worker(self, shared: _SharedWindow, pool: WorkerPool) -> None:
        """Let a worker process read a window again, and send its missing chunks. The memory of the window is not used."""
        window, origin, checksum = shared
        with ExitStack() as stack:
            stack.callback(self._jobs.release)
            descriptor = await in_disk_thread(_open_origin, origin, stack)
            job = SendWindow(origin.path, origin.offset, window.sizes, checksum, codec=self._codec, slots=self._slots)
            await self._run_job(pool, job, descriptor, size=sum(window.sizes), answer=partial(self._answer_window, window))

    async def _send_region(self, source: FileSource, region: Region, pool: WorkerPool) -> None:
        """Let a worker process scan a region, and send its missing chunks."""

        def answer(hashed: Hashed) -> list[int]:
            source.take_hashed(region, hashed)
            return self._new_places(hashed.packed)

        with ExitStack() as stack:
            stack.callback(self._jobs.release)
            descriptor = source.open_again()
            stack.callback(os.close, descriptor)
            job = SendRegion(region, codec=self._codec, slots=self._slots)
            await self._run_job(pool, job, descriptor, size=region.size, answer=answer)

    async def _run_job(
        self, pool: WorkerPool, job: Job[int], descriptor: int, *, size: int, answer: Callable[[Any], list[int]]
    ) -> None:
        """Let a worker process send `size` bytes of content."""
        moved = 0

        def count_moved(size: int) -> None:
            nonlocal moved
            moved += size
            self._count_moved(size)

        sent = await pool.run(job, descriptors=[descriptor], moved=count_moved, answer=answer)
        self._under_way -= moved
        self._sent += sent
        self._shared += size - sent
        self.report_progress()

    def _answer_window(self, window: Window, packed: bytes) -> list[int]:
        """Take the packed chunks of a window from a worker process. Return as `_new_places` does."""
        window.fill(packed)
        return self._new_places(packed)

    def _new_places(self, packed: bytes) -> list[int]:
        """Return the places of those packed chunks that the repository must be asked about."""
        digests = [digest for digest, _ in DIGEST_AND_NUMBER.iter_unpack(packed)]
        places = {digest: place for place, digest in enumerate(digests) if digest not in self._asked}
        self._note_asked(places)
        return list(places.values())

    async def _send_chunks(self, pieces: list[tuple[Digest, memoryview]], *, encoded: Callable[[], None] = lambda: None) -> None:
        """Encode and put chunks. `encoded` is called as soon as the memory of `pieces` is no longer needed."""
        size = sum(len(piece) for _, piece in pieces)
        stored_size = await self._sender.send(pieces, moved=self._count_moved, encoded=encoded)
        self._under_way -= stored_size
        self._sent += size
        self.report_progress()

    def _read_chunks(self, chunks: list[tuple[Digest, Place]], buffer: memoryview) -> list[tuple[Digest, memoryview]]:
        pieces = []
        start = 0
        for digest, (offset, size) in chunks:
            piece = buffer[start : start + size]
            self.source.read_into(piece, offset)
            if chunk_digest(piece) != digest:
                raise SourceChanged(str(self.source.path), f"the bytes at offset {offset} have changed")
            pieces.append((digest, piece))
            start += size
        return pieces

    def _count_moved(self, size: int) -> None:
        self.moved += size
        self._under_way += size
        self.report_progress()


class _SharedWindow(NamedTuple):
    """A window for a worker process."""

    window: Window
    origin: Origin
    checksum: int
    """The CRC-32 of its content. What is read again must be the same."""


def _scanned(source: Content, buffer: memoryview, *, has_workers: bool) -> tuple[list[Window], list[_SharedWindow]]:
    """Scan, and return the windows for the process of the caller and those for worker processes."""
    own, shared = [], []
    for window in source.scan(buffer):
        if has_workers and window.origin is not None and len(window.content) >= _JOB_MIN:
            shared.append(_SharedWindow(window, window.origin, crc32(window.content)))
        else:
            own.append(window)
    return own, shared


def _stop_nothing() -> None:
    """A scan of a file ends soon by itself."""


def _open_origin(origin: Origin, stack: ExitStack) -> int:
    """Open the file of a window. `stack` closes it, also if the caller is cancelled and never receives it."""
    descriptor = origin.open()
    stack.callback(os.close, descriptor)
    return descriptor


def _hash(windows: list[Window]) -> list[tuple[Digest, memoryview]]:
    return [chunk for window in windows for chunk in window.hash()]


def _placed(manifest: Manifest, digests: set[Digest]) -> Iterator[tuple[Digest, Place]]:
    """Yield each of `digests` with its place in the source, and remove it from the set.

    Raises InvalidReference at the end if the manifest does not have all of them.
    """
    for offset, chunk in zip(manifest.offsets(), manifest.chunks, strict=True):
        if chunk.digest in digests:
            digests.remove(chunk.digest)
            yield chunk.digest, Place(offset, chunk.size)
    if digests:
        raise InvalidReference(str(manifest.digest), "the repository asks for chunks that its manifest does not name")
