"""A server is killed in the middle of the first fetch of a repository. The next one continues."""

from __future__ import annotations

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.support.hub_upstream import Behaviour, running_hub
from tests.support.server import RunningServer, eventually, running_server

MIB = 1 << 20
CLIENTS = 8
LARGE = random.Random(20).randbytes(32 * MIB)
OTHER = random.Random(21).randbytes(24 * MIB)
FILES = {"large": LARGE, "other": OTHER, "config.json": b"{}"}


def _read(server: RunningServer, path: str) -> bytes:
    """What a client got, which is less than the file if the server was killed meanwhile."""
    with suppress(OSError, HTTPException):
        return server.ask("GET", f"/team/m/resolve/main/{path}").body
    return b""


@pytest.mark.parametrize("workers", [1, 2])
def test_eight_clients_and_a_kill(tmp_path: Path, workers: int) -> None:
    """After SIGKILL and a restart, all clients get all files, and the upstream has sent each byte at most 1.1 times."""
    with running_hub() as hub, ThreadPoolExecutor(CLIENTS * len(FILES)) as pool:
        hub.commit("team/m", FILES)
        hub.behaviours["large"] = Behaviour(hang_at=20 * MIB)
        hub.behaviours["other"] = Behaviour(hang_at=16 * MIB)
        # Workers whose parent was killed end what they do, as long as a stopping server may. Here that never comes to an end.
        with running_server(tmp_path / "r", check=False, upstream_url=hub.url, workers=workers, drain_seconds=1) as server:
            before = [pool.submit(_read, server, path) for path in FILES for _ in range(CLIENTS)]
            eventually(lambda: (hub.sent["large"], hub.sent["other"]) == (20 * MIB, 16 * MIB))
            incoming = tmp_path / "r" / "upstream" / "incoming"
            # What the upstream has sent is on its way for a moment.
            eventually(lambda: sum(path.stat().st_size for path in incoming.glob("*/partial")) >= 33 * MIB)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            for read in before:
                assert read.result() not in {LARGE, OTHER}
        hub.behaviours.clear()
        hub.go_on.set()
        with running_server(tmp_path / "r", upstream_url=hub.url, workers=workers) as server:
            after = [(path, pool.submit(_read, server, path)) for path in FILES for _ in range(CLIENTS)]
            for path, read in after:
                assert read.result() == FILES[path]
            # A client has the last byte a moment before the file is stored.
            eventually(lambda: not list(incoming.iterdir()))
        assert sum(hub.sent.values()) <= 1.1 * sum(map(len, FILES.values()))
        assert all(hub.sent[path] <= 1.1 * len(FILES[path]) for path in ("large", "other"))
