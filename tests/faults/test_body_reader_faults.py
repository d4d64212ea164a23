"""Threads read bodies directly from a connection. Slow or refused bodies leave it usable, and others are served."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from filestore.backends import open_backend
from filestore.format.codec import Codec, Frame
from filestore.http.server.body.connection import PIECE
from filestore.http.server.body.frames import OPEN_TOGETHER, Frames
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.descriptors import OpenFrames
from filestore.http.wire import API
from filestore.repository.local import LocalRepository
from filestore.repository.stores import disk, frame_files
from filestore.system.threads import DISK_THREADS, in_disk_thread
from tests.support.cancels import cancelled_at_every_await
from tests.support.frames import encoded, frames
from tests.support.generator import octets
from tests.support.server import RunningServer, batch, eventually, reply, running_server

CROWD = 3 * DISK_THREADS
"""More peers than threads that could wait for them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that must log nothing."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def large(seed: int, *, size: int = 400_000) -> Frame:
    """A frame that needs more than one read."""
    return encoded(octets(seed, size), codec=Codec.RAW)


def request(server: RunningServer, path: str, body: bytes, *lines: str) -> bytes:
    """Return a whole request."""
    head = [f"POST {API}/{path} HTTP/1.1", "Host: server", f"Authorization: Bearer {server.token}", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def received(connection: socket.socket) -> bytes:
    """Return all bytes that come on a connection until its end."""
    answers = b""
    while piece := connection.recv(1 << 16):
        answers += piece
    return answers


def is_staged(server: RunningServer, size: int) -> bool:
    """Return whether staging files hold that many bytes."""
    return sum(path.stat().st_size for path in (server.root / "tmp").glob("*/*")) == size


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, PIECE - 1000, PIECE, PIECE + 1, 3 << 20])
def test_requests_behind_a_batch_are_read_where_it_ends(server: RunningServer, size: int) -> None:
    """Several requests are sent at once. The server finds the start of each after a body that aiohttp has not seen."""
    sent = [large(size + number, size=size) for number in range(3)]
    requests = [request(server, "chunks", batch([frame])) + request(server, "chunks/missing", frame.digest) for frame in sent]
    with server.connection() as connection:
        connection.sendall(b"".join(requests) + request(server, "chunks/missing", b"", "Connection: close"))
        answers = received(connection)
    assert (7, 3) == (answers.count(b"HTTP/1.1 200 OK\r\n"), answers.count(b'{"kept": 1}'))
    assert [] == server.missing([frame.digest for frame in sent])


def test_a_batch_that_is_refused_is_read_to_its_end(server: RunningServer) -> None:
    """The server answers with the error before most of the body has come.

    The next request on the connection is answered.
    """
    wrong = bytearray(batch([large(1, size=3 << 20)]))
    wrong[36] += 1  # the size of its frame
    with server.connection() as connection:
        connection.sendall(request(server, "chunks", bytes(wrong)) + request(server, "chunks/missing", b"", "Connection: close"))
        answers = received(connection)
    assert answers.startswith(b"HTTP/1.1 422 ")
    assert (1, 1) == (answers.count(b'"Invalid batch"'), answers.count(b"HTTP/1.1 200 OK\r\n"))


def test_frames_that_came_before_a_cut_are_kept(server: RunningServer) -> None:
    """Frames that were received together with the end of the connection are kept too."""
    sent = [large(200 + number, size=50_000) for number in range(8)]
    body = batch(sent)
    with server.begin("POST", f"{API}/chunks", f"Content-Length: {len(body)}", body=body[:-20_000]):
        pass
    eventually(lambda: server.missing([frame.digest for frame in sent]) == [sent[-1].digest])


@pytest.mark.slow
def test_a_sender_of_few_bytes_is_not_stalled(tmp_path: Path) -> None:
    """The server wakes up only for whole pieces, but also reads fewer bytes before it gives up."""
    frame = large(2)
    body = batch([frame])
    with (
        running_server(tmp_path / "root", stall_seconds=3) as server,
        server.begin("POST", f"{API}/chunks", f"Content-Length: {len(body)}", body=body[:-1000]) as connection,
    ):
        for left in (1000, 900, 800):
            eventually(partial(is_staged, server, len(frame.data) - left))
            connection.sendall(body[-left:][:100])
        connection.sendall(body[-700:])
        assert {"kept": 1} == reply(connection).json


def test_senders_that_stall_hold_no_thread(server: RunningServer) -> None:
    """However many senders stall, others are served."""
    body = batch([large(3)])
    with ExitStack() as held:
        for _ in range(CROWD):
            announced = f"Content-Length: {len(body)}"
            held.enter_context(server.begin("POST", f"{API}/chunks", announced, body=body[: len(body) // 2]))
        assert {"kept": 1} == server.put([large(4)]).json


def test_readers_that_stall_hold_no_thread(server: RunningServer) -> None:
    """However many readers stall, others are served. Each gets everything in the end."""
    sent = [large(100 + number, size=4 << 20) for number in range(4)]
    for frame in sent:
        server.put([frame])
    asked = b"".join(frame.digest for frame in sent)
    with ExitStack() as held:
        slow = [
            held.enter_context(server.begin("POST", f"{API}/chunks/get", f"Content-Length: {len(asked)}", body=asked))
            for _ in range(CROWD)
        ]
        assert [b"HTTP/1.1 200 OK"] * CROWD == [connection.recv(15) for connection in slow]
        answer = server.ask("POST", f"{API}/chunks/get", asked).body
        assert answer.endswith(b"".join(frame.data for frame in sent))
        late = b""
        while len(late.partition(b"\r\n\r\n")[2]) < len(answer):
            late += slow[0].recv(1 << 20)
        assert answer == late.partition(b"\r\n\r\n")[2]


async def test_cancelled_answer_leaves_no_frame_open(tmp_path: Path) -> None:
    """After a cancel at any await, no frame that is open or is being opened stays open."""
    store, index = await open_backend(tmp_path / "repository", create=True)
    repository = LocalRepository(store, index, location="here")
    sent = frames(2 * OPEN_TOGETHER + 1, size=100)
    await repository.put(sent)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)

        async def send() -> None:
            async with Frames(repository, [frame.digest for frame in sent]) as answered:
                await answered.send(BodyWriter(ours, stall_seconds=60), await answered.entries())

        before = open_frames(tmp_path)
        async for _ in cancelled_at_every_await(send):
            assert before == open_frames(tmp_path)
            drain(theirs)
    await repository.close()


async def test_each_frame_of_a_large_batch_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store tells the sizes for the head, so no frame is opened only for its size."""
    store, index = await open_backend(tmp_path / "repository", create=True)
    repository = LocalRepository(store, index, location="here")
    sent = frames(2 * OPEN_TOGETHER + 1, size=100)
    await repository.put(sent)
    opened: list[Path] = []
    open_frame = frame_files.open_frame

    def note(path: Path) -> object:
        opened.append(path)
        return open_frame(path)

    monkeypatch.setattr(disk, "open_frame", note)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        async with Frames(repository, [frame.digest for frame in sent]) as answered:
            entries = await answered.entries()
            await answered.send(BodyWriter(ours, stall_seconds=60), entries)
    assert [len(frame.data) for frame in sent] == [entry.stored_size for entry in entries]
    assert sorted(set(opened)) == sorted(opened)
    assert len(sent) == len(opened)
    await repository.close()


@pytest.mark.parametrize("limit", [0, 3, 100])
async def test_an_answer_opens_few_frames_where_the_process_has_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """It opens one in any case, and as many more as the process permits. The permission is given back."""
    store, index = await open_backend(tmp_path / "repository", create=True)
    repository = LocalRepository(store, index, location="here")
    sent = frames(3 * OPEN_TOGETHER, size=100)
    await repository.put(sent)
    most = 0
    open_frame = frame_files.open_frame

    def note(path: Path) -> object:
        nonlocal most
        opened = open_frame(path)
        most = max(most, len(open_frames(tmp_path)))
        return opened

    monkeypatch.setattr(disk, "open_frame", note)
    shared = OpenFrames(limit)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        async with Frames(repository, [frame.digest for frame in sent], shared) as answered:
            await answered.send(BodyWriter(ours, stall_seconds=60), await answered.entries())
        theirs.settimeout(60)
        content = b"".join(frame.data for frame in sent)
        received = b""
        while len(received) < len(content):
            received += theirs.recv(1 << 20)
        assert content == received
    assert most <= 1 + min(limit, 2 * OPEN_TOGETHER)
    assert limit == shared.take(1000)
    await repository.close()


async def test_a_client_that_takes_nothing_keeps_one_frame_open(tmp_path: Path) -> None:
    """The others are closed, and opened again when it goes on. It gets all of them."""
    store, index = await open_backend(tmp_path / "repository", create=True)
    repository = LocalRepository(store, index, location="here")
    sent = [large(number) for number in range(OPEN_TOGETHER + 5)]
    await repository.put(sent)
    shared = OpenFrames(100)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)

        async def send() -> None:
            async with Frames(repository, [frame.digest for frame in sent], shared) as answered:
                await answered.send(BodyWriter(ours, stall_seconds=60), await answered.entries(), header=b"header")

        sending = asyncio.create_task(send())
        async with asyncio.timeout(60):
            while len(open_frames(tmp_path)) < 2:
                await asyncio.sleep(0)
            while len(open_frames(tmp_path)) > 1:
                await asyncio.sleep(0.01)
        content = b"header" + b"".join(frame.data for frame in sent)
        assert content == await in_disk_thread(received_from, theirs, len(content))
        await sending
    assert 100 == shared.take(1000)
    await repository.close()


def received_from(connection: socket.socket, size: int) -> bytes:
    """Take that many bytes."""
    connection.settimeout(60)
    with connection.makefile("rb") as file:
        return file.read(size)


def drain(connection: socket.socket) -> None:
    """Read what has arrived."""
    connection.settimeout(0)
    with suppress(BlockingIOError):
        while connection.recv(1 << 20):
            pass


def open_frames(root: Path) -> list[str]:
    """Return the files of a repository's chunks that this process has open."""
    targets = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # another thread closed it in this moment
            targets.append(str(path.readlink()))
    return [target for target in targets if target.startswith(f"{root}/repository/chunks")]
