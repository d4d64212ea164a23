"""From a URL to a repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from filestore.backends import connect, open_backend
from filestore.cache import Cache
from filestore.errors import InvalidUrl, StorageError, UnknownFormat
from filestore.objects import File
from filestore.push import push
from filestore.repository import Repository


async def identity_id(url: str) -> str:
    """The id of the repository at `url`."""
    async with connect(url) as repository:
        return (await repository.identity()).id


async def test_path_and_file_url_are_one_repository(tmp_path: Path) -> None:
    """Percent-encoded in the URL, plain in the path; made where absent."""
    folder = tmp_path / "models ü 100%"
    first = await identity_id(str(folder))
    assert first == await identity_id(folder.as_uri())
    assert first == await identity_id(folder.as_uri().replace("file://", "file://localhost"))


async def test_location_is_the_folder(tmp_path: Path) -> None:
    """What a result says that it worked on."""
    async with connect((tmp_path / "models").as_uri()) as repository:
        assert str(tmp_path / "models") == repository.location


async def test_server_is_not_asked_before_it_is_needed() -> None:
    """A cache hit costs no network, though its repository is a server that is out of reach."""
    async with connect("http://127.0.0.1:9", token="secret") as repository:
        assert "http://127.0.0.1:9" == repository.location
        assert 64 == len(repository.fingerprint)


@pytest.mark.parametrize(
    "url", ["", "s3://bucket", "file://host/folder", "file:///folder?x", "file:///folder#x", "file://", "a\0b", "http://"]
)
async def test_url_that_names_no_repository(url: str) -> None:
    """Refused before anything is made."""
    with pytest.raises(InvalidUrl):
        await identity_id(url)


@pytest.mark.parametrize(
    "kept",
    [
        {"format": 2, "cutting": 1, "id": "0" * 32},
        {"format": 1, "cutting": 9, "id": "0" * 32},
        {"format": 1, "cutting": 1, "id": "no id"},
        {"format": 1},
        [],
        None,
    ],
    ids=["format", "cutting", "id", "parts", "list", "torn"],
)
async def test_repository_of_another_version_is_refused_and_not_touched(tmp_path: Path, kept: object) -> None:
    """In one sentence; neither an index is made in it nor its format file changed."""
    root = tmp_path / "repository"
    root.mkdir()
    text = "{" if kept is None else json.dumps(kept)
    (root / "format").write_text(text)
    with pytest.raises(UnknownFormat, match="this program knows"):
        await identity_id(str(root))
    assert text == (root / "format").read_text()
    assert {"format", "tmp"} == {path.name for path in root.iterdir()}


async def test_folder_that_is_a_file(tmp_path: Path) -> None:
    """Said with its path."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(StorageError, match=str(path)):
        await identity_id(str(path))


async def test_repository_is_closed_by_the_end_of_the_block(tmp_path: Path) -> None:
    """Also by an error in it; nothing stays in `tmp`."""

    async def fail() -> None:
        async with connect(str(tmp_path)) as repository:
            assert await use(repository)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert [] == list((tmp_path / "tmp").iterdir())


async def use(repository: Repository) -> bool:
    """Whether it answers."""
    return [] == await repository.records()


async def test_opened_by_two_is_one_repository(tmp_path: Path) -> None:
    """What one keeps, the other finds: processes share a folder."""
    (store, index), (other_store, other_index) = await open_backend(tmp_path), await open_backend(tmp_path)
    assert await store.initialise(b"") == await other_store.initialise(b"")
    for part in (store, index, other_store, other_index):
        await part.close()


async def test_a_tilde_in_a_program_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a repository and of a cache; the current folder gets none of that name."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "file").write_bytes(b"x")
    async with connect("~/repository") as repository, Cache("~/cache", repository) as cache:
        pushed = await push(repository, tmp_path / "file")
        assert (await cache.resolve(File(id=pushed.record.id))).is_relative_to(tmp_path / "home/cache")
    assert str(tmp_path / "home/repository") == repository.location
    assert [] == list((tmp_path / "here").iterdir())
