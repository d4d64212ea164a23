"""Run one server process, from its start to its last request."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from filestore.core.digest import Digest
from filestore.http.limits import ServerLimits
from filestore.http.server.acceptor import SharedLoads
from filestore.http.server.app import make_app
from filestore.http.server.auth import Tokens
from filestore.http.server.background import background_work
from filestore.http.server.digest_pass import DigestPass
from filestore.http.server.jwt_tokens import JwtOptions, JwtTokens
from filestore.http.server.metrics import count_request
from filestore.http.server.request_logs import LogOptions, request_logs
from filestore.http.server.request_record import Observer
from filestore.http.server.revocation import Revocation
from filestore.http.server.route import Route
from filestore.http.server.running import accepting, first_of, handled, stop_signals
from filestore.http.server.tls import ServerTls
from filestore.http.server.token_uses import note_uses_for_ever
from filestore.http.server.traffic import SharedTransfers, StopWords, Traffic
from filestore.http.server.waiting import Waiting
from filestore.repository.index.protocol import Index
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.metrics import SharedTimes
from filestore.system.shared_rates import SharedRates

logger = logging.getLogger("filestore.server")

CLEANUP_SECONDS = 5.0
"""How long cancelled requests may take to clean up."""

OpenBackend = Callable[[], Awaitable[tuple[ChunkStore, Index]]]
Extension = Callable[[ChunkStore, Index], AbstractAsyncContextManager[Sequence[Route]]]
"""A function that returns a block. The block yields the routes that a server process serves in addition to files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The arguments that every worker needs to run."""

    open_backend: OpenBackend
    tokens: Mapping[Digest, str]
    spool_folder: Path
    knows_tokens: bool
    limits: ServerLimits
    shared_times: SharedTimes
    rates: SharedRates
    extension: Extension
    tls: ServerTls | None = None
    """The certificate, if the server speaks TLS."""
    shared_transfers: SharedTransfers = field(default_factory=lambda: SharedTransfers(1))
    loads: SharedLoads = field(default_factory=lambda: SharedLoads(1))
    logs: LogOptions = field(default_factory=LogOptions)
    jwt: JwtOptions | None = None
    waits: bool = False
    """Whether the repository may be away at the start, because it is on other hosts."""


@asynccontextmanager
async def no_extension(_: ChunkStore, __: Index) -> AsyncIterator[Sequence[Route]]:
    """Serve files only."""
    yield ()


async def run_worker(
    service: Service,
    listener: socket.socket,
    *,
    ready: Callable[[], None],
    announce_stop: Callable[[str], None] | None = None,
    lifeline: int | None = None,
    is_first: bool = True,
) -> None:
    """Serve until a stop signal or, in a worker, until the parent ends. The parent holds the other end of `lifeline`.

    `ready` is called when connections are accepted, and `announce_stop` with each sentence about the stop. Only the first
    worker writes to the log what all of them do.
    """
    loop = asyncio.get_running_loop()
    stopping, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (at_once if stopping.is_set() else stopping).set()

    if lifeline is None:
        handlers: dict[signal.Signals, Callable[[], None]] = dict.fromkeys(stop_signals(), stop)
    else:
        # A second SIGTERM means the same as the first. A service manager may signal the workers as well as their
        # parent.
        handlers = {signal.SIGTERM: stopping.set}
        loop.add_reader(lifeline, _orphaned, lifeline, stopping)
    if service.tls is not None:
        handlers[signal.SIGHUP] = service.tls.reload
    with handled(loop, handlers, is_last=lifeline is not None):
        async with _certificate_watched(service.tls, tells=is_first):
            await _serve_until(service, listener, stopping, at_once, ready=ready, announce_stop=announce_stop)


def _certificate_watched(tls: ServerTls | None, *, tells: bool) -> AbstractAsyncContextManager[None]:
    return nullcontext() if tls is None else tls.watched(tells=tells)


async def _serve_until(
    service: Service,
    listener: socket.socket,
    stopping: asyncio.Event,
    at_once: asyncio.Event,
    *,
    ready: Callable[[], None],
    announce_stop: Callable[[str], None] | None,
) -> None:
    """Serve until `stopping`, then let transfers under way finish, for `drain_seconds` or until `at_once`.

    The port stays open until then, since a transfer may need another connection and because new ones get an answer.
    """
    opened = await _opened(service, listener, stopping)
    if opened is None:
        return
    store, index = opened
    traffic = Traffic(service.shared_transfers)
    digests = DigestPass(store, index, transfers=lambda: traffic.transfers)
    words = StopWords(service.shared_transfers, service.limits.drain_seconds, announce_stop)
    try:
        jwt = None if service.jwt is None else JwtTokens(service.jwt)
        tokens = Tokens(index, service.tokens, knows_index=service.knows_tokens, jwt=jwt)
        revocation = Revocation(tokens)
        async with (
            background_work(store, index, service.limits, note_uses_for_ever(index, tokens), digests.run()),
            nullcontext() if jwt is None else jwt.running(),
            revocation.running(),
            service.extension(store, index) as more_routes,
            _observing(service.logs, digests.observe) as observers,
        ):
            app = make_app(
                store,
                index,
                tokens=tokens,
                revocation=revocation,
                secret=await index.secret(),
                spool_folder=service.spool_folder,
                limits=service.limits,
                traffic=traffic,
                shared_times=service.shared_times,
                rates=service.rates,
                more_routes=more_routes,
                observers=observers,
                digests=digests,
            )
            async with accepting(
                app, listener, limits=service.limits, tls=service.tls, observers=observers, loads=service.loads
            ) as site:
                ready()
                await stopping.wait()
                traffic.drain()
                site.drain()
                words.begin()
                await first_of(traffic.drained(words.go_on), at_once.wait(), within=service.limits.drain_seconds)
                traffic.note_end()
                await site.stop()
            # Cancelled requests still clean up after themselves, and need the store and the index for that.
            await first_of(traffic.idle(), within=CLEANUP_SECONDS)
            words.end()
    finally:
        await index.close()
        await store.close()


async def _opened(service: Service, listener: socket.socket, stopping: asyncio.Event) -> tuple[ChunkStore, Index] | None:
    """Open the repository, and wait until it is there. Return None if the server is stopped before that."""
    waiting = Waiting(listener, limits=service.limits, tls=service.tls, loads=service.loads)
    opened = waiting.once_there(service.open_backend, tell=logger.warning) if service.waits else service.open_backend()
    opening, stop = asyncio.ensure_future(opened), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([opening, stop], return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            await asyncio.wait([opening])
        return None if opening.cancelled() else opening.result()
    finally:
        opening.cancel()
        stop.cancel()


@asynccontextmanager
async def _observing(options: LogOptions, *others: Observer) -> AsyncIterator[Sequence[Observer]]:
    """Yield what gets the records of all requests during the block."""
    with request_logs(options) as observers:
        yield (count_request, *observers, *others)


def _orphaned(lifeline: int, stopping: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(lifeline)
    stopping.set()
