"""Keep a server below its limit of open files, and answer well when it is reached anyway.

A server that has no descriptor left cannot even accept the connection on which it would say so. So each process has
fewer connections than descriptors, and further ones get the answer 503.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from typing import Any

from aiohttp import web

from filestore.errors import Busy
from filestore.http.server.errors import OUT_OF_DESCRIPTORS, problem_head_and_body

logger = logging.getLogger("filestore.server")

_KEPT_FREE = 64
"""Descriptors for the index, the log, locks and libraries."""
_PER_CONNECTION = 4
"""Descriptors of a connection with a request: its socket, a duplicate, a file, and a share of the frames that are sent."""
_LEAST_CONNECTIONS = 4
_REFUSAL_SECONDS = 2.0
"""How long a refused client has to read its answer."""
_LOG_SECONDS = 60.0
_OUT = (errno.EMFILE, errno.ENFILE)


def connections_limit() -> int:
    """Return how many connections this process may have, by its limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max(_LEAST_CONNECTIONS, (soft - _KEPT_FREE) // _PER_CONNECTION)


class LimitedSite(web.SockSite):
    """Accept the connections of a socket. If there are too many, answer 503 on the new one and close it."""

    connections_limit: int

    async def start(self) -> None:
        """Begin to accept connections."""
        self.connections_limit = connections_limit()
        await web.BaseSite.start(self)
        server = self._runner.server
        assert server is not None  # noqa: S101  # the runner is set up

        def protocol() -> asyncio.BaseProtocol:
            return server() if len(server.connections) < self.connections_limit else _Refusal()

        self._server = await asyncio.get_running_loop().create_server(protocol, sock=self._sock, backlog=self._backlog)


class _Refusal(asyncio.Protocol):
    """Answer 503, whatever is asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # of a TCP server
        self._transport = transport
        head, body = problem_head_and_body(Busy("the server", "it has as many connections as its limit of open files permits"))
        transport.write(head + body)
        transport.write_eof()
        # A client that sends on, or nothing, must not keep a descriptor. A close at once could discard the answer.
        asyncio.get_running_loop().call_later(_REFUSAL_SECONDS, transport.abort)

    def data_received(self, _: bytes) -> None:
        """Ignore the request. The client reads the answer when it has sent it."""

    def eof_received(self) -> None:
        self._transport.close()


class AcceptErrors:
    """Handle errors of the event loop: log in one line a minute that no descriptor is left for a new connection."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _OUT:
            loop.default_exception_handler(context)
            return
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            logger.error("new connections wait: %s", OUT_OF_DESCRIPTORS)
