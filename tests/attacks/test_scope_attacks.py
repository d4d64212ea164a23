"""Somebody with a limited token tries what it does not permit, at a server with two workers."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from filestore.core.digest import chunk_digest, token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.scopes import Scope
from filestore.http.server.app import ROUTES
from filestore.http.server.route import Route
from filestore.http.wire import API, NAME_HEADER
from tests.support.changed_tokens import ASKED, answered, changed, ends, is_closing, statuses
from tests.support.commands import Home
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.server import FORM, TOKEN, Reply, RunningServer, batch, eventually, form, running_server
from tests.support.uploads import PartsUpload, put

pytestmark = pytest.mark.slow

SIZE = 24 << 20
"""More than the buffers of a connection hold."""
PREFIX = "logs_"
SECOND = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers, a large file inside of the prefix, and a small file outside of it."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2, stall_seconds=60, guesses_limit=100_000) as server:
        for name, content in ((f"{PREFIX}large", octets(1, SIZE)), ("other.txt", b"what others keep")):
            assert 201 == server.upload(name, content).status
        yield server


def give(server: RunningServer, token: str, **properties: Any) -> str:
    """Make a token, or change it, as commands do. Return it."""
    given = {"namespace": DEFAULT_NAMESPACE, "label": "", **properties}
    changed(server, lambda _, transaction: transaction.add_token(token_digest(token), **given))
    return token


def records(server: RunningServer) -> dict[str, dict[str, Any]]:
    """All records, by their names."""
    return {record["name"]: record for record in server.ask("GET", f"{API}/files").json["files"]}


def path_of(route: Route, server: RunningServer) -> str:
    """A path that the route takes, for a file that exists."""
    record = records(server)["other.txt"]
    values = {
        "id": record["id"],
        "digest": record["digest"],
        "path": record["path"],
        "number": "1",
        "size_limit": "9",
        "name": "a",
        "type": "models",
        "repository": "other.txt",
        "revision": "main",
        "oid": 64 * "0",
        "size": "1",
    }
    if "run_files" in route.path:
        values["path"] = f"run_files/{record['path'].partition('/')[2]}"
    values["upload_id"] = 32 * "0"
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: values[found[1]], route.path)


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_opens_no_route_above_it(server: RunningServer, scope: Scope) -> None:
    """Each route is asked without a body, so that a permitted one fails for another reason, or answers."""
    token = give(server, f"a-token-to-{scope}", scope=scope)
    for route in ROUTES:
        if route.method != "DELETE" or scope < Scope.DELETE:
            answer = server.ask(route.method, path_of(route, server), token=token)
            is_refused = answer.status == 403 and answer.slug == "scope-missing"
            assert is_refused == (scope < route.scope), (route.path, answer.status)
            if is_refused:
                assert (str(route.scope), str(scope)) == (answer.json["needed"], answer.json["scope"])
    assert "other.txt" in records(server)


def test_a_body_is_not_asked_for(server: RunningServer) -> None:
    """A client that expects 100 sends nothing that the server would refuse."""
    token = give(server, "a-reader", scope=Scope.READ)
    with begun(server, token, "POST", f"{API}/chunks", "Expect: 100-continue", "Content-Length: 1000") as connection:
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 403 ")


def test_a_writer_neither_removes_nor_changes(server: RunningServer) -> None:
    """Whatever it does, what others have stored is there as before, under the same ids and digests."""
    token = give(server, "a-writer", scope=Scope.WRITE)
    before, old = b"what is kept", records(server)["other.txt"]
    kept = server.upload("kept.txt", before).json
    frame = encoded(before)

    def asks(method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        return server.ask(method, path, body, headers=headers, token=token)

    for query in ("", "?chunks=true", "?force=true", "?chunks=true&force=true"):
        assert 403 == asks("DELETE", f"{API}/files/{kept['id']}{query}").status
    # The same name with other content is another version.
    assert 201 == asks("POST", "/v3/pipeline_files", form("kept.txt", b"what replaces it"), **FORM).status
    # The bytes of a chunk are those of its digest, also if they are sent again.
    false = encoded(b"other bytes")._replace(digest=frame.digest)
    assert 422 == asks("POST", f"{API}/chunks", batch([false])).status
    # A check of an intact chunk forgets nothing.
    assert b"" == asks("POST", f"{API}/chunks/verify", frame.digest).body
    # A commit of content that is there makes it the newest version, and nothing else.
    assert 201 == asks("POST", f"{API}/files", manifest([before]).encoded, **{NAME_HEADER: "kept.txt"}).status
    assert 409 == asks("POST", f"{API}/files", manifest([b"not there"]).encoded, **{NAME_HEADER: "kept.txt"}).status
    # A tag can be set, and stays where it is.
    assert 200 == asks("PUT", f"{API}/labels?name=kept.txt&label=v1").status
    assert "scope-missing" == asks("PUT", f"{API}/labels?name=kept.txt&label=v1&revision=~1&force=true").slug
    assert 403 == asks("DELETE", f"{API}/labels?name=kept.txt&label=v1").status
    versions = server.ask("GET", f"{API}/versions?name=kept.txt").json["files"]
    assert [kept["digest"], str(manifest([b"what replaces it"]).digest)] == [record["digest"] for record in versions]
    assert kept["id"] == versions[0]["id"]
    assert before == server.ask("GET", f"/{kept['path']}").body
    assert old == records(server)["other.txt"]


def test_a_writer_changes_no_part_of_others(server: RunningServer) -> None:
    """A part that arrived stays, and a finished upload is what it was."""
    upload = PartsUpload(server, "parts.bin")
    sent = upload.put(1, b"the first part")
    upload.token = give(server, "a-writer", scope=Scope.WRITE)
    assert 409 == put(upload.url(1).json["upload_url"], b"other bytes of it").status
    upload.token = TOKEN
    finished = upload.finish([sent]).json
    upload.token = "a-writer"
    assert 400 == upload.finish_with([{"ETag": "0" * 64, "PartNumber": 1}]).status
    assert 400 == upload.url(2).status
    assert b"the first part" == server.ask("GET", f"/v3/pipeline_files/download/{finished['id']}").body


def test_urls_of_a_writer_end_with_its_scope(server: RunningServer) -> None:
    """Both workers refuse a part and a form by a URL that was asked for before. A URL for reading goes on."""
    token = give(server, "a-writer-for-a-while", scope=Scope.WRITE)
    upload = PartsUpload(server, "narrowed.bin", token=token)
    part = upload.url(1).json["upload_url"]
    post = server.ask("POST", "/v4/files/presigned-post", json.dumps({"name": "narrowed.txt"}).encode(), token=token).json
    record = records(server)["other.txt"]
    signed = "/" + server.ask("POST", f"{API}/files/{record['id']}/sign", token=token).json["path"]
    give(server, token, scope=Scope.READ)
    eventually(lambda: {403} == {answered(lambda: put(part, b"content")) for _ in range(ASKED)})
    assert "scope-missing" == put(part, b"content").slug
    path = urlsplit(post["upload_url"]).path
    body = form("narrowed.txt", b"content")
    assert {403} == {server.ask("POST", path, body, headers=FORM, token=None).status for _ in range(ASKED)}
    assert {200} == statuses(server, "GET", signed, token=None)
    assert "narrowed.txt" not in records(server)


class Change(NamedTuple):
    """What becomes of a token, and which of its transfers are cut."""

    apply: Callable[[RunningServer, Home, str], object]
    is_upload_cut: bool = True
    is_download_cut: bool = True


CHANGES = {
    "removed": Change(lambda server, _, token: changed(server, lambda _, index: index.remove_token(token_digest(token)))),
    "rotated": Change(lambda server, home, token: home.result("token", "rotate", token, "--root", server.root)),
    "expired": Change(lambda server, _, token: give(server, token, expires_at=time.time_ns() // 1000)),
    "expiring": Change(lambda server, _, token: give(server, token, expires_at=time.time_ns() // 1000 + SECOND)),
    "narrowed": Change(lambda server, _, token: give(server, token, scope=Scope.READ), is_download_cut=False),
    "kept out": Change(lambda server, _, token: give(server, token, prefix="elsewhere-")),
    "moved": Change(lambda server, _, token: give(server, token, namespace="elsewhere")),
}


@pytest.fixture
def connections() -> Iterator[ExitStack]:
    """Closes the connections of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("change", CHANGES)
def test_transfers_under_way_are_cut(server: RunningServer, new_home: Home, connections: ExitStack, change: str) -> None:
    """Those that the token does not permit any more. Those of another token go on."""
    token = give(server, f"a-token-that-is-{change.replace(' ', '-')}", scope=Scope.WRITE)
    friend = give(server, "a-token-that-stays", scope=Scope.WRITE)
    path = f"/{records(server)[f'{PREFIX}large']['path']}"
    downloads = {each: connections.enter_context(begun(server, each, "GET", path)) for each in (token, friend)}
    for connection in downloads.values():
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 200 ")
    name = f"half of {change}"
    body = form(name, octets(2, 1 << 20))
    half = len(body) // 2
    head = (f"Content-Type: {FORM['Content-Type']}", f"Content-Length: {len(body)}", "Expect: 100-continue")
    uploads = {each: connections.enter_context(begun(server, each, "POST", "/v4/files", *head)) for each in (token, friend)}
    for connection in uploads.values():
        # Then the token was accepted.
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body[:half])
    meant = CHANGES[change]
    meant.apply(server, new_home, token)
    eventually(lambda: is_closing(uploads[token]) == meant.is_upload_cut)
    eventually(lambda: is_closing(downloads[token]) == meant.is_download_cut)
    # No byte of an answer came, and the download has a part of the file only.
    assert 0 == ends(uploads[token])
    for each in (token, friend):
        is_whole = ends(downloads[each]) > SIZE - (1 << 13)
        assert is_whole == (each == friend or not meant.is_download_cut)
    assert name not in records(server)
    uploads[friend].sendall(body[half:])
    assert uploads[friend].recv(1 << 12).startswith(b"HTTP/1.1 201 ")


def test_an_expired_token_is_told_so(server: RunningServer) -> None:
    """By both workers, as often as it asks: it is not a guess. Its signed URLs are refused."""
    token = give(server, "a-token-of-yesterday")
    signed = "/" + server.ask("POST", f"{API}/files/{records(server)['other.txt']['id']}/sign", token=token).json["path"]
    give(server, token, expires_at=time.time_ns() // 1000)
    eventually(lambda: {401} == statuses(server, "GET", f"{API}/repository", token=token))
    answer = server.ask("GET", f"{API}/repository", token=token)
    assert ("token-expired", 'Bearer realm="filestore"') == (answer.slug, answer.headers["WWW-Authenticate"])
    # A worker asks the index for a token that it does not know, and knows the tokens behind URLs from its last look.
    eventually(lambda: {403} == statuses(server, "GET", signed, token=None))


def test_a_prefix_opens_no_name_outside_of_it(server: RunningServer) -> None:
    """By id, name, digest and path, in the native routes, those of the SDK and by signed URLs."""
    token = give(server, "a-token-for-logs", prefix=PREFIX)
    other = records(server)["other.txt"]
    native = [f"{API}/files/{other['id']}", f"{API}/files/find?id={other['id']}", f"{API}/files/find?name=other.txt"]
    native += [f"{API}/files/find?digest={other['digest']}", f"{API}/versions?name=other.txt", f"/{other['path']}"]
    sdk = [f"/v3/pipeline_files/{other['id']}", f"/v3/pipeline_files/download/{other['id']}"]
    for path in (*native, *sdk):
        assert (200, 404) == tuple(server.ask("GET", path, token=each).status for each in (TOKEN, token)), path
    for method, path in (("DELETE", f"{API}/files/{other['id']}"), ("POST", f"{API}/files/{other['id']}/sign")):
        assert 404 == server.ask(method, path, token=token).status
    for path in (f"{API}/files", "/v3/pipeline_files", f"{API}/usage"):
        found = server.ask("GET", path, token=token)
        assert found.status == 200
        assert b"other.txt" not in found.body
    listing = server.ask("GET", f"{API}/files", headers={"Accept": "application/x-ndjson"}, token=token)
    assert {f"{PREFIX}large"} == {json.loads(line)["name"] for line in listing.body.splitlines() if line.strip()}
    refused = server.ask("GET", f"{API}/status", token=token)
    assert (403, "outside-prefix") == (refused.status, refused.slug)


def test_a_prefix_takes_no_name_outside_of_it(server: RunningServer) -> None:
    """By a commit, a form with either of its names, parts, and a form of a container. Nothing is stored."""
    token = give(server, "a-token-for-logs", prefix=PREFIX)
    before = set(records(server))
    inside, content = f"{PREFIX}new", b"what a form has"

    def asked(path: str, body: bytes, **headers: str) -> Reply:
        return server.ask("POST", path, body, headers=headers, token=token)

    assert 200 == server.put([encoded(content)]).status
    refused = [
        asked(f"{API}/files", manifest([content]).encoded, **{NAME_HEADER: "outside"}),
        asked("/v3/pipeline_files", form("outside", content), **FORM),
        asked("/v3/pipeline_files?name=outside", form(inside, content), **FORM),
        asked("/v4/files", form(inside, content, after={"name": "outside"}), **FORM),
        asked("/v3/pipeline_files/initiate-multipart-upload", json.dumps({"name": "outside"}).encode()),
        asked("/v3/pipeline_files/initiate-multipart-upload", b"{}"),
        asked("/v4/files/presigned-post", json.dumps({"name": "outside"}).encode()),
    ]
    assert [(403, "outside-prefix")] * len(refused) == [(answer.status, answer.slug) for answer in refused]
    assert before == set(records(server))
    assert 201 == asked("/v4/files", form(inside, content), **FORM).status
    assert before | {inside} == set(records(server))


def test_uploads_outside_of_a_prefix_are_not_found(server: RunningServer) -> None:
    """Who knows the ids of an upload still needs a token for its name. An upload inside is open to both."""
    token = give(server, "a-token-for-logs", prefix=PREFIX)
    for name, status in ((f"{PREFIX}parts", 200), ("parts", 404)):
        upload = PartsUpload(server, name)
        url = upload.url(1).json["upload_url"]
        upload.token = token
        assert status == upload.url(1).status
        path = urlsplit(url).path.split("/", 5)[5]
        assert status == server.ask("PUT", f"/{path}", b"content", token=token).status
    post = server.ask("POST", "/v4/files/presigned-post", json.dumps({"name": "posted"}).encode()).json
    assert "upload-not-found" == server.ask("GET", f"/v4/files/posts/{post['upload_id']}", token=token).slug


def test_urls_of_a_token_end_with_its_prefix(server: RunningServer) -> None:
    """What it had signed before it got a prefix is outside now."""
    token = give(server, "a-token-that-is-limited")
    signed = {
        name: "/" + server.ask("POST", f"{API}/files/{records(server)[name]['id']}/sign", token=token).json["path"]
        for name in ("other.txt", f"{PREFIX}large")
    }
    give(server, token, prefix=PREFIX)
    eventually(lambda: {404} == statuses(server, "HEAD", signed["other.txt"], token=None))
    assert {200} == statuses(server, "HEAD", signed[f"{PREFIX}large"], token=None)


def test_content_of_others_is_told_by_digest_only(server: RunningServer) -> None:
    """A prefix limits names. A digest that cannot be guessed is enough within the namespace, and in no other one."""
    content = b"what others keep"
    path = f"{API}/chunks/{chunk_digest(content)}"
    inside = give(server, "a-token-for-logs", prefix=PREFIX)
    outside = give(server, "a-token-of-elsewhere", namespace="elsewhere", prefix=PREFIX)
    assert [200, 404] == [server.ask("GET", path, token=token).status for token in (inside, outside)]


def begun(server: RunningServer, token: str, method: str, path: str, *headers: str, body: bytes = b"") -> socket.socket:
    """Return a connection on which a request was sent, with `body` so far. It is closed after the answer."""
    connection = server.connection()
    lines = [f"{method} {path} HTTP/1.1", "Host: server", f"Authorization: Bearer {token}", *headers, "Connection: close"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection
