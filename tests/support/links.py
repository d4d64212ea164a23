"""Put a link between a client and a server, which counts bytes and can change, cut or slow down what passes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.support.listening import listening

PIECE = 1 << 16


async def as_it_is(piece: bytes) -> bytes:
    """Let a piece pass."""
    return piece


Change = Callable[[bytes], Awaitable[bytes]]
"""A function that returns what passes in the place of a piece. It may wait. It raises ConnectionError to cut the connection."""


@dataclass
class Link:
    """A link that is open. `up` is the direction to the server."""

    server_port: int
    up: Change = as_it_is
    down: Change = as_it_is
    port: int = 0
    up_size: int = 0
    down_size: int = 0
    open_now: int = 0
    opened: list[int] = field(default_factory=list)
    """For each connection, how many were open when it was made, with itself."""

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection to its end."""
        self.open_now += 1
        self.opened.append(self.open_now)
        try:
            with suppress(OSError):
                await self._carry(reader, writer)
        finally:
            self.open_now -= 1

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        try:
            ends = [
                asyncio.create_task(self._copy(reader, up_writer, is_up=True)),
                asyncio.create_task(self._copy(up_reader, writer, is_up=False)),
            ]
            try:
                # Both ends of both connections are closed as soon as one of them is.
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        finally:
            up_writer.transport.abort()
            writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_up: bool) -> None:
        while piece := await reader.read(PIECE):
            if is_up:
                self.up_size += len(piece)
            else:
                self.down_size += len(piece)
            writer.write(await (self.up if is_up else self.down)(piece))
            await writer.drain()


@asynccontextmanager
async def running_link(server_port: int, *, buffer_size: int | None = None) -> AsyncIterator[Link]:
    """Forward to a port of this machine until the end of the block. `buffer_size` limits what the kernel takes from a client."""
    link = Link(server_port)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if buffer_size is not None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
        await link.carry(reader, writer)

    async with listening(handle) as port:
        link.port = port
        yield link


def flip_once(is_wanted: Callable[[bytes], bool]) -> Change:
    """Return a change that flips the last bit of the first piece that is wanted."""
    flipped = False

    async def change(piece: bytes) -> bytes:
        nonlocal flipped
        if flipped or not is_wanted(piece):
            return piece
        flipped = True
        return piece[:-1] + bytes([piece[-1] ^ 1])

    return change


def cut_once(after: int) -> Change:
    """Return a change that cuts the connection which carries the byte number `after` of all."""
    passed = 0

    async def change(piece: bytes) -> bytes:
        nonlocal passed
        before, passed = passed, passed + len(piece)
        if before < after <= passed:
            raise ConnectionResetError
        return piece

    return change


async def slowly(piece: bytes) -> bytes:
    """Let 64 KiB pass in 2 ms at the most. So a batch of 16 MB takes half a second on any machine."""
    await asyncio.sleep(0.002 * len(piece) / PIECE)
    return piece
