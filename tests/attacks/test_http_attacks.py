from __future__ import annotations

import json
import re
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

import pytest

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import CHUNK_LIMIT, MANIFEST_LIMIT
from filestore.format.codec import Codec
from filestore.http import wire
from filestore.http.server.app import ROUTES
from filestore.http.server.route import Route
from filestore.http.wire import API, BatchEntry
from tests.support.frames import contents, encoded, frames, manifest
from tests.support.generator import octets
from tests.support.server import FORM, OTHER_TOKEN, TOKEN, RunningServer, batch, form, reply, running_server

MEMORY_LIMIT = 16 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with little memory, which must log nothing about these attacks."""
    root = tmp_path_factory.mktemp("served") / "root"
    with running_server(root, memory_limit=MEMORY_LIMIT, guesses_limit=100_000) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that waits only for half a second."""
    with running_server(tmp_path_factory.mktemp("served") / "root", stall_seconds=1) as server:
        yield server


@pytest.fixture(scope="module")
def path(server: RunningServer) -> str:
    """Return the path of a file of the default namespace."""
    return f"/{server.upload('secret.bin', octets(1, 100_000)).json['path']}"


def example(route: str, path: str) -> str:
    """Return a path that matches a route."""
    if route.startswith("/{path"):
        return path
    route = re.sub(r":[^}]+", "", route)
    known = {"digest": path.split("/")[-2], "id": f"file_{'0' * 32}", "upload_id": "0" * 32}
    hub = {"type": "models", "repository": "team/model", "revision": "main", "path": "a.txt"}
    lfs = {"oid": "0" * 64, "size": 1}
    return route.format(**known, **hub, **lfs, number=1, size_limit=1, name="a")


# Tests of tokens.


@pytest.mark.slow
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer None",
        "Bearer wrong",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff\xfe",
        f"Bearer {'x' * 8000}",
    ],
)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_nobody_is_admitted_without_a_token(server: RunningServer, path: str, route: Route, authorization: str | None) -> None:
    """Every route answers only that, and does nothing else."""
    headers = {"Authorization": authorization} if authorization is not None else {}
    body = form("intruder.bin", b"x") if route.method == "POST" else b""
    answer = server.ask(route.method, example(route.path, path), body, headers=FORM | headers, token=None)
    assert (401, "unauthorized") == (answer.status, answer.slug)
    assert 'Bearer realm="filestore"' == answer.headers["WWW-Authenticate"]
    assert "intruder.bin" not in {file["name"] for file in server.ask("GET", f"{API}/files").json["files"]}


def test_a_token_of_another_namespace_shows_nothing(server: RunningServer, path: str) -> None:
    """It cannot read by id, digest, name or path, or read single chunks. It cannot remove or sign anything."""
    digest = path.split("/")[-2]
    record = server.ask("GET", f"{API}/files/find?digest={digest}").json
    kept = server.ask("GET", f"{API}/manifests/{digest}").body
    (chunk,) = manifest([octets(1, 100_000)]).chunks
    for asked in (
        path,
        f"{API}/files/{record['id']}",
        f"{API}/files/find?digest={digest}",
        f"{API}/files/find?name=secret.bin",
        f"{API}/files/find?digest={digest}&name=secret.bin",
        f"{API}/manifests/{digest}",
        f"{API}/chunks/{chunk.digest}",
    ):
        assert 200 == server.ask("GET", asked).status
        assert 404 == server.ask("GET", asked, token=OTHER_TOKEN).status
    assert [] == server.ask("GET", f"{API}/files", token=OTHER_TOKEN).json["files"]
    assert 404 == server.ask("DELETE", f"{API}/files/{record['id']}", token=OTHER_TOKEN).status
    assert chunk.digest == server.ask("POST", f"{API}/chunks/missing", chunk.digest, token=OTHER_TOKEN).body
    got = server.ask("POST", f"{API}/chunks/get", chunk.digest, token=OTHER_TOKEN).body
    assert wire.encode_batch_header([BatchEntry(chunk.digest, 0)]) == got
    stolen = server.ask("POST", f"{API}/files", kept, headers={wire.NAME_HEADER: "mine"}, token=OTHER_TOKEN)
    assert (409, [str(chunk.digest)]) == (stolen.status, stolen.json["digests"])
    assert 200 == server.ask("GET", path).status


# Tests of paths and names.


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        "/pipeline_files/../../../../etc/passwd",
        "/pipeline_files/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/pipeline_files/..%2f..%2f..%2fetc%2fpasswd",
        "/pipeline_files/%252e%252e/etc/passwd",
        "/pipeline_files//etc/passwd",
        "/pipeline_files/",
        "/pipeline_files/%00",
        "/pipeline_files/DIGEST/../format",
        "/pipeline_files/DIGEST/..",
        "/pipeline_files/DIGEST/%2e",
        "/pipeline_files/DIGEST/secret.bin/",
        "/pipeline_files/DIGEST//secret.bin",
        "/pipeline_files/DIGEST/x/secret.bin",
        "/pipeline_files/DIGEST/secret.bin%00",
        "/pipeline_files/DIGEST/secret.bin%0d%0aX-Injected:%201",
        "/pipeline_files/DIGEST/%ff%fe",
        "/pipeline_files/DIGEST/%",
        "/pipeline_files/DIGEST/%zz",
        "/PIPELINE_FILES/DIGEST/secret.bin",
        "/native/v1/../v1/format",
        "/native/v1/manifests/..%2f..%2fformat",
        "/native/v1/chunks/../../format",
        "/native/v1/files/..",
        "/native/v1/files/%2e%2e%2fx",
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:1/etc/passwd",
        "/" + "a/" * 3000,
        "/%2e" * 1000,
        "*",
    ],
)
def test_no_path_leads_out_of_the_files(server: RunningServer, path: str, target: str) -> None:
    """Paths are looked up as names of records, never on a disk."""
    asked = target.replace("DIGEST", hashed_part(path))
    answer = server.ask("GET", asked)
    assert answer.status in {400, 404}
    assert b"root:" not in answer.body
    assert "X-Injected" not in answer.headers


def hashed_part(path: str) -> str:
    """Return the folders of a file's path."""
    return path.removeprefix("/pipeline_files/").rpartition("/")[0]


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fx", "..", ".", "", "a%2fb%2fc", "%00", "a%0d%0aX-Injected:%201", "%ff", "%ed%a0%80", "n" * 256, "%C3%A9" * 128],
)
def test_no_bad_name_is_kept(server: RunningServer, name: str) -> None:
    """A name that is not valid on every machine is refused, in a header and in a form."""
    chunk = contents(1)[0]
    server.put([encoded(chunk)])
    answer = server.commit(manifest([chunk]).encoded, name=name)
    assert (400, "invalid-name") == (answer.status, answer.slug)
    answer = server.ask("POST", f"/v3/pipeline_files?name={name}", form("own.bin", b"x"), headers=FORM)
    # In a query, bytes that are not UTF-8 are replaced before our code sees them.
    assert answer.status == 400 or name in {"%ff", "%ed%a0%80"}


# Tests of sizes.


def test_counts_beyond_their_limits_are_refused(server: RunningServer) -> None:
    """The request is refused by its head if the head states the size. Otherwise it is refused when more bytes come."""
    for method, target, limit in (
        ("POST", f"{API}/chunks/missing", wire.DIGESTS_LIMIT * DIGEST_SIZE),
        ("POST", f"{API}/chunks/get", wire.BATCH_COUNT_LIMIT * DIGEST_SIZE),
        ("POST", f"{API}/chunks", wire.BATCH_LIMIT),
        ("POST", f"{API}/files", MANIFEST_LIMIT),
    ):
        with server.begin(method, target, f"Content-Length: {limit + 1}", f"{wire.NAME_HEADER}: x") as connection:
            assert 413 == reply(connection).status
        with server.begin(method, target, f"Content-Length: {10**18}", f"{wire.NAME_HEADER}: x") as connection:
            assert 413 == reply(connection).status
    too_many = octets(1, wire.BATCH_COUNT_LIMIT * DIGEST_SIZE + DIGEST_SIZE)
    with server.begin("POST", f"{API}/chunks/get", "Transfer-Encoding: chunked", body=chunked(too_many)) as connection:
        assert 413 == reply(connection).status


def chunked(body: bytes) -> bytes:
    """Return a body whose length is not announced."""
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0\0",
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", wire.BATCH_COUNT_LIMIT + 1) + bytes(100),
        struct.pack("<I", 5),
        wire.encode_batch_header([BatchEntry(frames(1)[0].digest, 0xFFFFFFFF)]),
        wire.encode_batch_header([BatchEntry(frames(1)[0].digest, 0)]),
        batch(frames(1)) + b"more",
        batch(frames(2))[:-1],
    ],
    ids=["torn", "4 billion", "too many", "no entries", "4 GiB", "empty", "too long", "too short"],
)
def test_a_batch_that_lies_about_itself_is_refused(server: RunningServer, body: bytes) -> None:
    """Its Content-Length is checked against its header."""
    answer = server.ask("POST", f"{API}/chunks", body)
    assert (422, "invalid-batch") == (answer.status, answer.slug)


def test_a_frame_that_says_to_unpack_to_4_gib_is_refused(server: RunningServer) -> None:
    """The stated size is refused before any memory is taken for it."""
    frame = frames(1, seed=11)[0]
    lying = frame._replace(data=struct.pack("<B3xI", Codec.ZSTD, 0xFFFFFFFF) + bytes(frame.data[8:]))
    answer = server.put([lying])
    assert (422, "invalid-frame") == (answer.status, answer.slug)


def test_a_head_without_end_is_refused(server: RunningServer) -> None:
    """The head has one long line, or many lines."""
    for head in (
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(4000)),
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(1000)) + b"\r\n",
    ):
        with server.connection() as connection:
            connection.sendall(head)
            assert refused(connection)


def refused(connection: socket.socket) -> bool:
    """Return whether the server answers with an error, or closes the connection."""
    try:
        return reply(connection).status >= 400
    except (HTTPException, ConnectionError):
        return True


# Tests of framing.


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Content-Length: -1",),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: 5, 5",),
        ("Content-Length : 5",),
        ("X: a\0b",),
    ],
)
def test_two_readings_of_one_request_are_refused(server: RunningServer, lines: tuple[str, ...]) -> None:
    """A request that a proxy and this server could read differently is refused."""
    with server.begin("POST", f"{API}/chunks/missing", *lines, body=b"0\r\n\r\n" * 10) as connection:
        assert refused(connection)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [b"zz\r\n", b"-5\r\n", b"ffffffffffffffffffffffff\r\n", b"5;" + b"x" * 100_000, b"5\r\nabcdefgh\r\n", b"5 5\r\n"],
    ids=["no number", "negative", "huge", "a long extension", "longer than said", "two numbers"],
)
def test_broken_chunks_of_a_body_are_refused(impatient: RunningServer, body: bytes) -> None:
    """The chunked transfer coding is broken. The request ends there, or the connection is closed."""
    with impatient.begin("POST", f"{API}/chunks/missing", "Transfer-Encoding: chunked", body=body) as connection:
        assert refused(connection)


def test_a_batch_of_unknown_length_is_refused(server: RunningServer) -> None:
    """RFC 9110, section 15.5.12: the answer is 411, because the length of a batch bounds it."""
    with server.begin("POST", f"{API}/chunks", "Transfer-Encoding: chunked", body=chunked(batch(frames(1)))) as connection:
        assert 411 == reply(connection).status


def test_a_compressed_body_is_taken_as_it_is(server: RunningServer) -> None:
    """It is not unpacked, so no small request becomes a large one."""
    digest = frames(1)[0].digest
    answer = server.ask("POST", f"{API}/chunks/missing", digest * 2, headers={"Content-Encoding": "gzip"})
    assert (200, {b"", bytes(digest)}) == (answer.status, {answer.body} | {b"", bytes(digest)})


# Tests of slow peers.


def test_slow_senders_hold_no_memory(server: RunningServer) -> None:
    """I6: arriving bytes take nothing of the budget, whatever was announced, by any number of senders."""
    large = encoded(octets(12, CHUNK_LIMIT), codec=Codec.RAW)
    content = octets(13, 8 << 20)
    with ExitStack() as held:
        for number in range(12):
            announced, body = batch([large]), batch([large])[: 3 << 20]
            target, lines = f"{API}/chunks", [f"Content-Length: {len(announced)}"]
            if number % 3 == 1:
                target, lines = f"{API}/files", [f"Content-Length: {MANIFEST_LIMIT}", f"{wire.NAME_HEADER}: x"]
            if number % 3 == 2:
                target = "/v3/pipeline_files"
                lines = [f"Content-Length: {1 << 30}", f"Content-Type: {FORM['Content-Type']}"]
                body = form("slow.bin", content)[: 3 << 20]
            held.enter_context(server.begin("POST", target, *lines, body=body))
        assert {"kept": 1} == server.put([large]).json
        assert 201 == server.upload("meanwhile.bin", content).status


@pytest.mark.slow
def test_slow_readers_hold_no_memory(server: RunningServer) -> None:
    """I6: bytes that are decoded for a slow client are dropped, and decoded again when the client reads on."""
    content = octets(14, 12 << 20)
    target = f"/{server.upload('slow.bin', content).json['path']}"
    with ExitStack() as held:
        slow = [held.enter_context(server.begin("GET", target)) for _ in range(8)]
        # Each transfer has begun, and the client reads no more for now.
        assert [b"HTTP/1.1 200 OK"] * 8 == [connection.recv(15) for connection in slow]
        assert content == server.ask("GET", target).body
        large = encoded(octets(15, CHUNK_LIMIT), codec=Codec.RAW)
        assert {"kept": 1} == server.put([large]).json
        for connection in slow:
            received = b"HTTP/1.1 200 OK"
            while len(received.partition(b"\r\n\r\n")[2]) < len(content):
                received += connection.recv(1 << 20)
            assert content == received.partition(b"\r\n\r\n")[2]


def test_many_requests_at_once_on_one_connection(server: RunningServer) -> None:
    """All of them are answered, one after the other."""
    request = b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n"
    with server.connection() as connection:
        connection.sendall(request * 500)
        received = b""
        while received.count(b'{"status": "ok"}') < 500:
            received += connection.recv(1 << 16)


# Tests of ranges.


@pytest.mark.slow
@pytest.mark.parametrize(
    "header",
    [
        f"bytes={','.join(['0-'] * 1000)}",
        f"bytes={','.join(f'{n}-{n}' for n in range(1000))}",
        f"bytes=0-{10**30}",
        f"bytes={10**19}-{10**19 + 5}",
        "bytes=-99999999999999999999",
        "bytes=0--1",
        "bytes=18446744073709551615-18446744073709551616",
    ],
    ids=["all a thousand times", "a thousand", "no end", "far out", "from long before", "negative", "overflow"],
)
def test_ranges_cannot_be_abused(server: RunningServer, path: str, header: str) -> None:
    """An answer never has more bytes than the file."""
    answer = server.ask("GET", path, headers={"Range": header})
    assert answer.status in {200, 206, 416}
    assert len(answer.body) <= 100_000


# Tests of information about the server's machine.


@pytest.mark.slow
def test_a_failure_says_nothing_of_the_machine(tmp_path: Path) -> None:
    """The answer has no path and no traceback. It has an id, under which the log has both."""
    with running_server(tmp_path / "root", check=False) as server:
        staging = server.root / "tmp"
        shutil.rmtree(staging)
        staging.write_bytes(b"")
        answer = server.put([encoded(contents(1)[0])])
        request_id = answer.headers["X-Request-Id"]
        assert (500, wire.PROBLEM) == (answer.status, answer.headers["Content-Type"])
        said = json.dumps(answer.json)
        assert str(tmp_path) not in said
        assert "Traceback" not in said
        assert request_id in answer.json["detail"]
        assert "Python" not in answer.headers["Server"]
        status, log = server.stop()
    assert 0 == status
    assert f" failed, request {request_id}: " in log
    assert str(staging) in log
    assert TOKEN not in log


@pytest.mark.slow
def test_frames_cannot_be_asked_for_without_end(server: RunningServer) -> None:
    """A request may name only a limited number. Fewer of them are open at a time than files that a process may have."""
    frame = frames(1, seed=16)[0]
    server.put([frame])
    answer = server.ask("POST", f"{API}/chunks/get", frame.digest * wire.BATCH_COUNT_LIMIT)
    assert wire.batch_header_size(wire.BATCH_COUNT_LIMIT) + wire.BATCH_COUNT_LIMIT * len(frame.data) == len(answer.body)
