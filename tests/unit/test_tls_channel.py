"""A channel that begins TLS, against a server that breaks off, waits, or says something else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from filestore.errors import FilestoreError, ForeignAnswer, Interrupted, Stalled, Unreachable
from tests.support.channels import read
from tests.support.generator import octets
from tests.support.tls import server_tls
from tests.unit.test_channel import LARGE, OK, SECONDS, Line, accepted, connected

RECORD_SIZE = 16 << 10
TUNNEL = b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n"


class Server:
    """The server's end of TLS in memory, so that a test decides which bytes leave."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._arrived, self.leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = server_tls().wrap_bio(self._arrived, self.leaving, server_side=True)

    def shake_hands(self, send: Callable[[bytes], object]) -> None:
        """Shake hands. `send` sends what the server says."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                send(self.leaving.read())
                self._arrived.write(self._line.server.recv(1 << 16))
            else:
                send(self.leaving.read())
                return

    def take_head(self) -> None:
        """Read the head of a request."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            try:
                head += self._tls.read(1)
            except ssl.SSLWantReadError:
                self._arrived.write(self._line.server.recv(1 << 16))

    def encrypted(self, answer: bytes) -> bytes:
        """Return an answer as it is sent."""
        for start in range(0, len(answer), RECORD_SIZE):
            self._tls.write(answer[start : start + RECORD_SIZE])
        return self.leaving.read()

    def end(self) -> bytes:
        """Return the end of TLS as it is sent."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self.leaving.read()


@contextmanager
def open_line(*, stall_seconds: float = SECONDS) -> Iterator[tuple[Line, Server]]:
    """A line whose handshake has ended, and the server's end."""
    with accepted(tls=True, stall_seconds=stall_seconds) as line:
        opened = line.threads.submit(line.channel.open)
        server = Server(line)
        server.shake_hands(line.server.sendall)
        opened.result(SECONDS)
        yield line, server


def failed(line: Line) -> FilestoreError:
    """Return the error of opening the channel."""
    error = line.threads.submit(line.channel.open).exception(SECONDS)
    assert isinstance(error, FilestoreError)
    assert not line.channel.is_reusable
    return error


# Handshakes.


def test_a_server_that_stalls_in_the_handshake_is_given_up() -> None:
    """It has accepted the connection, and says nothing."""
    with accepted(tls=True, stall_seconds=0.2) as line:
        assert isinstance(failed(line), Stalled)


def test_a_handshake_that_is_trickled_is_given_up() -> None:
    """Each byte comes within the time limit, but all of them together would take minutes."""
    with accepted(tls=True, stall_seconds=0.5) as line:
        opened = line.threads.submit(line.channel.open)
        server = Server(line)
        is_over = threading.Event()
        opened.add_done_callback(lambda _: is_over.set())

        def trickle(said: bytes) -> None:
            for place in range(len(said)):
                if is_over.wait(0.05):
                    raise BrokenPipeError
                line.server.sendall(said[place : place + 1])

        with pytest.raises(BrokenPipeError):
            server.shake_hands(trickle)
        assert isinstance(opened.exception(SECONDS), Stalled)


def test_a_handshake_in_any_split_succeeds() -> None:
    """As long as it ends within the time limit."""
    with accepted(tls=True) as line:
        opened = line.threads.submit(line.channel.open)
        server = Server(line)

        def send_in_pieces(said: bytes) -> None:
            for start in range(0, len(said), 100):
                line.server.sendall(said[start : start + 100])

        server.shake_hands(send_in_pieces)
        opened.result(SECONDS)
        assert line.channel.is_reusable


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03"])
def test_a_server_that_hangs_up_in_the_handshake_is_unreachable(said: bytes) -> None:
    """Before it says anything, and in the middle of a record."""
    with accepted(tls=True) as line:
        line.server.sendall(said)
        line.server.shutdown(socket.SHUT_WR)
        error = failed(line)
        assert isinstance(error, Unreachable)
        assert "it ended the connection in the middle of TLS" in str(error)


def test_what_is_not_tls_is_named() -> None:
    """A server of plain HTTP."""
    with accepted(tls=True) as line:
        line.server.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        error = failed(line)
        assert isinstance(error, Unreachable)
        assert "does not speak TLS; a URL that begins with http:// may be meant" in str(error)


def test_an_abort_ends_a_handshake() -> None:
    """It does so also where it comes before the first byte, and nothing is reused afterwards."""
    with accepted(tls=True) as line:
        opened = line.threads.submit(line.channel.open)
        line.server.recv(1)
        line.channel.abort()
        assert isinstance(opened.exception(SECONDS), Interrupted)
        assert not line.channel.is_reusable
    with accepted(tls=True) as line:
        line.channel.abort()
        assert isinstance(failed(line), Interrupted)


# Tunnels.


def test_tls_begins_behind_a_tunnel() -> None:
    """The proxy is asked once; what follows is for the server."""
    with accepted(tls=True, tunnel=TUNNEL) as line:
        opened = line.threads.submit(line.channel.open)
        assert TUNNEL == line.take(len(TUNNEL))
        line.server.sendall(b"HTTP/1.0 200 Connection established\r\nX: y\r\n\r\n")
        server = Server(line)
        server.shake_hands(line.server.sendall)
        opened.result(SECONDS)
        asked = line.ask()
        server.take_head()
        line.server.sendall(server.encrypted(OK))
        assert 200 == asked.result(SECONDS).status


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"HTTP/1.1 407 X\r\nServer: proxy\r\n\r\n", ForeignAnswer),
        (b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n", ForeignAnswer),
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03", Interrupted),
        (b"HTTP/1.1 200 OK\r\n", Interrupted),
        (b"SSH-2.0-x\r\n\r\n", Interrupted),
    ],
)
def test_a_proxy_that_opens_no_tunnel(said: bytes, expected: type[FilestoreError]) -> None:
    """It refuses, says more than it may, or is another program."""
    with accepted(tls=True, tunnel=TUNNEL) as line:
        line.server.sendall(said)
        line.server.shutdown(socket.SHUT_WR)
        assert isinstance(failed(line), expected)


# Answers.


@pytest.mark.parametrize("place", ["head", "body", "second record"])
@pytest.mark.parametrize("with_end", [False, True], ids=["cut", "ended"])
def test_an_answer_that_is_cut_is_interrupted(place: str, *, with_end: bool) -> None:
    """In the middle of a record or between two, with and without the end of TLS: it never looks whole."""
    body = octets(7, 3 * RECORD_SIZE)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    size = {"head": 20, "body": 100, "second record": RECORD_SIZE + 10}[place]
    with open_line() as (line, server):
        asked = line.ask()
        server.take_head()
        if with_end:
            line.server.sendall(server.encrypted(answer[:size]) + server.end())
        else:
            line.server.sendall(server.encrypted(answer)[:size])
        line.server.shutdown(socket.SHUT_WR)
        with pytest.raises(Interrupted):
            asked.result(SECONDS)
            read(line.channel, len(body))
        assert not line.channel.is_reusable


def test_a_whole_answer_before_a_cut_is_an_answer() -> None:
    """Its length is announced, so nothing can be missing. The connection is not used again."""
    with open_line() as (line, server):
        asked = line.ask()
        server.take_head()
        line.server.sendall(server.encrypted(OK))
        line.server.shutdown(socket.SHUT_WR)
        assert 200 == asked.result(SECONDS).status
        assert b"ok" == read(line.channel, 10)
        assert not line.channel.is_reusable


def test_a_connection_that_ends_with_its_answer_is_not_used_again() -> None:
    """The end of TLS may be read together with the answer, and the socket is silent from then on."""
    with open_line() as (line, server):
        asked = line.ask()
        server.take_head()
        line.server.sendall(server.encrypted(OK) + server.end())
        assert 200 == asked.result(SECONDS).status
        assert b"ok" == read(line.channel, 10)
        assert not line.channel.is_reusable


def test_a_record_that_was_changed_on_the_way_ends_the_answer() -> None:
    """No byte of it is taken."""
    with open_line() as (line, server):
        asked = line.ask()
        server.take_head()
        sent = bytearray(server.encrypted(OK))
        sent[-1] ^= 1
        line.server.sendall(sent)
        with pytest.raises(Interrupted):
            asked.result(SECONDS)
        assert not line.channel.is_reusable


@pytest.mark.parametrize("size", [2, 10_000])
def test_an_answer_of_which_openssl_holds_a_part_is_not_over(size: int) -> None:
    """What follows an answer in the same record has left the kernel: the connection is not used again."""
    with open_line() as (line, server):
        asked = line.ask()
        server.take_head()
        line.server.sendall(server.encrypted(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%bmore" % (size, bytes(size))))
        assert 200 == asked.result(SECONDS).status
        assert bytes(size) == read(line.channel, size)
        assert not line.channel.is_reusable


def test_records_of_any_size_make_the_same_request() -> None:
    """Frames shorter and longer than a record, and empty ones, follow each other without a gap."""
    frames = [octets(size, size) for size in (0, 1, RECORD_SIZE - 1, RECORD_SIZE, RECORD_SIZE + 1, 70_000, 0, 3, 5)] * 30
    with connected(tls=True) as line:
        asked = line.ask(b"header", *frames)
        line.take_head()
        whole = b"header" + b"".join(frames)
        assert whole == line.take(len(whole))
        line.server.sendall(OK)
        assert 200 == asked.result(SECONDS).status


def test_a_blocked_record_is_sent_again_as_it_was() -> None:
    """OpenSSL wants the same bytes after the kernel took no more, also where small frames share a record."""
    frames = [octets(1, 5000), octets(2, RECORD_SIZE + 5000), octets(3, 100)] * (LARGE // 26_000)
    with connected(tls=True) as line:
        line.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        asked = line.ask(b"", *frames)
        line.take_head()
        whole = b"".join(frames)
        assert whole == line.take(len(whole))
        line.server.sendall(OK)
        assert 200 == asked.result(SECONDS).status
