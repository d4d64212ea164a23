"""Read a request body in threads, directly from its connection, so that its bytes never pass through the event loop.

aiohttp's reader takes 0.1 ms for each piece of up to 256 KiB, and copies it twice. Here a thread has the connection for
one slice: while bytes keep coming, and for 8 MiB or one piece. There are few threads, and each has memory for one
piece. A connection on which nothing arrives holds neither a thread nor this memory (I6).
"""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial

from filestore.core.unlocked import unlocked
from filestore.errors import Stalled
from filestore.http.server.body.answer import arriving
from filestore.http.server.body.connection import (
    PATIENCE_MILLISECONDS,
    PEER,
    PIECE,
    Connection,
    awaited_size,
    duplicate,
    held,
    readable,
    receive_into,
    socket_of,
)
from filestore.http.server.connections import RequestConnection
from filestore.http.server.context import RequestContext
from filestore.http.server.throttle import Throttle
from filestore.system.buffers import allocate_pages
from filestore.system.machine import core_count
from filestore.system.metrics import Stage, span
from filestore.system.stalls import StallTimer
from filestore.system.threads import in_thread, per_thread, thread_pool

SLICE_SIZE = 16 << 20
"""Bytes that a thread reads in one slice. Between two slices, the event loop continues with what was read."""

RECEIVES_LIMIT = 2048
"""How often a thread receives in one slice. A client of TLS may send records of one byte each, which would hold it for long."""

PIECE_SIZE = 1 << 20
"""Bytes of a piece, unless the receiver wants more. A piece of this size fits in a processor's cache."""
PIECE_LIMIT = 8 << 20
"""The most bytes of a piece. A frame fits in it."""

_BLANK = bytes(64 << 10)

Take = Callable[[memoryview], None]
"""A function that receives a piece. The memory is valid only during the call. It may block: it is called in a thread.
"""
Reach = Callable[[int], int]
"""A function that gets `PIECE_SIZE`, and returns the best size of the next piece, which is at most `PIECE_LIMIT`.

0 ends the slice, because the receiver has had enough work in it.
"""


def _as_large_as_may_be(limit: int) -> int:
    return limit


def _slice_threads() -> Executor:
    # These are not the threads of `in_disk_thread`: each thread here keeps the memory of a piece.
    return thread_pool("body", max(4, core_count()))


_piece_memory = per_thread(lambda: allocate_pages(PIECE_LIMIT))


@asynccontextmanager
async def reading_body(context: RequestContext, *, size: int) -> AsyncIterator[BodyReader]:
    """Read a body of `size` bytes without aiohttp during the block. After it, aiohttp reads the rest of the body."""
    body_reader = BodyReader(context, size=size)
    try:
        yield body_reader
    finally:
        body_reader.give_back()


class BodyReader:
    """Read one request body. `reading_body` makes it."""

    def __init__(self, context: RequestContext, *, size: int) -> None:
        self._context = context
        self._left = size
        self._ahead = memoryview(b"")
        """What aiohttp has read already. It comes first in the first piece, so that this ends with a frame, as the others do."""
        self._connection: Connection | None = None
        self._awaited = 1
        self._unseen = 0
        self._is_dry = False
        self._receives_left = 0
        self._timer = StallTimer(context.stall_seconds)

    async def read_slice(self, take: Take, *, reach: Reach = _as_large_as_may_be) -> bool:
        """Read the next bytes of the body and pass them to `take`. Return False if the body has ended.

        Pieces have the size that `reach` says, as long as bytes keep coming. Raises Interrupted, Stalled, and what
        `take` raises.
        """
        if not (self._left or self._ahead):
            return False
        with arriving():
            if self._connection is None and not self._ahead:
                self._ahead = memoryview(self._read_ahead())
                await self._context.passed(len(self._ahead))
            if not self._left:
                self._ahead = await in_thread(_slice_threads(), _hand_over, self._ahead, take, reach)
            else:
                await self._read_slice(take, reach)
        return True

    def give_back(self) -> None:
        """Give the connection back to aiohttp, in the same state as if aiohttp had read these bytes itself."""
        if self._connection is not None:
            self._await_at_least(1)
            self._connection.close()
        request = self._context.request
        transport = request.transport
        if transport is None or transport.is_closing():
            self._context.noted.bytes_received += self._unseen
            return
        if self._unseen and not self._left and isinstance(request.protocol, RequestConnection):
            self._context.noted.bytes_received += self._unseen
            self._unseen = 0
            request.protocol.end_body()
        # aiohttp counts the bytes of the body to find the next request, and only `data_received` can advance its count.
        # 64 KiB of zeros in the processor's cache cost a tenth of reading these bytes, if the transport is not paused
        # and resumed each time.
        request.content.set_read_chunk_size(len(_BLANK))
        while self._unseen:
            blank = _BLANK[: self._unseen]
            self._unseen -= len(blank)
            request.protocol.data_received(blank)
            request.content.read_nowait()
        transport.resume_reading()

    def _read_ahead(self) -> bytes:
        """Return the bytes that aiohttp has read already.

        After this, aiohttp reads no more unless the body is complete.
        """
        content = self._context.request.content
        piece = content.read_nowait()
        self._left -= len(piece)
        if self._left:
            self._context.transport.pause_reading()
        return piece

    async def _read_slice(self, take: Take, reach: Reach) -> None:
        if self._connection is None:
            self._connection = duplicate(self._context.transport)
        is_late = self._is_dry and not await self._is_readable(self._connection)
        throttle = self._context.throttle
        limit = None if throttle is None else await _permitted(throttle)
        with held(self._connection):
            taken = await in_thread(_slice_threads(), self._read, self._connection, take, reach, limit)
        if throttle is not None and limit is not None:
            throttle.give_back(limit - taken)
        self._timer.count(taken)
        if is_late and not taken:
            raise Stalled(PEER, self._context.stall_seconds)

    async def _is_readable(self, connection: Connection) -> bool:
        """Wait for bytes. Return False if too few have come, so that the next read takes what there is. Raises Stalled."""
        left = self._timer.left()
        if left <= 0:
            raise Stalled(PEER, self._context.stall_seconds)
        began = self._timer.began()
        try:
            return await readable(connection, seconds=left)
        finally:
            self._timer.ended(began)

    def _read(self, connection: Connection, take: Take, reach: Reach, limit: int | None) -> int:
        """Read until nothing more arrives or the slice is full.

        Return the number of bytes, at most `limit`, without those that were read ahead.
        """
        poll = select.poll()
        poll.register(socket_of(connection), select.POLLIN)
        receive = partial(receive_into, connection)
        received = taken = 0
        self._is_dry = False
        self._receives_left = RECEIVES_LIMIT
        with span(Stage.RECEIVE) as receiving:
            while taken < SLICE_SIZE and (self._left or self._ahead) and not self._is_dry and self._receives_left:
                wanted = min(self._left + len(self._ahead), reach(PIECE_SIZE))
                ahead, self._ahead = self._ahead[:wanted], self._ahead[wanted:]
                # Without a limit, the last piece ends at the end of a frame.
                piece = _piece_memory()[: wanted if limit is None else min(wanted, len(ahead) + limit - received)]
                if not piece:
                    break
                piece[: len(ahead)] = ahead
                size = self._fill(piece, len(ahead), receive, poll)
                received += size - len(ahead)
                taken += size
                if size:
                    take(piece[:size])
            receiving.add(taken)
        return received

    def _fill(self, piece: memoryview, filled: int, receive: Callable[[memoryview], int], poll: select.poll) -> int:
        """Receive until `piece` is full or nothing more arrives. Return the number of bytes, with the first `filled` ones."""
        while filled < len(piece) and self._receives_left:
            self._receives_left -= 1
            # The thread wakes up only for this many bytes. After the timeout it reads what there is.
            self._await_at_least(min(len(piece) - filled, PIECE))
            try:
                size = receive(piece[filled:])
            except BlockingIOError:
                if unlocked(poll.poll, PATIENCE_MILLISECONDS):
                    continue
                self._is_dry = True
                break
            except ConnectionError:
                size = 0
            if not size:
                if filled:
                    break  # return these bytes first; the next call finds the end again
                raise ConnectionResetError("it closed the connection")
            self._left -= size
            self._unseen += size
            filled += size
        return filled

    def _await_at_least(self, size: int) -> None:
        """Make the system report the connection as readable only when `size` bytes, or its end, have arrived."""
        if self._connection is None:
            return
        size = awaited_size(self._connection, size)
        if size != self._awaited:
            self._awaited = size
            socket_of(self._connection).setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


async def _permitted(throttle: Throttle) -> int:
    """Wait until bytes may be read, and return how many."""
    while not (limit := throttle.take(SLICE_SIZE)):
        await throttle.wait()
    return limit


def _hand_over(ahead: memoryview, take: Take, reach: Reach) -> memoryview:
    """Hand over what was read ahead, up to the end of the slice. Return the rest."""
    with span(Stage.RECEIVE) as receiving:
        while ahead and (size := min(len(ahead), reach(PIECE_SIZE))):
            take(ahead[:size])
            ahead = ahead[size:]
            receiving.add(size)
    return ahead
