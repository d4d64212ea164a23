"""Server processes: one, or several on one port under a parent that restarts those that die.

The parent never runs an event loop or a thread, so that it can fork at any time. It binds the port without listening:
the port stays taken while workers come and go, each listening on a socket of its own (SO_REUSEPORT).
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from aiohttp import web

from filestore.digest import Digest
from filestore.errors import AddressError, AddressInUse, FilestoreError
from filestore.http import wire
from filestore.http.server.app import Limits, Route, Traffic, make_app
from filestore.http.server.auth import Tokens
from filestore.http.server.problems import concerns_us, log_failure
from filestore.index.protocol import Index
from filestore.repository import SIGNED_SECONDS
from filestore.stages import Board
from filestore.stores.protocol import ChunkStore

logger = logging.getLogger("filestore.server")

BACKLOG = 512
KEEPALIVE_SECONDS = 75
"""How long a connection may wait for a request's head, or be idle."""
RESTART_SECONDS = 1.0
"""Between two starts of one worker."""
_FILES_LIMIT = 65536
_LAST_SECONDS = 5.0
"""For what was cancelled to clean up after itself."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NOTICED_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD)
_READY = b"+"

_Address = tuple[Any, ...]

OpenBackend = Callable[[], Awaitable[tuple[ChunkStore, Index]]]
Extension = Callable[[ChunkStore, Index], AbstractAsyncContextManager[Sequence[Route]]]
"""What a server process serves beside files, for as long as it is entered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    """What every worker runs."""

    open_backend: OpenBackend
    tokens: Mapping[Digest, str]
    spool_folder: Path
    knows_tokens: bool
    limits: Limits
    drain_seconds: float
    board: Board
    extension: Extension


@asynccontextmanager
async def no_extension(_: ChunkStore, __: Index) -> AsyncIterator[Sequence[Route]]:
    """A server of files, and of nothing beside them."""
    yield ()


def serve(
    open_backend: OpenBackend,
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    prepare: Callable[[], None] = lambda: None,
    workers: int = 1,
    tokens: Mapping[Digest, str] | None = None,
    spool_folder: Path | None = None,
    stall_seconds: float = 30,
    memory_limit: int = 128 << 20,
    upload_limit: int | None = None,
    upload_idle_seconds: float = 86400,
    drain_seconds: float = 30,
    signed_seconds: float = SIGNED_SECONDS,
    knows_tokens: bool = True,
    extension: Extension = no_extension,
) -> None:
    """Serve a repository over HTTP, and return when SIGTERM, SIGINT or SIGHUP stopped it. Call it in a process without threads.

    `prepare()` is called once the address is ours and before anything is opened, in a process that has no threads yet;
    `announce(url)` is called once connections are accepted; port 0 is any free one. `tokens` (digests, and the namespaces
    that they are let in to) hold for this run, beside those of the index. A stop lets requests under way finish for
    `drain_seconds`; a second signal ends them at once. `memory_limit` is bytes in flight in each worker, pushes of
    uploads aside, which have 96 MiB; uploads wait in `spool_folder`, by default the system's temporary one, and may be of
    `upload_limit` bytes; one in parts is dropped once nothing came of it for `upload_idle_seconds`. Signed URLs hold for
    `signed_seconds`. Without `knows_tokens`, nobody but `tokens` is let in. Each worker enters `extension`, for the routes
    that it serves beside those of files, and leaves it before it ends.

    Raises AddressInUse, AddressError, and what `prepare` and `open_backend` raise.
    """
    service = _Service(
        open_backend=open_backend,
        tokens=tokens or {},
        spool_folder=spool_folder or Path(tempfile.gettempdir()),
        limits=Limits(
            stall_seconds=stall_seconds,
            memory_limit=memory_limit,
            upload_limit=upload_limit,
            upload_idle_seconds=upload_idle_seconds,
            signed_seconds=signed_seconds,
        ),
        drain_seconds=drain_seconds,
        knows_tokens=knows_tokens,
        extension=extension,
        board=Board(workers),
    )
    _allow_many_files()
    logging.getLogger("aiohttp.server").addFilter(concerns_us)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    if workers > 1:
        with _held_port(host, port) as holder:
            prepare()
            _Parent(service, holder, count=workers).run(lambda: announce(_url(host, holder)))
        return
    service.board.join(0)
    with _bound(*_resolved(host, port), is_shared=False) as listener:
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            raise _address_error(listener.getsockname(), error) from error
        prepare()
        asyncio.run(_work(service, listener, ready=lambda: announce(_url(host, listener))))


async def _work(service: _Service, listener: socket.socket, *, ready: Callable[[], None], lifeline: int | None = None) -> None:
    """Serve until told to stop: by a signal or, for a worker, by the end of the parent, which has the other end of `lifeline`."""
    loop = asyncio.get_running_loop()
    stopping, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (at_once if stopping.is_set() else stopping).set()

    if lifeline is None:
        handlers: dict[signal.Signals, Callable[[], None]] = dict.fromkeys(_stop_signals(), stop)
    else:
        # A second SIGTERM means no more than the first: a service manager may signal the workers as well as their parent.
        handlers = {signal.SIGTERM: stopping.set}
        loop.add_reader(lifeline, _orphaned, lifeline, stopping)
    with _handled(loop, handlers, is_last=lifeline is not None):
        await _serve_until(service, listener, stopping, at_once, ready=ready)


async def _serve_until(
    service: _Service,
    listener: socket.socket,
    stopping: asyncio.Event,
    at_once: asyncio.Event,
    *,
    ready: Callable[[], None],
) -> None:
    """Serve until `stopping`, and let requests under way finish then, but not once it is to be `at_once`."""
    store, index = await service.open_backend()
    traffic = Traffic()
    try:
        async with service.extension(store, index) as more_routes:
            app = make_app(
                store,
                index,
                tokens=Tokens(index if service.knows_tokens else None, service.tokens),
                secret=await index.secret(),
                spool_folder=service.spool_folder,
                limits=service.limits,
                traffic=traffic,
                board=service.board,
                more_routes=more_routes,
            )
            async with _accepting(app, listener) as site:
                ready()
                await stopping.wait()
                traffic.draining = True
                await site.stop()
                await _first(traffic.idle(), at_once.wait(), within=service.drain_seconds)
            # What was cancelled still cleans up after itself, and needs store and index for that.
            await _first(traffic.idle(), within=_LAST_SECONDS)
    finally:
        await index.close()
        await store.close()


@contextmanager
def _handled(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]], *, is_last: bool
) -> Iterator[None]:
    """Have the loop handle these signals until the end of the block, and then whoever handled them before.

    Where this is the last that the process does, they are ignored then: it has yet to report how it went.

    The loop must be rid of them before it closes: closing, it closes the socket that wakes it up first, and a signal that comes
    then is told on standard error as one that cannot be written there.
    """
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        # Blocked meanwhile: what the loop leaves behind is the default, which ends the process.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        for number in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN if is_last else before[number] or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _stop_signals() -> Sequence[signal.Signals]:
    """What stops a server. nohup has the end of a terminal, which is SIGHUP, ignored."""
    return [
        number for number in _STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ]


@asynccontextmanager
async def _accepting(app: web.Application, listener: socket.socket) -> AsyncIterator[web.BaseSite]:
    """Answer what comes to `listener` until the site is stopped; at the end of the block, requests under way are cancelled."""
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        # A connection is read from only when all that was read was taken: no more than one read of 256 KiB waits (I6), and a cut,
        # which is noticed by reading, never comes before what arrived ahead of it.
        read_bufsize=1,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        await site.start()
        yield site
    finally:
        await runner.cleanup()


def _orphaned(lifeline: int, stopping: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(lifeline)
    stopping.set()


async def _first(*events: Coroutine[None, None, object], within: float) -> None:
    """Wait for the first of `events`, and no longer than `within` seconds."""
    waiting = [asyncio.create_task(event) for event in events]
    await asyncio.wait(waiting, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    for event in waiting:
        event.cancel()


@dataclass(slots=True)
class _Worker:
    """A place for a worker, and the process that fills it, if there is one."""

    place: int
    pid: int = 0
    report: int = -1
    """The pipe on which the process says that it is ready, or why it cannot be."""
    said: bytes = b""
    start_at: float = 0.0
    """When the next process may start here."""

    @property
    def is_ready(self) -> bool:
        """Whether connections are accepted here."""
        return self.pid != 0 and self.said == _READY

    @property
    def failure(self) -> FilestoreError:
        """Why the process could not start."""
        try:
            return wire.decode_problem("", 500, json.loads(self.said))
        except ValueError:
            return FilestoreError("a process of the server ended before it could start; its own messages say why")


class _Parent:
    """Starts workers, restarts those that die, and stops them all."""

    def __init__(self, service: _Service, holder: socket.socket, *, count: int) -> None:
        self._service = service
        self._holder = holder
        self._workers = [_Worker(place) for place in range(count)]
        self._selector = selectors.DefaultSelector()
        self._lifeline = os.pipe()
        self._stops = 0

    def run(self, announce: Callable[[], None]) -> None:
        """Return once a signal stopped all workers. Raises what kept one from starting."""
        is_announced = False
        with self._noticed_signals():
            try:
                while not self._stops:
                    self._start_due()
                    self._wait(self._next_start())
                    for pid, worker in self._ended():
                        if not is_announced:
                            raise worker.failure
                        reason = "" if worker.said == _READY else f": {worker.failure}"
                        logger.error("worker %d ended%s; another one takes its place", pid, reason)
                    if not is_announced and all(worker.is_ready for worker in self._workers):
                        announce()
                        is_announced = True
            finally:
                self._stop_all()

    def _next_start(self) -> float | None:
        return min((worker.start_at for worker in self._workers if not worker.pid), default=None)

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pid and worker.start_at <= now:
                worker.start_at = now + RESTART_SECONDS
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        # What is still buffered would be written by the child too.
        sys.stdout.flush()
        sys.stderr.flush()
        report, write_end = os.pipe()
        # A signal that came to the child before it has handlers of its own would run the parent's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICED_SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._be_worker(worker, write_end)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_end)
        worker.pid, worker.report, worker.said = pid, report, b""
        self._selector.register(report, selectors.EVENT_READ, worker)

    def _be_worker(self, worker: _Worker, report: int) -> NoReturn:
        """What the child does, to its end: nothing of the parent's own business runs in it."""
        is_ready = False

        def ready() -> None:
            nonlocal is_ready
            is_ready = True
            os.write(report, _READY)
            os.close(report)

        status = 1
        try:
            self._become_child()
            self._service.board.join(worker.place)
            with _bound(self._holder.family, self._holder.getsockname(), is_shared=True) as listener:
                self._holder.close()
                asyncio.run(_work(self._service, listener, ready=ready, lifeline=self._lifeline[0]))
            status = 0
        except FilestoreError as error:
            if is_ready:
                log_failure("a worker failed", error)
            else:
                os.write(report, json.dumps(wire.encode_problem(error).document).encode())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it ends this process only
            log_failure("a worker failed", error)
        finally:
            os._exit(status)

    def _become_child(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # A terminal sends these to the whole group; what the workers do is up to the parent.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTICED_SIGNALS)
        self._selector.close()
        os.close(self._lifeline[1])
        for worker in self._workers:
            if worker.report >= 0:
                os.close(worker.report)

    @contextmanager
    def _noticed_signals(self) -> Iterator[None]:
        """Have signals end a wait: one that stops the server, and one that says that a worker ended."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.settimeout(0)
        noticed = (*_stop_signals(), signal.SIGCHLD)
        before = {number: signal.signal(number, self._notice) for number in noticed}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, reader)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            reader.close()
            writer.close()
            for descriptor in self._lifeline:
                os.close(descriptor)

    def _notice(self, number: int, _: FrameType | None) -> None:
        if number in _STOP_SIGNALS:
            self._stops += 1

    def _wait(self, until: float | None) -> None:
        """Wait for a signal or a report, and no longer than until then."""
        timeout = None if until is None else max(0.0, until - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, _Worker):
                self._hear(key.data)
            else:
                key.data.recv(4096)

    def _hear(self, worker: _Worker) -> None:
        """Take what there is of a worker's report."""
        said = os.read(worker.report, 1 << 16)
        worker.said += said
        if not said:
            self._selector.unregister(worker.report)
            os.close(worker.report)
            worker.report = -1

    def _ended(self) -> list[tuple[int, _Worker]]:
        """Processes that have ended, each once, and the places that they leave, with all that they said."""
        ended = []
        for worker in self._workers:
            pid = worker.pid
            if pid and os.waitpid(pid, os.WNOHANG)[0]:
                worker.pid = 0
                while worker.report >= 0:
                    self._hear(worker)
                ended.append((pid, worker))
        return ended

    def _stop_all(self) -> None:
        """Let the workers finish what is under way; end them at once at the next signal, or when they take too long."""
        stops = self._stops
        self._signal_all(signal.SIGTERM)
        deadline: float | None = time.monotonic() + self._service.drain_seconds + 2 * _LAST_SECONDS
        while any(worker.pid for worker in self._workers):
            self._wait(deadline)
            if self._stops > stops or (deadline is not None and time.monotonic() >= deadline):
                self._signal_all(signal.SIGKILL)
                deadline = None
            self._ended()

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)


@contextmanager
def _held_port(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound to the port, not listening, so that nobody but workers can have the port."""
    family, address = _resolved(host, port)
    # Without sharing it first: with it, a port that another server of ours listens on could be had too.
    with _bound(family, address, is_shared=False) as probe:
        address = probe.getsockname()
    with _bound(family, address, is_shared=True) as holder:
        yield holder


@contextmanager
def _bound(family: int, address: _Address, *, is_shared: bool) -> Iterator[socket.socket]:
    """A socket that is bound to `address`. Raises AddressInUse, AddressError."""
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        # What lingers of an earlier server's connections does not matter.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise _address_error(address, error) from error
        yield bound


def _resolved(host: str, port: int) -> tuple[int, _Address]:
    """The first address of a host's name, or the address itself. Raises AddressError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise _address_error((host, port), error) from error
    return family, address


def _address_error(address: _Address, error: OSError) -> AddressError:
    kind = AddressInUse if error.errno == errno.EADDRINUSE else AddressError
    return kind(f"{address[0]}:{address[1]}", error.strerror or str(error))


def _url(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _allow_many_files() -> None:
    """A connection and the frames that it is sent are open files, and many systems allow 1024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_LIMIT if hard == resource.RLIM_INFINITY else min(_FILES_LIMIT, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
