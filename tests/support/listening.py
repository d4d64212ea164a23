"""Run servers of tests on asyncio's streams, and leave nothing of them behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

ACCEPT_CYCLES = 5
"""More cycles of the loop than asyncio needs from the acceptance of a connection to its handler."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(
    handle: Handler, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve each connection with `handle`; yield the port.

    The end of the block cancels handlers and closes connections.

    A connection that outlives its event loop would be an error in some later test.
    """
    tasks: set[asyncio.Task[None]] = set()
    sockets: dict[asyncio.StreamWriter, Any] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        sockets[writer] = writer.get_extra_info("socket")
        try:
            await handle(reader, writer)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # A connection gets its handler after a few cycles of the loop: one accepts it, one makes its transport, one tells the
        # protocol. A server that is closed meanwhile would leave the transport open: asyncio cannot attach it any more.
        for _ in range(ACCEPT_CYCLES):
            await asyncio.sleep(0)
        # `wait_closed` is not called, because a peer may still be connected.
        server.close()
        ending = list(tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        # A connection that is being closed waits for its peer, which may have gone or may not read.
        for writer, connection in sockets.items():
            # A transport whose socket is closed has no loop any more, and cannot be aborted again.
            if connection.fileno() >= 0:
                writer.transport.abort()
        await asyncio.sleep(0)  # asyncio closes the sockets in the next cycle
