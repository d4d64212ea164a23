from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.cache import Cache, verify_cache
from filestore.cache.options import CacheOptions
from filestore.cache.seeds import find_seeds
from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.paths import hashed
from filestore.core.records import Record
from filestore.core.references import File
from filestore.errors import InvalidInput, InvalidReference, NotFound, StorageError, UnknownFormat, Unreachable
from filestore.format.zip.read import DEFAULT_LIMITS
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from tests.support.disks import refuse_locks
from tests.support.models import safetensors_file, tensor
from tests.support.watched import WatchedRepository

MIB = 1 << 20
TUNED = ("layers.3.weight", "layers.9.weight")


@pytest.fixture
async def record(watched: WatchedRepository, tmp_path: Path) -> Record:
    """A file of 12 MiB in the repository."""
    path = tmp_path / "model v1.bin"
    path.write_bytes(random.Random(3).randbytes(12 * MIB))
    record = (await push(watched, path)).record
    watched.calls.clear()
    return record


@pytest.fixture
def cache(watched: WatchedRepository, tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache", watched)


def content(tmp_path: Path) -> bytes:
    """The content that was pushed."""
    return (tmp_path / "model v1.bin").read_bytes()


async def test_a_file_is_named_as_it_was_and_read_only(cache: Cache, record: Record, tmp_path: Path) -> None:
    """The path ends in the name of the push, and the file is read-only."""
    path = await cache.resolve(File(id=record.id))
    assert ("model v1.bin", content(tmp_path), 0o444) == (path.name, path.read_bytes(), path.stat().st_mode & 0o777)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["id", "digest", "path"])
async def test_a_hit_asks_nobody(watched: WatchedRepository, record: Record, tmp_path: Path, how: str) -> None:
    """The second resolve, also by a new process, asks nothing of the repository, however the file is named."""
    file = {"id": File(id=record.id), "digest": File(digest=str(record.digest)), "path": File(record.path)}[how]
    first = await Cache(tmp_path / "cache", watched).resolve(file)
    watched.calls.clear()
    assert first == await Cache(tmp_path / "cache", watched).resolve(file)
    assert [] == watched.calls


@pytest.mark.slow
async def test_a_record_is_what_it_stands_for(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """What a push or a list gave: a file, or the tree of a directory."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("a")
    directory = (await push(watched, tmp_path / "tree")).record
    assert None is await cache.cached(record)
    assert await cache.resolve(record) == await cache.resolve(File(id=record.id))
    async with cache.lease(directory) as folder:
        assert "a" == (folder / "a").read_text()
    found = await cache.cached(record)
    assert found is not None
    assert content(tmp_path) == found.path.read_bytes()


async def test_a_text_is_not_resolved(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """A text does not say whether a file or a directory is meant: the error says what to give instead."""
    calls = len(watched.calls)
    for wanted in ("model.bin", None):
        refused = pytest.raises(InvalidInput, match=r"a cache cannot resolve .*; give File\(id=...\) or Directory\(id=...\)")
        with refused:
            await cache.resolve(wanted)  # type: ignore[arg-type]
        with refused:
            await cache.cached(wanted)  # type: ignore[arg-type]
        with refused:
            await cache.lease(wanted).__aenter__()  # type: ignore[arg-type]
        with refused:
            await cache.open(wanted).__aenter__()  # type: ignore[arg-type]
    assert calls == len(watched.calls)


async def test_all_names_of_a_file_lead_to_one_copy(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """By id, digest and path: one fetch, one file."""
    paths = [await cache.resolve(file) for file in (File(id=record.id), File(digest=str(record.digest)), File(record.path))]
    assert 1 == len(set(paths))
    assert 1 == watched.calls.count("manifest")


async def test_a_second_name_costs_no_second_copy(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path
) -> None:
    """The same bytes under another name: a hard link, not a fetch; each resolves to its own name."""
    other = (await push(watched, tmp_path / "model v1.bin", name="renamed.bin")).record
    first, second = await cache.resolve(File(id=record.id)), await cache.resolve(File(id=other.id))
    assert ["model v1.bin", "renamed.bin"] == [first.name, second.name]
    assert first.samefile(second)
    assert 1 == watched.calls.count("manifest")


@pytest.mark.slow
async def test_concurrent_resolvers_fetch_once(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """Single flight in a process: twenty callers, one fetch."""
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(cache.resolve(File(id=record.id))) for _ in range(20)]
    assert 1 == len({call.result() for call in calls})
    assert 1 == watched.calls.count("manifest")


@pytest.mark.slow
async def test_a_resolve_says_what_it_cost(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """It counts received and reused bytes: for a first version, the same version again, and a second version."""
    first = await cache.resolved(File(id=record.id))
    again = await cache.resolved(File(id=record.id))
    (tmp_path / "model v1.bin").write_bytes(content(tmp_path)[: 10 * MIB])
    second = await cache.resolved(File(id=(await push(watched, tmp_path / "model v1.bin")).record.id))
    assert 12 * MIB <= first.bytes_received < 12.1 * MIB
    assert (0, False) == (first.bytes_reused, first.was_cached)
    assert (first.path, 0, 0, True) == (again.path, again.bytes_received, again.bytes_reused, again.was_cached)
    assert 0 < second.bytes_received < 4 * MIB
    assert 6 * MIB < second.bytes_reused < 10 * MIB


@pytest.mark.slow
async def test_tuned_weights_move_what_changed(cache: Cache, watched: WatchedRepository, tmp_path: Path) -> None:
    """With the base here, of weights in which a few tensors differ at most 1.03 times the bytes of these is received."""
    base = [tensor(f"layers.{number}.weight", 512, 1024, seed=number, dtype="BF16") for number in range(12)]
    tuned = [tensor(each.name, *each.shape, seed=100, dtype="BF16") if each.name in TUNED else each for each in base]
    records = []
    for name, tensors in (("base.safetensors", base), ("tuned.safetensors", tuned)):
        (tmp_path / name).write_bytes(safetensors_file(tensors))
        records.append((await push(watched, tmp_path / name)).record)
    await cache.resolve(File(id=records[0].id))
    resolved = await cache.resolved(File(id=records[1].id))
    changed = sum(len(each.data) for each in base if each.name in TUNED)
    assert (tmp_path / "tuned.safetensors").read_bytes() == resolved.path.read_bytes()
    assert 0 < resolved.bytes_received <= 1.03 * changed
    assert resolved.path.stat().st_size == resolved.bytes_reused + changed


async def test_who_shares_a_fetch_did_not_pay_for_it(cache: Cache, record: Record) -> None:
    """Of two callers at the same time, only one gets the bytes, so that their sum is right."""
    both = await asyncio.gather(*[cache.resolved(File(id=record.id)) for _ in range(2)])
    payer, guest = sorted(both, key=lambda resolved: resolved.was_cached)
    assert (False, True) == (payer.was_cached, guest.was_cached)
    assert 12 * MIB <= payer.bytes_received
    assert 0 == guest.bytes_received


@pytest.mark.slow
async def test_two_caches_of_one_folder_fetch_once(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A lock between processes decides who fetches. Here two caches take the place of two processes."""
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(Cache(tmp_path / "cache", watched).resolve(File(id=record.id)))
    assert 1 == watched.calls.count("manifest")


@pytest.mark.slow
async def test_without_locks_the_file_is_still_right(
    watched: WatchedRepository, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that fails costs a second download, never a broken file."""
    refuse_locks(monkeypatch)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(Cache(tmp_path / "cache", watched).resolve(File(id=record.id))) for _ in range(4)]
    assert [content(tmp_path)] * 4 == [call.result().read_bytes() for call in calls]


@pytest.mark.slow
async def test_a_lock_whose_holder_hangs_is_passed_by(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A lock is ignored if its holder showed no sign of life for a minute."""
    options = CacheOptions(beat_seconds=3600)
    gate = asyncio.Event()

    async def hang(verb: str) -> None:
        if verb == "get":
            await gate.wait()

    slow = WatchedRepository(watched.inner, before=hang)
    hanging = asyncio.create_task(Cache(tmp_path / "cache", slow, options=options).resolve(File(id=record.id)))
    while "get" not in slow.calls:
        await asyncio.sleep(0)
    for path in (tmp_path / "cache").glob("*/*/locks/*"):
        os.utime(path, (1, 1))
    path = await Cache(tmp_path / "cache", watched).resolve(File(id=record.id))
    assert content(tmp_path) == path.read_bytes()
    gate.set()
    assert path == await hanging


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["shorter", "written", "gone", "no entry", "rubbish entry"])
async def test_damage_that_a_look_shows_is_a_miss(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path, damage: str
) -> None:
    """A wrong size or mtime, a missing file and a missing entry are fetched again."""
    path = await cache.resolve(File(id=record.id))
    entry = path.parent.parent / "entry.json"
    if damage == "gone":
        path.unlink()
    elif damage == "no entry":
        entry.unlink()
    elif damage == "rubbish entry":
        entry.write_bytes(b"{")
    else:
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.truncate(100) if damage == "shorter" else file.write(b"x")
    watched.calls.clear()
    again = await cache.resolve(File(id=record.id))
    assert (path, content(tmp_path)) == (again, again.read_bytes())
    assert "record" in watched.calls


@pytest.mark.slow
async def test_verify_finds_what_no_look_shows(cache: Cache, record: Record, tmp_path: Path) -> None:
    """Flipped bits with an unchanged size and mtime are found by digest, removed, and fetched again."""
    path = await cache.resolve(File(id=record.id))
    assert [] == await verify_cache(tmp_path / "cache")
    times = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"\0\0\0\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path == await cache.resolve(File(id=record.id))
    assert [path] == await verify_cache(tmp_path / "cache")
    assert content(tmp_path) == (await cache.resolve(File(id=record.id))).read_bytes()
    assert [] == await verify_cache(tmp_path / "cache")


@pytest.mark.slow
async def test_a_cut_fetch_is_continued(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """The next resolve fetches only the rest, and nothing is visible before it ends."""
    options = CacheOptions(transfer=TransferOptions(batches_in_flight=1))

    async def cut(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 2:
            raise Unreachable("somewhere", "cut")

    watched.before = cut
    with pytest.raises(Unreachable):
        await Cache(tmp_path / "cache", watched, options=options).resolve(File(id=record.id))
    assert [] == list((tmp_path / "cache").glob("*/*/files/*/*/*"))
    got = watched.chunks_got
    path = await Cache(tmp_path / "cache", watched, options=options).resolve(File(id=record.id))
    assert content(tmp_path) == path.read_bytes()
    assert 0 < got < watched.chunks_got < 2 * got + 12
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


async def test_what_is_not_there(cache: Cache, record: Record) -> None:
    """A file that the repository does not have; one that was not pushed yet."""
    with pytest.raises(NotFound):
        await cache.resolve(File(id="file_" + "0" * 32))
    with pytest.raises(InvalidReference):
        await cache.resolve(File("my_file.txt"))


async def test_a_cache_of_another_version_is_refused(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """One sentence, and nothing in it is touched."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "format").write_text(json.dumps({"cache": 99}))
    with pytest.raises(UnknownFormat):
        await Cache(tmp_path / "cache", watched).resolve(File(id=record.id))
    assert ["format"] == [path.name for path in (tmp_path / "cache").iterdir()]


async def test_no_cache_is_made_among_other_things(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """Success in the wrong place: a mistyped folder that holds other things stays as it is; a new file system is empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(
        InvalidInput, match=r"is not a cache: it holds other things, such as 'thesis.txt'; give a new or an empty"
    ):
        await Cache(tmp_path / "home", watched).resolve(File(id=record.id))
    assert ["thesis.txt"] == [path.name for path in (tmp_path / "home").iterdir()]
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    await Cache(tmp_path / "disk", watched).resolve(File(id=record.id))


async def test_a_cache_that_cannot_be_made(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A file where the folder should be: an error that names it."""
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(StorageError):
        await Cache(tmp_path / "cache", watched).resolve(File(id=record.id))


@pytest.fixture
async def other_repository(tmp_path: Path) -> AsyncIterator[Repository]:
    """A second repository."""
    async with connect(str(tmp_path / "other-repository"), create=True) as repository:
        yield repository


async def test_a_hit_never_shows_another_repository_s_file(
    watched: WatchedRepository, other_repository: Repository, record: Record, tmp_path: Path
) -> None:
    """Entries are kept by repository and namespace as well as digest."""
    await Cache(tmp_path / "cache", watched).resolve(File(digest=str(record.digest)))
    with pytest.raises(NotFound):
        await Cache(tmp_path / "cache", other_repository).resolve(File(digest=str(record.digest)))


def keep(root: Path, numbers: Iterable[int], *, age: int = 0) -> Manifest:
    """Make an entry of chunks of 1 MiB, each known by a number; the newest has the lowest age."""
    manifest = manifest_of_numbers(numbers)
    folder = root / "files" / hashed(manifest.digest)
    (folder / "content").mkdir(parents=True)
    (folder / "content" / "model.bin").write_bytes(b"")
    (folder / "manifest").write_bytes(manifest.encoded)
    os.utime(folder, (1000 - age, 1000 - age))
    return manifest


def manifest_of_numbers(numbers: Iterable[int]) -> Manifest:
    """A file of chunks of 1 MiB, each known by a number."""
    return Manifest.build([Chunk(chunk_digest(b"%d" % number), MIB) for number in numbers], chunking_version=0)


def seeds_for(root: Path, wanted: Manifest) -> list[Manifest]:
    """Return the seeds that a fetch gets."""
    return [found.seed.manifest for found in find_seeds(root, wanted, limits=DEFAULT_LIMITS)]


def test_the_best_seed_comes_first(tmp_path: Path) -> None:
    """Seeds are sorted by the bytes that they share. An entry without new shared bytes is not a seed."""
    little = keep(tmp_path, [9, 100])
    much = keep(tmp_path, range(8))
    keep(tmp_path, range(3))
    keep(tmp_path, [200])
    assert [much, little] == seeds_for(tmp_path, manifest_of_numbers(range(10)))


def test_a_chunk_that_stands_twice_counts_twice(tmp_path: Path) -> None:
    """The bytes count that a seed can fill, not the bytes that it has."""
    once = keep(tmp_path, [1, 2])
    twice = keep(tmp_path, [3])
    assert [twice, once] == seeds_for(tmp_path, manifest_of_numbers([1, 2, 3, 3, 3]))


def test_there_are_eight_seeds_at_most(tmp_path: Path) -> None:
    """More would cost more than they bring."""
    for number in range(12):
        keep(tmp_path, [number])
    assert 8 == len(seeds_for(tmp_path, manifest_of_numbers(range(12))))


def test_no_more_manifests_are_read_than_is_wanted(tmp_path: Path) -> None:
    """Looking for seeds never costs more than fetching; the newest entries are looked at first."""
    wanted = Manifest.build([Chunk(chunk_digest(b"1"), 50), Chunk(chunk_digest(b"2"), 50)], chunking_version=0)
    keep(tmp_path, [1], age=2)
    newer = keep(tmp_path, [2], age=1)
    assert len(newer.encoded) < wanted.size < 2 * len(newer.encoded)
    assert [newer] == seeds_for(tmp_path, wanted)


def test_rubbish_is_not_a_seed(tmp_path: Path) -> None:
    """A manifest that is none, one that is gone, an entry without content."""
    for number, name in enumerate(["manifest", "manifest", "content/model.bin"]):
        path = tmp_path / "files" / hashed(keep(tmp_path, [1, number]).digest) / name
        path.unlink()
        if number == 0:
            path.write_bytes(b"rubbish")
    assert [] == seeds_for(tmp_path, manifest_of_numbers([1]))
    assert [] == seeds_for(tmp_path / "nothing", manifest_of_numbers([]))
