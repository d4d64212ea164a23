"""What each process does that answers HTTP: it accepts connections until a signal stops it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from filestore.http.limits import ServerLimits
from filestore.http.server.acceptor import SharedLoads
from filestore.http.server.connections import ConnectionSite
from filestore.http.server.descriptors import AcceptErrors
from filestore.http.server.request_record import Observer
from filestore.http.server.tls import ServerTls

BACKLOG = 512
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def handled(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]], *, is_last: bool
) -> Iterator[None]:
    """Let the loop handle these signals during the block, and restore the earlier handlers after it.

    If `is_last` is true, the signals are ignored after the block, because the process has yet to report its result.

    The handlers must be removed before the loop closes. When a loop closes, it first closes the socket that wakes it.
    For a signal that arrives after that, Python prints an error on standard error.
    """
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        # The loop restores the default handler, which ends the process. So the signals are blocked until our handler is
        # set.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        for number in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN if is_last else before[number] or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stop_signals() -> Sequence[signal.Signals]:
    """Return the signals that stop a server. SIGHUP, the end of a terminal, is left out where nohup has it ignored."""
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN]


@asynccontextmanager
async def accepting(
    app: web.Application,
    listener: socket.socket,
    *,
    limits: ServerLimits,
    tls: ServerTls | None = None,
    observers: Sequence[Observer] = (),
    loads: SharedLoads | None = None,
) -> AsyncIterator[ConnectionSite]:
    """Answer the connections of `listener` until the site is stopped.

    The end of the block cancels requests in progress.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        context = None if tls is None else lambda: tls.context
        site = ConnectionSite(runner, listener, limits=limits, backlog=BACKLOG, tls=context, observers=observers, loads=loads)
        await site.start()
        yield site
    finally:
        await runner.cleanup()


async def first_of(*events: Coroutine[None, None, object], within: float) -> None:
    """Wait for the first of `events`, at most `within` seconds."""
    waiting = [asyncio.create_task(event) for event in events]
    await asyncio.wait(waiting, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    for event in waiting:
        event.cancel()
