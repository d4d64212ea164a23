"""Restore a repository from a backup to an object store and PostgreSQL, which have nothing yet.

It is a migration: from the content of the backup, and from a copy of its index. So it can be interrupted at any moment and done
again, and until its end nobody can open the object store as a repository.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filestore.repository.folder import INDEX_NAME
from filestore.repository.index.sqlite import open_index
from filestore.repository.maintenance.backup import copy_sqlite_file, lock_for_restore, read_facts
from filestore.repository.maintenance.migrate import MigrationCounts, MigrationSource, MigrationTarget, migrate
from filestore.repository.maintenance.restore import find_backup, renew
from filestore.repository.stores.disk import store_for_reading
from filestore.system.files import storage_errors
from filestore.system.threads import in_disk_thread, shield_until_done


@dataclass(frozen=True, slots=True)
class RestoredObjects:
    """A repository that was restored to an object store."""

    backup: Path
    has_content: bool
    """Whether the backup has content."""
    counts: MigrationCounts
    """What was done, with the records that are not whole."""
    chunk_count: int
    stored_size: int
    """The chunks that the object store has, and the bytes of their frames."""


async def restore_objects(
    source: Path, target: MigrationTarget, *, rate: int | None = None, counts: MigrationCounts | None = None
) -> RestoredObjects:
    """Restore the backup in the folder `source` to an object store and a database that have nothing.

    `source` is a target of backups, whose newest backup is taken, or one backup in it. A frame is copied only if it decodes to
    its chunk; the rows of others are left out, so that a push sends these chunks. A folder among the temporary ones gets a copy
    of the index until the end. `rate` is the most bytes per second.

    Raises NotABackup; NotARepository if the target has anything else; Busy if a backup to `source` is made, or another restore
    to the target; StorageError, StorageFull.
    """
    lock = await in_disk_thread(lock_for_restore, source)
    try:
        backup = await in_disk_thread(find_backup, source)
        facts = await in_disk_thread(read_facts, backup)
        folder = await in_disk_thread(_new_folder)
        try:
            counts = await _migrate(backup, folder / INDEX_NAME, str(facts["repository_id"]), target, rate=rate, counts=counts)
        finally:
            await shield_until_done(in_disk_thread(shutil.rmtree, folder, ignore_errors=True))
    finally:
        if lock is not None:
            lock.release()
    usages = await target.index.usages()
    return RestoredObjects(
        backup,
        bool(facts["has_content"]),
        counts,
        sum(usage.chunk_count for usage in usages),
        sum(usage.stored_size for usage in usages),
    )


def _new_folder() -> Path:
    with storage_errors(tempfile.gettempdir()):
        return Path(tempfile.mkdtemp(prefix="filestore-restore-"))


async def _migrate(
    backup: Path, path: Path, repository_id: str, target: MigrationTarget, *, rate: int | None, counts: MigrationCounts | None
) -> MigrationCounts:
    await in_disk_thread(copy_sqlite_file, backup / INDEX_NAME, path)
    # An index of an earlier version gets the tables of this one.
    await (await open_index(path)).close()
    await in_disk_thread(renew, path)
    index = await open_index(path)
    try:
        content = MigrationSource(
            store=store_for_reading(backup.parent.parent), index=index, location=str(backup), repository_id=repository_id
        )
        return await migrate(content, target, rate=rate, is_backup=True, counts=counts)
    finally:
        await shield_until_done(index.close())
