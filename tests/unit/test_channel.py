"""Exchanges on sockets of our own, against a peer that the test plays on the other end of a real connection."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from typing import NamedTuple

import pytest

from filestore.errors import Interrupted, ServerError, Stalled, Unreachable
from filestore.http.client import byte_counter
from filestore.http.client.byte_counter import ByteCounter
from filestore.http.client.channel import HEAD_LIMIT, Channel, Peer
from filestore.http.client.channels import Channels, Places
from filestore.http.client.chunked import ChunkedCoding
from filestore.http.client.heads import Head, parse_head
from filestore.system.stalls import StallTimer
from tests.support.cancels import cancelled_at_every_await
from tests.support.channels import read
from tests.support.tls import client_tls, server_tls

SECONDS = 30
"""How long a test waits before it fails."""
LARGE = 32 << 20
"""More than the buffers of a connection's two ends hold."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Line(NamedTuple):
    """A connection: a channel, and the server's end of it."""

    channel: Channel
    server: socket.socket
    threads: ThreadPoolExecutor

    def ask(self, header: bytes = b"", *frames: bytes, moved: Callable[[int], None] = lambda _: None) -> Future[Head]:
        """A request that is made in a thread."""
        return self.threads.submit(self.channel.ask, "/route", header, frames, moved=moved)

    def take(self, size: int) -> bytes:
        """Take the bytes that the channel sends."""
        received = bytearray()
        while len(received) < size:
            piece = self.server.recv(size - len(received))
            assert piece
            received += piece
        return bytes(received)

    def take_head(self) -> list[bytes]:
        """The lines of the request's head."""
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += self.take(1)
        return bytes(head[:-4]).split(b"\r\n")

    def answer(self, answer: bytes) -> Head:
        """Return how the channel reads `answer`."""
        asked = self.ask()
        self.take_head()
        self.server.sendall(answer)
        return asked.result(SECONDS)


@contextmanager
def accepted(*, stall_seconds: float = SECONDS, tls: bool = False, tunnel: bytes | None = None) -> Iterator[Line]:
    """A line on loopback, before TLS."""
    peer = Peer("the server", "/native", ["Host: x"], "localhost", client_tls if tls else None, tunnel)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
        ThreadPoolExecutor(1) as threads,
    ):
        client.settimeout(0)
        server.settimeout(SECONDS)
        channel = Channel(client, peer, stall_seconds=stall_seconds)
        with closing(channel):
            yield Line(channel, server, threads)


@contextmanager
def connected(*, tls: bool = False) -> Iterator[Line]:
    """A line on loopback."""
    with accepted(tls=tls) as line:
        if not tls:
            yield line
            return
        opened = line.threads.submit(line.channel.open)
        with server_tls().wrap_socket(line.server, server_side=True) as server:
            opened.result(SECONDS)
            yield line._replace(server=server)


def stall_soon(channel: Channel) -> None:
    """Let the channel wait half a second from now on. On a busy machine, to begin TLS may take longer."""
    channel._stall_seconds = 0.5
    channel._timer = StallTimer(0.5)


@pytest.fixture(params=["http", "https"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """A line whose peer never stalls for long."""
    with connected(tls=request.param == "https") as line:
        yield line


# Heads.


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", Head(200, 0, keeps_open=True)),
        (b"HTTP/1.1 200\r\ncontent-length:7", Head(200, 7, keeps_open=True)),
        (b"HTTP/1.1 200 \r\nCONTENT-LENGTH: \t 7 \t", Head(200, 7, keeps_open=True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7", Head(200, 7, keeps_open=False)),
        (b"HTTP/1.1 507 \xc3\xa4\r\nContent-Length: 7\r\nConnection: close", Head(507, 7, keeps_open=False)),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 7", Head(200, 7, keeps_open=False)),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 7", Head(200, 7, keeps_open=True)),
        (b"HTTP/1.1 204 No Content", Head(204, 0, keeps_open=True)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9", Head(304, 0, keeps_open=True)),
        (b"HTTP/1.1 200 OK\r\nX:\r\nContent-Length: 7", Head(200, 7, keeps_open=True)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Head(200, None, keeps_open=True, is_chunked=True)),
        (
            b"HTTP/1.1 503 X\r\ntransfer-encoding:\tChunked \r\nConnection: close",
            Head(503, None, keeps_open=False, is_chunked=True),
        ),
        (b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked", Head(204, 0, keeps_open=True)),
    ],
)
def test_heads_of_answers(raw: bytes, expected: Head) -> None:
    """Status, length, and whether the connection stays open."""
    assert expected == parse_head(raw)


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Content-Length: 7\r\nContent-Length: 7",
        b"Content-Length: 7, 7",
        b"Content-Length: +7",
        b"Content-Length: -7",
        b"Content-Length: 0x7",
        b"Content-Length: 1_0",
        b"Content-Length: \xb2",
        b"Content-Length:",
        b"Content-Length: " + b"9" * 19,
        b"Transfer-Encoding: identity\r\nContent-Length: 7",
        b"Content-Length: 7\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: x",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: chunked;a=b",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding:",
    ],
)
def test_lengths_that_are_not_plain(fields: bytes) -> None:
    """There must be one Content-Length of digits or one chunked coding, and nothing that contradicts it."""
    assert Head(200, None, keeps_open=True) == parse_head(b"\r\n".join(filter(None, [b"HTTP/1.1 200 OK", fields])))


def test_http_1_0_has_no_chunked_coding() -> None:
    """RFC 9112, section 6.1: such a framing is faulty."""
    assert Head(200, None, keeps_open=False) == parse_head(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"220 ready",
        b"HTTP/2 200 OK\r\nContent-Length: 7",
        b"HTTP/1.2 200 OK\r\nContent-Length: 7",
        b"HTTP/1.1  200 OK\r\nContent-Length: 7",
        b"HTTP/1.1 20 OK\r\nContent-Length: 7",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 7",
        b"HTTP/1.1 600 OK\r\nContent-Length: 7",
        b"HTTP/1.1 200 O\nK\r\nContent-Length: 7",
        b"HTTP/1.1 200 OK\r\nContent-Length : 7",
        b"HTTP/1.1 200 OK\r\n Content-Length: 7",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 7",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\nX: y",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 7",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 7",
        b"HTTP/1.1 200 OK\r\n: x",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_what_is_not_a_head(raw: bytes) -> None:
    """A head that two readers could understand differently is refused."""
    with pytest.raises(ValueError, match="answer"):
        parse_head(raw)


# One exchange.


def test_a_request_is_what_it_says(line: Line) -> None:
    """It is its head, then the header and the frames without gaps, for any number and sizes. Frames count when sent."""
    frames = [bytes([number % 251]) * (number * 37 % 5000) for number in range(300)]
    moves: list[int] = []
    asked = line.ask(b"header", *frames, moved=moves.append)
    size = 6 + sum(map(len, frames))
    fields = [b"Host: x", b"Content-Type: application/octet-stream", f"Content-Length: {size}".encode()]
    assert [b"POST /native/route HTTP/1.1", *fields] == line.take_head()
    assert b"header" + b"".join(frames) == line.take(size)
    line.server.sendall(OK)
    assert Head(200, 2, keeps_open=True) == asked.result(SECONDS)
    assert size - 6 == sum(moves)


def test_a_request_without_a_body(line: Line) -> None:
    """It has its own fields and no length."""
    asked = line.threads.submit(line.channel.ask, "/files?limit=1", method="GET", fields={"X": "y"})
    assert [b"GET /native/files?limit=1 HTTP/1.1", b"Host: x", b"X: y"] == line.take_head()
    line.server.sendall(OK)
    assert Head(200, 2, keeps_open=True) == asked.result(SECONDS)


def test_a_large_request_arrives_whole(line: Line) -> None:
    """However little the kernel takes at a time."""
    frame = struct.pack("<Q", 0x0123456789ABCDEF) * (LARGE // 8)
    asked = line.ask(b"", frame)
    line.take_head()
    assert frame == line.take(LARGE)
    line.server.sendall(OK)
    assert 200 == asked.result(SECONDS).status


def test_an_answer_in_any_split(line: Line) -> None:
    """Byte by byte it is the same answer, and its body ends where its length says."""
    for size in (1, 2, 3, 7, len(OK)):
        asked = line.ask()
        line.take_head()
        for start in range(0, len(OK), size):
            line.server.sendall(OK[start : start + size])
        assert Head(200, 2, keeps_open=True) == asked.result(SECONDS)
        body = memoryview(bytearray(3))
        received = 0
        while count := line.channel.receive_into(body[received:]):
            received += count
        assert (2, b"ok\0") == (received, bytes(body))


def test_a_body_is_read_as_far_as_asked(line: Line) -> None:
    """The end of a body is not an error, and the number of remaining bytes is known."""
    line.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789")
    assert b"0123" == read(line.channel, 4)
    assert 6 == line.channel.left
    assert not line.channel.is_reusable
    assert b"456789" == read(line.channel, 100)
    assert (b"", 0) == (read(line.channel, 100), line.channel.left)


def test_interim_answers_are_passed_over(line: Line) -> None:
    """RFC 9110, section 15.2: they may come unasked, and the final answer follows."""
    head = line.answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
    assert (200, b"ok") == (head.status, read(line.channel, 10))


@pytest.mark.parametrize("endless", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X: y\r\n", b"x"])
def test_a_head_without_end(line: Line, endless: bytes) -> None:
    """It is read to its limit and no further."""
    asked = line.ask()
    line.take_head()
    line.server.sendall(b"HTTP/1.1 200 OK\r\n" if endless == b"X: y\r\n" else b"")
    line.server.sendall(endless * (2 * HEAD_LIMIT // len(endless)))
    with pytest.raises(Interrupted):
        asked.result(SECONDS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", Interrupted),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", Interrupted),
        (b"SSH-2.0-x\r\n\r\n", Interrupted),
        (b"HTTP/1.1 200 OK\r\n\r\n", ServerError),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", ServerError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", ServerError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ServerError),
    ],
)
def test_answers_that_are_refused(line: Line, answer: bytes, expected: type[Exception]) -> None:
    """An answer is refused if it ends in its head, is not HTTP, or has an unclear length."""
    asked = line.ask()
    line.take_head()
    line.server.sendall(answer)
    line.server.close()
    with pytest.raises(expected):
        asked.result(SECONDS)
    assert not line.channel.is_reusable


def test_an_error_of_unknown_length_keeps_its_status(line: Line) -> None:
    """The body of a proxy's error is not read, but its status is used."""
    head = line.answer(b"HTTP/1.1 503 Busy\r\nConnection: keep-alive\r\n\r\n")
    assert (503, b"") == (head.status, read(line.channel, 10))
    assert not line.channel.is_reusable


# Answers in the chunked coding.


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """An answer in these pieces."""
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded + end


def test_an_answer_in_pieces(line: Line) -> None:
    """Extensions and trailers are passed over, and the connection is used again."""
    for end in (b"0\r\n\r\n", b"000;last\r\nX: y\r\nContent-Length: 9\r\n\r\n"):
        head = line.answer(chunked(b"a", b"bcd", end=b'A ; x="y;z"\r\n0123456789\r\n' + end))
        assert Head(200, None, keeps_open=True, is_chunked=True) == head
        assert b"abcd0123456789" == read(line.channel, 100)
        assert (0, True) == (line.channel.left, line.channel.is_reusable)


def test_an_answer_in_pieces_in_any_split(line: Line) -> None:
    """Byte by byte it is the same answer, and the next one on the connection is read."""
    answer = chunked(b"ok", bytes(300), end=b"0;x\r\nX: y\r\n\r\n")
    for size in (1, 2, 3, 7, len(answer)):
        asked = line.ask()
        line.take_head()
        for start in range(0, len(answer), size):
            line.server.sendall(answer[start : start + size])
        assert asked.result(SECONDS).is_chunked
        assert b"ok" + bytes(300) == read(line.channel, 1000)
        assert line.channel.is_reusable


@pytest.mark.slow
def test_a_large_piece_arrives_in_the_callers_memory(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large piece no more than what comes with its line is copied."""
    content = struct.pack("<Q", 0x0123456789ABCDEF) * (LARGE // 8)
    sizes: list[int] = []
    read_lines = ChunkedCoding.read

    def counted(coding: ChunkedCoding, arrived: memoryview) -> tuple[int, int]:
        sizes.append(len(arrived))
        return read_lines(coding, arrived)

    monkeypatch.setattr(ChunkedCoding, "read", counted)
    answer = chunked(content[: LARGE // 2], content[LARGE // 2 :])
    asked = line.ask()
    line.take_head()
    sender = threading.Thread(target=line.server.sendall, args=(answer,))
    sender.start()
    asked.result(SECONDS)
    memory, received = memoryview(bytearray(LARGE + 1)), 0
    while count := line.channel.receive_into(memory[received:]):
        received += count
    sender.join()
    assert (LARGE, True) == (received, content == memory[:-1])
    assert sum(sizes) < 200_000


def test_memory_that_is_full_does_not_hide_the_end(line: Line) -> None:
    """With no memory left, the end is read all the same; and bytes that would still come are counted."""
    line.answer(chunked(b"abc"))
    assert 3 == line.channel.receive_into(memoryview(bytearray(3)))
    assert (0, 0) == (line.channel.receive_into(memoryview(b"")), line.channel.left)
    assert line.channel.is_reusable
    line.answer(chunked(b"abc", b"de"))
    assert 3 == line.channel.receive_into(memoryview(bytearray(3)))
    assert (0, 2) == (line.channel.receive_into(memoryview(b"")), line.channel.left)
    assert not line.channel.is_reusable


def test_bytes_behind_a_body_in_pieces(line: Line) -> None:
    """The connection is not used again: the next answer would begin with them."""
    line.answer(chunked(b"abc") + OK)
    assert b"abc" == read(line.channel, 10)
    assert not line.channel.is_reusable


@pytest.mark.parametrize("cut", range(1, len(b"3\r\nabc\r\n0\r\n\r\n") + 1))
def test_a_body_in_pieces_that_is_cut(line: Line, cut: int) -> None:
    """It never looks whole, even if all of its content has arrived."""
    line.answer(chunked(b"abc")[:-cut])
    line.server.close()
    with pytest.raises(Interrupted):
        read(line.channel, 10)
    assert not line.channel.is_reusable


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"1;" + b"x" * 4000, b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 1000], ids=["extension", "trailers"])
@pytest.mark.parametrize("tls", [False, True])
def test_lines_without_content_are_no_progress(said: bytes, *, tls: bool) -> None:
    """They come byte by byte, which is fast enough for content."""
    with connected(tls=tls) as line:
        line.answer(chunked(end=b""))
        stall_soon(line.channel)
        reading = line.threads.submit(read, line.channel, 10)
        with pytest.raises(Stalled):
            for byte in said:
                line.server.sendall(bytes([byte]))
                try:
                    reading.result(0.01)
                except TimeoutError:
                    continue


def test_a_body_that_is_cut(line: Line) -> None:
    """It never looks whole."""
    line.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123")
    line.server.close()
    with pytest.raises(Interrupted):
        read(line.channel, 10)
    assert not line.channel.is_reusable


# Answers that come before all was sent.


def test_an_early_error_is_seen_while_sending(line: Line) -> None:
    """A server that has heard enough says why; it need not read the rest."""
    asked = line.ask(b"", bytes(LARGE))
    line.take_head()
    line.server.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    assert 413 == asked.result(SECONDS).status
    assert b"no" == read(line.channel, 10)
    assert not line.channel.is_reusable


def test_an_early_error_of_a_server_that_hangs_up_is_seen(line: Line) -> None:
    """It is seen even if the connection is reset during the request."""
    asked = line.ask(b"", bytes(LARGE))
    line.take_head()
    line.server.sendall(b"HTTP/1.1 507 Full\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    # Bytes that were not read make this a reset.
    line.server.close()
    assert 507 == asked.result(SECONDS).status
    assert b"no" == read(line.channel, 10)


def test_an_early_success_is_none(line: Line) -> None:
    """A server cannot have stored bytes that were not sent."""
    asked = line.ask(b"", bytes(LARGE))
    line.take_head()
    line.server.sendall(OK)
    with pytest.raises(Interrupted):
        asked.result(SECONDS)


def test_a_server_that_hangs_up_while_we_send(line: Line) -> None:
    """The interrupted request is retryable, and the broken pipe is not reported."""
    asked = line.ask(b"", bytes(LARGE))
    line.take_head()
    line.server.close()
    with pytest.raises(Interrupted):
        asked.result(SECONDS)


# Stalls and aborts.


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("frame_size", [0, LARGE])
def test_a_peer_that_moves_no_byte(frame_size: int, *, tls: bool) -> None:
    """The peer neither reads the request nor answers."""
    with connected(tls=tls) as line:
        stall_soon(line.channel)
        with pytest.raises(Stalled):
            line.channel.ask("/route", b"", [bytes(frame_size)])


@pytest.mark.parametrize("frame_size", [0, LARGE])
def test_an_abort_ends_an_request(line: Line, frame_size: int) -> None:
    """It ends the request at any wait, and nothing is reused afterwards."""
    asked = line.ask(b"", bytes(frame_size))
    line.take_head()
    line.channel.abort()
    with pytest.raises(Interrupted):
        asked.result(SECONDS)
    assert not line.channel.is_reusable
    line.channel.abort()


@pytest.mark.parametrize("after", [b"more", None])
def test_a_line_that_is_not_silent_is_not_reused(line: Line, after: bytes | None) -> None:
    """After an answer a server says nothing until it is asked; one that hung up, or said more, is left."""
    line.answer(OK)
    read(line.channel, 2)
    assert line.channel.is_reusable
    if after is None:
        line.server.close()
    else:
        line.server.sendall(after)
    assert select.select([line.channel._connection.socket], [], [], SECONDS)[0]
    assert not line.channel.is_reusable


# Progress.


async def test_a_meter_tells_the_loop_what_a_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports in the loop's thread, and the last report is exact."""
    monkeypatch.setattr(byte_counter, "TELL_SECONDS", 0)
    for settled in (0, 1, 30):
        told: list[tuple[int, int]] = []
        meter = ByteCounter(lambda size, told=told: told.append((size, threading.get_ident())))  # type: ignore[misc]  # bound at once
        for _ in range(3):
            await asyncio.to_thread(meter.add, 10)
        meter.settle(settled)
        await asyncio.sleep(0)
        assert settled == sum(size for size, _ in told)
        assert {threading.get_ident()} == {thread for _, thread in told}


async def test_a_meter_does_not_tell_more_often_than_it_must() -> None:
    """Waking the loop for each piece would cost more than moving it."""
    told: list[int] = []
    meter = ByteCounter(told.append)
    for _ in range(10_000):
        meter.add(1)
    meter.settle(10_000)
    await asyncio.sleep(0)
    assert (10_000, True) == (sum(told), len(told) < 1000)


async def test_a_meter_that_nobody_reads() -> None:
    """Without a reader, the loop is never called."""
    loop = asyncio.get_running_loop()
    asked: list[object] = []
    meter = ByteCounter(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", lambda *call: asked.append(call))
        meter.add(1)
        meter.settle(1)
    assert [] == asked


# Several channels.


class Server:
    """Answers requests without a body once it may, and counts connections."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.connections = self.open = self.requests = 0
        self.answer = OK
        self.location = ""
        self.is_idle = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.is_idle.clear()
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                await self.may_answer.wait()
                writer.write(self.answer)
                if b"close" in self.answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open -= 1
            if not self.open:
                self.is_idle.set()
            writer.close()


@asynccontextmanager
async def served() -> AsyncIterator[Server]:
    """A server on loopback, to which no connection is open at the end."""
    server = Server()
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.location = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield server
        if server.connections:
            async with asyncio.timeout(SECONDS):
                await server.is_idle.wait()


@asynccontextmanager
async def channels_to(location: str, *, count: int = 2) -> AsyncIterator[Channels]:
    """Channels that are closed at the end."""
    places = Places(count)
    channels = Channels(location, token=None, places=places, stall_seconds=SECONDS)
    try:
        yield channels
    finally:
        channels.close()
        places.close()


def short_request(channel: Channel) -> bytes:
    """An exchange to its end."""
    channel.ask("", b"")
    return read(channel, 10)


async def reached(condition: Callable[[], bool]) -> None:
    """Give way until it is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def test_connections_are_kept_and_never_more_than_allowed() -> None:
    """A caller waits for a channel and a thread together, so that no channel is idle meanwhile."""
    async with served() as server, channels_to(server.location) as channels:
        calls = [asyncio.create_task(channels.run(short_request)) for _ in range(7)]
        await reached(lambda: server.requests == 2)
        server.may_answer.set()
        assert [b"ok"] * 7 == await asyncio.gather(*calls)
        assert (2, 7) == (server.connections, server.requests)


async def test_short_requests_do_not_wait_behind_others() -> None:
    """They have places of their own, and no more of them."""
    async with served() as server, channels_to(server.location, count=1) as channels:
        calls = [asyncio.create_task(channels.run(short_request, is_short=is_short)) for is_short in (False, False, True, True)]
        await reached(lambda: server.requests == 2)
        server.may_answer.set()
        await asyncio.gather(*calls)
        assert (2, 4) == (server.connections, server.requests)


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    """The next request has a new connection and no error, for an announced close and for a silent one."""
    async with served() as server, channels_to(server.location, count=1) as channels:
        server.may_answer.set()
        server.answer = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        for connections in (1, 2):
            assert b"ok" == await channels.run(short_request)
            assert connections == server.connections


async def test_a_cancelled_request_is_over_when_its_call_is() -> None:
    """Its thread has ended, its connection is closed, and its place is free."""
    async with served() as server, channels_to(server.location, count=1) as channels:
        has_ended = threading.Event()

        def request(channel: Channel) -> None:
            try:
                short_request(channel)
            finally:
                has_ended.set()

        call = asyncio.create_task(channels.run(request))
        await reached(lambda: server.requests == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert has_ended.is_set()
        server.may_answer.set()
        await reached(lambda: server.open == 0)
        assert b"ok" == await channels.run(short_request)


async def test_closing_ends_what_is_under_way() -> None:
    """It ends idle connections too."""
    async with served() as server:
        async with channels_to(server.location) as channels:
            call = asyncio.create_task(channels.run(short_request))
            await reached(lambda: server.requests == 1)
        with pytest.raises(Interrupted):
            await call
        server.may_answer.set()
        async with channels_to(server.location) as channels:
            await channels.run(short_request)
            assert 1 == server.open


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid", "x" * 64])
async def test_a_server_that_is_not_there(host: str) -> None:
    """There is no address, no such name, or no listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so nobody else gets this port
        async with channels_to(f"http://{host}:{taken.getsockname()[1]}") as channels:
            with pytest.raises(Unreachable):
                await channels.run(short_request)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cancelled_at_every_await(host: str) -> None:
    """While connecting, to one address or the first of several, or while the exchange is under way: nothing stays open."""
    async with served() as server:
        server.may_answer.set()

        async def request() -> None:
            async with channels_to(server.location.replace("127.0.0.1", host)) as channels:
                assert b"ok" == await channels.run(short_request)

        async for _ in cancelled_at_every_await(request):
            pass
