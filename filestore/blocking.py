"""Every verb of filestore without asyncio, for scripts and notebooks.

>>> from filestore import blocking as filestore
>>> with filestore.connect("http://127.0.0.1:8080", token="...") as repository:
...     pushed = filestore.push(repository, "my_model/")
...     filestore.fetch_tree(repository, pushed.record, target="/models/my_model")

The names are those of `filestore`, and so are arguments, results and errors. A call returns when its transfer has ended.

Event loop: a process has one event loop for all calls, in a thread of its own that the first call starts, called
"filestore-loop". So a call also works where another event loop runs in the thread of the caller, as in a notebook.

Threads: any number of threads may make calls at the same time, also with one repository or one cache.

Progress: a `report` callback is called in the thread "filestore-loop". It must return soon, and must not make calls of this
module, which raise BlockingCallRefused there. An exception that it raises ends the transfer, and is raised by the call.

Ctrl-C: where KeyboardInterrupt (or another exception of a signal handler) is raised during a call, the call cancels its
transfer, waits until that has ended cleanly, and raises the exception. A second Ctrl-C does not wait.

Fork: a forked child has an event loop of its own, which its first call starts. What the parent has opened can be used in the
child as docs/runtime.md says: a server and a cache work, an open folder raises UsedAfterFork.

What nobody has closed is closed when nothing refers to it any more, as Python does with files, or at the end of the program.

End of the program: what is open is closed. Before that, the calls that ordinary threads have in progress are finished,
and those of daemon threads are cancelled. Later calls raise BlockingCallRefused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Never, Self
from weakref import finalize

import filestore.cache
from filestore import backends, errors
from filestore.backends import STALL_SECONDS
from filestore.cache import CachedPath, ResolveResult
from filestore.cache.cache import Resolvable
from filestore.cache.options import DEFAULT_CACHE_OPTIONS, CacheOptions
from filestore.core.commits import MAIN, Commit, Label, LabelKind
from filestore.core.digest import Digest
from filestore.core.links import Link
from filestore.core.progress import Progress, Report
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, FileURL, Reference
from filestore.download.download import DEFAULT_DOWNLOAD_LIMITS, DownloadLimits
from filestore.errors import BlockingCallRefused, FilestoreError
from filestore.format.codec import Codec
from filestore.format.tensors import Tensor
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits
from filestore.repository import protocol
from filestore.repository.protocol import FreedContent, Usage, VersionPage, Wanted, find_record
from filestore.system.loop_thread import Block, close_at_end, has_ended, run
from filestore.system.rate_limit import RateLimit
from filestore.system.retries import RETRY_SECONDS
from filestore.transfer import copy as _copy
from filestore.transfer import diff as _diff
from filestore.transfer import fetch as _fetch
from filestore.transfer import fetch_tree as _fetch_tree
from filestore.transfer import push as _push
from filestore.transfer import stored_tensors as _stored_tensors
from filestore.transfer import sync as _sync
from filestore.transfer.copy import CopyPlan, CopyResult
from filestore.transfer.diff import Difference, FileDifference
from filestore.transfer.diff_tensors import TensorDifference
from filestore.transfer.fetch import FetchResult
from filestore.transfer.fetch_tree import FetchTreeResult
from filestore.transfer.local_seeds import SeedSource
from filestore.transfer.push import PlannedEntry, PushPlan, PushResult
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.walk import Symlinks
from filestore.transfer.sync import SyncAction, SyncChange, SyncResult

__all__ = [
    "Cache",
    "CachedPath",
    "Codec",
    "Commit",
    "CopyPlan",
    "CopyResult",
    "Difference",
    "Digest",
    "Directory",
    "DownloadLimits",
    "FetchResult",
    "FetchTreeResult",
    "File",
    "FileDifference",
    "FileURL",
    "FilestoreError",
    "Kind",
    "Label",
    "LabelKind",
    "PlannedEntry",
    "Progress",
    "PushCache",
    "PushPlan",
    "PushResult",
    "Record",
    "Reference",
    "Repository",
    "ResolveResult",
    "StreamingFile",
    "Symlinks",
    "SyncAction",
    "SyncChange",
    "SyncResult",
    "Tensor",
    "TensorDifference",
    "TensorFile",
    "ZipLimits",
    "connect",
    "copy",
    "diff",
    "errors",
    "fetch",
    "fetch_tree",
    "open_tensors",
    "plan_copy",
    "plan_push",
    "push",
    "sync_to_folder",
    "sync_to_name",
]

_RECORDS_AT_ONCE = 500
"""Records that are taken from the event loop together."""


def connect(
    url: str | Path | Sequence[str],
    *,
    index: str | None = None,
    token: str | None = None,
    connections: int | None = None,
    processes: int | None = None,
    transfer_memory: int | None = None,
    stall_seconds: float = STALL_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
    create: bool = False,
    read_only: bool = False,
    proxy: str | None = None,
    tls_client_cert: str | Path | None = None,
    tls_client_key: str | Path | None = None,
    min_free: int | None = None,
    presigned_reads: bool = True,
    limit_rate: int | RateLimit | None = None,
    peers: str | Sequence[str] | None = None,
) -> Repository:
    """Open the repository at `url`, a server or a folder of this machine.

    >>> with connect("http://127.0.0.1:8080", token="...") as repository:
    ...     push(repository, "model.safetensors")

    The arguments are those of `filestore.connect`. The end of the `with` block closes the repository. In a notebook, where one
    repository is used in many cells, leave out `with`, and call `repository.close()` at the end.

    Raises what `filestore.connect` raises: InvalidUrl, InvalidSetting, NotARepository, UnknownFormat, StorageError, Busy; and
    BlockingCallRefused.
    """
    return Repository(
        Block(
            lambda: backends.connect(
                url,
                index=index,
                token=token,
                connections=connections,
                processes=processes,
                transfer_memory=transfer_memory,
                stall_seconds=stall_seconds,
                retry_seconds=retry_seconds,
                create=create,
                read_only=read_only,
                proxy=proxy,
                tls_client_cert=tls_client_cert,
                tls_client_key=tls_client_key,
                min_free=min_free,
                presigned_reads=presigned_reads,
                limit_rate=limit_rate,
                peers=peers,
            )
        )
    )


def push(
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

    >>> push(repository, "my_model/", exclude=["*.tmp"]).record.id

    Arguments, cost and the state after a cancellation are those of `filestore.push`. `report` is called in the thread
    "filestore-loop".

    Raises what `filestore.push` raises, such as SourceUnreadable, StorageError and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(
        lambda: _push.push(
            inner,
            path,
            name=name,
            message=message,
            author=author,
            branch=branch,
            parent=parent,
            push_cache=push_cache,
            rehash=rehash,
            codec=codec,
            report=report,
            symlinks=symlinks,
            include=include,
            exclude=exclude,
        )
    )


def plan_push(
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

    >>> plan_push(repository, "my_model/").bytes_new

    Arguments and cost are those of `filestore.plan_push`. `report` is called in the thread "filestore-loop".

    Raises what `filestore.plan_push` raises, such as SourceUnreadable and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(
        lambda: _push.plan_push(
            inner,
            path,
            push_cache=push_cache,
            rehash=rehash,
            report=report,
            symlinks=symlinks,
            include=include,
            exclude=exclude,
        )
    )


def fetch(
    repository: Repository,
    wanted: Wanted,
    *,
    target: str | Path,
    force: bool = False,
    seeds: Sequence[SeedSource] = (),
    report: Report | None = None,
) -> FetchResult:
    """Write a stored file to the path `target`, every byte verified.

    >>> fetch(repository, "model.safetensors", target="/models/model.safetensors").bytes_received

    Arguments, cost and the state after a cancellation are those of `filestore.fetch`. `report` is called in the thread
    "filestore-loop".

    Raises what `filestore.fetch` raises, such as NotFound, TargetError and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(lambda: _fetch.fetch(inner, wanted, target=target, force=force, seeds=seeds, report=report))


def fetch_tree(
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

    >>> fetch_tree(repository, "my_model.zip", target="/models/my_model").file_count

    Arguments, cost and the state after a cancellation are those of `filestore.fetch_tree`. `report` is called in the thread
    "filestore-loop".

    Raises what `filestore.fetch_tree` raises, such as NotFound, InvalidArchive, TargetError and TransferError; and
    BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(
        lambda: _fetch_tree.fetch_tree(inner, wanted, target=target, force=force, seeds=seeds, limits=limits, report=report)
    )


def diff(
    repository: Repository,
    old: Wanted | Path,
    *,
    new: Wanted | Path,
    push_cache: PushCache | None = None,
    report: Report | None = None,
    symlinks: Symlinks | str = Symlinks.INSIDE,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: ZipLimits = DEFAULT_LIMITS,
) -> Difference:
    """Compare two stored files or directories, or one of them with a path of this machine.

    >>> for file in diff(repository, "my_model.zip@~1", new=Path("my_model")).files:
    ...     print(file.status, file.path, file.bytes_new)

    The arguments are those of `filestore.diff`.

    Raises what `filestore.diff` raises, such as NotFound, SourceUnreadable and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(
        lambda: _diff.diff(
            inner,
            old,
            new=new,
            push_cache=push_cache,
            report=report,
            symlinks=symlinks,
            include=include,
            exclude=exclude,
            limits=limits,
        )
    )


def copy(
    repository: Repository,
    wanted: Wanted,
    *,
    to: Repository | None = None,
    name: str | None = None,
    message: str | None = None,
    author: str = "",
    all_versions: bool = False,
    report: Report | None = None,
) -> CopyResult:
    """Copy a stored file or directory to another repository, and send only the chunks that are missing there.

    >>> copy(repository, "team/my_model@v2", to=backup).bytes_sent

    Arguments, cost and the state after a cancellation are those of `filestore.copy`. `report` is called in the thread
    "filestore-loop".

    Raises what `filestore.copy` raises, such as NotFound, DamagedChunk and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    target = None if to is None else _inner(to)
    return run(
        lambda: _copy.copy(
            inner,
            wanted,
            to=target,
            name=name,
            message=message,
            author=author,
            all_versions=all_versions,
            report=report,
        )
    )


def plan_copy(
    repository: Repository,
    wanted: Wanted,
    *,
    to: Repository | None = None,
    name: str | None = None,
    all_versions: bool = False,
    report: Report | None = None,
) -> CopyPlan:
    """Tell what a copy would send. This is the dry run of `copy`: it sends and records nothing.

    >>> plan_copy(repository, "team/my_model@v2", to=backup).bytes_new

    Arguments and cost are those of `filestore.plan_copy`. `report` is called in the thread "filestore-loop".

    Raises what `filestore.plan_copy` raises, such as NotFound and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    target = None if to is None else _inner(to)
    return run(lambda: _copy.plan_copy(inner, wanted, to=target, name=name, all_versions=all_versions, report=report))


def sync_to_name(
    repository: Repository,
    path: str | Path,
    *,
    name: str,
    delete: bool = False,
    plan: bool = False,
    message: str = "",
    author: str = "",
    push_cache: PushCache | None = None,
    limits: ZipLimits = DEFAULT_LIMITS,
    report: Report | None = None,
) -> SyncResult:
    """Make the directory that is stored under a name like a folder, by one commit. Only what is missing there is sent.

    >>> sync_to_name(repository, "my_model/", name="team/my-model").bytes_sent

    Arguments, cost and the state after a cancellation are those of `filestore.sync_to_name`. `report` is called in the thread
    "filestore-loop".

    Raises what `filestore.sync_to_name` raises, such as InvalidInput, HeadMoved and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(
        lambda: _sync.sync_to_name(
            inner,
            path,
            name=name,
            delete=delete,
            plan=plan,
            message=message,
            author=author,
            push_cache=push_cache,
            limits=limits,
            report=report,
        )
    )


def sync_to_folder(
    repository: Repository,
    wanted: Wanted,
    *,
    target: str | Path,
    delete: bool = False,
    plan: bool = False,
    limits: ZipLimits = DEFAULT_LIMITS,
    report: Report | None = None,
) -> SyncResult:
    """Make a folder like a stored directory. Only files that differ are received, every byte verified.

    >>> sync_to_folder(repository, "team/my-model", target="my_model/").bytes_received

    Arguments, cost and the state after a cancellation are those of `filestore.sync_to_folder`. `report` is called in the thread
    "filestore-loop".

    Raises what `filestore.sync_to_folder` raises, such as NotFound, TargetError and TransferError; and BlockingCallRefused.
    """
    inner = _inner(repository)
    return run(lambda: _sync.sync_to_folder(inner, wanted, target=target, delete=delete, plan=plan, limits=limits, report=report))


def open_tensors(
    source: Repository | str | Path, wanted: Wanted | None = None, *, limits: ZipLimits = DEFAULT_LIMITS
) -> TensorFile:
    """Read which tensors a safetensors or GGUF file has. Their data is read when it is asked for.

    >>> weights = open_tensors(repository, "my_model.zip:model.safetensors")
    >>> weights = open_tensors(cache.resolve("my_model.zip:model.safetensors"))

    The arguments are those of `filestore.open_tensors`.

    Raises what `filestore.open_tensors` raises, such as InvalidTensors, NotFound and TransferError; and BlockingCallRefused.
    """
    inner = source if isinstance(source, str | Path) else _inner(source)
    return TensorFile(run(lambda: _stored_tensors.open_tensors(inner, wanted, limits=limits)), source)


class TensorFile:
    """The tensors of a safetensors or GGUF file. `open_tensors` gives it.

    It needs no closing, and can be used as long as the repository is open that it was opened from. Any number of threads may
    read from it.
    """

    def __init__(self, inner: _stored_tensors.TensorFile, source: object) -> None:
        """Use `open_tensors`."""
        self.name = inner.name
        """What errors call it: a reference, or a path of this machine."""
        self.format = inner.format
        """`safetensors` or `gguf`."""
        self.size = inner.size
        """Bytes of the file."""
        self.data_offset = inner.data_offset
        """Bytes of the file before the data of the tensors."""
        self.tensors: Mapping[str, Tensor] = inner.tensors
        """Each `Tensor` by its name, in the order of their data in the file."""
        self.metadata: Mapping[str, str] = inner.metadata
        """What the header says besides, as text. Of a list and a long text it has the size."""
        self._inner = inner
        self._source = source  # it is closed where nobody has it any more

    def read(self, name: str) -> bytearray:
        """Return the data of one tensor, verified: its bytes in the file, little-endian, in memory of its own.

        Raises what `filestore.TensorFile.read` raises, such as EntryNotFound and TransferError; and BlockingCallRefused.
        """
        return run(lambda: self._inner.read(name))

    def read_all(self, names: Iterable[str] | None = None) -> Iterator[tuple[Tensor, bytearray]]:
        """Yield each tensor with its data, or each of `names`, in the order of the file. Each chunk is received once.

        Raises what `read` raises.
        """
        tensors = self._inner.read_all(names)
        try:
            while found := run(lambda: anext(tensors, None)):
                yield found
                del found  # while the next one arrives
        finally:
            run(tensors.aclose)


class Repository:
    """An open repository, which `connect` returns. It ends with its `with` block, with `close`, or with the program.

    Any number of threads may use it at the same time.
    """

    def __init__(self, block: Block[protocol.Repository]) -> None:
        """Use `connect`. Raises what `connect` raises."""
        self._block = block
        self._opened = block.enter()
        self._is_closed = False
        # Where nobody closes it and nobody uses it any more, as with a cell of a notebook that is run again.
        finalize(self, block.let_go).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Never:
        raise TypeError(f"{self.location}: an open repository cannot be sent to another process; open it there by connect()")

    def __repr__(self) -> str:
        return f"<filestore.blocking.Repository {self.location}>"

    @property
    def location(self) -> str:
        """What a user calls it: a URL, or the path of a folder."""
        return self._opened.location

    @property
    def inner(self) -> protocol.Repository:
        """The repository of the event loop, for the functions of this module. Raises BlockingCallRefused where it is closed."""
        if self._is_closed:
            raise BlockingCallRefused(f"the repository {self.location} was closed; open it again by connect")
        return self._opened

    def record(self, wanted: Wanted) -> Record:
        """Return the newest record that a name, an id, a digest, a stored path, a `File` or a `Directory` names.

        Raises InvalidReference, NotFound, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: find_record(inner, wanted))

    def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        """Return records from the newest down; with `before`, those with an earlier `updated_at`, for the next page.

        Raises StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.records(limit=limit, before=before))

    def iter_records(self) -> Iterator[Record]:
        """Yield all records, the newest first, as they are at the first step, also if some are stored again meanwhile.

        Memory does not grow with their number.

        Raises StorageError, StorageFull, TransferError, BlockingCallRefused.
        """
        records = self.inner.iter_records()

        async def some() -> list[Record]:
            found: list[Record] = []
            async for record in records:
                found.append(record)
                if len(found) == _RECORDS_AT_ONCE:
                    break
            return found

        try:
            while found := run(some):
                yield from found
        finally:
            run(records.aclose)

    def sign(self, file_id: str) -> str:
        """Return a path below the server's URL at which any HTTP client can read a record's bytes without a token.

        The path holds for a time that the server sets, a day by default.

        Raises NotFound, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.sign(file_id))

    def make_link(self, file_id: str, *, seconds: float) -> Link:
        """Make a link to a record: a signed URL that lasts `seconds`, is listed, and can be revoked.

        Its `path` is below the server's URL, and is not told again. It ends no later than the token by which this repository
        was opened.

        Raises NotFound, InvalidInput, LimitExceeded, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.make_link(file_id, seconds=seconds))

    def links(self) -> list[Link]:
        """Return the links that are valid, the oldest first. Raises StorageError, TransferError, BlockingCallRefused."""
        inner = self.inner
        return run(inner.links)

    def revoke_link(self, link_id: str) -> Link:
        """End a link. Return it. Raises NotFound, StorageError, TransferError, BlockingCallRefused."""
        inner = self.inner
        return run(lambda: inner.revoke_link(link_id))

    def versions(
        self,
        wanted: Wanted,
        *,
        limit: int = 1000,
        before: int | None = None,
        keep_last: int | None = None,
        older_than_seconds: float | None = None,
    ) -> VersionPage:
        """Return all versions of a name, or all records of a digest, from the newest down.

        With `before`, return those that follow the record with this `updated_at`, for the next page. With `keep_last` or
        `older_than_seconds`, return only the versions that are neither among the newest nor too young.

        Raises InvalidReference, NotFound, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(
            lambda: inner.versions(wanted, limit=limit, before=before, keep_last=keep_last, older_than_seconds=older_than_seconds)
        )

    def find_commit(self, name: str, revision: str | None = None) -> Commit:
        """Return the commit of a name that a revision means. Without a revision, it is the newest one of `main`.

        Raises NotFound, RevisionNotFound, InvalidReference, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.find_commit(name, revision))

    def history(self, name: str, *, revision: str | None = None, limit: int = 1000, before: int | None = None) -> list[Commit]:
        """Return at most `limit` commits of a name, from that of `revision` back to the first one.

        With `before`, return only commits whose number is smaller, for the next page.

        Raises NotFound, RevisionNotFound, InvalidReference, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.history(name, revision=revision, limit=limit, before=before))

    def labels(self, name: str) -> list[Label]:
        """Return the tags and branches of a name, in the order of their names. `main` is not among them.

        Raises NotFound, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.labels(name))

    def set_label(
        self, name: str, label: str, *, kind: LabelKind = LabelKind.TAG, revision: str | None = None, force: bool = False
    ) -> Label:
        """Give the commit that `revision` means a tag or a branch. `force` moves one that is there.

        Raises NotFound, RevisionNotFound, InvalidReference, InvalidInput for a text that cannot be a label, LabelExists,
        LimitExceeded, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.set_label(name, label, kind=kind, revision=revision, force=force))

    def remove_label(self, name: str, label: str) -> Label:
        """Remove a tag or a branch, and return it. The commits stay.

        Raises NotFound, RevisionNotFound, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.remove_label(name, label))

    def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        """Return what a collection can free after the removal of these records.

        Raises DamagedRecord, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.freed_by(file_ids))

    def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        """Measure what the repository takes on disk, and which names take the most.

        Raises StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(lambda: inner.usage(grace_seconds=grace_seconds, name_limit=name_limit))

    def remove(
        self,
        file_id: str,
        *,
        with_chunks: bool = False,
        force: bool = False,
        updated_at: int | None = None,
        unless_newest: bool = False,
    ) -> Record:
        """Remove a record, and return it. `with_chunks` also removes its chunks that no other record needs.

        They stay while the collection of the namespace is held. `force` removes the record also if a pipeline needs it. With
        `updated_at`, it is removed only if nobody has stored it again since that time, and with `unless_newest` only if a
        newer version of its name exists.

        Raises NotFound, RecordChanged, FileInUse, DamagedRecord, StorageError, TransferError, BlockingCallRefused.
        """
        inner = self.inner
        return run(
            lambda: inner.remove(
                file_id, with_chunks=with_chunks, force=force, updated_at=updated_at, unless_newest=unless_newest
            )
        )

    def close(self) -> None:
        """Close files and connections. Another call does nothing. No other method may be called afterwards.

        Raises StorageError, BlockingCallRefused.
        """
        was_closed, self._is_closed = self._is_closed, True
        if self._block.is_ours:
            self._block.leave()
        elif not was_closed:
            # The connections that a forked child has made for its parent's repository are its own.
            run(self._opened.close)


class Cache:
    """Keep files and directories of one repository on this machine, as verified local paths.

    >>> with Cache("/var/cache/models", repository, size_limit=200 << 30) as cache:
    ...     path = cache.resolve(File(id="file_..."))
    ...     with cache.lease(Directory(id="file_...")) as folder:
    ...         ...

    The arguments are those of `filestore.Cache`. Any number of threads and processes may use a cache at the same time.
    """

    def __init__(
        self,
        root: str | Path,
        repository: Repository,
        *,
        limits: ZipLimits = DEFAULT_LIMITS,
        downloads: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
        size_limit: int | None = None,
        min_free: int = 0,
        options: CacheOptions = DEFAULT_CACHE_OPTIONS,
    ) -> None:
        """Make a cache; no file is touched yet. Raises InvalidSetting for a `~` without a home folder."""
        self._repository = repository  # it is closed where nobody has it any more
        self._inner = filestore.cache.Cache(
            root,
            _inner(repository),
            limits=limits,
            downloads=downloads,
            size_limit=size_limit,
            min_free=min_free,
            options=options,
        )
        close_at_end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the use of all paths that this cache gave, so that they may be removed. Another call does nothing.

        The repository stays open. Raises BlockingCallRefused.
        """
        if not has_ended():
            run(self._inner.close)

    async def close_in_loop(self) -> None:
        """Do what `close` does, at the end of the program; its hook calls this in the event loop."""
        await self._inner.close()

    def resolve(self, wanted: Resolvable, *, report: Report | None = None) -> Path:
        """Return the path of a whole, verified file, or of the tree that a zip file unpacks to. Do not write to it.

        The path stays until the cache is closed. Everything else is as in `filestore.Cache.resolve`.

        Raises what `filestore.Cache.resolve` raises, such as NotFound, CacheFull and TransferError; and BlockingCallRefused.
        """
        return run(lambda: self._inner.resolve(wanted, report=report))

    def resolved(self, wanted: Resolvable, *, report: Report | None = None) -> ResolveResult:
        """Do what `resolve` does, and tell what it cost. Where calls share one fetch, only the call that began it has the cost.

        Raises what `filestore.Cache.resolve` raises, such as NotFound, CacheFull and TransferError; and BlockingCallRefused.
        """
        return run(lambda: self._inner.resolved(wanted, report=report))

    def cached(self, wanted: Resolvable) -> CachedPath | None:
        """Return what the cache has, or None. No network is used, except to ask an unknown repository who it is.

        Such a path may be removed at any time: only `resolve` and `lease` keep what they give.

        Raises InvalidReference, StorageError, UnknownFormat, TransferError, BlockingCallRefused.
        """
        return run(lambda: self._inner.cached(wanted))

    @contextmanager
    def lease(self, wanted: Resolvable, *, report: Report | None = None) -> Iterator[Path]:
        """Do what `resolve` does, for the length of a `with` block: its end allows the cache to remove the path.

        Raises what `filestore.Cache.resolve` raises, such as NotFound, CacheFull and TransferError; and BlockingCallRefused.
        """
        with Block(lambda: self._inner.lease(wanted, report=report)) as path:
            yield path

    @contextmanager
    def open(self, wanted: File | Record | str, *, report: Report | None = None) -> Iterator[StreamingFile]:
        """Open a file that can be read before all of it is on this machine, for the length of a `with` block.

        >>> with cache.open(File(id="file_...")) as opened:
        ...     header = opened.read(0, 8)

        Ranges that are read are fetched first. The rest of the file is fetched in the background. Without an error, the block
        ends when the whole file is in the cache. An exception in the block stops the fetch. Where the fetch fails, a read in the
        block raises its error, and so does the end of the block.

        Raises what `filestore.Cache.resolve` raises, such as NotFound, CacheFull and TransferError; and BlockingCallRefused.
        """
        block = Block(lambda: self._inner.open(wanted, report=report))
        with block as opened:
            yield StreamingFile(block, opened)


class StreamingFile:
    """A file of a cache whose ranges can be read while the rest of it is fetched. `Cache.open` gives it.

    Any number of threads may read at the same time. All bytes that are read were verified.
    """

    def __init__(self, block: Block[filestore.cache.StreamingFile], inner: filestore.cache.StreamingFile) -> None:
        """Use `Cache.open`."""
        self._block = block
        self._inner = inner

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._inner.size

    def read(self, start: int, stop: int) -> bytearray:
        """Return the bytes from `start` up to and without `stop`. Chunks of them that are missing are fetched first.

        Raises InvalidRange where the range is not inside the file; what the fetch raises; StorageError, UsedAfterFork,
        BlockingCallRefused.
        """
        return self._block.run(lambda: self._inner.read(start, stop))

    def read_into(self, memory: memoryview, start: int) -> None:
        """Fill `memory` with the bytes from `start` on, as `read` returns them.

        Raises what `read` raises, such as InvalidRange and StorageError.
        """
        self._block.run(lambda: self._inner.read_into(memory, start))

    def whole(self) -> Path:
        """Wait until the whole file is in the cache, and return its path, as `Cache.resolve` does.

        Raises what the fetch raises, such as TransferError; UsedAfterFork, BlockingCallRefused.
        """
        return self._block.run(self._inner.whole)


def _inner(repository: Repository) -> protocol.Repository:
    if not isinstance(repository, Repository):
        raise BlockingCallRefused(
            "the repository was not opened by filestore.blocking, and so belongs to another event loop;"
            " open it by filestore.blocking.connect"
        )
    return repository.inner
