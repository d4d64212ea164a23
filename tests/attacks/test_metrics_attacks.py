"""Clients try to fill the memory of a server, and of the Prometheus that reads it, with series of their own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.http.limits import DEFAULT_SERVER_LIMITS
from filestore.http.server.metrics import NAMESPACES_LIMIT, Metrics
from filestore.http.server.traffic import Traffic
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.index.protocol import ChunkRow
from filestore.repository.index.sqlite import open_index
from filestore.repository.stores.memory import MemoryStore
from filestore.system.metrics import SharedTimes, count_into
from tests.support.server import OTHER_TOKEN, RunningServer, eventually, reply, running_server

SERIES = re.compile(r"^(filestore_[a-z_]+(?:\{[^\n]*\})?) ", re.MULTILINE)
NAMESPACES = 1000
LAST_LOOKED_AT = b"\nfilestore_uploads_in_store_bytes "
"""What an answer has when the first look at the disk and the index has ended."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that answers as many wrong tokens as a test sends."""
    with running_server(tmp_path_factory.mktemp("served") / "root", guesses_limit=1_000_000, check=False) as server:
        # An answer does not wait for a slow look at the disk and the index, whose series would come later.
        eventually(lambda: LAST_LOOKED_AT in server.ask("GET", "/metrics").body)
        yield server


def series(server: RunningServer) -> set[str]:
    """The names and labels of all samples."""
    return set(SERIES.findall(server.ask("GET", "/metrics").body.decode()))


def send(server: RunningServer, count: int, head: str) -> None:
    """Send requests, each on a connection of its own. `head` has the number of the request as #."""
    for number in range(count):
        with server.connection() as connection:
            connection.sendall(head.replace("#", str(number)).encode() + b"\r\nHost: server\r\nContent-Length: 0\r\n\r\n")
            assert 400 <= reply(connection).status < 600


@pytest.mark.parametrize(
    "head",
    [
        "GET /no/such/path/# HTTP/1.1",
        "FOO# /native/v1/files HTTP/1.1",
        "FOO# /no/such/path HTTP/1.1",
        "PROPFIND /no/such/path/# HTTP/1.1",
        "GET /native/v1/files/file_# HTTP/1.1\r\nAuthorization: Bearer token-#",
        "GET /pipeline_files/ab/cd/#/name-# HTTP/1.1",
        "GET /run_files/ab/cd/#/name-# HTTP/1.1",
        "GET /signed/namespace-#/9999999999/signature-#/run_files/ab/cd/#/name HTTP/1.1",
        "GET /native/v1/chunks/#?x=# HTTP/1.1\r\nX-Request-Id: #\r\nUser-Agent: #",
        "PUT /v3/pipeline_files/uploads/#/parts/# HTTP/1.1",
    ],
)
def test_requests_of_a_client_make_no_series_of_their_own(server: RunningServer, head: str) -> None:
    """Twenty paths, methods, names, tokens and namespaces are as many series as two."""
    send(server, 2, head)
    before = series(server)
    send(server, 20, head)
    new = {each for each in series(server) - before if "_bucket" not in each}
    assert {each for each in new if "/metrics" not in each and "queue" not in each} == set()


def test_no_label_is_what_a_client_sent(server: RunningServer) -> None:
    """A method, a path or a name with the marks of the format is not in it."""
    send(server, 1, 'GET /evil"}%0Afilestore_evil{x="1 HTTP/1.1')
    send(server, 1, "evil-method /evil-path HTTP/1.1")
    # The parser knows this method, and no route does.
    send(server, 1, "PROPFIND /evil-path HTTP/1.1")
    answer = server.ask("GET", "/metrics").body.decode()
    assert "evil" not in answer
    assert 'method="other",route="other"' in answer


def test_metrics_hold_no_secret_and_no_name(server: RunningServer) -> None:
    """Neither a token, nor the name of a file, nor the address of a client."""
    stored = server.upload("a-secret-name.bin", b"x" * 1000).json
    server.ask("GET", f"/{stored['path']}")
    answer = server.ask("GET", "/metrics").body.decode()
    for secret in (server.token, OTHER_TOKEN, "a-secret-name", stored["id"], "127.0.0.1", str(server.root)):
        assert secret not in answer


@pytest.mark.slow
async def test_many_namespaces_are_a_limited_number_of_series(tmp_path: Path) -> None:
    """Whoever may make namespaces makes no more than a hundred series of each metric."""
    index = await open_index(tmp_path / "index.sqlite")
    async with index.transaction() as transaction:
        for number in range(NAMESPACES):
            row = ChunkRow(Digest(number.to_bytes(32, "big")), 1, 2)
            await transaction.add_chunks(f"namespace-{number}", [row])
            await transaction.set_task_state(f"namespace-{number}", "scrub", {"left": [], "begun_at": 1})
            await transaction.set_task_state(f"namespace-{number}", "collect", {"ended_at": 1})
    shared = SharedTimes(1)
    shared.join(0)
    shown = Metrics(
        MemoryStore(),
        index,
        shared_times=shared,
        traffic=Traffic(),
        upload_quota=UploadQuota(tmp_path),
        limits=DEFAULT_SERVER_LIMITS,
        note_memory=lambda: None,
    )
    try:
        async with asyncio.timeout(60), shown.running():
            text = b""
            while LAST_LOOKED_AT not in text:
                text, _ = await shown.text("")
    finally:
        count_into(None)
        await index.close()
    for name in ("scrub_position_ratio", "damaged_chunks", "collection_last_end_timestamp_seconds"):
        assert NAMESPACES_LIMIT == text.decode().count(f"filestore_{name}{{")
    for name in ("namespace_chunks", "namespace_stored_bytes"):
        assert NAMESPACES_LIMIT + 1 == text.decode().count(f"filestore_{name}{{")
    others = NAMESPACES - NAMESPACES_LIMIT
    assert f'filestore_namespace_stored_bytes{{namespace="(others)"}} {2 * others:.1f}' in text.decode()
    assert f"filestore_namespaces {NAMESPACES:.1f}" in text.decode()
