"""Serve frames to other machines: a cache that is a peer. It speaks one route of a server, and takes tickets only."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.core.digest import DIGEST_SIZE, parse_digests
from filestore.core.scopes import Scope
from filestore.errors import Busy, LimitExceeded, Stalled, Unauthorized
from filestore.http import wire
from filestore.http.client.repository import RemoteRepository
from filestore.http.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from filestore.http.server.access import Access
from filestore.http.server.body.answer import answering, arriving, moving
from filestore.http.server.body.frames import Frames
from filestore.http.server.connections import ConnectionSite
from filestore.http.server.descriptors import OpenFrames, allow_many_files
from filestore.http.server.errors import as_problems, concerns_us, refusal
from filestore.http.server.listener import listening, server_url
from filestore.http.server.log import DirectHandler, log_by_thread
from filestore.http.server.metrics import count_request
from filestore.http.server.outages import OUTAGES, Outages
from filestore.http.server.request_logs import NO_LOGS, LogOptions, request_logs
from filestore.http.server.request_record import Observer, note_answer, record_of, recorded
from filestore.http.server.running import BACKLOG, accepting, first_of, handled, stop_signals
from filestore.http.server.tls import ServerTls, TlsFiles
from filestore.http.server.traffic import Traffic
from filestore.peers.frame_folder import FOLDER, SIZE_LIMIT, FrameFolder
from filestore.peers.metrics import PeerMetrics
from filestore.peers.origin_frames import PEER, OriginFrames
from filestore.peers.tickets import KnownTickets
from filestore.system.event_loop import run_in_loop
from filestore.system.metrics import Event, count

_BODY_LIMIT = wire.BATCH_COUNT_LIMIT * DIGEST_SIZE
_RETRY_AFTER_SECONDS = 1
_CLEANUP_SECONDS = 5.0

OpenOrigin = Callable[[], AbstractAsyncContextManager[RemoteRepository]]
"""A function that returns a block with the repository at the origin, by the peer's own token."""


def serve(
    open_origin: OpenOrigin,
    *,
    host: str,
    port: int,
    cache: Path,
    announce: Callable[[str], None],
    size_limit: int = SIZE_LIMIT,
    min_free: int = 0,
    limits: ServerLimits = DEFAULT_SERVER_LIMITS,
    tls: TlsFiles | None = None,
    metrics: tuple[str, int] | None = None,
    logs: LogOptions = NO_LOGS,
) -> None:
    """Give frames of the origin to other machines, until SIGTERM, SIGINT or SIGHUP. Call it in a process without threads.

    Frames are kept in the folder `peers` of `cache`, up to `size_limit` bytes. `min_free` bytes of its disk stay free.
    `announce(url)` is called when connections are accepted. Port 0 means any free port. Of `limits`, those of connections hold.
    After a stop signal, requests in progress may continue for `limits.drain_seconds`; a second one ends them.

    `metrics` is the host and the port at which anybody who reaches them can read numbers about this process. `logs` says which
    logs of requests are written. A log that cannot be written is an error at the start only.

    Raises AddressInUse, AddressError, InvalidSetting (a certificate that cannot be used), and what `open_origin` and the first
    question to the origin raise.
    """
    certificate = None if tls is None else ServerTls(tls)
    allow_many_files()
    logging.getLogger("aiohttp.server").addFilter(concerns_us)
    logging.basicConfig(level=logging.WARNING, handlers=[DirectHandler()])
    logs.check()
    with ExitStack() as stack:
        listener = stack.enter_context(listening(host, port, backlog=BACKLOG))
        watched = None if metrics is None else stack.enter_context(listening(*metrics, backlog=BACKLOG))
        observers = (count_request, *stack.enter_context(request_logs(logs)))
        scheme = "http" if certificate is None else "https"

        async def run() -> None:
            async with open_origin() as origin:
                identity = await origin.identity()
                folder = FrameFolder(cache / FOLDER, identity.id, identity.namespace, size_limit=size_limit, min_free=min_free)
                peer = Peer(origin, folder, limits=limits, namespace=identity.namespace, observers=observers)
                try:
                    ready = partial(announce, server_url(host, listener, scheme=scheme))
                    await _run(peer, listener, watched, ready=ready, limits=limits, tls=certificate)
                finally:
                    await peer.close()

        with log_by_thread():
            run_in_loop(run())


class Peer:
    """Answers the requests of other machines for the frames of one namespace."""

    def __init__(
        self,
        origin: RemoteRepository,
        folder: FrameFolder,
        *,
        namespace: str,
        limits: ServerLimits = DEFAULT_SERVER_LIMITS,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Use it in one event loop. `observers` get the records of requests."""
        self.traffic = Traffic()
        self.metrics = PeerMetrics(self.traffic)
        self.observers = observers
        self._access = Access(namespace, scope=Scope.READ)
        self._tickets = KnownTickets(origin.peer_ticket)
        self._frames = OriginFrames(origin, folder)
        self._open_frames = OpenFrames()
        self._stall_seconds = limits.stall_seconds

    def app(self) -> web.Application:
        """Return the application that answers."""
        app = web.Application(middlewares=[self._counted, as_problems])
        app[OUTAGES] = Outages()
        app.router.add_post(f"{wire.API}/chunks/get", self._get_chunks)
        app.router.add_get("/healthz", self._answer_alive)
        app.on_response_prepare.append(self._complete_head)
        return app

    async def close(self) -> None:
        """End the requests to the origin."""
        await self._tickets.close()
        await self._frames.close()

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self.traffic.passing(), recorded(request, request.remote or "", self.observers):
            response = self.traffic.refused(is_known=False) or await handler(request)
            await self._finish(request, response)
            return response

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        """Send what a handler has returned, so that its record is whole. Cut the connection if the client is gone or too slow."""
        is_sent = response.prepared
        try:
            async with moving(self._stall_seconds):
                await response.prepare(request)
                await response.write_eof()
        except (Stalled, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        else:
            if not is_sent:
                size = response.content_length or 0
                record_of(request).note_body(0 if request.method == "HEAD" else size)

    async def _complete_head(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "filestore"
        note_answer(request, response)
        if self.traffic.draining:
            response.headers["Connection"] = "close"
            response.force_close()

    async def _answer_alive(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def _get_chunks(self, request: web.Request) -> web.StreamResponse:
        """Do what this route of a server does, without URLs of frames."""
        try:
            return await self._answer_frames(request)
        except Busy as error:
            # Not a fault of this peer, and not worth a line for each request.
            return refusal(*error.args, retry_after_seconds=_RETRY_AFTER_SECONDS)

    async def _answer_frames(self, request: web.Request) -> web.StreamResponse:
        if not await self._tickets.accepts(request.headers.get("Authorization")):
            count(Event.WRONG_CREDENTIALS)
            raise Unauthorized(PEER)
        record_of(request).access = self._access
        digests = parse_digests(await self._body(request))
        response = web.StreamResponse(headers={"Content-Type": wire.OCTETS})
        async with self._frames.held(digests) as held, Frames(held, digests, self._open_frames) as frames:
            entries = await frames.entries()
            header = wire.encode_batch_header(entries)
            size = len(header) + sum(entry.stored_size for entry in entries)
            async with answering(request, response, size=size, stall_seconds=self._stall_seconds) as answer:
                await frames.send(answer, entries, header=header)
            count(Event.FRAMES_GIVEN, amount=sum(entry.stored_size > 0 for entry in entries))
            count(Event.FRAMES_GIVEN_SIZE, amount=size - len(header))
        return response

    async def _body(self, request: web.Request) -> bytes:
        """Receive the body, at most 128 KiB, which has as long as a connection may stall."""
        size = request.content_length
        if size is None:
            raise web.HTTPLengthRequired(text="a request for frames needs a Content-Length")
        if size > _BODY_LIMIT:
            raise LimitExceeded("the size of the request body in bytes", size, _BODY_LIMIT, "")
        if not size:
            return b""
        with arriving():
            async with moving(self._stall_seconds):
                return await request.content.readexactly(size)


@asynccontextmanager
async def _showing_metrics(
    peer: Peer, readers: ConnectionSite, listener: socket.socket | None, limits: ServerLimits
) -> AsyncIterator[None]:
    """Answer the connections of `listener` with the metrics during the block, which count those of `readers`."""
    if listener is None:
        yield
        return
    shown = peer.metrics.app(connections=lambda: readers.connection_count)
    async with accepting(shown, listener, limits=limits) as site:
        try:
            yield
        finally:
            await site.stop()


async def _run(
    peer: Peer,
    listener: socket.socket,
    watched: socket.socket | None,
    *,
    ready: Callable[[], None],
    limits: ServerLimits,
    tls: ServerTls | None,
) -> None:
    """Answer until a stop signal, then let the requests in progress finish, until another one."""
    stopping, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (at_once if stopping.is_set() else stopping).set()

    handlers: dict[signal.Signals, Callable[[], None]] = dict.fromkeys(stop_signals(), stop)
    if tls is not None:
        handlers[signal.SIGHUP] = tls.reload
    with handled(asyncio.get_running_loop(), handlers, is_last=False):
        async with (
            nullcontext() if tls is None else tls.watched(),
            accepting(peer.app(), listener, limits=limits, tls=tls, observers=peer.observers) as site,
            _showing_metrics(peer, site, watched, limits),
        ):
            ready()
            await stopping.wait()
            peer.traffic.drain()
            # The port stays open meanwhile, so that whoever connects gets an answer and need not wait for the end.
            await first_of(peer.traffic.idle(), at_once.wait(), within=limits.drain_seconds)
            await site.stop()
        await first_of(peer.traffic.idle(), within=_CLEANUP_SECONDS)
