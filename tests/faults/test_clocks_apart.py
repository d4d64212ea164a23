"""Servers of one repository whose clocks are an hour apart."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection
from filestore.system.clock import system_now
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket
from tests.support.commands import Home
from tests.support.daemons import program
from tests.support.frames import contents, encoded
from tests.support.generator import octets
from tests.support.object_repositories import object_repository, sweep

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
        program("faketime")
        wrong = {
            "LD_PRELOAD": "/usr/$LIB/faketime/libfaketime.so.1",
            "FAKETIME": apart,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        failure = home.failure("serve", "--root", tmp_path / "wrong", "--port", "0", environ=environ | wrong)
        assert "the clock of this machine differs from its own" in failure
        home.result("fetch", "model.bin", "--output", tmp_path / "fetched.bin", environ=users)
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "fetched.bin").read_bytes()
