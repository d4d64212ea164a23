"""A fetch copies what the seeds have that the user named, and verifies it. The bytes that are received are counted."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import filestore
from filestore.core.records import Record
from filestore.errors import InvalidInput, SourceUnreadable
from filestore.repository.local import LocalRepository
from filestore.transfer import receiver
from filestore.transfer.fetch import fetch, fetch_record
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.local_seeds import PathSeed, finders_of
from filestore.transfer.push import push
from filestore.transfer.sources.file import FileSource, Window
from tests.support.trees import plant, standing
from tests.support.watched import WatchedRepository

MIB = 1 << 20
OLD = random.Random(1).randbytes(12 * MIB)
NEW = OLD[: 5 * MIB] + b"changed" + OLD[5 * MIB :]


@pytest.fixture
async def record(repository: LocalRepository, tmp_path: Path) -> Record:
    """A new version of a file."""
    path = tmp_path / "pushed"
    path.write_bytes(NEW)
    return (await push(repository, path, name="model.bin")).record


async def test_a_file_as_a_seed(repository: LocalRepository, record: Record, tmp_path: Path) -> None:
    """Only what changed is received, and the result says where the rest came from."""
    seed = tmp_path / "old"
    seed.write_bytes(OLD)
    fetched = await fetch(repository, record, target=tmp_path / "target", seeds=[seed])

    assert NEW == fetched.path.read_bytes()
    assert fetched.bytes_received < 3 * MIB
    assert {seed: fetched.bytes_reused} == fetched.reused_from
    assert OLD == seed.read_bytes()


async def test_the_whole_content_as_a_seed(repository: LocalRepository, record: Record, tmp_path: Path) -> None:
    """Nothing is received, and seeds after it are not read."""
    (tmp_path / "copy").write_bytes(NEW)
    fetched = await fetch(repository, record, target=tmp_path / "target", seeds=[str(tmp_path / "copy"), tmp_path / "absent"])

    assert NEW == fetched.path.read_bytes()
    assert (0, len(NEW), False) == (fetched.bytes_received, fetched.bytes_reused, fetched.was_there)


async def test_a_folder_as_a_seed_of_a_file(repository: LocalRepository, record: Record, tmp_path: Path) -> None:
    """The file may be anywhere in it, and have another name."""
    folder = plant(tmp_path / "folder", {"a/b.bin": OLD, "c.txt": b"text"})
    fetched = await fetch(repository, record, target=tmp_path / "target", seeds=[folder])

    assert NEW == fetched.path.read_bytes()
    assert fetched.bytes_received < 3 * MIB
    assert [folder] == list(fetched.reused_from)


async def test_seeds_of_a_tree(repository: LocalRepository, tmp_path: Path) -> None:
    """A file and an older tree, and both at once."""
    new = {"model.bin": NEW, "a.bin": random.Random(2).randbytes(2 * MIB), "z.json": b"{}"}
    record = (await push(repository, plant(tmp_path / "new", new), name="model.zip")).record
    file = plant(tmp_path / "place", {"old": OLD}) / "old"
    folder = plant(tmp_path / "older", new | {"model.bin": b"none"})
    received = [
        (await fetch_tree(repository, record, target=tmp_path / str(number), seeds=seeds)).bytes_received
        for number, seeds in enumerate(([], [file], [folder], [file, folder]))
    ]

    assert all(new == standing(tmp_path / str(number)) for number in range(4))
    assert received[0] > 14 * MIB > 5 * MIB > received[1]
    assert 13 * MIB > received[2] > 12 * MIB
    assert received[3] < 3 * MIB


async def test_a_seed_of_one_file_of_a_directory(repository: LocalRepository, tmp_path: Path) -> None:
    """An entry that has chunks of its own uses seeds as any file does."""
    record = (await push(repository, plant(tmp_path / "new", {"a/model.bin": NEW, "b": b"b"}), name="model.zip")).record
    seed = plant(tmp_path / "place", {"old": OLD}) / "old"
    fetched = await fetch(repository, f"{record.id}:a/model.bin", target=tmp_path / "file", seeds=[seed])
    folder = await fetch_tree(repository, f"{record.id}:a", target=tmp_path / "folder", seeds=[seed])

    assert NEW == fetched.path.read_bytes() == (folder.path / "model.bin").read_bytes()
    assert fetched.bytes_received < 3 * MIB
    assert folder.bytes_received < 3 * MIB


@pytest.mark.parametrize("what", ["absent", "fifo", "device", "forbidden"])
async def test_a_seed_that_cannot_be_read(
    repository: LocalRepository, record: Record, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetch says so, waits for nothing, and leaves nothing."""
    seed = tmp_path / "seed"
    if what == "fifo":
        os.mkfifo(seed)
    elif what == "device":
        seed = Path("/dev/null")
    elif what == "forbidden":
        seed.write_bytes(OLD)
        opened = os.open

        def refuse(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if path == seed:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceUnreadable, match=f"{seed} cannot be read"):
        await fetch(repository, record, target=tmp_path / "new/target", seeds=[seed])

    assert not (tmp_path / "new").exists()


async def test_an_empty_path_is_not_a_seed(repository: LocalRepository, record: Record, tmp_path: Path) -> None:
    """It would mean the current folder."""
    with pytest.raises(InvalidInput):
        await fetch(repository, record, target=tmp_path / "target", seeds=[""])


async def test_a_seed_that_changes_while_it_is_hashed(
    repository: LocalRepository, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out, and the fetch is right."""
    seed = tmp_path / "old"
    seed.write_bytes(OLD)
    scan = FileSource.scan

    def change(self: FileSource, buffer: memoryview) -> list[Window]:
        found = scan(self, buffer)
        if self.path == seed and not self.is_finished:
            seed.write_bytes(OLD[::-1])
        return found

    monkeypatch.setattr(FileSource, "scan", change)
    monkeypatch.setattr(receiver, "WINDOW_SIZE", 9 * MIB)
    fetched = await fetch(repository, record, target=tmp_path / "target", seeds=[seed])

    assert NEW == fetched.path.read_bytes()
    assert {} == fetched.reused_from


@pytest.mark.parametrize("change", [b"", b"other", bytes(12 * MIB)])
async def test_a_seed_that_changes_after_it_was_hashed(
    repository: LocalRepository, record: Record, tmp_path: Path, change: bytes
) -> None:
    """What does not have its digest any more is received."""
    seed = tmp_path / "old"
    seed.write_bytes(OLD)
    [finder] = finders_of([seed])
    await fetch_record(repository, record, target=tmp_path / "first", finders=[finder])
    seed.write_bytes(change)
    fetched = await fetch_record(repository, record, target=tmp_path / "second", finders=[finder])

    assert NEW == fetched.path.read_bytes()
    assert 0 == fetched.bytes_reused


async def test_the_target_as_a_seed(repository: LocalRepository, record: Record, tmp_path: Path) -> None:
    """It is hashed once, and replaced. So is the same file by another name, and a tree that holds its own target."""
    target = tmp_path / "target"
    target.write_bytes(OLD)
    os.link(target, tmp_path / "link")
    fetched = await fetch(repository, record, target=target, seeds=[target, tmp_path / "link"], force=True)

    assert NEW == target.read_bytes()
    assert OLD == (tmp_path / "link").read_bytes()
    assert [target] == list(fetched.reused_from)

    tree = plant(tmp_path / "tree", {"model.bin": OLD})
    fetched = await fetch(repository, record, target=tree / "model.bin", seeds=[tree], force=True)
    assert {"model.bin": NEW} == standing(tree)
    assert fetched.bytes_received < 3 * MIB


async def test_a_file_that_is_there_reads_no_seed(repository: LocalRepository, record: Record, tmp_path: Path) -> None:
    """Where nothing is fetched, seeds are not looked at."""
    await fetch(repository, record, target=tmp_path / "target")
    watched = WatchedRepository(repository)

    assert (await fetch(watched, record, target=tmp_path / "target", seeds=[tmp_path / "absent"])).was_there
    assert "get" not in watched.calls


def test_seeds_without_asyncio(tmp_path: Path) -> None:
    """`filestore.blocking` takes them too."""
    assert isinstance(finders_of([tmp_path])[0], PathSeed)
    assert "seeds" in filestore.blocking.fetch.__annotations__
    assert "seeds" in filestore.blocking.fetch_tree.__annotations__
