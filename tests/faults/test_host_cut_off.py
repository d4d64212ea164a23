"""A host is cut off while its server works. The client goes on at a server of another host, and what was begun does no harm."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from filestore.backends import connect
from filestore.core.references import File
from filestore.http.client import channel
from filestore.repository.index.postgres.locks import task_key
from filestore.repository.protocol import Repository
from filestore.system.stalls import StallTimer
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket
from tests.support.commands import REPOSITORY, Home
from tests.support.engines import shared_gateway
from tests.support.frames import contents, encoded, manifest
from tests.support.generator import octets
from tests.support.hosts import Host, running_hosts
from tests.support.links import Link
from tests.support.listening import listening
from tests.support.postgres import Postgres, postgres_program, running_postgres
from tests.support.server import RunningServer
from tests.support.uploads import PartsUpload, Sent, put

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity JOIN pg_locks namespace USING (pid) WHERE client_addr = '{}' AND "
    "namespace.locktype = 'advisory' AND namespace.objsubid = 1 AND namespace.granted AND "
)
"""How many sessions of a host have the lock of a namespace."""
_WAITING = (
    _SESSIONS
    + "EXISTS (SELECT FROM pg_locks held WHERE held.pid = namespace.pid AND held.locktype = 'relation' AND NOT held.granted)"
)
_HAS_LOCK = _SESSIONS + "wait_event = 'ClientRead'"
"""The state does not tell it: while a statement is prepared, it is that of an active session."""


def _holders(upload_id: str) -> str:
    """Return the question how many sessions have the lock of an upload."""
    key = task_key(f"upload-{upload_id}") % (1 << 64)
    return f"SELECT count(*) FROM pg_locks WHERE (classid, objid) = ({key >> 32}, {key & 0xFFFFFFFF}) AND granted"


class CutTimer(StallTimer):
    """Counts only while a host is cut off: before that, a server that is silent is one that a busy machine does not run."""

    is_counting: ClassVar[bool] = False

    def left(self) -> float:
        """Return how long to wait before it is asked again, if the connection has not stalled."""
        if not CutTimer.is_counting:
            self.restart()
        return min(0.25, super().left())


class Served(NamedTuple):
    """Two servers of one repository, each on a host of its own."""

    hosts: Sequence[Host]
    servers: Sequence[RunningServer]
    index_url: str
    postgres: Postgres

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Repository]:
        """Connect a client that knows both servers, and asks the first one."""
        urls = [server.url for server in self.servers]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channel, "StallTimer", CutTimer)
            async with connect(urls, token=self.servers[0].token, stall_seconds=5) as repository:
                await repository.records()
                assert urls[0] == repository.location
                yield repository

    @asynccontextmanager
    async def cutting_off(self, table: str) -> AsyncIterator[None]:
        """Cut the first host off at the end of the block, in which its server was given work that changes a table.

        It is cut off inside of the transaction, and has the lock of the namespace. PostgreSQL answers it all the same, so no
        keepalive is sent.
        """
        command = [postgres_program("psql"), "-X", "-q", self.index_url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as holder:
            assert holder.stdin is not None
            # What holds the table up holds the transaction up.
            holder.stdin.write(f"BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE;\n")
            holder.stdin.flush()
            yield
            await self._reached(_WAITING)
            self.hosts[0].cut()
            CutTimer.is_counting = True
            holder.stdin.write("ROLLBACK;\n")
            holder.stdin.flush()
            await self._reached(_HAS_LOCK)

    async def _reached(self, question: str) -> None:
        """Wait until the answer of a question about the sessions of the first host is not 0."""
        question = question.format(self.hosts[0].address)
        while await asyncio.to_thread(self.postgres.execute, question, url=self.index_url) == "0":
            await asyncio.sleep(0.1)

    async def check(self, folder: Path, file_id: str, content: bytes) -> None:
        """Mend the cable, and check that a file is whole at both servers, and that both store others."""
        await asyncio.to_thread(self.hosts[0].mend)
        CutTimer.is_counting = False
        for server in self.servers:
            async with connect(server.url, token=server.token) as repository:
                fetched = await fetch(repository, File(id=file_id), target=folder / "fetched", force=True)
                assert content == fetched.path.read_bytes()
                (folder / "new").write_bytes(server.url.encode())
                await push(repository, folder / "new")


@asynccontextmanager
async def serving(hosts: Sequence[Host], bucket: Bucket, postgres: Postgres, folder: Path) -> AsyncIterator[Served]:
    """One server on each host, of one repository. They reach the database by their cables, and the object store too."""
    index_url = postgres.new_database()
    home = Home(folder)
    servers: list[RunningServer] = []
    async with AsyncExitStack() as stack:
        for host in hosts:
            link = Link(int(bucket.endpoint.rpartition(":")[2]))
            port = await stack.enter_async_context(listening(link.carry, host=host.gateway))
            environ = {
                **bucket.environ,
                "PYTHONPATH": str(REPOSITORY),
                "FILESTORE_STORE": bucket.location("models", endpoint=f"http://{host.gateway}:{port}"),
                "FILESTORE_INDEX": index_url.replace("127.0.0.1", host.gateway),
            }
            server = home.server(
                *("--host", host.address, "--insecure"),
                root=folder / host.name,
                environ=environ,
                complains=None,
                is_killed=True,
                command=(*host.prefix, sys.executable, "-m", "tests.support.impatient", "serve"),
            )
            started = await asyncio.to_thread(server.__enter__)
            stack.push(server)
            stack.callback(started.process.kill)
            token = servers[0].token if servers else started.token
            servers.append(RunningServer(started.url, token, started.root, started.process))
        yield Served(hosts, servers, index_url, postgres)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """Two hosts, and engines that they reach."""
    gateway = shared_gateway()
    bucket = gateway.new_bucket()
    with running_hosts(2) as hosts, running_postgres(addresses=[host.gateway for host in hosts]) as engine:
        async with serving(hosts, bucket, engine.postgres, tmp_path_factory.mktemp("served")) as both:
            yield both
    gateway.remove_bucket(bucket)


async def test_a_commit_goes_on(served: Served, tmp_path: Path) -> None:
    """The push ends at the other server. The server that comes back does no harm by what it still wanted to do."""
    path = tmp_path / "committed.bin"
    path.write_bytes(octets(1, 3_000_000))
    async with served.connected() as repository:
        async with served.cutting_off("records"):
            pushing = asyncio.create_task(push(repository, path))
        pushed = await pushing
        assert served.servers[1].url == repository.location
    await served.check(tmp_path, pushed.record.id, path.read_bytes())
    async with connect(served.servers[0].url, token=served.servers[0].token) as repository:
        again = await push(repository, path)
    assert (0, pushed.record.digest) == (again.bytes_sent, again.record.digest)


async def test_a_put_of_a_batch_goes_on(served: Served, tmp_path: Path) -> None:
    """The frames are there once, with those objects that their rows name."""
    chunks = contents(4, size=100_000, seed=2)
    async with served.connected() as repository:
        async with served.cutting_off("chunks"):
            putting = asyncio.create_task(repository.put([encoded(chunk) for chunk in chunks]))
        await putting
        record = await repository.commit(manifest(chunks).encoded, name="put.bin")
        assert served.servers[1].url == repository.location
    await served.check(tmp_path, record.id, b"".join(chunks))


async def test_an_upload_in_parts_goes_on(served: Served, tmp_path: Path) -> None:
    """A part is on its way when the first server is cut off. It is sent again to the other one, which finishes the upload."""
    parts = [octets(number, 9_000_000) for number in (3, 4)]
    one, other = served.servers
    # In threads: the links of the servers are in this event loop.
    upload = await asyncio.to_thread(PartsUpload, one, "uploaded.bin", token=one.token)
    urls = [(await asyncio.to_thread(upload.url, number)).json["upload_url"] for number in (1, 2)]
    sent: list[Sent] = []

    async def send(number: int, url: str) -> None:
        answer = await asyncio.to_thread(put, url, parts[number - 1])
        assert 200 == answer.status, answer.body
        sent.append(Sent(number, answer.headers["ETag"]))

    await send(1, urls[0])
    with one.connection() as connection:
        head = f"PUT {urlsplit(urls[1]).path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(parts[1])}\r\n\r\n"
        await asyncio.to_thread(connection.sendall, head.encode() + parts[1][: len(parts[1]) // 2])
        served.hosts[0].cut()
        upload.server = other
        await send(2, urls[1].replace(one.url, other.url))
        finished = await asyncio.to_thread(upload.finish, sent)
        assert 201 == finished.status, finished.body
    await served.check(tmp_path, finished.json["id"], b"".join(parts))
    again = await asyncio.to_thread(upload.finish, sent)
    assert finished.json["id"] == again.json["id"]


async def test_an_upload_is_finished_that_another_host_was_finishing(served: Served, tmp_path: Path) -> None:
    """The host that was cut off has the lock of the upload, until the database knows that it is gone."""
    content = octets(5, 9_000_000)
    one, other = served.servers
    upload = await asyncio.to_thread(PartsUpload, one, "begun.bin", token=one.token)
    url = (await asyncio.to_thread(upload.url, 1)).json["upload_url"]
    tag = (await asyncio.to_thread(put, url, content)).headers["ETag"]
    async with served.cutting_off("records"):
        finishing = asyncio.create_task(asyncio.to_thread(upload.finish, [Sent(1, tag)]))
    assert "1" == await asyncio.to_thread(served.postgres.execute, _holders(upload.id), url=served.index_url)
    upload.server = other
    finished = await asyncio.to_thread(upload.finish, [Sent(1, tag)])
    assert 201 == finished.status, finished.body
    await served.check(tmp_path, finished.json["id"], content)
    refused = await finishing
    assert (503, "another process holds it, or it does not answer") == (refused.status, refused.json["reason"])
    again = await asyncio.to_thread(upload.finish, [Sent(1, tag)])
    assert finished.json["id"] == again.json["id"]
