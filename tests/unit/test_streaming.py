from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from filestore.cache import Cache
from filestore.cache.options import CacheOptions
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.records import Record
from filestore.core.references import File
from filestore.errors import InvalidRange, NotFound, Unreachable
from filestore.repository.protocol import Moved, Repository
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from tests.support.watched import WatchedRepository

MIB = 1 << 20
SIZE = 24 * MIB
CONTENT = random.Random(5).randbytes(SIZE)


class Gated(WatchedRepository):
    """A repository that gives chunks only as far as permitted, and records the order of requests."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.asked: list[Digest] = []
        self.is_open: Callable[[], bool] = lambda: True
        self.changed = asyncio.Event()

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        self.asked.extend(digests)
        while not self.is_open():
            self.changed.clear()
            await self.changed.wait()
        return await super().get(digests, buffer, moved=moved)

    def let(self, is_open: Callable[[], bool]) -> None:
        """Have `is_open` say who may pass."""
        self.is_open = is_open
        self.changed.set()


@pytest.fixture
def gated(local_repository: Repository) -> Gated:
    """Return a repository with an open gate."""
    return Gated(local_repository)


@pytest.fixture
async def record(gated: Gated, tmp_path: Path) -> Record:
    """A file of 24 MiB in the repository."""
    (tmp_path / "model.bin").write_bytes(CONTENT)
    return (await push(gated.inner, tmp_path / "model.bin")).record


@pytest.fixture
async def manifest(gated: Gated, record: Record) -> Manifest:
    """The manifest of the file."""
    return Manifest.parse(await gated.inner.manifest(record.digest))


@pytest.mark.slow
async def test_ranges_are_read_while_the_rest_is_not_there(gated: Gated, record: Record, tmp_path: Path) -> None:
    """The last bytes come as soon as their chunk is there; the file does not exist yet."""
    cache = Cache(tmp_path / "cache", gated)
    passed = 0

    def first_six() -> bool:
        nonlocal passed
        passed += 1
        return passed <= 6

    gated.let(first_six)
    async with cache.open(File(id=record.id)) as opened:
        assert SIZE == opened.size
        assert CONTENT[-10:] == await opened.read(SIZE - 10, SIZE)
        assert [] == list((tmp_path / "cache").glob("*/*/files/*/*/*"))
        gated.let(lambda: True)
        assert CONTENT == await opened.read(0, SIZE)
        path = await opened.whole()
    assert CONTENT == path.read_bytes()
    assert path == await cache.resolve(File(id=record.id))
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


@pytest.mark.slow
async def test_what_is_asked_for_comes_first(gated: Gated, record: Record, manifest: Manifest, tmp_path: Path) -> None:
    """With one worker, it comes after the current batch and before all others. No chunk is asked for twice."""
    options = CacheOptions(transfer=TransferOptions(batches_in_flight=1))
    gated.let(lambda: False)
    async with Cache(tmp_path / "cache", gated, options=options).open(File(id=record.id)) as opened:
        while not gated.asked:
            await asyncio.sleep(0)
        under_way = len(gated.asked)
        reading = asyncio.create_task(opened.read(SIZE - 3 * MIB, SIZE - 2 * MIB))
        await asyncio.sleep(0)
        gated.let(lambda: True)
        assert CONTENT[-3 * MIB : -2 * MIB] == await reading
    spans = zip(manifest.offsets(), manifest.chunks, strict=True)
    wanted = [chunk.digest for offset, chunk in spans if offset < SIZE - 2 * MIB and offset + chunk.size > SIZE - 3 * MIB]
    assert wanted == gated.asked[under_way : under_way + len(wanted)]
    assert sorted(chunk.digest for chunk in manifest.chunks) == sorted(gated.asked)


def cache_of(repository: Repository, tmp_path: Path) -> Cache:
    """A cache in the test's folder."""
    return Cache(tmp_path / "cache", repository)


@pytest.mark.slow
async def test_a_file_that_is_here_asks_nobody(gated: Gated, record: Record, tmp_path: Path) -> None:
    """A hit is read from the entry."""
    await cache_of(gated, tmp_path).resolve(File(id=record.id))
    gated.calls.clear()
    async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened:
        memory = bytearray(100)
        await opened.read_into(memoryview(memory), 1000)
        assert CONTENT[1000:1100] == memory
        assert (SIZE, "model.bin") == (opened.size, (await opened.whole()).name)
    assert [] == gated.calls


@pytest.mark.slow
async def test_many_readers_at_once(gated: Gated, record: Record, tmp_path: Path) -> None:
    """Each gets its own bytes, over chunk boundaries, in any order."""
    spans = [(start, start + 700_001) for start in range(0, SIZE - 700_001, 500_000)]
    random.Random(1).shuffle(spans)
    async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened, asyncio.TaskGroup() as group:
        reads = {span: group.create_task(opened.read(*span)) for span in spans}
    assert all(CONTENT[start:stop] == read.result() for (start, stop), read in reads.items())


async def test_an_empty_file(gated: Gated, tmp_path: Path) -> None:
    """Has one range."""
    (tmp_path / "empty").write_bytes(b"")
    record = (await push(gated.inner, tmp_path / "empty")).record
    async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened:
        assert (0, bytearray()) == (opened.size, await opened.read(0, 0))
        assert b"" == (await opened.whole()).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, SIZE + 1), (SIZE + 1, SIZE + 1)])
async def test_a_range_outside_of_the_file(gated: Gated, record: Record, tmp_path: Path, start: int, stop: int) -> None:
    """Is an error that says how large the file is, whether all of it is here or not."""
    for _ in ("while it comes", "when it is here"):
        with pytest.raises(InvalidRange, match=str(SIZE)):
            async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened:
                await opened.read(start, stop)
        await cache_of(gated, tmp_path).resolve(File(id=record.id))


async def test_what_is_not_there(gated: Gated, tmp_path: Path) -> None:
    """The block does not begin."""
    with pytest.raises(NotFound):
        async with cache_of(gated, tmp_path).open(File(id="file_" + "0" * 32)):
            pytest.fail("the block began")


@pytest.mark.slow
async def test_a_fetch_that_fails_ends_the_block(gated: Gated, record: Record, manifest: Manifest, tmp_path: Path) -> None:
    """The read raises the error of the fetch. Chunks that are here are not fetched again."""
    passed = 0

    async def cut(verb: str) -> None:
        nonlocal passed
        passed += verb == "get"
        if verb == "get" and passed == 6:
            raise Unreachable("somewhere", "cut")

    gated.before = cut
    with pytest.raises(Unreachable, match="cut"):
        async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened:
            await opened.read(0, SIZE)
            pytest.fail("all of it was read")
    got = gated.chunks_got
    path = await cache_of(gated, tmp_path).resolve(File(id=record.id))
    assert CONTENT == path.read_bytes()
    assert gated.chunks_got - got < len(manifest.chunks)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["an error", "a cancel"])
async def test_a_block_that_is_left_stops_the_fetch(gated: Gated, record: Record, tmp_path: Path, how: str) -> None:
    """The rest is not awaited; the next block continues."""
    gated.let(lambda: False)

    async def leave() -> None:
        async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened:
            assert SIZE == opened.size
            if how == "an error":
                raise KeyError(how)
            inside.set()
            await opened.read(0, SIZE)

    inside = asyncio.Event()
    task = asyncio.create_task(leave())
    if how == "a cancel":
        await inside.wait()
        task.cancel()
    with pytest.raises(KeyError if how == "an error" else asyncio.CancelledError):
        await task
    gated.let(lambda: True)
    assert CONTENT == (await cache_of(gated, tmp_path).resolve(File(id=record.id))).read_bytes()


@pytest.mark.slow
async def test_two_who_open_one_file_fetch_it_once(gated: Gated, record: Record, tmp_path: Path) -> None:
    """The second waits for the whole."""
    cache = cache_of(gated, tmp_path)

    async def read() -> bytearray:
        async with cache.open(File(id=record.id)) as opened:
            return await opened.read(5, 10)

    assert [CONTENT[5:10]] * 2 == [bytes(part) for part in await asyncio.gather(read(), read())]
    assert 1 == gated.calls.count("manifest")


@pytest.mark.slow
async def test_nobody_reads_after_the_block(gated: Gated, record: Record, tmp_path: Path) -> None:
    """An error of the program's, and never bytes of another file."""
    async with cache_of(gated, tmp_path).open(File(id=record.id)) as opened:
        pass
    with pytest.raises(ValueError, match="closed"):
        await opened.read(0, 10)
