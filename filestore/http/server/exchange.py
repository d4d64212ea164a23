"""One request and what its answer is made with: bodies received and sent in pieces, each under a stall timer.

I6: what is still arriving on a connection, or waits to leave on it, holds at most 256 KiB here.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aiofiles.tempfile import SpooledTemporaryFile
from aiofiles.threadpool.binary import AsyncBufferedReader
from aiohttp import web

from filestore.aio import Budget, in_disk_thread
from filestore.errors import FilestoreError, Interrupted, LimitExceeded, Stalled, storage_error

PIECE = 256 << 10
LARGE_PIECE = 4 << 20
FAST_RATE = 4 << 20
"""Bytes a second of a client that is sent large pieces."""
SEND_BUFFERS = 16 << 20
"""More than a system's send buffers hold: what was sent beyond says how fast a client is."""
PATIENCE_SECONDS = 0.25
"""How long memory waits for a client to take one piece: below 1 MB/s it is worth more to others."""
_PEER = "the client"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and what its answer is made with."""

    request: web.Request
    budget: Budget
    push_budget: Budget
    """That of pushes, which take from `budget` in turn: no holder of one part ever waits for another part of the same."""
    spool_folder: Path
    stall_seconds: float
    upload_limit: int | None

    @property
    def transport(self) -> asyncio.Transport:
        """The connection. Raises ConnectionError when the client is gone."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        return transport

    async def receive(self) -> bytes:
        """The next piece of the body, as it arrived; empty at the end. Raises Interrupted, Stalled."""
        with arriving():
            async with self.moving():
                return await self.request.content.readany()

    @asynccontextmanager
    async def whole_body(self, *, what: str, limit: int) -> AsyncIterator[bytes]:
        """The whole body, of at most `limit` bytes; `what` names its size in an error.

        A large one waits in a file until it is whole, and only then takes its part of the budget (I6).

        Raises LimitExceeded, Interrupted, Stalled, StorageError.
        """
        announced = self.request.content_length or 0
        if announced > limit:
            raise LimitExceeded(what, announced, limit)
        async with self.spool() as spool:
            while piece := await self.receive():
                if spool.size + len(piece) > limit:
                    raise LimitExceeded(what, spool.size + len(piece), limit)
                await spool.write(piece)
            async with self.budget.take(spool.size):
                await spool.rewind()
                yield await spool.read(spool.size)

    @asynccontextmanager
    async def spool(self) -> AsyncIterator[Spool]:
        """A place for a body: memory up to 256 KiB, beyond that a file without a name, gone with the block or the process."""
        async with SpooledTemporaryFile(max_size=PIECE, dir=self.spool_folder) as file:
            yield Spool(file)

    async def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Send what is not sent yet of the answer that a handler gave. A client that is gone, or takes too long, is dropped."""
        try:
            body = response.body if isinstance(response, web.Response) and not response.prepared else None
            if isinstance(body, bytes) and len(body) > PIECE:
                async with self.spool() as spool:
                    await spool.write(body)
                    whole = web.StreamResponse(status=response.status, headers=response.headers)
                    return await self.answer_with(spool, whole)
            async with self.moving():
                await response.prepare(self.request)
                await response.write_eof()
        except (FilestoreError, ConnectionError):
            if self.request.transport is not None:
                self.request.transport.abort()
        return response

    async def answer_with(self, spool: Spool, response: web.StreamResponse) -> web.StreamResponse:
        """Answer with what is in `spool`. Raises Stalled, ConnectionError."""
        await spool.rewind()
        async with self.answering(response, size=spool.size) as answer:
            if self.request.method != "HEAD":
                while piece := await spool.read(PIECE):
                    await answer.send(piece)
        return response

    @asynccontextmanager
    async def answering(self, response: web.StreamResponse, *, size: int) -> AsyncIterator[Answer]:
        """Send the head of an answer of `size` bytes; the block sends those, or the connection is cut.

        Raises Stalled, ConnectionError.
        """
        response.content_length = size
        await response.prepare(self.request)
        # What was written counts as sent once the kernel has all of it: no more than one piece ever waits in this process.
        self.transport.set_write_buffer_limits(high=0)
        try:
            yield Answer(self)
            await response.write_eof()
        except BaseException:
            # A short answer must never look whole.
            if self.request.transport is not None:
                self.request.transport.abort()
            raise

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """A step that only waits for the client. Raises Stalled when that takes too long."""
        try:
            async with asyncio.timeout(self.stall_seconds):
                yield
        except TimeoutError:
            raise Stalled(_PEER, self.stall_seconds) from None


class Spool:
    """A body on its way through a server. Its methods raise StorageFull, StorageError."""

    def __init__(self, file: AsyncBufferedReader) -> None:
        self.size = 0
        self._file = file

    async def write(self, content: bytes) -> None:
        """Append."""
        with spooling():
            await self._file.write(content)
        self.size += len(content)

    async def rewind(self) -> None:
        """Have `read` begin at the start."""
        with spooling():
            await self._file.seek(0)

    async def read(self, size: int) -> bytes:
        """The next bytes, `size` at most; empty at the end."""
        with spooling():
            return await self._file.read(size)


class Answer:
    """The body of an answer on its way out."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._sent = 0

    async def send(self, piece: bytes, *, if_slow: Callable[[], Awaitable[None]] | None = None) -> None:
        """Send a piece, of 256 KiB at most; `if_slow` is called where the client does not take it soon.

        Raises Stalled, ConnectionError.
        """
        transport = self._exchange.transport
        transport.write(piece)
        self._sent += len(piece)
        if not transport.get_write_buffer_size():
            return
        # A task of its own: aiohttp's drain cannot be waited for again once waiting for it was cancelled.
        drained = asyncio.ensure_future(self._exchange.request.writer.drain())
        try:
            async with self._exchange.moving():
                if if_slow is not None and not (await asyncio.wait([drained], timeout=PATIENCE_SECONDS))[0]:
                    await if_slow()
                await drained
        finally:
            drained.cancel()

    async def send_file(self, file: BinaryIO, *, size: int) -> int:
        """Send the first `size` bytes of a file, by the kernel where it can; how many there were.

        Raises Stalled, ConnectionError.
        """
        send_piece = self._send_by_kernel if _has_descriptor(file) else self._send_copy
        offset = 0
        while offset < size:
            sent = await send_piece(file, offset, min(self._piece_size(), size - offset))
            if not sent:
                break
            offset += sent
        return offset

    def _piece_size(self) -> int:
        """A stall timer sees the progress of small pieces, and each costs as much as sending 256 KiB does.

        Large ones are for clients that have taken more than send buffers hold, at a rate that needs a fraction of the timer.
        """
        is_fast = self._sent > FAST_RATE * (self._loop.time() - self._started)
        return LARGE_PIECE if is_fast and self._sent > SEND_BUFFERS else PIECE

    async def _send_by_kernel(self, file: BinaryIO, offset: int, size: int) -> int:
        async with self._exchange.moving():
            sent = await self._loop.sendfile(self._exchange.transport, file, offset, size)
        self._sent += sent
        return sent

    async def _send_copy(self, file: BinaryIO, _: int, size: int) -> int:
        piece = await in_disk_thread(file.read, min(size, PIECE))
        await self.send(piece)
        return len(piece)


@contextmanager
def arriving() -> Iterator[None]:
    """Reading a body. Raises Interrupted when the client cuts it, or breaks its framing."""
    try:
        yield
    except (ConnectionError, web.RequestPayloadError) as error:
        raise Interrupted(_PEER, str(error) or type(error).__name__) from error


@contextmanager
def spooling() -> Iterator[None]:
    """Writing to the spool folder. Raises StorageFull, StorageError."""
    try:
        yield
    except OSError as error:
        raise storage_error("the spool folder of the server", error) from error


def _has_descriptor(file: BinaryIO) -> bool:
    try:
        file.fileno()
    except io.UnsupportedOperation:
        return False
    return True
