"""Kill a migration from a folder to an object store and PostgreSQL before its n-th change of any of them.

`python -m tests.support.move_crashes FOLDER BUCKET INDEX_URL`, with the credentials of the bucket in the environment, works on
FOLDER/<n>. After each kill, a second migration runs to its end, and everything that both sides say is compared. Prints how many
were killed. BUCKET is its URL. The n-th target is
below the prefix n, and in a database of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from filestore.core.object_location import ObjectLocation
from filestore.errors import NotARepository
from filestore.repository.index.sqlite import SqliteIndex
from filestore.repository.maintenance.migrate import MigrationSource, MigrationTarget, migrate
from filestore.repository.object_repository import open_target
from filestore.repository.stores.s3_client import S3Client
from tests.support.crashes import Fuse, kill_at_every_call
from tests.support.migrations import differences, everything, fill, opened

_READING = ("select", "pragma", "show", "explain")
STEP = 11
"""Only every eleventh change is struck: most come in groups of other sizes."""


def light(fuse: Fuse) -> None:
    """Burn the fuse before each change of the target or the source."""
    for name in ("put", "put_blocking", "create", "delete"):
        setattr(S3Client, name, fuse.before(getattr(S3Client, name)))
    for name in ("execute", "executemany", "fetch", "fetchrow", "fetchval"):
        setattr(asyncpg.Connection, name, _before_changes(fuse, getattr(asyncpg.Connection, name)))

    class Connection(sqlite3.Connection):
        execute = _before_changes(fuse, sqlite3.Connection.execute)
        executemany = fuse.before(sqlite3.Connection.executemany)

    connect_plainly = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect_plainly(*args, factory=Connection, **kwargs)  # type: ignore[assignment]


def _before_changes(fuse: Fuse, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(connection: Any, statement: str, *args: Any, **kwargs: Any) -> Any:
        if not statement.lstrip().lower().startswith(_READING):
            fuse.burn()
        return function(connection, statement, *args, **kwargs)

    return call


async def _fill(root: Path) -> None:
    async with opened(root, create=True) as parts:
        await fill(parts)


async def _move(root: Path, place: ObjectLocation) -> None:
    async with opened(root) as parts:
        assert isinstance(parts.index, SqliteIndex)
        store, index = await open_target(place)
        try:
            await migrate(
                MigrationSource(store=parts.store, index=parts.index, location=str(root)),
                MigrationTarget(store=store, index=index, location=str(place)),
            )
        finally:
            await index.close()
            await store.close()


async def _complete(root: Path, place: ObjectLocation) -> None:
    # The one that was killed may have come to its end.
    with suppress(NotARepository):
        await _move(root, place)
    async with opened(root) as old, opened(place) as new:
        found = differences(await everything(old), await everything(new))
    if found:
        raise AssertionError(str(found))


def _in_fork(work: Callable[[], None]) -> None:
    """Do work that uses threads in a process of its own: a fork must find none."""

    def attempt(_: int, __: Fuse) -> None:
        work()

    kill_at_every_call(attempt)


def _main(folder: Path, bucket: str, index_url: str) -> None:
    made = folder / "made"
    _in_fork(lambda: asyncio.run(_fill(made)))
    bucket, _, endpoint = bucket.partition("?")

    def place_of(number: int) -> ObjectLocation:
        return ObjectLocation.of(f"{bucket}/{number}?{endpoint}", f"{index_url}_{number}")

    def attempt(number: int, _: Fuse) -> None:
        own = folder / str(number)
        if number > 1:
            asyncio.run(_complete(folder / str(number - 1), place_of(number - 1)))
        shutil.copytree(made, own)
        asyncio.run(_new_database(index_url, number))
        light(Fuse(number * STEP))
        asyncio.run(_move(own, place_of(number)))

    last = kill_at_every_call(attempt)
    _in_fork(lambda: asyncio.run(_complete(folder / str(last), place_of(last))))
    sys.stdout.write(str(last - 1))


async def _new_database(index_url: str, number: int) -> None:
    connection = await asyncpg.connect(index_url)
    await connection.execute(f'CREATE DATABASE "{index_url.rpartition("/")[2]}_{number}"')
    await connection.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)
