"""A local repository meets kill -9, cancels, full disks, lost files, power cuts and races."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from filestore.backends import connect, open_backend
from filestore.core.digest import chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key, hashed, manifest_key
from filestore.core.records import Record
from filestore.errors import ChunksMissing, DamagedRecord, StorageFull
from filestore.repository.index.protocol import PositionedRecord
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.repository.removal import UnneededChunks
from tests.support import crashes
from tests.support.cancels import cancelled_at_every_await
from tests.support.frames import buffer_for, contents, decoded, encoded, frames, manifest

PROJECT = Path(__file__).parents[2]


def start(module: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Run a module of tests/support as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.support.{module}", *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Return the output of a process. It must have succeeded."""
    output, errors = process.communicate(timeout=500)
    assert (0, "") == (process.returncode, errors)
    return output


def staging_files(root: Path) -> list[Path]:
    """Return the files in `tmp`."""
    return [path for path in (root / "tmp").rglob("*") if path.is_file()]


async def push(repository: Repository, chunks: list[bytes]) -> Record:
    """Put chunks and commit them."""
    await repository.put([encoded(content) for content in chunks])
    return await repository.commit(manifest(chunks).encoded, name=crashes.NAME)


async def check_whole(repository: Repository) -> None:
    """Check that no record lacks a chunk, and that every live row has its frame."""
    digests = [encoded(content).digest for content in crashes.CHUNKS]
    live = [digest for digest in digests if digest not in await repository.missing(digests)]
    for digest, data in zip(live, await repository.get(live, buffer_for(2)), strict=True):
        assert data is not None
        decoded(digest, data)
    for record in await repository.records():
        assert manifest(crashes.CHUNKS).encoded == await repository.manifest(record.digest)
        assert digests == live


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_kill_at_any_call_leaves_a_repository_that_goes_on(tmp_path: Path) -> None:
    """I2: after `kill -9` at any call, records are whole, the same push completes, and no staging file is left."""
    places = int(finish(start("crashes", tmp_path)))
    assert places > 50
    for place in range(1, places + 1):
        root = tmp_path / str(place)
        async with connect(str(root), create=True) as repository:
            await check_whole(repository)
            assert crashes.NAME == (await push(repository, crashes.CHUNKS)).name
            await check_whole(repository)
            assert [] == staging_files(root)


async def test_cancelled_put_leaves_no_staging_file(tmp_path: Path) -> None:
    """After a cancel at any await, frames that were not kept are discarded."""
    root = tmp_path / "repository"
    async with connect(str(root), create=True) as repository:
        put = frames(4, size=300_000)
        async for _ in cancelled_at_every_await(lambda: repository.put(put)):
            assert [] == staging_files(root)


@pytest.mark.slow
def test_processes_that_race_never_lose_what_a_record_needs(tmp_path: Path) -> None:
    """Two processes push and one collects without a grace period. Each push finds all of its file after its commit."""
    root = tmp_path / "repository"
    racing = [start("races", "push", "1", root), start("races", "push", "2", root), start("races", "collect", root)]
    for process in racing:
        finish(process)


class SmallDisk(NamedTuple):
    """A folder with space for 3 MiB."""

    folder: Path
    grow: Callable[[], None]


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A small file system, if this user may mount one. Otherwise `write` fails as on a full disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", folder):
        limit = WriteLimit(3 << 20)
        monkeypatch.setattr(os, "write", limit.write)
        yield SmallDisk(folder, limit.lift)
        return
    yield SmallDisk(folder, lambda: None if mount("-o", "remount,size=64m", folder) else pytest.fail("no remount"))
    subprocess.run(["umount", folder], check=True)


def mount(*arguments: str | Path) -> bool:
    """Return whether the file system could be mounted."""
    program = shutil.which("mount")
    return program is not None and subprocess.run([program, *arguments], check=False, capture_output=True).returncode == 0


class WriteLimit:
    """An `os.write` for which the disk is full after some bytes."""

    def __init__(self, buffer_for: int) -> None:
        self._remaining = buffer_for
        self._write = os.write

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write as much as there is space for."""
        if not self._remaining:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = self._write(descriptor, data[: self._remaining])
        self._remaining -= size
        return size

    def lift(self) -> None:
        """Remove the limit."""
        self._remaining = 1 << 40


async def test_full_disk_is_said_and_loses_nothing(small_disk: SmallDisk) -> None:
    """The put without space fails as a whole, and kept frames stay. With more space, the same put completes."""
    root = small_disk.folder / "repository"
    async with connect(str(root), create=True) as repository:
        before = frames(2, size=100_000)
        await repository.put(before)
        large = frames(20, size=400_000, seed=1)
        with pytest.raises(StorageFull):
            await repository.put(large)
        assert [] == staging_files(root)
        assert [frame.digest for frame in large] == await repository.missing([frame.digest for frame in (*before, *large)])
        assert [frame.data for frame in before] == await repository.get([frame.digest for frame in before], buffer_for(2))
        small_disk.grow()
        await repository.put(large)
        assert [frame.data for frame in large] == await repository.get([frame.digest for frame in large], buffer_for(20))


@pytest.mark.slow
async def test_disk_that_fills_up_before_the_commit(small_disk: SmallDisk) -> None:
    """No record exists without its manifest. With more space, the same commit completes."""
    async with connect(str(small_disk.folder / "repository"), create=True) as repository:
        chunks = contents(1)
        long_file = manifest(chunks * 50_000)
        await repository.put([encoded(content) for content in chunks])
        await repository.put([encoded(content) for content in contents(4, size=400_000, seed=1)])
        with pytest.raises(StorageFull):
            await repository.commit(long_file.encoded, name="name")
        assert [] == await repository.records()
        small_disk.grow()
        record = await repository.commit(long_file.encoded, name="name")
        assert long_file.encoded == await repository.manifest(record.digest)


@pytest.mark.parametrize("verb", ["get", "open"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "grown"])
async def test_lost_frame_is_forgotten_and_the_next_push_heals_it(tmp_path: Path, verb: str, damage: str) -> None:
    """A read of a lost frame makes its chunk missing, so that the next push sends it."""
    root = tmp_path / "repository"
    store, index = await open_backend(root, create=True)
    repository = LocalRepository(store, index, location=str(root))
    lost, other = frames(2)
    await repository.put([lost, other])
    path = root / chunk_key(DEFAULT_NAMESPACE, lost.digest)
    if damage == "deleted":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "truncated" else 5 << 20)
    # The index does not know it yet.
    assert [] == await index.missing(DEFAULT_NAMESPACE, [lost.digest, other.digest])
    if verb == "get":
        assert [None, other.data] == await repository.get([lost.digest, other.digest], buffer_for(2))
    else:
        none, file = await repository.open([lost.digest, other.digest])
        assert (None, other.data) == (none, file and file.read())
        assert file is not None
        file.close()
    assert [lost.digest] == await repository.missing([lost.digest, other.digest])
    with pytest.raises(ChunksMissing):
        await repository.commit(manifest(contents(2)).encoded, name="name")
    await repository.put([lost])
    assert [lost.data] == await repository.get([lost.digest], buffer_for(1))
    await repository.close()


async def test_frame_that_came_back_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: after a frame is found absent, and before its row is forgotten, another push may put and commit it."""
    root = tmp_path / "repository"
    store, index = await open_backend(root, create=True)
    repository = LocalRepository(store, index, location=str(root))
    (frame,) = frames(1)
    await repository.put([frame])

    read_into = store.read_into
    asked: list[object] = []

    async def absent_at_first(*arguments: Any) -> list[memoryview | None]:
        asked.append(arguments)
        return [None] if len(asked) == 1 else await read_into(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "read_into", absent_at_first)
        assert [None] == await repository.get([frame.digest], buffer_for(1))
    assert [] == await repository.missing([frame.digest])
    await repository.close()


async def test_damaged_manifest_is_healed_by_the_next_commit(tmp_path: Path) -> None:
    """An existing manifest is checked, and replaced if it is wrong."""
    async with connect(str(tmp_path / "repository"), create=True) as repository:
        record = await push(repository, contents(2))
        path = tmp_path / "repository/manifests" / DEFAULT_NAMESPACE / hashed(record.digest)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        again = await push(repository, contents(2))
        assert record.id == again.id
        assert manifest(contents(2)).encoded == await repository.manifest(again.digest)


class Platter:
    """Record what a power cut would leave: synced bytes, under names that were synced in every folder above."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self._root = root
        self._paths: dict[int, Path] = {}
        self._synced_files: set[int] = set()
        self._synced_names: set[Path] = set()
        self.violations: list[list[Path]] = []
        monkeypatch.setattr(os, "open", self._wrap_open(os.open))
        monkeypatch.setattr(os, "fsync", self._wrap_fsync(os.fsync))
        monkeypatch.setattr(os, "rename", self._wrap_rename(os.rename))
        platter = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if sql == "COMMIT":
                    platter.violations.append(platter.not_durable())
                return super().execute(sql, *arguments)

        plain_connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: plain_connect(*given, factory=Connection, **named))

    def not_durable(self) -> list[Path]:
        """Return the frames and manifests that a power cut would lose."""
        found = [path for kind in ("chunks", "manifests") for path in (self._root / kind).rglob("*")]
        return [path for path in found if path not in self._synced_names or (path.is_file() and not self._is_synced(path))]

    def _is_synced(self, path: Path) -> bool:
        return path.stat().st_ino in self._synced_files

    def _wrap_open(self, plain: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            descriptor = plain(path, flags, *arguments, **named)
            if isinstance(path, str | Path):
                self._paths[descriptor] = Path(path)
            return descriptor

        return call

    def _wrap_fsync(self, plain: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = self._paths[descriptor]
            present = list(path.iterdir()) if path.is_dir() else []
            plain(descriptor)
            self._synced_names.update(present)
            self._synced_files.add(os.fstat(descriptor).st_ino)

        return call

    def _wrap_rename(self, plain: Callable[..., None]) -> Callable[..., None]:
        def call(source: str | Path, target: str | Path, *, dst_dir_fd: int | None = None) -> None:
            self._synced_names.discard(Path(target) if dst_dir_fd is None else self._paths[dst_dir_fd] / target)
            plain(source, target, dst_dir_fd=dst_dir_fd)

        return call


@pytest.mark.slow
async def test_power_cut_after_any_commit_leaves_frames_and_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: before a row or record is durable, its frame or manifest is durable, with all names on its path."""
    root = tmp_path / "repository"
    platter = Platter(monkeypatch, root)
    async with connect(str(root), create=True) as repository:
        for seed in range(3):
            await repository.put(frames(40, seed=seed))
            await repository.commit(manifest(contents(40, seed=seed)).encoded, name="name")
    assert len(platter.violations) >= 6
    assert [] == [violation for violation in platter.violations if violation]


@pytest.mark.slow
async def test_no_descriptor_stays_open_for_a_staged_frame(tmp_path: Path) -> None:
    """A batch may have more frames than a process may have descriptors."""
    root = tmp_path / "repository"
    store, index = await open_backend(root, create=True)
    repository = LocalRepository(store, index, location=str(root))
    async with repository.ingest() as ingest:
        before = open_descriptors()
        for frame in frames(300, size=2000):
            ingest.start(frame.digest, len(frame.data))
            ingest.write(frame.data)
        assert before == open_descriptors()
        (torn,) = frames(1, seed=1)
        ingest.start(torn.digest, len(torn.data))
        ingest.write(torn.data[:1])
        assert before + 1 == open_descriptors()
        ingest.start(torn.digest, len(torn.data))
        assert before == open_descriptors()
        assert 300 == await ingest.commit()
    await repository.close()


def open_descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(list(Path("/dev/fd").iterdir()))


async def test_record_that_is_committed_while_chunks_are_looked_through_keeps_its_own(
    local_repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed after the first look is looked at again, in the transaction that removes."""
    assert isinstance(local_repository, LocalRepository)
    chunks = contents(3)
    await local_repository.put([encoded(content) for content in chunks])
    first = await local_repository.commit(manifest(chunks).encoded, name="first")
    find = UnneededChunks.find

    async def find_and_commit(unneeded: UnneededChunks) -> None:
        await find(unneeded)
        await local_repository.commit(manifest(chunks[:2]).encoded, name="second")

    monkeypatch.setattr(UnneededChunks, "find", find_and_commit)
    await local_repository.remove(first.id, with_chunks=True)
    digests = [chunk_digest(content) for content in chunks]
    assert digests[2:] == await local_repository.missing(digests)


@pytest.fixture
async def three(local_repository: Repository) -> list[Record]:
    """Three records: the first two share a chunk, and each has one of its own."""
    shared, *own = contents(4)
    records = []
    for number, chunks in enumerate(([shared, own[0]], [shared, own[1]], [own[2]])):
        await local_repository.put([encoded(content) for content in chunks])
        records.append(await local_repository.commit(manifest(chunks).encoded, name=f"name-{number}"))
    return records


async def test_removal_with_chunks_goes_on_where_another_record_is_removed_meanwhile(
    local_repository: Repository, three: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was listed, and is gone when its manifest is read: then it needs no chunk."""
    assert isinstance(local_repository, LocalRepository)
    index = local_repository._opened_index
    listed = index.records_after
    others = three[1:]

    async def list_and_remove(*arguments: Any, **options: Any) -> list[PositionedRecord]:
        page = await listed(*arguments, **options)
        if others:
            await local_repository.remove(others.pop().id, with_chunks=True)
        return page

    monkeypatch.setattr(index, "records_after", list_and_remove)
    assert three[0] == await local_repository.remove(three[0].id, with_chunks=True)
    monkeypatch.undo()
    assert [] == await local_repository.records()
    digests = [chunk_digest(content) for content in contents(4)]
    assert digests == await local_repository.missing(digests)


def lose(path: Path) -> None:
    """Have a manifest be gone."""
    path.unlink()


def flip(path: Path) -> None:
    """Have a manifest be other bytes."""
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


@pytest.mark.parametrize("whose", [0, 1], ids=["own", "another"])
@pytest.mark.parametrize(("damage", "said"), [(lose, "is missing"), (flip, "is damaged")])
async def test_removal_with_chunks_names_the_record_whose_manifest_is_gone(
    local_repository: Repository, three: list[Record], damage: Callable[[Path], None], said: str, whose: int
) -> None:
    """Nobody knows which chunks that one needs, so nothing is removed; what the error asks for makes it work."""
    found = three[whose]
    damage(Path(local_repository.location) / manifest_key(DEFAULT_NAMESPACE, found.digest))
    with pytest.raises(DamagedRecord) as caught:
        await local_repository.remove(three[0].id, with_chunks=True)
    assert f"the record {found.id} ({found.name!r}) is damaged in the repository: its manifest {found.digest} {said}" in str(
        caught.value
    )
    assert 3 == len(await local_repository.records())
    digests = [chunk_digest(content) for content in contents(4)]
    assert [] == await local_repository.missing(digests)

    assert found == await local_repository.remove(found.id)
    if whose == 1:
        await local_repository.remove(three[0].id, with_chunks=True)
        # The chunk of the record that was removed without its chunks stays.
        assert digests[:2] == await local_repository.missing(digests)
