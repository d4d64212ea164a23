"""A server answers without end, without measure or with values that no server has.

The client ends, with a named error, with little memory and a few requests; nothing that the server says is printed as it is.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from typing import Any

import click
import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Manifest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import FilestoreError, ServerError, Stalled, UnexpectedRecord
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http import wire
from filestore.http.client.answers import DOCUMENT_LIMIT, PROBLEM_LIMIT
from filestore.http.client.channel import HEAD_LIMIT, INTERIM_LIMIT
from filestore.http.client.chunked import EXCESS_LIMIT, TRAILERS_LIMIT
from filestore.http.client.repository import RemoteRepository
from filestore_cli.plain_http import check_plain_http
from filestore_cli.settings import Settings
from tests.support.commands import Home
from tests.support.hostile_server import (
    IDENTITY,
    RECORD,
    Answer,
    Asked,
    HostileServer,
    answering,
    by_path,
    document,
    head,
    hostile_server,
)
from tests.support.tls import trusting

SCHEMES = ["http", "https"]
MIB = 1 << 20
CHUNKED = head(None, fields=b"Transfer-Encoding: chunked\r\n")
_MEASURED = """
import asyncio, os, sys
from filestore.errors import FilestoreError
from filestore.http.client.repository import RemoteRepository
from tests.support.process_memory import memory

def peak():
    return memory(os.getpid(), "VmHWM")

async def main():
    repository = RemoteRepository(sys.argv[1], token=None, stall_seconds=30, retry_seconds=0.1, first_pause_seconds=0)
    ask = {
        "identity": repository.identity,
        "records": repository.records,
        "usage": repository.usage,
        "missing": lambda: repository.missing([]),
        "listing": lambda: anext(repository.iter_records()),
    }[sys.argv[2]]
    before = peak()
    try:
        await ask()
    except FilestoreError as error:
        print(type(error).__name__, peak() - before)
    await repository.close()

asyncio.run(main())
"""


def a_client(server: HostileServer, *, stall_seconds: float = 30) -> RemoteRepository:
    """Return a client of the server."""
    repository = RemoteRepository(
        server.url, token="secret", stall_seconds=stall_seconds, retry_seconds=0.1, first_pause_seconds=0
    )
    return trusting(repository) if server.url.startswith("https") else repository


def peak_of(server: HostileServer, verb: str) -> tuple[str, int]:
    """Ask by a process of its own. Return the name of its error, and the bytes that its peak of memory grew by."""
    certificate = str(Path(__file__).parents[1] / "support/localhost.pem")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, server.url, verb],
        env={"SSL_CERT_FILE": certificate, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    name, size = done.stdout.split()
    return name, int(size)


# Answers without measure.


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("start", [b'{"files": [', b"[" * 100, b'{"id": "'], ids=["records", "nested", "text"])
def test_190_mib_of_json(scheme: str, start: bytes) -> None:
    """A document that is announced with 190 MiB, or comes in chunks without end, ends after 4 MiB and takes 40 MiB.

    One without any size is not read.
    """
    answers: list[tuple[Iterable[bytes], str]] = [
        (_endless(head(190 * MIB), start), "LimitExceeded"),
        (_endless(head(None), start), "ServerError"),
        (_endless(CHUNKED, start, chunked=True), "LimitExceeded"),
        ([CHUNKED + b"%x\r\n" % (190 * MIB), start * (190 * MIB // len(start))], "LimitExceeded"),
    ]
    for said, expected in answers:
        with hostile_server(lambda _, said=said: said, tls=scheme == "https") as server:  # type: ignore[misc]
            name, size = peak_of(server, "records")
        assert name == expected
        assert size < 40 * MIB
        # The rest is in the buffers of both kernels.
        assert server.sent < DOCUMENT_LIMIT + 32 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[]", b"{}", b"0", b'{"a":{}}', b'[""]', b"1.5"])
def test_document_of_a_million_values(item: bytes) -> None:
    """A document of 4 MiB that is all small values would take 30 times its size as objects of Python. It is not parsed."""
    body = b'{"files": [' + b",".join([item] * ((DOCUMENT_LIMIT - 20) // (len(item) + 1))) + b"]}"
    with hostile_server(lambda _: answering(body)) as server:
        name, size = peak_of(server, "records")
    assert (name, size < 40 * MIB) == ("ServerError", True)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_document_of_just_too_many_bytes(scheme: str) -> None:
    """A document of 4 MiB is read, and one of a byte more is refused; a problem has a quarter of that."""
    padded = json.dumps(IDENTITY).encode().ljust(DOCUMENT_LIMIT)
    with hostile_server(lambda _: answering(padded + b" " * (len(server.asked) - 1)), tls=scheme == "https") as server:
        assert _ask(server, lambda repository: repository.identity()) == ""
        assert _ask(server, lambda repository: repository.identity()) == "LimitExceeded"
    problem = json.dumps({"type": "urn:filestore:error:not-found", "reference": "x"}).encode().ljust(PROBLEM_LIMIT)
    with hostile_server(
        lambda _: answering(problem + b" " * (len(server.asked) - 1), status="404 X"), tls=scheme == "https"
    ) as server:
        assert _ask(server, lambda repository: repository.record(Reference(id=RECORD.id))) == "NotFound"
        assert _ask(server, lambda repository: repository.record(Reference(id=RECORD.id))) == "LimitExceeded"


def test_problem_with_texts_of_any_length() -> None:
    """The message of an error is at most a few thousand characters long, whatever the server wrote."""
    long = "x" * 500_000
    for said in (
        {"type": "urn:filestore:error:not-found", "reference": long},
        {"type": "urn:filestore:error:no-such", "detail": long},
        {"type": "urn:filestore:error:no-such", "detail": [long]},
        {"type": [long], "detail": {long: long}},
    ):
        with hostile_server(lambda _, said=said: document(said, status="404 X")) as server:  # type: ignore[misc]
            message = _message(server, lambda repository: repository.record(RECORD.id))
        assert 0 < len(message) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("line", [b"X: y\r\n", b"X: " + b"y" * 4000 + b"\r\n", b"X-%d: y\r\n"], ids=["short", "long", "names"])
def test_head_without_end(scheme: str, line: bytes) -> None:
    """A head that never ends is refused after 64 KiB."""

    def endless(_: Asked) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        for number in count():
            yield b"".join(line.replace(b"%d", b"%d" % (number * 100 + part)) for part in range(100))

    with hostile_server(endless, tls=scheme == "https") as server:
        name, size = peak_of(server, "identity")
    assert name == "Interrupted"
    assert size < 24 * MIB
    assert server.sent < HEAD_LIMIT + 32 * MIB


def test_interim_answers_without_end() -> None:
    """After 32 interim answers the client gives up. It reads no more of them."""
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    with hostile_server(lambda _: interim * INTERIM_LIMIT + document(IDENTITY)) as server:
        assert _ask(server, lambda repository: repository.identity()) == ""
    with hostile_server(lambda _: interim * (INTERIM_LIMIT + 1) + document(IDENTITY)) as server:
        assert "interim" in _message(server, lambda repository: repository.identity())
    with hostile_server(lambda _: repeat(interim)) as server:
        name, size = peak_of(server, "identity")
    assert (name, size < 16 * MIB) == ("Interrupted", True)


# Answers that come slowly. The clock of the client runs: each byte comes as fast as the stall time needs to see it.


def _slowly(server: Callable[[], HostileServer], said: bytes, *, seconds: float) -> Iterator[bytes]:
    for byte in said:
        if server().is_over.wait(seconds):
            return
        yield bytes([byte])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "said",
    [
        head(10, fields=b"X: " + b"y" * 1000 + b"\r\n"),
        b"HTTP/1.1 103 Early Hints\r\nX: " + b"y" * 1000 + b"\r\n\r\n" + document(IDENTITY),
    ],
    ids=["head", "interim"],
)
async def test_head_that_comes_byte_by_byte(scheme: str, said: bytes) -> None:
    """A byte now and then does not keep a head going: it ends after the time of a stall."""
    with hostile_server(lambda _: _slowly(lambda: server, said, seconds=0.2), tls=scheme == "https") as server:
        repository = a_client(server, stall_seconds=1)
        with pytest.raises(Stalled):
            await repository.identity()
        await repository.close()
    assert server.sent < 40


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_document_that_comes_byte_by_byte(scheme: str) -> None:
    """A byte now and then does not keep an answer going."""
    body = document(IDENTITY).partition(b"\r\n\r\n")[2]

    def answer(_: Asked) -> Iterator[bytes]:
        yield head(len(body))
        for byte in body:
            if server.is_over.wait(0.2):
                return
            yield bytes([byte])

    with hostile_server(answer, tls=scheme == "https") as server:
        repository = a_client(server, stall_seconds=1)
        with pytest.raises(Stalled):
            await repository.identity()
        await repository.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_chunk_extension_that_comes_byte_by_byte(scheme: str) -> None:
    """What stands around the content does not keep an answer going, however fast it comes."""
    said = CHUNKED + b"2\r\n{}\r\n0;" + b"x" * 4000
    with hostile_server(lambda _: _slowly(lambda: server, said, seconds=0.01), tls=scheme == "https") as server:
        repository = a_client(server, stall_seconds=1)
        with pytest.raises(Stalled):
            await repository.identity()
        await repository.close()
    assert server.sent < 4000


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_late_document_that_goes_on_for_ever(scheme: str, *, is_chunked: bool) -> None:
    """Blanks before a late document keep it going, up to 64 KiB of them; after that, it must come as fast as any other."""

    def begun(size: int) -> bytes:
        return CHUNKED if is_chunked else head(size)

    def piece(content: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(content), content) if is_chunked else content

    few = json.dumps({"chunk_count": 1, "stored_size": 1, "is_held": False}).encode()

    def late(__: Asked) -> Iterator[bytes]:
        yield begun(12 + len(few) + 3000)
        # Longer than the time of a stall.
        for _ in range(12):
            if server.is_over.wait(0.25):
                return
            yield piece(b" ")
        yield piece(few + b" " * 3000) + b"0\r\n\r\n" * is_chunked

    def endless(_: Asked) -> Iterator[bytes]:
        yield begun(1 << 20) + piece(b" " * ((64 << 10) - 2))
        while not server.is_over.wait(0.25):
            yield piece(b" ")

    for said, expected in ((late, ""), (endless, "Stalled")):
        with hostile_server(said, tls=scheme == "https") as server:
            repository = a_client(server, stall_seconds=2)
            try:
                await repository.freed_by([RECORD.id])
                found = ""
            except FilestoreError as error:
                found = type(error).__name__
            await repository.close()
        assert found == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trailers_without_end(scheme: str) -> None:
    """Trailers after the last chunk end in an error, and take no memory."""

    def answer(_: Asked) -> Iterator[bytes]:
        yield CHUNKED + b"2\r\n{}\r\n0\r\n"
        for number in count():
            yield b"".join(b"X-%d: y\r\n" % (number * 100 + part) for part in range(100))

    with hostile_server(answer, tls=scheme == "https") as server:
        name, size = peak_of(server, "identity")
    assert name == "Interrupted"
    assert size < 24 * MIB
    assert server.sent < len(server.asked) * (TRAILERS_LIMIT + 32 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("line", [b"1;" + b"x" * 4000 + b"\r\n \r\n", b"1;" + b"x" * 50_000, b"0" * 50_000])
def test_chunk_extensions_without_end(scheme: str, line: bytes) -> None:
    """Lines that are much larger than the content between them end in an error. Otherwise 4 MiB of content could take 16 GiB."""
    with hostile_server(lambda _: _endless(CHUNKED, line), tls=scheme == "https") as server:
        name, size = peak_of(server, "identity")
    assert (name, size < 24 * MIB) == ("Interrupted", True)
    # It was asked several times, and the rest of each answer is in the buffers of both kernels.
    assert server.sent < len(server.asked) * (EXCESS_LIMIT + 32 * MIB)


# Values that no server has.

NUMBERS = ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1" * 400, "1" * 5000, "-1", "true", "1.5", '"1"', "null", "[]"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_no_server_has(number: str) -> None:
    """A number that is not finite, too large, negative or of another type is refused wherever a size or a count stands."""
    at = '"@"'
    counts = "record_count logical_size distinct_size frame_count needed_size free_size waiting_size manifests_size name_count"
    usage = dict.fromkeys([*counts.split(), "grace_seconds"], "@") | {"namespace": "default", "damaged": [], "names": []}
    record = RECORD.as_json() | {"size": "@"}
    documents: dict[str, tuple[Mapping[str, object], Callable[[RemoteRepository], Any]]] = {
        "record": (record, lambda repository: repository.record(RECORD.id)),
        "page": ({"files": [record]}, lambda repository: repository.records()),
        "versions": ({"files": [RECORD.as_json()], "total": "@"}, lambda repository: repository.versions(RECORD.id)),
        "freed": ({"chunk_count": 1, "stored_size": "@"}, lambda repository: repository.freed_by([RECORD.id])),
        "identity": (IDENTITY | {"chunking_version": "@"}, lambda repository: repository.identity()),
        "usage": (usage, lambda repository: repository.usage()),
    }
    if number != "null":  # no limit
        documents["limit"] = (IDENTITY | {"upload_limit": "@"}, lambda repository: repository.identity())
    for values, verb in documents.values():
        body = json.dumps(values).replace(at, number).encode()
        with hostile_server(lambda _, body=body: answering(body)) as server:  # type: ignore[misc]
            assert _ask(server, verb) in {"ServerError", "UnknownFormat"}


@pytest.mark.parametrize("number", ["1e400", "NaN", "1" * 400])
def test_problem_with_numbers_that_no_server_has(number: str) -> None:
    """Such a problem is an answer of an unknown program."""
    body = json.dumps({"type": "urn:filestore:error:limit-exceeded", "what": "x", "found": "@", "limit": 1}).replace(
        '"@"', number
    )
    with hostile_server(lambda _: answering(body.encode(), status="413 X")) as server:
        assert _ask(server, lambda repository: repository.record(RECORD.id)) == "ForeignAnswer"


TEXTS = ["", ".", "..", "../x", "a/b", "a\x00b", "a\nb", "\x1b[2J", "\x7f", "x" * 256, "\ud800", 7, None, ["x"], {"x": 1}, True]


@pytest.mark.parametrize("text", TEXTS)
def test_names_that_no_user_could_give(text: object) -> None:
    """Each text of a record passes the checks of what a user types."""
    for field in ("id", "name", "digest", "kind", "namespace", "created_at", "updated_at"):
        with hostile_server(lambda _, field=field: document(RECORD.as_json() | {field: text})) as server:  # type: ignore[misc]
            assert _ask(server, lambda repository: repository.record(RECORD.id)) in {"ServerError", "UnexpectedRecord"}


@pytest.mark.parametrize("verb", ["missing", "verify_chunks"])
def test_answers_about_chunks_that_nobody_asked_about(verb: str) -> None:
    """Digests that were not asked for, half a digest, and more digests than were asked for are refused."""
    one, two = chunk_digest(b"one"), chunk_digest(b"two")
    for body in (two, one + two, one + one[:5], one * 3, b"x"):
        with hostile_server(lambda _, body=body: answering(bytes(body), content_type=wire.OCTETS)) as server:  # type: ignore[misc]
            assert _ask(server, lambda repository: getattr(repository, verb)([one])) in {
                "InvalidBatch",
                "InvalidDigest",
                "LimitExceeded",
            }
            assert len(server.asked) <= 2


async def test_every_verb_checks_the_record_that_it_gets() -> None:
    """Another id, digest, name or namespace than was asked for is an error of its own."""
    manifest = Manifest.build([], chunking_version=CHUNKING_VERSION)
    right = replace(RECORD, digest=manifest.digest, size=0)
    by_id, by_content = Reference(id=right.id), Reference(digest=right.digest, name=right.name)

    async def check(answered: Record, *verbs: Callable[[RemoteRepository], Any]) -> None:
        said = document(answered.as_json())
        routes = {"/repository": document(IDENTITY), "/versions": document({"files": [answered.as_json()], "total": 1})}
        with hostile_server(by_path(routes | {"/files": said})) as server:
            repository = a_client(server)
            await repository.identity()
            for verb in verbs:
                with pytest.raises(UnexpectedRecord):
                    await verb(repository)
            await repository.close()

    for wrong in (replace(right, id="file_" + "0b" * 16), replace(right, namespace="other")):
        await check(wrong, lambda it: it.record(by_id), lambda it: it.remove(right.id), lambda it: it.versions(by_id))
    for wrong in (RECORD, replace(right, name="other.bin"), replace(right, namespace="other")):
        await check(
            wrong,
            lambda it: it.record(by_content),
            lambda it: it.versions(by_content),
            lambda it: it.commit(manifest.encoded, name=right.name),
        )


# Pages and listings.


@pytest.mark.parametrize(
    "page",
    [
        [RECORD, RECORD],
        [RECORD, replace(RECORD, id="file_" + "0b" * 16, namespace="other")],
        [replace(RECORD, namespace="other")],
    ],
    ids=["twice", "two namespaces", "another namespace"],
)
async def test_pages_that_cannot_be(page: list[Any]) -> None:
    """A page has each record once, and only records of the namespace of the token."""
    files = {"files": [record.as_json() for record in page], "total": len(page)}
    with hostile_server(by_path({"/repository": document(IDENTITY), "/": document(files)})) as server:
        repository = a_client(server)
        await repository.identity()
        for verb in (repository.records, lambda: repository.versions(Reference(name=RECORD.name))):
            with pytest.raises((ServerError, UnexpectedRecord)):
                await verb()
        await repository.close()


async def test_pages_that_do_not_advance() -> None:
    """A page that has the record before it again is an error, for files and for versions."""
    files = {"files": [RECORD.as_json()], "total": 5}
    with hostile_server(lambda _: document(files)) as server:
        repository = a_client(server)
        with pytest.raises(ServerError, match="not in order"):
            await repository.records(before=RECORD.updated_at)
        with pytest.raises(ServerError, match="not in order"):
            await repository.versions(RECORD.id, before=RECORD.updated_at)
        await repository.close()
    assert len(server.asked) == 2


def _line(position: int, **changes: object) -> bytes:
    return json.dumps({"position": position, **RECORD.as_json(), **changes}).encode() + b"\n"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (_line(2) + _line(1, namespace="other", id="file_" + "0b" * 16), "namespaces"),
        (_line(1 << 63), "order"),
        (_line(-1), "order"),
        (_line(2).replace(b": 2,", b": 1e400,"), "form"),
        (_line(2).replace(b": 3,", b": NaN,"), "form"),
    ],
)
async def test_lines_of_a_listing_that_cannot_be(lines: bytes, reason: str) -> None:
    """A position or a value out of range, and a second namespace, end the listing."""
    with hostile_server(lambda _: answering(lines, content_type=wire.LINES)) as server:
        repository = a_client(server)
        with pytest.raises(ServerError, match=reason):
            async for _ in repository.iter_records():
                pass
        await repository.close()


async def test_listing_of_another_namespace() -> None:
    """A token sees only its own namespace."""
    listing = answering(_line(1, namespace="other"), content_type=wire.LINES)
    with hostile_server(by_path({"/repository": document(IDENTITY), "/files": listing})) as server:
        repository = a_client(server)
        await repository.identity()
        with pytest.raises(UnexpectedRecord):
            await anext(repository.iter_records())
        await repository.close()


def _endless(start: bytes, item: bytes, *, chunked: bool = False) -> Iterator[bytes]:
    """Yield `start`, and then `item` without end."""
    yield start
    piece = item * (100_000 // len(item))
    while True:
        yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece


def _ask(server: HostileServer, verb: Callable[[RemoteRepository], Any]) -> str:
    """Return the name of the error with which a verb of a new client ends. Only errors of the library may leave it."""
    return _failure(server, verb).partition(" ")[0]


def _message(server: HostileServer, verb: Callable[[RemoteRepository], Any]) -> str:
    return _failure(server, verb).partition(" ")[2]


def _failure(server: HostileServer, verb: Callable[[RemoteRepository], Any]) -> str:
    async def ask() -> str:
        repository = a_client(server)
        try:
            await verb(repository)
        except FilestoreError as error:
            return f"{type(error).__name__} {error}"
        finally:
            await repository.close()
        return ""

    return asyncio.run(ask())


# What is printed.

FORGED = "model\u202ebin\x9b2K\x9b31m\u2028Removed everything.\u0085\ud83d\ude00"
"""A name that a record may have. Terminals act on some of its characters."""
FORGED_TEXT = f"\x1b[2J\x1b]0;x\x07{FORGED}\n\rError: forged\x00\x7f"


def _printed_by(home: Home, said: Answer, *arguments: str) -> str:
    """Run a command against a server. Return all that it prints; none of it is there to control a terminal."""
    with hostile_server(said) as server:
        done = home.run(*arguments, environ={"FILESTORE_URL": server.url, "FILESTORE_TOKEN": "secret"})
    printed = done.stdout + done.stderr
    assert all(letter.isprintable() or letter == "\n" for letter in printed), repr(printed)
    assert "Traceback" not in printed
    return printed


@pytest.mark.slow
def test_escape_sequences_in_everything_that_a_server_says(home: Home, tmp_path: Path) -> None:
    """Names, pipelines, reasons and messages are printed escaped, each in its line, in tables, in JSON and in errors."""
    forged = FORGED.encode("utf-16", "surrogatepass").decode("utf-16")
    record = replace(RECORD, name=forged)
    usage = dict.fromkeys(["record_count", "logical_size", "distinct_size", "frame_count", "needed_size", "free_size"], 1)
    usage |= dict.fromkeys(["waiting_size", "manifests_size", "grace_seconds", "name_count"], 1)
    of_name = {"name": forged, "version_count": 1, "logical_size": 1, "own_size": 1, "shared_size": 1}
    hold = {"reason": FORGED_TEXT, "since": 1, "manifest_count": 1}
    routes = {
        "/repository": document(IDENTITY),
        "/files?": document({"files": [record.as_json()]}),
        "/files": answering(_line(1, name=forged, path=record.path), content_type=wire.LINES),
        "/versions": document({"files": [record.as_json() | {"pipelines": FORGED_TEXT}], "total": 1}),
        "/usage": document(
            usage | {"namespace": "default", "damaged": [FORGED_TEXT], "names": [of_name], "hold": hold},
        ),
    }
    by_id = document(record.as_json())
    said = by_path({"/files/find": by_id, "/files/file_": by_id} | routes)
    for command in (
        ["ls"],
        ["ls", "--limit", "1"],
        ["info", record.id],
        ["du"],
        ["rm", "--dry-run", record.id],
        ["rm", record.id],
    ):
        printed = _printed_by(home, said, *command)
        assert "\\x9b" in printed, command
        # Each record has a line of its own, and no line was forged.
        assert not any(line.startswith(("Removed everything", "Error: forged")) for line in printed.split("\n"))
    for command in (["ls"], ["info", record.id]):
        assert forged in json.dumps(json.loads(_printed_by(home, said, *command, "--json")), ensure_ascii=False)


PROBLEMS = [
    {"type": "urn:filestore:error:not-found", "reference": FORGED_TEXT},
    {"type": "urn:filestore:error:no-such", "detail": FORGED_TEXT},
    {"type": "urn:filestore:error:storage-error", "where": FORGED_TEXT, "reason": FORGED_TEXT},
    {"type": "urn:filestore:error:file-in-use", "file_id": FORGED_TEXT, "pipelines": FORGED_TEXT},
    {"type": "urn:filestore:error:limit-exceeded", "what": "x", "found": 1, "limit": 1, "setting": FORGED_TEXT},
    {"type": "urn:filestore:error:chunks-missing", "digests": [FORGED_TEXT]},
    {"type": FORGED_TEXT, "detail": FORGED_TEXT, "title": FORGED_TEXT},
]


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_escape_sequences_in_problems(home: Home, tmp_path: Path, problem: dict[str, object]) -> None:
    """The message of an error is one line, whatever the server wrote, and for `fetch`, `push` and `rm` too."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"content")
    said = by_path({"/repository": document(IDENTITY), "/": document(problem, status="418 X")})
    for command in (["info", "x"], ["fetch", RECORD.id, "-o", str(tmp_path / "out")], ["push", str(source)], ["rm", RECORD.id]):
        printed = _printed_by(home, said, *command)
        assert [line for line in printed.split("\n") if line.startswith("Error")] == [printed.strip().split("\n")[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("server_field", [b"\x1b[2J", b"x\x9b31m", "\u202e".encode()])
def test_escape_sequences_in_header_fields(home: Home, server_field: bytes) -> None:
    """What made an answer is printed without all that is not ASCII."""
    fields = b"Server: %b\r\nRetry-After: %b\r\nLocation: http://%b/\r\n" % ((server_field,) * 3)
    for status in ("302 Found", "404 Not Found", "503 X"):
        _printed_by(home, lambda _, status=status: answering(b"<html>", status=status, fields=fields), "info", "x")  # type: ignore[misc]


def test_removal_of_versions_without_end(home: Home) -> None:
    """A server that lists the same versions again and again does not keep `rm --all` going."""
    page = [replace(RECORD, id=f"file_{number:032x}", updated_at=RECORD.updated_at + number) for number in range(1000)]
    pages = [[record.as_json() for record in order] for order in (page, page[::-1])]

    def answer(asked: Asked) -> bytes:
        if asked.path.startswith("/repository"):
            return document(IDENTITY)
        return document({"files": pages["before" in asked.path][: 1000 if "before" not in asked.path else 999], "total": 10**9})

    with hostile_server(answer) as server:
        done = home.run("rm", "--all", "--dry-run", RECORD.name, environ={"FILESTORE_URL": server.url})
    assert done.returncode == 1
    assert "list of versions" in done.stderr
    assert len(server.asked) <= 4


# The token.


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://models.example:8080", "models.example"),
        ("http://192.0.2.1", "192.0.2.1"),
        ("http://[2001:db8::1]:8080/x", "2001:db8::1"),
        ("http://localhost.example", "localhost.example"),
        ("HTTP://Models.example", "models.example"),
        ("http://localhost:1", ""),
        ("http://a.localhost:1", ""),
        ("http://127.0.0.9:1", ""),
        ("http://[::1]:1", ""),
        ("http://[::ffff:127.0.0.1]:1", ""),
        ("https://models.example", ""),
        ("/folder", ""),
    ],
)
def test_token_that_is_sent_in_the_open(capsys: pytest.CaptureFixture[str], url: str, host: str) -> None:
    """A token leaves this machine without encryption only by permission, and with one warning that names the host."""
    nowhere = Path("/dev/null")
    settings = Settings(root=nowhere, cache=nowhere, push_cache=nowhere, token="secret")
    with pytest.raises(click.ClickException) if host else nullcontext():
        check_plain_http(url, settings)
    with click.Context(click.Command("x")):
        for _ in range(3):
            check_plain_http(url, replace(settings, insecure=True))
            check_plain_http(url, replace(settings, token=None))
    said = capsys.readouterr().err
    assert said.count("Warning") == bool(host)
    assert f"to {host} " in said or not host
    assert "secret" not in said


def test_command_that_sends_its_token_in_the_open(home: Home) -> None:
    """The command line refuses before it sends anything. With --insecure it warns, and goes on."""
    environ = {"FILESTORE_URL": "http://filestore.invalid:1", "FILESTORE_TOKEN": "secret"}
    told = home.failure("ls", environ=environ)
    assert told.startswith("the token would be sent to filestore.invalid without encryption")
    assert "https://" in told
    assert "--insecure" in told
    done = home.run("ls", "--insecure", environ=environ)
    assert done.stderr.startswith("Warning: the token is sent to filestore.invalid without encryption")
    assert done.returncode == 1
    done = home.run("ls", environ={"FILESTORE_URL": "http://filestore.invalid:1"})
    assert "Warning" not in done.stderr
