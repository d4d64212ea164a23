"""Servers of tests on asyncio's streams, of which nothing is left behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(
    handle: Handler, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Have `handle` serve each connection; the port. At the end of the block, handlers are cancelled and connections closed.

    A connection that outlives its event loop is an error in the next test, whichever that is.
    """
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        try:
            await handle(reader, writer)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # No wait_closed: a peer that was given up on may still be connected.
        server.close()
        # A connection that has only just been accepted gets its handler in the next round of the loop.
        await asyncio.sleep(0)
        ending = list(tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        # A TLS connection that is being closed waits for its peer, which may have gone.
        for writer in writers:
            writer.transport.abort()
