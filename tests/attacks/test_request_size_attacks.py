"""Requests that are small for a client and large for a server: their answers, their memory and their time are bounded."""

from __future__ import annotations

import random
import select
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import ChunksMissing
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http.server.body.connection import PIECE
from filestore.http.server.body.forms import FAST_LIMIT, FAST_WRITE_SIZE
from filestore.http.server.context import RequestContext
from filestore.http.wire import API
from filestore.system.buffers import Budget
from tests.support.process_memory import peak_growth
from tests.support.server import FORM, RunningServer, eventually, form, reply, running_server
from tests.support.tiny_chunks import TINY_COUNT

MIB = 1 << 20
ENDLESS = "Content-Length: 1073741824"
FORMS = "/v3/pipeline_files"
FORM_HEAD = f"Content-Type: {FORM['Content-Type']}"
PART = b'--boundary-of-tests\r\nContent-Disposition: form-data; name="a"\r\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the default limits, which must log nothing about these attacks."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def send_until_answered(connection: socket.socket, pieces: Iterable[bytes], *, pause_seconds: float = 0) -> int:
    """Send pieces until an answer begins to arrive. Return how many were sent."""
    sent = 0
    for piece in pieces:
        if select.select([connection], [], [], pause_seconds)[0]:
            break
        try:
            connection.sendall(piece)
        except ConnectionError:
            break
        sent += 1
    return sent


def unread(server: RunningServer) -> int:
    """Return how many bytes the system holds that the server has not read yet."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[4].partition(":")[2], 16) for line in lines if line[1].endswith(f":{server.port:04X}"))


def manifest_of_absent_chunks() -> bytes:
    """Return the largest manifest. It is that of a file of 1.8 TiB."""
    raw = random.Random(1).randbytes(TINY_COUNT * DIGEST_SIZE)
    digests = (Digest(raw[start : start + DIGEST_SIZE]) for start in range(0, len(raw), DIGEST_SIZE))
    return Manifest.build((Chunk(digest, MIB) for digest in digests), chunking_version=CHUNKING_VERSION).encoded


@pytest.mark.slow
def test_a_huge_manifest_of_absent_chunks(server: RunningServer) -> None:
    """The answer lists 4,096 of 1.9 million chunks, in 0.3 MiB. The server holds the manifest, and little more."""
    encoded = manifest_of_absent_chunks()
    for _ in range(2):
        with peak_growth(server.pid) as grown:
            answer = server.commit(encoded, name="huge.bin")
        assert (409, "chunks-missing") == (answer.status, answer.slug)
        assert ChunksMissing.limit == len(set(answer.json["digests"]))
        assert len(answer.body) < MIB // 2
        assert grown() < len(encoded) + 64 * MIB


@pytest.mark.parametrize(
    ("begin", "pieces", "status"),
    [
        (b"", repeat(b"--boundary-of-tests\r\n\r\n\r\n" * 1000, 150), 413),
        (b"", repeat(PART + b"\r\n\r\n", 150_000), 413),
        (b"", (b'%sX: "%s"\r\n\r\n\r\n' % (PART, b"x" * 8000) for _ in count()), 413),
        (PART, (b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in count()), 400),
        (PART, (b"X-%d: \r\n" % number for number in count()), 400),
        (PART + b"X: ", repeat(b"x" * 4096), 400),
        (PART + b"\r\n", repeat(b"x" * (64 << 10)), 413),
        (b"", (b"before the first part %d\r\n" % number for number in count()), 413),
        (b"", repeat(b"before the first part"), 400),
        (b"", repeat(b"--boundary-of-tests\r\n"), 400),
        (PART + b"\r\n", repeat(b"\r\n--boundary-of-test" * 1000), 413),
        (b'--boundary-of-tests\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n', repeat(b"x" * 64), 400),
    ],
    ids=[
        "150,000 empty parts",
        "150,000 parts with a name",
        "endless parts with headers",
        "endless headers of a part",
        "endless small headers",
        "an endless header",
        "an endless value",
        "endless lines before the first part",
        "an endless line",
        "a boundary again and again",
        "almost a boundary again and again",
        "an endless name of a charset",
    ],
)
def test_a_form_without_end(server: RunningServer, begin: bytes, pieces: Iterator[bytes], status: int) -> None:
    """What is not the file is limited: the headers and values of all parts to 64 KiB, and their number to 1,000."""
    with (
        peak_growth(server.pid) as grown,
        server.begin("POST", FORMS, FORM_HEAD, ENDLESS, body=begin) as connection,
    ):
        send_until_answered(connection, pieces)
        answer = reply(connection)
    assert (status, "limit-exceeded" if status == 413 else "invalid-input") == (answer.status, answer.slug), answer.body
    assert grown() < 8 * MIB


def test_the_largest_form_is_accepted(server: RunningServer) -> None:
    """A form of 1,000 parts, and one with almost 64 KiB of values."""
    for fields in ({str(number): "" for number in range(999)}, {"other": "x" * 65_000}):
        assert 201 == server.ask("POST", FORMS, form("x", b"y", after=fields), headers=FORM).status
    answer = server.ask("POST", FORMS, form("x", b"y", after={str(number): "" for number in range(1000)}), headers=FORM)
    assert (413, "limit-exceeded", 1001) == (answer.status, answer.slug, answer.json["found"])


def test_200_slow_forms(server: RunningServer) -> None:
    """Each has sent almost 1 MiB, and waits. Only a few of them may hold this much in memory (I6)."""
    head = form("slow.bin", b"").partition(b"\r\n--boundary-of-tests--")[0]
    with ExitStack() as stack, peak_growth(server.pid) as grown:
        for _ in range(200):
            stack.enter_context(server.begin("POST", FORMS, FORM_HEAD, "Content-Length: 2000000", body=head + bytes(1000 << 10)))
        eventually(lambda: not unread(server))
        assert 201 == server.upload("small.bin", b"x").status
        assert grown() < FAST_LIMIT * FAST_WRITE_SIZE + 200 * (512 << 10)


@pytest.mark.slow
def test_a_form_that_arrives_byte_by_byte(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The least rate is that of the whole body: a client does not get the full time again for each part."""
    with running_server(tmp_path_factory.mktemp("served") / "root", stall_seconds=1) as server:
        part = b"--boundary-of-tests\r\n\r\n\r\n"
        with server.begin("POST", FORMS, FORM_HEAD, ENDLESS) as connection:
            assert send_until_answered(connection, repeat(part, 1000), pause_seconds=0.9) < 30


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("initiate-multipart-upload", b'{"name": "%s"}' % (b"x" * MIB), 413),
        ("initiate-multipart-upload", b'{"name": "%s"}' % ("\u00e9" * 30_000).encode(), 400),
        ("initiate-multipart-upload", b'{"name": [%s0]}' % (b"0," * 30_000), 400),
        ("presigned-url", b'{"part_num": %s}' % (b"9" * 60_000), 400),
        ("presigned-url", b"[" * 60_000, 400),
        ("finalise-multipart-upload", b'{"x": [%s[]]}' % (b"[]," * 600_000), 413),
        ("finalise-multipart-upload", b'{"x": %s}' % (b'{"":' * 400_000), 413),
    ],
    ids=["a huge name", "a long name", "a list as a name", "a long number", "deep lists", "many lists", "deep objects"],
)
def test_json_that_grows(server: RunningServer, path: str, body: bytes, status: int) -> None:
    """Values in memory and answers are bounded, although an empty list takes 20 times its bytes."""
    with peak_growth(server.pid) as grown:
        answer = server.ask("POST", f"{FORMS}/{path}", body)
    assert status == answer.status, answer.body[:1000]
    assert len(answer.body) < MIB // 2
    assert grown() < 16 * MIB


@pytest.mark.parametrize(
    "ids",
    [b'"%s"' % (b"x" * 3_000_000), b"[]," * 900_000 + b"[]", b'"x",' * 70_000 + b'"x"'],
    ids=["a huge id", "many lists", "many ids"],
)
def test_ids_of_records_that_grow(server: RunningServer, ids: bytes) -> None:
    """The list of ids is not parsed if it has too many values, and an answer does not repeat what is not one."""
    with peak_growth(server.pid) as grown:
        answer = server.ask("POST", f"{API}/files/freed", b'{"ids": [%s]}' % ids)
    assert (400, True) == (answer.status, len(answer.body) < 1000), answer.body[:1000]
    assert grown() < 32 * MIB


@pytest.mark.slow
async def test_a_body_in_pieces_of_two_bytes() -> None:
    """A small body is collected in one buffer: as objects of their own, its pieces would take 20 times their bytes."""

    class Trickling:
        """What a request needs to collect its body, which arrives in pieces of two bytes."""

        request = SimpleNamespace(content_length=PIECE)
        request_limit = MIB
        budget = Budget(MIB)

        async def pieces(self) -> AsyncIterator[bytes]:
            for number in range(PIECE // 2):
                yield number.to_bytes(4, "little")[:2]

    tracemalloc.start()
    try:
        async with RequestContext.whole_body(cast(RequestContext, Trickling()), what="the body", limit=MIB) as body:
            assert PIECE == len(body)
            assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
