"""`filestore bench --server URL` measures the link to a server, and leaves the server as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestore.errors import ScopeMissing, Unreachable
from filestore_cli.bench.link import FRAMES_MAX, Address, PlainConnection, round_trip_seconds, send_bare_body
from tests.support.authority import Authority
from tests.support.commands import Home, Server
from tests.support.interrupted_bench import interrupted_bench
from tests.support.server import TOKEN

MIB = 1 << 20
DOCUMENTED = [
    "server",
    "kind",
    "size",
    "codec",
    "connections",
    "machine",
    "ceilings",
    "round_trip_seconds",
    "link",
    "push",
    "fetch",
    "plain_upload_rate",
    "plain_download_rate",
    "records_removed",
    "line",
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Where the command runs, with a folder to work in."""
    (tmp_path / "work").mkdir()
    return Home(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the user's own."""
    folder = tmp_path_factory.mktemp("served")
    with Home(folder).server(root=folder / "root") as server:
        yield server


def address(server: Server, token: str | None = None) -> Address:
    """The address of a server, without a proxy."""
    return Address(server.url, token or server.environ["FILESTORE_TOKEN"], "", (None, None), 30.0)


def stored(server: Server) -> set[Path]:
    """The frames and manifests that a server keeps, and what it has begun."""
    return {path for name in ("chunks", "manifests", "staging") for path in (server.root / name).rglob("*") if path.is_file()}


def received_size(server: Server) -> int:
    """Bytes of bodies that the server has received."""
    with PlainConnection(address(server)) as connection:
        stages = connection.document(connection.exchange("GET", "/native/v1/status"), expected=200)["stages"]
    return int(stages.get("receive", {"size": 0})["size"])


def assert_result(found: Any) -> None:
    """The members that are documented, with numbers that can be."""
    assert DOCUMENTED == list(found)
    assert (MIB, "bf16", 2) == (found["size"], found["kind"], found["records_removed"])
    assert 0 < found["round_trip_seconds"] < 10
    for direction in ("send", "receive"):
        assert {"alone", "together"} == set(found["link"][direction])
        assert all(rate > 1e5 for rate in found["link"][direction].values())
    assert MIB == found["push"]["size"] == found["fetch"]["size"]
    assert found["push"]["bytes_sent"] == found["fetch"]["bytes_received"] < MIB
    for verb in ("push", "fetch"):
        assert found[verb]["limited_by"]
        assert found[verb]["limited_by_reason"]
    assert min(found["plain_upload_rate"], found["plain_download_rate"]) > 1e4


@pytest.mark.slow
def test_a_server_is_measured_and_left_as_it_was(home: Home, server: Server) -> None:
    """`bench --server` is `bench remote --server`."""
    before = stored(server)
    arguments = ["--server", server.url, "--size", "1MiB", "--folder", str(home.folder / "work")]
    assert_result(home.result("bench", *arguments, environ=server.environ))
    assert before == stored(server)
    assert [] == home.result("ls", environ=server.environ)["files"]
    assert [] == list((home.folder / "work").iterdir())


@pytest.mark.slow
def test_a_person_sees_a_line_for_a_report(home: Home, server: Server) -> None:
    """It names neither the server nor the token."""
    arguments = ["remote", "--server", server.url, "--size", "1MiB", "--folder", str(home.folder / "work"), "--quiet"]
    done = home.run("bench", *arguments, environ=server.environ)
    assert (0, "") == (done.returncode, done.stderr)
    *lines, line = done.stdout.splitlines()
    assert "For a report:" == lines[-1]
    assert all(len(each) <= 80 for each in lines if " limited by " not in each), lines
    assert re.fullmatch(
        r"filestore \S+, 1\.05 MB of bf16, round trip [0-9.]+ ms, link \S+ .B/s up and \S+ .B/s down,"
        r" push \S+ .B/s \(limit: [a-z ]+\), fetch \S+ .B/s \(limit: [a-z ]+\),"
        r" plain upload \S+ .B/s, plain download \S+ .B/s, \d+ cores at the client",
        line,
    ), line
    assert "Removed again: 2 records, and the chunks that no other record needs." in lines


@pytest.mark.slow
def test_a_server_with_tls_is_measured(home: Home, tmp_path: Path) -> None:
    """Its certificate is checked, also by the plain requests."""
    authority = Authority(tmp_path / "authority")
    with authority.server(tmp_path / "root", authority.pair("server"), workers=1) as served:
        environ = {"FILESTORE_TOKEN": TOKEN, "SSL_CERT_FILE": str(authority.path)}
        arguments = ["--server", served.url, "--size", "1MiB", "--folder", str(home.folder / "work")]
        assert_result(home.result("bench", *arguments, environ=environ))


@pytest.mark.slow
def test_a_token_that_cannot_remove_is_told_so_before_anything_is_sent(home: Home, server: Server) -> None:
    """The measurement is made all the same, and the records are named again after it."""
    made = home.result("token", "new", "--scope", "write", "--namespace", "writers", "--root", server.root)
    environ = {"FILESTORE_TOKEN": made["token"]}
    arguments = ["--server", server.url, "--size", "1MiB", "--folder", str(home.folder / "work"), "--quiet", "--json"]
    done = home.run("bench", *arguments, environ=environ)
    assert 2 == done.stderr.count("\n"), done.stderr
    first, second = done.stderr.splitlines()
    assert 0 == done.returncode
    assert first.startswith("Warning: this token may not remove files, so what is pushed now stays on the server: two records")
    assert re.match(r"Warning: the records named filestore-bench-\w+, filestore-bench-\w+ may still be there, since ", second)
    assert 0 == json.loads(done.stdout)["records_removed"]
    assert 2 == len(home.result("ls", environ=environ | {"FILESTORE_URL": server.url})["files"])


@pytest.mark.slow
def test_a_token_that_cannot_write_is_refused_at_once(home: Home, server: Server) -> None:
    """In one sentence, before content is made."""
    made = home.result("token", "new", "--scope", "read", "--root", server.root)
    arguments = ["--server", server.url, "--size", "1MiB", "--folder", str(home.folder / "work"), "--quiet"]
    done = home.run("bench", *arguments, environ={"FILESTORE_TOKEN": made["token"]})
    assert 1 == done.returncode
    assert "scope" in done.stderr.splitlines()[-1]


@pytest.mark.slow
async def test_an_interrupted_measurement_leaves_no_record(home: Home, server: Server) -> None:
    """Nor a file here."""
    work = home.folder / "work"
    done = await interrupted_bench(home, server, "--folder", str(work), stored=stored)
    assert 130 == done.status
    assert [] == home.result("ls", environ=server.environ)["files"]
    assert [] == list(work.iterdir())


@pytest.mark.parametrize("count", [1, 5, FRAMES_MAX])
def test_a_bare_body_is_read_and_not_stored(home: Home, server: Server, count: int) -> None:
    """The server receives all of it, and keeps nothing."""
    with PlainConnection(address(server)) as connection:
        before = stored(server)
        for _ in range(2):
            # The bytes that came with the head are not counted here.
            received = received_size(server)
            size = send_bare_body(connection, count << 20)
            assert 4 + count * (36 + MIB) == size
            assert size - (1 << 20) < received_size(server) - received <= size
    assert before == stored(server)
    assert 0 < round_trip_seconds(address(server)) < 10


def test_what_a_plain_request_fails_with_is_an_error_of_filestore(home: Home, server: Server) -> None:
    """As the native client reports it."""
    made = home.result("token", "new", "--scope", "read", "--root", server.root)
    with PlainConnection(address(server, made["token"])) as connection, pytest.raises(ScopeMissing):
        send_bare_body(connection, 1)
    with PlainConnection(address(server)._replace(url="http://127.0.0.1:1")) as connection, pytest.raises(Unreachable):
        connection.exchange("GET", "/healthz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "1MiB,2MiB"], "bench remote measures one size; give one --size"),
        (["--folder", "nowhere"], "{home}/nowhere to work in; make it first, or give another --folder"),
    ],
)
def test_bad_input_is_one_sentence(home: Home, server: Server, arguments: list[str], said: str) -> None:
    """Said before anything is made or moved."""
    failure = home.failure("bench", "--server", server.url, *arguments, environ=server.environ)
    assert failure.endswith(said.format(home=home.folder))
