"""Forms that somebody without a token may send once, as a container of the SDK does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.server import OTHER_TOKEN, Reply, RunningServer, running_server

BOUNDARY = "boundary-of-tests"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a limit for uploads."""
    with running_server(tmp_path_factory.mktemp("served") / "root", upload_limit=100) as server:
        yield server


def permitted(server: RunningServer, **asked: object) -> Any:
    """The answer to a request for a URL."""
    reply = server.ask("POST", "/v4/files/presigned-post", json.dumps({"name": "my file.txt"} | asked).encode())
    assert 201 == reply.status, reply.body
    return reply.json


def send(server: RunningServer, url: str, content: bytes, fields: dict[str, str], *, method: str = "POST") -> Reply:
    """Send the form as the container does: the fields, and then the file, under the name of its own."""
    parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
    parts.append(b'name="file"; filename="local.txt"\r\nContent-Type: text/plain\r\n\r\n' + content)
    body = b"".join(f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode() + part + b"\r\n" for part in parts)
    return server.ask(method, urlsplit(url).path, body + f"--{BOUNDARY}--\r\n".encode(), headers=FORM, token=None)


def test_a_file_is_stored_and_opens_by_its_url(server: RunningServer) -> None:
    """Under the name that was asked for; before it has arrived, nothing is there."""
    given = permitted(server)
    content, state = urlsplit(given["url"]).path, f"/v4/files/posts/{given['upload_id']}"
    before = [server.ask("GET", content, token=None), server.ask("GET", state)]
    sent = send(server, given["upload_url"], b"content", given["upload_fields"])
    after = server.ask("GET", state).json

    assert [404, 404] == [reply.status for reply in before]
    assert (201, "my file.txt", 7) == (sent.status, sent.json["name"], sent.json["size"])
    assert b"content" == server.ask("GET", content, token=None).body
    assert b"content" == server.ask("GET", urlsplit(after["url"]).path, token=None).body
    assert sent.json["id"] == after["id"]


def test_it_is_stored_once(server: RunningServer) -> None:
    """Who has the URL cannot replace the file later."""
    given = permitted(server)
    assert 201 == send(server, given["upload_url"], b"first", given["upload_fields"]).status
    again = send(server, given["upload_url"], b"second", given["upload_fields"])

    assert (400, True) == (again.status, "was used already" in again.json["detail"])
    assert b"first" == server.ask("GET", urlsplit(given["url"]).path, token=None).body


@pytest.mark.parametrize(
    ("asked", "size", "status"), [({}, 100, 201), ({}, 101, 413), ({"size_limit": 5}, 5, 201), ({"size_limit": 5}, 6, 413)]
)
def test_its_size_has_a_limit(server: RunningServer, asked: dict[str, object], size: int, status: int) -> None:
    """That of the server, and a smaller one that the caller may choose. A refused form does not use the URL up."""
    given = permitted(server, **asked)
    assert status == send(server, given["upload_url"], b"x" * size, given["upload_fields"]).status
    assert (201 if status == 413 else 400) == send(server, given["upload_url"], b"y", given["upload_fields"]).status


@pytest.mark.parametrize("fields", [{}, {"key": "another.txt"}])
def test_the_fields_must_be_those_that_were_given(server: RunningServer, fields: dict[str, str]) -> None:
    """Nothing is stored otherwise."""
    given = permitted(server)
    answer = send(server, given["upload_url"], b"x", fields)

    assert (400, True) == (answer.status, "the field key" in answer.json["detail"])
    assert 404 == server.ask("GET", f"/v4/files/posts/{given['upload_id']}").status


def test_the_signature_covers_the_upload_and_its_limit(server: RunningServer) -> None:
    """A changed URL, one for another method, and none at all are refused; the error shows no signature."""
    given = permitted(server, size_limit=5)
    url = urlsplit(given["upload_url"]).path
    signature = url.split("/")[4]
    refused = [
        send(server, url.removesuffix("/5") + "/50", b"x", given["upload_fields"]),
        send(server, urlsplit(given["url"]).path, b"x", given["upload_fields"]),
        send(server, url.partition(signature)[2], b"x", given["upload_fields"]),
    ]

    assert [403, 405, 401] == [reply.status for reply in refused]
    assert signature not in "".join(reply.body.decode() for reply in refused)


def test_two_forms_at_once(server: RunningServer) -> None:
    """One of them is stored, at the URL and in the repository, and the others are told so."""
    given = permitted(server, name="once.txt")
    contents = [b"one", b"two", b"three", b"four"]
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda each: send(server, given["upload_url"], each, given["upload_fields"]), contents))
    stored = server.ask("GET", urlsplit(given["url"]).path, token=None).body

    assert [201, 400, 400, 400] == sorted(reply.status for reply in replies)
    assert 1 == [record["name"] for record in server.ask("GET", "/v3/pipeline_files").json].count("once.txt")
    assert dict(zip(contents, (reply.status for reply in replies), strict=True))[stored] == 201


def test_another_namespace_does_not_see_it(server: RunningServer) -> None:
    """A token of it gets the same answer as for an unknown upload."""
    given = permitted(server)
    send(server, given["upload_url"], b"x", given["upload_fields"])

    assert 404 == server.ask("GET", f"/v4/files/posts/{given['upload_id']}", token=OTHER_TOKEN).status


@pytest.mark.parametrize(
    "asked",
    [
        {"name": 1},
        {"name": None},
        {"name": "a@b"},
        {"name": "a/.."},
        {"size_limit": -1},
        {"size_limit": "5"},
        {"size_limit": True},
    ],
)
def test_a_request_that_cannot_be_right(server: RunningServer, asked: dict[str, object]) -> None:
    """In one sentence."""
    reply = server.ask("POST", "/v4/files/presigned-post", json.dumps({"name": "a"} | asked).encode())
    assert 400 == reply.status
    assert reply.json["detail"]
