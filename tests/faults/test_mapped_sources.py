"""Another process has a file mapped and stores into it, which moves its mtime late or never. No push stores old content."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.progress import Progress
from filestore.errors import SourceChanged
from filestore.repository.local import LocalRepository
from filestore.system.writeback import Writeback, writeback_of
from filestore.transfer.push import manifest_of, push
from filestore.transfer.sources.file import WINDOW_SIZE, FileSource
from filestore.transfer.sources.push_cache import PushCache
from tests.support.chunking import scan
from tests.support.disks import overlay, small_disk
from tests.support.generator import octets
from tests.support.mapping import mapping

MEMORY = Path("/dev/shm")  # the test is about this file system
SIZE = 300_000
PLACE = 5000

needs_memory = pytest.mark.skipif(not MEMORY.is_dir(), reason="needs the /dev/shm of Linux")


@pytest.fixture(params=["disk", pytest.param("memory", marks=needs_memory)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the disk, and one on a file system in memory, where shared memory of torch is."""
    if request.param == "disk":
        yield tmp_path / "place"
    else:
        folder = Path(tempfile.mkdtemp(dir=MEMORY))
        yield folder / "place"
        shutil.rmtree(folder)


def _planted(place: Path, *, is_tree: bool, size: int = SIZE) -> tuple[Path, Path]:
    """Return what is pushed, and the file in it that is mapped."""
    path = place / "inner/model.bin" if is_tree else place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets(1, size))
    return place, path


def _age_entries(path: Path) -> None:
    """Pretend that the push was 3 s later, so that what it recorded is trusted. The test would have to wait for that long."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE pushed SET recorded_at = recorded_at + 3000000000")
    connection.close()


@pytest.mark.parametrize("is_tree", [False, True])
async def test_a_store_through_a_mapping_is_pushed(
    local_repository: LocalRepository, place: Path, tmp_path: Path, *, is_tree: bool
) -> None:
    """A push reads a file again if a process that had it mapped before the last push has stored into it since."""
    pushed, path = _planted(place, is_tree=is_tree)
    with mapping(path) as mapped, PushCache(tmp_path / "push_cache") as push_cache:
        for value in range(1, 4):
            mapped.store(PLACE, value)
            result = await push(local_repository, pushed, name="model.bin", push_cache=push_cache)
            assert (await manifest_of(pushed)).digest == result.record.digest
            _age_entries(tmp_path / "push_cache")


@pytest.mark.parametrize("is_tree", [False, True])
async def test_a_mapped_file_that_stays_as_it_is_is_not_read_again(
    local_repository: LocalRepository, tmp_path: Path, *, is_tree: bool
) -> None:
    """That a file was written back saves the next push from reading it, also while a process has it mapped."""
    pushed, path = _planted(tmp_path / "place", is_tree=is_tree)
    with path.open("rb") as file:
        if writeback_of(file.fileno()) is Writeback.NEVER:
            pytest.skip("the folder of the tests is in memory")
    with mapping(path) as mapped, PushCache(tmp_path / "push_cache") as push_cache:
        mapped.store(PLACE, 1)
        await push(local_repository, pushed, name="model.bin", push_cache=push_cache)
        _age_entries(tmp_path / "push_cache")
        assert 0 == (await push(local_repository, pushed, name="model.bin", push_cache=push_cache)).bytes_read


@pytest.mark.parametrize("is_tree", [False, True])
@needs_memory
async def test_what_is_in_memory_is_not_remembered(local_repository: LocalRepository, tmp_path: Path, *, is_tree: bool) -> None:
    """No store to a mapped file on tmpfs moves its mtime after the first one, so each push reads the file."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        pushed, _ = _planted(folder / "place", is_tree=is_tree)
        with PushCache(tmp_path / "push_cache") as push_cache:
            for _ in range(2):
                result = await push(local_repository, pushed, name="model.bin", push_cache=push_cache)
                assert SIZE == result.bytes_read
                _age_entries(tmp_path / "push_cache")
    finally:
        shutil.rmtree(folder)


def test_a_store_after_its_place_was_read_is_noticed(tmp_path: Path) -> None:
    """Content is written back before it is read: a store in between two windows is read, and one after them is an error."""
    _, path = _planted(tmp_path / "place", is_tree=False, size=WINDOW_SIZE + 1)
    with path.open("rb") as file:
        if writeback_of(file.fileno()) is Writeback.NEVER:
            pytest.skip("the folder of the tests is in memory")
    with mapping(path) as mapped:
        mapped.store(PLACE, 1)
        mapped.store(WINDOW_SIZE, 1)
        with FileSource(path) as source:
            buffer = memoryview(bytearray(WINDOW_SIZE))
            source.scan(buffer)
            source.check_unchanged()
            mapped.store(PLACE, 2)
            with pytest.raises(SourceChanged, match="mtime"):
                source.check_unchanged()
        with FileSource(path) as source:
            scan(source)
            source.check_unchanged()


async def test_what_changed_just_before_a_push_is_read_by_the_next_one(local_repository: LocalRepository, tmp_path: Path) -> None:
    """What counts is the time before the file was looked at: one long write sets the mtime only when it begins."""
    seen: list[int] = []

    def report(_: Progress) -> None:
        seen.append(time.time_ns())

    (tmp_path / "model.bin").write_bytes(octets(1, SIZE))
    with PushCache(tmp_path / "push_cache") as push_cache:
        await push(local_repository, tmp_path / "model.bin", push_cache=push_cache, report=report)
    with sqlite3.connect(tmp_path / "push_cache") as connection:
        ((recorded_at,),) = connection.execute("SELECT recorded_at FROM pushed").fetchall() or [(0,)]
    connection.close()
    assert recorded_at < seen[0]


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    """A mounted tmpfs, an overlay file system on it, and a file in memory without a name are never written back."""
    with small_disk(tmp_path / "disk", "size=1m"):
        (tmp_path / "disk/file").touch()
        assert Writeback.NEVER is _writeback(tmp_path / "disk/file")
    (tmp_path / "image").mkdir()
    with overlay(tmp_path / "root", tmp_path / "image"):
        (tmp_path / "root/file").write_bytes(b"1")
        assert Writeback.NEVER is _writeback(tmp_path / "root/file")
    descriptor = os.memfd_create("file")
    assert Writeback.NEVER is writeback_of(descriptor)
    os.close(descriptor)


def _writeback(path: Path) -> Writeback:
    with path.open("rb") as file:
        return writeback_of(file.fileno())


@pytest.mark.parametrize("option", ["", ",volatile"])
async def test_a_store_on_an_overlay_file_system_is_pushed(
    local_repository: LocalRepository, tmp_path: Path, option: str
) -> None:
    """As in a container: the file is synced there, or not remembered if the file system ignores this."""
    for name in ("lower", "upper", "work", "root"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    command = ["mount", "-t", "overlay", "-o", layers + option, "overlay", str(tmp_path / "root")]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"needs the right to mount an overlay file system there: {made.stderr}")
    try:
        for is_tree in (False, True):
            pushed, path = _planted(tmp_path / f"root/{is_tree}", is_tree=is_tree)
            assert (Writeback.NEVER if option else Writeback.WHOLE) is _writeback(path)
            with mapping(path) as mapped, PushCache(tmp_path / "push_cache") as push_cache:
                for value in range(1, 4):
                    mapped.store(PLACE, value)
                    result = await push(local_repository, pushed, name="model.bin", push_cache=push_cache)
                    assert (await manifest_of(pushed)).digest == result.record.digest
                    _age_entries(tmp_path / "push_cache")
    finally:
        subprocess.run(["umount", "-l", tmp_path / "root"], check=True)
