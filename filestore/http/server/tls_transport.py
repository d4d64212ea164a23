"""TLS on a connection of the server: a transport of asyncio whose bytes threads may move, as on a plain connection.

The transport of asyncio for TLS keeps a buffer of 256 KiB for each connection, from before the handshake on, and encrypts on the
event loop. Here a connection keeps at most one record while it is idle, at most 64 KiB that the kernel does not take, and what
was written to the transport (I6). A thread that sends or receives a body encrypts and decrypts it too. OpenSSL allows one thread
at a time: while a thread has the connection (`held`), the event loop leaves it alone, and a close waits.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Self

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked, unlocked_in_series

RECORD_SIZE = 16 << 10
"""Bytes of the largest record of TLS. Source: RFC 8446, section 5.1."""
PIECE_SIZE = 64 << 10
"""Bytes that OpenSSL sends in a call. It needs the same bytes again until the kernel has taken all of them."""
_HIGH_WATER = 64 << 10
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TlsTransport(asyncio.Transport):
    """The transport of a connection whose handshake has ended."""

    def __init__(self, connection: ssl.SSLSocket, protocol: asyncio.Protocol, *, context: ssl.SSLContext, peername: Any) -> None:
        """Take over `connection`, and call `protocol.connection_made`."""
        super().__init__(
            {"socket": connection, "sslcontext": context, "peername": peername, "sockname": connection.getsockname()}
        )
        self.max_size = RECORD_SIZE
        """Bytes that are read at a time."""
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._descriptor = connection.fileno()
        self._protocol = protocol
        self._waiting = bytearray()
        """What was written and is not encrypted yet."""
        self._piece = b""
        """What was given to OpenSSL, and the kernel has not taken all of. OpenSSL wants the same bytes again."""
        self._receives = 0
        """How many calls of threads have received."""
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self._is_protocol_paused = False
        self._is_paused = False
        self._is_held = False
        self._is_closing = False
        self._is_ending = False
        """Whether nothing more is written after what waits."""
        self._has_ended = False
        """Whether the end of TLS was sent. What still arrives is not decrypted any more."""
        self._is_lost = False
        self._when_free: Callable[[], None] | None = None
        """A close that waits for the thread which has the connection."""
        self._reads = self._writes = False
        protocol.connection_made(self)
        self._update()

    # What asyncio and aiohttp call.

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that gets what arrives."""
        return self._protocol

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or will be when everything is sent."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Return whether the protocol gets what arrives."""
        return not (self._is_paused or self._is_closing)

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        self._is_paused = True
        self._update()

    def resume_reading(self) -> None:
        """Read again."""
        self._is_paused = False
        self._update()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set above how many bytes that wait the protocol is paused, and below how many it goes on."""
        self._high = _HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low
        self._regulate()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the limits, the lower one first."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the kernel has not taken yet."""
        return len(self._waiting) + len(self._piece)

    def write(self, data: Buffer) -> None:
        """Send bytes, or keep those that the kernel does not take now."""
        if self._is_closing or self._is_ending or not data:
            return
        self._waiting += data
        self.send_waiting()

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def write_eof(self) -> None:
        """Tell the client that nothing more comes, after what waits. What still arrives is dropped by the caller."""
        self._is_ending = True
        self.send_waiting()

    def close(self) -> None:
        """Close the connection when everything is sent."""
        if not self._is_closing:
            self._is_closing = True
            self._update()
            if not self.get_write_buffer_size():
                self._loop.call_soon(self._lose)

    def abort(self) -> None:
        """Close the connection at once."""
        self._cut(None)

    # What the bodies of requests and answers use, in threads too.

    @contextmanager
    def held(self) -> Iterator[None]:
        """Leave the connection to one thread during the block. Raises ConnectionResetError if it is closed."""
        if self._is_lost:
            raise ConnectionResetError("the connection is closed")
        # What is watched stays watched: to change it twice for each slice would cost more than an event that comes meanwhile.
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            if self._when_free is not None:
                self._when_free()
            else:
                self.send_waiting()
                self._read_pending()

    def send_now(self, data: Buffer) -> int:
        """Encrypt bytes and send them, as many as the kernel takes now. Return their number.

        Up to 64 KiB of them may wait here and in OpenSSL; the next call or the event loop sends them. Raises BlockingIOError,
        ConnectionError.
        """
        if self._is_lost:
            raise ConnectionResetError("the connection is closed")
        if not self._flush():
            raise BlockingIOError
        view, send, sent = memoryview(data), self._connection.send, 0
        try:
            while sent < len(view):
                piece = view[sent : sent + PIECE_SIZE]
                sent += unlocked(send, piece)
        except _WANTS:
            # The caller may use its memory for something else, so this is a copy.
            self._piece = bytes(piece)
            sent += len(piece)
        except OSError as error:
            raise _failed(error) from None
        return sent

    def receive_into(self, memory: memoryview) -> int:
        """Receive bytes into `memory`, as long as whole records are there. Return their number, 0 at the end.

        It ends after a small record, so that the caller can count its calls. Raises BlockingIOError, ConnectionError.
        """
        if self._is_lost:
            raise ConnectionResetError("the connection is closed")
        # A record takes a call, so a GB takes 61,000.
        receive, received, size = self._connection.recv_into, 0, len(memory)
        try:
            while received < size:
                moved = unlocked_in_series(self._receives, receive, memory[received:], size - received)
                self._receives += 1
                received += moved
                if moved < RECORD_SIZE:
                    break
        except _WANTS:
            if not received:
                raise BlockingIOError from None
        except OSError as error:
            # What was received is whole. From now on, OpenSSL says that the connection has ended.
            if not received:
                raise _failed(error) from None
        return received

    # The event loop.

    def _update(self) -> None:
        """Watch for what can be done now."""
        is_free = not (self._is_held or self._is_lost)
        reads = is_free and self.is_reading()
        writes = is_free and self.get_write_buffer_size() > 0
        if reads != self._reads:
            self._reads = reads
            if reads:
                self._loop.add_reader(self._descriptor, self._read_ready)
                self._read_pending()
            else:
                self._loop.remove_reader(self._descriptor)
        if writes != self._writes:
            self._writes = writes
            if writes:
                self._loop.add_writer(self._descriptor, self.send_waiting)
            else:
                self._loop.remove_writer(self._descriptor)

    def _read_pending(self) -> None:
        """Read soon what has left the kernel already."""
        if self._reads and not (self._is_held or self._has_ended) and self._connection.pending():
            self._loop.call_soon(self._read_ready)

    def _read_ready(self) -> None:
        if self._is_held:
            self._update()
        if not self._reads:
            return
        try:
            data = self._connection.recv(min(self.max_size, RECORD_SIZE))
        except (*_WANTS, BlockingIOError):
            return
        except OSError as error:
            self._cut(error)
            return
        if not data:
            if self._protocol.eof_received():
                self._is_paused = True
                self._update()
            else:
                self.close()
            return
        self._protocol.data_received(data)
        self._read_pending()

    def send_waiting(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        if self._is_held or self._is_lost:
            self._update()
            self._regulate()
            return
        try:
            while self._flush() and self._waiting:
                del self._waiting[: self.send_now(bytes(self._waiting[:_HIGH_WATER]))]
        except OSError as error:
            self._cut(error)
            return
        if not self.get_write_buffer_size():
            if self._is_closing:
                self._lose()
                return
            if self._is_ending and not self._has_ended:
                self._end_tls()
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_WR)
        self._update()
        self._regulate()

    def _flush(self) -> bool:
        """Send the rest of a piece. Return whether the kernel has taken it."""
        try:
            while self._piece:
                self._piece = self._piece[unlocked(self._connection.send, self._piece) :]
        except _WANTS:
            return False
        except OSError as error:
            raise _failed(error) from None
        return True

    def _end_tls(self) -> None:
        """Send the end of TLS, so that the client knows that nothing is missing. Its own end is not waited for."""
        if not self._has_ended:
            self._has_ended = True
            with suppress(OSError):
                self._connection.unwrap()

    def _regulate(self) -> None:
        """Pause the protocol, or let it go on."""
        size = self.get_write_buffer_size()
        if size > self._high and not self._is_protocol_paused:
            self._is_protocol_paused = True
            self._protocol.pause_writing()
        elif size <= self._low and self._is_protocol_paused:
            self._is_protocol_paused = False
            self._protocol.resume_writing()

    def _cut(self, error: OSError | None) -> None:
        """Close the connection without what waits."""
        self._is_closing = True
        self._waiting = bytearray()
        self._update()
        self._loop.call_soon(partial(self._lose, error and _failed(error), is_cut=True))

    def _lose(self, error: OSError | None = None, *, is_cut: bool = False) -> None:
        """Close the connection, as soon as no thread has it."""
        if self._is_lost:
            return
        if self._is_held:
            self._when_free = partial(self._lose, error, is_cut=is_cut)
            return
        if not is_cut:
            self._end_tls()
        self._is_lost = True
        self._update()
        try:
            self._protocol.connection_lost(error)
        finally:
            self._connection.close()


class TlsConnection:
    """A connection of TLS as the readers and writers of bodies use it: like a plain socket that does not block."""

    def __init__(self, transport: TlsTransport) -> None:
        """Make `socket`, to wait with and to ask for facts. No byte passes through it. The caller closes this object."""
        self._transport = transport
        self.socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def held(self) -> AbstractContextManager[None]:
        """Return a block during which a thread may use the connection."""
        return self._transport.held()

    def send(self, data: Buffer) -> int:
        """Send what the kernel takes now. Raises BlockingIOError, ConnectionError."""
        return self._transport.send_now(data)

    def recv_into(self, memory: memoryview) -> int:
        """Receive what there is, 0 bytes at the end. Raises BlockingIOError, ConnectionError."""
        return self._transport.receive_into(memory)

    def close(self) -> None:
        """Close the descriptor. The event loop sends what is left of the last piece."""
        self.socket.close()
        self._transport.send_waiting()


def _failed(error: OSError) -> OSError:
    """Return what aiohttp and the handlers know as the end of a connection, if TLS has failed."""
    return ConnectionResetError("TLS has failed") if isinstance(error, ssl.SSLError) else error
