"""A server reads what it stores, slowly and for ever, and reports damage by the names of files."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import pytest

from filestore.backends import connect, open_backend
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key
from filestore.repository.index.protocol import Index
from filestore.repository.maintenance.check import SCRUB_TASK, check
from filestore.repository.maintenance.frames import FrameReader
from filestore.repository.maintenance.passes import Pass
from filestore.repository.maintenance.scrub import scrub_step
from filestore.repository.stores.protocol import ChunkStore
from tests.contracts.conftest import Clock
from tests.support.frames import contents, encoded, manifest

N = DEFAULT_NAMESPACE
COUNT = 64
DAYS = 10
DAY = 86400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of one file."""

    async def make() -> None:
        async with connect(tmp_path / "root", create=True) as repository:
            chunks = contents(COUNT)
            await repository.put([encoded(each) for each in chunks])
            await repository.commit(manifest(chunks).encoded, name="model.bin")

    asyncio.run(make())
    return tmp_path / "root"


@pytest.fixture
async def backend(root: Path) -> AsyncIterator[tuple[ChunkStore, Index]]:
    """Its store and index."""
    store, index = await open_backend(root)
    yield store, index
    await index.close()
    await store.close()


def damage(root: Path, place: int = 0) -> None:
    """Flip a bit of a frame."""
    path = root / chunk_key(N, encoded(contents(COUNT)[place]).digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def step(backend: tuple[ChunkStore, Index], clock: Clock) -> Pass:
    """Do one step, and return the state after it."""
    store, index = backend
    await scrub_step(store, index, N, reader=FrameReader(store, count=1), days=DAYS, now=clock)
    return Pass.load(await index.task_state(N, SCRUB_TASK))


async def test_one_pass_takes_its_days(backend: tuple[ChunkStore, Index], caplog: pytest.LogCaptureFixture) -> None:
    """At any time, the pass has read its share of the frames; at the end it is logged, and the next one begins."""
    caplog.set_level(logging.INFO, "filestore.maintenance")
    clock = Clock()
    assert 0 == (await step(backend, clock)).read_count
    clock.advance(seconds=DAYS * DAY // 2)
    half = await step(backend, clock)
    assert COUNT // 4 < half.read_count < COUNT * 3 // 4
    assert half.read_count == (await step(backend, clock)).read_count
    clock.advance(seconds=DAYS * DAY)
    whole = await step(backend, clock)
    assert (COUNT, []) == (whole.read_count, whole.left)
    assert ["INFO"] == [entry.levelname for entry in caplog.records]
    assert f"read {COUNT} chunks" in caplog.text
    again = await step(backend, clock)
    assert (0, COUNT) == (again.read_count, again.last["read_count"])


async def test_clock_that_jumps_back_stops_nothing(backend: tuple[ChunkStore, Index]) -> None:
    """The pass goes on from where it is, at its ordinary speed."""
    clock = Clock()
    await step(backend, clock)
    clock.advance(seconds=DAYS * DAY // 2)
    before = await step(backend, clock)
    clock.advance(seconds=-100 * DAYS * DAY)
    assert before.read_count == (await step(backend, clock)).read_count
    clock.advance(seconds=DAYS * DAY)
    assert COUNT == (await step(backend, clock)).read_count


async def test_damage_is_logged_by_name_and_kept(
    root: Path, backend: tuple[ChunkStore, Index], caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the file, and a later check finds the damage without reading the data."""
    clock = Clock()
    damage(root)
    await step(backend, clock)
    clock.advance(seconds=DAYS * DAY)
    assert 1 == (await step(backend, clock)).damaged_count
    assert "frame-changed" in caplog.text
    assert "'model.bin': 1 of 64 chunks" in caplog.text
    found = [each async for each in check(*backend, writes=False)]
    assert 2 == len(found)


SERVE = """
import os
import sys
import filestore.repository.maintenance.scrub as scrub
scrub.STEP_SECONDS = 0.05
from filestore_cli.start import main
sys.argv[1:] = ["serve", "--root", sys.argv[1], "--port", "0", "--workers", "2"]
os.environ["FILESTORE_TOKEN"] = "a-token-of-this-test"
main()
"""


@pytest.mark.slow
async def test_one_of_two_server_processes_scrubs(root: Path) -> None:
    """A real server finds the damage, and one of its processes logs it once. The state survives the server."""
    damage(root)
    store, index = await open_backend(root)
    state = Pass()
    state.begin(Fraction(1), now=1)  # so long ago that everything should have been read by now
    async with index.transaction() as transaction:
        await transaction.set_task_state(N, SCRUB_TASK, state.as_json())
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, str(root), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert server.stderr is not None
    lines = []
    while "scrub of the namespace" not in (line := (await server.stderr.readline()).decode()):
        assert line
        lines.append(line)
    server.terminate()
    lines += (await server.stderr.read()).decode().splitlines()
    assert 0 == await server.wait()
    assert 1 == sum("model.bin" in line for line in lines)
    assert [] == [line for line in lines if "Traceback" in line or "WARNING" in line]
    assert 1 == len(Pass.load(await index.task_state(N, SCRUB_TASK)).damaged)
    await index.close()
    await store.close()
