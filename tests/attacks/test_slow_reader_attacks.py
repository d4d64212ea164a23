"""Readers that read slowly or not at all, and files that cost a reader much, against real server processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from filestore.core.paths import file_path
from filestore.core.records import Record
from filestore.format.codec import Codec
from filestore.http.wire import API
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.process_memory import peak_growth
from tests.support.server import RunningServer, eventually, reply, running_server
from tests.support.tiny_chunks import TINY_COUNT, planted, repeated

MIB = 1 << 20
CROWD = 200
LITTLE = 32 * MIB
"""A setting `memory_limit` that few readers would exceed."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with one worker, which has answered once."""
    with running_server(tmp_path / "root", check=False) as server:
        assert b"content" == server.ask("GET", f"/{server.upload('warm.bin', b'content').json['path']}").body
        yield server
        assert 0 == server.stop()[0]


def descriptors(server: RunningServer) -> list[str]:
    """Return what the server has open."""
    found = []
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except FileNotFoundError:
            continue
    return found


def path_of(record: Record) -> str:
    """Return where a file can be read."""
    return f"/{file_path(record.digest, record.name)}"


def slow(server: RunningServer, method: str, path: str, *, body: bytes = b"") -> socket.socket:
    """Return a connection that took the first bytes of an answer, and takes few more."""
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    lines = [f"{method} {path} HTTP/1.1", "Host: server", f"Authorization: Bearer {server.token}", f"Content-Length: {len(body)}"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


@pytest.mark.slow
def test_a_byte_of_a_file_of_two_million_chunks_costs_its_manifest_once(server: RunningServer) -> None:
    """Two ranges of one byte, by a signed URL, read one chunk each, and the manifest once for both."""
    server.put([encoded(b"x")])
    record = planted(server.root, repeated(b"x", TINY_COUNT), "tiny.bin")
    path = "/" + server.ask("POST", f"{API}/files/{record.id}/sign").json["path"]
    with ExitStack() as held, peak_growth(server.pid) as grown:
        range_of_one = [
            held.enter_context(server.begin("GET", path, f"Range: bytes={at}-{at}", "Connection: close"))
            for at in (0, TINY_COUNT - 1)
        ]
        assert [b"x", b"x"] == [reply(connection).body for connection in range_of_one]
        # 64 MiB of manifest, 15 MiB of offsets, and what the allocator rounds up.
        assert grown() < 90 * MIB
    # It is in memory now, and costs nothing more.
    with peak_growth(server.pid) as grown:
        assert b"x" * 1000 == server.ask("GET", path, headers={"Range": "bytes=1000-1999"}, token=None).body
        assert grown() < 5 * MIB


@pytest.mark.slow
def test_slow_readers_of_a_huge_file_share_its_manifest(server: RunningServer) -> None:
    """Sixty slow readers of a file of 200 GB took 18.6 MiB each."""
    chunk = bytes(768 << 10)
    server.put([encoded(chunk)])
    path = path_of(planted(server.root, repeated(chunk, 260_000), "huge.bin"))
    with ExitStack() as held, peak_growth(server.pid) as grown:
        readers = [held.enter_context(slow(server, "GET", path)) for _ in range(60)]
        assert [b"HTTP/1.1 200 OK"] * 60 == [connection.recv(15) for connection in readers]
        assert b"x" == server.ask("GET", f"/{server.upload('other.bin', b'x').json['path']}").body
        # One manifest of 11 MiB, and what is decoded ahead within the budget until a client is known to be slow.
        assert grown() < 170 * MIB


@pytest.mark.slow
def test_readers_that_stop_in_the_middle_share_the_budget(tmp_path: Path) -> None:
    """Sixteen readers of one file that take a part of it and then nothing: `memory_limit` bounds them all together (I6)."""
    contents = [octets(number, MIB) for number in range(24)]
    with running_server(tmp_path / "root", check=False, memory_limit=LITTLE) as server:
        server.put([encoded(content, codec=Codec.RAW) for content in contents])
        path = "/" + server.commit(manifest(contents).encoded, name="large.bin").json["path"]
        assert contents[0][:9] == server.ask("GET", path, headers={"Range": "bytes=0-8"}).body
        with ExitStack() as held, peak_growth(server.pid) as grown:
            readers = [held.enter_context(slow(server, "GET", path)) for _ in range(16)]
            for connection in readers:
                assert 24 * MIB == size_in_head(connection)
                take(connection, 9 * MIB)
            # The budget, and what the allocator keeps besides. Without a budget they would hold 96 MiB.
            assert grown() < LITTLE + 16 * MIB
            # Others are served, and whoever goes on gets the rest.
            assert contents[23][-9:] == server.ask("GET", path, headers={"Range": "bytes=-9"}).body
            assert b"".join(contents[9:]) == take(readers[0], 15 * MIB)


@pytest.mark.slow
def test_slow_readers_of_a_manifest_take_no_memory_and_no_disk(server: RunningServer) -> None:
    """Each took a copy in the spool folder, here of 18 MiB. Now the kernel sends the stored file."""
    server.put([encoded(b"x")])
    record = planted(server.root, repeated(b"x", 500_000), "tiny.bin")
    with ExitStack() as held, peak_growth(server.pid) as grown:
        path = f"{API}/manifests/{record.digest}"
        readers = [held.enter_context(slow(server, "GET", path)) for _ in range(CROWD)]
        assert [b"HTTP/1.1 200 OK"] * CROWD == [connection.recv(15) for connection in readers]
        assert [] == [path for path in descriptors(server) if path.endswith("(deleted)") and "/tmp/" in path]
        assert grown() < 30 * MIB
        # One descriptor for the file, and two for the connection.
        assert len(descriptors(server)) < 3 * CROWD + 60


@pytest.mark.slow
def test_slow_readers_of_batches_hold_one_frame_each(server: RunningServer) -> None:
    """Each held 33 descriptors: the frames of two groups, and the connection."""
    sent = [encoded(octets(number, MIB), codec=Codec.RAW) for number in range(40)]
    server.put(sent)
    asked = b"".join(frame.digest for frame in sent)
    before = len(descriptors(server))
    with ExitStack() as held:
        readers = [held.enter_context(slow(server, "POST", f"{API}/chunks/get", body=asked)) for _ in range(CROWD)]
        assert [b"HTTP/1.1 200 OK"] * CROWD == [connection.recv(15) for connection in readers]
        # A socket, its duplicate and a frame.
        eventually(lambda: len(descriptors(server)) - before <= 3 * CROWD + 5)
        # Others are served, and a slow reader gets everything in the end.
        assert all(frame.data in server.ask("POST", f"{API}/chunks/get", asked).body for frame in sent[::13])
        assert rest_of(readers[0]).endswith(b"".join(frame.data for frame in sent))
    eventually(lambda: len(descriptors(server)) - before <= 5)


def size_in_head(connection: socket.socket) -> int:
    """Read the head of an answer. Return the size of its body."""
    received = bytearray()
    while not received.endswith(b"\r\n\r\n"):
        received += connection.recv(1)
    return int(received.lower().partition(b"content-length: ")[2].split()[0])


def take(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes of a body."""
    received = bytearray()
    while len(received) < size:
        received += connection.recv(min(size - len(received), MIB))
    return bytes(received)


def rest_of(connection: socket.socket) -> bytes:
    """Return the body of an answer whose status line was read."""
    return take(connection, size_in_head(connection))


def test_asking_again_to_verify_chunks_reads_nothing(server: RunningServer) -> None:
    """A request of 128 KiB can mean 16 GiB of reading. Further ones for the same chunks read nothing for a minute."""
    sent = [encoded(octets(number, MIB), codec=Codec.RAW) for number in range(20)]
    server.put(sent)
    asked = b"".join(frame.digest for frame in sent)
    assert b"" == server.ask("POST", f"{API}/chunks/verify", asked).body
    before = read_size(server)
    for _ in range(20):
        assert b"" == server.ask("POST", f"{API}/chunks/verify", asked * 3).body
    assert read_size(server) - before < MIB


def read_size(server: RunningServer) -> int:
    """Return how many bytes the server has read from files and connections."""
    [size] = [line.split()[1] for line in Path(f"/proc/{server.pid}/io").read_text("ascii").splitlines() if "rchar" in line]
    return int(size)


@pytest.mark.slow
def test_a_manifest_of_absurdly_many_chunks_is_refused(server: RunningServer) -> None:
    """A file of 20,000 chunks of one byte is not recorded, and one that was recorded before is still read."""
    server.put([encoded(b"x")])
    absurd = repeated(b"x", 20_000)
    refused = server.commit(absurd.encoded, name="absurd.bin")
    assert (413, "limit-exceeded") == (refused.status, refused.slug)
    assert "the number of chunks of a file of 20000 bytes is 20000, more than the limit of 16403" in refused.json["detail"]
    assert b"x" * 20_000 == server.ask("GET", path_of(planted(server.root, absurd, "absurd.bin"))).body
    # As many as are allowed.
    assert 201 == server.commit(repeated(b"x", 16384).encoded, name="tiny.bin").status
