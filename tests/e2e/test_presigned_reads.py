"""Clients of two real servers over a real object store: frames are read from the store, and either server may be killed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from filestore.backends import connect
from filestore.errors import ChunksMissing, DamagedChunk, FilestoreError
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket, Gateway
from tests.support.commands import SCRIPTS, Home, Server
from tests.support.generator import octets
from tests.support.links import Link, running_link
from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow

SIZE = 24_000_000


class Servers(NamedTuple):
    """Two servers of one repository in an object store."""

    servers: list[Server]
    token: str
    bucket: Bucket


@contextmanager
def serving(folder: Path, bucket: Bucket, index: str, *, store: str) -> Iterator[Servers]:
    """Run two servers, which a test may kill."""
    home = Home(folder / "home")
    home.folder.mkdir()
    environ = {**bucket.environ, "FILESTORE_STORE": store, "FILESTORE_INDEX": index}
    command = (SCRIPTS / "filestore", "serve", "--workers", "1")
    with ExitStack() as stack:
        servers = [
            stack.enter_context(home.server(root=folder / name, environ=environ, command=command, complains=None, is_killed=True))
            for name in ("one", "two")
        ]
        try:
            yield Servers(servers, servers[0].token, bucket)
        finally:
            for server in servers:
                server.process.kill()


@pytest.fixture
def pair(gateway: Gateway, postgres: Postgres, tmp_path: Path) -> Iterator[Servers]:
    """Two servers."""
    bucket, index = gateway.new_bucket(), postgres.new_database()
    with serving(tmp_path, bucket, index, store=bucket.location("models")) as servers:
        yield servers
    postgres.drop_database(index)
    gateway.remove_bucket(bucket)


@asynccontextmanager
async def linked(pair: Servers, **options: Any) -> AsyncIterator[tuple[Repository, list[Link]]]:
    """A client of both, and the links to them."""
    ports = [urlsplit(server.url).port for server in pair.servers]
    async with (
        running_link(ports[0] or 0) as one,
        running_link(ports[1] or 0) as two,
        connect([f"http://127.0.0.1:{link.port}" for link in (one, two)], token=pair.token, **options) as repository,
    ):
        yield repository, [one, two]


async def test_frames_come_from_the_store(pair: Servers, tmp_path: Path) -> None:
    """The server sends the manifest and the URLs. Without them, all bytes pass it."""
    source = tmp_path / "source"
    source.write_bytes(octets(1, SIZE))
    async with linked(pair) as (repository, links):
        pushed = await push(repository, source, codec="raw")
        before = links[0].down_size
        fetched = await fetch(repository, pushed.record, target=tmp_path / "target")
        assert links[0].down_size - before < SIZE / 100
        assert source.read_bytes() == fetched.path.read_bytes()
    async with linked(pair, presigned_reads=False) as (repository, links):
        await fetch(repository, pushed.record, target=tmp_path / "again")
        assert links[0].down_size > SIZE


async def test_clients_may_reach_the_store_at_another_address(gateway: Gateway, postgres: Postgres, tmp_path: Path) -> None:
    """The URLs are signed for that address, and the servers do not use it."""
    source = tmp_path / "source"
    source.write_bytes(octets(4, SIZE))
    bucket, index = gateway.new_bucket(), postgres.new_database()
    async with running_link(urlsplit(bucket.endpoint).port or 0) as public:
        store = f"{bucket.location('models')}&public_endpoint=http://127.0.0.1:{public.port}"
        with serving(tmp_path, bucket, index, store=store) as pair:
            async with linked(pair) as (repository, links):
                pushed = await push(repository, source, codec="raw")
                assert 0 == public.up_size
                fetched = await fetch(repository, pushed.record, target=tmp_path / "target")
            assert links[0].down_size < SIZE / 100
            assert public.down_size > SIZE
    assert source.read_bytes() == fetched.path.read_bytes()
    postgres.drop_database(index)
    gateway.remove_bucket(bucket)


async def test_a_frame_that_the_store_has_lost_is_reported_as_with_a_server(pair: Servers, tmp_path: Path) -> None:
    """The URL leads to nothing, and the server says what that means. A push sends the chunk again."""
    source = tmp_path / "source"
    source.write_bytes(octets(2, SIZE))
    async with linked(pair) as (repository, _):
        pushed = await push(repository, source, codec="raw")
        frames = [key for key in pair.bucket.list_keys() if re.search(r"/frames/", key)]
        pair.bucket.delete(frames[0])
        with pytest.raises(FilestoreError) as raised:
            await fetch(repository, pushed.record, target=tmp_path / "target")
        assert type(raised.value) in {ChunksMissing, DamagedChunk}, raised.value
        await push(repository, source, codec="raw")
        fetched = await fetch(repository, pushed.record, target=tmp_path / "target")
    assert source.read_bytes() == fetched.path.read_bytes()


@pytest.mark.parametrize("verb", ["push", "fetch"])
async def test_a_server_is_killed_in_the_middle(pair: Servers, tmp_path: Path, verb: str) -> None:
    """The transfer goes on at the other one, and nothing is lost."""
    source = tmp_path / "source"
    source.write_bytes(octets(3, SIZE))
    async with linked(pair, presigned_reads=False, connections=2) as (repository, links):
        if verb == "fetch":
            await push(repository, source, codec="raw")
        passed = 0

        async def kill(piece: bytes) -> bytes:
            nonlocal passed
            passed += len(piece)
            if passed > SIZE // 3 and pair.servers[0].process.poll() is None:
                pair.servers[0].process.kill()
                pair.servers[0].process.wait()
            return piece

        if verb == "push":
            links[0].up = kill
        else:
            links[0].down = kill
        pushed = await push(repository, source, codec="raw")
        fetched = await fetch(repository, pushed.record, target=tmp_path / "target")
        assert pair.servers[0].process.poll() is not None
        assert links[1].down_size > SIZE // 3
    assert source.read_bytes() == fetched.path.read_bytes()
