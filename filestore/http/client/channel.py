"""HTTP/1.1 on connections of our own, with and without TLS: blocking threads with an async interface.

Bytes move between the caller's memory and the kernel without a copy, and a whole request needs one switch to a thread. A command
starts in half the time that it takes with an HTTP library loaded. Only the part of HTTP/1.1 that our server and the proxies
before it use is implemented; all other answers are refused.
Source: RFC 9112, sections 4 to 7 and 9.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked
from filestore.errors import Interrupted, ServerError, Stalled
from filestore.http import wire
from filestore.http.client.answers import LATE_SIZE, no_connection
from filestore.http.client.chunked import ChunkedCoding
from filestore.http.client.connection import Connection, PlainConnection, TlsConnection
from filestore.http.client.foreign import foreign_answer
from filestore.http.client.heads import Head, parse_head
from filestore.http.client.rate_limited import RateLimitedConnection
from filestore.repository.protocol import Moved
from filestore.system.connection_errors import failure_reason
from filestore.system.metrics import Stage, span
from filestore.system.rate_limit import RateLimit
from filestore.system.stalls import LEAST_ANSWER_RATE, LEAST_RATE, StallTimer

HEAD_LIMIT = 64 << 10
"""Largest head of an answer in bytes, including the interim answers before it."""

INTERIM_LIMIT = 32
"""The most interim answers before the final one. Each may take as long as an answer."""
_HEAD_PIECE = 4096
_CODING_PIECE = 64 << 10
"""How much is received at a time where lines of the chunked coding are expected. Small pieces of the body come with them."""
_HEAD_END = b"\r\n\r\n"


class Peer(NamedTuple):
    """The server to which a channel is connected."""

    location: str
    """The name of the server in errors."""
    path: str
    """What each request line has before the path of the route: a path, or a whole URL if a proxy is used."""
    fields: Sequence[str]
    """Header lines that every request has."""
    host: str = ""
    """The name that must be in the certificate of the server."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns what TLS needs. It may take long the first time. None means plain HTTP."""
    tunnel: bytes | None = None
    """The request to a proxy that passes TLS on. None without such a proxy."""


class Channel:
    """A connection that carries one request at a time: `ask`, then read the body of the answer to its end.

    Its methods block, so call them in a thread.
    """

    def __init__(
        self, connected: socket.socket, peer: Peer, *, stall_seconds: float, address: str = "", rate: RateLimit | None = None
    ) -> None:
        """Take over `connected`, a socket in non-blocking mode. `address` is that of its other end. `rate` limits its bytes."""
        self.address = address
        self._rate = rate
        self._connection = self._limited(PlainConnection(connected))
        self._peer = peer
        self._stall_seconds = stall_seconds
        self._is_aborted = False
        self._is_open = peer.tls is None
        """Whether requests can be sent: TLS has begun, where it is used."""
        self._poll = select.poll()
        self._poll.register(connected)
        self._timer = StallTimer(stall_seconds)
        self._ahead = memoryview(b"")
        self._piece = memoryview(b"")
        """Memory that is received into where lines of the chunked coding are expected. `_ahead` may be a part of it."""
        self.left = 0
        """Bytes of the answer's body that will come and have not been read yet; in the chunked coding, those of one piece."""
        self._coding: ChunkedCoding | None = None
        """The coding of a body that has not been read to its end. None where the length was announced."""
        self._late_left = 0
        """How many bytes of the body may come slowly, while the server works."""
        self._keeps_open = True

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can be used for another request.

        The last one must be over, and the server must neither have closed the connection nor have sent more bytes.
        """
        if not (self._is_open and self._keeps_open) or self.left or self._coding is not None:
            return False
        if self._ahead or self._connection.holds_more:
            return False
        return not (self._ready(select.POLLIN, seconds=0) and self._connection.has_arrived())

    def close(self) -> None:
        """Close the connection. No thread may be in the middle of a request."""
        self._connection.close()

    def abort(self) -> None:
        """Stop the request that runs in another thread. Interrupted is raised in that thread."""
        self._is_aborted = True
        self._connection.end()

    def open(self) -> None:
        """Begin TLS, where it is used and has not begun; before that, ask the proxy for a tunnel.

        Raises Unreachable, ForeignAnswer, Interrupted, Stalled.
        """
        if self._is_open or self._peer.tls is None:
            return
        if self._peer.tunnel is not None:
            self._open_tunnel(self._peer.tunnel)
        # What the handshake moves does not count as progress: all of it must come within the time.
        self._timer = StallTimer(self._stall_seconds)
        plain = self._connection.socket
        try:
            connection = TlsConnection(plain, self._peer.tls(), self._peer.host)
            self._connection = self._limited(connection)
            if self._is_aborted:  # meanwhile, when there was nothing to end
                connection.end()
            while True:
                try:
                    connection.shake_hands()
                    break
                except BlockingIOError:
                    self._wait(connection.awaited)
        except OSError as error:
            if self._is_aborted:
                raise Interrupted(self._peer.location, "the connection was closed") from None
            raise no_connection(self._peer.location, error) from None
        except ValueError:  # a certificate cannot have this name
            raise no_connection(self._peer.location, UnicodeError()) from None
        self._is_open = True

    def _limited(self, connection: Connection) -> Connection:
        return connection if self._rate is None else RateLimitedConnection(connection, self._rate)

    def _open_tunnel(self, tunnel: bytes) -> None:
        """Ask the proxy to pass on all bytes to the server and back (RFC 9110, section 9.3.6)."""
        self._timer = StallTimer(self._stall_seconds, connection=self._connection.socket)
        self._send([tunnel], lambda _: None)
        head = self._receive_head()
        if not HTTPStatus.OK <= head.status < HTTPStatus.MULTIPLE_CHOICES:
            raise foreign_answer(self._peer.location, head.status, head.said)
        if self._ahead:
            # The server speaks only after the client does.
            raise Interrupted(self._peer.location, "its answer is not HTTP")

    def ask(
        self,
        path: str,
        header: bytes | None = None,
        frames: Sequence[Buffer] = (),
        *,
        method: str = "POST",
        fields: Mapping[str, str] = MappingProxyType({}),
        moved: Moved = lambda _: None,
        is_late: bool = False,
    ) -> Head:
        """Send a request, and return the head of the answer.

        `moved` is called with the number of frame bytes that were sent.

        The body of the request is `header` followed by `frames`; a request without a header has no body. `path` and `fields`
        are ASCII without spaces. An error may arrive before everything was sent; the rest is then not sent. An early success
        raises Interrupted.

        Raises Interrupted, Stalled, ServerError.
        """
        self._keeps_open = False
        lines = [f"{method} {self._peer.path}{path} HTTP/1.1", *self._peer.fields, *map(": ".join, fields.items())]
        if header is not None:
            size = len(header) + sum(len(frame) for frame in frames)
            lines += [f"Content-Type: {wire.OCTETS}", f"Content-Length: {size}"]
        elif method != "GET":
            # RFC 9110, section 8.6: some proxies refuse a POST that does not say so.
            lines.append("Content-Length: 0")
        request = "\r\n".join([*lines, "", ""]).encode("ascii")
        self._timer = StallTimer(self._stall_seconds, connection=self._connection.socket)
        with span(Stage.SEND, sum(len(frame) for frame in frames)):
            is_sent = self._send([request + (header or b"")], lambda _: None) and self._send(frames, moved)
        # What was sent may be in the kernel for minutes if the link is slow, so its progress counts in this wait too.
        self._timer = StallTimer(self._stall_seconds, connection=self._connection.socket, least_rate=LEAST_ANSWER_RATE)
        with span(Stage.WAIT):
            head = self._receive_head()
        if head.status < HTTPStatus.MULTIPLE_CHOICES:
            if not is_sent:
                raise Interrupted(self._peer.location, "it answered before it had the whole request")
            if head.said.is_page:
                raise foreign_answer(self._peer.location, head.status, head.said)
            if head.size is None and not head.is_chunked:
                raise ServerError(
                    self._peer.location, head.status, "it does not announce the length of its answer by a single Content-Length"
                )
        self.left = head.size or 0
        self._coding = ChunkedCoding() if head.is_chunked else None
        # A problem may come late too.
        self._late_left = LATE_SIZE if is_late else 0
        self._timer = StallTimer(self._stall_seconds, least_rate=LEAST_ANSWER_RATE if is_late else LEAST_RATE)
        self._keeps_open = is_sent and head.keeps_open and (head.size is not None or head.is_chunked)
        return head

    def receive_into(self, memory: memoryview) -> int:
        """Receive the next bytes of the answer's body into `memory`. Return their number.

        It is 0 only at the end, and if `memory` is empty. `left` then says whether more would come.

        Raises Interrupted, Stalled.
        """
        if not self.left and self._coding is not None:
            self._receive_coding(self._coding)
        wanted = memory[: self.left]
        if not wanted:
            return 0
        if self._ahead:
            size = min(len(wanted), len(self._ahead))
            wanted[:size] = self._ahead[:size]
            self._ahead = self._ahead[size:]
            self._timer.count(size)
        else:
            size = self._receive(wanted)
        self.left -= size
        if 0 < self._late_left <= size:
            self._timer = StallTimer(self._stall_seconds)
        self._late_left = max(0, self._late_left - size)
        return size

    def _receive_coding(self, coding: ChunkedCoding) -> None:
        """Receive lines of `coding`, up to the next piece or the end of the body.

        They do not count as progress: otherwise they would keep an answer without content going.
        """
        while not self.left and not coding.is_over:
            if not self._ahead:
                self._piece = self._piece or memoryview(bytearray(_CODING_PIECE))
                self._ahead = self._piece[: self._receive(self._piece, counts=False)]
            try:
                read, self.left = coding.read(self._ahead)
            except ValueError as error:
                raise Interrupted(self._peer.location, str(error)) from None
            self._ahead = self._ahead[read:]
        if coding.is_over:
            self._coding = None

    def _send(self, buffers: Sequence[Buffer], moved: Moved) -> bool:
        """Send `buffers`. Return False if an answer arrived, or the connection ended, before everything was sent."""
        views = deque(memoryview(buffer) for buffer in buffers if len(buffer))
        while views:
            try:
                sent = self._connection.send(views)
            except BlockingIOError:
                if self._wait(select.POLLIN | self._connection.awaited) & ~select.POLLOUT and self._connection.has_arrived():
                    return False
                continue
            except OSError:
                # The server may have sent an answer before it closed the connection, which says why.
                return False
            moved(sent)
            self._timer.count(sent)
            while views and sent >= len(views[0]):
                sent -= len(views.popleft())
            if sent:
                views[0] = views[0][sent:]
            # A kernel that takes all at once never makes this wait.
            if views and self._ready(select.POLLIN, seconds=0) and self._connection.has_arrived():
                return False
        return True

    def _receive_head(self) -> Head:
        received = bytearray()
        piece = memoryview(bytearray(_HEAD_PIECE))
        start = 0
        for _ in range(INTERIM_LIMIT + 1):
            while (end := received.find(_HEAD_END, start)) < 0:
                if len(received) >= HEAD_LIMIT:
                    raise Interrupted(self._peer.location, f"the head of its answer is larger than {HEAD_LIMIT} bytes")
                is_first = len(received) == start
                received += piece[: self._receive(piece)]
                if is_first:
                    # A server may work for long before it answers. An answer that has begun must not take for ever.
                    self._timer = StallTimer(self._stall_seconds)
            try:
                head = parse_head(bytes(received[start:end]))
            except ValueError as error:
                raise Interrupted(self._peer.location, str(error)) from None
            start = end + len(_HEAD_END)
            # A server may send interim answers without being asked (RFC 9110, section 15.2); the final one follows.
            if head.status >= HTTPStatus.OK:
                self._ahead = memoryview(bytes(received[start:]))
                return head
            self._timer = StallTimer(self._stall_seconds, connection=self._connection.socket, least_rate=LEAST_ANSWER_RATE)
        raise Interrupted(self._peer.location, f"it sent more than {INTERIM_LIMIT} interim answers")

    def _receive(self, memory: memoryview, *, counts: bool = True) -> int:
        while True:
            try:
                size = self._connection.receive_into(memory)
            except BlockingIOError:
                self._wait(self._connection.awaited)
                continue
            except OSError as error:
                raise Interrupted(self._peer.location, failure_reason(error)) from None
            if not size:
                raise Interrupted(self._peer.location, "its answer ended too early")
            if counts:
                self._timer.count(size)
            return size

    def _wait(self, events: int) -> int:
        while (left := self._timer.left()) > 0:
            began = self._timer.began()
            ready = self._ready(events, seconds=left)
            self._timer.ended(began)
            if ready:
                return ready
        raise Stalled(self._peer.location, self._stall_seconds)

    def _ready(self, events: int, *, seconds: float) -> int:
        self._poll.modify(self._connection.socket, events)
        return next((ready for _, ready in unlocked(self._poll.poll, seconds * 1000)), 0)
