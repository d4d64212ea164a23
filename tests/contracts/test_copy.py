"""A copy between a folder and any other repository, in both directions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.commits import NewCommit
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.repository.protocol import Repository
from filestore.transfer.copy import copy, plan_copy
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from tests.support.frames import buffer_for, contents, encoded, manifest

SIZE = 1000


@pytest.fixture
async def folder_repository(tmp_path: Path) -> AsyncIterator[Repository]:
    """The other repository."""
    async with connect(tmp_path / "other", create=True) as repository:
        yield repository


@pytest.fixture
def name() -> str:
    """A name with an owner. The servers that tests share have each owner in one namespace only."""
    return f"team-{secrets.token_hex(8)}/model"


async def store(repository: Repository, name: str, *seeds: int, message: str = "") -> Record:
    """Store a file of two chunks for each seed."""
    chunks = [chunk for seed in seeds for chunk in contents(2, size=SIZE, seed=seed)]
    await repository.put([encoded(chunk) for chunk in chunks])
    return await repository.commit(manifest(chunks).encoded, name=name, commit=NewCommit(message))


async def frames_of(repository: Repository, record: Record) -> list[bytes | None]:
    """The stored frames of a record."""
    chunks = Manifest.parse(await repository.manifest(record.digest)).chunks
    found = await repository.get([chunk.digest for chunk in chunks], buffer_for(len(chunks)))
    return [None if frame is None else bytes(frame) for frame in found]


@pytest.mark.parametrize("is_target", [True, False])
async def test_only_what_is_missing_moves(
    repository: Repository, folder_repository: Repository, name: str, *, is_target: bool
) -> None:
    """A copy has the name, the kind, the message and the very frames; a second one sends nothing."""
    source, target = (folder_repository, repository) if is_target else (repository, folder_repository)
    await store(target, "there", 1)
    record = await store(source, name, 1, 2, message="Why.")

    plan = await plan_copy(source, name, to=target)
    assert (4 * SIZE, 2 * SIZE, 2 * SIZE, 1) == (plan.size, plan.bytes_new, plan.bytes_shared, plan.version_count)
    copied = await copy(source, name, to=target)
    expected = sum(len(encoded(chunk).data) for chunk in contents(2, size=SIZE, seed=2))
    assert (expected, 2 * SIZE, 1) == (copied.bytes_sent, copied.bytes_shared, copied.version_count)
    assert (record.digest, name) == (copied.record.digest, copied.record.full_name)
    assert "Why." == (await target.find_commit(name)).message
    assert await frames_of(source, record) == await frames_of(target, copied.record)

    again = await copy(source, record, to=target, name="other", message="Mine.")
    assert (0, 4 * SIZE) == (again.bytes_sent, again.bytes_shared)
    assert ("Mine.", record.digest) == ((found := await target.find_commit("other")).message, found.digest)


async def test_a_new_name_in_the_same_repository(repository: Repository, name: str) -> None:
    """Nothing moves. An older version under its own name becomes the newest one."""
    first = await store(repository, name, 1, message="First.")
    await store(repository, name, 2)
    named = await copy(repository, f"{name}@~1", name="model-stable")
    assert (0, first.digest) == (named.bytes_sent, (await repository.record("model-stable")).digest)
    assert "First." == (await repository.find_commit("model-stable")).message
    await copy(repository, f"{name}@~1", message="Back.")
    assert first.digest == (await repository.record(name)).digest
    assert ["Back.", "", "First."] == [commit.message for commit in await repository.history(name)]


@pytest.mark.parametrize("is_target", [True, False])
async def test_all_versions(repository: Repository, folder_repository: Repository, name: str, *, is_target: bool) -> None:
    """The history of the name goes with its messages and tags. Later only what is new goes."""
    source, target = (folder_repository, repository) if is_target else (repository, folder_repository)
    for seed in (1, 2, 1):
        await store(source, name, seed, message=f"Number {seed}.")
    await source.set_label(name, "v2", revision="~1")

    plan = await plan_copy(source, name, to=target, all_versions=True)
    assert (6 * SIZE, 4 * SIZE, 3) == (plan.size, plan.bytes_new, plan.version_count)
    copied = await copy(source, name, to=target, all_versions=True)
    assert (3, 1, plan.bytes_shared) == (copied.version_count, copied.tag_count, copied.bytes_shared)
    said = [(commit.message, commit.digest) for commit in await source.history(name)]
    assert said == [(commit.message, commit.digest) for commit in await target.history(name)]
    assert (await source.record(f"{name}@v2")).digest == (await target.record(f"{name}@v2")).digest

    again = await copy(source, name, to=target, all_versions=True)
    assert (0, 0, copied.record.id) == (again.version_count, again.tag_count, again.record.id)
    await store(source, name, 3, message="Number 3.")
    more = await copy(source, name, to=target, all_versions=True)
    assert (1, 4) == (more.version_count, len(await target.history(name)))


async def test_a_directory_stays_one(repository: Repository, folder_repository: Repository, tmp_path: Path) -> None:
    """It has the kind of the original, and is fetched as a tree."""
    source = tmp_path / "my_model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    await push(folder_repository, source)
    copied = await copy(folder_repository, "my_model.zip", to=repository)
    assert Kind.DIRECTORY is copied.record.kind
    await fetch_tree(repository, "my_model.zip", target=tmp_path / "back")
    assert "{}" == (tmp_path / "back/config.json").read_text()
