"""Kill the migration of an index at its n-th system call or SQL statement, for every n.

`python -m tests.support.migration_crashes FOLDER` works on FOLDER/<n>, and prints the number of runs. The last run is
not killed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from filestore.core.digest import chunk_digest
from filestore.core.records import Kind
from filestore.repository.index.sqlite import open_index
from tests.support.crashes import Fuse, kill_at_every_call, light

NAMESPACE = "a"
NAME = "kept"


async def make_older_index(path: Path) -> None:
    """Make an index as version 2 of its tables has it, with one record."""
    index = await open_index(path)
    async with index.transaction() as transaction:
        await transaction.add_record(NAMESPACE, name=NAME, digest=chunk_digest(b""), size=0, kind=Kind.FILE)
    await index.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE uses")
        connection.execute("PRAGMA user_version = 2")


async def _migrate(path: Path) -> None:
    await (await open_index(path)).close()


def _main(folder: Path) -> None:
    def attempt(place: int, fuse: Fuse) -> None:
        path = folder / str(place)
        asyncio.run(make_older_index(path))
        light(fuse)
        asyncio.run(_migrate(path))

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
