"""The pair of an object store and its index: what belongs together, and how it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import filestore
from filestore.backends import object_location, repository_folder
from filestore.core.object_location import ObjectLocation, has_password, shown_url
from filestore.errors import FilestoreError, IndexDamaged, InvalidSetting, InvalidUrl, NotARepository, UnknownFormat
from filestore.repository.format_file import read_format
from filestore.repository.index.protocol import Index
from filestore.repository.index.sqlite import open_index
from filestore.repository.object_repository import joined
from filestore.repository.stores.memory import MemoryStore

STORE = "s3://models/prefix?endpoint=http://127.0.0.1:8480"
INDEX = "postgresql://filestore:secret@127.0.0.1:5432/filestore?sslmode=disable"
OTHER_ID = "0123456789abcdef" * 2


class Bucket(MemoryStore):
    """An object store in memory, which is there after it was closed. `used` says that it has content."""

    used = False

    async def is_initialised(self) -> bool:
        return self._format is not None

    async def namespaces(self) -> list[str]:
        return ["default"] if self.used else []

    async def close(self) -> None:
        """Keep all."""


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[Index]:
    """A new index. Nothing closes it but the test."""
    opened = await open_index(tmp_path / "index.sqlite")
    yield opened
    await opened.close()


async def join(bucket: Bucket, folder: Path, *, create: bool = False) -> str:
    """Open the pair, and return the id of the repository."""

    async def open_bucket() -> Bucket:
        return bucket

    store, index = await joined(open_bucket, await open_index(folder / "index.sqlite"), location="here", create=create)
    try:
        return (await read_format(store, location="here"))[0]
    finally:
        await index.close()


async def test_a_pair_is_made_once(tmp_path: Path) -> None:
    """The second process that is told to make it opens the first one's."""
    bucket = Bucket()
    made = await join(bucket, tmp_path, create=True)

    assert await join(bucket, tmp_path, create=True) == made
    assert await join(bucket, tmp_path) == made


async def test_two_that_make_it_at_once_get_one(tmp_path: Path) -> None:
    """One of them makes the format file, and all of them learn its id."""
    bucket = Bucket()
    made = await asyncio.gather(*(join(bucket, tmp_path, create=True) for _ in range(4)))

    assert len(set(made)) == 1


async def test_nothing_is_made_without_create(tmp_path: Path) -> None:
    """A URL with a typing error makes no repository."""
    bucket = Bucket()
    with pytest.raises(NotARepository, match="there is nothing yet"):
        await join(bucket, tmp_path)

    assert not await bucket.is_initialised()


async def test_making_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    """The format file is there, and the index does not know it yet."""
    bucket = Bucket()
    repository_id, _ = await read_format(bucket, location="here")
    with pytest.raises(NotARepository, match="cut off"):
        await join(bucket, tmp_path)

    assert await join(bucket, tmp_path, create=True) == repository_id
    assert await join(bucket, tmp_path) == repository_id


async def test_an_empty_index_never_gets_a_store_with_content(tmp_path: Path) -> None:
    """Its collection would remove everything."""
    bucket = Bucket()
    await read_format(bucket, location="here")
    bucket.used = True

    with pytest.raises(IndexDamaged, match="the index is empty, and the object store has content"):
        await join(bucket, tmp_path, create=True)


@pytest.mark.parametrize("create", [False, True])
async def test_an_index_of_another_repository_is_refused(tmp_path: Path, *, create: bool) -> None:
    """Neither of them is changed."""
    await join(Bucket(), tmp_path, create=True)
    other = Bucket()
    await read_format(other, location="there", new_id=OTHER_ID)

    with pytest.raises(NotARepository, match=f"has the repository {OTHER_ID}, and the index is that of"):
        await join(other, tmp_path, create=create)


@pytest.mark.parametrize("create", [False, True])
async def test_a_store_that_has_lost_its_format_file_is_refused(tmp_path: Path, *, create: bool) -> None:
    """It may be a wrong bucket or prefix: nothing is written to it."""
    await join(Bucket(), tmp_path, create=True)
    empty = Bucket()

    with pytest.raises(NotARepository, match="whose format file is not in the object store"):
        await join(empty, tmp_path, create=create)
    assert not await empty.is_initialised()


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    """This program does not know what is in it."""
    bucket = Bucket()
    await bucket.initialise(b'{"format":2,"cutting":1,"id":"' + OTHER_ID.encode() + b'"}')

    with pytest.raises(UnknownFormat):
        await join(bucket, tmp_path)


async def test_the_index_is_closed_if_the_store_cannot_be_opened(index: Index) -> None:
    """Its connections do not stay."""

    async def open_bucket() -> Bucket:
        raise InvalidSetting("store", "it cannot be reached")

    with pytest.raises(InvalidSetting):
        await joined(open_bucket, index, location="here")
    with pytest.raises(RuntimeError, match="after shutdown"):
        await index.tokens()


def test_a_location_is_shown_without_secrets() -> None:
    """Neither the text nor the representation has the user, the password or an option."""
    location = ObjectLocation.of(STORE, INDEX)

    assert str(location) == "s3://models/prefix with the index postgresql://127.0.0.1:5432/filestore"
    assert "secret" not in repr(location)
    assert location.index == INDEX


@pytest.mark.parametrize(
    ("url", "has"),
    [
        (INDEX, True),
        ("postgresql://filestore@127.0.0.1/filestore?password=secret", True),
        ("postgresql://filestore@127.0.0.1/filestore?passfile=/etc/pass", False),
        ("postgresql://127.0.0.1/filestore", False),
        ("postgresql://filestore:2/secret@127.0.0.1/filestore", False),
        ("postgresql://filestore:2?secret@127.0.0.1/filestore", False),
        ("postgresql://filestore:[secret@127.0.0.1/filestore", True),
    ],
)
def test_a_password_in_a_url_is_found(url: str, *, has: bool) -> None:
    """In both places where PostgreSQL takes one."""
    assert has_password(url) is has
    assert "secret" not in shown_url(url)


@pytest.mark.parametrize(
    ("url", "index", "error"),
    [
        (STORE, None, InvalidUrl),
        ("s3:///prefix", INDEX, InvalidUrl),
        ("s3://key:secret@models", INDEX, InvalidUrl),
        ("s3://models#part", INDEX, InvalidUrl),
        ("s3://[models", INDEX, InvalidUrl),
        (STORE, "mysql://root:secret@127.0.0.1/x", InvalidSetting),
        (STORE, "/srv/index.sqlite", InvalidSetting),
        (STORE, "postgresql://[secret", InvalidSetting),
        ("/srv/models", INDEX, InvalidSetting),
        ("http://127.0.0.1:8080", INDEX, InvalidSetting),
        (Path("/srv/models"), INDEX, InvalidSetting),
    ],
)
async def test_what_does_not_go_together_is_one_clear_error(
    url: str | Path, index: str | None, error: type[FilestoreError]
) -> None:
    """And it shows no password."""
    with pytest.raises(error) as caught:
        async with filestore.connect(url, index=index):
            pass
    assert "secret" not in str(caught.value)


def test_only_an_object_store_has_an_index_of_its_own() -> None:
    """A folder and a server have none that a user names."""
    assert object_location("/srv/models", None) is None
    assert object_location(STORE, INDEX) == ObjectLocation(STORE, INDEX)
    with pytest.raises(InvalidUrl, match="needs an index"):
        repository_folder(STORE)
