"""Wait at the start of a server until its database and its object store can be used, and answer meanwhile.

The process that waits accepts the connections of the listening socket itself, with a small application that has no repository. It
ends before the process goes on, and connections wait in the queue of the socket until the real application accepts them.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.core.object_location import is_database, is_object_store
from filestore.errors import FilestoreError, Unhealthy
from filestore.http.limits import ServerLimits
from filestore.http.server.acceptor import SharedLoads
from filestore.http.server.errors import problem_answer, refusal
from filestore.http.server.rarely import LOG_SECONDS
from filestore.http.server.request_record import note_answer, recorded
from filestore.http.server.running import accepting
from filestore.http.server.tls import ServerTls
from filestore.http.server.traffic import RETRY_AFTER_SECONDS
from filestore.system.retries import Retries

T = TypeVar("T")

WAIT_SECONDS = 300.0
"""How long a server waits. Then it ends, and who started it decides: a service manager starts it again."""
QUIET_SECONDS = 1.0
"""How long connections wait in the queue. An opening that does not fail takes less, and nobody is refused for it."""


class Waiting:
    """How one server waits. Its processes, and the one that prepares the start, use it one after the other, or each alone."""

    def __init__(
        self, listener: socket.socket, *, limits: ServerLimits, tls: ServerTls | None = None, loads: SharedLoads | None = None
    ) -> None:
        """`loads` are those of all processes that accept the connections of `listener`, which stays open."""
        self._listener = listener
        self._limits = limits
        self._tls = tls
        self._loads = loads

    async def once_there(
        self, open_place: Callable[[], Awaitable[T]], *, tell: Callable[[str], None], seconds: float = WAIT_SECONDS
    ) -> T:
        """Return what `open_place` returns. While it fails with an error that may pass, call it again, for so many seconds.

        Meanwhile `/healthz` says that the process is alive, `/readyz` what it waits for, and all other requests are told to come
        back. Where another process of the server answers requests, connections are left to it.

        `tell` gets a sentence at the first failure, and then one a minute. Raises the last error, and at once one that stays,
        such as that of a wrong password.
        """
        reason = _Reason()
        opening = asyncio.create_task(_opened(open_place, reason, tell=tell, seconds=seconds))
        failing = asyncio.create_task(reason.has_failed.wait())
        try:
            await asyncio.wait([opening, failing], timeout=QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                async with self._answering(reason):
                    await asyncio.wait([opening])
            return await opening
        finally:
            failing.cancel()
            if opening.cancel():
                with suppress(asyncio.CancelledError):
                    await opening

    @asynccontextmanager
    async def _answering(self, reason: _Reason) -> AsyncIterator[None]:
        # The end closes the copy. The real application needs the socket.
        async with accepting(_app(reason), self._listener.dup(), limits=self._limits, tls=self._tls, loads=self._loads) as site:
            site.drain()
            try:
                yield
            finally:
                await site.stop()


class _Reason:
    """What a server waits for, in words that say nothing about where it is."""

    def __init__(self) -> None:
        self.part = "index and its object store"
        self.has_failed = asyncio.Event()

    def note(self, error: FilestoreError) -> None:
        """Note why the repository could not be opened."""
        where = str(error.args[0]) if error.args else ""
        self.part = "index" if is_database(where) else "object store" if is_object_store(where) else self.part
        self.has_failed.set()

    def says(self, who: str) -> str:
        """Return the reason of an answer. `who` is the server, as the sentence names it."""
        return f"{who} has just started, and it waits for its {self.part}"


def _app(reason: _Reason) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        path = f"/{request.path.lstrip('/')}"
        if path == "/healthz":
            return web.json_response({"status": "ok"})
        if path == "/readyz":
            answer = problem_answer(Unhealthy(reason.part, reason.says("the server")))
            answer.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            return answer
        return refusal("the server", reason.says("it"), retry_after_seconds=RETRY_AFTER_SECONDS)

    @web.middleware
    async def with_record(request: web.Request, handler: Handler) -> web.StreamResponse:
        with recorded(request, "", ()):
            return await handler(request)

    async def complete_head(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "filestore"
        note_answer(request, response)
        # The next request should go to the real application.
        response.force_close()

    app = web.Application(middlewares=[with_record])
    app.router.add_route("*", "/{path:.*}", answer, expect_handler=answer)
    app.on_response_prepare.append(complete_head)
    return app


async def _opened(open_place: Callable[[], Awaitable[T]], reason: _Reason, *, tell: Callable[[str], None], seconds: float) -> T:
    retries = Retries(retry_seconds=seconds)
    told_at: float | None = None
    until = time.monotonic() + seconds
    with retries.request() as request:
        while True:
            try:
                return await open_place()
            except FilestoreError as error:
                pause = request.next_pause(error)
                if pause is None:
                    raise
                now = time.monotonic()
                if told_at is None or now >= told_at + LOG_SECONDS:
                    told_at = now
                    tell(f"waiting for at most {max(0.0, until - now):.0f} more seconds: {' '.join(str(error).split())}")
                reason.note(error)
            await asyncio.sleep(pause)
