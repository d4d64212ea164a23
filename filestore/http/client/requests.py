"""Requests to the servers of one repository, sent again after errors that are retryable. Nothing else in the client retries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from filestore.errors import FilestoreError, ForeignAnswer, InvalidBatch, InvalidFrame, InvalidManifest, OtherRepository
from filestore.http.client.answers import DOCUMENT_LIMIT, SmallAnswer
from filestore.http.client.channels import Places
from filestore.http.client.connection import client_tls
from filestore.http.client.documents import parse_document, parse_identity, parse_late_document
from filestore.http.client.exchange import AnswerBody, ClientCertificate, Request
from filestore.http.client.servers import Server, Servers
from filestore.http.client.transport import Transport
from filestore.repository.protocol import Identity, closed_error
from filestore.system.http_answers import may_try_again
from filestore.system.proxies import Proxy
from filestore.system.rate_limit import RateLimit
from filestore.system.retries import Retries
from filestore.system.threads import abandon

T = TypeVar("T")

_GARBLED = (InvalidBatch, InvalidFrame, InvalidManifest)
"""Errors for bytes that one of the two ends could not verify. The checksum of TCP misses some flipped bits, so such a request is
sent once more. An error of the content itself comes again.
Source: J. Stone, C. Partridge, "When the CRC and TCP Checksum Disagree", SIGCOMM 2000."""


ProxyFinder = Callable[[str], Proxy | None]
"""Returns the proxy that leads to a URL."""


class Requests:
    """Sends requests to one of the servers, and receives small answers. Every request is idempotent, so it may be sent again.

    For one event loop. Without an event loop, it may be made and dropped.
    """

    def __init__(
        self,
        locations: Sequence[str],
        *,
        token: str | None,
        connections: int,
        is_limit: bool,
        stall_seconds: float,
        retry_seconds: float,
        first_pause_seconds: float,
        find_proxy: ProxyFinder,
        certificate: ClientCertificate | None = None,
        limit_rate: int | RateLimit | None = None,
    ) -> None:
        """Prepare requests without connecting. The options are those of `RemoteRepository`."""
        self._locations = list(locations)
        self._token = token
        self._connections = connections
        self.is_limited = is_limit
        """Whether there are never more connections than `connections`, those to stores included."""
        self._stall_seconds = stall_seconds
        self._find_proxy = find_proxy
        self._certificate = certificate
        self._limit_rate = limit_rate
        self.retries = Retries(retry_seconds=retry_seconds, first_pause_seconds=first_pause_seconds)
        self.places, self._servers = self._open()
        self._was_reached = False
        self._same: tuple[str, Identity] | None = None
        """A server, and the identity of the repository, which that of all other servers must be."""
        self.is_closed = False

    def after_fork(self) -> None:
        """Leave connections and threads to the parent. The child opens new ones."""
        abandon(self.places)
        abandon(self._servers)
        self._was_reached = self._is_reached
        self._locations = self.locations()
        self.retries = Retries(retry_seconds=self.retries.retry_seconds, first_pause_seconds=self.retries.first_pause_seconds)
        self.places, self._servers = self._open()

    def _open(self) -> tuple[Places, Servers]:
        rate = RateLimit(self._limit_rate) if isinstance(self._limit_rate, int) else self._limit_rate
        places = Places(self._connections, is_limit=self.is_limited, rate=rate)
        return places, Servers([self._open_server(location, places) for location in self._locations])

    def _open_server(self, location: str, places: Places) -> Server:
        proxy = self._find_proxy(location)
        transport = Transport(
            location,
            token=self._token,
            places=places,
            stall_seconds=self._stall_seconds,
            proxy=proxy,
            tls=None if self._certificate is None else client_tls(self._certificate),
        )
        return Server(location, transport, proxy)

    @property
    def location(self) -> str:
        """The URL of the server to which requests go now, for errors about its answers."""
        return self._servers.current.location

    @property
    def transport(self) -> Transport:
        """The transport to this server."""
        return self._servers.current.transport

    def locations(self) -> list[str]:
        """Return the URLs of all servers, that of the current one first."""
        return self._servers.locations()

    @property
    def _is_reached(self) -> bool:
        """Whether a server has ever answered this process, or its parent before a fork."""
        return self._was_reached or self._servers.have_answered

    def lending(self, count: int) -> AbstractAsyncContextManager[None]:
        """Have `count` connections less for a block, of a number that is a limit. At least one must stay. One call at a time."""
        return self.places.lending(count)

    async def exchange(self, request: Request, body: AnswerBody) -> float:
        """Do what `Transport.exchange` does, with the current server. Call this inside of `retried`.

        A server that fails is left out from then on. Raises what `Transport.exchange` raises, and OtherRepository.
        """
        server = self._servers.current
        try:
            if len(self._servers) > 1 and not server.is_checked:
                await self._check(server)
            seconds = await server.transport.exchange(request, body)
        except FilestoreError as error:
            if isinstance(error, ForeignAnswer) and server.proxy is not None:
                error.through = f"the proxy {server.proxy.url}, which {server.proxy.source} names"
            if len(self._servers) > 1 and _is_of_one_server(error):
                self._servers.leave_out(server, error)
            raise
        self._servers.note_answer(server)
        return seconds

    async def _check(self, server: Server) -> None:
        """Raise OtherRepository if a server does not serve the same repository as the servers that answered before it."""
        answer = SmallAnswer(server.location)
        await server.transport.exchange(Request(method="GET", path="/repository"), answer)
        found = parse_identity(server.location, parse_document(server.location, answer.content))
        if self._same is None:
            self._same = server.location, found
        location, same = self._same
        if (found.id, found.namespace) != (same.id, same.namespace):
            raise OtherRepository(server.location, location)
        server.is_checked = True

    async def retried(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return what `request` returns. Call it again after an error, as often as `system/retries.py` says.

        If one of several servers fails, the next one is asked without a pause.
        """
        is_garbled = False
        moves = 0
        """How often another server was asked since the last pause."""
        with self.retries.request() as retries:
            while True:
                await self.retries.wait_as_asked()
                if self.is_closed:
                    raise closed_error(self.location)
                try:
                    answer = await request()
                except _GARBLED:
                    if is_garbled:
                        raise
                    is_garbled = True
                    continue
                except FilestoreError as error:
                    pause = retries.next_pause(error) if may_try_again(error) else None
                    if moves < len(self._servers) - 1 and _is_of_one_server(error) and self._servers.has_another:
                        moves += 1
                        continue
                    # If no server has ever answered, retries would only delay the error.
                    if pause is None or not self._is_reached:
                        raise self._servers.failure(error) from None
                    moves = 0
                else:
                    self.retries.note_progress()
                    return answer
                await self.retries.sleep(pause)

    async def json(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the document that answers a request."""
        answer = await self.retried(lambda: self.octets_once(method, path, body=body, headers=headers))
        return parse_document(self.location, answer)

    async def late_json(self, method: str, path: str, *, body: bytes | None = None) -> dict[str, Any]:
        """Return a document whose making may take long. The server sends blanks before it."""

        async def ask() -> dict[str, Any]:
            return parse_late_document(self.location, await self.octets_once(method, path, body=body, is_late=True))

        return await self.retried(ask)

    async def octets_once(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        limit: int = DOCUMENT_LIMIT,
        is_late: bool = False,
    ) -> bytes:
        """Return the body of the answer, of at most `limit` bytes. Call this inside of `retried`."""
        request = Request(method=method, path=path, fields=headers or {}, body=body, is_late=is_late)
        answer = SmallAnswer(self.location, limit=limit)
        await self.exchange(request, answer)
        return answer.content

    async def close(self) -> None:
        """Close all connections. Requests that wait for another try fail."""
        self.is_closed = True
        await self._servers.close()
        self.places.close()


def _is_of_one_server(error: FilestoreError) -> bool:
    """Return whether another server of the same repository may do what this one did not."""
    # The limit of a namespace or a token, and a disk without room, are the same everywhere.
    return error.retryable and not error.pauses_all and not error.is_retried_once
