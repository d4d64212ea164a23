"""A removal with chunks may take long: it reads the manifests of all records, and waits for other writers. So may a listing.

The server sends bytes meanwhile, and the client reads them.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.backends import connect
from filestore.core.digest import chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import manifest_key
from filestore.core.records import Record, record_from_json
from filestore.errors import DamagedRecord, NotFound
from filestore.http.client.repository import RemoteRepository
from filestore.http.wire import API, LINES
from filestore.repository.protocol import Repository
from tests.support.daemons import lasting_port
from tests.support.frames import contents, encoded, manifest
from tests.support.listening import listening
from tests.support.nginx import running_proxy
from tests.support.server import TOKEN, RunningServer, eventually, running_server
from tests.support.tls import server_tls, trusting

SLOW_SIZE = 65536
OWN, OTHERS = contents(1), contents(1, seed=7)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that may log errors, and must stop."""
    with running_server(tmp_path / "root", check=False) as server:
        yield server
        assert 0 == server.stop()[0]


class Slow(NamedTuple):
    """A server with two records. A removal takes until a test ends the write transaction of another process."""

    record: Record
    """The record to remove."""
    other: Record
    writer: sqlite3.Connection
    """The test's own connection to the index, in a write transaction."""
    manifest: Path
    """The file of the other record's manifest."""

    def end(self) -> None:
        """Let the removal go on."""
        self.writer.execute("COMMIT")

    def fail(self) -> None:
        """Let the removal go on, and find that the other record was stored again meanwhile, and that its manifest is damaged."""
        self.manifest.write_bytes(b"damaged")
        self.writer.execute("UPDATE records SET position = position + 1 WHERE id = ?", (self.other.id,))
        self.end()


@pytest.fixture
def slow(server: RunningServer) -> Iterator[Slow]:
    """Makes a removal from `server` slow."""
    records = []
    for name, chunks in (("own", OWN), ("other", OTHERS)):
        server.put([encoded(content) for content in chunks])
        records.append(record_from_json(server.commit(manifest(chunks).encoded, name=name).json))
    with closing(sqlite3.connect(server.root / "index.sqlite", isolation_level=None)) as index:
        index.execute("BEGIN IMMEDIATE")
        yield Slow(records[0], records[1], index, server.root / manifest_key(DEFAULT_NAMESPACE, records[1].digest))


@pytest.fixture(params=["plain", "nginx"])
def reached(server: RunningServer, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    """`server`, by its own port and through nginx as docs/behind-a-proxy.md configures it."""
    if request.param == "plain":
        yield server
        return
    port = lasting_port()
    rules = f"proxy_pass {server.url}; proxy_buffering off; proxy_http_version 1.1;"
    with running_proxy(tmp_path / "nginx", port, f"server {{ listen 127.0.0.1:{port}; location / {{ {rules} }} }}"):
        yield server._replace(url=f"http://127.0.0.1:{port}")


@pytest.mark.slow
def test_a_slow_removal_sends_bytes_before_its_end(reached: RunningServer, slow: Slow) -> None:
    """The head comes first, then blanks, then the record. Together they have the announced length."""
    with reached.begin("DELETE", f"{API}/files/{slow.record.id}?chunks=true") as connection, connection.makefile("rb") as answer:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += answer.readline()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {SLOW_SIZE}\r\n".encode() in head
        assert b"  " == answer.read(2)
        slow.end()
        assert slow.record == record_from_json(json.loads(answer.read(SLOW_SIZE - 2)))
        # The connection can be used again.
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n")
        assert b"HTTP/1.1 200 OK\r\n" == answer.readline()
    assert [chunk_digest(content) for content in OWN] == reached.missing([chunk_digest(content) for content in OWN + OTHERS])


@pytest.mark.slow
def test_a_slow_removal_ends_although_its_client_is_gone(server: RunningServer, slow: Slow) -> None:
    """A client that gives up and asks again finds the removal done."""
    before = sockets_of(server)
    with server.begin("DELETE", f"{API}/files/{slow.record.id}?chunks=true") as connection:
        assert b"HTTP" == connection.recv(4)
    eventually(lambda: sockets_of(server) <= before)
    assert 200 == server.ask("GET", f"{API}/files/{slow.record.id}").status
    slow.end()
    eventually(lambda: 404 == server.ask("GET", f"{API}/files/{slow.record.id}").status)
    digests = [chunk_digest(content) for content in OWN]
    eventually(lambda: digests == server.missing(digests))


def sockets_of(server: RunningServer) -> set[str]:
    """Return the sockets of a server."""
    found = set()
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(path.readlink()))
    return {link for link in found if link.startswith("socket:")}


class Relay(NamedTuple):
    """Passes connections on to a server, and can lose an answer."""

    url: str
    asked: list[bytes]
    """The methods of the requests, each of which has a connection of its own."""
    passed: list[int]
    """The sizes of the pieces of answers to DELETE that were passed on, in order."""


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    """How a client reaches a relay."""
    assert isinstance(request.param, str)
    return request.param


@asynccontextmanager
async def client_of(between: Relay) -> AsyncIterator[Repository]:
    """A client that asks a relay."""
    async with connect(between.url, token=TOKEN) as repository:
        assert isinstance(repository, RemoteRepository)
        yield trusting(repository) if between.url.startswith("https:") else repository


@asynccontextmanager
async def relay(
    server: RunningServer, scheme: str, *, loses: Callable[[list[bytes]], bool] = lambda _: False
) -> AsyncIterator[Relay]:
    """Start a relay to a server. If `loses(asked)`, it cuts the connection instead of answering."""
    asked: list[bytes] = []
    passed: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, out = await asyncio.open_connection("127.0.0.1", server.port)
        with closing(out), suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            asked.append(request.split()[0])
            is_lost = loses(asked)
            out.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            while piece := await upstream.read(1 << 16):
                if not is_lost:
                    writer.write(piece)
                    await writer.drain()
                    if request.startswith(b"DELETE"):
                        passed.append(len(piece))

    async with listening(serve, tls=server_tls() if scheme == "https" else None) as port:
        yield Relay(f"{scheme}://localhost:{port}", asked, passed)


async def begin_removal(repository: Repository, slow: Slow, between: Relay) -> asyncio.Task[Record]:
    """Begin a removal, and wait until the client has a part of the answer."""
    removing = asyncio.create_task(repository.remove(slow.record.id, with_chunks=True))
    while sum(between.passed) < 2:
        assert not removing.done()
        await asyncio.sleep(0)
    return removing


@pytest.mark.slow
async def test_a_client_waits_for_a_slow_removal(server: RunningServer, slow: Slow, scheme: str) -> None:
    """It asks once, and gets the record."""
    async with relay(server, scheme) as between, client_of(between) as repository:
        removing = await begin_removal(repository, slow, between)
        slow.end()
        assert slow.record == await removing
        assert [b"GET", b"DELETE"] == between.asked


@pytest.mark.slow
async def test_a_slow_removal_that_fails_is_an_error(server: RunningServer, slow: Slow, scheme: str) -> None:
    """The error comes after a status that says success."""
    async with relay(server, scheme) as between, client_of(between) as repository:
        removing = await begin_removal(repository, slow, between)
        slow.fail()
        with pytest.raises(DamagedRecord) as caught:
            await removing
        assert (slow.other.id, "other", f"its manifest {slow.other.digest} is damaged") == caught.value.args
        assert [b"GET", b"DELETE"] == between.asked
        assert slow.record == (await repository.records())[1]


@pytest.mark.slow
@pytest.mark.parametrize("with_chunks", [False, True], ids=["", "chunks"])
async def test_a_removal_whose_answer_is_lost_is_done(server: RunningServer, scheme: str, *, with_chunks: bool) -> None:
    """The client asks again, learns that the record does not exist, and knows why."""
    server.put([encoded(content) for content in OWN])
    record = record_from_json(server.commit(manifest(OWN).encoded, name="own").json)
    async with (
        relay(server, scheme, loses=lambda asked: asked.count(b"DELETE") == 1) as between,
        client_of(between) as repository,
    ):
        assert record == await repository.remove(record.id, with_chunks=with_chunks)
        assert [b"GET", b"DELETE", b"DELETE"] == between.asked
        with pytest.raises(NotFound):
            await repository.remove(record.id, with_chunks=with_chunks)


LONG, A_WHILE = 4 * 10**7, 4 * 10**6
SLOW_INDEX = """
ALTER TABLE records RENAME TO stored;
CREATE VIEW records AS SELECT namespace, id, name, digest, size, created_at, updated_at, position,
    CASE WHEN name = 'oldest' AND 0 = (
        WITH RECURSIVE steps(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM steps WHERE number < stored.size + {})
        SELECT count(*) FROM steps
    ) THEN '' ELSE kind END AS kind
    FROM stored;
"""
"""Makes SQLite count to a number before it gives the record `oldest`. It must end: the digest pass of the server reads it too."""


def three_records(server: RunningServer, *, steps: int) -> None:
    """Store three records, and make the index give the oldest one slowly. Python reads one row ahead."""
    server.put([encoded(content) for content in OWN])
    for name in ("oldest", "older", "newest"):
        server.commit(manifest(OWN).encoded, name=name)
    with closing(sqlite3.connect(server.root / "index.sqlite")) as index:
        index.executescript(SLOW_INDEX.format(steps))


@pytest.mark.slow
def test_a_slow_listing_sends_records_before_its_end(server: RunningServer) -> None:
    """A record goes out when it was read, and then lines of blanks. A server whose client goes away ends the work."""
    three_records(server, steps=LONG)
    with server.begin("GET", f"{API}/files", f"Accept: {LINES}") as connection, connection.makefile("rb") as answer:
        assert b"HTTP/1.1 200 OK\r\n" == answer.readline()
        while answer.readline() != b"\r\n":
            pass
        # On a busy machine, blanks may come before the first record too.
        found = next(found for found in answer if not found.isspace())
        assert "newest" == record_from_json(json.loads(found)).name
        assert answer.readline().isspace()


@pytest.mark.slow
async def test_a_slow_listing_is_complete(server: RunningServer) -> None:
    """The client takes the blanks for nothing."""
    three_records(server, steps=A_WHILE)
    async with connect(server.url, token=TOKEN) as repository:
        assert ["newest", "older", "oldest"] == [record.name async for record in repository.iter_records()]
