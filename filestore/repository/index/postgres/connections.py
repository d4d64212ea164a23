"""The connections of one process to a PostgreSQL database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from filestore.errors import UsedAfterFork
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.errors import postgres_errors
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
    "max_parallel_workers_per_gather": "0",
    # A process whose host is gone or cut off loses its locks after a minute, and one that was stopped after five.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "idle_in_transaction_session_timeout": "300000",
}
_BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""After these, a connection is in a state that nobody knows. After an error of the server it is not."""
FAILURES = (asyncpg.PostgresError, *_BROKEN)
"""What asyncpg raises about a connection. Its pool raises an internal error if one ends at the moment that it is given back."""


class Connections:
    """A pool of connections, and connections outside of it. All belong to one process and one event loop."""

    def __init__(self, url: str, where: str, *, limit: int) -> None:
        """The pool has at most `limit` connections, and half as many are made for long reads. None is made yet.

        `where` names the index in messages.
        """
        self._where = where
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._arguments: dict[str, Any] = {"dsn": url, "timeout": _CONNECT_SECONDS, "server_settings": _SETTINGS}
        self._pool = asyncpg.create_pool(
            **self._arguments,
            min_size=0,
            max_size=limit,
            max_queries=_QUERIES,
            max_inactive_connection_lifetime=_UNUSED_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            # Prepared statements stay: without them, each takes two round trips.
            max_cached_statement_lifetime=0,
            # Nothing of ours outlasts a transaction, so nothing is to be undone, which would be one more round trip.
            reset=_keep,
        )
        self._long = asyncio.Semaphore(max(1, limit // 2))
        self._used: set[Connection] = set()
        self._closed = False
        self.waiting = 0
        """How many tasks wait for a connection."""

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool for the block, which must end its transaction. Raises Busy, StorageError."""
        self.check()
        self.waiting += 1
        try:
            with postgres_errors(self._where):
                await self._pool  # the first call prepares the pool, and the others do nothing
                connection = await self._pool.acquire()
        finally:
            self.waiting -= 1
        self._used.add(connection)
        try:
            yield connection
        except BaseException as error:
            if isinstance(error.__cause__, _BROKEN):
                # asyncpg may not know yet that nobody answers any more.
                with suppress(asyncpg.InterfaceError):
                    connection.terminate()
            raise
        finally:
            self._used.discard(connection)
            await shield_until_done(self._give_back(connection))

    @asynccontextmanager
    async def lend_long(self) -> AsyncIterator[Connection]:
        """Lend a connection for a block that may take long, so that those of the pool are left for others."""
        self.waiting += 1
        try:
            await self._long.acquire()
        finally:
            self.waiting -= 1
        try:
            async with self.own() as connection:
                yield connection
        finally:
            self._long.release()

    @asynccontextmanager
    async def own(self) -> AsyncIterator[Connection]:
        """Make a connection for the block, with a session of its own. Raises Busy, StorageError."""
        self.check()
        with postgres_errors(self._where):
            connection = await asyncpg.connect(**self._arguments)
        self._used.add(connection)
        try:
            yield connection
        finally:
            self._used.discard(connection)
            connection.terminate()

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
        await shield_until_done(self._close_pool())

    async def _close_pool(self) -> None:
        with suppress(*FAILURES):
            await self._pool.close()

    async def _give_back(self, connection: Connection) -> None:
        # What fails here is a connection that cannot be used any more. The pool replaces it.
        with suppress(*FAILURES):
            await self._pool.release(connection, timeout=_CONNECT_SECONDS)


async def _keep(_connection: Connection) -> None:
    """Leave a connection as it is when it returns to the pool."""
