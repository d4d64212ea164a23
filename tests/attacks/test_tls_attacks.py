"""Strangers at a server that speaks TLS, and at one that leaves TLS to a proxy."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from filestore.backends import open_backend
from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.format.codec import Codec
from filestore.http.wire import API
from filestore.repository.index.protocol import Transaction
from tests.support.authority import Authority, Pair
from tests.support.frames import encoded
from tests.support.generator import octets
from tests.support.process_memory import memory, peak_growth
from tests.support.server import FORM, TOKEN, RunningServer, batch, eventually, form, reply, running_server
from tests.support.slow_clients import allow_many_files

MIB = 1 << 20
SILENT = 1000
HELLO_BEGUN = bytes.fromhex("160301020001")
"""The first bytes of a handshake: a record of 512 bytes, of which one follows."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the servers."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """The certificate of the servers."""
    return authority.pair("server")


@pytest.fixture(scope="module")
def server(authority: Authority, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that says nothing bad until its end."""
    with authority.server(tmp_path_factory.mktemp("served") / "root", pair) as server:
        yield server


def plain(server: RunningServer) -> socket.socket:
    """Return a connection on which no handshake has begun."""
    return server._replace(tls=None).connection()


def rest(connection: socket.socket) -> bytes:
    """Return what comes until the end of a connection, however it ends."""
    received = b""
    with suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


@pytest.mark.slow
def test_1000_unfinished_handshakes_take_little_memory(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """Some send nothing, and others a part of their first record. The server answers others meanwhile."""
    allow_many_files()
    with (
        authority.server(tmp_path / "root", pair, head_seconds=600) as server,
        ExitStack() as held,
        peak_growth(server.pid) as grown,
    ):
        assert 200 == server.ask("GET", "/healthz", token=None).status
        for number in range(SILENT):
            connection = held.enter_context(plain(server))
            if number % 2:
                connection.sendall(HELLO_BEGUN)
        descriptors = Path(f"/proc/{server.pid}/fd")
        eventually(lambda: len(list(descriptors.iterdir())) > SILENT)
        assert 200 == server.ask("GET", "/healthz", token=None).status
        assert 64 * MIB > grown()


@pytest.mark.slow
def test_an_unfinished_handshake_ends_after_head_seconds(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """A byte now and then does not prolong it. Unfinished ones count as connections, and are gone after that."""
    with authority.server(tmp_path / "root", pair, head_seconds=1, connections_limit=2) as server, ExitStack() as held:
        waiting = [held.enter_context(plain(server)) for _ in range(2)]
        for byte in HELLO_BEGUN:
            waiting[0].sendall(bytes([byte]))
        assert [b"", b""] == [rest(connection) for connection in waiting]
        eventually(lambda: server.ask("GET", "/healthz", token=None).status == 200)


def test_connections_above_the_limit_are_told_so_over_tls(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """The answer is that of a server without TLS."""
    with authority.server(tmp_path / "root", pair, connections_limit=1) as server, server.connection() as first:
        assert (503, "busy") == (server.ask("GET", "/healthz").status, server.ask("GET", "/healthz").slug)
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n")
        assert 200 == reply(first).status


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00" * 100,
        b"SSH-2.0-client\r\n",
        b"DELETE /x HTTP/1.1\r\n\r\n",
        HELLO_BEGUN + b"\xff" * 2000,
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
        b"\x80\x2e\x01\x00\x02",
    ],
    ids=["zeros", "ssh", "plain DELETE", "no handshake", "too long a record", "SSL 2"],
)
def test_bytes_that_are_not_tls_end_the_connection(server: RunningServer, sent: bytes) -> None:
    """No more than an alert comes back, and the server answers the next client."""
    with plain(server) as connection:
        with suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        assert 10 > len(rest(connection))
    assert 200 == server.ask("GET", "/healthz", token=None).status


def test_a_plain_request_is_told_what_to_do_and_not_answered(server: RunningServer) -> None:
    """Not even where nothing of it is secret."""
    with plain(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n" + b"x" * 100_000)
        answer = reply(connection)
        assert (400, "close") == (answer.status, answer.headers["Connection"])
        assert "https://" in answer.json["detail"]
        connection.shutdown(socket.SHUT_WR)
        assert b"" == rest(connection)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused(server: RunningServer, authority: Authority, version: ssl.TLSVersion) -> None:
    """The server offers at least TLS 1.2."""
    context = authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        server._replace(tls=context).connection()


@pytest.mark.slow
def test_a_request_behind_a_bad_client_certificate_does_nothing(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """With TLS 1.3 a client may send its request before the server has seen its certificate."""
    other = Authority(tmp_path / "other").pair("client")
    own = authority.pair("client")
    body = form("stored.bin", b"content")
    head = ["POST /v3/pipeline_files HTTP/1.1", "Host: server", f"Authorization: Bearer {TOKEN}"]
    head += [f"Content-Type: {FORM['Content-Type']}", f"Content-Length: {len(body)}", "", ""]
    with authority.server(tmp_path / "root", pair, tls_client_ca=str(authority.path)) as server:
        for client in (server, authority.trusted(server, other)):
            with client.connection() as connection:
                with suppress(OSError):
                    connection.sendall("\r\n".join(head).encode() + body)
                with pytest.raises(ssl.SSLError, match="ALERT"):
                    connection.recv(1)
        known = authority.trusted(server, own)
        assert b"stored.bin" not in known.ask("GET", f"{API}/files").body
        assert 201 == known.upload("stored.bin", b"content").status


def test_a_body_that_is_cut_in_a_record_is_not_stored(server: RunningServer) -> None:
    """The bytes of the record that did not end are never seen."""
    content = octets(5, 200_000)
    body = form("cut.bin", content)
    connection = server.begin(
        "POST", "/v3/pipeline_files", f"Content-Type: {FORM['Content-Type']}", f"Content-Length: {len(body)}"
    )
    assert isinstance(connection, ssl.SSLSocket)
    connection.sendall(body[:-10])
    descriptor = os.dup(connection.fileno())
    connection.close()
    # A record of 100 bytes of which 3 come, and the end of the connection without the end of TLS.
    os.write(descriptor, b"\x17\x03\x03\x00\x64abc")
    os.close(descriptor)
    assert b"cut.bin" not in server.ask("GET", f"{API}/files").body
    assert 201 == server.upload("whole.bin", content).status


def test_a_record_that_was_changed_on_the_way_ends_the_connection(server: RunningServer) -> None:
    """In a form, which aiohttp reads, and in a batch, which a thread reads. The log of the server stays empty."""
    frame = encoded(octets(10, 400_000), codec=Codec.RAW)
    for path, body in (("/v3/pipeline_files", form("changed.bin", octets(11, 400_000))), (f"{API}/chunks", batch([frame]))):
        connection = server.begin("POST", path, f"Content-Type: {FORM['Content-Type']}", f"Content-Length: {len(body)}")
        connection.sendall(body[:100_000])
        with connection:
            os.write(connection.fileno(), b"\x17\x03\x03\x00\x64" + b"x" * 100)
            with pytest.raises(OSError, match=r"ALERT|reset"):
                assert b"" == connection.recv(1)
    assert b"changed.bin" not in server.ask("GET", f"{API}/files").body
    assert [frame.digest] == server.missing([frame.digest])


def test_a_body_in_records_of_one_byte_arrives(server: RunningServer) -> None:
    """Each is received on its own. A thread leaves the connection after some thousands of them."""
    frame = encoded(octets(9, 6000), codec=Codec.RAW)
    body = batch([frame])
    with server.begin("POST", f"{API}/chunks", f"Content-Length: {len(body)}") as connection:
        for byte in body:
            connection.sendall(bytes([byte]))
        assert {"kept": 1} == reply(connection).json
    assert [] == server.missing([frame.digest])


@pytest.mark.slow
def test_slow_readers_over_tls_hold_little_memory(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """Each of 100 clients takes a byte of a large answer. The records that wait are in the kernel (I6).

    The memory limit is for what all of them load until each is known to be slow, and 256 KiB are for each connection. With a
    larger limit, how much they load at once depends on how fast the machine is.
    """
    content, limit = octets(6, 24 * MIB), 32 * MIB
    settings: dict[str, str | float] = {"stall_seconds": 600, "memory_limit": str(limit)}
    with authority.server(tmp_path / "root", pair, check=False, **settings) as server, ExitStack() as held:
        path = server.upload("large.bin", content).json["path"]
        assert content == server.ask("GET", f"/{path}").body
        before = memory(server.pid, "VmRSS")
        readers = [held.enter_context(server.begin("GET", f"/{path}")) for _ in range(100)]
        assert {b"HTTP/1.1 200"} == {reader.recv(12) for reader in readers}
        assert 200 == server.ask("GET", "/healthz", token=None).status
        assert limit + 100 * (256 << 10) > memory(server.pid, "VmRSS") - before


@pytest.mark.slow
def test_a_reader_over_tls_that_takes_nothing_is_cut(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """As over plain HTTP: the record that waits in OpenSSL does not count as progress again and again."""
    with authority.server(tmp_path / "root", pair, stall_seconds=1) as server:
        path = server.upload("large.bin", octets(7, 24 * MIB)).json["path"]
        with server.begin("GET", f"/{path}") as reader:
            descriptors = Path(f"/proc/{server.pid}/fd")
            eventually(lambda: not any(_is_connection_of(server, reader, path) for path in descriptors.iterdir()))


def _is_connection_of(server: RunningServer, reader: socket.socket, path: Path) -> bool:
    """Return whether a descriptor of the server is the other end of a connection."""
    try:
        link = str(path.readlink())
    except OSError:
        return False
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = (f"{server.port:04X}", f"{reader.getsockname()[1]:04X}")
    inodes = {line[9] for line in lines if (line[1][-4:], line[2][-4:]) == ends}
    return link in {f"socket:[{inode}]" for inode in inodes}


@pytest.mark.slow
def test_a_removed_token_gets_nothing_more_over_tls(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """The connection is reset, and what waits in the kernel and in OpenSSL is discarded."""
    content = octets(8, 24 * MIB)
    stolen = "a-token-that-was-stolen"
    with authority.server(tmp_path / "root", pair, check=False, stall_seconds=60) as server:
        path = server.upload("large.bin", content).json["path"]
        asyncio.run(changed(server.root, lambda transaction: add(transaction, stolen)))
        thief = server._replace(token=stolen)
        eventually(lambda: 200 == server.ask("HEAD", f"/{path}", token=stolen).status)
        with thief.begin("GET", f"/{path}") as connection:
            assert b"H" == connection.recv(1)
            asyncio.run(changed(server.root, lambda transaction: transaction.remove_token(token_digest(stolen))))
            eventually(lambda: errno.ECONNRESET == connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            assert len(content) > len(rest(connection))


async def add(transaction: Transaction, token: str) -> None:
    """Add a token of the default namespace."""
    await transaction.add_token(token_digest(token), namespace=DEFAULT_NAMESPACE, label="")


async def changed(root: Path, change: Callable[[Transaction], Awaitable[object]]) -> None:
    """Change the index beside the server, as a command does."""
    store, index = await open_backend(root)
    try:
        async with index.transaction() as transaction:
            await change(transaction)
    finally:
        await index.close()
        await store.close()


@pytest.mark.slow
def test_a_stranger_gets_no_byte_of_a_server_behind_a_proxy(tmp_path: Path) -> None:
    """Whatever it sends, and whichever headers of a proxy. The proxy is served meanwhile."""
    with running_server(tmp_path / "root", tls_by_proxy="127.0.0.2") as server:
        for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 127.0.0.2\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), 60, ("127.0.0.3", 0)) as stranger:
                with suppress(ConnectionError):
                    stranger.sendall(sent)
                assert b"" == rest(stranger)
        with socket.create_connection(("127.0.0.1", server.port), 60, ("127.0.0.2", 0)) as proxy:
            proxy.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert 200 == reply(proxy).status
