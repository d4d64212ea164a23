"""Servers of one repository whose clocks are an hour apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection
from filestore.system.clock import system_now
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket
from tests.support.clocks import clock_apart
from tests.support.commands import Home
from tests.support.frames import contents, encoded
from tests.support.generator import octets
from tests.support.object_repositories import object_repository, sweep
from tests.support.peers import running_peer
from tests.support.server import RunningServer
from tests.support.uploads import PartsUpload, Sent, put, read

pytestmark = pytest.mark.slow

HOUR = 3600 * 1_000_000
GRACE_SECONDS = 1800


class Server:
    """A repository as a server with a clock of its own has it."""

    def __init__(self, repository: LocalRepository, folder: Path, difference: int) -> None:
        self.repository = repository
        self._folder = folder
        self._difference = difference

    def now(self) -> int:
        """What its clock says."""
        return system_now() + self._difference

    async def collect(self) -> None:
        """Remove what no record needs, and what no push has used for half an hour by its clock."""
        store, index = self.repository._store, self.repository._index
        await Collection(store, index, DEFAULT_NAMESPACE, grace_seconds=GRACE_SECONDS, now=self.now).run()

    async def push(self, name: str, content: bytes) -> str:
        """Push a file; return its id."""
        path = self._folder / name
        path.write_bytes(content)
        return (await push(self.repository, path)).record.id

    async def check(self, file_id: str, content: bytes) -> None:
        """Check that a file is whole."""
        fetched = await fetch(self.repository, file_id, target=self._folder / "fetched", force=True)
        assert content == fetched.path.read_bytes()


@pytest.mark.parametrize("difference", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_servers_with_clocks_an_hour_apart(bucket: Bucket, postgres_url: str, tmp_path: Path, difference: int) -> None:
    """Whoever collects and sweeps while pushes are under way, every push ends well, and all files stay whole."""
    async with AsyncExitStack() as stack:
        servers = []
        for name, apart in (("right", 0), ("wrong", difference)):
            folder = tmp_path / name
            opened = object_repository(bucket, postgres_url, folder, now=lambda apart=apart: system_now() + apart)  # type: ignore[misc]
            servers.append(Server(await stack.enter_async_context(opened), folder, apart))
        kept = {}
        for number, server in enumerate(servers):
            content = octets(number, 1_500_000)
            kept[await server.push("kept.bin", content)] = content
        for number, (pusher, collector) in enumerate([servers, servers[::-1], servers[:1] * 2, servers[1:] * 2]):
            parts = contents(3, size=50_000, seed=number)
            # A push is under way: its frames are there, and its record is not.
            await pusher.repository.put([encoded(part) for part in parts])
            await collector.collect()
            await sweep(collector.repository)
            content = b"".join(parts)
            kept[await pusher.push(f"pushed-{number}.bin", content)] = content
            await collector.collect()
        for file_id, content in kept.items():
            for server in servers:
                await server.check(file_id, content)
        newest = [record.id async for record in servers[0].repository.iter_records()]
        assert set(kept) == set(newest)


@pytest.mark.parametrize("apart", ["+1h", "-1h"])
def test_an_object_store_refuses_a_server_whose_clock_is_wrong(
    bucket: Bucket, postgres_url: str, tmp_path: Path, apart: str
) -> None:
    """It is one sentence that names the clock. The others go on."""
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    environ = {**bucket.environ, "FILESTORE_STORE": bucket.location("models"), "FILESTORE_INDEX": postgres_url}
    (tmp_path / "model.bin").write_bytes(octets(1, 100_000))
    with home.server(root=tmp_path / "right", environ={**os.environ, **environ}, complains=None) as right:
        users = {"FILESTORE_URL": right.url, "FILESTORE_TOKEN": right.token}
        home.result("push", tmp_path / "model.bin", environ=users)
        failure = home.failure("serve", "--root", tmp_path / "wrong", "--port", "0", environ=environ | clock_apart(apart))
        assert "the clock of this machine differs from its own" in failure
        home.result("fetch", "model.bin", "--output", tmp_path / "fetched.bin", environ=users)
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "fetched.bin").read_bytes()


@pytest.fixture(scope="module", params=["+1h", "-1h"], ids=["ahead", "behind"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningServer]]:
    """Two servers of one folder, of which the clock of the second one is wrong. A URL of a file is valid for half an hour."""
    folder = tmp_path_factory.mktemp("served")
    home, root = Home(folder), folder / "root"
    short = {"FILESTORE_SIGNED_SECONDS": str(GRACE_SECONDS)}
    with (
        home.server(root=root, environ=short) as right,
        home.server(root=root, environ=short | clock_apart(request.param)) as wrong,
    ):
        yield [RunningServer(server.url, right.token, root, server.process) for server in (right, wrong)]


def at(server: RunningServer, url: str) -> str:
    """Return a URL of another server as one of this server."""
    return server.url + "/" + url.split("/", 3)[3]


@pytest.mark.parametrize("signer", [0, 1], ids=["right", "wrong"])
def test_a_signed_url_is_valid_or_has_expired(served: list[RunningServer], tmp_path: Path, signer: int) -> None:
    """At the server that signed it, it is valid. At one whose clock is an hour later, it has expired, and the answer says so."""
    signs, other = served[signer], served[1 - signer]
    user = {"FILESTORE_URL": signs.url, "FILESTORE_TOKEN": signs.token}
    (tmp_path / "model.bin").write_bytes(b"content")
    (tmp_path / "home").mkdir()
    record = Home(tmp_path / "home").result("push", tmp_path / "model.bin", environ=user)
    path = signs.ask("POST", f"/native/v1/files/{record['id']}/sign", token=signs.token).json["path"]
    url = f"{signs.url}/{path}"
    assert b"content" == read(url).body
    answer = read(at(other, url))
    expires_at, now = int(url.split("/")[5]), time_of(other)
    if now < expires_at:
        assert b"content" == answer.body
    else:
        assert (403, "url-refused") == (answer.status, answer.slug)
        assert "it has expired" in answer.json["detail"]


def time_of(server: RunningServer) -> float:
    """What the clock of a server says, in seconds since 1970."""
    return parsedate_to_datetime(server.ask("GET", "/healthz").headers["Date"]).timestamp()


@pytest.mark.parametrize("first", [0, 1], ids=["right", "wrong"])
def test_an_upload_goes_from_one_server_to_the_other(served: list[RunningServer], first: int) -> None:
    """Each part arrives by a URL of the other server, and the upload is whole."""
    one, other = served[first], served[1 - first]
    parts = [octets(number, 400_000) for number in range(4)]
    upload = PartsUpload(one, "uploaded.bin", token=one.token)
    sent = []
    for number, (content, signs, receives) in enumerate(zip(parts, [one, other] * 2, [other, one] * 2, strict=True), start=1):
        upload.server = signs
        answer = put(at(receives, upload.url(number).json["upload_url"]), content)
        assert 200 == answer.status, answer.body
        sent.append(Sent(number, answer.headers["ETag"]))
    upload.server = other
    finished = upload.finish(sent)
    assert 201 == finished.status, finished.body
    for server in served:
        assert b"".join(parts) == server.ask("GET", "/" + finished.json["path"], token=server.token).body


@pytest.mark.parametrize("origin", [0, 1], ids=["right", "wrong"])
def test_a_peer_of_another_server_is_passed_over(served: list[RunningServer], tmp_path: Path, origin: int) -> None:
    """Two servers whose clocks are an hour apart give different tickets. The server gives the frames, and a warning says so."""
    (tmp_path / "home").mkdir()
    home, asked = Home(tmp_path / "home"), served[1 - origin]
    content = octets(10, 1_000_000)
    (tmp_path / "shared.bin").write_bytes(content)
    user = {"FILESTORE_URL": asked.url, "FILESTORE_TOKEN": asked.token, "FILESTORE_CACHE": str(tmp_path / "cache")}
    home.result("push", tmp_path / "shared.bin", environ=user)
    with running_peer(served[origin], tmp_path / "peer", token=asked.token) as peer:
        done = home.result("cache", "warm", "shared.bin", "--peers", peer.url, environ=user, warns=True)
    assert 0 == done["bytes_from_peers"]
    assert content == Path(done["files"][0]["path"]).read_bytes()
