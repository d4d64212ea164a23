"""Requests to one server, which are sent again after errors that are retryable. Nothing else in the client retries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from filestore.errors import FilestoreError, ForeignAnswer, InvalidBatch, InvalidFrame, InvalidManifest
from filestore.http.client.answers import DOCUMENT_LIMIT, SmallAnswer
from filestore.http.client.connection import client_tls
from filestore.http.client.documents import parse_document, parse_late_document
from filestore.http.client.exchange import ClientCertificate, Request
from filestore.http.client.transport import Transport
from filestore.repository.protocol import closed_error
from filestore.system.http_answers import may_try_again
from filestore.system.proxies import Proxy
from filestore.system.retries import Retries
from filestore.system.threads import abandon

T = TypeVar("T")

_GARBLED = (InvalidBatch, InvalidFrame, InvalidManifest)
"""Errors for bytes that one of the two ends could not verify. The checksum of TCP misses some flipped bits, so such a request is
sent once more. An error of the content itself comes again.
Source: J. Stone, C. Partridge, "When the CRC and TCP Checksum Disagree", SIGCOMM 2000."""


class Requests:
    """Sends requests to one server and receives small answers. Every request is idempotent, so that it may be sent again.

    For one event loop. Without an event loop, it may be made and dropped.
    """

    def __init__(
        self,
        location: str,
        *,
        token: str | None,
        connections: int,
        is_limit: bool,
        stall_seconds: float,
        retry_seconds: float,
        first_pause_seconds: float,
        proxy: Proxy | None,
        certificate: ClientCertificate | None = None,
    ) -> None:
        """Prepare requests without connecting. The options are those of `RemoteRepository`."""
        self.location = location
        self._token = token
        self._connections = connections
        self._is_limit = is_limit
        self._stall_seconds = stall_seconds
        self._proxy = proxy
        self._certificate = certificate
        self.retries = Retries(retry_seconds=retry_seconds, first_pause_seconds=first_pause_seconds)
        self.transport = self._open_transport()
        self._was_reached = False
        self.is_closed = False

    def after_fork(self) -> None:
        """Leave connections and threads to the parent. The child opens new ones."""
        abandon(self.transport)
        self._was_reached = self._is_reached
        self.retries = Retries(retry_seconds=self.retries.retry_seconds, first_pause_seconds=self.retries.first_pause_seconds)
        self.transport = self._open_transport()

    def _open_transport(self) -> Transport:
        return Transport(
            self.location,
            token=self._token,
            count=self._connections,
            is_limit=self._is_limit,
            stall_seconds=self._stall_seconds,
            proxy=self._proxy,
            tls=None if self._certificate is None else client_tls(self._certificate),
        )

    @property
    def _is_reached(self) -> bool:
        """Whether the server has ever answered this process, or its parent before a fork."""
        return self._was_reached or self.transport.has_answered

    async def retried(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return what `request` returns. Call it again after an error, as often as `system/retries.py` says."""
        is_garbled = False
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
                    if isinstance(error, ForeignAnswer) and self._proxy is not None:
                        error.through = f"the proxy {self._proxy.url}, which {self._proxy.source} names"
                    pause = retries.next_pause(error) if may_try_again(error) else None
                    # If the server has never answered, retries would only delay the error.
                    if pause is None or not self._is_reached:
                        raise
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
        await self.transport.exchange(request, answer)
        return answer.content

    async def close(self) -> None:
        """Close all connections. Requests that wait for another try fail."""
        self.is_closed = True
        await self.transport.close()
