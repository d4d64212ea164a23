"""Somebody asks for parts of bytes that are stored already, to learn or to take what the token does not permit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from blake3 import blake3

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.scopes import Scope
from tests.support.changed_tokens import answered, changed
from tests.support.generator import octets
from tests.support.server import TOKEN, Reply, RunningServer, eventually, running_server
from tests.support.uploads import PARTS, PartsUpload, Sent

pytestmark = pytest.mark.slow

SECRET = octets(31, 400_000)
PREFIX = "logs_"
UNKNOWN = f"file_{'0' * 32}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def secret(server: RunningServer) -> str:
    """The id of a file outside of the prefix."""
    return str(server.upload("secret.bin", SECRET).json["id"])


def give(server: RunningServer, token: str, **properties: Any) -> str:
    """Make a token, as a command does. Return it."""
    given = {"namespace": DEFAULT_NAMESPACE, "label": "", **properties}
    changed(server, lambda _, transaction: transaction.add_token(token_digest(token), **given))
    return token


def told(answer: Reply, file_id: str) -> tuple[int, str]:
    """The status and the text of an answer, with another id in the place of that of the file."""
    return answer.status, answer.json["detail"].replace(file_id, UNKNOWN)


def test_a_file_outside_of_the_prefix_is_not_copied(server: RunningServer, secret: str) -> None:
    """Who knows its id and the digest of its bytes gets the answer for a file that never was, whatever is guessed."""
    upload = PartsUpload(server, f"{PREFIX}guess", token=give(server, "a-token-for-logs", prefix=PREFIX, scope=Scope.WRITE))
    absent = told(upload.copy(1, UNKNOWN, 0, SECRET[:1000]), UNKNOWN)
    assert 404 == absent[0]
    for offset, content in ((0, SECRET[:1000]), (0, b"a wrong guess"), (10**9, b"x")):
        assert absent == told(upload.copy(1, secret, offset, content), secret)
    assert [] == upload.parts().json["parts"]


def test_an_upload_outside_of_the_prefix_is_neither_listed_nor_cancelled(server: RunningServer, secret: str) -> None:
    """It is not found, and stays. One inside is open to both."""
    token = give(server, "a-token-for-logs", prefix=PREFIX, scope=Scope.WRITE)
    outside = PartsUpload(server, "outside.bin")
    part = outside.put(1, b"content")
    outside.token = token
    for answer in (outside.parts(), outside.copy(2, secret, 0, b"x"), outside.cancel(), outside.finish([part])):
        assert (404, "upload-not-found") == (answer.status, answer.slug)
    outside.token = TOKEN
    assert 201 == outside.finish([part]).status

    inside = PartsUpload(server, f"{PREFIX}inside")
    inside.put(1, b"content")
    inside.token = token
    assert 1 == len(inside.parts().json["parts"])
    assert 204 == inside.cancel().status


def test_a_reader_neither_copies_nor_cancels(server: RunningServer, secret: str) -> None:
    """It may read the file, and learns nothing of uploads. A writer may do all of it, and removes nothing that is stored."""
    upload = PartsUpload(server, "mine.bin")
    part = upload.put(1, b"content")
    upload.token = give(server, "a-reader", scope=Scope.READ)
    for answer in (upload.parts(), upload.copy(2, secret, 0, SECRET), upload.cancel()):
        assert (403, "scope-missing") == (answer.status, answer.slug)

    upload.token = give(server, "a-writer", scope=Scope.WRITE)
    two = Sent(2, upload.copy(2, secret, 0, SECRET).headers["ETag"])
    record = upload.finish([part, two]).json
    assert 404 == upload.cancel().status
    other = PartsUpload(server, "mine.bin", token=upload.token)
    other.copy(1, record["id"], 0, b"content")
    assert 204 == other.cancel().status
    for file_id, content in ((record["id"], b"content" + SECRET), (secret, SECRET)):
        assert content == server.ask("GET", f"{PARTS}/download/{file_id}").body


def test_no_signed_url_copies_lists_or_cancels(server: RunningServer, secret: str) -> None:
    """The URL of a part permits to send this part, and nothing else of its upload."""
    upload = PartsUpload(server, "signed.bin")
    url = upload.url(1).json["upload_url"].removeprefix(server.url)
    source = {"file_id": secret, "offset": 0, "size": len(SECRET), "tag": blake3(SECRET).hexdigest()}
    for method, path in (("POST", f"{url}/copy"), ("GET", url.removesuffix("/1")), ("DELETE", url.removesuffix("/parts/1"))):
        answer = server.ask(method, path, json.dumps(source).encode(), token=None)
        assert answer.status in {401, 404, 405}, answer.body
    assert 200 == upload.parts().status


def test_a_removed_token_copies_nothing_more(server: RunningServer, secret: str) -> None:
    """Both workers refuse it, while it asks all the time. Then nothing arrives any more."""
    token = give(server, "a-token-that-is-removed", scope=Scope.WRITE)
    upload = PartsUpload(server, "removed.bin", token=token)
    ended = threading.Event()

    def ask(first: int) -> list[int]:
        numbers = iter(range(first, first + 5_000))
        found = [0]
        while not ended.is_set() and (number := next(numbers, None)) is not None:
            found.append(answered(partial(upload.copy, number, secret, 0, SECRET[:1000])))
        return found[1:]

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, first) for first in (1, 5_001)]
        changed(server, lambda _, transaction: transaction.remove_token(token_digest(token)))
        eventually(lambda: {401} == {answered(upload.parts) for _ in range(16)})
        ended.set()
        statuses = {status for each in asking for status in each.result()}
    assert statuses <= {0, 200, 401}
    before = server.ask("GET", f"{PARTS}/uploads/{upload.id}/parts").json["parts"]
    assert 401 == upload.copy(10_000, secret, 0, SECRET[:1000]).status
    assert before == server.ask("GET", f"{PARTS}/uploads/{upload.id}/parts").json["parts"]
