"""Back up a repository in a folder: names, records, tokens, the secret and the databases of runtimes, or also content.

    TARGET/filestore-backup                   says that this is a target of backups, and of which repository
    TARGET/lock                               held while a backup is made, and shared by restores
    TARGET/backups/000001-20261128T205733Z/   one backup: `backup.json`, `format`, `index.sqlite`, databases of runtimes
    TARGET/chunks, TARGET/manifests           content, which all backups share
    TARGET/tmp                                staging

A backup becomes visible by one rename, when all of it is synced (I3). The order makes its records whole, whatever runs
meanwhile. First the databases of runtimes are copied, then the index, so that the index knows the records that a
pipeline needs. Then the content that this copy of the index names is copied. A collection or an `rm` may remove some of
it meanwhile; the copy then forgets the records that were removed since. So no lock holds off collections, which a first
backup would do for hours.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filestore.core.batches import in_batches
from filestore.core.digest import Digest
from filestore.core.object_names import ObjectName
from filestore.core.records import parse_json
from filestore.core.references import Reference
from filestore.errors import Busy, InvalidInput, NotABackup, NotARepository, StorageError
from filestore.repository.folder import (
    CONTENT_NAMES,
    FORMAT_NAME,
    INDEX_NAME,
    LAST_COMMIT_NAME,
    RESERVE_NAME,
    RESTORING_NAME,
    RUNTIME_DATABASES,
    TMP_NAME,
)
from filestore.repository.format_file import read_format
from filestore.repository.index.protocol import Index
from filestore.repository.index.reading import open_for_reading, state_of
from filestore.repository.index.sqlite import open_index, open_index_for_reading
from filestore.repository.maintenance.content import ContentCounts, DamagedFile, complete
from filestore.repository.stores.disk import DiskStore, open_store, store_for_reading
from filestore.repository.stores.protocol import ChunkStore
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
from filestore.system.sqlite_copy import copy_database
from filestore.system.sqlite_errors import sqlite_errors
from filestore.system.threads import in_disk_thread, shield_until_done

if TYPE_CHECKING:
    from filestore.repository.index.postgres.index import PostgresIndex

BACKUP_VERSION = 1
KEPT_BACKUPS = 7
MARK_NAME = "filestore-backup"
FACTS_NAME = "backup.json"
BACKUPS_NAME = "backups"

_BACKUP_NAME = re.compile(r"([0-9]{6,})-[0-9]{8}T[0-9]{6}Z\Z")
_STAGING = ".new-"
_LOCK_NAME = "lock"
_BUSY_SECONDS = 60.0
_OWN_NAMES = frozenset({MARK_NAME, _LOCK_NAME, BACKUPS_NAME, RESERVE_NAME, TMP_NAME, "lost+found", *CONTENT_NAMES})
_DIGESTS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that was made."""

    path: Path
    has_content: bool
    counts: ContentCounts
    """What its content is. All counts but `record_count` are 0 without content."""
    removed: tuple[str, ...]
    """The names of the older backups that were removed."""

    @property
    def damaged(self) -> list[DamagedFile]:
        """The records whose content the repository itself has lost."""
        return self.counts.damaged


async def back_up(
    root: Path,
    target: Path,
    *,
    full: bool = False,
    kept: int = KEPT_BACKUPS,
    rate: int | None = None,
    counts: ContentCounts | None = None,
) -> Backup:
    """Back up the repository in the folder `root` to the folder `target`, while other processes may use it.

    With `full`, content is copied too, but only what `target` lacks. The newest `kept` backups stay. `rate` is the most
    bytes per second. An interrupted backup leaves earlier ones as they are, and is continued by the next.

    Raises NotABackup if `target` is not a folder for backups of this repository, Busy if another backup to it runs,
    NotARepository, IndexDamaged, StorageError, StorageFull.
    """
    root, target = await in_disk_thread(_checked_paths, root, target)
    store = store_for_reading(root)
    # An index that is empty or too old must not replace the good ones of earlier backups.
    index = await open_index_for_reading(root / INDEX_NAME, last_commit=root / LAST_COMMIT_NAME)
    try:
        source = _Source(store, index, str(root), lambda staging: in_disk_thread(_copy_files, root, staging, rate))
        return await _back_up(source, target, full=full, kept=kept, rate=rate, counts=counts or ContentCounts())
    finally:
        await shield_until_done(index.close())


async def back_up_objects(
    store: ChunkStore,
    index: PostgresIndex,
    target: Path,
    *,
    location: str,
    full: bool = False,
    kept: int = KEPT_BACKUPS,
    rate: int | None = None,
    counts: ContentCounts | None = None,
) -> Backup:
    """Back up the repository in an object store, and the index that belongs to it, as `back_up` does with a folder.

    Both may be open for reading only. `location` names them in errors. `rate` limits the content. Raises NotABackup, Busy,
    StorageError, StorageFull.
    """
    from filestore.repository.maintenance.index_copy import copy_index  # noqa: PLC0415  # it needs asyncpg

    target = await in_disk_thread(target.absolute)

    async def copy(staging: Path) -> None:
        await in_disk_thread(_make_staging, staging)
        await copy_index(index, staging / INDEX_NAME, where=str(target))
        # It has a format file, so nothing is stored.
        await in_disk_thread(_write, staging / FORMAT_NAME, await store.initialise(b""))

    source = _Source(store, index, location, copy)
    return await _back_up(source, target, full=full, kept=kept, rate=rate, counts=counts or ContentCounts())


@dataclass(frozen=True, slots=True)
class _Source:
    """The repository that is backed up."""

    store: ChunkStore
    index: Index
    location: str
    copy: Callable[[Path], Awaitable[None]]
    """Makes the staging folder of a backup, and copies there what every backup has."""


async def _back_up(source: _Source, target: Path, *, full: bool, kept: int, rate: int | None, counts: ContentCounts) -> Backup:
    repository_id, _ = await read_format(source.store, location=source.location)
    async with _open_target(target, repository_id) as store:
        staging = target / BACKUPS_NAME / f"{_STAGING}{secrets.token_hex(8)}"
        try:
            await source.copy(staging)
            if full:
                await _copy_content(source.index, staging, source=source.store, store=store, counts=counts, rate=rate)
            else:
                counts.record_count = await _count_records(staging / INDEX_NAME)
            facts = {
                "version": BACKUP_VERSION,
                "repository_id": repository_id,
                "made_at": time.time_ns() // 1000,
                "has_content": full,
                "records": counts.record_count,
                "chunks": counts.chunk_count,
                "stored_size": counts.stored_size,
            }
            path, removed = await in_disk_thread(_publish, staging, facts, kept)
        except BaseException:
            await shield_until_done(in_disk_thread(remove_if_possible, staging))
            raise
        if full:
            await _remove_unneeded(target, store)
    return Backup(path=path, has_content=full, counts=counts, removed=removed)


def backups_in(target: Path) -> list[Path]:
    """Return the whole backups in a target, the newest first. Blocks. Raises OSError."""
    folder = target / BACKUPS_NAME
    if not folder.is_dir():
        return []
    found = [(int(name[1]), path) for path in folder.iterdir() if (name := _BACKUP_NAME.match(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def read_facts(backup: Path) -> dict[str, Any]:
    """Return what `backup.json` says. Blocks. Raises NotABackup, StorageError."""
    with storage_errors(backup):
        text = (backup / FACTS_NAME).read_bytes()
    try:
        facts = parse_json(text)
        version = facts["version"]
        # A later version may have other facts.
        if version == BACKUP_VERSION and not (isinstance(facts["repository_id"], str) and type(facts["has_content"]) is bool):
            raise TypeError("its facts have other types")
    except (ValueError, KeyError, TypeError):
        raise NotABackup(str(backup), f"its {FACTS_NAME} is damaged", "give another backup") from None
    if version != BACKUP_VERSION:
        raise NotABackup(str(backup), f"it has version {version!r}", "use a newer version of filestore")
    return dict(facts)


def copy_sqlite_file(source: Path, target: Path, *, rate: int | None = None) -> None:
    """Copy a database that other processes may write to. Blocks. Raises StorageError, StorageFull, Busy, IndexUnreadable."""
    with sqlite_errors(str(source)):
        opened, state = open_for_reading(str(source), timeout_seconds=_BUSY_SECONDS)
        with closing(opened):
            copy_database(opened, target, where=str(source), rate=rate)
        if state is not None and state != state_of(str(source)):
            raise Busy(str(source), "another process writes to it, and this user can only read it between two writes")


def _checked_paths(root: Path, target: Path) -> tuple[Path, Path]:
    """Return both paths, which are then absolute. Raises NotARepository, InvalidInput, StorageError."""
    root, target = root.absolute(), target.absolute()
    with storage_errors(root):
        if not (root / FORMAT_NAME).is_file() or not (root / INDEX_NAME).is_file():
            raise NotARepository(str(root), "it has no format file or no index", "give the folder that a server serves")
        if (root / RESTORING_NAME).exists():
            raise NotARepository(str(root), "a restore of it has not ended", "wait until it ends, or do the restore again")
        if target.resolve().is_relative_to(root.resolve()):
            raise InvalidInput(f"{target} is inside the repository {root}; give a folder outside it, best on another disk")
    return root, target


@asynccontextmanager
async def _open_target(target: Path, repository_id: str) -> AsyncIterator[DiskStore]:
    """Make the folder ready and lock it. Yield the store of its content."""
    lock = await in_disk_thread(_claim, target, repository_id)
    try:
        store = await open_store(target)
        try:
            yield store
        finally:
            await shield_until_done(store.close())
    finally:
        lock.release()


def _claim(target: Path, repository_id: str) -> FileLock:
    with storage_errors(target, translate=write_error):
        make_folder(target)
        mark = target / MARK_NAME
        strange = sorted(path.name for path in target.iterdir() if not _is_own(path.name))
        if strange and not mark.exists():
            found = f"the folder holds other things ({', '.join(map(repr, strange[:3]))})"
            raise NotABackup(str(target), found, "give a new or an empty folder, or one with earlier backups")
        lock = FileLock.of_file(target / _LOCK_NAME, is_required=True)
        try:
            if not lock.try_acquire():
                raise Busy(str(target), f"{lock.holder()} makes a backup there, or restores one")
            for path in target.iterdir():
                if is_atomic_staging(path.name):  # a mark that was being written when its process was killed
                    path.unlink()
            _check_mark(mark, target, repository_id)
            for folder in (target / BACKUPS_NAME).glob(f"{_STAGING}*"):
                remove_if_possible(folder)
        except BaseException:
            lock.release()
            raise
    return lock


def _is_own(name: str) -> bool:
    return name in _OWN_NAMES or is_atomic_staging(name)


def lock_for_restore(source: Path) -> FileLock | None:
    """Keep backups from changing a target, and removing older ones, while a backup in it is read. Blocks. Raises Busy.

    `source` is the target, or a backup in it. A backup that was copied alone, or that this user may not write beside, needs no
    lock and gets none.
    """
    source = source.absolute()
    target = source if (source / MARK_NAME).is_file() else source.parent.parent
    if not (target / MARK_NAME).is_file():
        return None
    try:
        lock = FileLock.of_file(target / _LOCK_NAME, is_required=False)
    except OSError:
        return None
    if not lock.try_acquire(is_shared=True):
        holder = lock.holder()
        lock.release()
        raise Busy(str(target), f"{holder} makes a backup there; wait until it ends")
    return lock


def _check_mark(mark: Path, target: Path, repository_id: str) -> None:
    """Raise NotABackup if the target has backups of another repository. Make the mark if there is none."""
    if not mark.exists():
        if any((target / name).exists() for name in (BACKUPS_NAME, *CONTENT_NAMES)):
            raise NotABackup(str(target), f"its file {MARK_NAME} is missing", "give another folder, or restore that file")
        write_atomic(mark, json.dumps({"version": BACKUP_VERSION, "repository_id": repository_id}).encode())
    found = target_id(target)
    if found != repository_id:
        raise NotABackup(
            str(target), f"it has backups of another repository, {found}, and this one is {repository_id}", "give another folder"
        )


def target_id(target: Path) -> str:
    """Return the id of the repository whose backups are in `target`. Blocks. Raises NotABackup, OSError."""
    try:
        return str(parse_json((target / MARK_NAME).read_bytes())["repository_id"])
    except (ValueError, KeyError, TypeError):
        raise NotABackup(str(target), f"its file {MARK_NAME} is damaged", "give another folder") from None


def _make_staging(staging: Path) -> None:
    with storage_errors(staging):
        staging.mkdir(0o700, parents=True)


def _write(path: Path, content: bytes) -> None:
    with storage_errors(path):
        path.write_bytes(content)


def _copy_files(root: Path, staging: Path, rate: int | None) -> None:
    _make_staging(staging)
    for database in sorted(root.glob(RUNTIME_DATABASES)):
        copy = staging / database.relative_to(root)
        with storage_errors(staging):
            copy.parent.mkdir(0o700, parents=True)
        _copy_known(database, copy, staging, rate)
    _copy_known(root / INDEX_NAME, staging / INDEX_NAME, staging, rate)
    with storage_errors(staging):
        shutil.copyfile(root / FORMAT_NAME, staging / FORMAT_NAME)


def _copy_known(source: Path, copy: Path, staging: Path, rate: int | None) -> None:
    """Copy a database. A full disk is an error of the target, and not of the source."""
    try:
        copy_sqlite_file(source, copy, rate=rate)
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and "full" in str(cause):
            raise type(error)(str(staging.parent.parent), str(cause)) from cause
        raise


async def _copy_content(
    live: Index, staging: Path, *, source: ChunkStore, store: DiskStore, counts: ContentCounts, rate: int | None
) -> None:
    index = await open_index(staging / INDEX_NAME)
    try:
        await complete(store, index, source=source, counts=counts, rate=rate)
        if counts.damaged:
            await _forget_removed(live, index, counts)
    finally:
        await index.close()


async def _forget_removed(live: Index, copy: Index, counts: ContentCounts) -> None:
    """Remove the records from a copy of the index that were removed from the repository since the copy was made."""
    still_damaged = []
    for damaged in counts.damaged:
        record = damaged.record
        if await live.record(record.namespace, Reference(id=record.id)) is not None:
            still_damaged.append(damaged)
            continue
        async with copy.transaction() as transaction:
            await transaction.remove_record(record.namespace, record.id)
        counts.record_count -= 1
    counts.damaged[:] = still_damaged


async def _count_records(path: Path) -> int:
    index = await open_index(path)
    try:
        count = 0
        for namespace in await index.namespaces():
            position = 0
            while page := await index.records_after(namespace, position, limit=_DIGESTS_AT_ONCE):
                count += len(page)
                position = page[-1].position
        return count
    finally:
        await index.close()


def _publish(staging: Path, facts: dict[str, Any], kept: int) -> tuple[Path, tuple[str, ...]]:
    """Give a complete backup its name, and remove the oldest ones."""
    folder = staging.parent
    with storage_errors(folder):
        (staging / FACTS_NAME).write_text(json.dumps(facts))
        for path in staging.glob("**/*"):
            sync_path(path)
        sync_path(staging)
        older = backups_in(folder.parent)
        newest = _BACKUP_NAME.match(older[0].name) if older else None
        number = 1 + (int(newest[1]) if newest is not None else 0)
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(facts["made_at"] / 1_000_000))
        path = folder / f"{number:06}-{moment}"
        staging.rename(path)
        sync_path(folder)
        sync_path(folder.parent)
        removed = older[max(kept, 1) - 1 :]
        _remove(removed)
    return path, tuple(path.name for path in removed)


def _remove(backups: Sequence[Path]) -> None:
    """Remove backups of one target. Each goes by one rename, so that it is never half there, whatever a power cut leaves."""
    renamed = [backup.rename(backup.with_name(f"{_STAGING}{secrets.token_hex(8)}")) for backup in backups]
    if renamed:
        # Otherwise a backup could have its name, and have lost files: then no other one could be made.
        sync_path(renamed[0].parent)
    for aside in renamed:
        remove_if_possible(aside)


async def _remove_unneeded(target: Path, store: DiskStore) -> None:
    """Remove content that no backup needs any more: without a row, or a record, in any of them."""
    async with AsyncExitStack() as stack:
        indexes: list[Index] = []
        for backup in await in_disk_thread(backups_in, target):
            if (await in_disk_thread(read_facts, backup))["has_content"]:
                index = await open_index_for_reading(backup / INDEX_NAME)
                stack.push_async_callback(index.close)
                indexes.append(index)
        with storage_errors(target):
            namespaces = await in_disk_thread(_names_in, [target / name for name in CONTENT_NAMES])
        for namespace in namespaces:
            async for digests in in_batches(store.digests(namespace), _DIGESTS_AT_ONCE):
                unknown = await _unknown(indexes, namespace, digests)
                await store.remove(namespace, [ObjectName(digest) for digest in unknown])
            async for digests in in_batches(store.manifests(namespace), _DIGESTS_AT_ONCE):
                for digest in digests:
                    if not await _is_recorded(indexes, namespace, digest):
                        await store.remove_manifest(namespace, ObjectName(digest))


async def _unknown(indexes: Sequence[Index], namespace: str, digests: list[Digest]) -> list[Digest]:
    """Return the digests that have no row in any index."""
    for index in indexes:
        digests = await index.missing(namespace, digests)
    return digests


async def _is_recorded(indexes: Sequence[Index], namespace: str, digest: Digest) -> bool:
    for index in indexes:
        if await index.record(namespace, Reference(digest=digest)) is not None:
            return True
    return False


def _names_in(folders: Sequence[Path]) -> list[str]:
    return sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()})
