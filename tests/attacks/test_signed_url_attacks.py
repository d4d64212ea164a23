from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from filestore.core.signing import signed_path
from filestore.http.wire import API
from tests.support.changed_tokens import signing_keys
from tests.support.frames import contents, encoded, manifest
from tests.support.server import OTHER_TOKEN, RunningServer, running_server

CONTENT = contents(1)[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers, and two files in one namespace."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2, signed_seconds=60) as server:
        server.put([encoded(CONTENT)])
        yield server


def stored(server: RunningServer, name: str = "name") -> dict[str, str]:
    """A record."""
    record: dict[str, str] = server.commit(manifest([CONTENT]).encoded, name=name).json
    return record


def signed(server: RunningServer, record: dict[str, str]) -> str:
    """Return the path that the server signs for a record."""
    answer = server.ask("POST", f"{API}/files/{record['id']}/sign")
    assert 200 == answer.status
    return f"/{answer.json['path']}"


@pytest.mark.slow
def test_a_signed_url_needs_nothing_else(server: RunningServer) -> None:
    """Every worker accepts it. The answer states the length, and HEAD and ranges work."""
    path = signed(server, stored(server))
    for _ in range(8):
        answer = server.ask("GET", path, token=None)
        assert (200, CONTENT, str(len(CONTENT))) == (answer.status, answer.body, answer.headers["Content-Length"])
    assert (200, b"") == server.ask("HEAD", path, token=None)[::2]
    assert (206, CONTENT[:5]) == server.ask("GET", path, token=None, headers={"Range": "bytes=0-4"})[::2]


def test_a_signature_opens_one_file(server: RunningServer) -> None:
    """It is not valid for another file, name, namespace or time, or for writing."""
    record, other = stored(server), stored(server, "other")
    path = signed(server, record)
    _, prefix, namespace, expires, signature, rest = path.split("/", 5)
    for changed in (
        f"/{prefix}/{namespace}/{expires}/{signature}/{signed(server, other).split('/', 5)[5]}",
        f"{path}.exe",
        f"/{prefix}/other/{expires}/{signature}/{rest}",
        f"/{prefix}/{namespace}/{int(expires) + 1}/{signature}/{rest}",
        f"/{prefix}/{namespace}/{expires}/{signature[:-1]}/{rest}",
        f"/{prefix}/{namespace}/{expires}/{'0' * 64}/{rest}",
        f"/{prefix}/{namespace}/{expires}//{rest}",
        f"/{prefix}/{namespace}/{expires}/{signature}/{record['path']}",
    ):
        assert server.ask("GET", changed, token=None).status in {403, 404}, changed
    assert server.ask("DELETE", path, token=None).status in {403, 405}
    assert server.ask("PUT", path, b"x", token=None).status in {403, 405}


def test_a_token_does_not_mend_a_signature(server: RunningServer) -> None:
    """A wrong signature is refused, also with a valid token."""
    path = signed(server, stored(server))
    assert 403 == server.ask("GET", path.replace("/name", "/nome")).status


def test_an_expired_url_says_so(server: RunningServer) -> None:
    """The answer is one sentence, and no byte of the file."""
    record = stored(server)
    rest = signed(server, record).split("/", 5)[5]
    past = signed_path(signing_keys(server), "GET", f"/{rest}", namespace="default", expires_at=int(time.time()) - 1)
    answer = server.ask("GET", past, token=None)
    assert (403, True) == (answer.status, "has expired" in answer.json["detail"])
    assert CONTENT not in answer.body


def test_a_url_dies_with_its_record(server: RunningServer) -> None:
    """A removed record is not found."""
    record = stored(server, "short-lived")
    path = signed(server, record)
    assert 200 == server.ask("DELETE", f"{API}/files/{record['id']}").status
    assert 404 == server.ask("GET", path, token=None).status


def test_nobody_signs_for_another_namespace(server: RunningServer) -> None:
    """A token of another namespace does not see the record, by any of its paths."""
    record = stored(server)
    run_path = signed(server, record).split("/", 5)[5]
    assert 404 == server.ask("POST", f"{API}/files/{record['id']}/sign", token=OTHER_TOKEN).status
    assert 404 == server.ask("GET", f"/{run_path}", token=OTHER_TOKEN).status
    assert 200 == server.ask("GET", f"/{run_path}").status
    assert 401 == server.ask("GET", f"/{run_path}", token=None).status


@pytest.mark.slow
def test_a_signature_outlives_a_restart(server: RunningServer) -> None:
    """The secret is in the repository."""
    path = signed(server, stored(server))
    with running_server(server.root) as again:
        assert 200 == again.ask("GET", path, token=None).status
