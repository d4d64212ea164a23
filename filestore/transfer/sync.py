"""Make a stored directory like a folder of this machine, or the folder like the stored directory.

To a name, a sync makes one commit: the tree of the folder, with what is only stored unless that is deleted. To a folder, each
file that differs is fetched next to its place and appears there by one rename (I3), so an interruption leaves no half file, and
the next sync continues. Nothing is read or written through a link in the folder.
"""

from __future__ import annotations

import asyncio
import glob
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from filestore.core.commits import COMMIT_ATTEMPTS, NewCommit, checked_new_commit
from filestore.core.digest import chunk_digest
from filestore.core.names import checked_new_full_name
from filestore.core.progress import Progress, Report, without_repeats
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import (
    ChunksMissing,
    InvalidInput,
    InvalidReference,
    NotAnArchive,
    NotFound,
    ServerError,
    TargetError,
)
from filestore.format.zip.read import DEFAULT_LIMITS, ZipLimits, check_links, link_target
from filestore.format.zip.tree import for_display
from filestore.repository.protocol import Repository, Wanted, checked_repository, find_record, whole_reference_of
from filestore.system.files import given_path, source_error, storage_errors, sync_path, target_error
from filestore.system.owners import usual_mode
from filestore.system.threads import in_disk_thread, task_group
from filestore.transfer.edits import Operation, PutFile, TreeEdit
from filestore.transfer.fetch import fetch_entry, staging_file
from filestore.transfer.fetch_entry import FoundEntry
from filestore.transfer.fetch_tree import fetch_record_tree
from filestore.transfer.folder_comparison import LocalPath, Match, are_equal, extras, has_content, is_own, match, own_paths
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.sources.walk import WalkResult, walk
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree, read_entry

_SMALL = 4 << 20
"""Files of at most this size are fetched several at a time, so that their requests overlap."""
_TOGETHER = 8


class SyncAction(StrEnum):
    """What a sync does to a path of its target.

    ADD: Nothing was there.
    CHANGE: Another file or link was there.
    REMOVE: It is not in the source.
    """

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


class SyncChange(NamedTuple):
    """A file or a link that a sync changes at its target.

    path: Its path in the directory.
    action: What is done.
    size: Bytes of its content; of what is removed, those that it had.
    """

    path: str
    action: SyncAction
    size: int


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync did, or with `plan` would do.

    record: The record that the folder and the name have in common afterwards. None for the plan of a new one.
    changes: What is changed at the target, in the order of the paths.
    bytes_sent: Bytes that were sent: encoded chunks with their headers.
    bytes_received: Bytes that were received.
    seconds: How long it took.
    """

    record: Record | None
    changes: tuple[SyncChange, ...] = field(repr=False)
    bytes_sent: int
    bytes_received: int
    seconds: float


async def sync_to_name(
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

    >>> await sync_to_name(repository, "my_model/", name="team/my-model")

    repository: what `connect` gives.
    path: the folder. A link in it becomes the file that it leads to, and is refused where it leads out of the folder.
    name: the name, with or without an owner. Where nothing is stored under it, this is a push.
    delete: remove what is only stored. Without it, such files stay.
    plan: change nothing, and tell what would be done.
    message, author: what the commit says, as in a push.
    push_cache: what remembers earlier pushes, with `delete`.
    limits: what the stored zip file may ask of this machine.
    report: called with a `Progress`.

    Idempotent: where nothing differs, nothing is committed. Cost: the files of the folder are read once, and those that differ
    twice. An empty folder is stored only with `delete` or a new name.

    Cancellation: nothing is recorded.

    Raises InvalidInput if `path` is not a folder, and without `delete` if a file is in the place of a stored folder, or the other
    way round, and HeadMoved if somebody else commits meanwhile; InvalidReference if the name means a single file; and what `push`
    and `fetch_tree` raise.
    """
    started = time.monotonic()
    root = given_path(path)
    kept_name = checked_new_full_name(name)
    new = checked_new_commit(NewCommit(message, author))
    if not await in_disk_thread(root.is_dir):
        raise InvalidInput(f"{for_display(str(root))} is not a folder; a single file is stored by a push")
    old = await _stored(checked_repository(repository), kept_name, limits)
    # A glob for such names would match a part of a path too.
    left = [glob.escape(path) for path in await in_disk_thread(own_paths, root)]
    if plan or (old is not None and not delete):
        walked = await in_disk_thread(lambda: walk(root, exclude=left))
        changes, operations = await in_disk_thread(_local_changes, walked, old, delete=delete)
        record, sent = None if old is None else old.record, 0
        if operations and not plan and old is not None:
            check = partial(_check_unchanged, walked, {operation.path for operation in operations})
            record, sent = await _edit(repository, old, operations, kept_name, new, check=check, report=report)
        return SyncResult(record, tuple(changes), sent, 0, time.monotonic() - started)
    pushed = await push(
        repository,
        root,
        name=kept_name,
        message=message,
        author=author,
        # What somebody else stored meanwhile is not lost.
        parent="" if old is None else old.commit_id,
        push_cache=push_cache,
        report=report,
        exclude=left,
    )
    tree = await StoredTree.open(repository, pushed.record.digest, name=kept_name, limits=limits)
    changes = await in_disk_thread(_stored_changes, None if old is None else old.tree, tree)
    return SyncResult(pushed.record, tuple(changes), pushed.bytes_sent, 0, time.monotonic() - started)


async def sync_to_folder(
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

    >>> await sync_to_folder(repository, "team/my-model", target="my_model/")

    repository: what `connect` gives.
    wanted: a stored directory, or any stored zip file. A name means its newest version.
    target: the folder. Where nothing is there, this is a fetch. Links in it are not followed: a link in the place of a file is
        replaced, and one in the place of a folder is refused.
    delete: remove what is only in the folder, and what is in the way. Without it, such files stay.
    plan: change nothing, and tell what would be done.
    limits: what the stored zip file may ask of this machine.
    report: called with a `Progress`.

    Idempotent. Cost: the files of the folder are read once. Local files that differ are replaced.

    Cancellation: each file is as it was, or as it is stored; the next sync continues.

    Raises InvalidReference if `wanted` means a single file; TargetError if a file is in the place of a folder, or the other way
    round, without `delete`; and what `fetch` and `fetch_tree` raise.
    """
    started = time.monotonic()
    checked_repository(repository)
    reference = whole_reference_of(wanted)
    root = given_path(target)
    record = await find_record(repository, wanted)
    tree = await _opened(repository, record, str(reference), limits)
    links = await _link_targets(repository, tree)
    is_new = not await in_disk_thread(os.path.lexists, root)
    if not is_new:
        root = await in_disk_thread(_real_folder, root)
    found = await in_disk_thread(_compare, root, tree, links)
    removed = [] if is_new or not delete else await in_disk_thread(lambda: list(extras(root, tree)))
    if found.in_the_way and not delete:
        where = found.in_the_way[0]
        reason = "a folder, a link or a file of another kind is in its place; move it away, or let the sync delete what is extra"
        raise TargetError(str(root / where), reason)
    changes = sorted(
        [*found.changes, *(SyncChange(each.path, SyncAction.REMOVE, each.size) for each in removed if not each.is_folder)]
    )
    received = 0
    if is_new and not plan:
        fetched = await fetch_record_tree(repository, record, target=root, limits=limits, report=report)
        received = fetched.bytes_received
    elif not plan:
        writing = _FolderWriter(repository, record, tree, root, report=report)
        await writing.write(found, removed, links)
        received = writing.bytes_received
    return SyncResult(record, tuple(changes), 0, received, time.monotonic() - started)


class _Stored(NamedTuple):
    """What a name means."""

    record: Record
    tree: StoredTree
    commit_id: str | None
    """None where the repository has no commits."""


async def _stored(repository: Repository, name: str, limits: ZipLimits) -> _Stored | None:
    """Return the directory that is stored under a name, or None if nothing is. Raises InvalidReference for a single file."""
    reference = Reference.of_name(name)
    try:
        record = await repository.record(reference)
    except NotFound:
        return None
    commit_id = None
    with suppress(ServerError):  # an earlier version of the server has no commits
        commit = await repository.find_commit(name)
        record = await repository.record(Reference(id=commit.file_id))
        commit_id = commit.id
    return _Stored(record, await _opened(repository, record, name, limits), commit_id)


async def _opened(repository: Repository, record: Record, name: str, limits: ZipLimits) -> StoredTree:
    try:
        return await StoredTree.open(repository, record.digest, name=record.name, limits=limits)
    except NotAnArchive:
        raise InvalidReference(name, "it is a single file and not a directory; push or fetch it") from None


def _local_changes(walked: WalkResult, old: _Stored | None, *, delete: bool) -> tuple[list[SyncChange], list[PutFile]]:
    """Return what a folder changes in a stored tree, and the operations for that. Raises InvalidInput."""
    changes: list[SyncChange] = []
    operations: list[PutFile] = []
    for place, entry in enumerate(walked.entries):
        stored = None if old is None else old.tree.entry(entry.name)
        if old is not None and not delete:
            _check_kinds(old.tree, entry.name, stored, is_folder=entry.is_folder)
        if entry.is_folder:
            continue
        path = walked.path(place)
        if stored is not None and stored.kind is EntryKind.FILE and old is not None:
            is_like = (stored.size, stored.is_executable) == (entry.size, entry.is_executable)
            with storage_errors(path, translate=source_error):
                if is_like and has_content(path, old.tree, stored):
                    continue
        is_there = stored is not None and stored.kind is not EntryKind.FOLDER
        changes.append(SyncChange(entry.name, SyncAction.CHANGE if is_there else SyncAction.ADD, entry.size))
        operations.append(PutFile(entry.name, Path(path), is_executable=entry.is_executable))
    if delete and old is not None:
        names = {entry.name for entry in walked.entries if not entry.is_folder}
        changes += [
            SyncChange(each.path, SyncAction.REMOVE, each.size)
            for each in old.tree.entries(recursive=True)
            if each.kind is not EntryKind.FOLDER and each.path not in names
        ]
    return sorted(changes), operations


def _check_kinds(tree: StoredTree, path: str, stored: StoredEntry | None, *, is_folder: bool) -> None:
    """Raise InvalidInput if a stored file is where the folder has a folder, or the other way round."""
    if stored is not None and is_folder is not (stored.kind is EntryKind.FOLDER):
        raise InvalidInput(f"{for_display(path)!r} is stored as a {stored.kind.value}; move it away, or sync with deletion")
    if stored is None:
        while path := path.rpartition("/")[0]:
            found = tree.entry(path)
            if found is not None:
                return _check_kinds(tree, path, found, is_folder=True)
    return None


def _stored_changes(old: StoredTree | None, new: StoredTree) -> list[SyncChange]:
    """Return what is different between two stored trees."""
    changes: list[SyncChange] = []
    for entry in new.entries(recursive=True):
        before = None if old is None else old.entry(entry.path)
        if entry.kind is EntryKind.FOLDER:
            continue
        if old is None or before is None or before.kind is EntryKind.FOLDER:
            changes.append(SyncChange(entry.path, SyncAction.ADD, entry.size))
        elif not are_equal(old, before, new, entry):
            changes.append(SyncChange(entry.path, SyncAction.CHANGE, entry.size))
    for entry in () if old is None else old.entries(recursive=True):
        after = new.entry(entry.path)
        if entry.kind is not EntryKind.FOLDER and (after is None or after.kind is EntryKind.FOLDER):
            changes.append(SyncChange(entry.path, SyncAction.REMOVE, entry.size))
    return sorted(changes)


def _check_unchanged(walked: WalkResult, names: Collection[str]) -> None:
    """Raise SourceChanged if one of these files is not as the walk found it: an edit reads its file without this check."""
    for place, entry in enumerate(walked.entries):
        if entry.name in names:
            path = walked.path(place)
            with storage_errors(path, translate=source_error):
                found = os.lstat(path)
            walked.states.check(place, found, path)


async def _edit(
    repository: Repository,
    old: _Stored,
    operations: Sequence[Operation],
    name: str,
    new: NewCommit,
    *,
    check: Callable[[], None],
    report: Report | None,
) -> tuple[Record, int]:
    """Store and commit the edited tree, after a call of `check` in a thread. Return the record, and how many bytes were sent.

    Raises HeadMoved, and what `check` raises.
    """
    edit = TreeEdit(repository, old.tree, operations, name=name, size_limit=(await repository.identity()).upload_limit)
    sent = 0
    for attempt in count(1):
        result = await edit.store(report=report)
        sent += result.bytes_sent
        await in_disk_thread(check)
        try:
            # With its parent: what somebody else stored meanwhile is not lost.
            commit = new._replace(parent=old.commit_id)
            return await repository.commit(result.manifest.encoded, name=name, kind=Kind.DIRECTORY, commit=commit), sent
        except ChunksMissing:
            if attempt == COMMIT_ATTEMPTS:
                raise
    raise AssertionError


@dataclass(slots=True)
class _Found:
    """How a folder differs from a stored tree."""

    changes: list[SyncChange] = field(default_factory=list)
    files: list[StoredEntry] = field(default_factory=list)
    links: list[StoredEntry] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """What is fetched, and made."""
    in_the_way: list[str] = field(default_factory=list)
    """Paths at which something of another kind is."""


def _compare(root: Path, tree: StoredTree, links: dict[str, str]) -> _Found:
    """Blocks. Raises TargetError for a name that a fetch uses itself, and SourceUnreadable."""
    found = _Found()
    blocked = ""
    """The latest folder that is not one here: nothing in it is looked at, because it may be a link."""
    for entry in tree.entries(recursive=True):
        if any(map(is_own, entry.path.split("/"))):
            raise TargetError(str(root / entry.path), "a fetch keeps what has arrived under such a name; fetch it as a zip file")
        if blocked and entry.path.startswith(blocked):
            state = Match.ABSENT
        else:
            state = match(root / entry.path, tree, entry, target=links.get(entry.path))
        if state is Match.SAME:
            continue
        if state is Match.OTHER_KIND:
            found.in_the_way.append(entry.path)
        if entry.kind is EntryKind.FOLDER:
            if state is Match.OTHER_KIND:
                found.changes.append(SyncChange(entry.path, SyncAction.REMOVE, _size_of(root / entry.path)))
            found.folders.append(entry.path)
            blocked = blocked if blocked and entry.path.startswith(blocked) else f"{entry.path}/"
            continue
        action = SyncAction.ADD if state is Match.ABSENT else SyncAction.CHANGE
        found.changes.append(SyncChange(entry.path, action, entry.size))
        (found.links if entry.kind is EntryKind.LINK else found.files).append(entry)
    return found


def _size_of(path: Path) -> int:
    with storage_errors(path, translate=source_error):
        return path.lstat().st_size


async def _link_targets(repository: Repository, tree: StoredTree) -> dict[str, str]:
    """Return the target of each stored link. Raises InvalidArchive if one of them leads out of the tree."""
    targets = {}
    for entry in tree.entries(recursive=True):
        if entry.kind is EntryKind.LINK and entry.member_number is not None:
            content = b"".join([piece async for piece in read_entry(repository, tree, entry)])
            targets[entry.path] = link_target(tree.members[entry.member_number], content)
    check_links(tree.members, targets)
    return targets


def _real_folder(root: Path) -> Path:
    """Return the folder that the user named, without links. Raises TargetError if it is not a folder."""
    with storage_errors(root, translate=target_error):
        if not root.is_dir():
            raise TargetError(str(root), "it is not a folder; give the folder that is to be like the stored directory")
        return root.resolve()


class _FolderWriter:
    """Writes what differs into a folder."""

    def __init__(self, repository: Repository, record: Record, tree: StoredTree, root: Path, *, report: Report | None) -> None:
        self._repository = repository
        self._record = record
        self._tree = tree
        self._root = root
        self._report = report and without_repeats(report)
        self._total = self._count = self._done = self._read = self._ended = 0
        self.bytes_received = 0

    async def write(self, found: _Found, removed: Sequence[LocalPath], links: dict[str, str]) -> None:
        """Make the folder like the tree. What is extra is removed last, unless it is in the way."""
        self._total, self._count = sum(entry.size for entry in found.files), len(found.files)
        self._tell()
        prefixes = tuple(f"{path}/" for path in found.in_the_way)
        first = [each for each in removed if each.path.startswith(prefixes)]
        first += [LocalPath(path, 0, is_folder=False) for path in found.in_the_way]
        await in_disk_thread(self._remove, first)
        for path in found.folders:
            await in_disk_thread(self._make_folder, path)
        await self._fetch_all(found.files)
        for entry in found.links:
            await in_disk_thread(self._make_link, entry.path, links[entry.path])
        await in_disk_thread(self._remove, [each for each in removed if not each.path.startswith(prefixes)])

    async def _fetch_all(self, entries: Sequence[StoredEntry]) -> None:
        places = asyncio.Semaphore(_TOGETHER)
        async with task_group() as group:
            for entry in entries:
                await places.acquire()
                fetching = group.create_task(self._fetch(entry))
                fetching.add_done_callback(lambda _: places.release())
                if entry.size > _SMALL:
                    # Its own parts are received side by side.
                    await fetching

    async def _fetch(self, entry: StoredEntry) -> None:
        before = Progress(0, 0, 0, 0, 0)

        def add(progress: Progress) -> None:
            nonlocal before
            self._done += progress.done - before.done
            self._read += progress.shared - before.shared
            self.bytes_received += progress.moved - before.moved
            before = progress
            self._tell()

        path = self._root / entry.path
        await in_disk_thread(self._prepare, entry.path)
        found = FoundEntry(str(self._record.full_name), self._tree, entry)
        result = await fetch_entry(self._repository, self._record, found, target=path, force=True, report=add)
        await in_disk_thread(self._set_executable, path, is_executable=entry.is_executable)
        add(Progress(entry.size, entry.size, result.bytes_received, before.shared, 0))
        self._ended += 1
        self._tell()

    def _prepare(self, path: str) -> None:
        """Check that a file can be written to a path without following a link. Blocks. Raises TargetError."""
        self._check_parents(path)
        with storage_errors(self._root / path, translate=target_error):
            if (self._root / path).is_symlink():
                (self._root / path).unlink()

    def _check_parents(self, path: str) -> None:
        at = self._root
        for part in path.split("/")[:-1]:
            at /= part
            with storage_errors(at, translate=target_error):
                if not stat.S_ISDIR(at.lstat().st_mode):
                    raise TargetError(str(at), "a link or a file is in the place of a folder, and nothing is written through it")

    def _make_folder(self, path: str) -> None:
        self._check_parents(path)
        with storage_errors(self._root / path, translate=target_error):
            (self._root / path).mkdir(exist_ok=True)
            sync_path((self._root / path).parent)

    def _make_link(self, path: str, target: str) -> None:
        self._check_parents(path)
        link = self._root / path
        staged = staging_file(link, chunk_digest(target.encode()))
        with storage_errors(link, translate=target_error):
            staged.unlink(missing_ok=True)
            staged.symlink_to(target)
            staged.rename(link)
            sync_path(link.parent)

    def _set_executable(self, path: Path, *, is_executable: bool) -> None:
        with storage_errors(path, translate=target_error):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                if bool(mode & stat.S_IXUSR) is not is_executable:
                    with suppress(PermissionError):  # some file systems have no permissions
                        os.fchmod(descriptor, usual_mode(0o777) if is_executable else mode & ~0o111)
            finally:
                os.close(descriptor)

    def _remove(self, paths: Iterable[LocalPath]) -> None:
        """Remove files, links and empty folders. A folder in which something is by now stays. Blocks. Raises TargetError."""
        for each in paths:
            path = self._root / each.path
            self._check_parents(each.path)
            with storage_errors(path, translate=target_error), suppress(FileNotFoundError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    with suppress(OSError):
                        path.rmdir()
                else:
                    path.unlink()

    def _tell(self) -> None:
        if self._report is not None:
            done = min(self._done, self._total)
            self._report(Progress(self._total, done, self.bytes_received, self._read, 0, self._count, self._ended))
