"""Copy an index of PostgreSQL, as it is at one moment, to an index of SQLite in a new file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.row_pages import TABLES, WHOLE_CHUNKS, Row, Table, insert_rows
from filestore.repository.index.schema import prepare
from filestore.system.sqlite_copy import check_database
from filestore.system.sqlite_errors import sqlite_errors
from filestore.system.threads import in_disk_thread, shield_until_done


async def copy_index(index: PostgresIndex, path: Path, *, where: str) -> None:
    """Write the rows of `index`, as they are at one moment, to the new file `path`. The caller syncs it and its folder.

    No writer waits. What says which object is a frame, and the states of tasks that begin again elsewhere, are left out. Memory
    does not depend on the number of rows. `where` names the file in errors. Raises StorageError, StorageFull, Busy.
    """
    new = await in_disk_thread(_NewIndex, path, where)
    try:
        async with index.snapshot() as snapshot:
            for table in (WHOLE_CHUNKS, *TABLES):
                after: Row | None = None
                while page := await snapshot.row_page(table, after):
                    await in_disk_thread(new.insert, table, page)
                    after = table.key_of(page[-1])
            await in_disk_thread(new.insert, _SECRETS, [(secret,) for secret in await snapshot.secrets()])
    finally:
        await shield_until_done(in_disk_thread(new.close))
    await in_disk_thread(new.finish)


_SECRETS = Table("secrets", (), ("secret",), "bytea")


class _NewIndex:
    """A file that gets the rows. All methods block."""

    def __init__(self, path: Path, where: str) -> None:
        self._path = path
        self._where = where
        with sqlite_errors(where):
            # SQLite alone would make a file that everyone can read.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            prepare(self._connection)
            # The file has no readers, and the caller syncs it.
            self._connection.execute("PRAGMA synchronous = OFF")

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Insert rows in one transaction."""
        with sqlite_errors(self._where):
            self._connection.execute("BEGIN")
            insert_rows(self._connection, table, rows)
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with sqlite_errors(self._where):
            self._connection.close()

    def finish(self) -> None:
        """Check the closed file."""
        with sqlite_errors(self._where):
            check_database(self._path, where=self._where)
