"""Hostile requests to the read routes of the Hub API: names, revisions, paths, cursors, bodies, and directories that are none."""

from __future__ import annotations

import base64
import io
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from tests.support.frames import encoded
from tests.support.generator import octets
from tests.support.hub import push_tree, push_zip, resolve
from tests.support.server import OTHER_TOKEN, RunningServer, running_server

NAME = "team/my-model"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a repository, which must log nothing about these attacks."""
    folder = tmp_path_factory.mktemp("served")
    with running_server(folder / "root") as server:
        push_tree(server, folder / "tree", {"a.txt": b"content", "b/c.bin": octets(1, 3 << 20)}, NAME)
        push_tree(server, folder / "other", {"secret.txt": b"secret"}, "other/model")
        yield server


@pytest.fixture
def warned(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that may log that the digests of a directory cannot be computed."""
    with running_server(tmp_path / "root", check=False) as server:
        yield server


@pytest.mark.parametrize(
    "path",
    [
        "/team/../other/model/resolve/main/secret.txt",
        "/team%2F..%2Fother/model/resolve/main/secret.txt",
        f"/{NAME}/resolve/main/../../../../other/model/resolve/main/secret.txt",
        f"/{NAME}/resolve/main/..%2F..%2Fformat",
        f"/{NAME}/resolve/main/%2e%2e/%2e%2e/index.sqlite",
        f"/{NAME}/resolve/main/%252e%252e%252findex.sqlite",
        f"/{NAME}/resolve/main/b%2F..%2Fa.txt",
        f"/{NAME}/resolve/main/b//c.bin",
        f"/{NAME}/resolve/main/./a.txt",
        f"/{NAME}/resolve/main/a.txt%00",
        f"/{NAME}/resolve/main/a.txt%0d%0aX-Evil:%201",
        f"/{NAME}/resolve/main/%ff%fe",
        f"/{NAME}/resolve/main/{'x' * 5000}",
        f"/{NAME}/resolve/main/{'y/' * 2500}z",
        f"/{NAME}/resolve/..%2F..%2Fmain/a.txt",
        f"/{NAME}/resolve/main%00/a.txt",
        f"/{NAME}/resolve/{'f' * 3000}/a.txt",
        f"/{NAME}/resolve/%27%20OR%201=1--/a.txt",
        f"/{NAME}/resolve/~99999999999/a.txt",
        f"/{'n' * 3000}/resolve/main/a.txt",
        "/%2e%2e/resolve/main/a.txt",
        "/api/models/%2e%2e%2f%2e%2e",
        "/api/models/team%00/x/tree/main",
        f"/api/models/{NAME}/tree/main/..%2F..",
        f"/api/models/{NAME}/tree/main/b/../..",
        f"/api/models/{NAME}/revision/%0a",
        "/api/models/team/my-model%0a",
        "/api/models/TEAM/MY-MODEL",
    ],
)
def test_a_path_that_escapes_finds_nothing(server: RunningServer, path: str) -> None:
    """Encoded once, twice or not at all. The answer is that of something absent."""
    for method in ("GET", "HEAD"):
        reply = server.ask(method, path)
        assert 404 == reply.status, reply.body
        assert reply.headers["X-Evil"] is None
    assert b"secret" not in server.ask("GET", path).body


@pytest.mark.parametrize(
    "cursor",
    ["%00", "x", "!!!", "%C3%A4", "a" * 7000, base64.urlsafe_b64encode(b"\xff\xfe").decode(), "../..", "A" * 3],
)
def test_a_cursor_that_the_server_did_not_make_is_refused(server: RunningServer, cursor: str) -> None:
    """Or means a place that nothing follows."""
    for path in (f"/api/models/{NAME}/tree/main", f"/api/models/{NAME}/commits/main", "/api/models"):
        reply = server.ask("GET", f"{path}?cursor={cursor}")
        assert reply.status in {200, 400}, reply.body
        if reply.status == 400:
            assert reply.headers["X-Error-Message"]


def test_a_cursor_leads_to_no_other_folder(server: RunningServer) -> None:
    """A cursor with a path outside the folder shows what is in the folder, or nothing."""
    for place in ("../x", "a.txt", "b", "z", "/", "\0"):
        cursor = base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")
        listed = server.ask("GET", f"/api/models/{NAME}/tree/main/b?cursor={cursor}").json
        assert listed == [] or ["b/c.bin"] == [entry["path"] for entry in listed]


@pytest.mark.parametrize("limit", ["-1", "1e9", "", "x", "9" * 40, "²"])
def test_a_limit_that_is_not_a_number_is_refused(server: RunningServer, limit: str) -> None:
    """Nothing else happens."""
    assert 400 == server.ask("GET", f"/api/models/{NAME}/tree/main?limit={quote(limit)}").status
    assert 200 == server.ask("GET", f"/api/models/{NAME}/tree/main?limit=999999999").status


def test_too_many_paths_are_refused(server: RunningServer) -> None:
    """10,000 are answered, and one more, or a body that is too large, is not."""
    path = f"/api/models/{NAME}/paths-info/main"
    many = b"&".join(b"paths=%d" % number for number in range(10_000))
    assert [] == server.ask("POST", path, many, headers=FORM).json
    assert 413 == server.ask("POST", path, many + b"&paths=a" * 10, headers=FORM).status
    assert 413 == server.ask("POST", path, b'{"paths": [' + b'"",' * 10_010 + b'""]}', headers=JSON).status
    assert 413 == server.ask("POST", path, b"paths=" + b"x" * (5 << 20), headers=FORM).status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"paths": 1}',
        b'{"paths": [1]}',
        b'{"paths": {"a": 1}}',
        b"\xff",
        b"[" * 9000,
        b'"x"',
        b'{"paths": null}',
    ],
)
def test_a_list_of_paths_that_is_none_is_refused(server: RunningServer, body: bytes) -> None:
    """As JSON. A form that names no path has an empty answer."""
    path = f"/api/models/{NAME}/paths-info/main"
    assert 400 == server.ask("POST", path, body, headers=JSON).status
    assert server.ask("POST", path, body, headers=FORM).status in {200, 400}


def test_an_opened_directory_is_not_shown_to_another_namespace(server: RunningServer) -> None:
    """Also if its content is in memory, and its commit is known."""
    commit = resolve(server, "a.txt").headers["X-Repo-Commit"]
    for revision in ("main", commit):
        reply = server.ask("GET", f"/{NAME}/resolve/{revision}/a.txt", token=OTHER_TOKEN)
        assert (404, "RepoNotFound") == (reply.status, reply.headers["X-Error-Code"])
    assert [] == server.ask("GET", "/api/models", token=OTHER_TOKEN).json


@pytest.mark.slow
def test_a_directory_that_is_none_is_told(warned: RunningServer, tmp_path: Path) -> None:
    """A client may store any bytes as a directory. The server reads them, and fails in no other way."""
    content = octets(5, 100_000)
    push_zip(warned, tmp_path / "a.zip", content, "team/noise")
    for path in ("/team/noise/resolve/main/a.txt", "/api/models/team/noise", "/api/models/team/noise/tree/main"):
        reply = warned.ask("GET", path)
        assert (422, "not-an-archive") == (reply.status, reply.slug)
    assert 200 == warned.ask("GET", "/api/models/team/noise/refs").status


@pytest.mark.slow
def test_a_directory_with_a_huge_ratio_is_refused(warned: RunningServer, tmp_path: Path) -> None:
    """A zip bomb is not inflated."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as written:
        written.writestr("bomb.bin", bytes(64 << 20))
    push_zip(warned, tmp_path / "a.zip", archive.getvalue(), "team/bomb")
    assert resolve(warned, "bomb.bin", name="team/bomb").status in {413, 422}


@pytest.mark.slow
def test_clients_that_hang_up_leave_nothing(server: RunningServer) -> None:
    """Others are served meanwhile and afterwards."""
    chunk = Chunk(encoded(bytes(CHUNK_LIMIT)).digest, CHUNK_LIMIT)
    server.put([encoded(bytes(CHUNK_LIMIT))])
    assert 201 == server.commit(Manifest.build([chunk] * 200, chunking_version=CHUNKING_VERSION).encoded, name="long.bin").status
    held = [server.begin("GET", path) for path in ("/long.bin/resolve/main/long.bin", f"/{NAME}/resolve/main/b/c.bin") * 20]
    for connection in held:
        assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        connection.close()
    assert b"content" == resolve(server, "a.txt").body
