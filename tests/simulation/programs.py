"""What simulated processes run: the product's own server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from filestore.backends import open_backend
from filestore.core.digest import Digest
from filestore.http.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from filestore.http.server.running import BACKLOG
from filestore.http.server.worker import Service, no_extension, run_worker
from filestore.system.metrics import SharedTimes
from filestore.system.shared_rates import SharedRates
from tests.simulation.kernel.process import Process


async def serve(
    process: Process,
    folder: Path,
    *,
    port: int = 80,
    tokens: Mapping[Digest, str] | None = None,
    limits: ServerLimits = DEFAULT_SERVER_LIMITS,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve the repository in `folder`, which must exist, on the address of the machine, until a stop signal comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.settimeout(0)
        listener.bind((process.machine.address, port))
        listener.listen(BACKLOG)
        service = Service(
            open_backend=partial(open_backend, folder),
            tokens=tokens or {},
            spool_folder=process.machine.folder / "spool",
            knows_tokens=True,
            limits=limits,
            shared_times=SharedTimes(1),
            rates=SharedRates(1),
            extension=no_extension,
        )
        await run_worker(service, listener, ready=ready)
