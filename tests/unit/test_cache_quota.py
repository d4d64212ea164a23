from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Collection
from pathlib import Path

import pytest

from filestore.cache import Cache, entry_store, quota
from filestore.cache.inventory import ENTRY_SIZE, CachedEntry, StagedEntry, discard, entries, staged
from filestore.cache.leases import Leases
from filestore.cache.options import CacheOptions
from filestore.core.records import Record
from filestore.core.references import Directory, File, FileURL
from filestore.download.download import DownloadLimits
from filestore.errors import CacheFull, Unreachable
from filestore.repository.protocol import Repository
from filestore.system.files import write_atomic
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore_cli.hints import explained
from tests.support.cancels import cancelled_at_every_await
from tests.support.disks import refuse_locks
from tests.support.generator import octets
from tests.support.origins import answers, head, running_origin, whole
from tests.support.trees import plant, standing
from tests.support.usage import sampled
from tests.support.watched import WatchedRepository

MIB = 1 << 20
SIZE = 2 * MIB
STORED_SIZE = SIZE + ENTRY_SIZE + 4096
"""What one of the files takes, with its manifest."""


@pytest.fixture
async def files(watched: WatchedRepository, tmp_path: Path) -> list[File]:
    """Ten files of 2 MiB."""
    records = [await push_file(watched, tmp_path / f"{number}.bin", number, SIZE) for number in range(10)]
    watched.calls.clear()
    return [File(id=record.id) for record in records]


async def push_file(repository: Repository, path: Path, number: int, size: int) -> Record:
    """A file that shares nothing with those of other numbers."""
    path.write_bytes(random.Random(number).randbytes(size))
    return (await push(repository, path)).record


def kept(root: Path) -> list[str]:
    """The names of the files and trees that a cache holds."""
    return sorted(name for entry in entries(root) for name in entry.names)


def age(root: Path, *, minutes: int) -> None:
    """Have all entries be used so many minutes earlier than they were."""
    for entry in entries(root):
        path = entry.folder / "entry.json"
        used_at = path.stat().st_mtime - 60 * minutes
        os.utime(path, (used_at, used_at))


async def use(cache: Cache, file: File) -> None:
    """Resolve a file, for no longer than that takes."""
    async with cache.lease(file):
        pass


@pytest.mark.slow
async def test_the_least_recently_used_goes_first(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """By the last use, not by the first; as many as are needed, and no more."""
    cache = Cache(tmp_path / "cache", watched, size_limit=3 * STORED_SIZE)
    for file in (files[0], files[1], files[2], files[0]):
        age(tmp_path / "cache", minutes=2)
        await use(cache, file)
    assert ["0.bin", "1.bin", "2.bin"] == kept(tmp_path / "cache")
    await use(cache, files[3])
    assert ["0.bin", "2.bin", "3.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_what_is_resolved_stays_until_the_cache_is_closed(
    watched: WatchedRepository, files: list[File], tmp_path: Path
) -> None:
    """It is pinned for every cache of the folder; an error about space says what is in use and what to do."""
    async with Cache(tmp_path / "cache", watched, size_limit=3 * STORED_SIZE) as cache:
        paths = [await cache.resolve(file) for file in files[:3]]
        other = Cache(tmp_path / "cache", watched, size_limit=3 * STORED_SIZE)
        with pytest.raises(CacheFull) as raised:
            await use(other, files[3])
        assert all(path.exists() for path in paths)
        assert explained(raised.value) == (
            f"the cache {tmp_path / 'cache'} has no room: {STORED_SIZE} bytes are needed, its limit is {3 * STORED_SIZE}, "
            f"{3 * STORED_SIZE} bytes in it are in use and 0 are being fetched; "
            "raise the limit (setting cache_size_limit), or end what uses them; "
            "FILESTORE_CACHE_SIZE_LIMIT sets the limit, and `filestore cache ls` shows what is in use"
        )
    await use(other, files[3])
    assert 3 == len(kept(tmp_path / "cache"))
    assert "3.bin" in kept(tmp_path / "cache")


@pytest.mark.slow
async def test_a_lease_ends_with_its_block(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """Inside the block the entry stays, after it the entry may be evicted. Two leases of one entry count twice."""
    cache = Cache(tmp_path / "cache", watched, size_limit=STORED_SIZE)
    async with cache.lease(files[0]) as path:
        async with cache.lease(files[0]) as same:
            assert path == same
        with pytest.raises(CacheFull):
            await use(cache, files[1])
        assert path.exists()
    await use(cache, files[1])
    assert not path.exists()


@pytest.mark.slow
async def test_a_lease_that_is_cancelled_at_any_await_is_none(
    watched: WatchedRepository, files: list[File], tmp_path: Path
) -> None:
    """A caller that is cancelled while it waits for a lease, or has it, holds nothing afterwards."""
    cache = Cache(tmp_path / "cache", watched)
    await use(cache, files[0])

    async def use_it() -> None:
        async with cache.lease(files[0]):
            await asyncio.sleep(0)

    places = [place async for place in cancelled_at_every_await(use_it)]
    assert 3 <= len(places)
    assert {} == Leases(tmp_path / "cache").held()


@pytest.mark.slow
async def test_a_resolve_that_fails_pins_nothing(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """Its staging may be removed at once, while the cache is open. Other resolved entries stay."""
    cache = Cache(tmp_path / "cache", watched)
    await cache.resolve(files[0])
    held = Leases(tmp_path / "cache").held()

    async def fail(verb: str) -> None:
        if verb == "get":
            raise Unreachable("somewhere", "cut")

    watched.before = fail
    with pytest.raises(Unreachable):
        await cache.resolve(files[1])
    assert 1 == len(held)
    assert held == Leases(tmp_path / "cache").held()


@pytest.mark.slow
async def test_what_can_never_fit_is_refused_at_once(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """Nothing is fetched, and nothing is evicted."""
    await use(Cache(tmp_path / "cache", watched), files[0])
    watched.calls.clear()
    with pytest.raises(CacheFull) as raised:
        await use(Cache(tmp_path / "cache", watched, size_limit=100), files[1])
    assert explained(raised.value) == (
        f"the cache {tmp_path / 'cache'} has no room: {STORED_SIZE} bytes are needed, its limit is 100, "
        "and so they do not fit even if everything else is removed; raise the limit (setting cache_size_limit); "
        "FILESTORE_CACHE_SIZE_LIMIT sets the limit"
    )
    assert ["record", "manifest"] == watched.calls
    assert ["0.bin"] == kept(tmp_path / "cache")
    assert {} == Leases(tmp_path / "cache").held()


@pytest.mark.slow
async def test_a_tree_reserves_what_its_files_take(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """Small files take whole blocks, and folders too: more than the zip has."""
    things = {f"folder {number % 3}/{number}": octets(number, 10) for number in range(300)}
    record = (await push(watched, plant(tmp_path / "small", things))).record
    assert record.size < 100_000
    await use(Cache(tmp_path / "cache", watched), files[0])
    with pytest.raises(CacheFull, match="bytes are needed, its limit is 1000000"):
        await Cache(tmp_path / "cache", watched, size_limit=1_000_000).resolve(Directory(id=record.id))
    cache = Cache(tmp_path / "cache", watched, size_limit=SIZE + 300 * 4096)
    async with cache.lease(Directory(id=record.id)) as path:
        assert things == standing(path)
    assert ["small"] == kept(tmp_path / "cache")
    (entry,) = entries(tmp_path / "cache")
    assert 3000 == entry.size
    assert 303 * 4096 < entry.stored_size < 330 * 4096


@pytest.mark.slow
async def test_what_others_fetch_is_waited_for(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """Of four fetches, two fit at a time; all four succeed."""
    # The end of two uses may take a busy disk longer than a second.
    options = CacheOptions(settle_seconds=60)
    cache = Cache(tmp_path / "cache", watched, size_limit=2 * STORED_SIZE, options=options)
    async with asyncio.TaskGroup() as group:
        for file in files[:4]:
            group.create_task(use(cache, file))
    assert 4 == watched.calls.count("manifest")
    assert 2 == len(kept(tmp_path / "cache"))


@pytest.mark.slow
async def test_who_gets_no_further_is_not_waited_for_longer(
    watched: WatchedRepository, files: list[File], tmp_path: Path
) -> None:
    """A fetch without progress does not make others wait for ever."""
    options = CacheOptions(stall_seconds=0.1)
    gate = asyncio.Event()

    async def hang(verb: str) -> None:
        if verb == "get":
            await gate.wait()

    slow = WatchedRepository(watched.inner, before=hang)
    hanging = asyncio.create_task(use(Cache(tmp_path / "cache", slow, size_limit=STORED_SIZE), files[0]))
    while "get" not in slow.calls:
        await asyncio.sleep(0)
    with pytest.raises(CacheFull, match=f"0 bytes in it are in use and {STORED_SIZE} are being fetched"):
        await use(Cache(tmp_path / "cache", watched, size_limit=STORED_SIZE, options=options), files[1])
    gate.set()
    await hanging
    assert ["0.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_ten_files_that_do_not_all_fit_never_exceed_the_limit(
    watched: WatchedRepository, files: list[File], tmp_path: Path
) -> None:
    """With three workers, entries and staging stay within the limit at each look, every 10 ms."""
    limit = 5 * STORED_SIZE
    cache = Cache(tmp_path / "cache", watched, size_limit=limit)
    waiting = iter(files * 2)

    async def worker() -> None:
        for file in waiting:
            await use(cache, file)

    async with sampled(tmp_path / "cache") as samples:
        await asyncio.gather(*[worker() for _ in range(3)])
    assert 10 < len(samples)
    # Folders and locks that stay are not counted: a few KiB for each entry there ever was.
    assert limit // 2 < max(samples) < limit + 4 * MIB
    assert 5 == len(kept(tmp_path / "cache"))


@pytest.mark.slow
async def test_what_a_new_version_shares_goes_last(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """The oldest entry is a seed of the fetched file, so it is used before it is evicted."""
    path = tmp_path / "0.bin"
    path.write_bytes(path.read_bytes() + b"more")
    newer = (await push(watched, path)).record
    cache = Cache(tmp_path / "cache", watched, size_limit=2 * STORED_SIZE + 8192)
    for file in files[:2]:
        age(tmp_path / "cache", minutes=2)
        await use(cache, file)
    resolved = await cache.resolved(File(id=newer.id))
    assert resolved.bytes_reused > 0
    assert [str(newer.digest)] == [entry.digest for entry in entries(tmp_path / "cache") if entry.digest == str(newer.digest)]
    assert ["0.bin", "0.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_what_a_cut_fetch_has_left_goes_like_an_entry(
    watched: WatchedRepository, files: list[File], tmp_path: Path
) -> None:
    """It counts, and is removed when space is needed and no process fetches it."""
    options = CacheOptions(transfer=TransferOptions(batches_in_flight=1))
    large = await push_file(watched, tmp_path / "large.bin", 10, 12 * MIB)

    async def cut(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") > 1:
            raise Unreachable("somewhere", "cut")

    watched.before = cut
    cache = Cache(tmp_path / "cache", watched, size_limit=13 * MIB, options=options)
    with pytest.raises(Unreachable):
        await use(cache, File(id=large.id))
    (left,) = staged(tmp_path / "cache")
    assert 4 * MIB < left.stored_size < 12 * MIB
    cache = Cache(tmp_path / "cache", watched.inner, size_limit=6 * MIB, options=options)
    await use(cache, files[1])
    assert [] == list(staged(tmp_path / "cache"))
    assert ["1.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("is_told", [True, False], ids=["its length is told", "nobody knows its length"])
async def test_what_a_url_brings_keeps_within_the_limit(
    watched: WatchedRepository, files: list[File], tmp_path: Path, *, is_told: bool
) -> None:
    """Space is made at once if the size is known, otherwise while the content arrives."""
    content = octets(50, 3 * MIB)
    chunked = head("200 OK", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    downloads = DownloadLimits(private_allowed=True)
    async with running_origin(answers(whole(content) if is_told else chunked)) as origin:
        url = FileURL(origin.url + "/theirs.bin")
        small = Cache(tmp_path / "cache", watched, downloads=downloads, size_limit=2 * MIB)
        with pytest.raises(CacheFull, match="bytes are needed, its limit is"):
            await small.resolve(url)
        cache = Cache(tmp_path / "cache", watched, downloads=downloads, size_limit=20 * MIB)
        for file in files[:9]:
            await use(cache, file)
        async with sampled(tmp_path / "cache") as samples, cache.lease(url) as path:
            assert content == path.read_bytes()
    assert max(samples) < 20 * MIB
    assert "theirs.bin" in kept(tmp_path / "cache")
    assert [] == list(staged(tmp_path / "cache"))


@pytest.mark.slow
async def test_a_second_name_takes_no_space(
    watched: WatchedRepository, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file by hard link, and where there are none, by symbolic link."""
    renamed = [(await push(watched, tmp_path / "0.bin", name=f"renamed {number}.bin")).record for number in range(2)]
    cache = Cache(tmp_path / "cache", watched, size_limit=STORED_SIZE)
    content = (await cache.resolve(files[0])).read_bytes()
    assert content == (await cache.resolve(File(id=renamed[0].id))).read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    assert content == (await cache.resolve(File(id=renamed[1].id))).read_bytes()
    (entry,) = entries(tmp_path / "cache")
    assert (["0.bin", "renamed 0.bin", "renamed 1.bin"], STORED_SIZE) == (entry.names, entry.stored_size)


@pytest.mark.slow
async def test_a_use_is_noted_once_a_minute(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """A hit writes nothing, where the last use is not a minute ago."""
    cache = Cache(tmp_path / "cache", watched)
    await use(cache, files[0])
    (before,) = entries(tmp_path / "cache")
    await use(cache, files[0])
    assert [before] == list(entries(tmp_path / "cache"))
    age(tmp_path / "cache", minutes=2)
    await use(cache, files[0])
    (after,) = entries(tmp_path / "cache")
    assert before.used_at <= after.used_at


@pytest.mark.slow
async def test_a_use_in_the_future_is_not_believed(watched: WatchedRepository, files: list[File], tmp_path: Path) -> None:
    """A clock that was wrong for a while does not make an entry the last one to go for ever: its next use is noted."""
    cache = Cache(tmp_path / "cache", watched)
    await use(cache, files[0])
    (before,) = entries(tmp_path / "cache")
    age(tmp_path / "cache", minutes=-60 * 24)
    await use(cache, files[0])
    (after,) = entries(tmp_path / "cache")
    assert before.used_at <= after.used_at < before.used_at + 60 * 60


@pytest.mark.slow
async def test_without_locks_the_limit_holds(
    watched: WatchedRepository, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process writes its reservation before it counts, so both see both."""
    refuse_locks(monkeypatch)
    limit = 4 * STORED_SIZE
    caches = [Cache(tmp_path / "cache", watched, size_limit=limit) for _ in range(3)]
    async with sampled(tmp_path / "cache") as samples:
        for start in (0, 3, 6):
            await asyncio.gather(*[use(cache, file) for cache, file in zip(caches, files[start:], strict=False)])
    assert max(samples) < limit + 4 * MIB
    assert 4 >= len(kept(tmp_path / "cache"))


@pytest.mark.slow
async def test_whoever_comes_while_an_entry_is_taken_gets_it_back(
    watched: WatchedRepository, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned between the look for leases and the removal, where locks do not work: it is put back."""
    options = CacheOptions(lock_seconds=0.01)
    cache = Cache(tmp_path / "cache", watched, size_limit=STORED_SIZE, options=options)
    await use(cache, files[0])
    (entry,) = entries(tmp_path / "cache")
    latecomer = Leases(tmp_path / "cache", lock_seconds=options.lock_seconds).hold()
    looks = iter([False, True])

    def is_held(_: Leases, key: str) -> bool:
        latecomer.pin(key)
        return next(looks)

    monkeypatch.setattr(Leases, "is_held", is_held)
    with pytest.raises(CacheFull):
        await use(cache, files[1])
    assert entry.folder.exists()
    assert [] == list(staged(tmp_path / "cache"))


@pytest.mark.slow
async def test_what_was_in_use_for_a_moment_is_not_a_reason_to_refuse(
    watched: WatchedRepository, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that another process used for a moment is evicted a little later."""
    cache = Cache(tmp_path / "cache", watched, size_limit=STORED_SIZE)
    await use(cache, files[0])
    refused: list[str] = []

    def discard_later(leases: Leases, item: CachedEntry | StagedEntry) -> bool:
        if not refused:
            refused.append(item.key)
            return False
        return discard(leases, item)

    monkeypatch.setattr(quota, "discard", discard_later)
    await use(cache, files[1])
    assert 1 == len(refused)
    assert ["1.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_who_has_just_fetched_something_is_waited_for_a_moment(
    watched: WatchedRepository, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that is in use at the first look, and free a moment later, is evicted."""
    options = CacheOptions(settle_seconds=60)
    cache = Cache(tmp_path / "cache", watched, size_limit=STORED_SIZE, options=options)
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    refusal_for = quota.Quota._refusal_for

    def tell(self: quota.Quota, key: str, size: int, spared: Collection[str]) -> object:
        refusal = refusal_for(self, key, size, spared)
        loop.call_soon_threadsafe(looked.set)
        return refusal

    async with cache.lease(files[0]):
        monkeypatch.setattr(quota.Quota, "_refusal_for", tell)
        second = asyncio.create_task(use(cache, files[1]))
        await looked.wait()
    await second
    assert ["1.bin"] == kept(tmp_path / "cache")


@pytest.mark.slow
async def test_what_is_being_published_takes_no_more_than_is_reserved(
    watched: WatchedRepository, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another process, which counts at that moment, would evict one entry too many."""
    taken: list[int] = []

    def look(path: Path, content: bytes) -> None:
        write_atomic(path, content)
        taken.append(sum(item.stored_size for item in staged(tmp_path / "cache")))

    monkeypatch.setattr(entry_store, "write_atomic", look)
    await use(Cache(tmp_path / "cache", watched), files[0])
    assert 2 == len(taken)
    assert SIZE < max(taken) <= STORED_SIZE
