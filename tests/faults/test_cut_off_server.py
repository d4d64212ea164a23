"""A server is cut off from the object store and the database in the middle of its work, and comes back later.

What it has sent is kept on the way, as by a network that is cut, and arrives when another server has long gone on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Record
from filestore.errors import FilestoreError
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket
from tests.support.generator import octets
from tests.support.links import Link, running_link
from tests.support.object_repositories import PREFIX, object_repository, sweep
from tests.support.postgres import Postgres
from tests.support.soak import needed_and_found_in

pytestmark = pytest.mark.slow

CONTENT = octets(1, 3_000_000)
OTHER = octets(2, 2_000_000)


class Cut:
    """The network between a server and its engines. It is cut when a piece with a certain beginning or part is sent."""

    def __init__(self) -> None:
        self.wanted: bytes | None = None
        self.is_cut = asyncio.Event()
        self.is_whole = asyncio.Event()
        self.is_whole.set()

    async def up(self, piece: bytes) -> bytes:
        """Keep what the server sends."""
        if self.wanted is not None and self.wanted in piece:
            self.wanted = None
            self.is_whole.clear()
            self.is_cut.set()
        return await self.down(piece)

    async def down(self, piece: bytes) -> bytes:
        """Keep what the engines answer."""
        await self.is_whole.wait()
        return piece

    def joins(self, link: Link) -> None:
        """Have a link be a part of this network."""
        link.up, link.down = self.up, self.down


class Place:
    """One repository, which servers reach by a network of their own, or without one."""

    def __init__(self, bucket: Bucket, index_url: str, folder: Path) -> None:
        self.bucket = bucket
        self.index_url = index_url
        self.folder = folder

    @asynccontextmanager
    async def behind(self, cut: Cut) -> AsyncIterator[LocalRepository]:
        """Open the repository as a server that can be cut off."""
        store_port, index_port = (urlsplit(url).port for url in (self.bucket.endpoint, self.index_url))
        assert store_port is not None
        assert index_port is not None
        async with running_link(store_port) as store, running_link(index_port) as index:
            cut.joins(store)
            cut.joins(index)
            bucket = self.bucket._replace(endpoint=f"http://127.0.0.1:{store.port}")
            index_url = self.index_url.replace(f":{index_port}/", f":{index.port}/")
            async with object_repository(bucket, index_url, self.folder / "cut-off", retry_seconds=2) as repository:
                try:
                    yield repository
                finally:
                    cut.is_whole.set()

    @asynccontextmanager
    async def near(self) -> AsyncIterator[LocalRepository]:
        """Open the repository as a server that is never cut off."""
        async with object_repository(self.bucket, self.index_url, self.folder / "near") as repository:
            yield repository

    async def stored(self, repository: LocalRepository, name: str, content: bytes) -> Record:
        """Push a file."""
        path = self.folder / name
        path.write_bytes(content)
        return (await push(repository, path)).record

    async def check(self, repository: LocalRepository, record: Record, content: bytes) -> None:
        """Check that a file is whole."""
        fetched = await fetch(repository, record.id, target=self.folder / "fetched", force=True)
        assert content == fetched.path.read_bytes()

    async def check_end(self, repository: LocalRepository) -> None:
        """Check that what records need is there, and nothing else after a collection."""
        await collect(repository)
        await sweep(repository)
        needed, _ = await needed_and_found_in(repository._store, repository._index)
        found = {key.rpartition("/")[2].partition(".")[0] for key in self.bucket.list_keys(f"{PREFIX}/frames/")}
        assert {str(digest) for digest in needed} == found


@pytest.fixture
def place(bucket: Bucket, postgres_url: str, tmp_path: Path) -> Place:
    """A place without a repository."""
    return Place(bucket, postgres_url, tmp_path)


async def collect(repository: LocalRepository) -> None:
    """Remove what no record needs."""
    await Collection(repository._store, repository._index, DEFAULT_NAMESPACE, grace_seconds=0).run()


class Sessions:
    """The sessions of a database that begin after this."""

    def __init__(self, postgres: Postgres, url: str) -> None:
        self._postgres = postgres
        self._of_database = f"FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'"
        self._before = postgres.execute(f"SELECT coalesce(string_agg(pid::text, ','), '0') {self._of_database}")

    def end(self) -> None:
        """End them, and so their locks, as the database does some time after their host was cut off."""
        self._postgres.execute(f"SELECT pg_terminate_backend(pid) {self._of_database} AND pid NOT IN ({self._before})")


async def cut_in(cut: Cut, work: Awaitable[object], wanted: bytes) -> asyncio.Future[object]:
    """Begin work, and return once the network is cut before a piece with these bytes."""
    cut.wanted = wanted
    task = asyncio.ensure_future(work)
    cut_off = asyncio.ensure_future(cut.is_cut.wait())
    await asyncio.wait({task, cut_off}, return_when=asyncio.FIRST_COMPLETED)
    cut_off.cancel()
    assert cut.is_cut.is_set(), task
    return task


async def end_of(cut: Cut, task: asyncio.Future[object]) -> object:
    """Have the network be whole again. Return what the work returns, or the error that it tells."""
    cut.is_whole.set()
    try:
        return await task
    except FilestoreError as error:
        return error


async def no_work(_: LocalRepository) -> None:
    """Leave everything as it is."""


@pytest.mark.parametrize("locks_end", [True, False])
@pytest.mark.parametrize(
    ("wanted", "between"),
    [(b"PUT /", no_work), (b"INSERT INTO chunks", collect), (b"INSERT INTO records", collect), (b"COMMIT", collect)],
    ids=["put", "publish", "commit", "end-of-transaction"],
)
async def test_a_push_of_a_server_that_is_cut_off(
    place: Place,
    postgres: Postgres,
    wanted: bytes,
    between: Callable[[LocalRepository], Awaitable[None]],
    locks_end: bool,  # noqa: FBT001  # of a test
) -> None:
    """Another server stores the same and collects. What the first one acknowledges later, or not, is whole."""
    cut = Cut()
    async with place.near() as near:
        kept = await place.stored(near, "other.bin", OTHER)
        sessions = Sessions(postgres, place.index_url)
        async with place.behind(cut) as far:
            task = await cut_in(cut, place.stored(far, "model.bin", CONTENT), wanted)
            if locks_end:
                sessions.end()
                again = await place.stored(near, "again.bin", CONTENT)
                await between(near)
            outcome = await end_of(cut, task)
        if not locks_end:
            again = await place.stored(near, "again.bin", CONTENT)
            await between(near)
        await place.check(near, kept, OTHER)
        await place.check(near, again, CONTENT)
        if isinstance(outcome, Record):
            await place.check(near, outcome, CONTENT)
        await place.check_end(near)
        await place.check(near, again, CONTENT)


@pytest.mark.parametrize("wanted", [b"POST /", b"UPDATE chunks", b"DELETE FROM chunks", b"COMMIT"])
async def test_a_collection_of_a_server_that_is_cut_off(place: Place, postgres: Postgres, wanted: bytes) -> None:
    """Another server stores again what is being removed. What the first one removes late is not what is needed."""
    cut = Cut()
    async with place.near() as near:
        kept = await place.stored(near, "other.bin", OTHER)
        removed = await place.stored(near, "model.bin", CONTENT)
        await near.remove(removed.id)
        sessions = Sessions(postgres, place.index_url)
        async with place.behind(cut) as far:
            task = await cut_in(cut, collect(far), wanted)
            sessions.end()
            again = await place.stored(near, "again.bin", CONTENT)
            await end_of(cut, task)
        await place.check(near, kept, OTHER)
        await place.check(near, again, CONTENT)
        await place.check_end(near)
        await place.check(near, again, CONTENT)
