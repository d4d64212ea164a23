"""What machines of the same network may try with a peer: tickets that are not theirs, crowds, huge and slow requests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from filestore.format.codec import Codec
from filestore.http.wire import API
from filestore.repository.index.protocol import Index, Transaction
from tests.support.changed_tokens import changed
from tests.support.frames import contents, encoded
from tests.support.peers import GET, RunningPeer, frames_of, running_peer, ticket_of
from tests.support.process_memory import peak_growth
from tests.support.server import OTHER_TOKEN, RunningServer, eventually, reply, running_server

MIB = 1 << 20
FRAMES = [encoded(content, codec=Codec.RAW) for content in contents(16, size=MIB)]
DIGESTS = [frame.digest for frame in FRAMES]
DATA = [bytes(frame.data) for frame in FRAMES]
BODY = b"".join(DIGESTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with 16 MiB of frames."""
    with running_server(tmp_path_factory.mktemp("server") / "root") as server:
        server.put(FRAMES)
        yield server


@pytest.fixture
def peer(server: RunningServer, tmp_path: Path) -> Iterator[RunningPeer]:
    """A peer that has all frames."""
    with running_peer(server, tmp_path / "cache") as peer:
        assert DATA == peer.frames(DIGESTS)
        yield peer


def test_no_ticket_but_that_of_the_namespace_opens_anything(server: RunningServer, peer: RunningPeer) -> None:
    """Also not the token of the server, which a client should never send, or the ticket of another namespace."""
    right = peer.token
    _, _, expires_at, signature = right.split("-")
    wrong = [
        server.token,
        ticket_of(server, token=OTHER_TOKEN),
        f"peer-ticket-{int(expires_at) + 1}-{signature}",
        f"peer-ticket-{expires_at}-{'0' * 64}",
        right[:-1],
        right + "x",
        right.upper(),
        "None",
        "a" * 4000,
        "\u00fc",
    ]
    for ticket in wrong:
        answer = peer.get(DIGESTS, ticket=ticket)
        assert (401, "unauthorized") == (answer.status, answer.slug), ticket
    assert 401 == peer.ask("POST", GET, BODY, token=None).status
    assert 401 == peer.ask("POST", GET, BODY, token=None, headers={"Authorization": f"Basic {right}"}).status
    # Nothing of the server is here.
    for method, path in (("GET", f"{API}/repository"), ("GET", "/metrics"), ("POST", f"{API}/chunks"), ("GET", "/../etc/passwd")):
        assert 404 == peer.ask(method, path, token=right).status, path
    assert DATA == peer.frames(DIGESTS)


def test_a_peer_gives_only_what_its_own_namespace_has(server: RunningServer, tmp_path: Path) -> None:
    """Two peers with tokens of two namespaces share a cache, and give each other's readers nothing."""
    with (
        running_peer(server, tmp_path / "cache") as ours,
        running_peer(server, tmp_path / "cache", token=OTHER_TOKEN) as theirs,
    ):
        assert DATA == ours.frames(DIGESTS)
        assert 401 == theirs.get(DIGESTS, ticket=ours.token).status
        assert [b""] * len(DIGESTS) == theirs.frames(DIGESTS)


def test_a_rotated_key_ends_the_tickets_for_a_new_peer(tmp_path: Path) -> None:
    """A peer that knew the ticket asks again within minutes, as `tests/unit/test_known_tickets.py` shows."""
    with running_server(tmp_path / "root") as server:
        server.put(FRAMES[:1])
        old = ticket_of(server)
        changed(server, change_key)
        while ticket_of(server) == old:
            pass  # the server looks at its keys each second
        with running_peer(server, tmp_path / "cache") as peer:
            assert 401 == peer.get(DIGESTS[:1], ticket=old).status
            assert DATA[:1] == peer.frames(DIGESTS[:1])


async def change_key(_: Index, transaction: Transaction) -> None:
    """Do what `filestore signing-key rotate` does, at once."""
    keys = await transaction.signing_keys()
    await transaction.set_signing_keys(keys.rotated(b"n" * 32, now=1, until=1))


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (["Content-Length: 131104"], b"", 413),
        (["Content-Length: 99999999999999"], b"", 413),
        (["Content-Length: 33"], bytes(33), 400),
        (["Transfer-Encoding: chunked"], b"0\r\n\r\n", 411),
        (["Content-Length: -1"], b"", 400),
    ],
)
def test_strange_bodies(headers: list[str], body: bytes, status: int, peer: RunningPeer) -> None:
    """They are refused before anything of them is read."""
    with peer.begin("POST", GET, *headers, body=body) as connection:
        assert status == reply(connection).status


def test_a_body_that_does_not_come_holds_nothing_up(peer: RunningPeer) -> None:
    """Many of them: others are served meanwhile, and the memory does not grow with what they announce."""
    with ExitStack() as held, peak_growth(peer.pid) as grown:
        for _ in range(200):
            held.enter_context(peer.begin("POST", GET, "Content-Length: 131072", body=bytes(100)))
        assert DATA == peer.frames(DIGESTS)
        assert grown() < 30 * MIB
    assert DATA == peer.frames(DIGESTS)


def test_a_crowd_of_silent_connections_is_refused(server: RunningServer, tmp_path: Path) -> None:
    """Above its limit it says 503, and when to come again. When they have left, everybody is served."""
    with running_peer(server, tmp_path / "cache", "--connections-limit", "40") as peer:
        with ExitStack() as held:
            for _ in range(40):
                held.enter_context(peer.connection())
            refused = [reply(held.enter_context(peer.begin("POST", GET, "Content-Length: 0"))) for _ in range(100)]
            assert {(503, "busy", "1")} == {(answer.status, answer.slug, answer.headers["Retry-After"]) for answer in refused}
        assert DATA == until_served(peer)


def until_served(peer: RunningPeer) -> list[bytes]:
    """Ask until the peer has noticed that connections have ended."""
    while (answer := peer.get(DIGESTS)).status == 503:
        pass
    return frames_of(answer.body)


def test_slow_readers_take_no_memory(peer: RunningPeer) -> None:
    """A hundred of them hold 1.6 GB of answers, which the kernel sends from the disk when they read."""
    with ExitStack() as held, peak_growth(peer.pid) as grown:
        readers = [held.enter_context(slow(peer)) for _ in range(100)]
        assert [b"HTTP/1.1 200 OK"] * 100 == [reader.recv(15) for reader in readers]
        assert DATA == peer.frames(DIGESTS)
        assert grown() < 40 * MIB
        # Each keeps its connection, a duplicate of it, and the frame that it is in the middle of.
        eventually(lambda: len(list(Path(f"/proc/{peer.pid}/fd").iterdir())) < 100 * 3 + 100)


def slow(peer: RunningPeer) -> socket.socket:
    """A connection that takes the first bytes of an answer of 16 MiB, and no more."""
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", peer.port))
    head = f"POST {GET} HTTP/1.1\r\nHost: peer\r\nAuthorization: Bearer {peer.token}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    connection.sendall(head.encode() + BODY)
    return connection


def test_readers_that_leave_do_not_end_the_work_for_others(server: RunningServer, tmp_path: Path) -> None:
    """Each asks and leaves at once. The frames arrive nevertheless, once."""
    with running_peer(server, tmp_path / "cache") as peer:
        for _ in range(50):
            slow(peer).close()
        assert DATA == peer.frames(DIGESTS)
        assert len(DATA) == len(peer.kept())
