"""Read and write an aiohttp connection directly, through a duplicated descriptor.

aiohttp and asyncio then never copy the body, and threads may move it. The event loop may close its own descriptor at
any time; the duplicate stays valid. On a connection of TLS, the bytes pass through its transport, in the same threads.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked
from filestore.http.server.tls_transport import RECORD_SIZE, TlsConnection, TlsTransport
from filestore.system.threads import per_thread

PEER = "the client"
PIECE = 256 << 10
"""Bytes of memory that one connection may hold while it waits for data, or for the peer to take data (I6)."""
PATIENCE_MILLISECONDS = 2
"""How long a thread waits for a peer. The event loop waits for a slower peer, so that it holds no thread."""
_RECORDS_SIZE = RECORD_SIZE + 1024
"""Bytes of one record of TLS as it is sent, and more."""

Connection = socket.socket | TlsConnection

_file_memory = per_thread(lambda: memoryview(bytearray(PIECE)))


def duplicate(transport: asyncio.Transport) -> Connection:
    """Return a new, non-blocking descriptor of the connection of `transport`. The caller closes it."""
    if isinstance(transport, TlsTransport):
        return TlsConnection(transport)
    connection: socket.socket = transport.get_extra_info("socket").dup()
    return connection


def socket_of(connection: Connection) -> socket.socket:
    """Return the socket to wait with, and to ask for facts. On a connection of TLS, its bytes are encrypted."""
    return connection.socket if isinstance(connection, TlsConnection) else connection


def held(connection: Connection) -> AbstractContextManager[None]:
    """Return a block during which one thread may use the connection. The event loop does not read or write meanwhile."""
    return connection.held() if isinstance(connection, TlsConnection) else nullcontext()


def send(connection: Connection, data: Buffer) -> int:
    """Send what the kernel takes now. Return the number of bytes. Raises BlockingIOError, ConnectionError."""
    # A connection of TLS has a call for each record, and measures those itself.
    return connection.send(data) if isinstance(connection, TlsConnection) else unlocked(connection.send, data)


def receive_into(connection: Connection, memory: memoryview) -> int:
    """Receive what there is. Return the number of bytes, 0 at the end. Raises BlockingIOError, ConnectionError."""
    if isinstance(connection, TlsConnection):
        return connection.recv_into(memory)
    return unlocked(connection.recv_into, memory)


def send_file(connection: Connection, descriptor: int, offset: int, size: int) -> int:
    """Send up to `size` bytes of a file. Return the number, 0 at the end of the file.

    Raises BlockingIOError, ConnectionError, and the OSError of the file.
    """
    if not isinstance(connection, TlsConnection):
        return unlocked(os.sendfile, connection.fileno(), descriptor, offset, size)
    memory = _file_memory()[: min(size, PIECE)]
    found = unlocked(os.preadv, descriptor, [memory], offset)
    return connection.send(memory[:found]) if found else 0


def awaited_size(connection: Connection, size: int) -> int:
    """Return how many bytes the kernel should wait for, where `size` bytes of content are wanted.

    OpenSSL may have read a part of a record already, and the rest of it is shorter than the record.
    """
    return size if not isinstance(connection, TlsConnection) else size - _RECORDS_SIZE if size >= PIECE else 1


async def readable(connection: Connection, *, seconds: float) -> bool:
    """Wait until bytes, or the end of the connection, can be read. Return False if this takes longer than `seconds`."""
    loop = asyncio.get_running_loop()
    return await _called_back(loop.add_reader, loop.remove_reader, socket_of(connection), seconds)


async def writable(connection: Connection, *, seconds: float) -> bool:
    """Wait until bytes can be sent, or the peer has left. Return False if this takes longer than `seconds`."""
    loop = asyncio.get_running_loop()
    return await _called_back(loop.add_writer, loop.remove_writer, socket_of(connection), seconds)


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
