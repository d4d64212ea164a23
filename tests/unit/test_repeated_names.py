"""Zip files that have lost the folders of a tree."""

from __future__ import annotations

import warnings
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from filestore.cache import Cache
from filestore.core.records import Record
from filestore.core.references import Directory, File
from filestore.errors import InvalidArchive
from filestore.repository.protocol import Repository
from filestore.runtime import Adapter
from filestore.runtime.errors import FoldersLost
from filestore.transfer.push import push
from filestore.transfer.repeated_names import find_repeated_names, listed_names, repeated_names_warning


async def stored(repository: Repository, folder: Path, names: list[str], *, name: str = "tree.zip") -> Record:
    """A stored zip file whose entries have these names."""
    path = folder / name
    with ZipFile(path, "w", compression=ZIP_DEFLATED) as archive, warnings.catch_warnings():
        # The SDK does not look at them.
        warnings.simplefilter("ignore", UserWarning)
        for number, each in enumerate(names):
            archive.writestr(each, f"content {number}")
    return (await push(repository, path)).record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "repeated"),
    [
        (["config.json", "model.bin", "config.json"], ["config.json"]),
        (["a", "b", "a", "b", "a"], ["a", "b"]),
        (["ü", "ü"], ["ü"]),
        (["1/config.json", "config.json"], []),
        (["a", "b", "c"], []),
        (["folder/", "folder/"], []),
        ([], []),
        ([f"{number}" for number in range(5000)] + ["4999"], ["4999"]),
    ],
)
async def test_names_of_more_than_one_file(
    local_repository: Repository, tmp_path: Path, names: list[str], repeated: list[str]
) -> None:
    """Each is found once; a tree that is flat without losing a name is not warned of."""
    record = await stored(local_repository, tmp_path, names)

    assert repeated == await find_repeated_names(local_repository, record)
    assert bool(repeated) is (repeated_names_warning(repeated) is not None)


async def test_only_zip_files_are_read(local_repository: Repository, tmp_path: Path) -> None:
    """Any other name, a directory of our own and a damaged zip file are no reason for a warning."""
    other = await stored(local_repository, tmp_path, ["a", "a"], name="tree.bin")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_bytes(b"a")
    directory = (await push(local_repository, tmp_path / "folder")).record
    whole = (tmp_path / "tree.bin").read_bytes()
    for number, content in enumerate([b"", b"PK", whole[:-30], b"text"]):
        (tmp_path / f"{number}.zip").write_bytes(content)
        record = (await push(local_repository, tmp_path / f"{number}.zip")).record
        assert [] == await find_repeated_names(local_repository, record)

    assert [] == await find_repeated_names(local_repository, other)
    assert [] == await find_repeated_names(local_repository, directory)


def test_a_message_lists_some_names() -> None:
    """A model may have lost thousands of them."""
    assert "'a', 'b'" == listed_names(["a", "b"])
    assert "'0', '1', '2', '3', '4' and 995 more" == listed_names([str(number) for number in range(1000)])


async def test_a_start_says_what_was_lost(local_repository: Repository, tmp_path: Path) -> None:
    """Of a static file and of an input: the file, the names and the way round; the zip file itself stays usable."""
    record = await stored(local_repository, tmp_path, ["config.json", "a", "config.json"])
    adapter = Adapter(Cache(tmp_path / "cache", local_repository), local_repository, url="http://models.example")

    with pytest.raises(FoldersLost) as refused:
        await adapter.prepare([Directory(id=record.id)])
    assert f"stored as 'tree.zip ({record.id})', cannot be unpacked" in str(refused.value)
    assert "have the same name: 'config.json'. " in str(refused.value)
    assert "store the folder itself, by a push or by filestore's `pipeline create file` for directories" in str(refused.value)
    assert "Directory.from_remote(id=...), or Directory(remote_id=...)" in str(refused.value)
    with pytest.raises(FoldersLost):
        async with adapter.inputs([{"type": "file", "file_path": record.path}], [Directory]):
            pass
    assert 1 == len((await adapter.prepare([File(id=record.id)])).paths)


async def test_another_fault_of_an_archive_is_told_as_it_is(local_repository: Repository, tmp_path: Path) -> None:
    """Only lost folders get the advice."""
    record = await stored(local_repository, tmp_path, ["../a"])
    adapter = Adapter(Cache(tmp_path / "cache", local_repository), local_repository, url="http://models.example")

    with pytest.raises(InvalidArchive) as refused:
        await adapter.prepare([Directory(id=record.id)])
    assert not isinstance(refused.value, FoldersLost)
