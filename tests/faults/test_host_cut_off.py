"""A host is cut off while its server has the lock of a namespace. Its client goes on at a server of another host."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket
from tests.support.commands import SCRIPTS, Home, Server
from tests.support.generator import octets
from tests.support.hosts import Host, running_hosts
from tests.support.links import Link
from tests.support.listening import listening
from tests.support.postgres import Postgres, postgres_program, running_postgres

pytestmark = pytest.mark.slow

WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
HAS_LOCK = (
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND client_addr = '{}' AND state LIKE 'idle in transaction%'"
)


@asynccontextmanager
async def served(hosts: Sequence[Host], bucket: Bucket, postgres: Postgres, folder: Path) -> AsyncIterator[list[Server]]:
    """One server on each host, of one repository. They reach the database by their cables, and the object store too."""
    database = postgres.new_database().rpartition("/")[2]
    home = Home(folder)
    async with AsyncExitStack() as stack:
        servers = []
        for host in hosts:
            link = Link(int(bucket.endpoint.rpartition(":")[2]))
            port = await stack.enter_async_context(listening(link.carry, host=host.gateway))
            environ = {
                **bucket.environ,
                "FILESTORE_STORE": bucket.location("models", endpoint=f"http://{host.gateway}:{port}"),
                "FILESTORE_INDEX": f"postgresql://filestore@{host.gateway}:{postgres.port}/{database}",
            }
            serving = home.server(
                *("--host", host.address, "--insecure"),
                root=folder / host.name,
                environ=environ,
                complains=None,
                is_killed=True,
                command=(*host.prefix, SCRIPTS / "filestore", "serve"),
            )
            server = await asyncio.to_thread(serving.__enter__)
            stack.push(serving)
            stack.callback(server.process.kill)
            servers.append(server)
        yield servers


async def reached(postgres: Postgres, question: str, database: str) -> None:
    """Wait until the answer of a question is not 0."""
    while await asyncio.to_thread(postgres.execute, question, url=postgres.url(database)) == "0":
        await asyncio.sleep(0.1)


@pytest.mark.timeout(600)
async def test_a_host_that_is_cut_off_while_it_commits(bucket: Bucket, tmp_path: Path) -> None:
    """PostgreSQL answers a host that is gone, so no keepalive is sent: its transaction and its lock end all the same.

    The client goes on at the other server, and its push ends there. The server that comes back serves what was pushed, and does
    no harm by what it still wanted to do.
    """
    paths = [tmp_path / f"{name}.bin" for name in ("before", "meanwhile")]
    for number, path in enumerate(paths):
        path.write_bytes(octets(number, 3_000_000))
    with running_hosts(2) as hosts, running_postgres(addresses=[host.gateway for host in hosts]) as engine:
        postgres = engine.postgres
        async with served(hosts, bucket, postgres, tmp_path) as servers:
            (database,) = (
                name for name in postgres.execute("SELECT datname FROM pg_database").splitlines() if name.startswith("test_")
            )
            token = servers[0].token
            async with connect([server.url for server in servers], token=token, stall_seconds=10) as repository:
                before = await push(repository, paths[0])
                # What holds the table up holds the commit up, inside of its transaction.
                command = [postgres_program("psql"), "-X", "-q", postgres.url(database)]
                with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as holder:
                    assert holder.stdin is not None
                    holder.stdin.write("BEGIN; LOCK TABLE records IN EXCLUSIVE MODE;\n")
                    holder.stdin.flush()
                    pushing = asyncio.create_task(push(repository, paths[1]))
                    await reached(postgres, WAITING, database)
                    hosts[0].cut()
                    holder.stdin.write("ROLLBACK;\n")
                    holder.stdin.flush()
                    await reached(postgres, HAS_LOCK.format(hosts[0].address), database)
                    meanwhile = await pushing
                    holder.stdin.close()
                assert servers[1].url == repository.location
            hosts[0].mend()
            async with connect(servers[0].url, token=token) as repository:
                for pushed, path in zip((before, meanwhile), paths, strict=True):
                    await fetch(repository, pushed.record.id, target=tmp_path / "fetched.bin", force=True)
                    assert path.read_bytes() == (tmp_path / "fetched.bin").read_bytes()
                await push(repository, paths[1])
                names = sorted(record.name for record in await repository.records())
                assert ["before.bin", "meanwhile.bin"] == sorted(set(names))
