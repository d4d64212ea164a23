"""An index in PostgreSQL that several processes use. Each `PostgresIndex` is what one process has."""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from multiprocessing.connection import Connection as Pipe

import asyncpg
import pytest

from filestore.core.digest import Digest, chunk_digest, token_digest
from filestore.core.object_names import FrameObject, ObjectName
from filestore.core.quotas import Quota
from filestore.core.records import Kind
from filestore.errors import (
    Busy,
    InvalidUrl,
    NotARepository,
    ReadOnly,
    StorageError,
    UnknownFormat,
    UsedAfterFork,
)
from filestore.repository.index.postgres import tables_base
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.index.postgres.transaction import PostgresTransaction
from filestore.repository.index.protocol import ChunkRow, ListingGrowth, Use
from tests.contracts.conftest import Clock
from tests.support.cancels import cancelled_at_every_await
from tests.support.postgres import Postgres
from tests.support.publications import Frames, rows

A, B = "a", "b"
HOUR = 3600
LATE = 1 << 62
"""Later than every last-seen time."""
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
OpenIndex = Callable[..., Awaitable[PostgresIndex]]


@pytest.fixture
def clock() -> Clock:
    """The clock of all indexes of a test."""
    return Clock()


@pytest.fixture
async def open_shared(postgres_index_url: str, clock: Clock) -> AsyncIterator[OpenIndex]:
    """Open the same index again and again."""
    opened: list[PostgresIndex] = []

    async def open_again(*, busy_seconds: float = 60, connections: int = 10, read_only: bool = False) -> PostgresIndex:
        index = await open_postgres_index(
            postgres_index_url, busy_seconds=busy_seconds, now=clock, connections=connections, read_only=read_only
        )
        opened.append(index)
        return index

    yield open_again
    for index in opened:
        await index.close()


#: Rows of ``pg_locks``, which lists the locks of all databases of the server, that belong to the database of the test.
OUR_LOCKS = "pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"


@pytest.fixture
async def watcher(postgres_index_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that sees what the others do."""
    connection = await asyncpg.connect(postgres_index_url)
    yield connection
    await connection.close()


async def until_waiting(watcher: asyncpg.Connection, count: int = 1) -> None:
    """Wait until so many sessions wait for a lock of a namespace."""
    while await watcher.fetchval(f"SELECT count(*) FROM {OUR_LOCKS} AND NOT granted") < count:
        await asyncio.sleep(0)


async def until_free(watcher: asyncpg.Connection) -> None:
    """Wait until nobody has or wants a lock of a namespace, and no transaction is open."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
        " AND backend_type = 'client backend' AND state != 'idle'"
    )
    while await watcher.fetchval(statement):
        await asyncio.sleep(0)


async def add(index: PostgresIndex, added: Sequence[ChunkRow], namespace: str = A) -> None:
    """Add rows that are live."""
    async with index.transaction(namespace) as transaction:
        await transaction.add_chunks(namespace, added)


async def commit(index: PostgresIndex, namespace: str = A) -> None:
    """Add a record."""
    async with index.transaction(namespace) as transaction:
        await transaction.add_record(namespace, name="name", digest=rows(1)[0].digest, size=1, kind=Kind.FILE)


async def condemn(index: PostgresIndex, namespace: str = A) -> None:
    """Condemn a row, as a collection does."""
    async with index.transaction(namespace) as transaction:
        await transaction.condemn(namespace, [rows(1)[0].digest], unseen_since=LATE)


async def forget(index: PostgresIndex, namespace: str = A) -> None:
    """Remove a row, as a collection does."""
    async with index.transaction(namespace) as transaction:
        await transaction.forget_chunks(namespace, [rows(1)[0].digest])


async def publish(index: PostgresIndex, namespace: str = A) -> None:
    """Publish a row."""
    await index.publish(Frames([], rows(1), namespace=namespace))


async def refresh(index: PostgresIndex, namespace: str = A) -> None:
    """Ask for a chunk that was seen long ago."""
    await index.missing(namespace, [rows(1)[0].digest])


async def write_all(index: PostgresIndex, namespace: str = A) -> None:
    """Write to any namespace."""
    async with index.transaction() as transaction:
        await transaction.add_chunks(namespace, rows(7))


WRITES = {
    "publish": publish,
    "commit": commit,
    "condemn": condemn,
    "removal": forget,
    "refresh": refresh,
    "all": write_all,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("first", [A, None])
async def test_writers_of_a_namespace_exclude_each_other(
    open_shared: OpenIndex, watcher: asyncpg.Connection, clock: Clock, write: str, first: str | None
) -> None:
    """I2, I9: publish, commit, condemn and removal of two processes go one after the other."""
    index, other = await open_shared(), await open_shared()
    await add(index, rows(1))
    clock.advance(seconds=2 * HOUR)
    async with index.transaction(first) as transaction:
        waiting = asyncio.create_task(WRITES[write](other))
        await until_waiting(watcher)
        await transaction.add_chunks(A, rows(2))
        assert not waiting.done()
        assert [state.row.digest for state in await other.chunk_rows(A, limit=9)] == [row.digest for row in rows(1)]
    await waiting
    assert [] == await other.problems()


@pytest.mark.parametrize("write", [name for name in WRITES if name != "all"])
async def test_namespaces_do_not_wait_for_each_other(open_shared: OpenIndex, clock: Clock, write: str) -> None:
    """While one process writes to a namespace, another one, and the same one, write to others, to tokens and to quotas."""
    index, other = await open_shared(), await open_shared(busy_seconds=0.001)
    for namespace in (A, B):
        await add(index, rows(1), namespace)
    clock.advance(seconds=2 * HOUR)
    async with index.transaction(A) as transaction:
        await transaction.add_chunks(A, rows(2))
        await transaction.add_record(A, name="name", digest=rows(1)[0].digest, size=1, kind=Kind.FILE)
        await WRITES[write](index, B)
        await WRITES[write](other, B)
        async with other.transaction(B) as theirs:
            await theirs.add_token(token_digest("token"), namespace=B, label="")
            await theirs.set_quota(B, Quota(size=1))
        await other.note_token_uses([token_digest("token")])
        async with other.try_lock("task") as has_lock:
            assert has_lock


async def test_what_is_removed_meanwhile_is_put_again(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """I2: a push that waits for the removal of a chunk then finds no live row, and renames its frame into place."""
    index, other = await open_shared(), await open_shared()
    (row,) = rows(1)
    await add(index, [row])
    frames = Frames([], [row._replace(object_id=b"87654321")])
    async with index.transaction(A) as transaction:
        assert [row.digest] == await transaction.condemn(A, [row.digest], unseen_since=LATE)
        publishing = asyncio.create_task(other.publish(frames))
        await until_waiting(watcher)
        assert [ObjectName(row.digest)] == await transaction.forget_chunks(A, [row.digest])
        assert set() == frames.renamed
    assert frames.rows == await publishing
    assert {row.digest} == frames.renamed
    assert {row.digest: FrameObject(b"87654321", row.stored_size)} == await index.frame_objects(A, [row.digest])


async def test_what_is_condemned_meanwhile_is_missing(open_shared: OpenIndex, watcher: asyncpg.Connection, clock: Clock) -> None:
    """I9: a chunk that a collection condemns while a push asks for it is not reported as present."""
    index, other = await open_shared(), await open_shared()
    (row,) = rows(1)
    await add(index, [row])
    clock.advance(seconds=2 * HOUR)
    async with index.transaction(A) as transaction:
        asking = asyncio.create_task(other.missing(A, [row.digest]))
        await until_waiting(watcher)
        assert [row.digest] == await transaction.condemn(A, [row.digest], unseen_since=clock.now)
    assert [row.digest] == await asking


async def test_what_is_asked_for_meanwhile_is_not_condemned(
    open_shared: OpenIndex, watcher: asyncpg.Connection, clock: Clock
) -> None:
    """I9: the collection waits for the push that refreshes the chunk, and then spares it."""
    index, other = await open_shared(), await open_shared()
    (row,) = rows(1)
    await add(index, [row])
    clock.advance(seconds=2 * HOUR)

    async def collect() -> list[Digest]:
        async with other.transaction(A) as transaction:
            return await transaction.condemn(A, [row.digest], unseen_since=clock.now)

    async with index.transaction(A) as transaction:
        collecting = asyncio.create_task(collect())
        await until_waiting(watcher)
        await transaction.refresh(A, [row.digest])
    assert [] == await collecting


async def end_others(watcher: asyncpg.Connection) -> None:
    """End all other connections to the database, as a restart of the server does, and wait for their ends."""
    others = "pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid() AND backend_type = 'client backend'"
    await watcher.fetch(f"SELECT pg_terminate_backend(pid) FROM {others}")
    while await watcher.fetchval(f"SELECT count(*) FROM {others}"):
        await asyncio.sleep(0)


async def test_a_connection_that_ends_in_a_transaction_is_busy(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """Nothing of the transaction stays, and another process goes on at once."""
    index, other = await open_shared(), await open_shared(busy_seconds=0.5)
    with pytest.raises(Busy) as caught:
        async with index.transaction(A) as transaction:
            await transaction.add_chunks(A, rows(1))
            await end_others(watcher)
            await add(other, rows(2))
            await transaction.add_chunks(A, rows(3))
    assert caught.value.retryable
    await add(index, rows(4))
    found = {state.row.digest for state in await index.chunk_rows(A, limit=9)}
    assert {row.digest for row in rows(2, 4)} == found
    assert [] == await index.problems()


async def test_a_connection_that_ends_while_it_is_given_back_harms_nobody(open_shared: OpenIndex) -> None:
    """What was asked of it is answered already."""
    index = await open_shared()
    await add(index, rows(1))
    loop = asyncio.get_running_loop()

    async def ending(connection: asyncpg.Connection) -> None:
        # In the next turn of the loop, when the pool has been told.
        await connection.fetchval("SELECT 1")
        loop.call_soon(connection._con._transport.abort)

    await index._read(ending)
    assert 1 == len(await index.chunk_rows(A, limit=9))


async def test_a_connection_that_ends_before_the_commit_is_busy(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """The commit was not done, and the caller does not believe so."""
    index = await open_shared()
    with pytest.raises(Busy):
        async with index.transaction(A) as transaction:
            await transaction.add_chunks(A, rows(1))
            await end_others(watcher)
    assert [] == await index.chunk_rows(A, limit=9)


async def test_a_connection_that_ends_while_frames_are_renamed_is_busy(
    open_shared: OpenIndex, postgres: Postgres, postgres_index_url: str
) -> None:
    """No row is there, so the frames count as absent. The push sends them again."""
    index = await open_shared()
    name = postgres_index_url.rpartition("/")[2]

    class Ending(Frames):
        def sync(self) -> None:
            postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    with pytest.raises(Busy):
        await index.publish(Ending([], rows(1)))
    assert [row.digest for row in rows(1)] == await index.missing(A, [row.digest for row in rows(1)])
    assert rows(1) == await index.publish(Frames([], rows(1)))


async def test_a_wait_for_a_lock_whose_connection_ends_is_busy(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """All publications that wait are told at once."""
    index, other = await open_shared(), await open_shared()
    with pytest.raises(Busy):
        async with other.transaction(A):
            waiting = [asyncio.create_task(index.publish(Frames([], rows(number)))) for number in (1, 2)]
            await until_waiting(watcher)
            await end_others(watcher)
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, Busy)
    assert rows(1) == await index.publish(Frames([], rows(1)))


async def test_reads_go_on_after_the_connections_have_ended(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """A connection of the pool that ended while nobody used it is replaced."""
    index = await open_shared()
    await add(index, rows(1))
    await end_others(watcher)
    with suppress(Busy):  # if this process has not heard of it yet
        await index.namespaces()
    assert [] == await index.missing(A, [row.digest for row in rows(1)])


async def test_a_lock_ends_with_its_connection(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """Its block goes on, and another process gets the lock: it only saves work."""
    index, other = await open_shared(), await open_shared()
    async with index.try_lock("task") as first:
        await end_others(watcher)
        async with other.try_lock("task") as second:
            assert (True, True) == (first, second)
    async with index.try_lock("task") as again:
        assert again


@pytest.mark.parametrize("connections", [4, 5, 12])
async def test_all_work_shares_few_connections(
    postgres: Postgres, postgres_index_url: str, clock: Clock, connections: int
) -> None:
    """PostgreSQL itself refuses one more. Writers that read meanwhile, long reads and locks all come to their end."""
    user, password = postgres.new_user()
    database = postgres_index_url.rpartition("/")[2].partition("?")[0]
    for what in ("TABLES", "SEQUENCES"):
        postgres.execute(f"GRANT ALL ON ALL {what} IN SCHEMA public TO {user}", url=postgres_index_url)
    index = await open_postgres_index(postgres.url(database, user=f"{user}:{password}"), now=clock, connections=connections)
    try:
        await add(index, rows(1))
        postgres.execute(f"ALTER ROLE {user} CONNECTION LIMIT {connections}")
        namespaces = [f"n{number}" for number in range(20)]

        async def write_and_read(namespace: str) -> None:
            async with index.transaction(namespace) as transaction:
                await transaction.add_chunks(namespace, rows(1, 2))
                # Another connection reads it, while this one has the lock.
                assert [] == await index.chunk_rows(namespace, limit=9)
                async with index.try_lock(f"inside-{namespace}") as is_ours:
                    assert is_ours

        async def lock(namespace: str) -> None:
            async with index.try_lock(namespace) as is_ours:
                assert is_ours
                assert [] == await index.problems()
                await write_and_read(namespace)

        async def list_records(namespace: str) -> None:
            with tempfile.TemporaryFile() as file:
                await index.write_listing(namespace, file, ListingGrowth())

        await asyncio.gather(
            *map(lock, namespaces),
            *map(list_records, namespaces),
            *(index.note_token_uses([]) for _ in namespaces),
            *(publish(index, namespace) for namespace in (A, B)),
        )
        assert sorted([A, B, *namespaces]) == sorted(await index.namespaces())
        assert 0 == index.waiting["index-looks"]
    finally:
        await index.close()


async def test_locks_share_a_connection(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """Any number of them, of one process. Each of them excludes another process and another block of this one."""
    index, other = await open_shared(), await open_shared()
    names = [f"lock-{number}" for number in range(30)]
    sessions = f"SELECT count(DISTINCT pid), count(*) FROM {OUR_LOCKS} AND granted"
    async with AsyncExitStack() as held:
        assert all([await held.enter_async_context(index.try_lock(name)) for name in names])
        assert (1, 30) == tuple(await watcher.fetchrow(sessions))
        for another in (index, other):
            async with another.try_lock(names[7]) as is_ours:
                assert not is_ours
    async with other.try_lock(names[7]) as is_ours:
        assert is_ours


async def test_a_connection_for_locks_that_is_made_during_a_close_is_closed(
    open_shared: OpenIndex, watcher: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else knows of it, and it would stay until the end of the process."""
    index = await open_shared()
    made, may_go_on = asyncio.Event(), asyncio.Event()
    connections = []
    connect = asyncpg.connect

    async def connect_slowly(**arguments: object) -> asyncpg.Connection:
        connections.append(await connect(**arguments))
        made.set()
        await may_go_on.wait()
        return connections[0]

    async def lock() -> None:
        async with index.try_lock("name"):
            pass

    monkeypatch.setattr(asyncpg, "connect", connect_slowly)
    locking = asyncio.create_task(lock())
    await made.wait()
    await index.close()
    may_go_on.set()
    with pytest.raises(RuntimeError, match="is closed"):
        await locking
    assert [True] == [connection.is_closed() for connection in connections]


async def test_a_failed_lock_frees_the_others(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """They share a session, which is gone. The blocks go on, and the next one takes its lock in a new session."""
    index, other = await open_shared(), await open_shared()
    async with index.try_lock("first") as first, index.try_lock("second") as second:
        assert (True, True) == (first, second)
        await end_others(watcher)
        with suppress(Busy):  # if this process has not heard of it yet
            async with index.try_lock("third"):
                pass
        async with index.try_lock("third") as third, other.try_lock("first") as theirs:
            assert (True, True) == (third, theirs)
        async with index.try_lock("second") as again:
            assert not again
    async with index.try_lock("second") as again:
        assert again


CANCELLED: dict[str, Callable[[PostgresIndex], Awaitable[object]]] = {
    "publish": publish,
    "commit": commit,
    "removal": forget,
    "refresh": refresh,
    "read": lambda index: index.chunk_rows(A, limit=9),
    "problems": lambda index: index.problems(),
    "used": lambda index: index.note_token_uses([token_digest("token")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CANCELLED)
async def test_a_cancel_at_any_await_leaves_the_pool_usable(
    open_shared: OpenIndex, watcher: asyncpg.Connection, clock: Clock, call: str
) -> None:
    """Both connections of the pool can be used, and no lock or transaction is left."""
    index = await open_shared(connections=4)
    await add(index, rows(1, 2))

    async def run() -> None:
        clock.advance(seconds=2 * HOUR)
        await CANCELLED[call](index)

    async for _ in cancelled_at_every_await(run):
        async with index.transaction(B) as transaction:
            await transaction.add_chunks(B, rows(1))
            assert [] == await index.missing(A, [])
            await index.note_token_uses([])
    await until_free(watcher)
    assert [] == await index.problems()


async def test_a_cancelled_lock_is_free(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """After a cancel at any await, another block gets it."""
    index = await open_shared()

    async def lock() -> None:
        async with index.try_lock("task"):
            await asyncio.sleep(0)

    async for _ in cancelled_at_every_await(lock):
        await until_free(watcher)
        while await watcher.fetchval(f"SELECT count(*) FROM {OUR_LOCKS} AND granted"):
            await asyncio.sleep(0)


async def test_a_transaction_of_one_namespace_is_not_used_for_another(open_shared: OpenIndex) -> None:
    """It has no lock there. That is a fault of the program, which ends it."""
    index = await open_shared()
    for write in (condemn, commit):
        with pytest.raises(RuntimeError, match="'a' is used for 'b'"):
            async with index.transaction(A) as transaction:
                await transaction.add_chunks(A, rows(1))
                await write(_Same(transaction), B)  # type: ignore[arg-type]  # an index with an open transaction
    assert [] == await index.namespaces()


class _Same:
    """Stands for an index whose transaction is open already."""

    def __init__(self, transaction: PostgresTransaction) -> None:
        self._transaction = transaction

    @asynccontextmanager
    async def transaction(self, _: str) -> AsyncIterator[PostgresTransaction]:
        yield self._transaction


async def test_a_failed_statement_is_not_committed(open_shared: OpenIndex) -> None:
    """The server undoes a transaction in which a statement has failed, also if somebody goes on."""
    index = await open_shared()
    with pytest.raises(Busy, match="rolled back"):
        async with index.transaction(A) as transaction:
            await transaction.add_chunks(A, rows(1))
            with suppress(StorageError):
                await transaction.add_uses(A, [Use("file\0", "p", "p:v1")])
    assert [] == await index.chunk_rows(A, limit=9)


def _use_after_fork(index: PostgresIndex, pipe: Pipe) -> None:
    async def use() -> str:
        try:
            await index.missing(A, [])
        except UsedAfterFork as error:
            return str(error)
        return "it was used"

    pipe.send(asyncio.run(use()))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_process_is_told(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """It has the sockets of its parent, and must not write to them. The parent goes on."""
    index = await open_shared()
    await add(index, rows(1))
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_use_after_fork, args=(index, theirs))
    child.start()
    assert "when this process was forked" in await asyncio.to_thread(ours.recv)
    await asyncio.to_thread(child.join)
    assert [] == await index.missing(A, [row.digest for row in rows(1)])


async def test_another_event_loop_is_told(open_shared: OpenIndex) -> None:
    """Its connections belong to the loop that opened it."""
    index = await open_shared()
    found: list[str] = []

    async def use() -> None:
        with pytest.raises(RuntimeError, match="another event loop") as caught:
            await index.missing(A, [])
        found.append(str(caught.value))

    thread = threading.Thread(target=asyncio.run, args=(use(),))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert 1 == len(found)


async def test_a_reader_writes_nothing(open_shared: OpenIndex, clock: Clock, postgres_url: str) -> None:
    """Neither tables, nor times of chunks and tokens, nor the secret."""
    with pytest.raises(NotARepository):
        await open_postgres_index(postgres_url, read_only=True)
    index = await open_shared()
    await add(index, rows(1))
    reader = await open_shared(read_only=True)
    clock.advance(seconds=2 * HOUR)
    assert [] == await reader.missing(A, [rows(1)[0].digest])
    assert clock.now - 2 * HOUR * 1_000_000 == (await index.chunk_rows(A, limit=1))[0].last_seen
    for write in (reader.secret, lambda: reader.note_token_uses([])):
        with pytest.raises(ReadOnly):
            await write()


async def test_objects_are_found_by_their_rows(open_shared: OpenIndex) -> None:
    """A condemned row names its object, and no reader gets it. The first object of a manifest stays until it is forgotten."""
    index = await open_shared()
    live, condemned, absent = (row._replace(object_id=b"object %d" % number) for number, row in enumerate(rows(1, 2, 3)))
    manifest, other = ObjectName(chunk_digest(b"manifest"), b"11111111"), ObjectName(chunk_digest(b"manifest"), b"22222222")
    await add(index, [live, condemned])
    async with index.transaction(A) as transaction:
        await transaction.condemn(A, [condemned.digest], unseen_since=LATE)
        assert [manifest.object_id] * 2 == [await transaction.keep_manifest(A, each) for each in (manifest, other)]
    asked = [row.digest for row in (absent, condemned, live)]
    assert {live.digest: FrameObject(live.object_id, live.stored_size)} == await index.frame_objects(A, asked)
    names = [ObjectName(row.digest, row.object_id) for row in (absent, condemned, live)]
    stale = ObjectName(live.digest, b"00000000")
    assert [names[0], stale] == await index.unnamed_frames(A, [*names, stale])
    assert [other] == await index.unnamed_manifests(A, [manifest, other])
    assert (manifest.object_id, None) == (
        await index.manifest_object(A, manifest.digest),
        await index.manifest_object(B, manifest.digest),
    )
    async with index.transaction(A) as transaction:
        assert [] == await transaction.lose_chunks(A, [stale])
        assert [live.digest] == await transaction.lose_chunks(A, [names[2]])
    assert ([live.digest], [names[0], stale]) == (
        await index.missing(A, [live.digest]),
        await index.unnamed_frames(A, [*names, stale]),
    ), "a frame that was not found keeps its name"
    assert ([names[2]], [], []) == (
        await index.lost_frames(A, limit=10),
        await index.lost_frames(A, names[2], limit=10),
        await index.lost_frames(B, limit=10),
    )
    assert [A] == await index.namespaces()
    async with index.transaction(A) as transaction:
        await transaction.add_chunks(A, [live._replace(object_id=b"11111111")])
    assert [names[0], names[2], stale] == await index.unnamed_frames(A, [*names, stale])
    assert [] == await index.lost_frames(A, limit=10), "the chunk is there again"
    async with index.transaction(A) as transaction:
        again = ObjectName(live.digest, b"11111111")
        assert [live.digest] == await transaction.lose_chunks(A, [again])
        assert [[again], []] == [await transaction.forget_lost(A, [stale, again]) for _ in range(2)]
    assert [again] == await index.unnamed_frames(A, [again])
    async with index.transaction(A) as transaction:
        assert [names[1]] == await transaction.forget_chunks(A, asked[:2])
        assert [manifest, ObjectName(manifest.digest)] == [
            await transaction.forget_manifest(A, manifest.digest) for _ in range(2)
        ]


LOOK_UPS: dict[str, Callable[[PostgresIndex, Sequence[Digest]], Awaitable[object]]] = {
    "missing": lambda index, digests: index.missing(A, digests),
    "rows": lambda index, digests: index.refreshed_rows(A, digests),
    "sizes": lambda index, digests: index.sizes(A, digests),
    "unknown": lambda index, digests: index.unknown(A, digests),
    "objects": lambda index, digests: index.frame_objects(A, digests),
    "names": lambda index, digests: index.unnamed_frames(A, [ObjectName(digest) for digest in digests]),
}
WAITING_FOR_ROWS = (
    "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'chunks'::regclass"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.mark.parametrize("call", LOOK_UPS)
async def test_many_digests_are_looked_up_side_by_side(open_shared: OpenIndex, watcher: asyncpg.Connection, call: str) -> None:
    """Each part by a process of the database of its own. A part that fails fails the call, with its own error."""
    index = await open_shared()
    digests = [chunk_digest(b"%d" % number) for number in range(4096)]

    async def look_up() -> asyncio.Task[object]:
        """Begin to look the digests up, and wait until four processes do so."""
        task = asyncio.ensure_future(LOOK_UPS[call](index, digests))
        while len(await watcher.fetch(WAITING_FOR_ROWS)) < 4:
            await asyncio.sleep(0)
        return task

    async with watcher.transaction():
        await watcher.execute("LOCK TABLE chunks")
        failing = await look_up()
        (pid, *_) = await watcher.fetchrow(WAITING_FOR_ROWS)
        await watcher.fetchval("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(Busy):
            await failing
        task = await look_up()
    await task


async def test_what_was_looked_up_in_parts_is_whole_and_in_order(open_shared: OpenIndex, clock: Clock) -> None:
    """Of 5,000 chunks some are live, some condemned, some only in another namespace, and all are asked for twice."""
    index = await open_shared(connections=4)
    many = [ChunkRow(chunk_digest(b"%d" % number), 1 + number, 10, object_id=b"%08d" % number) for number in range(5000)]
    live, condemned, foreign = many[::3], many[1::3], many[2::3]
    await add(index, [*live, *condemned])
    await add(index, foreign, B)
    async with index.transaction(A) as transaction:
        await transaction.condemn(A, [row.digest for row in condemned], unseen_since=LATE)
    clock.advance(seconds=2 * HOUR)
    await index.missing(A, [row.digest for row in live[::2]])
    digests = [row.digest for row in many]
    asked = [*digests, *reversed(digests)]
    is_live = {row.digest for row in live}
    sizes = {row.digest: row.size for row in live}
    assert [digest for digest in digests if digest not in is_live] == await index.missing(A, asked)
    assert (sizes, sizes) == (await index.refreshed_sizes(A, asked), await index.sizes(A, asked))
    assert {state.last_seen for state in await index.chunk_rows(A, limit=5000) if state.is_live} == {clock.now}
    assert sorted(live) == sorted(await index.refreshed_rows(A, asked))
    absent = {row.digest for row in foreign}
    assert [digest for digest in asked if digest in absent] == await index.unknown(A, asked)
    assert {row.digest: FrameObject(row.object_id, 10) for row in live} == await index.frame_objects(A, asked)
    names = [ObjectName(row.digest, row.object_id) for row in many]
    assert [name for name in names if name.digest in absent] == await index.unnamed_frames(A, names)


async def test_each_verb_is_one_statement(open_shared: OpenIndex, clock: Clock) -> None:
    """A round trip takes longer than the work, so a batch takes one. Only a look-up of more digests has several, side by side."""
    index = await open_shared(connections=4)
    many = [ChunkRow(chunk_digest(b"%d" % number), 10, 10) for number in range(10_000)]
    digests = [row.digest for row in many]
    few = digests[:1000]
    statements: list[str] = []
    async with index._connections.lend() as connection:
        # The first array of a type is one more round trip, once for each connection.
        await connection.fetch("SELECT $1::bytea[], $2::bigint[]", [], [])
        connection.add_query_logger(lambda record: statements.append(record.query))

    async def counted(call: Awaitable[object]) -> int:
        statements.clear()
        await call
        return len(statements)

    async with index.transaction(A) as transaction:
        assert 1 == await counted(transaction.add_chunks(A, many))
        for call in (
            transaction.refresh(A, digests),
            transaction.sizes(A, digests),
            transaction.set_frame_digests(A, [row._replace(frame_digest=row.digest) for row in many]),
            transaction.condemn(A, digests[:5000], unseen_since=LATE),
            transaction.condemned(A, digests),
            transaction.forget_chunks(A, digests[:5000]),
            transaction.usage(A),
        ):
            assert 1 == await counted(call)
    for read in (
        index.missing(A, few),
        index.unknown(A, few),
        index.frame_objects(A, few),
        index.unnamed_frames(A, [ObjectName(digest) for digest in few]),
        index.removed_since(A, 0),
        index.namespaces(),
        index.version(),
    ):
        assert 1 == await counted(read)
    # To begin, to look, to insert, to commit.
    assert 4 == await counted(index.publish(Frames([], many[:64])))


async def test_tables_of_a_newer_version_are_refused(open_shared: OpenIndex, watcher: asyncpg.Connection) -> None:
    """Also in a process that has opened them before. It can still read."""
    index = await open_shared()
    await add(index, rows(1))
    await watcher.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UnknownFormat, match="9999"):
        await open_shared()
    with pytest.raises(UnknownFormat, match="9999"):
        await add(index, rows(2))
    with pytest.raises(UnknownFormat, match="9999"):
        await publish(index)
    assert [] == await index.missing(A, [row.digest for row in rows(1)])


async def test_tables_of_another_program_are_refused(postgres: Postgres, postgres_url: str) -> None:
    """Nothing is added to them."""
    postgres.execute("CREATE TABLE theirs (id int)", url=postgres_url)
    with pytest.raises(UnknownFormat, match="another program"):
        await open_postgres_index(postgres_url)
    assert "theirs" == postgres.execute(TABLES, url=postgres_url)


async def test_tables_are_made_as_a_whole(postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends at the last statement leaves an empty database."""
    kill = "SELECT pg_terminate_backend(pg_backend_pid())"
    with monkeypatch.context() as patch:
        patch.setattr(tables_base, "TRIGGERS", (*tables_base.TRIGGERS, kill))
        with pytest.raises(Busy):
            await open_postgres_index(postgres_url)
    assert not postgres.execute(TABLES, url=postgres_url)
    index = await open_postgres_index(postgres_url)
    await add(index, rows(1))
    await index.close()


async def test_tables_are_made_once(postgres: Postgres, postgres_url: str) -> None:
    """Of many processes that start at the same time, one makes them, and the others wait for it."""
    indexes = await asyncio.gather(*(open_postgres_index(postgres_url) for _ in range(4)))
    assert 1 == len({(await index.version()).index_id for index in indexes})
    for index in indexes:
        await index.close()
    assert "1" == postgres.execute("SELECT count(*) FROM alembic_version", url=postgres_url)


@pytest.mark.parametrize(
    ("url", "error", "reason"),
    [
        ("postgresql://someone:secret-word@127.0.0.1:{port}/test?password=secret-word", StorageError, "someone"),
        ("postgresql://filestore:secret-word@127.0.0.1:1/test", StorageError, "cannot be reached"),
        ("postgresql://filestore:secret-word@127.0.0.1:{port}/absent", StorageError, "absent"),
        ("mysql://filestore:secret-word@127.0.0.1/test", InvalidUrl, "begins with postgresql://"),
        ("postgresql://filestore:secret-word@127.0.0.1:port/test", InvalidUrl, "port"),
    ],
)
async def test_a_database_that_cannot_be_used_is_told(postgres: Postgres, url: str, error: type[Exception], reason: str) -> None:
    """In one sentence, without the password."""
    with pytest.raises(error, match=reason) as caught:
        await open_postgres_index(url.format(port=postgres.port))
    assert "secret-word" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
async def test_a_commit_waits_for_the_disk(
    postgres: Postgres, postgres_index_url: str, open_shared: OpenIndex, given: str, used: str
) -> None:
    """A server that acknowledges commits before it has written them would lose files that were acknowledged to users."""
    database = postgres_index_url.rpartition("/")[2]
    postgres.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = {given}')
    index = await open_shared()
    async with index._connections.lend() as connection:
        assert used == await connection.fetchval("SHOW synchronous_commit")


async def test_counts_are_exact_with_many_writers(open_shared: OpenIndex) -> None:
    """Of two processes, in two namespaces, that add, replace, condemn and remove."""
    indexes = [await open_shared(), await open_shared()]

    async def work(number: int) -> None:
        index, namespace = indexes[number % 2], (A, B)[number // 2 % 2]
        ours = rows(*range(number, number + 5))
        await index.publish(Frames([], [row._replace(stored_size=10 + number) for row in ours], namespace=namespace))
        await commit(index, namespace)
        async with index.transaction(namespace) as transaction:
            await transaction.add_chunks(namespace, [row._replace(stored_size=30 + number) for row in ours[:2]])
            await transaction.condemn(namespace, [ours[1].digest], unseen_since=LATE)
            await transaction.forget_chunks(namespace, [ours[0].digest])

    await asyncio.gather(*(work(number) for number in range(12)))
    assert [] == await indexes[0].problems()
    before = await indexes[0].usages()
    async with indexes[1].transaction() as transaction:
        await transaction.count_again()
    assert before == await indexes[0].usages()
