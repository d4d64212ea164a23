"""Somebody whose token was removed goes on with what it had begun, at a server with two workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.http.wire import API
from filestore.repository.given_tokens import remove_given
from filestore.repository.index.protocol import Transaction
from tests.support.changed_tokens import ASKED, answered, changed, ends, is_closing, statuses
from tests.support.generator import octets
from tests.support.server import FORM, TOKEN, RunningServer, eventually, form, running_server
from tests.support.uploads import PartsUpload, put

pytestmark = pytest.mark.slow

THIEF, FRIEND = "a-token-that-was-stolen", "a-token-of-the-same-namespace"
SIZE = 24 << 20
"""More than the buffers of a connection hold."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers, and a large file."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2, stall_seconds=60, guesses_limit=100_000) as server:
        assert 201 == server.upload("large.bin", octets(1, SIZE)).status
        yield server


@pytest.fixture(autouse=True)
def _tokens(server: RunningServer) -> None:
    """Both tokens are valid at the start of a test."""
    changed(server, lambda _, transaction: add(transaction, THIEF, FRIEND))


async def add(transaction: Transaction, *tokens: str) -> None:
    """Add tokens of the default namespace."""
    for token in tokens:
        await transaction.add_token(token_digest(token), namespace=DEFAULT_NAMESPACE, label="")


def remove(server: RunningServer, token: str) -> None:
    """Remove a token, as `filestore token rm` does."""
    changed(server, lambda _, transaction: transaction.remove_token(token_digest(token)))


def record_of(server: RunningServer) -> dict[str, str]:
    """The record of the large file."""
    (record,) = [each for each in server.ask("GET", f"{API}/files").json["files"] if each["name"] == "large.bin"]
    assert isinstance(record, dict)
    return record


def signed(server: RunningServer, token: str) -> str:
    """The path that the server signs for the large file. Both workers know that the token is back."""
    answer = server.ask("POST", f"{API}/files/{record_of(server)['id']}/sign", token=token)
    assert 200 == answer.status
    path = f"/{answer.json['path']}"
    eventually(lambda: {200} == statuses(server, "HEAD", path, token=None))
    return path


def test_a_removed_token_reads_on(server: RunningServer) -> None:
    """Both workers refuse it, and no other token."""
    path = f"{API}/repository"
    assert {200} == statuses(server, "GET", path, token=THIEF)
    remove(server, THIEF)
    eventually(lambda: {401} == statuses(server, "GET", path, token=THIEF))
    assert {200} == statuses(server, "GET", path, token=FRIEND)


def test_a_signed_url_of_a_removed_token(server: RunningServer) -> None:
    """Both workers refuse it. The URL that another token of the namespace has asked for goes on."""
    stolen, kept = signed(server, THIEF), signed(server, FRIEND)
    assert {200} == statuses(server, "HEAD", stolen, token=None) | statuses(server, "HEAD", kept, token=None)
    remove(server, THIEF)
    eventually(lambda: {403} == statuses(server, "HEAD", stolen, token=None))
    assert {200} == statuses(server, "HEAD", kept, token=None)
    assert "was removed" in server.ask("GET", stolen, token=None).json["detail"]


def test_a_part_url_of_a_removed_token(server: RunningServer) -> None:
    """It takes no part any more. Another token of the namespace finishes the upload."""
    upload = PartsUpload(server, "parts.bin", token=THIEF)
    url = upload.url(1).json["upload_url"]
    # A process that refused a URL of this token, which an earlier test removed, looks again after at most a second.
    eventually(lambda: {200} == {answered(lambda: put(url, b"content")) for _ in range(ASKED)})
    remove(server, THIEF)
    eventually(lambda: {403} == {answered(lambda: put(url, b"content")) for _ in range(ASKED)})
    upload.token = FRIEND
    parts = [upload.put(1, b"content"), upload.put(2, b"of a friend")]
    assert 201 == upload.finish(parts).status


@pytest.mark.parametrize("by", ["token", "signed URL"])
def test_a_download_of_a_removed_token(server: RunningServer, by: str) -> None:
    """It is cut, although the client has not read all of it; that of another token is not."""
    requests = {}
    for token in (THIEF, FRIEND):
        path = signed(server, token) if by == "signed URL" else f"/{record_of(server)['path']}"
        header = f"Authorization: Bearer {token}\r\n" if by == "token" else ""
        requests[token] = server.connection()
        requests[token].sendall(f"GET {path} HTTP/1.1\r\nHost: server\r\n{header}Connection: close\r\n\r\n".encode())
        assert requests[token].recv(1 << 12).startswith(b"HTTP/1.1 200 ")
    remove(server, THIEF)
    eventually(lambda: {401} == statuses(server, "GET", f"{API}/repository", token=THIEF))
    # Before anything is read: the server cannot send all of it, so it is the cut that ends the connection.
    eventually(lambda: is_closing(requests[THIEF]))
    assert ends(requests[THIEF]) < SIZE
    assert ends(requests[FRIEND]) > SIZE - (1 << 13)
    for connection in requests.values():
        connection.close()


def test_an_upload_of_a_removed_token(server: RunningServer) -> None:
    """A form that is half sent is cut, and nothing of it is stored."""
    body = form("half.bin", octets(2, 1 << 20))
    connection = server.connection()
    head = [
        "POST /v4/files HTTP/1.1",
        "Host: server",
        f"Authorization: Bearer {THIEF}",
        f"Content-Type: {FORM['Content-Type']}",
        f"Content-Length: {len(body)}",
        "Expect: 100-continue",
    ]
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    # Then the token was accepted.
    assert connection.recv(1 << 12).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body[: len(body) // 2])
    remove(server, THIEF)
    assert 0 == ends(connection)
    connection.close()
    assert "half.bin" not in {each["name"] for each in server.ask("GET", f"{API}/files").json["files"]}


def test_the_token_of_a_run_is_removed_while_the_server_runs(server: RunningServer) -> None:
    """A worker that forgets it would know it again from its arguments."""
    stolen = signed(server, TOKEN)
    changed(server, lambda index, transaction: remove_given(index, transaction, token_digest(TOKEN), namespace=DEFAULT_NAMESPACE))
    try:
        eventually(lambda: {401} == statuses(server, "GET", f"{API}/repository", token=TOKEN))
        eventually(lambda: {403} == statuses(server, "HEAD", stolen, token=None))
        assert {200} == statuses(server, "GET", f"{API}/repository", token=FRIEND)
    finally:
        changed(server, lambda _, transaction: transaction.set_task_state("", "given-tokens", None))
        eventually(lambda: {200} == statuses(server, "GET", f"{API}/repository", token=TOKEN))
