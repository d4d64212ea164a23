"""A server that starts while what it needs is away waits for it, and ends at once if waiting does not help."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.http.wire import API
from tests.support.ceph import Bucket
from tests.support.commands import SCRIPTS, Home
from tests.support.daemons import lasting_port
from tests.support.gateway_faults import KINDS, CutRequest, faulty_gateway
from tests.support.generator import octets
from tests.support.postgres import Postgres, PostgresServer, running_postgres
from tests.support.tls import CERTIFICATE, client_tls

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """A database server that a test may stop. It must start it again."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Home(folder)


@contextmanager
def starting(home: Home, environ: Mapping[str, str], *arguments: str, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start a server, without waiting for it. Its standard error goes to its standard output."""
    with subprocess.Popen(
        [SCRIPTS / "filestore", "serve", "--root", home.folder / "received", "--port", str(port), *arguments],
        env=home.environ | dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], found: str) -> list[str]:
    """Read lines up to the first one that has this text."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found in line:
            return said
    raise AssertionError("".join(said))


def place(bucket: Bucket, index_url: str) -> dict[str, str]:
    """What a server finds in its environment."""
    return {**bucket.environ, "FILESTORE_STORE": bucket.location("models"), "FILESTORE_INDEX": index_url}


class Answer(NamedTuple):
    """What a server has answered."""

    status: int
    headers: Message[str, str]
    said: dict[str, str]


def ask(port: int, path: str, *, method: str = "GET", tls: ssl.SSLContext | None = None) -> Answer:
    """Ask a server, as often as it takes until a connection is neither refused nor cut."""
    place = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    request = urllib.request.Request(f"{place}{path}", method=method, data=b"x" if method == "POST" else None)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60, context=tls) as answer:
                return Answer(answer.status, answer.headers, json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, json.load(error))
        except (urllib.error.URLError, ConnectionError):
            continue


def assert_waits(port: int, part: str, *, tls: ssl.SSLContext | None = None) -> None:
    """It is alive and not ready, says what it waits for, and tells all others to come back."""
    assert 200 == ask(port, "/healthz", tls=tls).status
    for method, path in (("GET", "/readyz"), ("GET", f"{API}/files"), ("POST", f"{API}/chunks"), ("GET", "/files/a.bin")):
        answer = ask(port, path, method=method, tls=tls)
        assert 503 == answer.status
        assert f"it waits for its {part}" in answer.said["detail"]
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["X-Request-Id"]
        assert "127.0.0.1" not in answer.said["detail"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_waits_at_its_start_answers(home: Home, bucket: Bucket, database: PostgresServer, workers: str) -> None:
    """A supervisor must not restart it, and a load balancer must not send it requests."""
    environ, port = place(bucket, database.postgres.new_database()), lasting_port()
    database.stop()
    try:
        with starting(home, environ, "--create", "--workers", workers, port=port) as process:
            until(process, "Warning: waiting for at most ")
            assert_waits(port, "index")
            database.start()
            until(process, "listening on ")
            assert 200 == ask(port, "/readyz").status
    finally:
        if not database._answers():
            database.start()


def test_a_server_with_a_certificate_answers_by_tls(home: Home, bucket: Bucket, postgres: Postgres) -> None:
    """Also while it waits."""
    environ, port = place(bucket, postgres.new_database()), lasting_port()
    environ["FILESTORE_STORE"] = "s3://models/one?endpoint=http://127.0.0.1:1"
    with starting(home, environ, "--create", "--tls-cert", str(CERTIFICATE), port=port) as process:
        until(process, "Warning: waiting for at most ")
        assert_waits(port, "object store", tls=client_tls())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def kill_workers(process: subprocess.Popen[str]) -> None:
    """Kill both workers of a server, and wait until those that follow them wait for their database."""
    for worker in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    for _ in range(2):
        until(process, "waiting for at most ")


def test_a_stop_ends_workers_that_wait(home: Home, bucket: Bucket, database: PostgresServer) -> None:
    """In order, although nothing can be opened."""
    environ, port = place(bucket, database.postgres.new_database()), lasting_port()
    with starting(home, environ, "--create", "--workers", "2", port=port) as process:
        until(process, "listening on ")
        database.stop()
        try:
            kill_workers(process)
            assert_waits(port, "index")
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            assert 0 == process.returncode, said
            assert "Traceback" not in said
        finally:
            database.start()


def test_workers_that_all_wait_answer(home: Home, bucket: Bucket, database: PostgresServer) -> None:
    """Those that follow workers which died in an outage. When it is over, all requests go to those that work."""
    environ, port = place(bucket, database.postgres.new_database()), lasting_port()
    with starting(home, environ, "--create", "--workers", "2", port=port) as process:
        until(process, "listening on ")
        database.stop()
        try:
            kill_workers(process)
            assert_waits(port, "index")
        finally:
            database.start()
        while ask(port, "/readyz").status != 200:
            pass
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(60)


def test_a_waiting_server_that_is_killed_leaves_its_port(home: Home, bucket: Bucket, postgres: Postgres) -> None:
    """Nothing answers for it any more, so that a service manager can start it again."""
    environ, port = place(bucket, postgres.new_database()), lasting_port()
    environ["FILESTORE_STORE"] = "s3://models/one?endpoint=http://127.0.0.1:1"
    with starting(home, environ, "--create", port=port) as process:
        until(process, "Warning: waiting for at most ")
        assert_waits(port, "object store")
        process.kill()
        process.communicate(timeout=60)  # until nobody has its output open
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_waits_for_the_database(home: Home, bucket: Bucket, database: PostgresServer, workers: str) -> None:
    """It says so in one line, and serves when the database is there. A stop ends it while it waits."""
    environ = place(bucket, database.postgres.new_database())
    database.stop()
    try:
        with starting(home, environ, "--create", "--workers", workers) as process:
            (line,) = until(process, "Warning: waiting for at most ")
            assert "the database cannot be reached" in line
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            assert (128 + signal.SIGTERM, "Interrupted by SIGTERM.\n") == (process.returncode, said), said
        with starting(home, environ, "--create", "--workers", workers) as process:
            until(process, "Warning: waiting for at most ")
            database.start()
            assert not [line for line in until(process, "listening on ") if line.startswith("Warning: ")]
            process.send_signal(signal.SIGTERM)
            assert 0 == process.wait(60)
    finally:
        if not database._answers():
            database.start()


def test_a_worker_that_dies_in_an_outage_is_replaced_after_it(home: Home, bucket: Bucket, database: PostgresServer) -> None:
    """The new one waits, and does not end again and again. The server itself goes on."""
    environ = place(bucket, database.postgres.new_database())
    with starting(home, environ, "--create", "--workers", "2") as process:
        until(process, "listening on ")
        database.stop()
        try:
            worker, *_ = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            os.kill(worker, signal.SIGKILL)
            said = until(process, "waiting for at most ")
            assert 1 == sum(" ended; another one takes its place" in line for line in said)
        finally:
            database.start()
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert 0 == process.returncode, rest
        assert "another one takes its place" not in rest


def test_the_log_of_an_outage_is_short(home: Home, bucket: Bucket, database: PostgresServer) -> None:
    """The first request that fails, each kind of work that waits, and a line with the number when it is over."""
    with starting(home, place(bucket, database.postgres.new_database()), "--create") as process:
        said = until(process, "listening on ")
        (token,) = re.findall(r"export FILESTORE_TOKEN=(\S+)", "".join(said))
        url = said[-1].removeprefix("listening on ").strip()
        request = urllib.request.Request(f"{url}{API}/files", headers={"Authorization": f"Bearer {token}"})
        database.stop()
        try:
            for _ in range(50):
                with pytest.raises(urllib.error.HTTPError) as raised:
                    urllib.request.urlopen(request, timeout=60)
                with raised.value as answer:
                    assert 503 == answer.code
        finally:
            database.start()
        said = until(process, ": no request fails any more; 50 failed in ")
        lines = [line for line in said if " ERROR " in line or " WARNING " in line]
        assert 1 == sum(" failed, request " in line for line in lines)
        assert len(lines) == len({re.sub("^.*(ERROR|WARNING) ", "", line) for line in lines}) <= 8
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert 200 == answer.status


def test_a_server_waits_for_the_object_store(home: Home, bucket: Bucket, postgres: Postgres) -> None:
    """Nothing listens at its address."""
    environ = place(bucket, postgres.new_database())
    environ["FILESTORE_STORE"] = "s3://models/one?endpoint=http://127.0.0.1:1"
    with starting(home, environ, "--create") as process:
        (line,) = until(process, "Warning: waiting for at most ")
        assert "cannot be reached" in line
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert 128 + signal.SIGTERM == process.returncode


@pytest.mark.parametrize("wrong", ["password", "database", "repository", "keys"])
def test_a_server_does_not_wait_for_what_stays_wrong(home: Home, bucket: Bucket, postgres: Postgres, wrong: str) -> None:
    """A wrong password, a database that does not exist, a foreign repository, and keys that the store refuses."""
    environ, url = place(bucket, postgres.new_database()), postgres.new_database()
    with starting(home, environ, "--create") as process:
        until(process, "listening on ")
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(60)
    if wrong == "password":
        user, password = postgres.new_user()
        environ["FILESTORE_INDEX"] = postgres.url("postgres", user=f"{user}:not-{password}")
    if wrong == "database":
        environ["FILESTORE_INDEX"] = f"{url}-missing"
    if wrong == "repository":
        environ["FILESTORE_INDEX"] = url
    if wrong == "keys":
        environ["AWS_SECRET_ACCESS_KEY"] = "wrong"
    with starting(home, environ) as process:
        said, _ = process.communicate(timeout=60)
    assert 1 == process.returncode
    assert ["Error"] == [line.partition(":")[0] for line in said.splitlines() if line]


def test_a_client_learns_that_the_object_store_is_away(home: Home, bucket: Bucket, postgres: Postgres, tmp_path: Path) -> None:
    """The server answers before the client takes it for one that does not answer."""
    path = tmp_path / "model.bin"
    path.write_bytes(octets(1, 3_000_000))
    with faulty_gateway(bucket.endpoint) as faulty:
        environ = place(faulty.before(bucket), postgres.new_database()) | {"FILESTORE_STALL_SECONDS": "4"}
        with starting(home, environ, "--create") as process:
            said = until(process, "listening on ")
            (token,) = re.findall(r"export FILESTORE_TOKEN=(\S+)", "".join(said))
            client = {"FILESTORE_URL": said[-1].removeprefix("listening on ").strip(), "FILESTORE_TOKEN": token}
            pushed = home.result("push", path, environ=client)
            faulty.inject(CutRequest(), kinds=KINDS, times=1_000_000)
            client["FILESTORE_RETRY_SECONDS"] = "3"
            sentence = home.failure("fetch", pushed["id"], "--output", tmp_path / "fetched.bin", environ=client)
            assert "it does not answer" in sentence
