"""Servers lie, or are not filestore servers.

The client refuses their answers, bounds its memory, and protects its token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from filestore.cache import Cache
from filestore.core.digest import DIGEST_SIZE, Digest, chunk_digest, manifest_digest
from filestore.core.links import Link
from filestore.core.manifest import Chunk, Manifest
from filestore.core.paths import file_path
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, Reference
from filestore.errors import (
    ChunksMissing,
    FilestoreError,
    Interrupted,
    InvalidBatch,
    InvalidManifest,
    InvalidSetting,
    InvalidUrl,
    LimitExceeded,
    ServerError,
    Stalled,
    Unauthorized,
    UnexpectedRecord,
    UnknownFormat,
    Unreachable,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import FRAME_LIMIT, Frame
from filestore.http import wire
from filestore.http.client import repository as remote
from filestore.http.client.repository import RemoteRepository
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from tests.support.tls import server_tls, trusting

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PLANES = ["http", "https"]
"""The two ways to send frames: without and with TLS."""

ONE, TWO = chunk_digest(b"one"), chunk_digest(b"two")


@asynccontextmanager
async def facing(
    handler: Handler,
    *,
    stall_seconds: float = 30,
    retry_seconds: float = 0.5,
    plane: str = "http",
    path: str = "",
    port: int = 0,
) -> AsyncIterator[RemoteRepository]:
    """Yield a client of a server that answers everything by `handler`."""
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    tls = server_tls() if plane == "https" else None
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    repository = RemoteRepository(
        f"{plane}://localhost:{port}{path}",
        token="secret",
        stall_seconds=stall_seconds,
        retry_seconds=retry_seconds,
        first_pause_seconds=0,
    )
    if plane == "https":
        trusting(repository)
    try:
        yield repository
    finally:
        await repository.close()
        await runner.cleanup()


async def ask(repository: RemoteRepository, verb: str) -> None:
    """Ask one question of that kind."""
    if verb == "get":
        await repository.get([ONE], memoryview(bytearray(10)))
    elif verb == "put":
        await repository.put([Frame(ONE, b"frame")])
    elif verb == "missing":
        await repository.missing([ONE])
    else:
        await repository.identity()


def answering(body: bytes, *, status: int = 200, content_type: str = wire.OCTETS) -> Handler:
    """Return a handler that always gives the same answer."""

    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, content_type=content_type)

    return handle


def batch(*entries: tuple[Digest, int], frames: bytes = b"") -> bytes:
    """Return a batch as a server answers it."""
    return wire.encode_batch_header([wire.BatchEntry(*entry) for entry in entries]) + frames


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", Interrupted),
        (batch((ONE, 3), (TWO, 3))[:-1], Interrupted),
        (batch((ONE, 3), (TWO, 3), frames=b"abcde"), InvalidBatch),
        (batch((TWO, 3), (ONE, 3), frames=b"abcdef"), InvalidBatch),
        (batch((ONE, 3), (ONE, 3), frames=b"abcdef"), InvalidBatch),
        (batch((ONE, 3), frames=b"abc") + bytes(36), InvalidBatch),
        (batch((ONE, 3), (TWO, 1000), frames=bytes(1003)), InvalidBatch),
        (batch((ONE, 3), (TWO, FRAME_LIMIT + 1)), InvalidBatch),
        (batch((ONE, 3), (TWO, 3), frames=bytes(1000)), Interrupted),
    ],
)
@pytest.mark.parametrize("plane", PLANES)
async def test_a_batch_that_is_not_what_was_asked_for(body: bytes, expected: type[FilestoreError], plane: str) -> None:
    """A batch that is short, swapped, doubled, too large or longer than it says is refused.

    The buffer is never overrun.
    """
    buffer = bytearray(100)
    async with facing(answering(body), plane=plane) as repository:
        with pytest.raises(expected):
            await repository.get([ONE, TWO], memoryview(buffer)[:50])
    assert bytes(50) == bytes(buffer[50:])


async def test_a_manifest_of_another_digest() -> None:
    """A manifest whose bytes have another digest is refused."""
    manifest = Manifest.build([], chunking_version=CHUNKING_VERSION)
    async with facing(answering(manifest.encoded)) as repository:
        assert manifest.encoded == await repository.manifest(manifest.digest)
        with pytest.raises(InvalidManifest):
            await repository.manifest(manifest_digest(b"other"))


@pytest.mark.parametrize(
    ("plane", "size", "expected"),
    [
        ("http", 1 << 40, LimitExceeded),
        ("http", None, LimitExceeded),
        ("https", 1 << 40, LimitExceeded),
        ("https", None, LimitExceeded),
    ],
)
async def test_an_answer_without_end(plane: str, size: int | None, expected: type[FilestoreError]) -> None:
    """An answer is read only up to its limit, with a stated length or in chunks."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = size
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 16))

    async with facing(endless, plane=plane) as repository:
        with pytest.raises(expected):
            await repository.missing([ONE])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"id": 1, "namespace": "../x", "chunking_version": 0, "format": 1}',
        b'{"id": "%s", "namespace": "x", "chunking_version": 1, "format": 1, "upload_limit": "1"}' % (b"0a" * 16),
        b"{" * 10_000,
    ],
)
async def test_what_is_not_a_filestore_server(body: bytes) -> None:
    """A web server that answers 200 to everything gives one sentence, and no traceback."""
    async with facing(answering(body)) as repository:
        with pytest.raises(ServerError):
            await repository.identity()
        with pytest.raises(ServerError):
            await repository.record(Reference(name="x"))


@pytest.mark.parametrize(("version", "chunking_version"), [(2, CHUNKING_VERSION), (1, CHUNKING_VERSION + 1)])
async def test_a_server_of_another_version(version: int, chunking_version: int) -> None:
    """An unknown format or chunking version is refused before anything is sent."""
    body = f'{{"id": "0", "namespace": "default", "chunking_version": {chunking_version}, "format": {version}}}'.encode()
    async with facing(answering(body)) as repository:
        with pytest.raises(UnknownFormat):
            await repository.identity()


@pytest.mark.parametrize("verb", ["identity", "get", "put"])
@pytest.mark.parametrize("plane", PLANES)
async def test_a_redirect_gets_no_token(verb: str, plane: str) -> None:
    """The token is for this server only. A redirect is an error, and is never followed."""
    visited = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        visited.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with facing(redirect, plane=plane) as repository:
        with pytest.raises(ServerError):
            await ask(repository, verb)
    assert [wire.API + {"identity": "/repository", "get": "/chunks/get", "put": "/chunks"}[verb]] == visited


@pytest.mark.parametrize(
    "facts",
    [
        "{}",
        '{"where": "{0.__class__}", "found": "{where.__class__}"}',
        '{"where": [], "found": "2", "known": "1"}',
        '{"where": "x", "found": true, "known": "1"}',
        '{"where": "x", "found": null, "known": "1"}',
        '{"facts": ["x", "2", "1"]}',
    ],
)
async def test_a_problem_whose_facts_make_no_sense(facts: str) -> None:
    """It becomes a FilestoreError all the same. Its text is never used as a format."""
    said = {"type": "urn:filestore:error:unknown-format", "detail": "{0.x}", **json.loads(facts)}
    body = json.dumps(said).encode()
    async with facing(answering(body, status=418, content_type=wire.PROBLEM)) as repository:
        with pytest.raises(ServerError) as caught:
            await repository.missing([ONE])
    assert "{0.x}" in str(caught.value)


@pytest.mark.parametrize("verb", ["missing", "get", "put"])
@pytest.mark.parametrize("plane", PLANES)
async def test_a_stranger_is_told_so(verb: str, plane: str) -> None:
    """401 always means that the token is wrong, whatever the document says."""
    async with facing(answering(b"{}", status=401), plane=plane) as repository:
        with pytest.raises(Unauthorized):
            await ask(repository, verb)


@pytest.mark.slow
@pytest.mark.parametrize("plane", PLANES)
async def test_what_may_pass_is_tried_again_and_what_may_not_is_not(plane: str) -> None:
    """Every verb retries after 503. 404 and 422 are final answers."""
    statuses: list[int] = []

    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(status=statuses.pop(0), body=b"")

    async with facing(handle, plane=plane, retry_seconds=60) as repository:
        statuses[:] = [503, 502, 200]
        assert [] == await repository.missing([ONE])
        statuses[:] = [503, 200]
        await repository.put([Frame(ONE, b"frame")])
        for status in (404, 422, 500):
            for verb in ("missing", "get", "put"):
                statuses[:] = [status]
                with pytest.raises(ServerError):
                    await ask(repository, verb)
                assert [] == statuses


@pytest.mark.parametrize("plane", PLANES)
async def test_a_cut_batch_is_asked_for_from_where_it_was_cut(plane: str) -> None:
    """Whole frames are not requested again. The counts are reduced by the bytes of the partial one."""
    asked: list[bytes] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        wanted = await request.read()
        asked.append(wanted)
        digests = [Digest(wanted[start : start + 32]) for start in range(0, len(wanted), 32)]
        response = web.StreamResponse()
        frames = b"".join(b"12345" for _ in digests)
        answer = batch(*((digest, 5) for digest in digests), frames=frames)
        response.content_length = len(answer)
        await response.prepare(request)
        await response.write(answer if len(asked) > 1 else answer[:-3])
        if len(asked) == 1:
            assert request.transport is not None
            request.transport.close()
        return response

    moved: list[int] = []
    async with facing(handle, plane=plane) as repository:
        frames = await repository.get([ONE, TWO], memoryview(bytearray(10)), moved=moved.append)
    assert [b"12345", b"12345"] == [bytes(frame or b"") for frame in frames]
    assert [ONE + TWO, TWO] == asked
    assert 10 == sum(moved)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["get", "put", "missing"])
@pytest.mark.parametrize("plane", PLANES)
async def test_a_server_that_moves_no_byte(verb: str, plane: str) -> None:
    """A stalled connection is dropped after the limit. After a retry, the error says that it stalled."""
    requests = 0

    async def silent(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        if requests == 1:
            return web.Response(body=b"")
        assert request.transport is not None
        while not request.transport.is_closing():
            await asyncio.sleep(0.01)
        return web.Response()

    # The first answer, too, must come within the time of a stall.
    async with facing(silent, stall_seconds=1, plane=plane) as repository:
        assert [] == await repository.missing([ONE])
        with pytest.raises(Stalled):
            await ask(repository, verb)
    assert requests > 2


@pytest.mark.parametrize("verb", ["identity", "get", "put"])
async def test_a_server_that_is_not_there_is_reported_at_once(verb: str) -> None:
    """There are no retries for a server that was never reached."""
    async with facing(answering(b"")) as repository:
        address = repository.location
    repository = RemoteRepository(address, token=None)
    with pytest.raises(Unreachable):
        await ask(repository, verb)
    await repository.close()


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENTRY = batch((ONE, 3), frames=b"abc")
REFUSED = (Interrupted, LimitExceeded, InvalidBatch)
"""Each verb has a limit of its own; and a frame that has arrived is not asked for again, though its answer was cut."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", Interrupted),
        (b"SSH-2.0-OpenSSH\r\n", Interrupted),
        (HEAD + b"Content-Length: 43\r\nContent-Length: 5\r\n\r\n" + ENTRY, ServerError),
        (HEAD + b"Content-Length: 43\r\nTransfer-Encoding: chunked\r\n\r\n" + ENTRY, ServerError),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2b\r\n" + ENTRY + b"\r\n0\r\n\r\n", ServerError),
        (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ServerError),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 43\r\n\r\n2b\r\n" + ENTRY + b"\r\n0\r\n\r\n", ServerError),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2b\r\n" + ENTRY + b"\r\n0\r\n\r\n", ServerError),
        (CHUNKED + b"0x2b\r\n" + ENTRY + b"\r\n0\r\n\r\n", Interrupted),
        (CHUNKED + b"-2b\r\n" + ENTRY + b"\r\n0\r\n\r\n", Interrupted),
        (CHUNKED + b"2b\n" + ENTRY + b"\n0\n\n", Interrupted),
        (CHUNKED + b"2a\r\n" + ENTRY + b"\r\n0\r\n\r\n", REFUSED),
        (CHUNKED + b"2b\r\n" + ENTRY + b"\r\n", REFUSED),
        (CHUNKED + b"2b\r\n" + ENTRY + b"\r\n0\r\n", REFUSED),
        (CHUNKED + b"f" * 16 + b"\r\n" + ENTRY, REFUSED),
        (CHUNKED + b"0" * 5000 + b"2b\r\n" + ENTRY + b"\r\n0\r\n\r\n", Interrupted),
        (CHUNKED + b"2b;" + b"x" * 5000 + b"\r\n" + ENTRY + b"\r\n0\r\n\r\n", Interrupted),
        (CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", Interrupted),
        (HEAD + b"\r\n" + ENTRY, ServerError),
        (HEAD + b"Content-Length: 43\nX: y\r\n\r\n" + ENTRY, Interrupted),
        (HEAD + b"Content-Length: 999999999999999999\r\n\r\n" + ENTRY, (Interrupted, LimitExceeded)),
        (HEAD + b"X: y\r\n" * 20_000, Interrupted),
        (HEAD + b"X: " + b"y" * 100_000, Interrupted),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, Interrupted),
        (b"HTTP/1.1 500 X\r\nContent-Length: 999999999999\r\n\r\n", LimitExceeded),
        (b"HTTP/1.1 401 X\r\n\r\n", Unauthorized),
        (b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Unauthorized),
        (b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}", Interrupted),
        (b"HTTP/1.1 204 X\r\n\r\n", ServerError),
    ],
)
@pytest.mark.parametrize("verb", ["get", "put"])
async def test_answers_that_two_readers_could_take_differently(
    answer: bytes, expected: type[FilestoreError] | tuple[type[FilestoreError], ...], verb: str
) -> None:
    """Wrong lengths, endless heads and other protocols give a FilestoreError, and memory only for bytes that came."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        repository = RemoteRepository(url, token="secret", retry_seconds=0.5)
        with pytest.raises(expected):
            await ask(repository, verb)
        await repository.close()


async def test_frames_are_asked_for_in_one_way(unused_tcp_port: int) -> None:
    """A request is the same with and without TLS, also below a path of a proxy."""
    said = {}
    for plane in PLANES:
        requests: list[tuple[str, str, bytes, dict[str, str | None]]] = []

        async def handle(request: web.Request, requests: list[Any] = requests) -> web.StreamResponse:
            fields = ("Host", "Authorization", "Content-Type", "Content-Length", "Transfer-Encoding")
            kept = {name: request.headers.get(name) for name in fields}
            requests.append((request.method, request.raw_path, await request.read(), kept))
            return web.Response(body=batch((ONE, 3), frames=b"abc"))

        async with facing(handle, plane=plane, path="/b%C3%A4se//", port=unused_tcp_port) as repository:
            for verb in ("put", "get"):
                await ask(repository, verb)
        said[plane] = requests
    assert 2 == len(said["https"])
    assert said["https"] == said["http"]


@pytest.mark.parametrize("token", ["", "two words", "line\r\nX: y", "näme", "\x00"])
def test_tokens_that_would_be_other_headers(token: str) -> None:
    """The error comes before anything is sent, and does not contain the token."""
    with pytest.raises(InvalidSetting) as caught:
        RemoteRepository("http://host", token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/",
        "host:8080",
        "http://",
        "http://user:secret@host/",
        "http://host/?token=x",
        "http://host/#x",
        "http://[::1",
        "http://host:port/",
    ],
)
def test_urls_that_name_no_server(url: str) -> None:
    """The error comes before anything is sent. A password in a URL is refused, because logs would show it."""
    with pytest.raises(InvalidUrl):
        RemoteRepository(url, token=None)


RECORD = Record(
    id="file_" + "0a" * 16,
    name="model.bin",
    digest=ONE,
    size=3,
    kind=Kind.FILE,
    namespace="default",
    created_at=1_700_000_000_000_000,
    updated_at=1_700_000_000_000_000,
)
IDENTITY: dict[str, Any] = {"id": "0a" * 16, "namespace": "default", "chunking_version": CHUNKING_VERSION, "format": 1}


def as_answer(values: object) -> Handler:
    """Return a server that answers everything with these values."""
    return answering(json.dumps(values).encode(), content_type="application/json")


@pytest.mark.parametrize(
    "reference",
    [
        Reference(id="file_" + "0b" * 16),
        Reference(digest=TWO),
        Reference(name="another.bin"),
        Reference(digest=ONE, name="another.bin"),
        Reference(digest=TWO, name="model.bin"),
        Reference.parse("file_" + "0b" * 16),
        Reference.parse(str(TWO)),
        File(digest=str(TWO)).reference,
        File(path=file_path(TWO, "model.bin")).reference,
    ],
)
async def test_another_record_than_was_asked_for(reference: Reference) -> None:
    """The client checks id, digest, path or name of an answer against the request."""
    async with facing(as_answer(RECORD.as_json())) as repository:
        with pytest.raises(UnexpectedRecord):
            await repository.record(reference)


async def test_record_of_another_file_after_a_commit() -> None:
    """The client checks that the recorded file is the one that was pushed."""
    manifest = Manifest.build([], chunking_version=CHUNKING_VERSION)
    right = replace(RECORD, digest=manifest.digest, size=0)
    for wrong in (RECORD, replace(right, name="another.bin"), replace(right, kind=Kind.DIRECTORY)):
        async with facing(as_answer(wrong.as_json())) as repository:
            with pytest.raises(UnexpectedRecord):
                await repository.commit(manifest.encoded, name=RECORD.name)
    async with facing(as_answer(right.as_json())) as repository:
        assert right == await repository.commit(manifest.encoded, name=RECORD.name)


async def test_another_record_than_was_to_be_removed() -> None:
    """An answer with another record is an error."""
    async with facing(as_answer(RECORD.as_json())) as repository:
        with pytest.raises(UnexpectedRecord):
            await repository.remove("file_" + "0b" * 16)


PATHS = ["../../victim", "/etc/victim", "..", "", "file_../../victim", "file_" + "0A" * 16, "file_" + "0a" * 16 + "\n", 7, None]


@pytest.mark.parametrize("text", PATHS)
async def test_ids_that_would_be_paths(text: object, tmp_path: Path) -> None:
    """A bad id of a record or a repository is refused, and no cache makes a path of it."""
    for values in (RECORD.as_json() | {"id": text}, IDENTITY | {"id": text}, IDENTITY | {"namespace": text}):
        async with facing(as_answer(values)) as repository:
            cache = Cache(tmp_path / "cache", repository)
            for wanted in (File(id="file_" + "0a" * 16), File(digest=str(ONE)), Directory(digest=str(ONE))):
                with pytest.raises(ServerError):
                    await cache.resolve(wanted)
            await cache.close()
        assert not list(tmp_path.rglob("*victim*"))
    assert {"cache"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../x"},
        {"name": "a/b"},
        {"name": "a\x00b"},
        {"size": -1},
        {"size": 1 << 63},
        {"size": "3"},
        {"size": 3.5},
        {"kind": "link"},
        {"namespace": "../x"},
        {"digest": "0" * 63},
        {"updated_at": "soon"},
        {"updated_at": "2024-01-01T00:00:00"},
    ],
)
async def test_records_that_cannot_be(changed: dict[str, object]) -> None:
    """Each value of a record is checked on arrival."""
    async with facing(as_answer(RECORD.as_json() | changed)) as repository:
        with pytest.raises(ServerError):
            await repository.record(Reference(id=RECORD.id))


@pytest.mark.parametrize("text", PATHS)
async def test_ids_in_a_cache_that_would_be_paths(text: object, tmp_path: Path, local_repository: Repository) -> None:
    """Ids that another program wrote into a cache are checked when they are read."""
    identity = await local_repository.identity()
    cache = Cache(tmp_path / "cache", local_repository)
    await cache.cached(File(digest=str(ONE)))
    (remembered,) = (tmp_path / "cache" / "repositories").iterdir()
    remembered.write_text(json.dumps(identity._asdict() | {"id": text}))
    again = Cache(tmp_path / "cache", local_repository)
    await again.cached(File(digest=str(ONE)))
    assert again._entry_store is not None
    assert tmp_path / "cache" / identity.id / identity.namespace == again._entry_store.root

    records = again._entry_store.root / "records"
    records.mkdir(parents=True, exist_ok=True)
    (records / f"{RECORD.id}.json").write_text(json.dumps(RECORD.as_json() | {"id": text}))
    assert await again.cached(File(id=RECORD.id)) is None
    await again.close()
    await cache.close()


async def test_digests_that_nobody_asked_about() -> None:
    """An answer about missing or damaged chunks may contain only digests of the question."""
    async with facing(answering(bytes(TWO))) as repository:
        with pytest.raises(InvalidBatch):
            await repository.missing([ONE])
        with pytest.raises(InvalidBatch):
            await repository.verify_chunks([ONE])


async def test_list_without_end() -> None:
    """A list that never reaches older records ends in an error, not in a loop."""
    page = {"files": [RECORD.as_json()]}
    async with facing(as_answer(page)) as repository:
        assert [RECORD] == await repository.records(limit=1)
        with pytest.raises(ServerError):
            await repository.records(limit=1, before=RECORD.updated_at)
        with pytest.raises(ServerError):
            await repository.records(limit=0)


def _line(position: object, **changes: object) -> bytes:
    return json.dumps({"position": position, **RECORD.as_json(), **changes}).encode() + b"\n"


@pytest.mark.parametrize(
    "listing",
    [
        pytest.param(_line(2) + _line(2), id="repeated"),
        pytest.param(_line(2) + _line(3), id="other order"),
        pytest.param(_line(2) + _line(1)[:-30], id="torn line"),
        pytest.param(_line(2) + _line(1)[:-1], id="no line end"),
        pytest.param(_line(2) + b"\n", id="empty line"),
        pytest.param(_line(2) + b"[" * 100_000, id="endless line"),
        pytest.param(_line(2) + _line("1"), id="position"),
        pytest.param(_line(2) + _line(1, name="../name"), id="name"),
        pytest.param(_line(2) + b"\xff\n", id="no text"),
        pytest.param(json.dumps({"files": []}).encode(), id="a page"),
    ],
)
async def test_listing_that_cannot_be_right(listing: bytes) -> None:
    """A listing with a wrong line or a wrong order ends in an error at that line, and takes little memory."""
    async with facing(answering(listing)) as repository:
        found = []
        with pytest.raises(ServerError, match="its list of files is"):
            async for record in repository.iter_records():
                found.append(record)  # noqa: PERF401  # it fails in between
        assert len(found) <= 1


async def test_listing_larger_than_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing has a limit. It is not written to the disk without end."""
    monkeypatch.setattr(remote, "LISTING_LIMIT", 1000)
    async with facing(answering(_line(2) * 10)) as repository:
        with pytest.raises(LimitExceeded):
            await anext(repository.iter_records())


@pytest.mark.parametrize(
    "path",
    [
        "signed/../../x",
        "signed/default/1/" + "0" * 64 + "/../victim",
        "signed/default/1/" + "0" * 63 + "/" + RECORD.run_path,
        "signed/default/1/" + "0" * 64 + "/" + RECORD.run_path + "\r\nX: y",
        "signed/Default/1/" + "0" * 64 + "/" + RECORD.run_path,
        "https://example.org/",
    ],
)
async def test_signed_paths_that_lead_elsewhere(path: str) -> None:
    """Only a signed path of the right form and of the requested record becomes a URL."""
    async with facing(as_answer({"path": path})) as repository:
        with pytest.raises((ServerError, UnexpectedRecord)):
            await repository.sign(RECORD.id)
    other = replace(RECORD, id="file_" + "0b" * 16)
    async with facing(as_answer({"path": "signed/default/1/" + "0" * 64 + "/" + other.run_path})) as repository:
        with pytest.raises(UnexpectedRecord):
            await repository.sign(RECORD.id)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "link_../../victim"},
        {"id": 7},
        {"file_id": "file_0123"},
        {"name": "../name"},
        {"name": "n" * 2000},
        {"expires_at": "tomorrow"},
        {"made_by": None},
        {"path": ["signed"]},
    ],
)
async def test_links_that_cannot_be_right(changed: dict[str, object]) -> None:
    """A link with a wrong value is neither listed nor made."""
    link = Link(
        "link_" + "0" * 16, RECORD.id, RECORD.name, 1, 2, "laptop", "signed/default/1/" + "0" * 64 + "/" + RECORD.run_path
    )
    async with facing(as_answer(link.as_json())) as repository:
        assert link == await repository.make_link(RECORD.id, seconds=1)
    async with facing(as_answer(link.as_json() | changed)) as repository:
        with pytest.raises(ServerError):
            await repository.make_link(RECORD.id, seconds=1)
    async with facing(as_answer({"links": [link.as_json() | changed]})) as repository:
        with pytest.raises(ServerError):
            await repository.links()


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("body", [b"[" * 200_000, json.dumps(IDENTITY).replace("1}", "1e999}").encode()])
async def test_json_that_python_cannot_take(body: bytes, status: int) -> None:
    """JSON that is nested too deep, or has an impossible number, gives a FilestoreError."""
    async with facing(answering(body, status=status, content_type="application/json")) as repository:
        with pytest.raises(FilestoreError):
            await repository.identity()


@pytest.mark.parametrize("changed", [{"name": ["x"]}, {"name": None}, {"size": True}, {"digest": 7}])
async def test_values_of_another_type(changed: dict[str, object]) -> None:
    """No value of a wrong type is converted to a text or a number."""
    async with facing(as_answer(RECORD.as_json() | changed)) as repository:
        with pytest.raises(ServerError):
            await repository.record(Reference(id=RECORD.id))


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1969-12-31T23:59:59+00:00"])
async def test_times_that_no_clock_shows(moment: str) -> None:
    """Such times could not be printed or stored."""
    async with facing(as_answer(RECORD.as_json() | {"updated_at": moment})) as repository:
        with pytest.raises(ServerError):
            await repository.record(Reference(id=RECORD.id))


async def test_file_that_is_called_like_the_digest_that_was_asked_for() -> None:
    """The answer to a digest must have that digest. Only the answer to a name may have another one."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "digest" in request.query:
            return web.json_response(RECORD.as_json() | {"name": str(TWO)})
        return web.json_response({"type": "urn:filestore:error:not-found", "reference": "x"}, status=404)

    async with facing(answer) as repository:
        with pytest.raises(UnexpectedRecord):
            await repository.record(Reference.parse(str(TWO)))


async def test_commit_that_is_answered_with_another_size() -> None:
    """The size of a record must be that of its manifest."""
    manifest = Manifest.build([], chunking_version=CHUNKING_VERSION)
    async with facing(as_answer(replace(RECORD, digest=manifest.digest, size=77).as_json())) as repository:
        with pytest.raises(UnexpectedRecord):
            await repository.commit(manifest.encoded, name=RECORD.name)


async def test_record_of_another_namespace() -> None:
    """A token sees only its own namespace."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(IDENTITY if request.path.endswith("/repository") else RECORD.as_json() | {"namespace": "other"})

    async with facing(answer) as repository:
        await repository.identity()
        with pytest.raises(UnexpectedRecord):
            await repository.record(Reference(id=RECORD.id))


@pytest.mark.parametrize("size", [0, 1 << 40], ids=["60,000 digests", "more than is accepted"])
async def test_an_earlier_server_that_lists_all_missing_chunks(size: int) -> None:
    """Servers before this limit list every missing chunk of a manifest.

    The client keeps as many as an error may have, and asks about all chunks where the answer is too large to be read.
    """
    absent = [chunk_digest(number.to_bytes(4, "little")) for number in range(60_000)]
    manifest = Manifest.build((Chunk(digest, 4) for digest in absent), chunking_version=CHUNKING_VERSION)
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path.endswith("/missing"):
            asked.append(len(body) // DIGEST_SIZE)
            return web.Response(body=body, content_type=wire.OCTETS)
        if size:
            response = web.StreamResponse(status=409, headers={"Content-Type": wire.PROBLEM})
            response.content_length = size
            await response.prepare(request)
            return response
        document = {"type": "urn:filestore:error:chunks-missing", "digests": [str(digest) for digest in absent]}
        return web.json_response(document, status=409, content_type=wire.PROBLEM)

    async with facing(answer) as repository:
        with pytest.raises(ChunksMissing) as caught:
            await repository.commit(manifest.encoded, name="name")
    assert tuple(str(digest) for digest in absent[: ChunksMissing.limit]) == caught.value.digests
    assert asked in ([[60_000]] if size else [[], [60_000]])


@pytest.mark.parametrize("fact", [7, "../x", "0" * 63])
async def test_missing_chunks_that_are_none(tmp_path: Path, fact: object) -> None:
    """The push looks up the chunks to send again by their digests."""
    source = tmp_path / "source"
    source.write_bytes(b"abc")

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/repository"):
            return web.json_response(IDENTITY)
        if request.path.endswith("/missing"):
            return web.Response(body=b"", content_type=wire.OCTETS)
        return web.json_response({"type": "urn:filestore:error:chunks-missing", "digests": [fact]}, status=409)

    async with facing(answer) as repository:
        with pytest.raises(ServerError):
            await push(repository, source)
