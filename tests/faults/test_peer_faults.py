"""A peer whose disk, process, or server fails: it gives right frames, or says that it cannot."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from filestore.format.codec import Codec, Frame
from tests.support.disks import small_disk
from tests.support.frames import contents, encoded
from tests.support.peers import GET, frames_of, running_peer, sent_by, stopped
from tests.support.server import RunningServer, eventually, running_server

MIB = 1 << 20
SIZE = 256 << 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with 64 frames of 256 KiB."""
    with running_server(tmp_path_factory.mktemp("server") / "root") as server:
        server.put(FRAMES)
        yield server


FRAMES = [encoded(content, codec=Codec.RAW) for content in contents(64, size=SIZE)]
DIGESTS = [frame.digest for frame in FRAMES]
DATA = [bytes(frame.data) for frame in FRAMES]


def test_a_kill_in_the_middle_leaves_nothing_wrong(server: RunningServer, tmp_path: Path) -> None:
    """Whatever the killed process had written, the next one gives right frames, and fetches only those that were not there."""
    cache = tmp_path / "cache"
    with running_peer(server, cache, check=False) as peer, ThreadPoolExecutor(1) as reader:
        asked = reader.submit(peer.get, DIGESTS)
        eventually(lambda: any(is_whole(path) for path in peer.kept()))
        peer.process.send_signal(signal.SIGKILL)
        peer.process.wait()
        assert asked.exception() is not None or len(DATA) == len(frames_of(asked.result().body))
    whole = [path for path in peer.kept() if is_whole(path)]
    assert whole
    with running_peer(server, cache) as peer:
        before = settled(server)
        assert DATA == peer.frames(DIGESTS)
        assert_sent(server, before, sum(map(len, DATA)) - len(whole) * len(DATA[0]))


def test_a_damaged_disk_is_found(server: RunningServer, tmp_path: Path) -> None:
    """What a power cut or a bad disk leaves is fetched again by the next process."""
    with running_peer(server, tmp_path / "cache") as peer:
        peer.frames(DIGESTS[:4])
    for path, content in zip(peer.kept(), (b"", b"short", bytes(SIZE + 8), None), strict=True):
        if content is not None:
            path.write_bytes(content)
    with running_peer(server, tmp_path / "cache") as peer:
        before = settled(server)
        assert DATA[:4] == peer.frames(DIGESTS[:4])
        assert_sent(server, before, 3 * len(DATA[0]))


def test_a_full_disk_keeps_nothing_and_gives_all(server: RunningServer, tmp_path: Path) -> None:
    """Frames then go from memory to those who asked for them. It says so once, on standard error."""
    with small_disk(tmp_path / "small", "size=1m"), running_peer(server, tmp_path / "small" / "cache", check=False) as peer:
        for _ in range(2):
            assert DATA == peer.frames(DIGESTS)
        status, said = stopped(peer.process)
    assert (0, 1) == (status, said.count("frames cannot be kept"))


def test_the_limit_of_its_folder_holds(server: RunningServer, tmp_path: Path) -> None:
    """It gives more than it may keep."""
    with running_peer(server, tmp_path / "cache", "--peer-size-limit", "5MiB") as peer:
        for _ in range(2):
            assert DATA == peer.frames(DIGESTS)
            assert 0 < sum(path.stat().st_blocks * 512 for path in peer.kept()) <= 5 * MIB


def test_a_folder_that_is_removed_meanwhile(server: RunningServer, tmp_path: Path) -> None:
    """It is made again."""
    with running_peer(server, tmp_path / "cache") as peer:
        assert DATA[:8] == peer.frames(DIGESTS[:8])
        (tmp_path / "cache" / "peers").rename(tmp_path / "away")
        assert DATA[:8] == peer.frames(DIGESTS[:8])
        assert 8 == len(peer.kept())


def test_a_frame_that_is_damaged_at_the_server_is_not_given(tmp_path: Path) -> None:
    """Others are. The reader asks the server about this one, and says that it is damaged."""
    frames = FRAMES[:3]
    with running_server(tmp_path / "root", check=False) as server:
        server.put(frames)
        [path] = server.root.rglob(f"{frames[1].digest}*")
        path.write_bytes(damaged(frames[1]))
        with running_peer(server, tmp_path / "cache", check=False) as peer:
            answer = peer.get([frame.digest for frame in frames])
            assert (503, "busy") == (answer.status, answer.slug)
            assert [DATA[0], DATA[2]] == peer.frames([DIGESTS[0], DIGESTS[2]])
            assert 2 == len(peer.kept())


def test_a_frame_that_changes_while_it_is_sent_cuts_the_connection(server: RunningServer, tmp_path: Path) -> None:
    """The reader sees that the answer is not whole. The log says why in one line."""
    with running_peer(server, tmp_path / "cache", check=False) as peer:
        assert DATA == peer.frames(DIGESTS)
        body = b"".join(DIGESTS)
        head = f"POST {GET} HTTP/1.1\r\nHost: peer\r\nAuthorization: Bearer {peer.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket() as reader:
            reader.settimeout(60)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", peer.port))
            reader.sendall(head.encode() + body)
            assert reader.recv(15) == b"HTTP/1.1 200 OK"
            for path in (tmp_path / "cache" / "peers").rglob(str(DIGESTS[-1])):
                path.write_bytes(b"short")
            with suppress(ConnectionError):
                while reader.recv(MIB):
                    pass
        status, said = stopped(peer.process)
    assert (0, 1, 1) == (status, said.count("its frame had"), said.count("\n")), said


def settled(server: RunningServer) -> int:
    """Return how much the server has sent, once that stays the same for a while: a peer that was ended may have asked."""
    while True:
        before = sent_by(server)
        time.sleep(0.5)
        if before == sent_by(server):
            return before


def assert_sent(server: RunningServer, before: int, size: int) -> None:
    """Check how much the server has sent since. It counts bytes after it has sent them."""
    eventually(lambda: sent_by(server) - before >= size)
    assert size == sent_by(server) - before


def is_whole(path: Path) -> bool:
    """Whether a file has the name of a frame, and not one of a frame that is being written."""
    return not path.name.startswith(".")


def damaged(frame: Frame) -> bytes:
    """The frame with another last byte."""
    return bytes(frame.data[:-1]) + bytes([frame.data[-1] ^ 1])
