from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from filestore.cache import Cache, verify_cache
from filestore.cache.options import CacheOptions
from filestore.core.manifest import Manifest
from filestore.core.progress import Progress
from filestore.core.records import Record
from filestore.core.references import Directory, File
from filestore.errors import InvalidArchive, InvalidReference, LimitExceeded, NotFound
from filestore.format.zip.read import ZipLimits
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from tests.support.disks import refuse_locks
from tests.support.generator import octets, prose
from tests.support.trees import Folder, Link, Planted, Script, plant, standing
from tests.support.watched import WatchedRepository

MIB = 1 << 20

THINGS: dict[str, Planted] = {
    "config.json": prose(1, 700),
    "empty": Folder(),
    "model.safetensors": octets(2, 5 * MIB),
    "other/large.bin": octets(3, 3 * MIB),
    "other/run.sh": Script(prose(4, 100)),
    "vocabulary.txt": prose(5, 200_000),
}


@pytest.fixture
async def record(watched: WatchedRepository, tmp_path: Path) -> Record:
    """A directory of 8 MiB in the repository."""
    record = (await push(watched, plant(tmp_path / "my_model", THINGS))).record
    watched.calls.clear()
    return record


@pytest.fixture
def cache(watched: WatchedRepository, tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache", watched)


async def digests_of(repository: Repository, record: Record) -> set[bytes]:
    """The chunks of a stored file."""
    return {bytes(chunk.digest) for chunk in Manifest.parse(await repository.manifest(record.digest)).chunks}


def foreign_zip(path: Path) -> Path:
    """A zip file as another program writes it: deflated, with entries for folders, a script and a link."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        archive.writestr("folder/words.txt", prose(6, 400_000))
        archive.writestr(entry("folder/run.sh", 0o100755), prose(7, 50))
        archive.writestr(entry("link", 0o120777), "folder/words.txt")
        archive.mkdir("nothing")
    return path


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    """The header of an entry that Unix wrote."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


FOREIGN: dict[str, Planted] = {
    "folder/run.sh": Script(prose(7, 50)),
    "folder/words.txt": prose(6, 400_000),
    "link": Link("folder/words.txt"),
    "nothing": Folder(),
}


def rewrite(path: Path, content: bytes) -> None:
    """Change the content of a read-only file, and keep its size and times."""
    times = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    path.chmod(0o444)


async def test_a_directory_is_its_tree(cache: Cache, record: Record, tmp_path: Path) -> None:
    """It has the name and the content of the pushed folder, with executable bits and empty folders."""
    path = await cache.resolve(Directory(id=record.id))
    assert "my_model" == path.name
    assert THINGS == standing(path)


async def test_a_tree_is_read_only(cache: Cache, record: Record) -> None:
    """Files and folders are read-only, so that nobody changes them by accident."""
    path = await cache.resolve(Directory(id=record.id))
    names = {".": 0o555, "empty": 0o555, "other": 0o555, "other/run.sh": 0o555, "config.json": 0o444}
    assert names == {name: (path / name).stat().st_mode & 0o7777 for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["id", "digest", "path"])
async def test_a_hit_asks_nobody(watched: WatchedRepository, record: Record, tmp_path: Path, how: str) -> None:
    """The second resolve, also by a new process, asks nothing of the repository, however the directory is named."""
    wanted = {"id": Directory(id=record.id), "digest": Directory(digest=str(record.digest)), "path": Directory(record.path)}[how]
    first = await Cache(tmp_path / "cache", watched).resolve(wanted)
    watched.calls.clear()
    assert first == await Cache(tmp_path / "cache", watched).resolve(wanted)
    assert [] == watched.calls


@pytest.mark.slow
async def test_a_hit_looks_at_a_hundred_files(
    watched: WatchedRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a tree has, the largest are looked at, and no content is read."""
    things: dict[str, Planted] = {f"{number:03}": bytes(number) for number in range(300)}
    record = (await push(watched, plant(tmp_path / "many", things))).record
    path = await Cache(tmp_path / "cache", watched).resolve(Directory(id=record.id))
    looked_at = []
    stat = os.stat

    def noted_stat(path: str, *args: object, **kwargs: object) -> os.stat_result:
        looked_at.append(str(path))
        return stat(path, *args, **kwargs)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr("os.stat", noted_stat)
    assert path == await Cache(tmp_path / "cache", watched).resolve(Directory(id=record.id))
    below = {name.removeprefix(f"{path}/") for name in looked_at if name.startswith(f"{path}/")}
    assert {f"{number:03}" for number in range(200, 300)} == below


@pytest.mark.slow
async def test_a_second_name_costs_no_second_copy(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path
) -> None:
    """The same tree under another name: one copy, of which each resolves to its own name."""
    other = (await push(watched, tmp_path / "my_model", name="renamed.zip")).record
    first, second = await cache.resolve(Directory(id=record.id)), await cache.resolve(Directory(id=other.id))
    assert ["my_model", "renamed"] == [first.name, second.name]
    assert first.samefile(second)
    assert 1 == watched.calls.count("manifest")
    watched.calls.clear()
    assert second == await cache.resolve(Directory(id=other.id))
    assert [] == watched.calls


async def test_concurrent_resolvers_fetch_once(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """Single flight in a process: twenty callers, one fetch."""
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(cache.resolve(Directory(id=record.id))) for _ in range(20)]
    assert 1 == len({call.result() for call in calls})
    assert 1 == watched.calls.count("manifest")


@pytest.mark.slow
async def test_without_locks_the_tree_is_still_right(
    watched: WatchedRepository, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that fails costs a second download, never a broken tree."""
    refuse_locks(monkeypatch)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(Cache(tmp_path / "cache", watched).resolve(Directory(id=record.id))) for _ in range(4)]
    assert [THINGS] * 4 == [standing(call.result()) for call in calls]
    assert [] == await verify_cache(tmp_path / "cache")


@pytest.mark.slow
async def test_a_holder_that_hangs_is_passed_by(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A holder without a sign of life for a minute is ignored. When it continues, it finds the tree."""
    options = CacheOptions(beat_seconds=3600)
    gate = asyncio.Event()

    async def hang(verb: str) -> None:
        if verb == "get" and slow.calls.count("get") == 3:
            await gate.wait()

    slow = WatchedRepository(watched.inner, before=hang)
    hanging = asyncio.create_task(Cache(tmp_path / "cache", slow, options=options).resolve(Directory(id=record.id)))
    while slow.calls.count("get") < 3 or not slow.chunks_got:
        await asyncio.sleep(0)
    for path in (tmp_path / "cache").glob("*/*/locks/*"):
        os.utime(path, (1, 1))
    path = await Cache(tmp_path / "cache", watched).resolve(Directory(id=record.id))
    assert THINGS == standing(path)
    gate.set()
    assert path == await hanging
    assert THINGS == standing(path)
    assert [] == await verify_cache(tmp_path / "cache")


async def test_any_zip_is_a_directory(cache: Cache, watched: WatchedRepository, tmp_path: Path) -> None:
    """A zip file of another program, pushed as a file, unpacks to its tree."""
    record = (await push(watched, foreign_zip(tmp_path / "theirs.zip"))).record
    path = await cache.resolve(Directory(id=record.id))
    assert ("theirs", FOREIGN) == (path.name, standing(path))


async def test_as_a_file_a_zip_stays_a_zip(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """Used as a file, a directory is its zip, which others can read; it is made of the tree that is here, and moves no chunk."""
    await cache.resolve(Directory(id=record.id))
    watched.calls.clear()
    path = await cache.resolve(File(id=record.id))
    assert "my_model.zip" == path.name
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
    assert ["record"] == watched.calls


@pytest.mark.slow
async def test_a_zip_that_is_here_is_unpacked_where_it_is(cache: Cache, watched: WatchedRepository, record: Record) -> None:
    """The tree is made from the cached zip: only the record is asked for."""
    await cache.resolve(File(id=record.id))
    watched.calls.clear()
    reports: list[Progress] = []
    assert THINGS == standing(await cache.resolve(Directory(id=record.id), report=reports.append))
    assert ["record"] == watched.calls
    assert (record.size, 0) == (reports[-1].shared, reports[-1].moved)


@pytest.mark.slow
async def test_a_foreign_zip_that_is_here_is_unpacked_where_it_is(
    cache: Cache, watched: WatchedRepository, tmp_path: Path
) -> None:
    """Deflated entries, those of many chunks too, are inflated from the file."""
    path = foreign_zip(tmp_path / "theirs.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.bin", octets(13, 6 * MIB))
    record = (await push(watched, path)).record
    await cache.resolve(File(id=record.id))
    watched.calls.clear()
    reports: list[Progress] = []
    tree = await cache.resolve(Directory(id=record.id), report=reports.append)
    assert FOREIGN | {"large.bin": octets(13, 6 * MIB)} == standing(tree)
    assert ["record"] == watched.calls
    assert (record.size, 0) == (reports[-1].shared, reports[-1].moved)


async def test_a_damaged_zip_that_is_here(cache: Cache, watched: WatchedRepository, tmp_path: Path) -> None:
    """Damaged parts are fetched, in any part of the zip."""
    record = (await push(watched, foreign_zip(tmp_path / "theirs.zip"))).record
    rewrite(await cache.resolve(File(id=record.id)), bytes(1000))
    assert FOREIGN == standing(await cache.resolve(Directory(id=record.id)))


@pytest.mark.slow
async def test_a_changed_tree_fetches_what_changed(
    cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path
) -> None:
    """Chunks that an older version has are copied from it; the others, and only they, are fetched."""
    await cache.resolve(Directory(id=record.id))
    changed = THINGS | {"config.json": prose(8, 700)}
    newer = (await push(watched, plant(tmp_path / "my_model", changed))).record
    new = await digests_of(watched.inner, newer) - await digests_of(watched.inner, record)
    watched.chunks_got = 0
    reports: list[Progress] = []
    assert changed == standing(await cache.resolve(Directory(id=newer.id), report=reports.append))
    assert len(new) == watched.chunks_got < 4
    assert 8 * MIB < reports[-1].shared < reports[-1].total == reports[-1].done


@pytest.mark.slow
async def test_a_tuned_file_fetches_what_changed(cache: Cache, watched: WatchedRepository, tmp_path: Path) -> None:
    """The base's chunks are copied from another file of the cache; the base itself stays as it is."""
    base = octets(11, 6 * MIB)
    tuned = base[: 2 * MIB] + octets(12, 100_000) + base[2 * MIB + 100_000 :]
    records = []
    for name, content in (("base.bin", base), ("tuned.bin", tuned)):
        (tmp_path / name).write_bytes(content)
        records.append((await push(watched, tmp_path / name)).record)
    first = await cache.resolve(File(id=records[0].id))
    new = await digests_of(watched.inner, records[1]) - await digests_of(watched.inner, records[0])
    watched.chunks_got = 0
    assert tuned == (await cache.resolve(File(id=records[1].id))).read_bytes()
    assert len(new) == watched.chunks_got < 4
    assert base == first.read_bytes()


@pytest.mark.slow
async def test_a_tree_and_a_file_share(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """Weights that were resolved alone are not fetched again with the directory that holds them, nor the other way round."""
    alone = (await push(watched, tmp_path / "my_model" / "model.safetensors")).record
    shared = await digests_of(watched.inner, alone)
    await cache.resolve(File(id=alone.id))
    watched.chunks_got = 0
    assert THINGS == standing(await cache.resolve(Directory(id=record.id)))
    assert len(await digests_of(watched.inner, record) - shared) == watched.chunks_got
    other = Cache(tmp_path / "other cache", watched)
    await other.resolve(Directory(id=record.id))
    watched.chunks_got = 0
    assert THINGS["model.safetensors"] == (await other.resolve(File(id=alone.id))).read_bytes()
    assert 0 == watched.chunks_got


@pytest.mark.slow
async def test_seeds_that_have_vanished(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """Content that a seed's manifest lists and its files do not have is fetched."""
    path = await cache.resolve(Directory(id=record.id))
    (path / "model.safetensors").unlink()
    rewrite(path / "other/large.bin", bytes(100))
    changed = THINGS | {"config.json": prose(8, 700)}
    newer = (await push(watched, plant(tmp_path / "my_model", changed))).record
    assert changed == standing(await cache.resolve(Directory(id=newer.id)))


@pytest.mark.slow
async def test_an_entry_of_an_older_program(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """Without a manifest it is a hit as before, and no seed."""
    path = await cache.resolve(File(id=record.id))
    (path.parent.parent / "manifest").unlink()
    watched.calls.clear()
    assert path == await cache.resolve(File(id=record.id))
    assert [] == watched.calls
    assert THINGS == standing(await cache.resolve(Directory(id=record.id)))
    assert len(await digests_of(watched.inner, record)) == watched.chunks_got / 2
    assert [] == await verify_cache(tmp_path / "cache")


def shorten(path: Path) -> None:
    """A large file ends too early."""
    os.truncate(path / "model.safetensors", 100)


def overwrite(path: Path) -> None:
    """A large file was written to."""
    with (path / "model.safetensors").open("r+b") as file:
        file.write(b"x")


def put_link(path: Path) -> None:
    """Put a link to another file in the place of a file."""
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("vocabulary.txt")


def put_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    (path / "config.json").unlink()
    (path / "config.json").mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "shorter": shorten,
    "written": overwrite,
    "gone": lambda path: (path / "model.safetensors").unlink(),
    "a folder gone": lambda path: shutil.rmtree(path / "other"),
    "added and gone": lambda path: (path / "model.safetensors").rename(path / "added"),
    "a folder instead": put_folder,
    "a link instead": put_link,
    "no tree": shutil.rmtree,
    "no entry": lambda path: (path.parent.parent / "entry.json").unlink(),
    "rubbish entry": lambda path: (path.parent.parent / "entry.json").write_bytes(b"{}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_that_a_look_shows_is_repaired(
    cache: Cache, watched: WatchedRepository, record: Record, damage: str
) -> None:
    """It is a miss; content that is still right is not fetched again."""
    path = await cache.resolve(Directory(id=record.id))
    for writable in (path, path / "model.safetensors", path / "other"):
        writable.chmod(0o755)
    DAMAGES[damage](path)
    whole, watched.chunks_got = watched.chunks_got, 0
    assert path == await cache.resolve(Directory(id=record.id))
    assert THINGS == standing(path)
    assert damage == "no tree" or watched.chunks_got < whole
    assert not (path / "model.safetensors").stat().st_mode & 0o222


async def test_what_python_adds_is_not_damage(cache: Cache, watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A runtime that imports from a tree writes into it: that is a hit all the same, also for `verify`, and looked into once."""
    path = await cache.resolve(Directory(id=record.id))
    for folder in (path, path / "other"):
        folder.chmod(0o755)
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "pipeline.cpython-312.pyc").write_bytes(b"\0")
    watched.calls.clear()
    assert path == await cache.resolve(Directory(id=record.id))
    assert (path / "__pycache__").exists()
    (path.parent.parent / "tail").rename(tmp_path / "tail")
    assert path == await cache.resolve(Directory(id=record.id))
    assert [] == watched.calls
    (tmp_path / "tail").rename(path.parent.parent / "tail")
    assert [] == await verify_cache(tmp_path / "cache")
    (path / "other" / "added.py").write_bytes(b"")
    assert [path] == await verify_cache(tmp_path / "cache")


@pytest.mark.slow
async def test_verify_hashes_trees(cache: Cache, record: Record, tmp_path: Path) -> None:
    """Flipped bits in a small file are found by digest; the entry is removed, and fetched again."""
    path = await cache.resolve(Directory(id=record.id))
    assert [] == await verify_cache(tmp_path / "cache")
    rewrite(path / "vocabulary.txt", b"????")
    assert [path] == await verify_cache(tmp_path / "cache")
    assert not path.exists()
    assert THINGS == standing(await cache.resolve(Directory(id=record.id)))
    assert [] == await verify_cache(tmp_path / "cache")


def replace_link(path: Path) -> None:
    """A link leads elsewhere."""
    (path / "link").unlink()
    (path / "link").symlink_to("folder/run.sh")


FOREIGN_DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: rewrite(path / "folder/words.txt", b"????"),
    "gone": lambda path: (path / "folder/words.txt").unlink(),
    "added": lambda path: (path / "folder/added").write_bytes(b""),
    "a folder added": lambda path: (path / "folder/added").mkdir(),
    "a folder gone": lambda path: (path / "nothing").rmdir(),
    "not executable": lambda path: (path / "folder/run.sh").chmod(0o444),
    "executable": lambda path: (path / "folder/words.txt").chmod(0o555),
    "a link changed": replace_link,
    "no tail": lambda path: (path.parent.parent / "tail").unlink(),
    "rubbish tail": lambda path: (path.parent.parent / "tail").write_bytes(b"PK"),
    "no manifest": lambda path: (path.parent.parent / "manifest").unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", FOREIGN_DAMAGES)
async def test_verify_compares_trees_of_foreign_zips(
    cache: Cache, watched: WatchedRepository, tmp_path: Path, damage: str
) -> None:
    """They cannot be put together again: names, sizes, checksums, links and executable bits are those of their directory."""
    record = (await push(watched, foreign_zip(tmp_path / "theirs.zip"))).record
    path = await cache.resolve(Directory(id=record.id))
    assert [] == await verify_cache(tmp_path / "cache")
    path.chmod(0o755)
    (path / "folder").chmod(0o755)
    FOREIGN_DAMAGES[damage](path)
    assert [path] == await verify_cache(tmp_path / "cache")
    assert FOREIGN == standing(await cache.resolve(Directory(id=record.id)))


async def test_what_is_not_a_zip(cache: Cache, watched: WatchedRepository, tmp_path: Path) -> None:
    """As a directory it gives one error and leaves nothing; as a file it can be resolved."""
    (tmp_path / "notes.txt").write_bytes(prose(9, 1000))
    record = (await push(watched, tmp_path / "notes.txt")).record
    with pytest.raises(InvalidArchive, match="not a zip file"):
        await cache.resolve(Directory(id=record.id))
    assert [] == [*(tmp_path / "cache").glob("*/*/trees/*/*/*"), *(tmp_path / "cache").glob("*/*/staging/*")]
    assert prose(9, 1000) == (await cache.resolve(File(id=record.id))).read_bytes()


async def test_limits_are_those_of_the_cache(watched: WatchedRepository, record: Record, tmp_path: Path) -> None:
    """A zip that exceeds them is refused, and leaves nothing."""
    with pytest.raises(LimitExceeded):
        await Cache(tmp_path / "cache", watched, limits=ZipLimits(entries=3)).resolve(Directory(id=record.id))
    assert [] == [*(tmp_path / "cache").glob("*/*/trees/*/*/*"), *(tmp_path / "cache").glob("*/*/staging/*")]


async def test_what_is_not_there(cache: Cache, record: Record) -> None:
    """A directory that the repository does not have; one that was not pushed yet."""
    with pytest.raises(NotFound):
        await cache.resolve(Directory(id="file_" + "0" * 32))
    with pytest.raises(InvalidReference):
        await cache.resolve(Directory("./my_dir"))


UNPRIVILEGED = """
import asyncio, os, sys
from pathlib import Path
from filestore.backends import connect
from filestore.cache import Cache, verify_cache
from filestore.core.references import Directory
from filestore.transfer.push import push
from tests.support.trees import plant
# While they can be read.
import filestore.http.client.repository
import filestore.repository.index.sqlite, filestore.repository.stores.disk, numpy

os.chdir(sys.argv[1])
if os.geteuid() == 0:  # root may write anywhere
    os.chown(".", 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)

async def main():
    async with connect("repository", create=True) as repository:
        record = (await push(repository, plant(Path("tree"), {"a.txt": b"a", "folder/b.txt": b"b"}))).record
        wanted = Directory(id=record.id)
        path = await Cache("cache", repository).resolve(wanted)
        try:
            (path / "folder" / "added").write_bytes(b"")
        except PermissionError:
            print("refused")
        (path / "a.txt").chmod(0o644)
        (path / "a.txt").write_bytes(b"b")
        print(len(await verify_cache(Path("cache"))), path.exists())
        path = await Cache("cache", repository).resolve(wanted)
        path.chmod(0o755)
        (path / "a.txt").unlink()
        print(path == await Cache("cache", repository).resolve(wanted), (path / "a.txt").read_bytes())

asyncio.run(main())
"""


@pytest.mark.slow
async def test_who_owns_a_read_only_tree_can_remove_and_repair_it() -> None:
    """Read-only folders are removed with their entry, also by a user who is not root."""
    # Not below the folders of tests, which only root may enter.
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, folder],
            cwd=Path(__file__).parents[2],
            # Another user cannot write to the folder of tests/coverage.sh.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ("refused\n1 False\nTrue b'a'\n", "") == (done.stdout, done.stderr)
