"""The servers of tests leave nothing behind: a connection that outlives its loop fails some later test."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest

from tests.support.listening import listening

LARGE = 32 << 20
"""More than the buffers of a connection's two ends hold."""


def open_transports() -> list[asyncio.Transport]:
    """Return the transports of this loop whose sockets are open. Those of TLS that earlier tests left have no socket any more."""
    loop = asyncio.get_running_loop()
    found = [each for each in gc.get_objects() if isinstance(each, asyncio.Transport) and getattr(each, "_loop", None) is loop]
    return [each for each in found if each.get_extra_info("socket").fileno() >= 0]


@pytest.mark.slow
@pytest.mark.parametrize("cycles", range(8))
async def test_connection_that_was_just_accepted_is_closed(cycles: int) -> None:
    """However far asyncio is with it when the block ends."""

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    with socket.socket() as client:  # it is open longer than the server
        async with listening(handle) as port:
            client.connect(("127.0.0.1", port))
            for _ in range(cycles):
                await asyncio.sleep(0)
        assert [] == open_transports()


@pytest.mark.parametrize("is_ended", [True, False])
async def test_connection_whose_peer_does_not_read_is_closed(*, is_ended: bool) -> None:
    """Also where a handler has ended, or still waits, with bytes that were not sent yet."""
    handled = asyncio.Event()

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(LARGE))
        handled.set()
        if not is_ended:
            await writer.drain()

    with socket.socket() as client:
        async with listening(handle) as port:
            client.connect(("127.0.0.1", port))
            await handled.wait()
        assert [] == open_transports()
