from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from filestore.cache import Cache
from filestore.cache.options import CacheOptions
from filestore.core.manifest import Manifest
from filestore.core.paths import chunk_key
from filestore.core.records import Record
from filestore.core.references import File
from filestore.errors import CacheFull, DamagedChunk
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from tests.support.cancels import cancelled_at_every_await
from tests.support.generator import octets
from tests.support.watched import WatchedRepository

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SIZE = 16 * MIB
CONTENT = octets(1, SIZE)

READER = """
import asyncio, os, signal, sys
from filestore import Cache, File, connect
from tests.support.watched import WatchedRepository

async def main(repository, cache, file_id, kill_at):
    async with connect(repository) as connected:
        watched = WatchedRepository(connected)
        async def kill(verb):
            if verb == "get" and watched.calls.count("get") == int(kill_at):
                os.kill(os.getpid(), signal.SIGKILL)
        watched.before = kill
        async with Cache(cache, watched) as cache, cache.open(File(id=file_id)) as opened:
            assert opened.size == 16 << 20
            read = await opened.read(15 << 20, 16 << 20)
        print(len(read), watched.chunks_got)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def record(local_repository: Repository, tmp_path: Path) -> Record:
    """A file of 16 MiB in the repository."""
    (tmp_path / "model.bin").write_bytes(CONTENT)
    return (await push(local_repository, tmp_path / "model.bin")).record


@pytest.fixture
async def small_record(local_repository: Repository, tmp_path: Path) -> Record:
    """A file of three chunks."""
    (tmp_path / "small.bin").write_bytes(CONTENT[: 3 * MIB])
    return (await push(local_repository, tmp_path / "small.bin")).record


def reader(tmp_path: Path, record: Record, *, kill_at: int = 0) -> subprocess.Popen[str]:
    """Start a process that reads the last MiB of a file, and is killed when it asks for the n-th batch of chunks."""
    return subprocess.Popen(
        [sys.executable, "-c", READER, tmp_path / "repository", tmp_path / "cache", record.id, str(kill_at)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def descriptors() -> int:
    """Return the number of files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
async def test_a_reader_that_is_cancelled_at_any_await(
    local_repository: Repository, small_record: Record, tmp_path: Path
) -> None:
    """It leaves no open file, and the next resolve continues from its data."""
    caches = (tmp_path / "caches" / str(number) for number in count())
    used: list[Path] = []

    async def read() -> None:
        used.append(next(caches))
        async with Cache(used[-1], local_repository) as cache, cache.open(File(id=small_record.id)) as opened:
            assert CONTENT[2 * MIB : 3 * MIB] == await opened.read(2 * MIB, 3 * MIB)
            assert CONTENT[:10] == await opened.read(0, 10)
            await opened.whole()

    await read()
    before = descriptors()
    places = [place async for place in cancelled_at_every_await(read)]
    assert 4 < len(places)
    assert before == descriptors()
    for folder in used:
        async with Cache(folder, local_repository) as cache:
            assert CONTENT[: 3 * MIB] == (await cache.resolve(File(id=small_record.id))).read_bytes()
        assert [] == list(folder.glob("*/*/staging/*"))


async def test_staging_that_someone_removes_meanwhile(local_repository: Repository, record: Record, tmp_path: Path) -> None:
    """The fetch starts again. The reader gets the right bytes, also those for which it was waiting."""
    watched = WatchedRepository(local_repository)

    async def remove(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 5:
            for folder in (tmp_path / "cache").glob("*/*/staging/*"):
                shutil.rmtree(folder)

    watched.before = remove
    async with Cache(tmp_path / "cache", watched) as cache, cache.open(File(id=record.id)) as opened:
        assert CONTENT[-MIB:] == await opened.read(SIZE - MIB, SIZE)
        assert CONTENT == await opened.read(0, SIZE)
        assert CONTENT == (await opened.whole()).read_bytes()
    assert 5 < watched.calls.count("get")


@pytest.mark.slow
async def test_a_reader_that_is_killed(local_repository: Repository, record: Record, tmp_path: Path) -> None:
    """Nothing of the file is visible. The next reader fetches only what is missing."""
    killed = reader(tmp_path, record, kill_at=6)
    killed.communicate()
    assert -signal.SIGKILL == killed.returncode
    assert [] == list((tmp_path / "cache").glob("*/*/files/*/*/*"))
    watched = WatchedRepository(local_repository)
    async with Cache(tmp_path / "cache", watched) as cache, cache.open(File(id=record.id)) as opened:
        assert CONTENT == await opened.read(0, SIZE)
    assert 0 < watched.chunks_got < len(Manifest.parse(await local_repository.manifest(record.digest)).chunks)
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


@pytest.mark.slow
async def test_two_processes_read_one_file(local_repository: Repository, record: Record, tmp_path: Path) -> None:
    """One process fetches the file. The other one reads it after it was published."""
    said = [process.communicate() for process in [reader(tmp_path, record) for _ in range(2)]]
    assert [""] * 2 == [errors for _, errors in said]
    whole = len(Manifest.parse(await local_repository.manifest(record.digest)).chunks)
    assert [(MIB, 0), (MIB, whole)] == sorted(tuple(map(int, text.split())) for text, _ in said)


async def test_damage_is_never_read(local_repository: Repository, record: Record, tmp_path: Path) -> None:
    """The block ends with the error. Everything that was read before is right."""
    manifest = Manifest.parse(await local_repository.manifest(record.digest))
    frame = tmp_path / "repository" / chunk_key("default", manifest.chunks[-1].digest)
    frame.chmod(0o644)
    frame.write_bytes(frame.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedChunk):
        async with Cache(tmp_path / "cache", local_repository) as cache, cache.open(File(id=record.id)) as opened:
            await opened.read(SIZE - 10, SIZE)
            pytest.fail("damaged bytes were read")
    assert [] == list((tmp_path / "cache").glob("*/*/files/*/*/*"))


async def test_a_file_that_the_cache_has_no_space_for(local_repository: Repository, record: Record, tmp_path: Path) -> None:
    """The error is one sentence. The block does not begin, and nothing is left."""
    options = CacheOptions(stall_seconds=0.1)
    with pytest.raises(CacheFull):
        async with (
            Cache(tmp_path / "cache", local_repository, size_limit=4 * MIB, options=options) as cache,
            cache.open(File(id=record.id)),
        ):
            pytest.fail("the block began")
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))
