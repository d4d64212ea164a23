"""Receive a body, and send an answer whose body does not pass through aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from filestore.errors import Interrupted, Stalled
from filestore.http.server.body.connection import PEER, duplicate
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.request_record import record_of
from filestore.http.server.throttle import Throttle
from filestore.system.connection_errors import failure_reason


def connection_of(request: web.Request) -> asyncio.Transport:
    """Return the connection of the client. Raises ConnectionError when the client has closed it."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    return transport


@asynccontextmanager
async def moving(seconds: float, *, told: float | None = None) -> AsyncIterator[None]:
    """Limit the time of a step that only waits for the client. Raises Stalled, with the seconds `told` if they are others."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Stalled(PEER, seconds if told is None else told) from None


@contextmanager
def arriving() -> Iterator[None]:
    """Raise Interrupted if the client ends the connection or sends a malformed body in the block."""
    try:
        yield
    except (ConnectionError, web.RequestPayloadError) as error:
        raise Interrupted(PEER, failure_reason(error)) from error


@asynccontextmanager
async def answering(
    request: web.Request,
    response: web.StreamResponse,
    *,
    size: int,
    stall_seconds: float,
    throttle: Throttle | None = None,
) -> AsyncIterator[BodyWriter]:
    """Send the head of an answer of `size` bytes. The block sends the bytes; an error in it cuts the connection.

    Raises Stalled, ConnectionError.
    """
    response.content_length = size
    await response.prepare(request)
    # aiohttp sends the head, and another descriptor sends the body. So the head must be out first.
    connection_of(request).set_write_buffer_limits(high=0)
    async with moving(stall_seconds):
        await request.writer.drain()
    record = record_of(request)
    with duplicate(connection_of(request)) as connection:
        writer = BodyWriter(connection, stall_seconds=stall_seconds, throttle=throttle)
        try:
            yield writer
            await response.write_eof()
        except BaseException:
            # The cut tells the client that the answer is incomplete.
            if request.transport is not None:
                request.transport.abort()
            raise
        else:
            record.note_body(0)
        finally:
            record.bytes_sent += writer.sent
