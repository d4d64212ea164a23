"""One file or one folder of a stored directory in a cache, by a path that follows a reference."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.cache import Cache, verify_cache
from filestore.cache.inventory import discard, entries, staged
from filestore.cache.leases import Leases
from filestore.cache.options import CacheOptions
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File
from filestore.errors import CacheFull, EntryNotFound, Interrupted, InvalidReference, NotFound
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.repository.protocol import Repository
from filestore.system.files import remove_if_possible
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.sources.walk import Symlinks
from tests.support.archives import Forged, forged
from tests.support.disks import refuse_locks
from tests.support.fetching_trees import stored
from tests.support.generator import octets, prose
from tests.support.trees import Folder, Link, Planted, Script, plant, standing
from tests.support.watched import WatchedRepository

MIB = 1 << 20
LARGE, SMALL, FOLDER = "weights/model.bin", "tokenizer/vocabulary.txt", "tokenizer"
THINGS: dict[str, Planted] = {
    "config.json": prose(1, 700),
    "empty.txt": b"",
    "latest": Link("weights/model.bin"),
    "tokenizer/inner/link": Link("../vocabulary.txt"),
    "tokenizer/inner/none": Folder(),
    "tokenizer/large.bin": Script(octets(2, SEGMENT_MIN)),
    "tokenizer/vocabulary.txt": prose(3, 30_000),
    "tokenizer.json": b"next to the folder",
    "weights/0.bin": octets(4, 3 * MIB),
    "weights/model.bin": octets(5, 5 * MIB),
}


@pytest.fixture
async def record(watched: WatchedRepository, tmp_path: Path) -> Record:
    """A directory of 8 MiB in the repository, under a name with an owner."""
    tree = plant(tmp_path / "pushed/model", THINGS)
    record = (await push(watched, tree, name="team/model", symlinks=Symlinks.KEEP)).record
    watched.calls.clear()
    watched.chunks_got = 0
    return record


@pytest.fixture
def cache(watched: WatchedRepository, tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache", watched)


def content(path: str) -> bytes:
    """The content of a file of the directory."""
    thing = THINGS[path]
    return thing.content if isinstance(thing, Script) else bytes(thing)  # type: ignore[arg-type]  # no link, no folder


def is_right(path: Path, wanted: str) -> bool:
    """Whether a path has the content and the name of an entry."""
    below = {name.removeprefix(f"{wanted}/"): thing for name, thing in THINGS.items() if name.startswith(f"{wanted}/")}
    is_same = standing(path) == below if below else path.read_bytes() == content(wanted)
    return is_same and path.name == wanted.rpartition("/")[2]


async def alone(repository: Repository, tmp_path: Path, path: str) -> Record:
    """The record of a file or a folder of the directory that is pushed alone."""
    return (
        await push(repository, tmp_path / "pushed/model" / path, symlinks=Symlinks.KEEP if path == FOLDER else "inside")
    ).record


async def chunks_of(repository: Repository, record: Record) -> set[bytes]:
    """The digests of the chunks of a stored file."""
    return {bytes(chunk.digest) for chunk in Manifest.parse(await repository.manifest(record.digest)).chunks}


async def unchanged(_: str) -> None:
    """Before each call of the repository: nothing."""


def left_in(root: Path) -> list[Path]:
    """The folders that fetches left in staging."""
    return [item.folder for item in staged(root)]


@pytest.mark.parametrize("path", [path for path, thing in THINGS.items() if isinstance(thing, bytes | Script)] + [FOLDER])
async def test_an_entry_is_resolved(cache: Cache, record: Record, tmp_path: Path, path: str) -> None:
    """Each file, and a folder with its links, empty folders and executable files, under the last part of its path; read-only."""
    found = await cache.resolve(f"team/model:{path}")
    assert is_right(found, path)
    assert not found.stat().st_mode & 0o222
    assert [] == left_in(tmp_path / "cache")
    assert [] == await verify_cache(tmp_path / "cache")


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_a_hit_asks_nobody(watched: WatchedRepository, record: Record, tmp_path: Path, path: str) -> None:
    """By an id and a digest, a new process asks nothing. By a name, it asks which version the name means."""
    first = await Cache(tmp_path / "cache", watched).resolve(f"{record.id}:{path}")
    assert is_right(first, path)
    watched.calls.clear()
    kind = Directory if path == FOLDER else File
    for wanted in (
        f"{record.id}:{path}",
        f"{record.digest}:{path}",
        kind(id=f"{record.id}:{path}"),
        kind(digest=f"{record.digest}:{path}"),
    ):
        resolved = await Cache(tmp_path / "cache", watched).resolved(wanted)
        assert (first, True, 0) == (resolved.path, resolved.was_cached, resolved.bytes_received)
    assert [] == watched.calls
    assert first == await Cache(tmp_path / "cache", watched).resolve(f"team/model@main:{path}")
    assert ["record"] == watched.calls


async def test_only_its_chunks_are_received(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """The list of entries is in the last chunk. A large file has chunks of its own, and a small one shares one or two."""
    own = len(await chunks_of(watched.inner, await alone(watched.inner, tmp_path, LARGE)))
    watched.chunks_got = 0
    resolved = await cache.resolved(f"team/model:{LARGE}")
    assert not resolved.was_cached
    assert 5 * MIB < resolved.bytes_received < 5.1 * MIB
    assert own < watched.chunks_got <= own + 2
    watched.chunks_got = 0
    await cache.resolve(f"team/model:{SMALL}")
    assert 0 < watched.chunks_got <= 4


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_it_is_the_entry_of_what_is_pushed_alone(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path, path: str
) -> None:
    """The same content that was pushed alone is one entry with it: its digest is a hit, and asks nothing."""
    pushed = await alone(watched, tmp_path, path)
    found = await cache.resolve(f"team/model:{path}")
    watched.calls.clear()
    kind = Directory if path == FOLDER else File
    assert found == await cache.resolve(kind(digest=str(pushed.digest)))
    assert [] == watched.calls
    assert [str(pushed.digest)] == [entry.digest for entry in entries(tmp_path / "cache")]


async def test_a_large_file_that_was_pushed_alone_is_a_hit(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path
) -> None:
    """Only the list of entries is received, once. After that, nothing is."""
    await cache.resolve(await alone(watched, tmp_path, LARGE))
    watched.chunks_got = 0
    resolved = await cache.resolved(f"{record.id}:{LARGE}")
    assert (True, 0) == (resolved.was_cached, resolved.bytes_received)
    assert 0 < watched.chunks_got <= 2
    watched.calls.clear()
    await cache.resolve(f"{record.id}:{LARGE}")
    assert [] == watched.calls


async def test_what_the_directory_has_is_copied(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """Where the cache has the tree, the chunks of a large file and of a folder are copied from it."""
    await cache.resolve(record)
    for path in (LARGE, FOLDER):
        resolved = await cache.resolved(f"{record.id}:{path}")
        assert is_right(resolved.path, path)
        assert (0, False) == (resolved.bytes_received, resolved.was_cached)


async def test_the_same_content_in_two_versions_is_one_copy(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path
) -> None:
    """A file that a later version has unchanged is one entry, under both of its names."""
    changed = THINGS | {"config.json": prose(8, 700), "tokenizer/renamed.txt": THINGS[SMALL]}
    tree = plant(tmp_path / "changed", changed)
    await push(watched, tree, name="team/model", symlinks=Symlinks.KEEP)
    first = await cache.resolve(f"team/model@~1:{SMALL}")
    second = await cache.resolve("team/model:tokenizer/renamed.txt")
    assert ("vocabulary.txt", "renamed.txt") == (first.name, second.name)
    assert first.samefile(second)
    assert prose(1, 700) == (await cache.resolve("team/model@~1:config.json")).read_bytes()
    assert prose(8, 700) == (await cache.resolve("team/model:config.json")).read_bytes()
    assert first.exists()


async def test_the_empty_path_is_the_whole_directory(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """As everywhere: the same entry as that of the record."""
    assert await cache.resolve("team/model:") == await cache.resolve(record) == await cache.resolve(Directory(id=f"{record.id}:"))
    with pytest.raises(InvalidReference, match="it is a folder and not a file"):
        await cache.resolve(File(id=f"{record.id}:"))


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_concurrent_resolvers_fetch_once(cache: Cache, watched: WatchedRepository, record: Record, path: str) -> None:
    """Single flight in a process: twenty callers, one fetch."""
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(cache.resolved(f"team/model:{path}")) for _ in range(20)]
    assert 1 == len({call.result().path for call in calls})
    assert 1 == sum(not call.result().was_cached for call in calls)
    assert 1 == watched.calls.count("manifest")


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_two_caches_at_once(watched: WatchedRepository, record: Record, tmp_path: Path, path: str) -> None:
    """Two processes: one receives, and the other waits for it."""
    caches = [Cache(tmp_path / "cache", watched) for _ in range(2)]
    results = await asyncio.gather(*(each.resolved(f"{record.id}:{path}") for each in caches))
    assert results[0].path == results[1].path
    assert [False, True] == sorted(result.was_cached for result in results)
    assert is_right(results[0].path, path)


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_without_locks_it_is_still_right(
    watched: WatchedRepository, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A lock that fails costs a second download, never a broken entry."""
    refuse_locks(monkeypatch)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(Cache(tmp_path / "cache", watched).resolve(f"{record.id}:{path}")) for _ in range(4)]
    assert all(is_right(call.result(), path) for call in calls)
    assert [] == await verify_cache(tmp_path / "cache")
    assert [] == left_in(tmp_path / "cache")


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_a_kind_that_it_does_not_have(cache: Cache, watched: WatchedRepository, record: Record, path: str) -> None:
    """A `File` is never a folder, and a `Directory` never a file, before and after the cache has it."""
    wrong = File(id=f"{record.id}:{path}") if path == FOLDER else Directory(id=f"{record.id}:{path}")
    message = "it is a folder and not a file" if path == FOLDER else "it is a file and not a folder"
    with pytest.raises(InvalidReference, match=message):
        await cache.resolve(wrong)
    await cache.resolve(f"{record.id}:{path}")
    with pytest.raises(InvalidReference, match=message):
        await cache.resolve(wrong)
    with pytest.raises(InvalidReference, match=message):
        await cache.cached(wrong)


async def test_what_cannot_be_resolved(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A path that is absent, a link, an entry of a single file, a name that is absent; nothing is left."""
    (tmp_path / "single.bin").write_bytes(b"not a zip file")
    await push(watched, tmp_path / "single.bin")
    for wanted, error, message in (
        ("team/model:absent.txt", EntryNotFound, "absent.txt"),
        ("team/model:tokenizer/absent", EntryNotFound, "absent"),
        ("team/model:latest", InvalidReference, "symbolic link to 'weights/model.bin'"),
        ("single.bin:a", InvalidReference, "it is a single file and not a directory"),
        ("team/other:a", NotFound, "team/other"),
        ("team/model:../a", InvalidReference, "not a path inside a directory"),
        ("./model:a", InvalidReference, "a path of this machine"),
    ):
        with pytest.raises(error, match=message):
            await cache.resolve(wanted)
    assert [] == [*entries(tmp_path / "cache")]
    assert [] == left_in(tmp_path / "cache")


async def test_what_the_cache_has(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """`cached` asks nobody, so it finds nothing by a name."""
    for path in (LARGE, SMALL, FOLDER):
        assert None is await cache.cached(f"{record.digest}:{path}")
        found = await cache.resolve(f"{record.id}:{path}")
        watched.calls.clear()
        cached = await cache.cached(f"{record.id}:{path}")
        assert cached is not None
        assert found == cached.path
        assert path == FOLDER or len(content(path)) == cached.size
        assert [] == watched.calls
    with pytest.raises(InvalidReference, match="give an id or a digest"):
        await cache.cached(f"team/model:{SMALL}")
    assert None is await cache.cached(f"{record.id}:")


@pytest.mark.parametrize("path", [LARGE, SMALL])
async def test_a_file_is_opened(cache: Cache, record: Record, path: str) -> None:
    """Its ranges can be read, and at the end the whole file is in the cache. A folder cannot be opened."""
    async with cache.open(f"team/model:{path}") as opened:
        assert content(path)[1000:2000] == await opened.read(1000, 2000)
        assert len(content(path)) == opened.size
    assert None is not await cache.cached(f"{record.id}:{path}")
    with pytest.raises(InvalidReference, match="it is a folder and not a file"):
        async with cache.open(f"team/model:{FOLDER}"):
            raise AssertionError


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_a_lease_keeps_it(watched: WatchedRepository, record: Record, tmp_path: Path, path: str) -> None:
    """It is not removed in the block, and can be removed after it."""
    cache = Cache(tmp_path / "cache", watched)
    async with cache.lease(f"{record.id}:{path}") as found:
        (entry,) = entries(tmp_path / "cache")
        assert not discard(Leases(tmp_path / "cache"), entry)
        assert is_right(found, path)
    assert discard(Leases(tmp_path / "cache"), entry)
    resolved = await cache.resolved(f"{record.id}:{path}")
    assert (False, True) == (resolved.was_cached, is_right(resolved.path, path))
    await cache.close()
    assert {} == Leases(tmp_path / "cache").held()


async def test_the_limit_of_the_cache_holds(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """What does not fit is refused before it is fetched, and what was not used for the longest time is removed for it."""
    for path in (LARGE, FOLDER):
        small = Cache(tmp_path / "small", watched, size_limit=200_000)
        with pytest.raises(CacheFull):
            await small.resolve(f"{record.id}:{path}")
    cache = Cache(tmp_path / "cache", watched, size_limit=6 * MIB)
    for path in (SMALL, LARGE, "weights/0.bin"):
        async with cache.lease(f"{record.id}:{path}") as found:
            assert is_right(found, path)
    assert {"0.bin"} <= {name for entry in entries(tmp_path / "cache") for name in entry.names} < {"0.bin", "vocabulary.txt", "x"}


@pytest.mark.parametrize("path", [LARGE, SMALL, FOLDER])
async def test_damage_is_found_and_repaired(cache: Cache, record: Record, tmp_path: Path, path: str) -> None:
    """`verify_cache` hashes it like anything else; the next resolve fetches it again. So does one that sees the damage."""
    found = await cache.resolve(f"{record.id}:{path}")
    damaged = found / "vocabulary.txt" if path == FOLDER else found
    times = damaged.stat()
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.write(b"other")
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [found] == await verify_cache(tmp_path / "cache")
    found = await cache.resolve(f"{record.id}:{path}")
    assert is_right(found, path)
    damaged.chmod(0o644)
    damaged.write_bytes(b"short")
    found = await cache.resolve(f"{record.id}:{path}")
    assert is_right(found, path)
    assert [] == await verify_cache(tmp_path / "cache")
    assert [] == left_in(tmp_path / "cache")


async def test_what_is_remembered_may_be_lost_or_damaged(cache: Cache, record: Record, tmp_path: Path) -> None:
    """Then the entry is fetched again, or the list of entries is read again."""
    for path in (LARGE, SMALL, FOLDER):
        found = await cache.resolve(f"{record.id}:{path}")
        (remembered,) = (tmp_path / "cache").glob("*/*/stored-entries/*.json")
        for broken in (b"", b"[]", b'{"kind": "file"}', b'{"kind": "file", "digest": "../../x"}', b"\xff"):
            remembered.write_bytes(broken)
            assert found == await cache.resolve(f"{record.id}:{path}")
        remove_if_possible(remembered)


async def test_a_file_of_the_zip_of_another_program(cache: Cache, watched: WatchedRepository, tmp_path: Path) -> None:
    """Its entries share chunks and may be deflated: they are read, checked, and kept like any file."""
    archive = forged(
        [
            Forged("folder/words.txt", prose(6, 400_000), deflated=True),
            Forged("folder/plain.bin", octets(7, 300_000)),
        ]
    )
    record = await stored(watched, archive)
    assert prose(6, 400_000) == (await cache.resolve(f"{record.id}:folder/words.txt")).read_bytes()
    folder = await cache.resolve(f"{record.id}:folder")
    assert {"words.txt": prose(6, 400_000), "plain.bin": octets(7, 300_000)} == standing(folder)
    watched.calls.clear()
    await cache.resolve(f"{record.id}:folder/words.txt")
    assert folder == await cache.resolve(Directory(id=f"{record.id}:folder"))
    assert [] == watched.calls
    assert [] == await verify_cache(tmp_path / "cache")
    assert {Kind.FILE, Kind.DIRECTORY} == {entry.kind for entry in entries(tmp_path / "cache")}


@pytest.mark.parametrize("path", ["weights/large.bin", "weights"])
async def test_a_cut_fetch_is_continued(watched: WatchedRepository, tmp_path: Path, path: str) -> None:
    """What a process received before it ended is not received again, and the cache is put right by the next one."""
    things = {"a.txt": b"a", "weights/large.bin": octets(6, 16 * MIB), "weights/small.txt": b"b"}
    record = (await push(watched, plant(tmp_path / "large", things))).record
    options = CacheOptions(transfer=TransferOptions(batch_size=5 * MIB, batches_in_flight=1))
    whole = await Cache(tmp_path / "other", watched, options=options).resolved(f"{record.id}:{path}")

    async def fail(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") == 3:
            raise Interrupted("http://localhost", "it ended")

    watched.calls.clear()
    watched.before = fail
    cache = Cache(tmp_path / "cache", watched, options=options)
    with pytest.raises(Interrupted):
        await cache.resolve(f"{record.id}:{path}")
    watched.before = unchanged
    resolved = await cache.resolved(f"{record.id}:{path}")
    assert standing(whole.path.parent) == standing(resolved.path.parent)
    assert resolved.bytes_received < whole.bytes_received
    assert 0 < resolved.bytes_reused
    assert [] == left_in(tmp_path / "cache")


async def test_over_a_repository_that_was_opened_by_its_url(local_repository: Repository, record: Record, tmp_path: Path) -> None:
    """An ordinary repository, without the helper of these tests."""
    async with connect(local_repository.location) as repository, Cache(tmp_path / "cache", repository) as cache:
        for path in (LARGE, SMALL, FOLDER):
            assert is_right(await cache.resolve(f"team/model:{path}"), path)
