"""The stored files that runs have returned: which files these are, and when they expire.

A file is removed when neither a run has returned it nor a run has been given it for `expire_seconds`, and if

- it did not exist before a run returned it, and no user has pushed it since;
- no pipeline needs it as a static file;
- no run that has not ended is given it.

A file that users push is kept for ever. A row is first marked, and then the record is removed. After a kill between the
two, the next removal continues. The row stays, so that an answer can say why the file is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from urllib.parse import unquote

from filestore.core.commits import PLAIN_COMMIT, NewCommit
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import FileInUse, FilestoreError, NotFound, VersionLabelled
from filestore.http.server.errors import log_failure
from filestore.repository.index.protocol import Index, Transaction
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.runtime.database import Database
from filestore.runtime.kept_clock import KeptClock
from filestore.system.threads import in_disk_thread, shield_until_done

GONE_LIMIT = 100_000
"""The largest number of rows of removed files. The oldest ones are forgotten."""

_BATCH = 1000
_PATHS = re.compile(
    r"run_files/[0-9a-f]{2}/[0-9a-f]{2}/(?P<uuid>[0-9a-f-]{36})/|pipeline_files/[0-9a-f]{2}/[0-9a-f]{2}/(?P<digest>[0-9a-f]{64})/"
    r"|download/(?P<id>file_[0-9a-f]{32})"
)


class Expiry(IntEnum):
    """How far the removal of a file has come."""

    NONE = 0
    MARKED = 1
    REMOVED = 2


class RunFiles:
    """The rows of the files that runs have returned."""

    def __init__(self, database: Database, clock: KeptClock) -> None:
        self._database = database
        self._clock = clock

    def note(self, record: Record, previous: Record | None) -> None:
        """Note that a run has returned a file. `previous` is its record before that, if there was one. Blocks.

        Raises StorageError, StorageFull.
        """
        with self._database.write() as connection:
            row = connection.execute("SELECT pushed_at, is_kept FROM run_files WHERE file_id = ?", (record.id,)).fetchone()
            # Only the push of a run may have been the last one, and only a run may have been the first to push it.
            is_ours = previous is None or (row is not None and (previous.id, previous.updated_at) == (record.id, row[0]))
            is_kept = not is_ours or (previous is not None and bool(row[1]))
            connection.execute(
                "INSERT INTO run_files (file_id, digest, pushed_at, used_at, is_kept, expiry) VALUES (?, ?, ?, ?, ?, 0)"
                " ON CONFLICT (file_id) DO UPDATE SET pushed_at = excluded.pushed_at, used_at = excluded.used_at,"
                " is_kept = excluded.is_kept, expiry = 0",
                (record.id, str(record.digest), record.updated_at, self._clock.store(connection), is_kept),
            )

    def note_inputs(self, input_data: object) -> frozenset[str]:
        """Note that a run was given the files that its inputs name, at any place. Return their ids. Blocks."""
        found: set[str] = set()
        asked = set(_named_in(unquote(json.dumps(input_data))))
        if asked:
            with self._database.write() as connection:
                now = self._clock.store(connection)
                for column, value in asked:
                    rows = connection.execute(f"SELECT file_id FROM run_files WHERE {column} = ? AND expiry = 0", (value,))  # noqa: S608  # constants
                    found.update(file_id for (file_id,) in rows)
                connection.executemany("UPDATE run_files SET used_at = ? WHERE file_id = ?", [(now, each) for each in found])
        return frozenset(found)

    def expiry(self, file_id: str) -> Expiry | None:
        """Return how far the removal of a file has come, or None if no run has returned it. Blocks. Raises StorageError."""
        with self._database.read() as connection:
            row = connection.execute("SELECT expiry FROM run_files WHERE file_id = ?", (file_id,)).fetchone()
        return None if row is None else Expiry(row[0])

    def mark_expired(self, *, expire_seconds: float, in_use: Iterable[str]) -> Mapping[str, int]:
        """Mark the files that have expired. Return those that must be removed: when each was pushed, by its id. Blocks.

        Files of `in_use` are left out. At most 1000 are returned.
        """
        used = set(in_use)
        with self._database.write() as connection:
            horizon = self._clock.store(connection) - expire_seconds
            expired = connection.execute(
                "SELECT file_id FROM run_files WHERE expiry = 0 AND used_at < ? AND is_kept = 0 LIMIT ?",
                (horizon, _BATCH + len(used)),
            )
            marked = [(file_id,) for (file_id,) in expired if file_id not in used]
            connection.executemany("UPDATE run_files SET expiry = 1 WHERE file_id = ?", marked)
            rows = connection.execute("SELECT file_id, pushed_at FROM run_files WHERE expiry = 1 LIMIT ?", (_BATCH,))
            return dict(rows.fetchall())

    def note_removed(self, file_id: str, pushed_at: int, *, is_removed: bool) -> None:
        """Note that a marked file was removed, or that it is kept because a user has pushed it. Blocks."""
        change = "expiry = 2" if is_removed else "expiry = 0, is_kept = 1"
        with self._database.write() as connection:
            # A run may have returned it again since.
            connection.execute(
                f"UPDATE run_files SET {change} WHERE file_id = ? AND expiry = 1 AND pushed_at = ?",  # noqa: S608  # constants
                (file_id, pushed_at),
            )
            connection.execute(
                "DELETE FROM run_files WHERE file_id IN"
                " (SELECT file_id FROM run_files WHERE expiry = 2 ORDER BY used_at DESC LIMIT -1 OFFSET ?)",
                (GONE_LIMIT,),
            )

    def postpone(self, file_id: str) -> None:
        """Begin the time of a marked file again, because it could not be removed. Blocks."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE run_files SET expiry = 0, used_at = ? WHERE file_id = ? AND expiry = 1",
                (self._clock.store(connection), file_id),
            )


class OutputRepository(LocalRepository):
    """The repository into which runs push their outputs. Each is noted in `run_files` before its push returns."""

    run_files: RunFiles | None = None
    """Set it before the first output is stored."""

    def __init__(self, store: ChunkStore, index: Index, *, location: str, signed_seconds: float) -> None:
        super().__init__(store, index, location=location, signed_seconds=signed_seconds)
        self._committing = asyncio.Lock()
        self._previous: Record | None = None

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE, commit: NewCommit = PLAIN_COMMIT) -> Record:
        async with self._committing:
            record = await super().commit(manifest, name=name, kind=kind, commit=commit)
            if self.run_files is not None:
                await shield_until_done(in_disk_thread(self.run_files.note, record, self._previous))
        return record

    async def _add_record(
        self, transaction: Transaction, manifest: Manifest, *, name: str, kind: Kind, commit: NewCommit
    ) -> Record:
        # During the transaction nobody else pushes it.
        self._previous = await self._index.record(self.namespace, Reference(name=name, digest=manifest.digest))
        return await super()._add_record(transaction, manifest, name=name, kind=kind, commit=commit)


async def remove_expired(
    run_files: RunFiles, repository: LocalRepository, *, expire_seconds: float, in_use: Iterable[str]
) -> None:
    """Remove the files that have expired, and their chunks that no other file needs."""
    marked = await repository.with_reserve(
        lambda: in_disk_thread(lambda: run_files.mark_expired(expire_seconds=expire_seconds, in_use=in_use))
    )
    for file_id, pushed_at in marked.items():
        try:
            await repository.remove(file_id, with_chunks=True, updated_at=pushed_at)
            is_removed = True
        except NotFound:
            is_removed = await _is_gone(repository, file_id)
        except FilestoreError as error:
            # It is tried again after the same time.
            if not isinstance(error, FileInUse | VersionLabelled):
                log_failure(f"the expired output {file_id} is not removed yet", error, level=logging.WARNING)
            await in_disk_thread(run_files.postpone, file_id)
            continue
        await in_disk_thread(lambda: run_files.note_removed(file_id, pushed_at, is_removed=is_removed))  # noqa: B023  # called at once


async def _is_gone(repository: LocalRepository, file_id: str) -> bool:
    try:
        await repository.record(Reference(id=file_id))
    except NotFound:
        return True
    return False


def _named_in(inputs: str) -> Iterable[tuple[str, str]]:
    for found in _PATHS.finditer(inputs):
        if found["digest"] is not None:
            yield "digest", found["digest"]
        elif found["id"] is not None:
            yield "file_id", found["id"]
        else:
            yield "file_id", f"file_{found['uuid'].replace('-', '')}"
