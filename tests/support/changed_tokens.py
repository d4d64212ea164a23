"""Change the tokens of a folder beside its server, and see what becomes of requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http.client import HTTPException

from filestore.backends import open_backend
from filestore.core.signing import SigningKeys
from filestore.repository.index.protocol import Index, Transaction
from tests.support.server import SECONDS, Reply, RunningServer

ASKED = 16
"""How often both workers are asked: with a new connection each time, one of them is missed once in 2**16 runs."""


def signing_keys(server: RunningServer) -> SigningKeys:
    """Return the keys that sign URLs and sessions. Anyone who can read them can read everything else too."""

    async def read() -> SigningKeys:
        store, index = await open_backend(server.root)
        keys = await index.signing_keys()
        await index.close()
        await store.close()
        return keys

    return asyncio.run(read())


def changed(server: RunningServer, change: Callable[[Index, Transaction], Awaitable[object]]) -> None:
    """Change the index beside the server, as a command does."""

    async def run() -> None:
        store, index = await open_backend(server.root)
        try:
            async with index.transaction() as transaction:
                await change(index, transaction)
        finally:
            await index.close()
            await store.close()

    asyncio.run(run())


def statuses(server: RunningServer, method: str, path: str, *, token: str | None) -> set[int]:
    """The statuses of many answers, of both workers."""
    return {answered(lambda: server.ask(method, path, token=token)) for _ in range(ASKED)}


def answered(ask: Callable[[], Reply]) -> int:
    """Return the status of an answer, or 0 if the request was cut."""
    try:
        return ask().status
    except (ConnectionError, HTTPException):
        return 0


def ends(connection: socket.socket) -> int:
    """Read to the end of a connection, which the server cuts. Return how many bytes came."""
    connection.settimeout(SECONDS)
    count = 0
    with suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            count += len(piece)
    return count


def is_closing(connection: socket.socket) -> bool:
    """Return whether the other end has closed a connection or reset it. TCP_INFO begins with the state; 1 is established."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1
