"""Run a forward proxy: whole URLs for plain HTTP, CONNECT for TLS, and a password if a test wants one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.listening import listening


class Forwarding(NamedTuple):
    """A proxy that is running."""

    port: int
    asked: list[tuple[str, dict[str, str]]]
    """The first lines of the requests on new connections, and their headers, by names in lower case."""


@asynccontextmanager
async def running_forwarding(*, authorization: str | None = None) -> AsyncIterator[Forwarding]:
    """Forward until the end of the block. Answer 407 to requests without `authorization`, if it is given."""
    asked: list[tuple[str, dict[str, str]]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await forward(reader, writer)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        asked.append((head[0], headers))
        if authorization is not None and headers.get("proxy-authorization") != authorization:
            writer.write(b"HTTP/1.1 407 X\r\nServer: proxy-of-tests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        method, target, _ = head[0].split()
        place = urlsplit(f"//{target}" if method == "CONNECT" else target)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", place.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            # A connection has one request, because a second one would have to be read too.
            lines = [f"{method} {place.path}{'?' * bool(place.query)}{place.query} HTTP/1.1", *head[1:-2], "Connection: close"]
            up_writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(reader, up_writer))
                group.create_task(copy(up_reader, writer))
        finally:
            up_writer.close()

    async with listening(serve) as port:
        yield Forwarding(port, asked)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy all bytes and the end of a connection."""
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
