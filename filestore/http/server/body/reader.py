"""A body that threads read from its connection, so that no byte of it passes through the event loop.

aiohttp's reader costs 0.1 ms for each piece that comes, a quarter of a megabyte at most, and copies it twice. Here a thread has
the connection for a slice: as long as bytes keep coming, and for 8 MiB or one piece. Threads have memory for a piece each, and
are few; a connection that nothing comes from holds neither (I6).
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from filestore.errors import Stalled
from filestore.format.codec import FRAME_LIMIT
from filestore.http.server.body.connection import PATIENCE_MILLISECONDS, PEER, PIECE, duplicate, readable
from filestore.http.server.context import RequestContext, arriving
from filestore.system.buffers import allocate_pages
from filestore.system.metrics import Stage, span
from filestore.system.threads import in_thread, per_thread, thread_pool

SLICE_SIZE = 8 << 20
"""Bytes that a thread takes in one slice: what it took is looked at in the event loop between two."""

PIECE_SIZE = 1 << 20
"""What a piece is where its taker does not want a frame that is larger: small enough for a processor's cache."""

_BLANK = bytes(64 << 10)

Take = Callable[[memoryview], None]
"""Takes a piece, which is valid during the call. Blocks; called in a thread."""
Reach = Callable[[int], int]
"""How large the next piece had best be, for one of so many bytes at most or of one frame."""


def _as_large_as_may_be(limit: int) -> int:
    return limit


def _slice_threads() -> ThreadPoolExecutor:
    # Not those of `in_disk_thread`, of which each would come to hold the memory of a piece.
    return thread_pool("body", max(4, os.cpu_count() or 1))


_piece_memory = per_thread(lambda: allocate_pages(FRAME_LIMIT))


@asynccontextmanager
async def reading_body(context: RequestContext, *, size: int) -> AsyncIterator[BodyReader]:
    """Take a body of `size` bytes over from aiohttp, for the block; what is not read by its end is aiohttp's again."""
    body_reader = BodyReader(context, size=size)
    try:
        yield body_reader
    finally:
        body_reader.give_back()


class BodyReader:
    """A body on its way in. Made by `reading_body`."""

    def __init__(self, context: RequestContext, *, size: int) -> None:
        self._context = context
        self._left = size
        self._connection: socket.socket | None = None
        self._awaited = 1
        self._unseen = 0
        self._is_dry = False

    async def read_slice(self, take: Take, *, reach: Reach = _as_large_as_may_be) -> bool:
        """Give some more of the body to `take`; False at its end. Pieces are as large as `reach` says while bytes keep coming.

        Raises Interrupted, Stalled, and what `take` raises.
        """
        if not self._left:
            return False
        with arriving():
            if self._connection is None and (piece := self._read_ahead()):
                await in_thread(_slice_threads(), _taken, piece, take)
            else:
                await self._read_slice(take, reach)
        return True

    def give_back(self) -> None:
        """Leave the connection to aiohttp as if it had read what was read here."""
        if self._connection is not None:
            self._await_at_least(1)
            self._connection.close()
        request = self._context.request
        transport = request.transport
        if transport is None or transport.is_closing():
            return
        # It counts the body's bytes, to know where the next request starts, and is not told any other way. A copy of 64 KiB
        # that lies in the processor's cache costs a tenth of reading it, if the transport is not stopped and started each time.
        request.content.set_read_chunk_size(len(_BLANK))
        while self._unseen:
            blank = _BLANK[: self._unseen]
            self._unseen -= len(blank)
            request.protocol.data_received(blank)
            request.content.read_nowait()
        transport.resume_reading()

    def _read_ahead(self) -> bytes:
        """What aiohttp has read already; it reads no more of a body that is not whole with it."""
        content = self._context.request.content
        piece = content.read_nowait()
        self._left -= len(piece)
        if self._left:
            self._context.transport.pause_reading()
        return piece

    async def _read_slice(self, take: Take, reach: Reach) -> None:
        if self._connection is None:
            self._connection = duplicate(self._context.transport)
        is_late = self._is_dry and not await readable(self._connection, seconds=self._context.stall_seconds)
        taken = await in_thread(_slice_threads(), self._read, self._connection, take, reach)
        if is_late and not taken:
            raise Stalled(PEER, self._context.stall_seconds)

    def _read(self, connection: socket.socket, take: Take, reach: Reach) -> int:
        """Read until nothing comes, or enough came; how many bytes did."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        taken = 0
        self._is_dry = False
        with span(Stage.RECEIVE) as receiving:
            while taken < SLICE_SIZE and self._left and not self._is_dry:
                piece = _piece_memory()[: min(self._left, reach(PIECE_SIZE))]
                size = self._fill(piece, connection, poll)
                taken += size
                if size:
                    take(piece[:size])
            receiving.add(taken)
        return taken

    def _fill(self, piece: memoryview, connection: socket.socket, poll: select.poll) -> int:
        """Receive until `piece` is full or nothing comes; how many bytes did."""
        filled = 0
        while filled < len(piece):
            # Woken up for so much at a time. Less is read all the same once the stall timer looks.
            self._await_at_least(min(len(piece) - filled, PIECE))
            try:
                size = connection.recv_into(piece[filled:])
            except BlockingIOError:
                if poll.poll(PATIENCE_MILLISECONDS):
                    continue
                self._is_dry = True
                break
            except ConnectionError:
                size = 0
            if not size:
                if filled:
                    break  # what came before the end counts; the next call comes to it again
                raise ConnectionResetError("it closed the connection")
            self._left -= size
            self._unseen += size
            filled += size
        return filled

    def _await_at_least(self, size: int) -> None:
        """Have the system call the connection readable only when that many bytes are there, or its end is."""
        if self._connection is not None and size != self._awaited:
            self._awaited = size
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _taken(piece: bytes, take: Take) -> None:
    with span(Stage.RECEIVE, len(piece)):
        take(memoryview(piece))
