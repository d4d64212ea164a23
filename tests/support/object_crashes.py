"""Kill work over an object store and PostgreSQL before its n-th change of any of them.

    python -m tests.support.object_crashes migrate FOLDER               # every change, in minutes; it starts both engines
    python -m tests.support.object_crashes --step 11 --bucket s3://NAME?endpoint=URL --index URL restore FOLDER

The work is `migrate` (a folder into both), `restore` (a backup into both) or `repair` (what is damaged in both, from a folder).
The n-th try works on FOLDER/<n>, below the prefix <n> of the bucket, and in a database of its own. After each kill, the same
work is done to its end, everything that both sides say is compared, and no object may stay that no row names. Prints how many
were killed. The credentials of the bucket are in the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from filestore.backends import connect
from filestore.core.object_location import ObjectLocation
from filestore.errors import NotARepository
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.sqlite import SqliteIndex
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.backup import back_up
from filestore.repository.maintenance.check import ReadPlan
from filestore.repository.maintenance.migrate import MigrationSource, MigrationTarget, migrate
from filestore.repository.maintenance.repair import RepositoryDonor, repair
from filestore.repository.maintenance.restore_objects import restore_objects
from filestore.repository.object_repository import open_target
from filestore.repository.stores.s3_client import S3Client
from tests.support.ceph import Bucket, running_gateway
from tests.support.crashes import Fuse, kill_at_every_call
from tests.support.migrations import differences, everything, fill, opened
from tests.support.object_repositories import sweep
from tests.support.postgres import USERS_OF, running_postgres
from tests.support.s3_requests import Credentials

_READING = ("select", "pragma", "show", "explain")
_MADE = "made"
"""What each try gets a copy of: a folder, a prefix and a database."""


def light(fuse: Fuse) -> None:
    """Burn the fuse before each change of the object store, of PostgreSQL, and of an index in a file."""
    for name in ("put", "put_blocking", "create", "copy", "delete"):
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


class Engines(NamedTuple):
    """A bucket, and the database beside which each try has its own."""

    bucket: Bucket
    index_url: str

    def place(self, name: str) -> ObjectLocation:
        """Where the try `name` works."""
        return ObjectLocation.of(self.bucket.location(name), f"{self.index_url}_{name}")

    async def create_database(self, name: str, *, template: str | None = None) -> None:
        """Make the database of a try: an empty one, or a copy of that of another one."""
        database = self.index_url.rpartition("/")[2]
        connection = await asyncpg.connect(self.index_url)
        # A session goes on for a moment after its client has left, and prevents copies.
        while template and await connection.fetchval(USERS_OF.format(f"{database}_{template}")):
            await asyncio.sleep(0.01)
        copied = f' TEMPLATE "{database}_{template}"' if template else ""
        await connection.execute(f'CREATE DATABASE "{database}_{name}"{copied}')
        await connection.close()

    async def copy(self, name: str) -> None:
        """Make the place of a try from what was made for all."""
        await self.create_database(name, template=_MADE)
        for key in self.bucket.list_keys(f"{_MADE}/"):
            self.bucket.put(name + key.removeprefix(_MADE), self.bucket.read(key))


async def _fill(folder: Path, _: Engines) -> None:
    async with opened(folder / "root", create=True) as parts:
        await fill(parts)


async def _migrate(folder: Path, place: ObjectLocation) -> None:
    async with opened(folder / "root") as parts:
        assert isinstance(parts.index, SqliteIndex)
        store, index = await open_target(place)
        try:
            await migrate(
                MigrationSource(store=parts.store, index=parts.index, location=str(folder)),
                MigrationTarget(store=store, index=index, location=str(place)),
            )
        finally:
            await index.close()
            await store.close()


async def _back_up(folder: Path, engines: Engines) -> None:
    await _fill(folder, engines)
    await back_up(folder / "root", folder / "backup", full=True)


async def _restore(folder: Path, place: ObjectLocation) -> None:
    store, index = await open_target(place)
    try:
        assert isinstance(index, PostgresIndex)
        await restore_objects(folder / "backup", MigrationTarget(store=store, index=index, location=str(place)))
    finally:
        await index.close()
        await store.close()


async def _damage(folder: Path, engines: Engines) -> None:
    """Make the same repository in a folder and in an object store, and damage that in the object store in several ways."""
    await _fill(folder, engines)
    place, bucket = engines.place(_MADE), engines.bucket
    await _migrate(folder, place)
    async with opened(place) as parts:
        assert isinstance(parts.index, PostgresIndex)
        keys = bucket.list_keys(f"{_MADE}/frames/default/")
        digests = [state.row.digest for state in await parts.index.chunk_rows("default", limit=6)]
        zeroed, gone, hidden, short = (next(key for key in keys if str(digest) in key) for digest in digests[:4])
        bucket.put(zeroed, bytes(len(bucket.read(zeroed))))
        bucket.put(short, bucket.read(short)[:-1])
        bucket.delete(gone)
        # A reader could not read it for a time.
        kept = bucket.read(hidden)
        bucket.delete(hidden)
        repository = LocalRepository(parts.store, parts.index, location="here")
        assert [digests[2]] == await repository.verify_chunks([digests[2]])
        bucket.put(hidden, kept)
        bucket.delete(bucket.list_keys(f"{_MADE}/manifests/default/")[0])
        async with parts.index._connections.lend() as connection:
            await connection.execute("UPDATE chunks SET stored_size = stored_size + 1 WHERE digest = $1", bytes(digests[4]))
            await connection.execute("UPDATE chunks SET frame_digest = $1 WHERE digest = $2", bytes(32), bytes(digests[5]))
            await connection.execute("UPDATE usage SET stored_size = stored_size - 1")


async def _repair(folder: Path, place: ObjectLocation) -> None:
    async with opened(place) as parts, connect(folder / "root", read_only=True) as donor:
        report = await repair(parts.store, parts.index, donors=[RepositoryDonor(donor)], read=ReadPlan())
        if report.lost or report.remaining_count:
            raise AssertionError(report)


class Work(NamedTuple):
    """What is killed."""

    prepare: Callable[[Path, Engines], Coroutine[Any, Any, None]]
    """Make in a folder, and in the place `made`, what each try gets a copy of."""
    do: Callable[[Path, ObjectLocation], Coroutine[Any, Any, None]]
    """Raises NotARepository if it was done already."""


WORK = {"migrate": Work(_fill, _migrate), "restore": Work(_back_up, _restore), "repair": Work(_damage, _repair)}


async def _complete(work: Work, folder: Path, engines: Engines) -> None:
    """Do again what was killed in the folder of a try, and raise AssertionError if anything is lost or left over."""
    place = engines.place(folder.name)
    # The one that was killed may have come to its end.
    with suppress(NotARepository):
        await work.do(folder, place)
    async with opened(folder / "root") as old, opened(place) as new:
        found = differences(await everything(old), await everything(new))
        await sweep(LocalRepository(new.store, new.index, location="here"))
        named = sum(usage.chunk_count for usage in await new.index.usages())
    if found:
        raise AssertionError(str(found))
    if named != (kept := len(engines.bucket.list_keys(f"{folder.name}/frames/"))):
        message = f"{kept} objects of frames for {named} rows"
        raise AssertionError(message)


def _in_fork(work: Callable[[], None]) -> None:
    """Do work that uses threads in a process of its own: a fork must find none."""

    def attempt(_: int, __: Fuse) -> None:
        work()

    kill_at_every_call(attempt)


def kill_every(work: Work, folder: Path, engines: Engines, *, step: int) -> int:
    """Kill the work at each `step`-th of its changes, and return how often."""

    async def prepare() -> None:
        await engines.create_database(_MADE)
        await work.prepare(folder / _MADE, engines)

    (folder / _MADE).mkdir(parents=True)
    _in_fork(lambda: asyncio.run(prepare()))

    def attempt(number: int, _: Fuse) -> None:
        own = folder / str(number)
        if number > 1:
            asyncio.run(_complete(work, folder / str(number - 1), engines))
        shutil.copytree(folder / _MADE, own)
        asyncio.run(engines.copy(own.name))
        light(Fuse(number * step))
        asyncio.run(work.do(own, engines.place(own.name)))

    last = kill_at_every_call(attempt)
    _in_fork(lambda: asyncio.run(_complete(work, folder / str(last), engines)))
    return last - 1


def _start_engines_and_run(arguments: list[str]) -> int:
    """Run this program again, beside engines: what forks may have no thread, and these have one."""
    with running_gateway() as gateway, running_postgres() as server:
        bucket = gateway.new_bucket()
        engines = ["--bucket", bucket.location(), "--index", server.postgres.new_database()]
        command = [sys.executable, "-m", "tests.support.object_crashes", *engines, *arguments]
        return subprocess.run(command, env={**os.environ, **bucket.environ}, check=False).returncode


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.object_crashes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--step", type=int, default=1, help="strike only every STEP-th change; most come in groups")
    parser.add_argument("--bucket", help="the location of an empty bucket; by default one of an own gateway")
    parser.add_argument("--index", help="the URL of an empty database, for --bucket")
    parser.add_argument("work", choices=WORK)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.bucket is None:
        sys.exit(_start_engines_and_run(sys.argv[1:]))
    name, _, endpoint = options.bucket.removeprefix("s3://").partition("?endpoint=")
    keys = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    engines = Engines(Bucket(endpoint, name, keys), options.index)
    killed = kill_every(WORK[options.work], options.folder, engines, step=options.step)
    sys.stdout.write(f"{killed}\n")
    sys.stdout.flush()
    # Threads of the object store's library need not end.
    os._exit(0)


if __name__ == "__main__":
    _main()
