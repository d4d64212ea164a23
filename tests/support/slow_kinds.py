"""The kinds of slow clients: what each one sends, and how it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

from filestore.format.codec import Codec
from filestore.http.wire import API
from tests.support.frames import contents, encoded
from tests.support.generator import octets
from tests.support.server import FORM, SECONDS, RunningServer, batch, form
from tests.support.tiny_chunks import repeated
from tests.support.uploads import PARTS, PartsUpload

MIB = 1 << 20
FILE_CHUNKS = 100_000
"""Chunks in the manifest of the file that slow readers ask for, which has 100 GB. All of them are one chunk."""

Bytes = Callable[[int], bytes]
"""A function that returns what the client with a number sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowKind:
    """A kind of slow client."""

    name: str
    prepare: Callable[[RunningServer, int], Bytes]
    """Stores what so many clients ask for, and returns what each of them sends, as fast as the server takes it."""
    trickle: bytes = b""
    """What a client sends after that, over and over, a byte a step."""
    is_reader: bool = False
    """Whether its request is answered. Then it reads the first bytes of the answer, and goes on with a byte a step."""
    first_read: int = 1
    """The most bytes of the answer that it reads at once."""


def _nothing_of_value(_: RunningServer, __: int) -> Bytes:
    return lambda _: b""


def _half_heads(_: RunningServer, __: int) -> Bytes:
    head = b"GET /healthz HTTP/1.1\r\nHost: server\r\n" + b"".join(b"X-%d: %s\r\n" % (at, b"x" * 8000) for at in range(126))
    return lambda _: head


def _small_half_heads(_: RunningServer, __: int) -> Bytes:
    head = b"GET /healthz HTTP/1.1\r\nHost: server\r\n" + b"".join(b"X-%d: %s\r\n" % (at, b"x" * 8000) for at in range(3))
    return lambda _: head


def _idle(_: RunningServer, __: int) -> Bytes:
    return lambda _: b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n"


def _unread_answers(server: RunningServer, _: int) -> Bytes:
    record = _repeated_file(server, "unread.bin", 32)
    fields = [f"X-{number}: {'x' * 8000}" for number in range(3)]
    request = _request(server, "GET", f"/{record['path']}") + 64 * _request(server, "GET", "/healthz", *fields)
    return lambda _: request


def _slow_forms(server: RunningServer, _: int) -> Bytes:
    body = form("slow.bin", octets(30, 2 * MIB))[: MIB + 1000]
    request = _request(
        server, "POST", "/v3/pipeline_files", f"Content-Length: {8 * MIB}", f"Content-Type: {FORM['Content-Type']}"
    )
    return lambda _: request + body


def _batch_readers(server: RunningServer, _: int) -> Bytes:
    frames = [encoded(content, codec=Codec.RAW) for content in contents(64, size=MIB // 16, seed=31)]
    assert 200 == server.put(frames).status
    digests = b"".join(frame.digest for frame in frames) * 16
    request = _request(server, "POST", f"{API}/chunks/get", f"Content-Length: {len(digests)}")
    return lambda _: request + digests


def _file_readers(server: RunningServer, _: int) -> Bytes:
    path = _repeated_file(server, "large.bin", FILE_CHUNKS)["path"]
    request = _request(server, "GET", f"/{path}")
    return lambda _: request


def _manifest_readers(server: RunningServer, _: int) -> Bytes:
    digest = _repeated_file(server, "large.bin", FILE_CHUNKS)["digest"]
    request = _request(server, "GET", f"{API}/manifests/{digest}")
    return lambda _: request


def _batch_senders(server: RunningServer, _: int) -> Bytes:
    frames = [encoded(content, codec=Codec.RAW) for content in contents(16, size=MIB // 4, seed=32)]
    body = batch(frames)
    request = _request(server, "POST", f"{API}/chunks", f"Content-Length: {len(body)}")
    return lambda _: request + body[: MIB // 2 + 1000]


def _part_senders(server: RunningServer, count: int) -> Bytes:
    upload = PartsUpload(server, "slow-parts.bin")
    content = octets(33, MIB // 2)
    paths = []
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        for number in range(count):
            # No two clients send the same part.
            question = json.dumps({**upload.ids, "part_num": number + 1})
            connection.request("POST", f"{PARTS}/presigned-url", question, server.headers)
            paths.append(urlsplit(json.loads(connection.getresponse().read())["upload_url"]).path)
    return lambda number: _request(server, "PUT", paths[number], f"Content-Length: {MIB}") + content


def _repeated_file(server: RunningServer, name: str, count: int) -> dict[str, str]:
    """Return the record of a file that has one chunk `count` times, so that it takes little space."""
    found = server.ask("GET", f"{API}/files/find?name={name}")
    if found.status != 200:
        chunk = bytes(MIB)
        assert 200 == server.put([encoded(chunk)]).status
        found = server.commit(repeated(chunk, count).encoded, name=name)
        assert found.status in {200, 201}, found.body
    record: dict[str, str] = found.json
    return record


def _request(server: RunningServer, method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: server", f"Authorization: Bearer {server.token}", *headers, "", ""]
    return "\r\n".join(lines).encode()


KINDS = {
    kind.name: kind
    for kind in (
        SlowKind(name="large half heads", prepare=_half_heads),
        SlowKind(name="half heads", prepare=_small_half_heads),
        SlowKind(name="trickled heads", prepare=_nothing_of_value, trickle=b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000),
        SlowKind(name="idle connections", prepare=_idle, is_reader=True, first_read=4096),
        SlowKind(name="unread answers", prepare=_unread_answers),
        SlowKind(name="senders of batches", prepare=_batch_senders, trickle=b"x"),
        SlowKind(name="senders of parts", prepare=_part_senders, trickle=b"x"),
        SlowKind(name="forms", prepare=_slow_forms, trickle=b"x"),
        SlowKind(name="readers of batches", prepare=_batch_readers, is_reader=True),
        SlowKind(name="readers of files", prepare=_file_readers, is_reader=True),
        SlowKind(name="readers of manifests", prepare=_manifest_readers, is_reader=True),
    )
}
"""All kinds, by name."""
