"""What each version of a name adds over the older ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.repository.local import LocalRepository
from filestore_cli import version_sizes
from filestore_cli.version_sizes import bytes_added
from tests.support.fetching_trees import memory_repository, stored
from tests.support.generator import octets
from tests.support.watched import WatchedRepository

KIB = 1 << 10
A, B, C = (octets(seed, 64 * KIB) for seed in range(3))
NAME = "model.bin"


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[LocalRepository]:
    """A repository with four versions of a name."""
    async with memory_repository(tmp_path) as repository:
        for content in (A + A, A + B, B + C + C, A):
            await stored(repository, content, name=NAME, chunk_size=64 * KIB)
        await stored(repository, C, name="other.bin", chunk_size=64 * KIB)
        yield repository


async def versions(repository: LocalRepository) -> list[Record]:
    """All versions, the newest first."""
    return (await repository.versions(Reference.of_name(NAME))).records


async def test_each_version_adds_the_chunks_that_no_older_one_has(repository: LocalRepository) -> None:
    """A chunk that is there twice counts once, and another name does not count."""
    records = await versions(repository)
    added = await bytes_added(repository, NAME, records, is_whole=True)
    assert [0, 64 * KIB, 64 * KIB, 64 * KIB] == [added[record.id] for record in records]
    # The older ones are read where only the newest are listed.
    assert added == await bytes_added(repository, NAME, records[:1], is_whole=False)


async def test_a_version_that_cannot_be_read_is_left_out(repository: LocalRepository) -> None:
    """The others are counted as if it was not there."""
    records = await versions(repository)
    await repository._store.remove_manifest(repository.namespace, ObjectName(records[2].digest))
    added = await bytes_added(repository, NAME, records, is_whole=True)
    assert [0, 128 * KIB, None, 64 * KIB] == [added.get(record.id) for record in records]


@pytest.mark.parametrize("limit", ["VERSIONS_LIMIT", "MANIFESTS_LIMIT"])
async def test_too_much_to_read_gives_nothing(repository: LocalRepository, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond each of the two limits."""
    records = await versions(repository)
    monkeypatch.setattr(version_sizes, limit, 3)
    assert {} == await bytes_added(repository, NAME, records, is_whole=True)
    assert {} == await bytes_added(repository, NAME, records[:1], is_whole=False)


async def test_manifests_that_are_surely_too_large_are_not_read(repository: LocalRepository) -> None:
    """A chunk has at most 4 MiB, so the sizes of the versions tell."""
    watched = WatchedRepository(repository)
    records = [replace(record, size=1 << 40) for record in await versions(repository)]
    assert {} == await bytes_added(watched, NAME, records, is_whole=True)
    assert "manifest" not in watched.calls
