"""A connection that aiohttp has, read and written beside it, through a descriptor of our own.

So a body is never copied on its way through aiohttp and asyncio, and threads may move it: the event loop may close its own
descriptor at any time, and does not know this one. The server speaks no TLS, whose bytes could not be had like this.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Callable

from filestore.system.threads import per_thread

PEER = "the client"
PIECE = 256 << 10
"""What is arriving on a connection, or waits to leave on it, holds no more bytes of memory than this (I6)."""
PATIENCE_MILLISECONDS = 2
"""How long a thread waits for a peer: one that takes longer is waited for by the event loop, and holds no thread."""

piece_buffer = per_thread(lambda: memoryview(mmap.mmap(-1, PIECE)))


def duplicate(transport: asyncio.Transport) -> socket.socket:
    """A descriptor of the caller's own, which never blocks, for what `transport` is connected to."""
    connection: socket.socket = transport.get_extra_info("socket").dup()
    return connection


async def readable(connection: socket.socket, *, seconds: float) -> bool:
    """Wait until there is something to read, or the end; whether there was, in time."""
    loop = asyncio.get_running_loop()
    return await _called_back(loop.add_reader, loop.remove_reader, connection, seconds)


async def writable(connection: socket.socket, *, seconds: float) -> bool:
    """Wait until something can be sent, or the peer is gone; whether that was in time."""
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
