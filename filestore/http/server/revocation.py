"""Notice within about a second that a token was removed, limited or has expired, and cut the requests that it permitted.

Each process looks at the index at regular intervals, so it does not matter who changed the token.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from filestore.core.scopes import Scope
from filestore.errors import FilestoreError, Unauthorized
from filestore.http.server.access import Access
from filestore.http.server.auth import Tokens
from filestore.http.server.errors import FailureLog
from filestore.http.server.request_record import note_error
from filestore.system.metrics import Event, count
from filestore.system.threads import work_beside

logger = logging.getLogger("filestore.access")

CHECK_SECONDS = 0.5
"""The time between two looks at the tokens of the index."""

_RESET = struct.pack("ii", 1, 0)
_DEADLINE = "filestore.deadline"
"""The key of a request for the timeout that cuts it."""


class Revocation:
    """The requests in progress of one server process, with the tokens that permit them."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._running: dict[asyncio.Timeout, tuple[web.Request, Access, Scope]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the tokens during the block. Raises what `Tokens.refresh` raises, at the start."""
        await self._tokens.refresh()
        # An error of it ends the server: without these looks, a removed token would permit requests for ever.
        async with work_beside(self._look()):
            yield

    @asynccontextmanager
    async def cut_if_removed(self, request: web.Request) -> AsyncIterator[None]:
        """Cut the connection of a request during the block, as soon as its token does not permit it any more.

        The block ends then, as by a cancel. `note` says what permits the request.
        """
        try:
            async with asyncio.timeout(None) as deadline:
                request[_DEADLINE] = deadline
                try:
                    yield
                finally:
                    self._running.pop(deadline, None)
        except TimeoutError:
            if not deadline.expired():
                raise
            if request.transport is not None:
                request.transport.abort()

    def note(self, request: web.Request, access: Access, *, needed: Scope) -> None:
        """Note what permits a request in progress, and the scope that it needs."""
        self._running[request[_DEADLINE]] = (request, access, needed)

    async def _look(self) -> None:
        failures = FailureLog("changes of tokens cannot be noticed now")
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._tokens.refresh()
                if self._refused():
                    # A token that was added during the look above is seen by the next one.
                    await self._tokens.refresh()
            except FilestoreError as error:
                failures.failed(error)
            else:
                failures.succeeded()
            self._cut()

    def _refused(self) -> list[asyncio.Timeout]:
        running = self._running.items()
        return [deadline for deadline, (_, access, needed) in running if not self._tokens.is_valid(access, needed=needed)]

    def _cut(self) -> None:
        refused = self._refused()
        for deadline in refused:
            request, _, _ = self._running.pop(deadline)
            note_error(request, Unauthorized.slug)
            if request.transport is not None:
                # The end is then a reset, which discards what waits to be sent: the client must not get it.
                connection = request.transport.get_extra_info("socket")
                with suppress(OSError):  # the client may have ended it
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            deadline.reschedule(asyncio.get_running_loop().time())
        if refused:
            count(Event.REQUESTS_CUT, amount=len(refused))
            logger.info("a token was removed, limited or has expired, and %d requests that it permitted were cut", len(refused))
