"""The locks of one process, which it has for as long as the session of one connection lasts.

All of them share this connection, so that any number of requests and tasks may hold locks. A statement about a lock is short, and
never waits for another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.errors import BROKEN, FAILURES, postgres_errors
from filestore.repository.index.postgres.locks import task_key
from filestore.system.threads import shield_until_done

_ANSWER_SECONDS = 10
"""How long a statement may take. Then the connection is given up, and with it all locks."""


class SessionLocks:
    """Locks by name. They are lost if the connection fails, so they may only save work."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], where: str) -> None:
        """`connect` makes the connection, with the first lock. `where` names the index in messages."""
        self._connect = connect
        self._where = where
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        """Who uses the connection: it has one statement at a time."""
        self._names: set[str] = set()
        """What this process has, or is about to ask for. The session itself may take a lock twice."""

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[bool]:
        """Try to take a lock for the block, and yield whether that was possible. Raises Busy, StorageError."""
        if name in self._names:
            yield False
            return
        self._names.add(name)
        try:
            async with self._asked(name) as connection:
                yield connection is not None
        finally:
            self._names.discard(name)

    def close(self) -> None:
        """Close the connection. The server frees all locks."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    @asynccontextmanager
    async def _asked(self, name: str) -> AsyncIterator[Connection | None]:
        """Yield the connection that has the lock for the block, or None if another process has it."""
        used: list[Connection] = []
        try:
            with postgres_errors(self._where):
                has_lock = await self._take(name, used)
            if not has_lock:
                used.clear()
            yield used[0] if used else None
        finally:
            # Also after a cancel during the statement, which may have taken it.
            for connection in used:
                await shield_until_done(self._free(name, connection))

    async def _take(self, name: str, used: list[Connection]) -> bool:
        async with self._turn:
            connection = self._connection
            if connection is None or connection.is_closed():
                connection = self._connection = await self._connect()
            used.append(connection)
            try:
                return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", task_key(name), timeout=_ANSWER_SECONDS))
            except BROKEN:
                self.close()
                raise

    async def _free(self, name: str, connection: Connection) -> None:
        async with self._turn:
            if self._connection != connection or connection.is_closed():
                return  # the lock has ended with its session
            try:
                await connection.execute("SELECT pg_advisory_unlock($1)", task_key(name), timeout=_ANSWER_SECONDS)
            except FAILURES:
                # Nobody knows whether the lock is free now. So all of them are.
                self.close()
