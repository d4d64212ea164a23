"""Restore a repository from a backup: into a new folder, or over a folder that has lost its index.

The file `restoring` in the folder keeps every other program from opening it, from before the first change until after
the last one. It stays if the restore is interrupted; the same restore then completes it. The old files of an index are
renamed and never removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filestore.core.records import parse_json
from filestore.errors import Busy, NotABackup, NotARepository
from filestore.repository.folder import (
    CONTENT_NAMES,
    FORMAT_NAME,
    INDEX_NAME,
    INDEX_STAGING,
    LAST_COMMIT_NAME,
    LOG_NAMES,
    RESERVE_NAME,
    RESTORING_NAME,
    RUNTIME_DATABASES,
    TMP_NAME,
    TURN_NAMES,
)
from filestore.repository.index.last_commit import LastCommit
from filestore.repository.index.protocol import IndexVersion
from filestore.repository.index.sqlite import open_index
from filestore.repository.index.tasks import select_version
from filestore.repository.maintenance.backup import (
    FACTS_NAME,
    MARK_NAME,
    backups_in,
    copy_sqlite_file,
    lock_for_restore,
    read_facts,
)
from filestore.repository.maintenance.content import ContentCounts, DamagedFile, complete
from filestore.repository.maintenance.hold import Hold, hold_collection
from filestore.repository.stores.disk import open_store, store_for_reading
from filestore.system.files import (
    is_atomic_staging,
    make_folder,
    remove_if_possible,
    storage_errors,
    sync_path,
    write_atomic,
    write_error,
)
from filestore.system.locks import FileLock
from filestore.system.sqlite_errors import sqlite_errors
from filestore.system.threads import in_disk_thread, shield_until_done

_KNOWN_NAMES = frozenset(
    {
        *CONTENT_NAMES,
        FORMAT_NAME,
        INDEX_NAME,
        LAST_COMMIT_NAME,
        RESTORING_NAME,
        RESERVE_NAME,
        TMP_NAME,
        "runtime",
        "lost+found",
        *LOG_NAMES,
        *TURN_NAMES,
    }
)
_UPLOADS = "uploads-"
_STAGING = re.compile(r"\.sqlite\.[0-9a-f]{16}(?:-wal|-shm|-journal)?\Z")
_SQLITE_LOCKS = (0x40000000, 512)
"""The first byte and the number of the bytes that SQLite locks in a database.

Source: https://www.sqlite.org/fileformat.html, section 1.3.1 (the lock-byte page).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A repository that was restored."""

    root: Path
    backup: Path
    has_content: bool
    """Whether the backup has content."""
    counts: ContentCounts
    """What the repository has now."""
    set_aside: tuple[Path, ...]
    """The old files of the index, and of the databases of runtimes, under their new names."""

    holds: tuple[Hold, ...]
    """Where the folder has manifests without a record. Files that were stored after the backup are among them."""

    @property
    def damaged(self) -> list[DamagedFile]:
        """The records that are not whole: the folder has not all of their chunks."""
        return self.counts.damaged


async def restore(source: Path, root: Path, *, rate: int | None = None, counts: ContentCounts | None = None) -> Restored:
    """Restore the backup in the folder `source` to the folder `root`, which no process may have open.

    `source` is a target of backups, whose newest backup is taken, or one backup in it. `root` is a new or an empty
    folder, or the folder of the same repository. Content that is there stays and is used. Content that is missing there
    is copied, if the backup has it; the rows of other chunks are removed, so that a push sends these chunks.

    Raises NotABackup, NotARepository if `root` is the folder of something else, Busy if a process has it open or makes a
    backup to `source`, StorageError, StorageFull.
    """
    lock = await in_disk_thread(lock_for_restore, source)
    try:
        return await _restore(source, root, rate=rate, counts=counts)
    finally:
        if lock is not None:
            lock.release()


async def _restore(source: Path, root: Path, *, rate: int | None, counts: ContentCounts | None) -> Restored:
    backup = await in_disk_thread(find_backup, source)
    root = await in_disk_thread(root.absolute)
    facts = await in_disk_thread(read_facts, backup)
    counts = ContentCounts() if counts is None else counts
    held = await in_disk_thread(_enter, root, str(facts["repository_id"]))
    try:
        path = root / f"{INDEX_NAME}.{secrets.token_hex(8)}"
        try:
            await in_disk_thread(copy_sqlite_file, backup / INDEX_NAME, path, rate=rate)
            content = store_for_reading(backup.parent.parent) if facts["has_content"] else None
            store = await open_store(root)
            try:
                index = await open_index(path)
                try:
                    await complete(store, index, source=content, counts=counts, rate=rate)
                    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts["made_at"] / 1_000_000))
                    held_namespaces = await hold_collection(store, index, reason=f"a backup of {moment} was restored")
                finally:
                    await index.close()
            finally:
                await shield_until_done(store.close())
            set_aside = await in_disk_thread(_put_in_place, backup, root, path, held.stamp)
        finally:
            for part in (path.name, *(f"{path.name}-{end}" for end in ("wal", "shm", "journal"))):
                await in_disk_thread(remove_if_possible, root / part)
    finally:
        held.release()
    return Restored(
        root=root,
        backup=backup,
        has_content=bool(facts["has_content"]),
        counts=counts,
        set_aside=tuple(set_aside),
        holds=tuple(held_namespaces),
    )


class _Held:
    """The locks that keep other processes out of a folder while it is restored."""

    def __init__(self, stack: ExitStack, stamp: str) -> None:
        self.stamp = stamp
        self._stack = stack

    def release(self) -> None:
        self._stack.close()


def find_backup(source: Path) -> Path:
    """Return the backup that a person means by `source`: the newest one in a target, or itself. Blocks. Raises NotABackup."""
    source = source.absolute()
    with storage_errors(source):
        if (source / FACTS_NAME).is_file():
            backup = source
        elif (source / MARK_NAME).is_file():
            found = backups_in(source)
            if not found:
                raise NotABackup(str(source), "no backup in it was completed", "make a backup again, or give another folder")
            backup = found[0]
        else:
            found_there = (
                "such a folder does not exist" if not source.exists() else f"it has neither {MARK_NAME} nor {FACTS_NAME}"
            )
            raise NotABackup(str(source), found_there, "give the folder to which the backup was made, or one backup in it")
        for name in (FORMAT_NAME, INDEX_NAME):
            if not (backup / name).is_file():
                raise NotABackup(str(backup), f"its file {name} is missing", "give another backup")
    return backup


def _enter(root: Path, repository_id: str) -> _Held:
    """Make the folder ready for a restore, and keep all other processes out of it. Return what keeps them out.

    Raises NotARepository, Busy, StorageError.
    """
    with ExitStack() as stack, storage_errors(root, translate=write_error):
        _check_root(root, repository_id)
        make_folder(root)
        is_continued = (root / RESTORING_NAME).exists()
        _acquire(stack, FileLock.of_file(root / RESTORING_NAME, is_required=True), root)
        try:
            # From here on nobody opens the repository. Who had begun to, has a locked folder in `tmp`.
            _lock_users(stack, root)
            stamp = _stamp(root / RESTORING_NAME, repository_id)
            _remove_staging(root)
        except BaseException:
            if not is_continued:
                (root / RESTORING_NAME).unlink()
            raise
        return _Held(stack.pop_all(), stamp)


def _check_root(root: Path, repository_id: str) -> None:
    """Raise NotARepository if the folder has something else than this repository, or what is left of it."""
    if not root.exists():
        return
    names = [path.name for path in root.iterdir()]
    format_path = root / FORMAT_NAME
    if format_path.exists():
        try:
            found = str(parse_json(format_path.read_bytes())["id"])
        except (ValueError, KeyError, TypeError):
            found = "that cannot be read"
        if found != repository_id:
            raise NotARepository(
                str(root),
                f"it has the id {found}, and the backup is of {repository_id}",
                "restore into another folder",
            )
        return
    strange = sorted(name for name in names if not _is_known(name))
    if strange:
        raise NotARepository(
            str(root),
            f"the folder holds other things ({', '.join(map(repr, strange[:3]))})",
            "restore into a new or an empty folder, or into that of the repository",
        )


def _is_known(name: str) -> bool:
    is_of_index = INDEX_STAGING.fullmatch(name) is not None or name.startswith(f"{INDEX_NAME}.")
    return name in _KNOWN_NAMES or is_of_index or name.startswith(_UPLOADS) or is_atomic_staging(name)


def _lock_users(stack: ExitStack, root: Path) -> None:
    """Take the locks that every user of the repository has, for as long as `stack` is open. Raises Busy."""
    tmp = root / TMP_NAME
    for folder in sorted(tmp.iterdir()) if tmp.is_dir() else ():
        if folder.is_dir():
            _acquire(stack, FileLock.of_folder(folder, is_required=True), root)
    for path in sorted(root.glob("runtime/*/lock")):
        _acquire(stack, FileLock.of_file(path, is_required=True), root)
    for database in (root / INDEX_NAME, *root.glob(RUNTIME_DATABASES)):
        if database.is_file():
            stack.enter_context(_sqlite_lock(database, root))


def _acquire(stack: ExitStack, lock: FileLock, root: Path) -> None:
    stack.callback(lock.release)
    if not lock.try_acquire():
        raise _in_use(root, lock.holder())


def _remove_staging(root: Path) -> None:
    """Remove the copies of databases, and the new format file, that an interrupted restore has left."""
    for path in root.iterdir():
        if is_atomic_staging(path.name) and path.is_file():
            path.unlink()
    for path in (*root.glob(f"{INDEX_NAME}.*"), *root.glob(f"{RUNTIME_DATABASES}.*")):
        if _STAGING.search(path.name):
            path.unlink()


@contextmanager
def _sqlite_lock(database: Path, root: Path) -> Iterator[None]:
    """Hold all locks of SQLite on a database, which need not be intact. Raises Busy if a process has it open.

    Readers hold such a lock too, as long as they have the database open in write-ahead mode. This process itself must
    not have it open: its own locks do not count, and closing the descriptor drops them.
    """
    descriptor = os.open(database, os.O_RDWR | os.O_CLOEXEC)
    try:
        start, count = _SQLITE_LOCKS
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, start)
        except BlockingIOError:
            raise _in_use(root, "another process") from None
        yield
    finally:
        os.close(descriptor)


def _in_use(root: Path, who: str) -> Busy:
    return Busy(str(root), f"{who} has the repository open; stop all servers and commands that use it")


def _stamp(restoring: Path, repository_id: str) -> str:
    """Return the time of the first attempt, by which old files are named. Remember it in the file, durably."""
    try:
        values = parse_json(restoring.read_bytes())
        if values["repository_id"] == repository_id:
            return str(values["stamp"])
    except (ValueError, KeyError, TypeError):
        pass  # the first attempt
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    # In place, because the file is locked.
    descriptor = os.open(restoring, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
    try:
        os.write(descriptor, json.dumps({"repository_id": repository_id, "stamp": stamp}).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_path(restoring.parent)
    return stamp


def _put_in_place(backup: Path, root: Path, index: Path, stamp: str) -> list[Path]:
    """Give the new index and the databases of runtimes their names. Return the new paths of the old files."""
    with sqlite_errors(str(index)), storage_errors(root):
        version = renew(index)
        sync_path(index)
        set_aside = [*_replace(root / INDEX_NAME, index, stamp)]
        for copy in sorted(backup.glob(RUNTIME_DATABASES)):
            database = root / copy.relative_to(backup)
            database.parent.mkdir(0o700, parents=True, exist_ok=True)
            staging = database.with_name(f"{database.name}.{secrets.token_hex(8)}")
            try:
                copy_sqlite_file(copy, staging)
                set_aside += _replace(database, staging, stamp)
            finally:
                staging.unlink(missing_ok=True)
            sync_path(database.parent.parent)
        # Not in place: the file is not synced, and after a power cut its old text would refuse the new index.
        (root / LAST_COMMIT_NAME).unlink(missing_ok=True)
        LastCommit(root / LAST_COMMIT_NAME).write(version)
        if not (root / FORMAT_NAME).exists():
            write_atomic(root / FORMAT_NAME, (backup / FORMAT_NAME).read_bytes())
        sync_path(root)
        sync_path(root.parent)
        (root / RESTORING_NAME).unlink()
        sync_path(root)
    return set_aside


def renew(path: Path) -> IndexVersion:
    """Give an index another id, because the commits after the backup are not in it. Forget the states of tasks.

    Holds stay, and so do the tokens of `given_tokens` and the links.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'index_id'")
        connection.execute("DELETE FROM tasks WHERE task NOT IN ('hold', 'given-tokens', 'links')")
        version = select_version(connection)
    assert version is not None  # noqa: S101  # it was migrated
    return version


def _replace(database: Path, new: Path, stamp: str) -> list[Path]:
    """Rename the files of a database, if there are any, and give `new` its name. Return the new paths of the old files."""
    set_aside = []
    aside = database.with_name(f"{database.name}.before-{stamp}")
    number = 1
    while aside.exists():
        # Of an earlier attempt.
        aside = database.with_name(f"{database.name}.before-{stamp}.{number}")
        number += 1
    for part in ("", "-wal", "-shm", "-journal"):
        old = database.with_name(database.name + part)
        if old.exists() or old.is_symlink():
            # The log keeps belonging to its database: SQLite finds it by the name.
            set_aside.append(old.rename(aside.with_name(aside.name + part)))
    new.rename(database)
    sync_path(database.parent)
    return set_aside
