"""Run a server in one process, or in several on one port. A parent process restarts a worker that dies.

The parent never runs an event loop or a thread, so it can fork at any time. It makes the listening socket, and accepts
nothing. So while workers start and end, the port stays reserved, and new connections wait in the queue of this socket. All
workers accept from it (`acceptor`).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam

from filestore.core.digest import Digest
from filestore.http.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from filestore.http.server.acceptor import SharedLoads
from filestore.http.server.descriptors import allow_many_files
from filestore.http.server.errors import concerns_us
from filestore.http.server.jwt_tokens import JwtOptions, check_options
from filestore.http.server.listener import listening, server_url
from filestore.http.server.log import DirectHandler, log_by_thread
from filestore.http.server.request_logs import NO_LOGS, LogOptions
from filestore.http.server.running import BACKLOG
from filestore.http.server.supervisor import Supervisor
from filestore.http.server.tls import ServerTls, TlsFiles
from filestore.http.server.traffic import SharedTransfers
from filestore.http.server.waiting import Waiting
from filestore.http.server.worker import Extension, OpenBackend, Service, no_extension, run_worker
from filestore.system.event_loop import run_in_loop
from filestore.system.metrics import SharedTimes
from filestore.system.shared_rates import SharedRates

logger = logging.getLogger("filestore.server")


def serve(
    open_backend: OpenBackend,
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    announce_stop: Callable[[str], None] | None = None,
    prepare: Callable[[Waiting], None] = lambda _: None,
    waits: bool = False,
    workers: int | None = None,
    tokens: Mapping[Digest, str] | None = None,
    spool_folder: Path | None = None,
    limits: ServerLimits = DEFAULT_SERVER_LIMITS,
    knows_tokens: bool = True,
    jwt: JwtOptions | None = None,
    extension: Extension = no_extension,
    tls: TlsFiles | None = None,
    logs: LogOptions = NO_LOGS,
) -> None:
    """Serve a repository over HTTP until SIGTERM, SIGINT or SIGHUP. Call it in a process without threads.

    With `tls`, the server speaks TLS. SIGHUP then reads the files of the certificate again, and does not end the server.

    `prepare(waiting)` is called when the address is bound and nothing else is open, in a process that has no threads yet. In a
    child process it may wait by `waiting`, which answers at the address meanwhile. With `waits`, a server process waits in the
    same way for what `open_backend` opens.
    `announce(url)` is called when connections are accepted. `announce_stop(sentence)` is called after that: at the first
    stop signal, which says how many transfers may finish, every ten seconds while they do, and at the end. Port 0 means
    any free port.

    `tokens` maps digests of tokens to their namespaces. They are valid until the server ends, or until one is removed in
    the index (`filestore.repository.given_tokens`). The tokens of the index are valid too, unless `knows_tokens` is
    false. So are JSON Web Tokens, with `jwt`.

    `workers` is the number of processes, and `limits` hold for each of them. With None, the cores and the memory of this
    machine decide how many there are, and `limits` hold for all of them together. After a stop signal, transfers under way
    may continue for `limits.drain_seconds`; what is new is refused. A second signal ends them at once. Uploads wait in
    `spool_folder`, which is the system's temporary folder by default.

    `logs` says which logs of requests are written. A log that cannot be written is an error at the start only.

    Each worker enters `extension` for the routes that it serves in addition to those of files, and leaves it before it
    ends.

    Raises AddressInUse, AddressError, StorageError, MissingPackage (for `jwt`), InvalidSetting (a certificate or keys of
    JSON Web Tokens that cannot be used), and what `prepare` and `open_backend` raise.
    """
    if jwt is not None:
        check_options(jwt)
    if workers is None:
        workers = limits.chosen_workers()
        limits = limits.shared_by(workers)
    service = Service(
        open_backend=open_backend,
        waits=waits,
        tokens=tokens or {},
        spool_folder=spool_folder or Path(tempfile.gettempdir()),
        limits=limits,
        knows_tokens=knows_tokens,
        extension=extension,
        jwt=jwt,
        shared_times=SharedTimes(workers),
        tls=None if tls is None else ServerTls(tls),
        shared_transfers=SharedTransfers(workers),
        logs=logs,
        rates=SharedRates(workers),
        loads=SharedLoads(workers),
    )
    scheme = "http" if tls is None else "https"
    logs.check()
    allow_many_files()
    logging.getLogger("aiohttp.server").addFilter(concerns_us)
    # What a runtime does is worth a line, and so are the result of work between requests and each wrong token. All other
    # parts, and other libraries, only warn.
    logging.getLogger("filestore.runtime").setLevel(logging.INFO)
    logging.getLogger("filestore.maintenance").setLevel(logging.INFO)
    logging.getLogger("filestore.access").setLevel(logging.INFO)
    # A client may write any name in a form, and gets an answer.
    for warning in (BadContentDispositionHeader, BadContentDispositionParam):
        warnings.simplefilter("ignore", warning)
    logging.basicConfig(level=logging.WARNING, handlers=[DirectHandler()])
    if service.tls is not None:
        service.tls.log_warnings()
    with listening(host, port, backlog=BACKLOG) as listener:
        prepare(Waiting(listener, limits=limits, tls=service.tls))
        if workers > 1:
            Supervisor(service, listener, count=workers).run(
                lambda: announce(server_url(host, listener, scheme=scheme)), announce_stop
            )
            return
        service.shared_times.join(0)
        with log_by_thread():
            run_in_loop(
                run_worker(
                    service,
                    listener,
                    ready=lambda: announce(server_url(host, listener, scheme=scheme)),
                    announce_stop=announce_stop,
                )
            )
