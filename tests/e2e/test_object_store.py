"""Servers over a real object store and a real database: a request may go to any of them."""

from __future__ import annotations

import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

import filestore
from filestore.core.digest import token_digest
from filestore.http.wire import API
from tests.support.ceph import Bucket, Gateway
from tests.support.changed_tokens import answered
from tests.support.commands import SCRIPTS, Home, Server
from tests.support.hub_writing import HubRepository, put_object, send
from tests.support.pages import page_text, sign_in
from tests.support.postgres import Postgres
from tests.support.server import RunningServer, eventually
from tests.support.uploads import PartsUpload

pytestmark = pytest.mark.slow

CONTENT = bytes(range(251)) * 20_000
"""5 MB, in a handful of chunks."""


class Place(NamedTuple):
    """An object store and a database, and what the processes that use them find in their environment."""

    bucket: Bucket
    index_url: str

    @property
    def environ(self) -> dict[str, str]:
        """The variables of a server and of a command."""
        return {**self.bucket.environ, "FILESTORE_STORE": self.bucket.location("models"), "FILESTORE_INDEX": self.index_url}


class Pair(NamedTuple):
    """Two servers of one repository, and who types commands."""

    home: Home
    place: Place
    one: Server
    two: Server
    token: str

    def client(self, server: Server) -> dict[str, str]:
        """The environment of a client of one of them."""
        return {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": self.token}

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command on the repository itself."""
        done = self.home.run(*arguments, environ=self.place.environ)
        assert 0 == done.returncode, done.stderr
        return done


@contextmanager
def serving(folder: Path, place: Place) -> Iterator[Pair]:
    """Run two servers, each with a folder for what it receives, and the second one with two processes."""
    home = Home(folder / "home")
    home.folder.mkdir()
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                home.server(
                    *("--workers", workers),
                    root=folder / name,
                    environ=place.environ,
                    complains=None if name == "one" else False,
                    is_killed=name == "one",
                )
            )
            for name, workers in (("one", "1"), ("two", "2"))
        )
        try:
            yield Pair(home, place, one, two, one.token)
        finally:
            one.process.kill()


@pytest.fixture(scope="module")
def pair(gateway: Gateway, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers that the tests of this file share."""
    bucket, index = gateway.new_bucket(), postgres.new_database()
    with serving(tmp_path_factory.mktemp("pair"), Place(bucket, index)) as pair:
        yield pair
    postgres.drop_database(index)
    gateway.remove_bucket(bucket)


def running(pair: Pair, server: Server) -> RunningServer:
    """The server, as the tests of uploads know one."""
    return RunningServer(server.url, pair.token, server.root, server.process)


def pushed(pair: Pair, server: Server, folder: Path, name: str, content: bytes = CONTENT) -> Path:
    """Push a file by a server."""
    path = folder / name
    path.write_bytes(content)
    pair.home.result("push", path, environ=pair.client(server))
    return path


def test_what_one_stores_the_other_serves(pair: Pair, tmp_path: Path) -> None:
    """A file and a directory, and a second push sends nothing."""
    path = pushed(pair, pair.one, tmp_path, "model.bin")
    pair.home.result("fetch", "model.bin", "--output", tmp_path / "fetched", environ=pair.client(pair.two))
    assert path.read_bytes() == (tmp_path / "fetched").read_bytes()

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}")
    again = pair.home.result("push", folder, environ=pair.client(pair.two))
    pair.home.result("fetch", "model.zip", "--output", tmp_path / "tree", environ=pair.client(pair.one))
    assert (tmp_path / "tree/weights.bin").read_bytes() == CONTENT
    assert again["bytes_sent"] < len(CONTENT) // 10


def test_each_shows_what_arrives_at_the_other(pair: Pair) -> None:
    """On its pages: an upload that is not finished, and what the repository is made of."""
    one, two = running(pair, pair.one), running(pair, pair.two)
    upload = PartsUpload(one, "arriving.bin", token=pair.token)
    upload.put(1, CONTENT)
    text = page_text(sign_in(two).get("/ui/transfers"))
    assert "arriving.bin" in text
    assert "They are in the object store" in text
    pair.run("check")
    text = page_text(sign_in(two).get("/ui/admin"))
    assert "Content in an object store Index PostgreSQL," in text
    assert "Disk for what arrives" in text
    assert "no damage" in text


def test_a_token_of_one_opens_the_other_and_is_removed_at_both(pair: Pair) -> None:
    """A command makes it beside the servers."""
    made = pair.home.result("token", "new", "--scope", "read", environ=pair.place.environ)["token"]
    for server in (pair.one, pair.two):
        assert running(pair, server).ask("GET", f"{API}/files", token=made).status == 200
    pair.run("token", "rm", str(token_digest(made))[:16])
    for server in (pair.one, pair.two):
        ask = partial(running(pair, server).ask, "GET", f"{API}/files", token=made)
        eventually(lambda ask=ask: answered(ask) == 401)  # type: ignore[misc]  # called at once
    shown = pair.home.result("token", "ls", environ=pair.place.environ)
    assert str(token_digest(made)) not in {row["digest"] for row in shown["tokens"]}


def test_a_url_that_one_signs_opens_at_the_other(pair: Pair, tmp_path: Path) -> None:
    """The keys that sign are in the index."""
    pushed(pair, pair.one, tmp_path, "signed.bin")
    one = running(pair, pair.one)
    found = {record["name"]: record["id"] for record in one.ask("GET", f"{API}/files", token=pair.token).json["files"]}
    path = one.ask("POST", f"{API}/files/{found['signed.bin']}/sign", token=pair.token).json["path"]
    moved = f"{pair.two.url}/{path}"
    with urllib.request.urlopen(moved, timeout=60) as answer:
        assert answer.read() == CONTENT
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(moved.replace("signed.bin", "other.bin"), timeout=60)


def test_an_upload_in_parts_goes_to_any_server(pair: Pair, tmp_path: Path) -> None:
    """One begins it, both take parts, and the other one finishes it. To finish it again gives the same record."""
    upload = PartsUpload(running(pair, pair.one), "parts.bin", token=pair.token)
    size = len(CONTENT) // 3
    parts = []
    for number, start in enumerate(range(0, len(CONTENT), size), 1):
        upload.server = running(pair, (pair.two, pair.one)[number % 2])
        parts.append(upload.put(number, CONTENT[start : start + size]))
    upload.server = running(pair, pair.two)
    record = upload.finish(parts)
    assert record.status == 201, record.body
    upload.server = running(pair, pair.one)
    assert upload.finish(parts).json == record.json

    pair.home.result("fetch", "parts.bin", "--output", tmp_path / "parts.bin", environ=pair.client(pair.one))
    assert (tmp_path / "parts.bin").read_bytes() == CONTENT


def test_an_lfs_object_goes_to_any_server(pair: Pair) -> None:
    """One says how to send it, the other one takes it, and both know it before its commit."""
    one, two = (HubRepository(running(pair, server), "team/lfs", token=pair.token) for server in (pair.one, pair.two))
    assert one.create().status == 200
    (described,) = one.batch(CONTENT)
    answer = send("PUT", described["actions"]["upload"]["href"].replace(pair.one.url, pair.two.url), CONTENT)
    assert answer.status == 200, answer.body
    for server in (one, two):
        (known,) = server.batch(CONTENT)
        assert "actions" not in known
    one.committed(put_object("weights.bin", CONTENT))
    assert two.ask("GET", "/team/lfs/resolve/main/weights.bin").body == CONTENT


def test_commands_work_on_the_repository_itself(pair: Pair, tmp_path: Path) -> None:
    """Beside the servers: what nobody needs is removed, and a check finds nothing."""
    pushed(pair, pair.one, tmp_path, "kept.bin")
    pushed(pair, pair.two, tmp_path, "removed.bin", CONTENT[::-1])
    pair.run("rm", "removed.bin")
    freed = pair.home.result("gc", "--grace", "0s", environ=pair.place.environ)
    assert freed["freed_size"] > 0
    assert pair.home.result("check", "--read-data", environ=pair.place.environ)["damage_count"] == 0
    listed = pair.home.result("ls", environ=pair.place.environ)
    assert "kept.bin" in {record["name"] for record in listed["files"]}
    pair.home.result("fetch", "kept.bin", "--output", tmp_path / "kept", environ=pair.client(pair.two))
    assert (tmp_path / "kept").read_bytes() == CONTENT
    for command in (
        ("du",),
        ("log", "kept.bin"),
        ("tag", "kept.bin", "v1"),
        ("quota", "ls"),
        ("namespace", "ls"),
        ("owner", "ls"),
    ):
        pair.run(*command)


def test_a_repair_makes_files_whole_beside_the_servers(pair: Pair, tmp_path: Path) -> None:
    """A server notices what is lost. What comes back is read again, and what does not is taken from a copy."""
    bucket, content = pair.place.bucket, CONTENT[1:] * 2
    before = set(bucket.list_keys("models/frames/"))
    path = pushed(pair, pair.one, tmp_path, "damaged.bin", content)
    (moved, *others) = sorted(set(bucket.list_keys("models/frames/")) - before)
    taken = bucket.read(moved)
    bucket.delete(moved)
    bucket.put(others[0], b"damaged")
    lost = pair.home.run("fetch", "damaged.bin", "--output", tmp_path / "lost", environ=pair.client(pair.one))
    assert 1 == lost.returncode
    done = pair.home.run("check", "--repair", "--read-data", environ=pair.place.environ)
    assert (1, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert "1 file is still damaged; push what you have of them again" in done.stderr
    bucket.put(moved, taken)
    report = pair.home.result("check", "--repair", "--from", path, environ=pair.place.environ)
    assert (1, 1, 0) == (report["rows_written"], report["chunks_restored"], report["lost_count"])
    assert f"s3://{bucket.name}/models with the index postgresql://" in report["repository"]
    assert 1 == len(bucket.list_keys("models/damaged/"))
    pair.home.result("fetch", "damaged.bin", "--output", tmp_path / "whole", environ=pair.client(pair.two))
    assert (tmp_path / "whole").read_bytes() == content


def test_no_output_has_the_password(pair: Pair) -> None:
    """Neither of a server nor of a command that fails."""
    index = pair.place.index_url.replace("@", ":a-secret@") if "@" in pair.place.index_url else pair.place.index_url
    environ = pair.place.environ | {"FILESTORE_INDEX": index, "FILESTORE_STORE": pair.place.bucket.location("other")}
    done = pair.home.run("gc", environ=environ)
    assert 1 == done.returncode
    assert "a-secret" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


async def test_a_program_opens_the_pair(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server."""
    for name, value in pair.place.bucket.environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "own.bin").write_bytes(CONTENT)
    async with filestore.connect(pair.place.bucket.location("models"), index=pair.place.index_url) as repository:
        await filestore.push(repository, tmp_path / "own.bin")
        await filestore.fetch(repository, "own.bin", target=tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == CONTENT


def test_a_client_goes_on_at_the_other_server(gateway: Gateway, postgres: Postgres, tmp_path: Path) -> None:
    """One server is killed in a push. What it has acknowledged is not sent again."""
    bucket, index = gateway.new_bucket(), postgres.new_database()
    with serving(tmp_path, Place(bucket, index)) as pair:
        path = tmp_path / "large.bin"
        path.write_bytes(b"".join(CONTENT[start:] + CONTENT[:start] for start in range(0, 10_000, 1000)))
        with subprocess.Popen(
            [SCRIPTS / "filestore", "push", path, "--retry-seconds", "1"],
            env=pair.home.environ | pair.client(pair.one),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as push:
            while push.poll() is None and len(bucket.list_keys("models/frames/")) < 3:
                pass
            pair.one.process.send_signal(signal.SIGKILL)
            push.wait(timeout=60)
        pair.home.result("push", path, environ=pair.client(pair.two))
        pair.home.result("fetch", "large.bin", "--output", tmp_path / "fetched", environ=pair.client(pair.two))
        assert (tmp_path / "fetched").read_bytes() == path.read_bytes()
        assert pair.home.result("check", "--read-data", environ=pair.place.environ)["damage_count"] == 0
    postgres.drop_database(index)
    gateway.remove_bucket(bucket)
