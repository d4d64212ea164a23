"""The disk, the index or the folders of a running server fail. It is alive and not ready, and what can be mended is."""

from __future__ import annotations

import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.errors import Busy
from filestore.http.server import health
from filestore.http.server.acceptor import RETRY_SECONDS
from filestore.http.server.health import Health
from filestore.repository.index.sqlite import open_index
from filestore.repository.stores.disk import open_store
from filestore.repository.stores.memory import MemoryStore
from filestore.repository.stores.protocol import Staging
from filestore.repository.stores.staging_file import DiskStaging
from tests.support.commands import SCRIPTS, Home
from tests.support.disks import small_disk
from tests.support.frames import frames
from tests.support.server import RunningServer, eventually, reply, running_server
from tests.support.uploads import PartsUpload


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def remove_all(folder: Path) -> None:
    """Remove a folder that a server may be writing to."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_folders_that_somebody_removed_are_made_again(server: RunningServer) -> None:
    """Every kind of upload succeeds, and the server is healthy."""
    tmp = server.root / "tmp"
    (own,) = [path for path in tmp.iterdir() if len(path.name) == 32]
    remove_all(own)
    assert 200 == server.put(frames(1)).status
    remove_all(tmp)
    assert 201 == server.upload("form.bin", b"x" * 300_000).status
    remove_all(tmp)
    upload = PartsUpload(server, "parts.bin")
    assert 201 == upload.finish([upload.put(1, b"y" * 300_000)]).status
    remove_all(tmp)
    assert 200 == server.ask("POST", "/native/v1/chunks/missing", b"x" * 320_000).status
    remove_all(tmp)
    assert 200 == server.ask("GET", "/readyz", token=None).status


@pytest.mark.parametrize("end", [DiskStaging.sync, lambda staging: staging.write(b"second")])
async def test_staging_folder_that_is_made_again_is_locked(tmp_path: Path, end: Callable[[DiskStaging], None]) -> None:
    """No other process sweeps it. A frame that was being written must be written once more."""
    store, other = await open_store(tmp_path), await open_store(tmp_path)
    begun = store.new_staging()
    begun.write(b"first")
    begun.rest()
    shutil.rmtree(tmp_path / "tmp")
    with pytest.raises(Busy, match="somebody removed the staging files"):
        end(begun)
    staging = store.new_staging()
    staging.write(b"content")
    await other.remove_abandoned()
    staging.sync()
    (own,) = (tmp_path / "tmp").iterdir()
    assert 1 == len(list(own.iterdir()))
    await store.close()
    await other.close()
    assert [] == list((tmp_path / "tmp").iterdir())


async def test_running_server_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    """The folder of a living process stays."""
    store = await open_store(tmp_path)
    dead = tmp_path / "tmp" / ("0" * 32)
    dead.mkdir()
    (dead / "0").write_bytes(b"a torn frame")
    await store.remove_abandoned()
    assert (False, 1) == (dead.exists(), len(list((tmp_path / "tmp").iterdir())))
    await store.close()


@pytest.mark.slow
def test_server_on_a_full_disk_is_ready_and_says_that_it_is_full(tmp_path: Path) -> None:
    """It goes on to read and to remove, so it gets requests. With space it is no longer full."""
    with small_disk(tmp_path / "disk", "size=8m") as change, running_server(tmp_path / "disk/root", check=False) as server:
        with suppress(OSError), (tmp_path / "disk/other").open("wb", buffering=0) as other:
            while other.write(bytes(4096)):
                pass
        answer = server.ask("GET", "/readyz", token=None)
        assert (200, {"status": "ok", "full": True}) == (answer.status, answer.json)
        change("size=32m")
        eventually(lambda: server.ask("GET", "/readyz", token=None).json == {"status": "ok", "full": False})


def test_server_with_less_than_min_free_is_full(tmp_path: Path) -> None:
    """The setting counts, and not only the last free block."""
    with running_server(tmp_path / "root", check=False, min_free=1 << 60) as server:
        assert {"status": "ok", "full": True} == server.ask("GET", "/readyz", token=None).json


@pytest.mark.slow
def test_server_whose_index_was_removed_is_unhealthy(tmp_path: Path) -> None:
    """What it wrote would be lost."""
    with running_server(tmp_path / "root", check=False) as server:
        for path in server.root.glob("index.sqlite*"):
            path.unlink()
        answer = server.ask("GET", "/readyz", token=None)
        assert (503, "unhealthy", "index") == (answer.status, answer.slug, answer.json["part"])
        assert str(tmp_path) not in answer.body.decode()
        # A restart mends no index.
        assert 200 == server.ask("GET", "/healthz", token=None).status


class HangingStore(MemoryStore):
    """A store on a disk that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.started = 0

    def sync(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:  # noqa: ARG002  # of the protocol
        self.started += 1
        self.released.wait()


async def test_disk_that_hangs_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes within the limit, and one thread waits, however often somebody asks."""
    monkeypatch.setattr(health, "LIMIT_SECONDS", 0.05)
    store, index = HangingStore(), await open_index(tmp_path / "index.sqlite")
    checks = Health(store, index, tmp_path / "spool")
    async with checks.running():
        for _ in range(3):
            failure = await checks.failure()
            assert failure is not None
            assert ("disk", "it did not answer within 0.05 seconds") == failure.args
        assert 1 == store.started
        store.released.set()
    await index.close()


async def test_index_that_another_one_writes_to_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long transaction is not a fault."""
    monkeypatch.setattr(health, "BUSY_SECONDS", 0.05)
    index, other = await open_index(tmp_path / "index.sqlite"), await open_index(tmp_path / "index.sqlite")
    checks = Health(MemoryStore(), index, tmp_path / "spool")
    async with checks.running(), other.transaction():
        assert None is await checks.failure()
    await index.close()
    await other.close()


@pytest.mark.slow
def test_connections_have_a_limit_below_that_of_open_files(home: Home, tmp_path: Path) -> None:
    """One too many gets 503 and when to come again. The log stays empty."""
    limited = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh", SCRIPTS / "filestore", "serve")
    with home.server(root=tmp_path / "root", command=limited) as running:
        server = RunningServer(running.url, running.token, running.root, running.process)
        connections = [server.connection() for _ in range(16)]
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n")
            assert 200 == reply(connection).status
        refused = server.ask("GET", "/healthz", token=None)
        assert (503, "busy", "1") == (refused.status, refused.slug, refused.headers["Retry-After"])
        with server.connection() as silent:  # it neither asks nor closes
            assert b"HTTP/1.1 503" == silent.recv(12)
            eventually(lambda: is_cut(silent))
        for connection in connections:
            connection.close()
        eventually(lambda: 200 == server.ask("GET", "/healthz", token=None).status)


def is_cut(connection: socket.socket) -> bool:
    """Send a byte, and return whether the other end has closed the connection."""
    try:
        connection.sendall(b"x")
    except ConnectionError:
        return True
    return False


@pytest.mark.slow
def test_request_without_a_descriptor_is_answered_503(tmp_path: Path) -> None:
    """Not 500, and not with a line in the log for each. New connections wait until there are descriptors again."""
    with running_server(tmp_path / "root", check=False) as server:
        with server.connection() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n")
            assert 200 == reply(connection).status
            before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            began = time.monotonic()
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, before[1]))
            try:
                body = b"x" * 320_000
                head = f"POST /native/v1/chunks/missing HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer {server.token}\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = reply(connection)
                assert (503, "busy", "1") == (answer.status, answer.slug, answer.headers["Retry-After"])
                waiting = [server.connection() for _ in range(4)]
            finally:
                resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
                seconds = time.monotonic() - began
        assert 200 == server.put(frames(1)).status
        for other in waiting:
            other.close()
        _, errors = server.stop()
    # The upkeep at the start of a server says so in one line of its own, if it still runs when there are no descriptors.
    lines = [line for line in errors.splitlines() if "what ended processes left" not in line]
    # It tries to accept a connection once a second.
    assert len(lines) <= 1 + seconds // RETRY_SECONDS, errors
