"""Peers: real processes of `filestore cache serve`, beside a real server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.format.codec import Codec, Frame
from tests.support.commands import Home
from tests.support.frames import contents, encoded, frames
from tests.support.peers import GET, frames_of, running_peer, sent_by
from tests.support.server import RunningServer, reply, running_server
from tests.support.tls import CERTIFICATE, client_tls

MIB = 1 << 20
ABSENT = chunk_digest(b"nobody has it")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server."""
    with running_server(tmp_path_factory.mktemp("server") / "root") as server:
        yield server


def stored(server: RunningServer, *, seed: int, count: int = 20, size: int = 100_000) -> list[Frame]:
    """Frames that a server has, and that no other test uses."""
    found = [encoded(content, codec=Codec.RAW) for content in contents(count, size=size, seed=seed)]
    assert 200 == server.put(found).status
    return found


def of(frames: list[Frame]) -> tuple[list[Digest], list[bytes]]:
    """The digests and the data of frames."""
    return [frame.digest for frame in frames], [bytes(frame.data) for frame in frames]


def test_a_frame_leaves_the_server_once_for_all_who_ask(server: RunningServer, tmp_path: Path) -> None:
    """Sixteen readers ask for the same frames at once, each in another order, and each gets them all."""
    kept = stored(server, seed=1)
    size = sum(len(frame.data) for frame in kept)
    with running_peer(server, tmp_path / "cache") as peer, ThreadPoolExecutor(16) as readers:
        before = sent_by(server)
        orders = [of(kept[place:] + kept[:place]) for place in range(16)]
        assert [data for _, data in orders] == list(readers.map(peer.frames, [digests for digests, _ in orders]))
        assert size == sent_by(server) - before
        assert len(kept) == len(peer.kept())


def test_what_the_server_does_not_have_is_absent(server: RunningServer, tmp_path: Path) -> None:
    """It is asked for again when it has arrived there."""
    late = frames(1, seed=2)
    kept = stored(server, seed=3, count=3)
    with running_peer(server, tmp_path / "cache") as peer:
        digests, data = of(kept)
        assert [b"", *data, b"", data[0]] == peer.frames([ABSENT, *digests, late[0].digest, digests[0]])
        assert [] == peer.frames([])
        server.put(late)
        assert [bytes(late[0].data)] == peer.frames([late[0].digest])


def test_it_gives_what_it_has_without_the_server(tmp_path: Path) -> None:
    """What it does not have is refused for now: only the server knows that it is absent."""
    with running_server(tmp_path / "root") as server:
        digests, data = of(stored(server, seed=4))
        other = stored(server, seed=5, count=1)
        with running_peer(server, tmp_path / "cache", "--retry-seconds", "1", check=False) as peer:
            assert data == peer.frames(digests)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()
            assert data == peer.frames(digests)
            answer = peer.get([other[0].digest])
            assert (503, "busy", "1") == (answer.status, answer.slug, answer.headers["Retry-After"])
            assert data == peer.frames(digests)


def test_two_peers_share_a_cache(server: RunningServer, tmp_path: Path) -> None:
    """What one of them has fetched, the other one has."""
    digests, data = of(stored(server, seed=6))
    with running_peer(server, tmp_path / "cache") as one, running_peer(server, tmp_path / "cache") as other:
        assert data == one.frames(digests)
        before = sent_by(server)
        assert data == other.frames(digests)
        assert before == sent_by(server)


def test_a_stop_lets_answers_finish(server: RunningServer, tmp_path: Path) -> None:
    """What has begun is sent whole, what comes later is told to come again, and the exit status is 0."""
    digests, data = of(stored(server, seed=7, count=16, size=MIB))
    with running_peer(server, tmp_path / "cache") as peer:
        peer.frames(digests)
        body = b"".join(digests)
        with peer.begin("POST", GET, f"Content-Length: {len(body)}", body=body) as connection:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            peer.process.send_signal(signal.SIGTERM)
            while (answer := peer.ask("GET", "/healthz")).status == 200:
                pass
            assert 503 == answer.status
            rest = b""
            while piece := connection.recv(MIB):
                rest += piece
        assert data == frames_of(rest.partition(b"\r\n\r\n")[2])
        assert 0 == peer.process.wait(60)


def test_it_is_alive(server: RunningServer, tmp_path: Path) -> None:
    """That needs no ticket. Nothing else is answered."""
    with running_peer(server, tmp_path / "cache") as peer:
        assert {"status": "ok"} == peer.ask("GET", "/healthz", token=None).json
        assert 404 == peer.ask("GET", "/native/v1/repository").status
        assert 405 == peer.ask("GET", GET).status
        with peer.begin("POST", GET, "Content-Length: 0") as connection:
            assert 200 == reply(connection).status


def test_it_needs_a_server_and_permission_to_listen(home: Home) -> None:
    """A folder of this machine has no peers, and a plain address for other machines is a choice of the user."""
    home.create_repository()
    assert "a peer gives what a server has" in home.failure("cache", "serve")
    environ = {"FILESTORE_TLS_BY_PROXY": "127.0.0.1"}  # of a server on the same machine
    told = home.failure("cache", "serve", "--listen", "0.0.0.0:0", "--url", "http://127.0.0.1:1", environ=environ)
    assert "--insecure permits it" in told
    assert "--tls-by-proxy" not in told
    wrong = home.run("cache", "serve", "--listen", "8600")
    assert (2, True) == (wrong.returncode, "such as 10.0.0.7:8600" in wrong.stderr)


def test_the_cache_of_a_peer_is_a_cache(server: RunningServer, home: Home, tmp_path: Path) -> None:
    """It can be filled by `warm` afterwards, and `prune` knows the frames. A folder with other things becomes none."""
    environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": server.token, "FILESTORE_CACHE": str(tmp_path / "cache")}
    digests, data = of(stored(server, seed=8))
    source = tmp_path / "model.bin"
    source.write_bytes(b"weights")
    home.result("push", source, environ=environ)
    with running_peer(server, tmp_path / "cache") as peer:
        assert data == peer.frames(digests)
        home.result("cache", "warm", "model.bin", environ=environ)
        home.result("cache", "prune", environ=environ)
        assert len(data) == len(peer.kept())
        home.result("cache", "prune", "--peer-size-limit", "0", environ=environ)
        assert [] == peer.kept()
        assert data == peer.frames(digests)
    other = tmp_path / "other"
    other.mkdir()
    (other / "novel.txt").write_text("...")
    assert "is not a cache" in home.failure("cache", "serve", environ=environ | {"FILESTORE_CACHE": str(other)})


def test_it_speaks_tls(server: RunningServer, tmp_path: Path) -> None:
    """With the certificate that it is given."""
    digests, data = of(stored(server, seed=9))
    trusting = client_tls()
    trusting.check_hostname = False  # it is asked by its address
    with running_peer(server, tmp_path / "cache", "--tls-cert", str(CERTIFICATE)) as peer:
        assert peer.url.startswith("https://")
        assert data == peer._replace(tls=trusting).frames(digests)
