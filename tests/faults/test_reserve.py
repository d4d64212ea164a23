"""Another program fills the disk of a repository. Nothing new is stored, and removing works."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from filestore.errors import MinFreeReached, StorageFull
from filestore.repository.stores.disk_space import DiskSpace
from tests.support.commands import Home
from tests.support.disks import small_disk

MIB = 1 << 20
ADVICE = (
    "`filestore rm` removes files, and on the machine of the repository `filestore gc` with --grace 0s frees their space at once"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with small_disk(tmp_path / "disk", "size=24m"):
        yield tmp_path / "disk"


def fill(disk: Path) -> Path:
    """Fill a disk to its last byte, as another program does. Return the file that does it."""
    path = disk / "other"
    with path.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    assert 0 == os.statvfs(disk).f_bavail
    return path


def source(tmp_path: Path, seed: int) -> Path:
    """A file of 3 MiB."""
    path = tmp_path / f"{seed}.bin"
    path.write_bytes(random.Random(seed).randbytes(3 * MIB))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("is_served", [False, True])
def test_removal_works_on_a_full_disk(home: Home, disk: Path, tmp_path: Path, *, is_served: bool) -> None:
    """A push fails with advice. Lists, removals and a collection work, also beside a server. Then a push works again."""
    root = disk / "root"
    environ = [{"FILESTORE_ROOT": str(root)}]
    with ExitStack() as stack:
        if is_served:
            environ.append(stack.enter_context(home.server(root=root, complains=None)).environ)
        else:
            home.create_repository(root)
        stored = [home.result("push", source(tmp_path, seed), environ=environ[-1]) for seed in range(2)]
        fill(disk)
        sentence = home.failure("push", source(tmp_path, 7), environ=environ[-1])
        assert sentence.endswith(ADVICE), sentence
        assert 2 == len(home.result("ls", environ=environ[0])["files"])
        for record, way in zip(stored, environ * 2, strict=False):
            fill(disk)
            home.result("rm", record["id"], environ=way)
        fill(disk)
        assert 2 * 3 * MIB <= home.result("gc", "--grace", "0s", environ=environ[0])["freed_size"]
        home.result("push", source(tmp_path, 7), environ=environ[-1])
        assert ["7.bin"] == [file["name"] for file in home.result("ls", environ=environ[0])["files"]]
        assert (root / "reserve").stat().st_size >= MIB


def test_reserve_is_made_again_when_there_is_space(disk: Path) -> None:
    """Without it nothing is stored. A reserve that was made on a fuller disk grows."""
    space = DiskSpace(disk, min_free=0)
    space.claim(1).end()
    assert MIB == (disk / "reserve").stat().st_size
    other = fill(disk)
    assert space.release_reserve()
    fill(disk)
    with pytest.raises(StorageFull, match="No space left"):
        space.claim(1)
    os.truncate(other, other.stat().st_size - MIB)
    space.claim(1).end()
    assert 0 < (disk / "reserve").stat().st_size < MIB
    other.unlink()
    space.claim(1).end()
    assert MIB == (disk / "reserve").stat().st_blocks * 512


def test_space_of_writes_in_progress_counts(disk: Path) -> None:
    """Two writes are not promised the same bytes. What was written counts once."""
    space = DiskSpace(disk, min_free=8 * MIB)
    first = space.claim(12 * MIB)
    with pytest.raises(MinFreeReached) as caught:
        space.claim(4 * MIB)
    assert (4 * MIB, 8 * MIB, "min_free") == (caught.value.needed, caught.value.limit, caught.value.setting)
    (disk / "frames").write_bytes(bytes(12 * MIB))
    first.written(12 * MIB)
    space.claim(2 * MIB).end()
    first.end()
    (disk / "frames").unlink()
    space.claim(14 * MIB).end()


def test_space_of_another_file_system_is_looked_at(disk: Path, tmp_path: Path) -> None:
    """A spool folder may be on a smaller disk."""
    space = DiskSpace(tmp_path, min_free=8 * MIB)
    space.claim(12 * MIB, place=disk).end()
    with pytest.raises(MinFreeReached, match=str(disk)):
        space.claim(20 * MIB, place=disk)


@pytest.mark.slow
def test_floor_of_free_space(home: Home, tmp_path: Path) -> None:
    """The error names the setting and its value. Nothing was written. Reading and removing go on."""
    home.create_repository()
    stored = home.result("push", source(tmp_path, 1))
    free = shutil.disk_usage(tmp_path).free
    sentence = home.failure("push", source(tmp_path, 2), environ={"FILESTORE_MIN_FREE": str(2 * free)})
    assert f"{2 * free} of these stay free by the setting min_free" in sentence
    assert [] == [path for path in (home.data / "tmp").rglob("*") if path.is_file()]
    environ = {"FILESTORE_MIN_FREE": str(2 * free)}
    home.result("fetch", stored["id"], "-o", tmp_path / "back", environ=environ)
    home.result("rm", stored["id"], environ=environ)
