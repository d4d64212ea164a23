"""Rules of the transport, by HTTP and HTTPS: a verb of a remote repository cannot tell which it has. TLS is real, on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import (
    ForeignAnswer,
    Interrupted,
    LimitExceeded,
    ServerError,
    Stalled,
    Unauthorized,
    Unreachable,
)
from filestore.http import wire
from filestore.http.client import channel
from filestore.http.client.answers import BatchAnswer, SmallAnswer
from filestore.http.client.channels import Places
from filestore.http.client.exchange import Request
from filestore.http.client.transport import Transport
from filestore.system.metrics import Stage
from filestore.system.stalls import StallTimer
from tests.support.cancels import cancelled_at_every_await
from tests.support.clock import Clock
from tests.support.daemons import lasting_port
from tests.support.generator import octets
from tests.support.listening import listening
from tests.support.tls import client_tls, server_tls

SECONDS = 30
"""How long a test waits before it fails."""
LARGE = 32 << 20
"""More than the buffers of a connection's two ends hold."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


@dataclass
class Peer:
    """The server's end of a connection, which a test plays."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def take_head(self) -> list[bytes]:
        """The lines of a request's head."""
        return (await self.reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")

    async def take(self) -> tuple[list[bytes], bytes]:
        """A whole request: the lines of its head, and its body."""
        lines = await self.take_head()
        sizes = [int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-length:")]
        return lines, await self.reader.readexactly(sum(sizes))

    async def take_to_the_end(self) -> bytes:
        """All that still comes, until the client gives the connection up."""
        received = bytearray()
        try:
            while piece := await self.reader.read(1 << 16):
                received += piece
        except ConnectionError:
            pass
        return bytes(received)

    async def give(self, answer: bytes) -> None:
        """Send that much of an answer."""
        self.writer.write(answer)
        await self.writer.drain()


Play = Callable[[Peer], Awaitable[object]]


@dataclass
class Server:
    """A server that a test plays, and the transport that faces it."""

    transport: Transport
    peers: list[Peer] = field(default_factory=list)
    """One for each connection, in order."""
    failures: list[BaseException] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """A scheme, and what makes a transport for it."""

    scheme: str
    make: Callable[..., Transport]

    @asynccontextmanager
    async def facing(self, play: Play, *, count: int = 2, stall_seconds: float = SECONDS) -> AsyncIterator[Server]:
        """A transport that faces a server, which answers each connection by `play`."""
        failures: list[BaseException] = []
        peers: list[Peer] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.append(Peer(reader, writer))
            try:
                await play(peers[-1])
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the client has gone
            except Exception as error:  # noqa: BLE001  # a failed check fails the test
                failures.append(error)

        async with listening(handle, tls=server_tls() if self.scheme == "https" else None) as port:
            places = Places(count)
            transport = self.make(f"{self.scheme}://localhost:{port}", token="secret", places=places, stall_seconds=stall_seconds)
            try:
                yield Server(transport, peers, failures)
            finally:
                await transport.close()
                places.close()
        assert [] == failures


KINDS = {
    "http": Kind("http", Transport),
    "https": Kind("https", partial(Transport, tls=client_tls())),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each scheme."""
    return KINDS[request.param]


def question(method: str = "GET", **given: Any) -> Request:
    """A short request."""
    return Request(method=method, path="/question", **given)


def pieces(content: bytes, size: int) -> bytes:
    """Content in the chunked coding, without the last line."""
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def sending(*frames: bytes | memoryview, moved: Callable[[int], None] = lambda _: None) -> Request:
    """A batch that is sent."""
    return Request(method="POST", path="/chunks", body=b"header", frames=frames, moved=moved, stage=Stage.SEND)


def receiving() -> Request:
    """A batch that is asked for."""
    return Request(method="POST", path="/chunks/get", body=b"digests", stage=Stage.RECEIVE)


def small(limit: int = 1 << 20) -> SmallAnswer:
    """A place for a small answer."""
    return SmallAnswer("the server", limit=limit)


def batch(frames: list[bytes], buffer: memoryview, moved: Callable[[int], None] = lambda _: None) -> tuple[BatchAnswer, bytes]:
    """A place for a batch of these frames, and the batch."""
    entries = [wire.BatchEntry(chunk_digest(frame), len(frame)) for frame in frames]
    digests: list[Digest] = [entry.digest for entry in entries]
    return BatchAnswer("the server", digests, buffer, moved=moved), wire.encode_batch_header(entries) + b"".join(frames)


def whole_frames(answer: BatchAnswer) -> list[bytes]:
    """The content of the frames that have arrived."""
    return [bytes(frame or b"") for frame in answer.frames()]


async def asked(transport: Transport, request: Request | None = None) -> bytes:
    """The body of the answer to one request."""
    answer = small()
    await transport.exchange(request or question(), answer)
    return answer.content


async def reached(condition: Callable[[], object]) -> None:
    """Give way until it is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def answer_ok(peer: Peer) -> None:
    """Answer everything."""
    while True:
        await peer.take()
        await peer.give(OK)


def has_no_usable_connection(transport: Transport) -> bool:
    """Whether the next request needs a new connection."""
    return not any(channel.is_reusable for channel in transport._channels._idle)


# Requests and answers.


async def test_request_says_the_same_by_every_scheme() -> None:
    """The head has the server, who asks, the token and the length, and nothing else, such as a wish for compression."""
    for request in (question(), question("DELETE"), question("POST", body=b"body", fields={"X": "y"}), sending(b"frame")):
        said: dict[str, Any] = {}
        for name, kind in KINDS.items():

            async def play(peer: Peer, name: str = name, said: dict[str, Any] = said) -> None:
                (first, *fields), body = await peer.take()
                assert fields.pop(0).startswith(b"Host: localhost:")
                said[name] = first, sorted(fields), body
                await peer.give(OK)

            async with kind.facing(play) as server:
                assert b"ok" == await asked(server.transport, request)
        assert said["http"] == said["https"]
        assert b"Authorization: Bearer secret" in said["https"][1]


@pytest.mark.slow
async def test_large_batch_arrives_as_it_was_sent(kind: Kind) -> None:
    """Header and frames follow each other without a gap, and every byte of the frames is counted once."""
    frames = [octets(1, 1 << 20) * (LARGE >> 20), b"", octets(2, 70_000), *(bytes([number]) for number in range(200))]
    bodies: list[bytes] = []
    moves: list[int] = []

    async def play(peer: Peer) -> None:
        bodies.append((await peer.take())[1])
        await peer.give(OK)

    async with kind.facing(play) as server:
        assert b"ok" == await asked(server.transport, sending(*frames, moved=moves.append))
    assert [b"header" + b"".join(frames)] == bodies
    assert sum(map(len, frames)) == sum(moves)


@pytest.mark.slow
async def test_large_batch_arrives_in_the_callers_memory(kind: Kind) -> None:
    """The frames lie one after the other in the buffer, nothing is written behind them, and every byte is counted once."""
    frames = [*(bytes([number]) * CHUNK_LIMIT for number in range(8)), octets(9, 70_000)]
    size = sum(map(len, frames))
    memory = bytearray(size + 10)
    moves: list[int] = []
    answer, encoded = batch(frames, memoryview(memory)[:-10], moves.append)

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(HEAD % len(encoded) + encoded)

    async with kind.facing(play) as server:
        await server.transport.exchange(receiving(), answer)
    assert frames == whole_frames(answer)
    assert b"".join(frames) + bytes(10) == memory
    assert size == sum(moves)


async def test_batch_arrives_in_any_split(kind: Kind) -> None:
    """Byte by byte it is the same batch."""
    frames = [b"abc", b"defgh"]
    answers = []
    for size in (1, 7, 1000):
        answer, encoded = batch(frames, memoryview(bytearray(8)))
        raw = HEAD % len(encoded) + encoded

        async def play(peer: Peer, raw: bytes = raw, size: int = size) -> None:
            await peer.take()
            for start in range(0, len(raw), size):
                await peer.give(raw[start : start + size])

        async with kind.facing(play) as server:
            await server.transport.exchange(receiving(), answer)
        answers.append(whole_frames(answer))
    assert [frames] * 3 == answers


async def test_document_in_chunks_is_read_on_one_connection(kind: Kind) -> None:
    """A proxy may turn the announced length into the chunked coding, with extensions and trailers, in any split."""

    async def play(peer: Peer) -> None:
        for end in (LAST, b"0;last\r\nX: y\r\n\r\n", LAST):
            await peer.take()
            await peer.give(CHUNKED + pieces(b"ok", 1) + end)
        await peer.take()
        for byte in CHUNKED + pieces(b"ok", 2) + LAST:
            await peer.give(bytes([byte]))

    async with kind.facing(play) as server:
        assert [b"ok"] * 4 == [await asked(server.transport) for _ in range(4)]
        assert 1 == len(server.peers)


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 30])
async def test_batch_in_chunks_arrives_in_the_callers_memory(kind: Kind, size: int) -> None:
    """However the header and the frames are cut, and every byte of the frames is counted once."""
    frames = [b"abc", octets(3, 10_000 if size < 100 else 3 << 20), b"defgh"]
    memory = bytearray(sum(map(len, frames)) + 10)
    moves: list[int] = []
    answer, encoded = batch(frames, memoryview(memory)[:-10], moves.append)

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(CHUNKED + pieces(encoded, size) + LAST)
        await peer.take()
        await peer.give(OK)

    async with kind.facing(play) as server:
        await server.transport.exchange(receiving(), answer)
        assert b"ok" == await asked(server.transport)
        assert 1 == len(server.peers)
    assert frames == whole_frames(answer)
    assert b"".join(frames) + bytes(10) == memory
    assert sum(map(len, frames)) == sum(moves)


async def test_problem_in_chunks_is_raised(kind: Kind) -> None:
    """It says what one with a length says."""
    problem = wire.encode_problem(LimitExceeded("a size in bytes", 5, 4, "upload_limit"))
    document = json.dumps(problem.document).encode()
    head = CHUNKED.replace(b"200 OK", b"%d X" % problem.status)

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(head + pieces(document, 10) + LAST)
        await peer.take()
        await peer.give(OK)

    async with kind.facing(play) as server:
        with pytest.raises(LimitExceeded, match="5"):
            await asked(server.transport)
        assert b"ok" == await asked(server.transport)
        assert 1 == len(server.peers)


async def test_bytes_behind_an_answer_in_chunks_are_no_answer(kind: Kind) -> None:
    """They are not taken for the answer to the next request, which is sent on another connection."""

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(CHUNKED + pieces(b"ok", 2) + LAST + OK.replace(b"ok", b"no"))
        await peer.take_to_the_end()

    async with kind.facing(play) as server:
        for count in (1, 2):
            assert b"ok" == await asked(server.transport)
            assert count == len(server.peers)


async def test_interim_answers_are_passed_over(kind: Kind) -> None:
    """RFC 9110, section 15.2: they may come unasked, and the final answer follows."""

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)

    async with kind.facing(play) as server:
        assert b"ok" == await asked(server.transport)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 401 X\r\nContent-Length: 2\r\n\r\n{}", Unauthorized),
        (b"HTTP/1.1 401 X\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", ForeignAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", ForeignAnswer),
        (b"HTTP/1.1 308 X\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n", ForeignAnswer),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ServerError),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 2\r\n\r\n{}", ServerError),
        (b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ServerError),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", ServerError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", ServerError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", ServerError),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ServerError),
        (CHUNKED + b"x\r\n", Interrupted),
        (CHUNKED + b"2\r\nokay\r\n0\r\n\r\n", Interrupted),
        (CHUNKED + b"200000\r\n" + bytes(1 << 21), LimitExceeded),
        (CHUNKED + b"10000\r\n%b\r\n" % bytes(1 << 16) * 17 + b"0\r\n\r\n", LimitExceeded),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", LimitExceeded),
        (b"HTTP/1.1 500 X\r\nContent-Length: 999999999999\r\n\r\n", LimitExceeded),
        (b"SSH-2.0-x\r\n\r\n", Interrupted),
    ],
)
async def test_answer_that_is_not_a_success_is_an_error(kind: Kind, answer: bytes, expected: type[Exception]) -> None:
    """A status, a page, a redirect, an answer that is too large or not HTTP at all. Nothing is asked a second time."""

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(answer)
        await peer.take_to_the_end()

    async with kind.facing(play) as server:
        with pytest.raises(expected):
            await asked(server.transport)
        assert 1 == len(server.peers)


# Early answers.


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_early_error_is_raised(kind: Kind, *, hangs_up: bool) -> None:
    """A server that has read enough says why, while the rest is still being sent; it may even close the connection at once."""

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.give(b"HTTP/1.1 401 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        if not hangs_up:
            await peer.take_to_the_end()

    async with kind.facing(play) as server:
        with pytest.raises(Unauthorized):
            await asked(server.transport, sending(bytes(LARGE)))
        assert 1 == len(server.peers)


async def test_early_success_is_not_believed(kind: Kind) -> None:
    """A server cannot have kept what was not sent."""

    async def play(peer: Peer) -> None:
        await peer.take_head()
        await peer.give(OK)
        await peer.take_to_the_end()

    async with kind.facing(play) as server:
        with pytest.raises(Interrupted, match="before it had the whole request"):
            await asked(server.transport, sending(bytes(LARGE)))


# Connections.


async def test_connection_is_used_again(kind: Kind) -> None:
    """One after the other, requests of every kind need one connection; another one comes after the server has closed it."""

    async def play(peer: Peer) -> None:
        for _ in range(3):
            await peer.take()
            await peer.give(OK)
        await peer.take()
        await peer.give(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async with kind.facing(play) as server:
        for count in (1, 1, 1, 1, 2):
            assert b"ok" == await asked(server.transport, sending(b"frame"))
            assert count == len(server.peers)


async def test_connection_that_the_server_has_closed_costs_no_error(kind: Kind) -> None:
    """An idle connection that was closed meanwhile is replaced."""

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(OK)

    async with kind.facing(play) as server:
        for count in (1, 2, 3):
            assert b"ok" == await asked(server.transport, sending(b"frame"))
            assert count == len(server.peers)
            # The handler has ended, so the connection is closed soon.
            await reached(partial(has_no_usable_connection, server.transport))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_request_is_sent_once(kind: Kind, method: str) -> None:
    """Also where the answer is lost on a connection that was used before: the server may have done what was asked."""
    taken = []

    async def play(peer: Peer) -> None:
        taken.append(await peer.take())
        if len(taken) != 2:
            await peer.give(OK)
            taken.append(await peer.take())

    async with kind.facing(play) as server:
        await asked(server.transport, question(method))
        with pytest.raises(Interrupted):
            await asked(server.transport, question(method))
        assert 2 == len(taken)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        HEAD % 10,
        HEAD % 10 + b"01234",
        CHUNKED,
        CHUNKED + b"2",
        CHUNKED + b"2\r\nok\r\n",
        CHUNKED + b"2\r\nok\r\n0\r\n",
    ],
)
async def test_answer_that_is_cut_is_interrupted(kind: Kind, sent: bytes) -> None:
    """Before, in and after its head: it never looks whole."""

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(sent)

    async with kind.facing(play) as server:
        with pytest.raises(Interrupted):
            await asked(server.transport)


async def test_request_that_is_cut_is_interrupted(kind: Kind) -> None:
    """A server that hangs up while a batch is sent, and says nothing."""

    async def play(peer: Peer) -> None:
        await peer.take_head()

    async with kind.facing(play) as server:
        with pytest.raises(Interrupted):
            await asked(server.transport, sending(bytes(LARGE)))


async def test_frames_of_a_cut_batch_that_are_whole_are_kept(kind: Kind) -> None:
    """They need not be asked for again."""
    answer, encoded = batch([b"abc", b"defgh", b"ij"], memoryview(bytearray(10)))

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(HEAD % len(encoded) + encoded[:-3])

    async with kind.facing(play) as server:
        with pytest.raises(Interrupted):
            await server.transport.exchange(receiving(), answer)
    assert [b"abc"] == whole_frames(answer)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("extra", [1, 1 << 20])
async def test_batch_that_is_longer_than_its_header_says_is_refused(kind: Kind, extra: int, *, is_chunked: bool) -> None:
    """Nothing is written behind the frames."""
    memory = bytearray(100)
    answer, encoded = batch([b"abc"], memoryview(memory)[:50])

    async def play(peer: Peer) -> None:
        await peer.take()
        content = encoded + b"x" * extra
        await peer.give(CHUNKED + pieces(content, 1000) + LAST if is_chunked else HEAD % len(content) + content)

    async with kind.facing(play) as server:
        with pytest.raises(Interrupted):
            await server.transport.exchange(receiving(), answer)
    assert bytes(50) == memory[50:]


async def test_batches_wait_for_their_turn_and_short_requests_do_not_wait_for_batches(kind: Kind) -> None:
    """No more than `count` batches and `count` short requests are under way at a time, each on one connection."""
    may_answer = asyncio.Event()
    heads: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            heads.append((await peer.take())[0][0])
            await may_answer.wait()
            await peer.give(OK)

    async with kind.facing(play, count=2) as server:
        requests = [sending(b"frame")] * 5 + [question()] * 5
        calls = [asyncio.create_task(asked(server.transport, request)) for request in requests]
        await reached(lambda: len(heads) == 4)
        assert [b"GET", b"GET", b"POST", b"POST"] == sorted(head.split()[0] for head in heads)
        may_answer.set()
        assert [b"ok"] * 10 == await asyncio.gather(*calls)
        assert 4 == len(server.peers)


async def test_closing_ends_what_is_under_way(kind: Kind) -> None:
    """A caller that still waits is told so, and no connection stays open."""
    taken = []
    ended: list[bytes] = []

    async def play(peer: Peer) -> None:
        taken.append(await peer.take())
        ended.append(await peer.take_to_the_end())

    async with kind.facing(play) as server:
        call = asyncio.create_task(asked(server.transport))
        await reached(lambda: taken)
        await server.transport.close()
        with pytest.raises(Interrupted):
            await call
        await reached(lambda: ended)


# Peers that are slow, or move no byte.


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [question(), sending(bytes(LARGE)), question("POST", body=bytes(LARGE)), receiving()],
    ids=["question", "frames", "body", "receiving"],
)
async def test_peer_that_moves_no_byte_is_given_up(kind: Kind, request_: Request) -> None:
    """Whether it does not take what is sent or does not answer."""
    given_up = asyncio.Event()

    async def play(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads has it
        await given_up.wait()

    async with kind.facing(play, stall_seconds=0.5) as server:
        with pytest.raises(Stalled):
            await asked(server.transport, request_)
        given_up.set()


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_peer_that_stops_in_the_middle_of_an_answer_is_given_up(kind: Kind, *, is_chunked: bool) -> None:
    """The time counts from the last byte that came."""
    answer, encoded = batch([b"abc"], memoryview(bytearray(10)))

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(CHUNKED + pieces(encoded, 1000) if is_chunked else HEAD % len(encoded) + encoded[:-1])
        await peer.take_to_the_end()

    async with kind.facing(play, stall_seconds=0.5) as server:
        with pytest.raises(Stalled):
            await server.transport.exchange(receiving(), answer)


@pytest.mark.slow
async def test_peer_that_sends_frames_byte_by_byte_is_given_up(kind: Kind) -> None:
    """Each byte comes within the time limit, but all of them together would take hours."""
    answer, encoded = batch([bytes(1000)], memoryview(bytearray(1000)))

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(HEAD % len(encoded))
        for start in range(len(encoded)):
            await asyncio.sleep(0.1)
            await peer.give(encoded[start : start + 1])

    async with kind.facing(play, stall_seconds=0.5) as server:
        with pytest.raises(Stalled):
            await server.transport.exchange(receiving(), answer)


@pytest.mark.slow
async def test_slow_peer_is_waited_for(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may take longer than the time limit where a byte comes now and then, be it before, in or after its head."""
    answer = b"HTTP/1.1 102 Processing\r\n\r\n" + OK
    clock = Clock()
    waited = 0.0

    class Timer(StallTimer):
        def ended(self, began: float) -> None:
            nonlocal waited
            waited += clock() - began
            super().ended(began)

    monkeypatch.setattr(channel, "StallTimer", partial(Timer, clock=clock))

    async def play(peer: Peer) -> None:
        await peer.take()
        for start in range(0, len(answer), 5):
            await asyncio.sleep(0.05)  # the client waits for the peer when its clock goes on
            clock.now += SECONDS / 8
            await peer.give(answer[start : start + 5])

    async with kind.facing(play) as server:
        assert b"ok" == await asked(server.transport, sending(b"frame"))
    assert waited > SECONDS


# Cancels.


async def test_cancelled_exchange_gives_its_connection_and_its_place_up(kind: Kind) -> None:
    """The server sees the end of the connection, and the next exchange has another one."""
    taken = []
    ended: list[bytes] = []

    async def play(peer: Peer) -> None:
        taken.append(await peer.take())
        if len(taken) == 1:
            ended.append(await peer.take_to_the_end())
        await peer.give(OK)

    async with kind.facing(play, count=1) as server:
        call = asyncio.create_task(asked(server.transport, sending(b"frame")))
        await reached(lambda: taken)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert b"ok" == await asked(server.transport, sending(b"frame"))
        await reached(lambda: ended)
        assert 2 == len(server.peers)


async def test_memory_of_a_cancelled_request_is_the_callers_again(kind: Kind) -> None:
    """What is written there afterwards does not leave."""
    may_read = asyncio.Event()
    received: list[bytes] = []
    has_begun = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.take_head()
        has_begun.set()
        await may_read.wait()
        received.append(await peer.take_to_the_end())

    memory = memoryview(bytearray(b"a" * LARGE))
    async with kind.facing(play) as server:
        call = asyncio.create_task(asked(server.transport, sending(memory)))
        await has_begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        memory[:] = b"b" * LARGE
        may_read.set()
        await reached(lambda: received)
    assert b"b" not in received[0]


@pytest.mark.slow
async def test_memory_of_a_cancelled_answer_is_the_callers_again(kind: Kind) -> None:
    """Nothing is written there any more."""
    memory = memoryview(bytearray(LARGE))
    moves: list[int] = []
    answer, encoded = batch([b"x" * CHUNK_LIMIT] * 8, memory, moves.append)

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(HEAD % len(encoded) + encoded[: LARGE // 2])
        await peer.take_to_the_end()

    async with kind.facing(play) as server:
        call = asyncio.create_task(server.transport.exchange(receiving(), answer))
        await reached(lambda: moves)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        memory[:] = bytes(LARGE)
        await reached(lambda: server.peers[0].reader.at_eof() or server.peers[0].reader.exception())
    assert bytes(LARGE) == memory.tobytes()


async def test_cancelled_at_every_await(kind: Kind) -> None:
    """While connecting, while asking and while being answered: no connection stays open, and the next exchange succeeds."""
    open_count = 0

    async def play(peer: Peer) -> None:
        nonlocal open_count
        open_count += 1
        try:
            await answer_ok(peer)
        finally:
            open_count -= 1

    async with kind.facing(play, count=1) as server:

        async def exchange() -> None:
            assert b"ok" == await asked(server.transport, sending(b"frame"))
            assert b"ok" == await asked(server.transport)

        async for _ in cancelled_at_every_await(exchange):
            pass
        await exchange()
        await server.transport.close()
        await reached(lambda: not open_count)


# Servers that are not there.


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid", "x" * 64])
async def test_server_that_is_not_there_is_unreachable(kind: Kind, host: str) -> None:
    """No server at that port, no such name, or a name that cannot be."""
    transport = kind.make(f"{kind.scheme}://{host}:{lasting_port()}", token=None, places=Places(1), stall_seconds=SECONDS)
    with pytest.raises(Unreachable):
        await asked(transport)
    assert not transport.has_answered
    await transport.close()


async def test_has_answered_as_soon_as_there_is_an_answer(kind: Kind) -> None:
    """An error of the server is an answer, a connection that is closed is none."""
    answers = [b"", b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"]
    seen = []

    async def play(peer: Peer) -> None:
        await peer.take()
        await peer.give(answers.pop(0))

    async with kind.facing(play) as server:
        for _ in range(2):
            with pytest.raises((Interrupted, ServerError)):
                await asked(server.transport)
            seen.append(server.transport.has_answered)
    assert [False, True] == seen
