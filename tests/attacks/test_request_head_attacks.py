"""Attacks by heads of requests, by pipelined requests and by many connections."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from filestore.http import wire
from filestore.http.server.request_head import FIELD_LIMIT, HEAD_LIMIT, HEADS_LIMIT
from filestore.http.wire import API
from tests.support.generator import octets
from tests.support.server import SECONDS, Reply, RunningServer, eventually, form, reply, running_server

GET = b"GET /healthz HTTP/1.1\r\nHost: server\r\n"
REQUEST = GET + b"\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the limits that every server has."""
    with running_server(tmp_path_factory.mktemp("server") / "root") as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that waits a second for the head of a request, and a second for bytes."""
    with running_server(tmp_path_factory.mktemp("impatient") / "root", head_seconds=1, stall_seconds=1) as server:
        yield server


def is_served(server: RunningServer) -> bool:
    """Return whether an ordinary client gets an answer."""
    return server.ask("GET", "/healthz", token=None).status == 200


def answer_to(server: RunningServer, sent: bytes) -> Reply:
    """Return the answer to the bytes on a new connection, after which the server closes it."""
    with server.connection() as connection:
        connection.sendall(sent)
        answer = reply(connection)
        assert b"" == connection.recv(1)
        return answer


def sized_head(size: int, *, field: int = FIELD_LIMIT) -> bytes:
    """Return a whole head of `size` bytes, in fields of at most `field` bytes."""
    head = GET
    number = 0
    while (left := size - len(head) - 2) > 0:
        line = b"X-%03d: " % number
        length = left if left <= field else min(field, left - 100)
        head += line + b"x" * (length - len(line) - 2) + b"\r\n"
        number += 1
    return head + b"\r\n"


def test_a_head_of_33_kib_is_refused(server: RunningServer) -> None:
    """A head of exactly 32 KiB is taken."""
    with server.connection() as connection:
        connection.sendall(sized_head(HEAD_LIMIT))
        assert 200 == reply(connection).status
    for head in (sized_head(HEAD_LIMIT + 1), sized_head(HEAD_LIMIT + 1024)):
        answer = answer_to(server, head)
        assert (431, wire.PROBLEM) == (answer.status, answer.headers["Content-Type"])
    # The end of the head is not needed to refuse it.
    assert 431 == answer_to(server, sized_head(2 * HEAD_LIMIT)[: HEAD_LIMIT + 1]).status
    assert is_served(server)


@pytest.mark.parametrize("line", [b"X: %s", b"%s: x", b"GET /%s HTTP/1.1"], ids=["a value", "a name", "the request line"])
def test_a_field_of_17_kib_is_refused(server: RunningServer, line: bytes) -> None:
    """The field is refused with its end and without it."""
    filled = line % (b"x" * (FIELD_LIMIT + 1024))
    before = b"" if line.startswith(b"GET") else GET
    assert 431 == answer_to(server, before + filled + b"\r\nHost: server\r\n\r\n").status
    assert 431 == answer_to(server, before + filled).status
    assert is_served(server)


def test_126_headers_of_8_kb_are_refused(server: RunningServer) -> None:
    """The client can read the answer although it has sent a megabyte that nobody takes."""
    head = GET + b"".join(b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(126))
    assert 431 == answer_to(server, head).status
    many = GET + b"".join(b"X-%d: x\r\n" % number for number in range(200)) + b"\r\n"
    assert 400 == answer_to(server, many).status


def test_a_head_byte_by_byte_is_read(server: RunningServer) -> None:
    """So are a head in two pieces, wherever it is cut, and empty lines before it."""
    with server.connection() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cut in (1, 2, 3, len(REQUEST) - 1, len(REQUEST) - 2, len(REQUEST) - 3):
            connection.sendall(b"\r\n\r\n" + REQUEST[:cut])
            connection.sendall(REQUEST[cut:])
            assert 200 == reply(connection).status
        for place in range(len(REQUEST)):
            connection.sendall(REQUEST[place : place + 1])
        assert 200 == reply(connection).status


@pytest.mark.slow
def test_a_head_byte_by_byte_for_too_long_is_refused(impatient: RunningServer) -> None:
    """Each byte comes in time, and the head is late as a whole."""
    with impatient.connection() as connection:
        connection.settimeout(0.2)
        received = b""
        with suppress(ConnectionError):
            for place in range(10_000):
                connection.sendall((GET + b"X: " + b"x" * 10_000)[place : place + 1])
                with suppress(TimeoutError):
                    if received := connection.recv(12):
                        break
        assert b"HTTP/1.1 408" == received
    assert is_served(impatient)


def test_a_head_with_bare_newlines_is_refused(server: RunningServer) -> None:
    """A proxy may see the end of the head where this server does not. So it is refused as soon as one is seen."""
    for head in (b"GET /healthz HTTP/1.1\nHost: server\n\n", GET + b"X: x\n", GET + b"X: x\nY: y\r\n\r\n", GET + b"\n\r\n"):
        assert 400 == answer_to(server, head).status


def test_what_is_not_http_is_refused_at_once(server: RunningServer) -> None:
    """A client that begins TLS does not wait for the deadline of a head."""
    for sent in (b"\x16\x03\x01\x02\x00", b"\0", b" GET", b"get /"):
        assert 400 == answer_to(server, sent).status


@pytest.mark.slow
@pytest.mark.parametrize("sent", [GET, b"G", b"\r\n", b""], ids=["half", "a byte", "an empty line", "nothing"])
def test_half_a_head_and_then_silence_is_ended(impatient: RunningServer, sent: bytes) -> None:
    """A connection on which nothing was sent is closed without a word."""
    with impatient.connection() as connection:
        connection.sendall(sent)
        if sent.strip():
            assert 408 == reply(connection).status
        assert b"" == connection.recv(1)
    # On a connection that was used before, the deadline begins with the first byte.
    with impatient.connection() as connection:
        connection.sendall(REQUEST)
        assert 200 == reply(connection).status
        connection.sendall(GET)
        assert 408 == reply(connection).status


@pytest.mark.slow
def test_half_heads_have_a_budget(tmp_path: Path) -> None:
    """When the unfinished heads of all connections are too many, the largest one goes, and not that of an ordinary client."""
    half = sized_head(HEAD_LIMIT)[:-10]
    count = HEADS_LIMIT // len(half)
    with running_server(tmp_path / "root", head_seconds=600) as server, ExitStack() as held:
        ordinary = held.enter_context(server.connection())
        ordinary.sendall(GET)
        attackers = []
        for _ in range(2 * count):
            connection = held.enter_context(server.connection())
            connection.sendall(half)
            attackers.append(connection)
        eventually(lambda: sum(has_answer(connection) for connection in attackers) >= count)
        answers = [reply(connection) for connection in attackers if has_answer(connection)]
        assert {(503, "busy")} == {(answer.status, answer.slug) for answer in answers}
        ordinary.sendall(b"\r\n")
        assert 200 == reply(ordinary).status


def has_answer(connection: socket.socket) -> bool:
    """Return whether bytes have come on a connection."""
    return bool(select.select([connection], [], [], 0)[0])


def test_http_1_0_with_a_transfer_encoding_is_refused(server: RunningServer) -> None:
    """Such a request has two readings, so its connection is not kept."""
    lines = b"Authorization: Bearer %s\r\nConnection: keep-alive\r\n" % server.token.encode()
    for method in (b"POST /native/v1/chunks/missing", b"GET /healthz"):
        head = method + b" HTTP/1.0\r\nHost: server\r\n" + lines + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert 400 == answer_to(server, head + REQUEST).status


# Tests of bodies and of the requests that follow them.


def statuses(connection: socket.socket, count: int) -> list[bytes]:
    """Return the statuses of the answers to pipelined requests."""
    received = b""
    connection.settimeout(SECONDS)
    with suppress(TimeoutError):
        while received.count(b"HTTP/1.1 ") < count and (piece := connection.recv(1 << 16)):
            received += piece
    return [after[:3] for after in received.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("size", [0, 1, 3, 64, 1000])
def test_requests_after_a_body_of_chunks_are_found(server: RunningServer, size: int) -> None:
    """The end of the body is found wherever the bytes are cut, also if the body has empty lines in it."""
    body = (b"\r\n\r\n0\r\n\r\n" * 100)[:size]
    pieces = [body[place : place + 7] for place in range(0, len(body), 7)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: x\r\n\r\n"
    head = b"POST /nothing HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = (head + chunked) * 2 + REQUEST
    for cut in {1, len(head), len(head) + 1, *range(len(head) + len(chunked) - 6, len(head) + len(chunked) + 6), len(sent)}:
        with server.connection() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(sent[:cut])
            connection.sendall(sent[cut:])
            assert [b"404", b"404", b"200"] == statuses(connection, 3)


def test_requests_after_a_body_of_a_known_size_are_found(server: RunningServer) -> None:
    """The body of a form and that of a batch are read in different ways."""
    form_body = form("a.bin", octets(1, 300_000))
    lines = [b"Host: server", b"Authorization: Bearer " + server.token.encode()]
    heads = [
        [b"POST /v3/pipeline_files HTTP/1.1", *lines, b"Content-Type: multipart/form-data; boundary=boundary-of-tests"],
        [b"POST %s/chunks/missing HTTP/1.1" % API.encode(), *lines],
        [b"POST %s/chunks HTTP/1.1" % API.encode(), *lines],
    ]
    bodies = [form_body, bytes(32), wire.encode_batch_header([])]
    sent = b"".join(
        b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", b""]) + body + REQUEST
        for head, body in zip(heads, bodies, strict=True)
    )
    with server.connection() as connection:
        connection.sendall(sent)
        assert [b"201", b"200", b"200", b"200", b"200", b"200"] == statuses(connection, 6)


def test_a_thousand_pipelined_requests_are_answered(server: RunningServer) -> None:
    """They are answered one after the other."""
    with server.connection() as connection:
        connection.sendall(REQUEST * 1000)
        received = b""
        while received.count(b'{"status": "ok"}') < 1000:
            received += connection.recv(1 << 16)
        assert 1000 == received.count(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_client_that_reads_no_answer_is_ended(impatient: RunningServer) -> None:
    """The answers are small, so that one of them waits in the process as a whole. The client moves too few bytes in time."""
    for number in range(200):
        impatient.upload(f"{number}-{'n' * 200}", b"x")
    lines = f"Host: server\r\nAuthorization: Bearer {impatient.token}\r\n\r\n"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.port))
        connection.settimeout(0)
        request = f"GET {API}/files HTTP/1.1\r\n{lines}".encode()
        unsent = request * 1000

        def is_ended() -> bool:
            nonlocal unsent
            try:
                unsent = unsent[connection.send(unsent) :] or request
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            return False

        eventually(is_ended)
    assert is_served(impatient)


@pytest.mark.parametrize("lines", [b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_requests_after_a_wish_for_another_protocol_are_heads_too(server: RunningServer, lines: bytes) -> None:
    """The wish is ignored, and the bytes after it are not kept for another protocol."""
    with server.connection() as connection:
        connection.sendall(GET + lines + b"\r\n" + REQUEST + GET + b"X: " + b"x" * HEAD_LIMIT)
        assert [b"200", b"200", b"431"] == statuses(connection, 3)


@pytest.mark.slow
def test_the_body_of_a_stranger_is_not_read_for_long(server: RunningServer) -> None:
    """The answer 401 can be read, and the connection is closed although the client would send for ever."""
    head = f"POST {API}/files HTTP/1.1\r\nHost: server\r\nContent-Length: {1 << 20}\r\n\r\n"
    with server.connection() as connection:
        connection.sendall(head.encode() + bytes(1000))
        assert 401 == reply(connection).status
        ended = False
        while not ended:
            try:
                connection.sendall(b"x")
                connection.settimeout(0.05)
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True


# Tests of the number of connections.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["connections_limit", "address_connections_limit"])
def test_connections_above_a_limit_are_refused(tmp_path: Path, name: str) -> None:
    """The refused ones read the setting that refuses them. Those within the limit are served, and an end makes room."""
    in_all, of_address = (5, 100) if name == "connections_limit" else (100, 5)
    with running_server(tmp_path / "root", connections_limit=in_all, address_connections_limit=of_address) as server:
        with ExitStack() as held:
            within = [held.enter_context(server.connection()) for _ in range(5)]
            for connection in within:
                connection.sendall(REQUEST)
                assert 200 == reply(connection).status
            for _ in range(10):
                with server.connection() as above:
                    answer = reply(above)
                    assert (503, "busy", "1") == (answer.status, answer.slug, answer.headers["Retry-After"])
                    assert f"setting {name} " in answer.json["detail"]
            within[0].sendall(REQUEST)
            assert 200 == reply(within[0]).status
        eventually(lambda: is_served(server))


def was_told(connection: socket.socket) -> bool:
    """Return whether a refused connection got an answer before its end."""
    connection.settimeout(SECONDS)
    try:
        return bool(connection.recv(1))
    except ConnectionError:
        return False


def test_many_refused_connections_are_closed_at_once(tmp_path: Path) -> None:
    """Only some of them are told why. So refused ones take few descriptors."""
    with running_server(tmp_path / "root", connections_limit=1) as server, ExitStack() as held:
        first = held.enter_context(server.connection())
        first.sendall(REQUEST)
        assert 200 == reply(first).status
        before = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        refused = [held.enter_context(server.connection()) for _ in range(600)]
        first.sendall(REQUEST)
        assert 200 == reply(first).status
        # The event loop accepts hundreds before it closes the first of them.
        eventually(lambda: len(list(Path(f"/proc/{server.pid}/fd").iterdir())) - before <= 300)
        assert sum(was_told(connection) for connection in refused) < 600


@pytest.mark.slow
@pytest.mark.parametrize("is_reset", [False, True])
def test_refused_connections_whose_clients_have_gone_log_nothing(tmp_path: Path, *, is_reset: bool) -> None:
    """The server cannot end its answer on them. `running_server` fails if it logs that as an error."""
    with running_server(tmp_path / "root", connections_limit=1) as server, server.connection() as first:
        for _ in range(300):
            with server.connection() as refused:
                refused.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_reset, 0))
        first.sendall(REQUEST)
        assert 200 == reply(first).status
