"""Somebody with a token, or with a signed URL, sends what no client of the Hub sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.quotas import Quota
from filestore.core.scopes import Scope
from filestore.http.server.routes.hub import lfs
from filestore.http.server.routes.hub.commit import BODY_LIMIT
from tests.support.changed_tokens import changed
from tests.support.generator import octets
from tests.support.hub_writing import HubRepository, header, line, oid, put_file, put_object, send
from tests.support.quotas import set_quota
from tests.support.server import OTHER_TOKEN, RunningServer, eventually, reply, running_server

CONTENT = octets(1, 1 << 20)
OTHER = octets(2, 1 << 20)

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two workers."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2, guesses_limit=100_000) as server:
        yield server


@pytest.fixture
def repository(server: RunningServer) -> HubRepository:
    """A repository that was just created."""
    repository = HubRepository(server, f"team/model-{next(_numbers)}")
    assert repository.create().status == 200
    return repository


def spooled(server: RunningServer, start: str = "") -> set[str]:
    """What waits in the spool folder and has a name that begins with `start`."""
    return {path.name for path in (server.root / "tmp").glob(f"uploads-*/{start}*")}


def token_with(server: RunningServer, scope: Scope, prefix: str = "") -> str:
    """Make a token, and return it."""
    token = f"a-token-of-{scope}-{prefix}"
    given: dict[str, Any] = {"namespace": DEFAULT_NAMESPACE, "label": "", "scope": scope, "prefix": prefix}
    changed(server, lambda _, transaction: transaction.add_token(token_digest(token), **given))
    return token


def test_an_object_of_other_bytes(repository: HubRepository) -> None:
    """It is refused, nothing of it is used, and the right bytes are taken after that."""
    (described,) = repository.batch(CONTENT)
    href = described["actions"]["upload"]["href"]
    answer = send("PUT", href, OTHER)
    assert (422, "object-mismatch") == (answer.status, answer.slug)
    assert "actions" in repository.batch(CONTENT)[0]
    assert "actions" in repository.batch(OTHER)[0]
    assert 400 == repository.commit(put_object("a.bin", CONTENT)).status
    assert 200 == send("PUT", href, CONTENT).status
    repository.committed(put_object("a.bin", CONTENT))
    eventually(lambda: not spooled(repository.server, "form-"))


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b""])
def test_an_object_of_another_size(repository: HubRepository, content: bytes) -> None:
    """It is refused, whether its size is announced or not."""
    missing = octets(next(_numbers) + 100, len(CONTENT))
    (described,) = repository.batch(missing)
    href = described["actions"]["upload"]["href"]
    assert 422 == send("PUT", href, content).status
    assert 422 == send("PUT", href, missing[: len(content)] + content[len(missing) :], announced=len(content)).status


def test_an_object_of_many_more_bytes(repository: HubRepository) -> None:
    """A client that announces no size is stopped as soon as there are too many."""
    missing = octets(300, 1000)
    (described,) = repository.batch(missing)
    path = described["actions"]["upload"]["href"].removeprefix(repository.server.url)
    connection = repository.server.begin("PUT", path, "Transfer-Encoding: chunked", body=b"1000\r\n" + b"x" * 4096 + b"\r\n")
    with connection:
        assert 422 == reply(connection).status


def test_a_signed_url_of_another_object(repository: HubRepository) -> None:
    """The signature is for one object, one size and one method."""
    (described,) = repository.batch(octets(400, 1000))
    href = described["actions"]["upload"]["href"]
    wrong = [href.replace(described["oid"], oid(CONTENT)), href.replace("/1000", "/1001")]
    for url in wrong:
        assert 403 == send("PUT", url, b"x" * 1000).status
    assert send("POST", href, b"x" * 1000).status in {403, 405}


def test_an_object_without_a_token(server: RunningServer) -> None:
    """It is refused."""
    path = lfs.OBJECT_PATH.format(oid=oid(CONTENT), size=len(CONTENT))
    assert 401 == server.ask("PUT", path, CONTENT, token=None).status
    assert 401 == server.ask("POST", lfs.VERIFY_PATH, b"{}", token=None).status


def test_parts_of_other_bytes(repository: HubRepository) -> None:
    """The completion is refused, and the upload is gone: its parts can never be right."""
    content = octets(9, lfs.SINGLE_LIMIT + 10)
    before = spooled(repository.server)
    (described,) = repository.batch(content)
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    answer = repository.upload_parts(described, wrong)
    assert (422, "object-mismatch") == (answer.status, answer.slug)
    assert before == spooled(repository.server)
    assert 404 == repository.complete(described, []).status
    (again,) = repository.batch(content)
    assert 200 == repository.upload_parts(again, content).status
    repository.committed(put_object("a.bin", content))


@pytest.mark.parametrize(
    "parts",
    [
        None,
        [],
        [1],
        [{"partNumber": 1}],
        [{"partNumber": 0, "etag": "x"}],
        [{"partNumber": 1, "etag": "x"}],
        [{"partNumber": 1, "etag": 1}],
        [{"partNumber": 10**9, "etag": "x"}],
    ],
)
def test_parts_that_are_missing(repository: HubRepository, parts: object) -> None:
    """The completion is refused."""
    (described,) = repository.batch_of([{"oid": "5" * 64, "size": lfs.SINGLE_LIMIT + 1}])
    assert 404 == repository.complete(described, [{"partNumber": 1, "etag": "x"}]).status
    assert 200 == send("PUT", described["actions"]["upload"]["header"]["1"], b"x").status
    assert 400 == repository.complete(described, parts).status


def test_parts_for_another_object(repository: HubRepository) -> None:
    """The URL of the completion is for one object."""
    before = spooled(repository.server)
    (described,) = repository.batch_of([{"oid": "6" * 64, "size": lfs.SINGLE_LIMIT + 1}])
    assert before == spooled(repository.server)
    assert 400 == repository.complete({**described, "oid": "7" * 64}, []).status


@pytest.mark.parametrize(
    "objects",
    [
        None,
        "all",
        [1],
        [{}],
        [{"oid": "x", "size": 1}],
        [{"oid": "A" * 64, "size": 1}],
        [{"oid": "0" * 64}],
        [{"oid": "0" * 64, "size": -1}],
        [{"oid": "0" * 64, "size": 1 << 70}],
        [{"oid": "0" * 64, "size": True}],
        [{"oid": "../" * 21 + "x", "size": 1}],
        [{"oid": "0" * 64, "size": 1}] * (lfs.OBJECTS_LIMIT + 1),
    ],
)
def test_a_batch_of_nothing_valid(repository: HubRepository, objects: object) -> None:
    """It is refused."""
    assert 400 == repository.ask_batch({"objects": objects}).status


def test_an_upload_of_another_namespace(repository: HubRepository) -> None:
    """Its id begins no upload, and its parts are not those of this one."""
    server = repository.server
    (described,) = repository.batch_of([{"oid": "9" * 64, "size": lfs.SINGLE_LIMIT + 1}])
    url = described["actions"]["upload"]["header"]["1"]
    assert 200 == send("PUT", url, b"x").status
    path = "/api/lfs/" + url.partition("/api/lfs/")[2]
    assert 404 == server.ask("PUT", path, b"y", token=OTHER_TOKEN).status
    assert 404 == server.ask("PUT", path.replace("/uploads/", "/uploads/x"), b"y").status
    assert 200 == send("PUT", url, b"x").status


def test_a_batch_for_something_else(repository: HubRepository) -> None:
    """Only uploads by SHA-256 are known."""
    for document in ({"operation": "download"}, {"hash_algo": "md5"}, {"transfers": 7, "operation": 1}):
        assert 400 == repository.ask_batch({"objects": [], **document}).status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"{",
        b"[]",
        b"\xff\xfe",
        json.dumps(header()).encode()[:-3],
        json.dumps(put_file("a", b"x")).encode(),
        json.dumps(header()).encode() + b"\n" + json.dumps(header()).encode(),
        json.dumps(header()).encode() + b"\n" + json.dumps(put_file("a", b"content")).encode()[:-9],
        json.dumps(header("\x00")).encode() + b"\n" + json.dumps(put_file("a", b"content")).encode(),
    ],
)
def test_a_commit_that_is_cut_or_out_of_order(repository: HubRepository, body: bytes) -> None:
    """It is refused, and nothing changes."""
    before = repository.head()
    assert 400 == repository.commit_body(body).status
    assert before == repository.head()


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\0b", ".git/config", "a/", "C:/x"])
def test_paths_that_escape(repository: HubRepository, path: str) -> None:
    """No operation takes them."""
    before = repository.committed(put_file("b", b"x"))
    for operation in (
        put_file(path, b"x"),
        put_object(path, CONTENT),
        line("deletedFile", path=path),
        line("copyFile", path=path, srcPath="b"),
        line("copyFile", path="c", srcPath=path),
    ):
        assert 400 == repository.commit(operation).status
    assert before == repository.head()


def test_a_file_in_the_place_of_a_folder(repository: HubRepository) -> None:
    """No tree can have both."""
    before = repository.committed(put_file("dir/a", b"x"), put_file("file", b"x"))
    for operations in ([put_file("dir", b"x")], [put_file("file/b", b"x")], [put_file("x", b""), put_file("x/y", b"")]):
        assert 400 == repository.commit(*operations).status
    assert before == repository.head()


def test_an_enormous_commit(repository: HubRepository) -> None:
    """It is refused before its body is read."""
    path = f"/api/models/{repository.name}/commit/main"
    with repository.server.begin("POST", path, f"Content-Length: {BODY_LIMIT + 1}", body=b"{") as connection:
        assert 413 == reply(connection).status


def test_a_client_that_hangs_up(repository: HubRepository) -> None:
    """Nothing is committed, and nothing stays in the spool folder."""
    before = repository.head()
    body = b"".join(json.dumps(each).encode() + b"\n" for each in (header(), put_file("a", CONTENT)))
    path = f"/api/models/{repository.name}/commit/main"
    for headers, sent in ((f"Content-Length: {len(body) + 10}", body), ("Transfer-Encoding: chunked", b"10\r\n" + body[:16])):
        with repository.server.begin("POST", path, headers, body=sent):
            eventually(lambda: bool(spooled(repository.server, "form-")))
    eventually(lambda: not spooled(repository.server, "form-"))
    assert before == repository.head()


def test_scopes(repository: HubRepository) -> None:
    """A token to write makes commits, also such that delete files, and removes neither a repository nor a label."""
    server = repository.server
    repository.committed(put_file("a", b"x"), put_file("b", b"y"))
    reader = HubRepository(server, repository.name, token=token_with(server, Scope.READ))
    for answer in (
        reader.commit(put_file("c", b"x")),
        reader.ask_batch({"objects": []}),
        reader.api("POST", "preupload/main", {"files": []}),
        reader.api("POST", "tag/main", {"tag": "v1"}),
        reader.api("PUT", "settings", {"private": True}),
        reader.delete(),
        HubRepository(server, "team/of-a-reader", token=reader.token).create(),
    ):
        assert (403, "scope-missing") == (answer.status, answer.slug)
        assert "of the scope" in answer.headers["X-Error-Message"]
    writer = HubRepository(server, repository.name, token=token_with(server, Scope.WRITE))
    writer.committed(line("deletedFile", path="b"))
    assert 200 == writer.api("POST", "tag/main", {"tag": "v1"}).status
    for answer in (writer.delete(), writer.api("DELETE", "tag/v1"), writer.api("DELETE", "branch/x")):
        assert (403, "scope-missing") == (answer.status, answer.slug)
    remover = HubRepository(server, repository.name, token=token_with(server, Scope.DELETE))
    assert 200 == remover.api("DELETE", "tag/v1").status
    assert 200 == remover.delete().status


def test_a_token_of_a_prefix(repository: HubRepository) -> None:
    """It sees no other repository, and creates none."""
    token = token_with(repository.server, Scope.DELETE, "team/mine-")
    other = HubRepository(repository.server, repository.name, token=token)
    for answer in (other.commit(put_file("a", b"")), other.ask_batch({"objects": []}), other.create()):
        assert (403, "outside-prefix") == (answer.status, answer.slug)
    assert 404 == other.delete().status
    own = HubRepository(repository.server, "team/mine-1", token=token)
    assert 200 == own.create().status
    own.upload(octets(500, 1 << 20))
    (described,) = own.batch_of([{"oid": "8" * 64, "size": lfs.SINGLE_LIMIT + 1}])
    assert 200 == send("PUT", described["actions"]["upload"]["header"]["1"], b"x").status
    own.committed(put_file("a", b"x"))


def test_a_url_of_a_token_that_is_removed(server: RunningServer, repository: HubRepository) -> None:
    """It ends with the token that asked for it."""
    token = token_with(server, Scope.WRITE, "team/")
    content = octets(600, 1000)
    (described,) = HubRepository(server, repository.name, token=token).batch(content)
    changed(server, lambda _, transaction: transaction.remove_token(token_digest(token)))

    def is_refused() -> bool:
        # The connection of a request that is under way is cut.
        with suppress(ConnectionError):
            return send("PUT", described["actions"]["upload"]["href"], content).status == 403
        return False

    eventually(is_refused)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"upload_limit": 100_000}, {"uploads_size_limit": 100_000}])
def test_limits_of_uploads(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Those of forms and parts are those of objects too."""
    with running_server(tmp_path / "root", **settings) as server:
        repository = HubRepository(server)
        assert repository.create().status == 200
        answer = repository.ask_batch({"objects": [{"oid": oid(CONTENT), "size": len(CONTENT)}]})
        if "upload_limit" in settings:
            assert (413, "limit-exceeded") == (answer.status, answer.slug)
            return
        href = answer.json["objects"][0]["actions"]["upload"]["href"]
        assert (413, "uploads-too-large") == ((sent := send("PUT", href, CONTENT)).status, sent.slug)
        assert (413, "uploads-too-large") == ((sent := repository.commit(put_file("a", CONTENT))).status, sent.slug)


@pytest.mark.slow
def test_a_quota_that_is_full(tmp_path: Path) -> None:
    """Objects and commits are refused, with what the client shows."""
    set_quota(tmp_path / "root", Quota(size=2_000_000))
    with running_server(tmp_path / "root") as server:
        repository = HubRepository(server)
        assert repository.create().status == 200
        repository.upload(CONTENT)
        repository.committed(put_object("a", CONTENT))
        for answer in (sent_object(repository, OTHER), repository.commit(put_file("b", OTHER))):
            assert (507, "quota-exceeded") == (answer.status, answer.slug)
            assert "quota" in answer.headers["X-Error-Message"]


def sent_object(repository: HubRepository, content: bytes) -> Any:
    """Send an object and commit it, as far as that is permitted."""
    answer = repository.ask_batch({"objects": [{"oid": oid(content), "size": len(content)}]})
    if answer.status == 200:
        answer = send("PUT", answer.json["objects"][0]["actions"]["upload"]["href"], content)
    return repository.commit(put_object("c", content)) if answer.status == 200 else answer
