"""Read and write an aiohttp connection directly, through a duplicated descriptor.

aiohttp and asyncio then never copy the body, and threads may move it. The event loop may close its own descriptor at
any time; the duplicate stays valid. The server speaks no TLS: the bytes on a TLS socket are encrypted.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

PEER = "the client"
PIECE = 256 << 10
"""Bytes of memory that one connection may hold while it waits for data, or for the peer to take data (I6)."""
PATIENCE_MILLISECONDS = 2
"""How long a thread waits for a peer. The event loop waits for a slower peer, so that it holds no thread."""


def duplicate(transport: asyncio.Transport) -> socket.socket:
    """Return a new, non-blocking descriptor of the connection of `transport`. The caller closes it."""
    connection: socket.socket = transport.get_extra_info("socket").dup()
    return connection


async def readable(connection: socket.socket, *, seconds: float) -> bool:
    """Wait until bytes, or the end of the connection, can be read. Return False if this takes longer than `seconds`."""
    loop = asyncio.get_running_loop()
    return await _called_back(loop.add_reader, loop.remove_reader, connection, seconds)


async def writable(connection: socket.socket, *, seconds: float) -> bool:
    """Wait until bytes can be sent, or the peer has left. Return False if this takes longer than `seconds`."""
    loop = asyncio.get_running_loop()
    return await _called_back(loop.add_writer, loop.remove_writer, connection, seconds)


async def _called_back(
    add: Callable[[socket.socket, Callable[[], None]], None],
    remove: Callable[[socket.socket], object],
    connection: socket.socket,
    seconds: float,
) -> bool:
    happened = asyncio.Event()
    add(connection, happened.set)
    try:
        async with asyncio.timeout(seconds):
            await happened.wait()
    except TimeoutError:
        return False
    finally:
        remove(connection)
    return True
