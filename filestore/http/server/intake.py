"""A body that threads read from its connection, so that no byte of it passes through the event loop.

aiohttp's reader costs 0.1 ms for each piece that comes, a quarter of a megabyte at most, and copies it twice. Here a thread has
the connection for a turn: as long as bytes keep coming, and for 4 MiB at most.
"""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from filestore.aio import in_disk_thread
from filestore.errors import Stalled
from filestore.http.server.connection import PATIENCE_MILLISECONDS, PEER, PIECE, duplicate, piece_buffer, readable
from filestore.http.server.exchange import Exchange, arriving
from filestore.stages import Stage, stage

TURN_SIZE = 4 << 20
"""Bytes that a thread takes in one turn: what it took is looked at in the event loop between two."""

_BLANK = bytes(64 << 10)
"""So little that aiohttp's reader, to which it is handed, does not stop its transport and start it again each time."""

Take = Callable[[memoryview], None]
"""Takes a piece, which is valid during the call. Blocks; called in a thread."""


@asynccontextmanager
async def taken_in(exchange: Exchange, *, size: int) -> AsyncIterator[Intake]:
    """Take a body of `size` bytes over from aiohttp, for the block; what is not read by its end is aiohttp's again."""
    intake = Intake(exchange, size=size)
    try:
        yield intake
    finally:
        intake.give_back()


class Intake:
    """A body on its way in. Made by `taken_in`."""

    def __init__(self, exchange: Exchange, *, size: int) -> None:
        self._exchange = exchange
        self._left = size
        self._connection: socket.socket | None = None
        self._awaited = 1
        self._unseen = 0
        self._is_dry = False

    async def turn(self, take: Take) -> bool:
        """Give some more of the body to `take`, 256 KiB at most at a time (I6); False at its end.

        Raises Interrupted, Stalled, and what `take` raises.
        """
        if not self._left:
            return False
        with arriving():
            if self._connection is None and (piece := self._read_ahead()):
                await in_disk_thread(_taken, piece, take)
            else:
                await self._take_turn(take)
        return True

    def give_back(self) -> None:
        """Leave the connection to aiohttp as if it had read what was read here."""
        if self._connection is not None:
            self._await_at_least(1)
            self._connection.close()
        request = self._exchange.request
        transport = request.transport
        if transport is None or transport.is_closing():
            return
        # It counts the body's bytes, to know where the next request starts, and is not told any other way. A copy of 64 KiB
        # that lies in the processor's cache costs a tenth of reading it.
        while self._unseen:
            blank = _BLANK[: self._unseen]
            self._unseen -= len(blank)
            request.protocol.data_received(blank)
            request.content.read_nowait()
        transport.resume_reading()

    def _read_ahead(self) -> bytes:
        """What aiohttp has read already; it reads no more of a body that is not whole with it."""
        content = self._exchange.request.content
        piece = content.read_nowait()
        self._left -= len(piece)
        if self._left:
            self._exchange.transport.pause_reading()
        return piece

    async def _take_turn(self, take: Take) -> None:
        if self._connection is None:
            self._connection = duplicate(self._exchange.transport)
        is_late = self._is_dry and not await readable(self._connection, seconds=self._exchange.stall_seconds)
        taken = await in_disk_thread(self._read, self._connection, take)
        if is_late and not taken:
            raise Stalled(PEER, self._exchange.stall_seconds)

    def _read(self, connection: socket.socket, take: Take) -> int:
        """Read until nothing comes, or enough came; how many bytes did."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        taken = 0
        self._is_dry = False
        with stage(Stage.RECEIVE) as receiving:
            while taken < TURN_SIZE and self._left:
                # Woken up for whole pieces. Less is read all the same once the stall timer looks.
                self._await_at_least(min(self._left, PIECE))
                piece = piece_buffer()[: self._left]
                try:
                    size = connection.recv_into(piece)
                except BlockingIOError:
                    if poll.poll(PATIENCE_MILLISECONDS):
                        continue
                    self._is_dry = True
                    break
                if not size:
                    raise ConnectionResetError("it closed the connection")
                self._left -= size
                self._unseen += size
                taken += size
                take(piece[:size])
            receiving.add(taken)
        return taken

    def _await_at_least(self, size: int) -> None:
        """Have the system call the connection readable only when that many bytes are there, or its end is."""
        if self._connection is not None and size != self._awaited:
            self._awaited = size
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _taken(piece: bytes, take: Take) -> None:
    with stage(Stage.RECEIVE, len(piece)):
        take(memoryview(piece))
