"""Real processes share caches, are killed, and fill disks. Limits hold, and entries in use stay."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from filestore.cache import Cache
from filestore.cache.inventory import ENTRY_SIZE, entries, staged
from filestore.cache.leases import Leases
from filestore.core.records import Record
from filestore.core.references import Directory, File
from filestore.errors import CacheFull, StorageError, StorageFull
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from tests.support.disks import small_disk
from tests.support.trees import plant, standing
from tests.support.usage import disk_usage, sampled
from tests.support.watched import WatchedRepository

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SIZE = 4 * MIB
STORED_SIZE = SIZE + ENTRY_SIZE + 4096
"""Bytes of disk that one of the files takes, with its manifest."""
WORKERS = 4


@pytest.fixture
async def records(local_repository: Repository, tmp_path: Path) -> list[Record]:
    """Ten files of 4 MiB in the repository."""
    pushed = []
    for number in range(10):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(random.Random(number).randbytes(SIZE))
        pushed.append((await push(local_repository, path)).record)
        path.unlink()
    return pushed


def start(tmp_path: Path, size_limit: int, records: list[Record], *options: str) -> subprocess.Popen[str]:
    """Start a process that uses files one after the other."""
    ids = [record.id for record in records]
    arguments: list[str | Path] = [tmp_path / "repository", tmp_path / "cache", str(size_limit), *ids, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.cache_users", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def using(tmp_path: Path, size_limit: int, records: list[Record]) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that has used files, and uses the last one until it is killed."""
    with start(tmp_path, size_limit, records) as process:
        try:
            assert process.stdout is not None
            for record in records:
                assert f"used {record.name}\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def kept(root: Path) -> list[str]:
    """Return the names of the files in a cache."""
    return sorted(name for entry in entries(root) for name in entry.names)


async def use(cache: Cache, record: Record) -> None:
    """Resolve a file, and use it only for that time."""
    async with cache.lease(File(id=record.id)):
        pass


@pytest.mark.slow
def test_sixteen_processes_that_resolve_one_file_fetch_it_once(records: list[Record], tmp_path: Path) -> None:
    """One process asks for its chunks, and no file of the others is left."""
    with start(tmp_path, STORED_SIZE, records[:1], "--processes", "16") as process:
        said, _ = process.communicate()
    calls = json.loads(said)
    assert (16, 0) == (len(calls), process.returncode)
    assert 1 == sum(each.count("manifest") for each in calls)
    assert 1 == sum("get" in each for each in calls)
    assert ["0.bin"] == kept(tmp_path / "cache")
    assert {} == Leases(tmp_path / "cache").held()


@pytest.mark.slow
async def test_what_another_process_uses_stays_until_it_is_killed(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """Its lease keeps the entry. After a kill it keeps nothing, and nobody has to remove anything."""
    cache = Cache(tmp_path / "cache", local_repository, size_limit=STORED_SIZE)
    with using(tmp_path, STORED_SIZE, records[:1]):
        with pytest.raises(CacheFull, match=f"{STORED_SIZE} bytes in it are in use and 0 are being fetched"):
            await use(cache, records[1])
        assert ["0.bin"] == kept(tmp_path / "cache")
    await use(cache, records[1])
    assert ["1.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_what_a_killed_process_has_reserved_and_staged_is_free_again(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """After a kill in the middle of a fetch, the next fetch that needs the space has it at once."""
    killed = start(tmp_path, STORED_SIZE, records[:1], "--kill-at-get", "1")
    killed.communicate()
    assert 1 == len(list(staged(tmp_path / "cache")))
    (holder,) = (path for path in (tmp_path / "cache" / "leases").iterdir() if path.is_dir())
    assert 2 == len(list(holder.iterdir()))
    await use(Cache(tmp_path / "cache", local_repository, size_limit=STORED_SIZE), records[1])
    assert not holder.exists()
    assert [] == list(staged(tmp_path / "cache"))
    assert ["1.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_processes_that_share_a_limit_keep_it(local_repository: Repository, records: list[Record], tmp_path: Path) -> None:
    """Three processes use ten files that do not all fit, and one is killed. The limit holds, measured every 10 ms."""
    limit = 4 * STORED_SIZE
    cache = Cache(tmp_path / "cache", local_repository, size_limit=limit)
    (tmp_path / "cache").mkdir()
    async with sampled(tmp_path / "cache") as samples:
        # The killed process uses its own files, because it would not fetch a file that the others have fetched.
        own, shared = records[:2], records[2:]
        with start(tmp_path, limit, shared[::-1]) as other, start(tmp_path, limit, own, "--kill-at-get", "2") as killed:
            for record in shared[4:] + shared:
                await use(cache, record)
            await asyncio.to_thread(killed.communicate)
            said, _ = await asyncio.to_thread(other.communicate)
    assert "".join(f"used {record.name}\n" for record in reversed(shared)) == said
    assert (0, -9) == (other.returncode, killed.returncode)
    assert 2 * STORED_SIZE < max(samples) < limit + WORKERS * 4 * MIB
    assert 4 >= len(kept(tmp_path / "cache"))


async def test_a_damaged_entry_is_fetched_again_within_the_limit(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """A cache with space for one entry repairs it in place. It never takes the space of two."""
    cache = Cache(tmp_path / "cache", local_repository, size_limit=STORED_SIZE)
    async with cache.lease(File(id=records[0].id)) as path:
        expected = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(expected[:-1] + bytes([expected[-1] ^ 1]))
    used: list[int] = []

    async with cache.lease(File(id=records[0].id), report=lambda _: used.append(disk_usage(tmp_path / "cache"))) as path:
        assert expected == path.read_bytes()
    assert max(used) < STORED_SIZE + MIB


async def test_a_damaged_entry_with_a_name_outside_the_cache(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """A user has given a file of the cache another name, and has written to it. What was written stays."""
    cache = Cache(tmp_path / "cache", local_repository)
    async with cache.lease(File(id=records[0].id)) as path:
        expected = path.read_bytes()
        os.link(path, tmp_path / "mine")
    (tmp_path / "mine").chmod(0o644)
    (tmp_path / "mine").write_bytes(b"mine")
    async with cache.lease(File(id=records[0].id)) as path:
        assert expected == path.read_bytes()
    assert b"mine" == (tmp_path / "mine").read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A disk of 24 MiB at `small`."""
    with small_disk(tmp_path / "small", "size=24m") as change:
        yield change


def free(folder: Path) -> int:
    """Return the free bytes of a disk."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@pytest.mark.slow
@pytest.mark.usefixtures("disk")
async def test_the_disk_space_to_be_left_free_is_left(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """Ten files go to a disk that holds five.

    Space for one and a half must stay free, whatever else is written to the disk.
    """
    min_free = 6 * MIB
    cache = Cache(tmp_path / "small" / "cache", local_repository, min_free=min_free)
    least: list[int] = []

    def look(_: object) -> None:
        least.append(free(tmp_path / "small"))

    for number, record in enumerate(records):
        if number == 5:
            (tmp_path / "small" / "other").write_bytes(bytes(5 * MIB))
        async with cache.lease(File(id=record.id), report=look):
            pass
        look(None)
        assert free(tmp_path / "small") >= min_free - 16384
    assert min(least) >= min_free - WORKERS * 4 * MIB
    assert 3 == len(kept(tmp_path / "small" / "cache"))
    with pytest.raises(CacheFull, match=r"must stay free, 0 bytes in it are in use .* lower that limit"):
        await use(Cache(tmp_path / "small" / "cache", local_repository, min_free=30 * MIB), records[0])


@pytest.mark.slow
@pytest.mark.usefixtures("disk")
async def test_without_a_min_free_a_full_disk_makes_space(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """A cache without limits fills the disk, and then evicts the oldest entry."""
    cache = Cache(tmp_path / "small" / "cache", local_repository)
    for record in records:
        await use(cache, record)
    assert 5 == len(kept(tmp_path / "small" / "cache"))


@pytest.mark.slow
@pytest.mark.usefixtures("disk")
async def test_a_disk_that_others_fill_while_something_is_fetched(
    local_repository: Repository, records: list[Record], tmp_path: Path
) -> None:
    """The fetch fails with one sentence and no partial result. Entries in use stay. With more space, it continues."""
    cache = Cache(tmp_path / "small" / "cache", local_repository)
    used = await cache.resolve(File(id=records[0].id))
    junk = tmp_path / "small" / "junk"

    async def fill(verb: str) -> None:
        if verb == "get":
            with junk.open("wb") as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(MIB))
                    file.flush()

    filling = Cache(tmp_path / "small" / "cache", WatchedRepository(local_repository, before=fill))
    with pytest.raises(StorageFull, match="free some space and try again"):
        await use(filling, records[1])
    with pytest.raises(CacheFull, match=f"{STORED_SIZE} bytes are needed, 0 are free on its disk"):
        await use(cache, records[2])
    assert used == await Cache(tmp_path / "small" / "cache", local_repository).resolve(File(id=records[0].id))
    assert ["0.bin"] == kept(tmp_path / "small" / "cache")
    junk.unlink()
    await use(cache, records[1])
    assert ["0.bin", "1.bin"] == kept(tmp_path / "small" / "cache")


async def test_a_read_only_cache_gives_what_it_has(
    local_repository: Repository, records: list[Record], tmp_path: Path, disk: Callable[[str], None]
) -> None:
    """Its files and trees are hits, also under a new name of the repository. Everything else fails with one sentence."""
    tree = (await push(local_repository, plant(tmp_path / "tree", {"a/b": b"b"}))).record
    cache = tmp_path / "small" / "cache"
    async with Cache(cache, local_repository) as writing:
        expected = [await writing.resolve(File(id=records[0].id)), await writing.resolve(Directory(id=tree.id))]
    for path in (cache / "repositories").iterdir():
        path.unlink()
    for entry in entries(cache):
        os.utime(entry.folder / "entry.json", (1, 1))
    disk("ro")
    async with Cache(cache, local_repository) as reading:
        assert expected[0] == await reading.resolve(File(id=records[0].id))
        async with reading.lease(Directory(digest=str(tree.digest))) as path:
            assert {"a/b": b"b"} == standing(path)
        with pytest.raises(StorageError, match="Read-only file system, so that nothing new can be kept there; make it writable"):
            await reading.resolve(File(id=records[1].id))
    with pytest.raises(StorageError, match="Read-only file system, so that nothing new can be kept there; make it writable"):
        await Cache(tmp_path / "small" / "new", local_repository).resolve(File(id=records[0].id))
