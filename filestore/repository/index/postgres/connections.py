"""The connections of one process to a PostgreSQL database."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from filestore.errors import UsedAfterFork
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.errors import BROKEN, FAILURES, postgres_errors
from filestore.repository.index.postgres.opening import LEAST_CONNECTIONS
from filestore.repository.index.postgres.session_locks import SessionLocks
from filestore.system.threads import shield_until_done

_CONNECT_SECONDS = 10
_STATEMENT_SECONDS = 300
"""Statements about a batch take less than a second. This is for a server that does not answer any more."""
_UNUSED_SECONDS = 300
"""After this time, a connection that nobody used is closed."""
_QUERIES = 1 << 40
"""Connections are not replaced after a number of queries."""
_SETTINGS = {
    "application_name": "filestore",
    # To compile a statement takes longer than each of ours.
    "jit": "off",
    # Ours find rows by their keys. With many keys, a table of a million rows would be read as a whole.
    "enable_seqscan": "off",
    # PostgreSQL cannot know how many digests are given. In a table without statistics, it would read all rows of a namespace.
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
    # A process whose host is gone or cut off loses its locks after a minute, and one that was stopped after five.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # No keepalive is sent while an answer waits for the host that was cut off.
    "tcp_user_timeout": "60000",
    "idle_in_transaction_session_timeout": "300000",
}

_KEEPALIVES = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""PostgreSQL may end a session while this host is cut off. Whoever waits for its answer then learns it by these, in seconds."""

_MAKE_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"


class Connections:
    """All connections of one process and one event loop: a pool, a small one for long reads, and one that has the locks.

    A connection is made when it is needed. One of a pool is closed when nobody has used it for some minutes.

    Whoever has one of the pool waits at most for another one of it, and `writers` of them leave one for that. So nobody
    waits for ever.
    """

    def __init__(self, url: str, where: str, *, limit: int) -> None:
        """There are at most `limit` connections, which is at least `LEAST_CONNECTIONS`. None is made yet.

        `where` names the index in messages.
        """
        if limit < LEAST_CONNECTIONS:
            raise ValueError(f"{limit} connections to a database are too few; {LEAST_CONNECTIONS} are the least")
        self._where = where
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._arguments: dict[str, Any] = {"dsn": url, "timeout": _CONNECT_SECONDS, "server_settings": _SETTINGS}
        long = max(1, limit // 5)
        short = limit - long - 1
        self.writers = max(1, short * 6 // 10)
        """How many of the pool may write at a time."""
        self._pool = self._new_pool(short, seconds=_STATEMENT_SECONDS)
        self._long = self._new_pool(long, seconds=None)
        self.locks = SessionLocks(self._connect, where)
        """The locks of this process."""
        self._used: set[Connection] = set()
        self._closed = False
        self.waiting = 0
        """How many tasks wait for a connection."""

    def _new_pool(self, limit: int, *, seconds: float | None) -> asyncpg.Pool[asyncpg.Record]:
        return asyncpg.create_pool(
            **self._arguments,
            min_size=0,
            max_size=limit,
            max_queries=_QUERIES,
            max_inactive_connection_lifetime=_UNUSED_SECONDS,
            command_timeout=seconds,
            # Prepared statements stay: without them, each takes two round trips.
            max_cached_statement_lifetime=0,
            init=_prepare,
            # Nothing of ours outlasts a transaction, so nothing is to be undone, which would be one more round trip.
            reset=_keep,
        )

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool for the block, which must end its transaction. Raises Busy, StorageError."""
        async with self._lend(self._pool) as connection:
            try:
                yield connection
            except BaseException as error:
                if isinstance(error.__cause__, BROKEN):
                    # asyncpg may not know yet that nobody answers any more.
                    _terminate(connection)
                raise

    @asynccontextmanager
    async def lend_long(self) -> AsyncIterator[Connection]:
        """Lend a connection for a block that may take long, so that those of the pool are left for others."""
        async with self._lend(self._long) as connection:
            try:
                yield connection
            except BaseException:
                # Its transaction may go on, or wait for an answer that is long.
                _terminate(connection)
                raise

    @asynccontextmanager
    async def _lend(self, pool: asyncpg.Pool[asyncpg.Record]) -> AsyncIterator[Connection]:
        self.check()
        self.waiting += 1
        try:
            with postgres_errors(self._where):
                await pool  # the first call prepares the pool, and the others do nothing
                connection = await pool.acquire()
        finally:
            self.waiting -= 1
        self._used.add(connection)
        try:
            yield connection
        finally:
            self._used.discard(connection)
            await shield_until_done(_give_back(pool, connection))

    async def _connect(self) -> Connection:
        self.check()
        connection = await asyncpg.connect(**self._arguments)
        if self._closed:  # meanwhile, so that nobody else would close it
            connection.terminate()
            self.check()
        _keep_alive(connection)
        return connection

    def check(self) -> None:
        """Raise UsedAfterFork in another process, and RuntimeError in another event loop or after `close`."""
        if self._pid != os.getpid():
            raise UsedAfterFork(self._where, self._pid)
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self._where} was opened in another event loop; open it in each loop that uses it")
        if self._closed:
            raise RuntimeError(f"{self._where} is closed")

    async def close(self) -> None:
        """Close all connections, also those that are in use. The server rolls back their transactions."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        for connection in list(self._used):
            connection.terminate()
        self.locks.close()
        await shield_until_done(self._close_pools())

    async def _close_pools(self) -> None:
        for pool in (self._pool, self._long):
            with suppress(*FAILURES):
                await pool.close()


def _terminate(connection: Connection) -> None:
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _give_back(pool: asyncpg.Pool[asyncpg.Record], connection: Connection) -> None:
    # What fails here is a connection that cannot be used any more. The pool replaces it.
    with suppress(*FAILURES):
        await pool.release(connection, timeout=_CONNECT_SECONDS)


async def _prepare(connection: Connection) -> None:
    """Let a commit wait for the disk where the server or the role says that it does not. A stricter value is kept."""
    _keep_alive(connection)
    await connection.execute(_MAKE_DURABLE)


def _keep_alive(connection: Connection) -> None:
    connected = connection._transport.get_extra_info("socket")  # noqa: SLF001  # asyncpg itself sets none
    if connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVES.items():
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


async def _keep(_connection: Connection) -> None:
    """Leave a connection as it is when it returns to the pool."""
