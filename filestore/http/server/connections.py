"""The connections of a server process: how many there are, and what each one may hold while its client is slow.

A connection is served one request at a time. While a request is served, at most `READ_SIZE` bytes of the next one are read.
The next request is begun when the kernel has taken the whole answer to the request before it. So a client that sends requests
and reads no answers makes the server keep one answer, of at most 256 KiB.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus

from aiohttp import web
from aiohttp.http import HttpRequestParser, RawRequestMessage, WebSocketReader
from aiohttp.streams import StreamReader

from filestore.errors import Busy
from filestore.http.limits import ServerLimits
from filestore.http.server.acceptor import Acceptor, Load, SharedLoads
from filestore.http.server.admission import Admission
from filestore.http.server.descriptors import connections_limit
from filestore.http.server.errors import closing_problem, closing_refusal
from filestore.http.server.handshakes import Handshakes
from filestore.http.server.origin import TrustedProxies, client_group
from filestore.http.server.rarely import Rarely
from filestore.http.server.request_head import FIELD_LIMIT, FIELDS_LIMIT, HeadReader, HeadRefused, UnfinishedHeads
from filestore.http.server.request_record import RECORD, REQUEST_ID_HEADER, Observer, RequestRecord, new_id
from filestore.system.metrics import Event, Gauge, count, note
from filestore.system.stalls import StallTimer

logger = logging.getLogger("filestore.access")

READ_SIZE = 64 << 10
"""Bytes that are read from a connection at a time."""
_UNTAKEN_SIZE = 1
"""A connection is read only after all earlier bytes were taken. So at most one read of 64 KiB waits (I6). A cut is noticed by
reading, so it is never noticed before the bytes that arrived ahead of it were taken.
"""
KEEPALIVE_SECONDS = 75
"""How long a connection may be idle between two requests."""
LINGER_SECONDS = 2.0
"""How long a client has to read an answer that refuses it, while it still sends the request."""
REFUSALS_LIMIT = 256
"""The most connections that are told at the same time why they are refused. Further ones are closed without an answer."""
_CHUNKED_END = b"\r\n\r\n"


class Connections:
    """Count the connections of a server process, in all and for each client (`client_group`)."""

    def __init__(
        self,
        limits: ServerLimits,
        *,
        descriptors_limit: int,
        is_proxy: Callable[[str], bool] = lambda _: False,
        observers: Sequence[Observer] = (),
        load: Load | None = None,
    ) -> None:
        """`is_proxy` returns whether an address is that of a proxy, whose connections are those of many clients.

        `load` counts those with work, if other processes accept connections too. `observers` get the records of the requests
        that are refused before their heads are read.
        """
        only = TrustedProxies(limits.tls_by_proxy)
        self._may_connect: Callable[[str], bool] = only.contains if limits.tls_by_proxy else lambda _: True
        self._strangers = Rarely()
        self.head_seconds = limits.head_seconds
        self.stall_seconds = limits.stall_seconds
        self.heads = UnfinishedHeads()
        self.load = load
        self._limits = limits
        self._descriptors_limit = descriptors_limit
        self._is_proxy = is_proxy
        self._count = 0
        self._counts: Counter[str] = Counter()
        self._refusals = 0
        self._observers = observers

    def admit(self, address: str) -> Admission:
        """Count a new connection from `address`, or say that it is refused. Call `release` of the result when it ends."""
        if not self._may_connect(address):
            count(Event.CONNECTIONS_REFUSED)
            if strangers := self._strangers.count():
                what = "1 connection was" if strangers == 1 else f"{strangers} connections were"
                reason = "the setting tls_by_proxy names other addresses"
                logger.info("%s closed because %s; the last one is of %s", what, reason, address)
            return Admission("it is not of the proxy", may_answer=False, release=lambda: None)
        refusal = self.refusal(address)
        if refusal is None:
            self.add(address)
            admission = Admission(None, may_answer=True, release=lambda: self._end(address, admission))
            if self.load is not None:
                self.load.rest(admission)
            return admission
        count(Event.CONNECTIONS_REFUSED)
        is_told = self.begin_refusal()
        return Admission(refusal, may_answer=is_told, release=self.end_refusal if is_told else lambda: None)

    def refusal(self, address: str) -> str | None:
        """Return why a connection from `address` is refused, or None if it is accepted."""
        if self._count >= self._descriptors_limit:
            return "it has as many connections as its limit of open files permits"
        if self._count >= self._limits.connections_limit:
            return "it has as many connections as the setting connections_limit permits"
        if self._counts[client_group(address)] >= self._limits.address_connections_limit and not self._is_proxy(address):
            return "it has as many connections of one address as the setting address_connections_limit permits"
        return None

    def add(self, address: str) -> None:
        """Count a connection from `address`."""
        self._count += 1
        note(Gauge.CONNECTIONS, value=self._count)
        self._counts[client_group(address)] += 1

    def remove(self, address: str) -> None:
        """Count a connection from `address` no longer."""
        self._count -= 1
        note(Gauge.CONNECTIONS, value=self._count)
        network = client_group(address)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]

    def _end(self, address: str, admission: Admission) -> None:
        self.remove(address)
        if self.load is not None:
            self.load.forget(admission)

    def begin_refusal(self) -> bool:
        """Count a refused connection, which is told why. Return False if too many others are told at the moment."""
        if self._refusals >= REFUSALS_LIMIT:
            return False
        self._refusals += 1
        return True

    def end_refusal(self) -> None:
        """Count a refused connection no longer."""
        self._refusals -= 1

    def note_refused(self, address: str, status: int, *, error: str = "") -> str:
        """Give the observers the record of a request that is refused before it has one. Return the id of the request.

        The status is 0 if the connection is closed without an answer.
        """
        record = RequestRecord(new_id(), "", "", address, status=status, error=error)
        for observe in self._observers:
            observe(record)
        return record.id


class ConnectionSite(web.SockSite):
    """Accept the connections of a socket."""

    def __init__(
        self,
        runner: web.AppRunner,
        listener: socket.socket,
        *,
        limits: ServerLimits,
        backlog: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
        observers: Sequence[Observer] = (),
        loads: SharedLoads | None = None,
    ) -> None:
        """`tls` returns what a new connection needs to speak TLS. None means plain HTTP.

        `loads` are those of all processes that accept the connections of `listener`. None means that this is the only one.
        """
        super().__init__(runner, listener, backlog=backlog)
        self._limits = limits
        self._tls = tls
        self._observers = observers
        self._handshakes: Handshakes | None = None
        self._loads = loads if loads is not None and loads.count > 1 else None
        self._load: Load | None = None
        self._acceptor: Acceptor | None = None

    @property
    def connection_count(self) -> int:
        """How many connections there are."""
        return 0 if self._runner.server is None else len(self._runner.server.connections)

    async def start(self) -> None:
        """Begin to accept connections."""
        await web.BaseSite.start(self)
        server = self._runner.server
        assert server is not None  # noqa: S101  # the runner is set up
        is_proxy = TrustedProxies(self._limits.proxies).contains
        self._load = None if self._loads is None else Load(self._loads)
        connections = Connections(
            self._limits,
            descriptors_limit=connections_limit(),
            is_proxy=is_proxy,
            observers=self._observers,
            load=self._load,
        )
        begin: Callable[[], asyncio.Protocol] = partial(RequestConnection, server, connections)
        if self._tls is not None:
            made = partial(RequestConnection, server, connections)
            self._handshakes = Handshakes(
                self._tls, connections.admit, made, seconds=self._limits.head_seconds, note_refused=connections.note_refused
            )
            begin = self._handshakes.begin
        if self._loads is not None and self._load is not None:
            self._acceptor = Acceptor(self._sock, begin, self._loads, self._load)
        else:
            self._server = await asyncio.get_running_loop().create_server(begin, sock=self._sock, backlog=self._backlog)

    def drain(self) -> None:
        """Leave new connections to other processes, as long as these do not stop too."""
        if self._load is not None:
            self._load.end()

    async def stop(self) -> None:
        """Accept no more connections."""
        await super().stop()
        if self._acceptor is not None:
            self._acceptor.close()
        if self._handshakes is not None:
            self._handshakes.close()


class RequestConnection(web.RequestHandler):
    """One connection. It gives the parser of aiohttp one whole head at a time, and then the body that belongs to it."""

    def __init__(self, server: web.Server, connections: Connections, admission: Admission | None = None) -> None:
        """`admission` is what was decided when the connection was accepted. None means that it is decided by this object."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none is written
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=FIELD_LIMIT,
            max_field_size=FIELD_LIMIT,
            max_headers=FIELDS_LIMIT,
            read_bufsize=_UNTAKEN_SIZE,
        )
        self._connections = connections
        self._admission = admission
        self._connection: asyncio.Transport | None = None
        self._head = HeadReader(connections.heads, self._evict)
        self._head_deadline: asyncio.TimerHandle | None = None
        self._unread = b""
        self._body: StreamReader | None = None
        self._body_left: int | None = None
        self._body_end = b""
        self._is_body_held = False
        self._is_held = False
        self._is_serving = False
        self._is_over = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read requests, or refuse the connection."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # of a TCP server
        self._connection = transport
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if peer else ""
        if self._admission is None:
            self._admission = self._connections.admit(self._address)
        if self._admission.refusal is not None:
            self._refuse_as_busy(self._admission.refusal, is_told=self._admission.may_answer)
            return
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # of each transport of asyncio on a socket
        # The next request waits until nothing is left here of the answer before it.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._end()
        if self._admission is not None:
            self._admission.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes that have arrived, or none, to go on with those that wait."""
        if self._is_over:
            return
        if not data and self._body is not None:
            self._feed_body(b"")
        self._unread = self._unread + data if self._unread else bytes(data)
        self._advance()

    # What aiohttp calls.

    def pause_reading(self) -> None:
        """Hold the body until the handler of the request has taken what there is."""
        if self._body_left == 0:
            # All of it was read, and what comes next waits until the answer is sent. To pause and to resume are two calls of the
            # system each time.
            return
        self._is_body_held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002  # as in aiohttp
        """Go on with the body."""
        self._is_body_held = False
        super().resume_reading(resume_parser)
        if self._unread:
            self._hold()

    def set_parser(self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None) -> None:
        """Give all that comes from here on to the reader of a WebSocket."""
        super().set_parser(parser, data_received_cb)
        self._body_left = None
        self._advance()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer. Return when the kernel has all of it, or the client is gone or too slow."""
        finished, is_reset = await super().finish_response(request, resp, start_time)
        is_reset = not await self._sent(request) or is_reset
        self._is_serving = False
        self._note_work(is_begun=False)
        if finished.keep_alive and not is_reset:
            self._advance()
        return finished, is_reset

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer a head that the parser has refused."""
        response = super().handle_error(request, status, exc, message)
        if RECORD not in request:
            response.headers[REQUEST_ID_HEADER] = self._connections.note_refused(self._address, status)
        return response

    def _note_work(self, *, is_begun: bool) -> None:
        load = self._connections.load
        if load is not None and not self._is_over:
            (load.work if is_begun else load.rest)(self._admission)

    # What reads a body without the parser calls.

    def end_body(self) -> None:
        """Note that the rest of the body was read from the connection. What comes next is a head.

        The parser waits for the bytes of the body. To give it as many zeros takes 0.1 s for a GB, so it is replaced.
        """
        body, self._body = self._body, None
        if body is None or self._parser is None:
            return
        self._parser = HttpRequestParser(
            self,
            asyncio.get_running_loop(),
            _UNTAKEN_SIZE,
            max_line_size=FIELD_LIMIT,
            max_field_size=FIELD_LIMIT,
            max_headers=FIELDS_LIMIT,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
        )
        body.feed_eof()

    # Requests and their bodies.

    def _advance(self) -> None:
        """Give the parser what may be parsed now. Read on if nothing else waits to be parsed."""
        while self._unread and not self._is_over:
            if self._body is not None:
                if self._is_body_held:
                    break
                self._feed_body(self._next_of_body())
            elif self._payload_parser is not None:
                if self._is_body_held:
                    break
                data, self._unread = self._unread, b""
                super().data_received(data)
            elif self._is_serving:
                break
            else:
                self._read_head()
        if self._unread:
            self._hold()
        elif self._is_held and not self._is_body_held:
            self._is_held = False
            if self.transport is not None:
                self.transport.resume_reading()

    def _hold(self) -> None:
        """Read nothing until the bytes that wait are parsed."""
        self._is_held = True
        if self.transport is not None:
            self.transport.pause_reading()

    def _read_head(self) -> None:
        data, self._unread = self._unread, b""
        try:
            found = self._head.read(data)
        except HeadRefused as error:
            self._refuse_head(error.status, error.detail)
            return
        if self._is_over:
            return
        if found is None:
            self._expect_head()
            return
        head, self._unread = found
        self._forget_deadline()
        super().data_received(head)
        if not self._messages:
            self._end()  # the connection is about to be closed
            return
        message, payload = self._messages[-1]
        self._is_serving = True
        self._note_work(is_begun=True)
        if not isinstance(message, RawRequestMessage):
            # The parser has refused the head. aiohttp answers that, and closes the connection.
            self._end()
        elif not payload.is_eof():
            self._body = payload
            length = message.headers.get("Content-Length")
            self._body_left = None if length is None else int(length)
            self._body_end = b""

    def _next_of_body(self) -> bytes:
        """Take those of the unread bytes that belong to the body, or some of them."""
        if self._body_left is not None:
            size = min(self._body_left, len(self._unread))
            self._body_left -= size
        else:
            # Such a body ends with an empty line. The parser tells whether an empty line is the end.
            before = len(self._body_end)
            place = (self._body_end + self._unread[: len(_CHUNKED_END) - 1]).find(_CHUNKED_END)
            if place < 0:
                place = self._unread.find(_CHUNKED_END)
                before = 0
            size = len(self._unread) if place < 0 else place + len(_CHUNKED_END) - before
            self._body_end = (self._body_end + self._unread[:size])[1 - len(_CHUNKED_END) :]
        piece, self._unread = self._unread[:size], self._unread[size:]
        return piece

    def _feed_body(self, piece: bytes) -> None:
        body, queued = self._body, len(self._messages)
        assert body is not None  # noqa: S101  # the caller has seen it
        super().data_received(piece)
        if len(self._messages) > queued:
            # The chunked coding is broken. Nothing can be said of the bytes after that.
            self._messages.pop()
            body.set_exception(web.RequestPayloadError("the chunked transfer coding is broken"))
            self._end()
        elif body.is_eof():
            self._body = None

    async def _sent(self, request: web.BaseRequest) -> bool:
        """Wait until the kernel has the whole answer. Cut the connection of a client that does not read it.

        Return False if the connection has ended.
        """
        transport = self.transport
        if transport is None:
            return False
        if not transport.get_write_buffer_size():
            return not transport.is_closing()
        timer = StallTimer(self._connections.stall_seconds, connection=transport.get_extra_info("socket"))
        while not transport.is_closing() and transport.get_write_buffer_size():
            left = timer.left()
            if left <= 0:
                transport.abort()
                break
            began = timer.began()
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(left):
                    await request.writer.drain()
            timer.ended(began)
        return not transport.is_closing()

    # The end of a connection.

    def _expect_head(self) -> None:
        """Wait for the rest of a head, for a limited time."""
        if self._head_deadline is None:
            self._head_deadline = asyncio.get_running_loop().call_later(self._connections.head_seconds, self._miss_head)

    def _miss_head(self) -> None:
        self._head_deadline = None
        if self._head.size:
            seconds = self._connections.head_seconds
            self._refuse_head(HTTPStatus.REQUEST_TIMEOUT, f"the head took longer than {seconds:g} seconds")
        elif self._connection is not None:
            self._end()
            self._connection.close()

    def _evict(self) -> None:
        self._refuse_as_busy("too many requests have begun whose heads are unfinished")

    def _refuse_head(self, status: HTTPStatus, detail: str) -> None:
        self._refuse(closing_refusal(status, detail, request_id=self._connections.note_refused(self._address, status.value)))

    def _refuse_as_busy(self, reason: str, *, is_told: bool = True) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE.value if is_told else 0
        request_id = self._connections.note_refused(self._address, status, error=Busy.slug)
        self._refuse(closing_problem(Busy("the server", reason), request_id=request_id) if is_told else None)

    def _refuse(self, answer: bytes | None) -> None:
        """Send an answer if there is one, and close the connection."""
        self._end()
        transport = self._connection
        assert transport is not None  # noqa: S101  # the connection was made
        if answer is None:
            transport.abort()
            return
        # A close at once could discard the answer if the client still sends. So its bytes are read and dropped.
        transport.resume_reading()
        transport.write(answer)
        with suppress(OSError):  # the client has reset the connection
            transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, transport.abort)

    def _end(self) -> None:
        """Take no more bytes."""
        self._is_over = True
        self._unread = b""
        self._head.clear()
        self._forget_deadline()

    def _forget_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None
