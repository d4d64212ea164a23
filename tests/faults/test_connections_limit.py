"""`connections` limits all processes of a transfer together. Connections to a real server are counted on their way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import connect
from filestore.transfer import push as push_module
from filestore.transfer import receiver
from filestore.transfer.fetch import fetch_record
from filestore.transfer.parallelism import push_parallelism
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.workers import WorkerPool, worker_pool
from tests.support.listening import listening
from tests.support.models import Tensor, safetensors_file
from tests.support.server import TOKEN, RunningServer, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # on a machine that is busy with other work

MIB = 1 << 20


class Relay:
    """Passes connections on, and counts those that are open."""

    def __init__(self) -> None:
        self.url = ""
        self.most = 0
        """The most that were open at a time."""
        self._open = 0

    @asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[Relay]:
        """Pass on to a server."""
        async with listening(partial(self._pass_on, port)) as own:
            self.url = f"http://127.0.0.1:{own}"
            yield self

    async def _pass_on(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self.most = max(self.most, self._open)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        back = asyncio.create_task(_copy(up_reader, writer))
        try:
            await _copy(reader, up_writer)
        finally:
            # The client has closed it.
            self._open -= 1
            up_writer.close()
            back.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 18):
            writer.write(piece)
            await writer.drain()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A real server."""
    with running_server(tmp_path / "root", check=False) as server:
        yield server


@pytest.mark.parametrize(("connections", "processes"), [(1, 0), (3, 2), (2, 1), (8, 2)])
async def test_all_processes_together_have_no_more_connections(
    tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch, connections: int, processes: int
) -> None:
    """Each process has at least one, so there are fewer processes than two where the limit does not permit them."""
    found: list[list[int]] = []

    @asynccontextmanager
    async def ready_pool(*arguments: Any, **options: Any) -> AsyncIterator[WorkerPool]:
        async with worker_pool(*arguments, **options) as pool:
            while len(pool.process_ids) < processes:
                await asyncio.sleep(0.01)
            found.append(pool.process_ids)
            yield pool

    monkeypatch.setattr(push_module, "push_parallelism", partial(push_parallelism, large_size=1))
    monkeypatch.setattr(push_module, "worker_pool", ready_pool)
    monkeypatch.setattr(receiver, "worker_pool", ready_pool)
    path, target = tmp_path / "model.safetensors", tmp_path / "fetched"
    rng = random.Random(1)
    path.write_bytes(safetensors_file([Tensor(str(n), "I8", (8 * MIB,), rng.randbytes(8 * MIB)) for n in range(6)]))
    async with (
        Relay().to(server.port) as relay,
        connect(
            relay.url, token=TOKEN, connections=connections, processes=2, transfer_memory=1 << 30, stall_seconds=300
        ) as repository,
    ):
        record = (await push(repository, path)).record
        await fetch_record(repository, record, target=target, options=TransferOptions(large_size=1))
        assert [processes, processes] == list(map(len, found))
        assert 1 <= relay.most <= connections
        # This process has all of them again afterwards.
        await asyncio.gather(*(repository.records() for _ in range(40)))
        assert connections == relay.most
    assert path.read_bytes() == target.read_bytes()


async def test_transfers_side_by_side_share_the_connections(
    tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one of them at a time has worker processes."""
    monkeypatch.setattr(push_module, "push_parallelism", partial(push_parallelism, large_size=1))
    rng = random.Random(2)
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path in paths:
        path.write_bytes(safetensors_file([Tensor("a", "I8", (24 * MIB,), rng.randbytes(24 * MIB))]))
    async with (
        Relay().to(server.port) as relay,
        connect(relay.url, token=TOKEN, connections=3, processes=2, transfer_memory=1 << 30, stall_seconds=300) as repository,
    ):
        await asyncio.gather(*(push(repository, path) for path in paths))
        assert {path.name for path in paths} == {record.name for record in await repository.records()}
        assert 1 <= relay.most <= 3
