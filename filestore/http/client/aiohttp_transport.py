"""HTTPS by aiohttp. Import this module on first use, because aiohttp and the certificates take 0.15 s and more to load."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
from yarl import URL

from filestore.core.digest import Buffer
from filestore.errors import Interrupted, InvalidUrl, ProxyUnreachable, Stalled
from filestore.http import wire
from filestore.http.client.answers import (
    LATE_SIZE,
    PROBLEM_LIMIT,
    SUCCESSES,
    SmallAnswer,
    answer_error,
    longer_than_announced,
    no_connection,
)
from filestore.http.client.foreign import foreign_answer
from filestore.http.client.transport import AnswerBody, ClientCertificate, Request
from filestore.repository.protocol import Moved
from filestore.system.certificates import load_pair
from filestore.system.connection_errors import failure_reason
from filestore.system.http_answers import said_by
from filestore.system.metrics import Stage, async_span
from filestore.system.proxies import Proxy
from filestore.system.stalls import LEAST_ANSWER_RATE, LEAST_RATE, acknowledged_size

PIECE = 256 << 10
"""Bytes that are passed to a connection at a time. Progress is reported for each piece."""

_current_watch: ContextVar[_Watch] = ContextVar("current_watch")


def client_tls(certificate: ClientCertificate) -> ssl.SSLContext:
    """Return what a client needs to show a certificate. It trusts what every client trusts. Raises InvalidSetting."""
    context = ssl.create_default_context()
    load_pair(context, certificate.cert, certificate.key, name="tls_client")
    context.set_alpn_protocols(["http/1.1"])
    return context


class AiohttpTransport:
    """A `Transport` for `https://` URLs. A proxy is asked for a tunnel (CONNECT), so it sees neither token nor content.

    An answer need not announce its length; it is read until its `AnswerBody` refuses more.
    """

    def __init__(
        self,
        location: str,
        *,
        token: str | None,
        count: int,
        stall_seconds: float,
        proxy: Proxy | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` holds the trusted certificates. Where it is None, these are those of SSL_CERT_FILE, or else of the system."""
        self._location = location
        self._token = token
        self._count = count
        self._stall_seconds = stall_seconds
        self._proxy = proxy
        self._tls = tls
        self._places, self._short_places = asyncio.Semaphore(count), asyncio.Semaphore(count)
        self._session: aiohttp.ClientSession | None = None
        self.has_answered = False

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        async with self._short_places if request.is_short else self._places:
            started = time.monotonic()
            with async_span(request.stage, request.frames_size) as passing:
                await self._exchange(request, body)
                passing.add(body.size if request.stage is Stage.RECEIVE else 0)
            return time.monotonic() - started

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _exchange(self, request: Request, body: AnswerBody) -> None:
        """Send the request, and receive the answer. Raises the errors of `Transport.exchange`."""
        with self._translated_errors():
            async with asyncio.timeout(None) as stall, _watching(stall, self._stall_seconds) as watch:
                outgoing = _Outgoing(request, watch)
                watch.expect(LEAST_RATE if request.body is not None else LEAST_ANSWER_RATE)
                # No redirects: the token is for this server alone.
                async with self._open_session().request(
                    request.method,
                    # encoded=True: names are percent-encoded already, and must arrive as they are.
                    URL(self._location + wire.API + request.path, encoded=True),
                    data=outgoing.pieces() if request.body is not None else None,
                    headers=self._fields(request),
                    allow_redirects=False,
                    **self._by_proxy(),
                ) as response:
                    self.has_answered = True
                    watch.expect(LEAST_ANSWER_RATE if request.is_late else LEAST_RATE)
                    try:
                        await self._accept(request, response, body, watch, is_sent=outgoing.is_sent)
                    except BaseException:
                        _abort(response)
                        raise

    async def _accept(
        self, request: Request, response: aiohttp.ClientResponse, body: AnswerBody, watch: _Watch, *, is_sent: bool
    ) -> None:
        said = said_by(response.headers)
        if response.status not in SUCCESSES:
            problem = SmallAnswer(self._location, limit=PROBLEM_LIMIT)
            await self._receive(response, problem, watch, is_late=request.is_late)
            sent, has_token = request.size, self._token is not None
            raise answer_error(self._location, response.status, problem.content, said, sent_size=sent, has_token=has_token)
        if not is_sent:
            raise Interrupted(self._location, "it answered before it had the whole request")
        if said.is_page:
            raise foreign_answer(self._location, response.status, said)
        await self._receive(response, body, watch, is_late=request.is_late)

    async def _receive(self, response: aiohttp.ClientResponse, body: AnswerBody, watch: _Watch, *, is_late: bool) -> None:
        body.expect(response.content_length)
        late_left = LATE_SIZE if is_late else 0
        # readany: what has arrived, in as few pieces as it came.
        while piece := await response.content.readany():
            watch.count(len(piece))
            if 0 < late_left <= len(piece):
                watch.expect(LEAST_RATE)
            late_left = max(0, late_left - len(piece))
            rest = memoryview(piece)
            while rest:
                memory = body.memory()[: len(rest)]
                if not memory:
                    raise longer_than_announced(self._location)
                memory[:] = rest[: len(memory)]
                rest = rest[len(memory) :]
                body.add(len(memory))
        body.end()

    def _fields(self, request: Request) -> dict[str, str]:
        fields = {"User-Agent": "filestore"}
        # Not a header of the session, because aiohttp sends those to a proxy, too.
        if self._token is not None:
            fields["Authorization"] = f"Bearer {self._token}"
        if request.body is not None:
            fields |= {"Content-Type": wire.OCTETS, "Content-Length": str(request.size)}
        return fields | dict(request.fields)

    def _by_proxy(self) -> dict[str, Any]:
        """Return the arguments that make aiohttp use the proxy, by CONNECT. There are none without a proxy."""
        if self._proxy is None:
            return {}
        sent = {"Proxy-Authorization": self._proxy.authorization} if self._proxy.authorization is not None else {}
        return {"proxy": self._proxy.url, "proxy_headers": sent}

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # One for each place, so that no request waits here, where waiting would count as a stall.
                connector=aiohttp.TCPConnector(limit=2 * self._count, ssl=self._tls or True),
                # Not `sock_read`: it does not know that a full buffer of the kernel still moves.
                timeout=aiohttp.ClientTimeout(total=None, connect=self._stall_seconds),
                request_class=_WatchedRequest,
                read_bufsize=PIECE,
                auto_decompress=False,
                # Frames are encoded already, and a proxy that compresses a small answer gives it an unannounced length.
                skip_auto_headers=("Accept", "Accept-Encoding"),
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(self._send_once,),
            )
        return self._session

    async def _send_once(self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Keep aiohttp from sending a GET or DELETE a second time, which it does after some of its own errors."""
        with self._translated_errors():
            return await send(request)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate errors of aiohttp that are raised in the block into errors of filestore."""
        try:
            yield
        except aiohttp.InvalidURL as error:
            raise InvalidUrl(self._location, str(error)) from None
        except aiohttp.ClientHttpProxyError as error:
            # The answer of the proxy to CONNECT.
            raise foreign_answer(self._location, error.status, said_by(error.headers or {})) from None
        except (aiohttp.ClientConnectorError, UnicodeError) as error:  # the latter of a name that DNS cannot have
            if isinstance(error, aiohttp.ClientProxyConnectionError) and self._proxy is not None:
                reason = failure_reason(error)
                raise ProxyUnreachable(self._location, self._proxy.url, self._proxy.source, reason) from None
            raise no_connection(self._location, error) from None
        except TimeoutError:  # aiohttp's are among them
            raise Stalled(self._location, self._stall_seconds) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Interrupted(self._location, failure_reason(error)) from None


def _abort(response: aiohttp.ClientResponse) -> None:
    """Cut the connection of an answer that is not read to its end.

    The end of TLS would wait half a minute for the server to agree.
    """
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()


class _WatchedRequest(aiohttp.ClientRequest):
    """A request that tells the watch of its exchange which connection it uses."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        watch = _current_watch.get(None)
        if watch is not None and conn.transport is not None:
            watch.use(conn.transport.get_extra_info("socket"))
        return await super().send(conn)


class _Watch:
    """End one exchange when its connection has stalled. It looks once in every `seconds`."""

    def __init__(self, stall: asyncio.Timeout, seconds: float) -> None:
        self._connection: socket.socket | None = None
        self._stall = stall
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._moved = self._acknowledged = 0
        self._least = 1.0
        self._next: asyncio.TimerHandle | None = None

    def expect(self, least_rate: float) -> None:
        """Start over with a time in which this many bytes per second must move."""
        self.end()
        self._least = max(1.0, least_rate * self._seconds)
        self._moved, self._acknowledged = 0, self._read_acknowledged()
        self._next = self._loop.call_later(self._seconds, self._look)

    def use(self, connection: socket.socket | None) -> None:
        """Count also what the peer acknowledges on `connection` from now on."""
        self._connection = connection
        self._acknowledged = self._read_acknowledged()

    def count(self, size: int) -> None:
        """Count bytes that were received, or that the connection has taken."""
        self._moved += size

    def end(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()

    def _look(self) -> None:
        moved = self._moved + self._read_acknowledged() - self._acknowledged
        if moved < self._least:
            self._stall.reschedule(self._loop.time())
        else:
            self.expect(self._least / self._seconds)

    def _read_acknowledged(self) -> int:
        return 0 if self._connection is None else acknowledged_size(self._connection)


@asynccontextmanager
async def _watching(stall: asyncio.Timeout, seconds: float) -> AsyncIterator[_Watch]:
    """Watch the exchange of the block."""
    watch = _Watch(stall, seconds)
    token = _current_watch.set(watch)
    try:
        yield watch
    finally:
        watch.end()
        _current_watch.reset(token)


class _Outgoing:
    """Give aiohttp the body of a request in pieces."""

    def __init__(self, request: Request, watch: _Watch) -> None:
        self._request = request
        self._watch = watch
        self.is_sent = request.body is None
        """Whether the connection has taken the whole body."""

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Yield the body. aiohttp asks for the next piece when the connection has taken the last one."""
        for buffer, moved in self._buffers():
            for start in range(0, len(buffer), PIECE):
                piece = memoryview(buffer)[start : start + PIECE]
                yield piece
                moved(len(piece))
                self._watch.count(len(piece))
        # The wait for the answer begins.
        self._watch.expect(LEAST_ANSWER_RATE)
        self.is_sent = True

    def _buffers(self) -> Iterator[tuple[Buffer, Moved]]:
        yield self._request.body or b"", lambda _: None
        for frame in self._request.frames:
            yield frame, self._request.moved
