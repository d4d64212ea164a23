"""The transport of a server's connection of TLS, with a client that is slow, or talks while a thread has the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from filestore.core.unlocked import MEASURED_EACH, measure_unlocked
from filestore.http.server.tls_transport import PIECE_SIZE, RECORD_SIZE, TlsConnection, TlsTransport
from tests.support.generator import octets
from tests.support.server import SECONDS
from tests.support.tls import client_tls, server_tls

SIZE = 20 << 20
"""More than the kernel holds for a connection."""


class Received(asyncio.Protocol):
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.data = b""
        self.arrived = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.arrived.set()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[TlsTransport, Received, ssl.SSLSocket]]:
    """A transport, its protocol, and the client's end, whose calls block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, peername = listener.accept()
    client.settimeout(SECONDS)
    shaking = asyncio.to_thread(client_tls().wrap_socket, client, server_hostname="localhost")
    context = server_tls()
    server, client_end = await asyncio.gather(asyncio.to_thread(context.wrap_socket, accepted, server_side=True), shaking)
    server.setblocking(False)  # noqa: FBT003  # a method of Python
    protocol = Received()
    transport = TlsTransport(server, protocol, context=context, peername=peername)
    with client_end:
        yield transport, protocol, client_end
        transport.abort()
        await asyncio.sleep(0)


def received(client: ssl.SSLSocket, size: int) -> bytes:
    """Return the next bytes that the client gets."""
    parts = bytearray()
    while len(parts) < size and (piece := client.recv(size - len(parts))):
        parts += piece
    return bytes(parts)


def sent_until_blocked(connection: TlsConnection, content: bytes) -> int:
    """Send from memory that is used for something else after each call. Return how much was taken.

    The kernel may have room again a moment later: an acknowledgement may be delayed for 0.2 s. Afterwards it has none.
    """
    taken, is_full = 0, False
    memory = bytearray(3 * PIECE_SIZE + 100)
    while taken < len(content):
        part = content[taken : taken + len(memory)]
        memory[: len(part)] = part
        try:
            taken += connection.send(memoryview(memory)[: len(part)])
            is_full = False
        except BlockingIOError:
            if is_full:
                break
            is_full = True
            time.sleep(0.3)
        finally:
            memory[:] = bytes(len(memory))
    return taken


async def test_a_client_that_takes_nothing_costs_one_piece() -> None:
    """The bytes that wait are a copy, so the memory that they came from may be used again."""
    content = octets(1, SIZE)
    async with pair() as (transport, _, client):
        with TlsConnection(transport) as connection, connection.held():
            taken = await asyncio.to_thread(sent_until_blocked, connection, content)
            assert PIECE_SIZE < taken < SIZE
            assert 0 < transport.get_write_buffer_size() <= PIECE_SIZE
        # The event loop sends the rest.
        assert content[:taken] == await asyncio.to_thread(received, client, taken)
        assert 0 == transport.get_write_buffer_size()


async def test_what_is_written_later_comes_behind_a_piece_that_waits() -> None:
    """A piece ends on the wire before anything else begins."""
    content = octets(2, SIZE)
    async with pair() as (transport, _, client):
        with TlsConnection(transport) as connection:
            with connection.held():
                taken = await asyncio.to_thread(sent_until_blocked, connection, content)
            transport.write(b"later")
            with connection.held(), pytest.raises(BlockingIOError):
                connection.send(b"not now")
        assert content[:taken] + b"later" == await asyncio.to_thread(received, client, taken + 5)


async def test_what_arrives_while_a_thread_sends_waits_for_the_end_of_the_block() -> None:
    """The event loop does not read meanwhile, and reads then. The client may send anything, also many times."""
    async with pair() as (transport, protocol, client):
        with TlsConnection(transport) as connection:
            for number in range(3):
                protocol.arrived.clear()
                with connection.held():
                    await asyncio.to_thread(client.sendall, b"asked")
                    for _ in range(5):
                        await asyncio.sleep(0.01)
                    assert number * b"asked" == protocol.data
                    assert 6 == connection.send(b"answer")
                await asyncio.wait_for(protocol.arrived.wait(), SECONDS)
                assert (number + 1) * b"asked" == protocol.data
                assert b"answer" == await asyncio.to_thread(received, client, 6)


async def test_the_event_loop_reads_what_a_thread_has_left_in_openssl() -> None:
    """A thread receives a part of a record. No event of the socket tells of its rest."""
    async with pair() as (transport, protocol, client):
        with TlsConnection(transport) as connection:
            memory = memoryview(bytearray(4))
            with connection.held():
                await asyncio.to_thread(client.sendall, b"body" + b"next")
                while True:
                    try:
                        assert 4 == connection.recv_into(memory)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
            assert b"body" == memory.tobytes()
            await asyncio.wait_for(protocol.arrived.wait(), SECONDS)
            assert b"next" == protocol.data


async def test_one_of_many_records_is_measured_for_all() -> None:
    """To measure each would cost a tenth of the time to receive it."""
    counted: list[int] = []

    def measure(function, args, times=1):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = function(*args)
        counted.append(times)
        return result

    records = 4 * MEASURED_EACH
    async with pair() as (transport, _, client):
        with TlsConnection(transport) as connection, connection.held():
            sending = asyncio.create_task(asyncio.to_thread(client.sendall, bytes(records * RECORD_SIZE)))
            memory = memoryview(bytearray(RECORD_SIZE))
            left = records
            measure_unlocked(measure)
            try:
                while left:
                    try:
                        assert RECORD_SIZE == connection.recv_into(memory)
                        left -= 1
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
            finally:
                measure_unlocked(None)
            await sending
    # A call that finds nothing is not counted here.
    assert [MEASURED_EACH] * 4 == counted
