"""During a push, a directory changes, a repository loses chunks, or the caller cancels."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from filestore.core.commits import COMMIT_ATTEMPTS
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.errors import ChunksMissing, SourceChanged
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.transfer import push as push_module
from filestore.transfer.push import WINDOWS_IN_FLIGHT, manifest_of, plan_push, push
from filestore.transfer.sources.file import WINDOW_SIZE
from filestore.transfer.sources.push_cache import PushCache
from tests.support.cancels import cancelled_at_every_await
from tests.support.generator import octets
from tests.support.trees import Planted, Script, plant
from tests.support.watched import WatchedRepository

KIB = 1 << 10
LATER = 3_000_000_000
"""Nanoseconds after which a new file counts as settled."""

THINGS: dict[str, Planted] = {
    "a/small.txt": octets(1, 5 * KIB),
    "b/large.bin": octets(2, 700 * KIB),
    "c/empty": b"",
    "c/run.sh": Script(b"#!/bin/sh\n"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of less than one window, so that all of it is read before anything is sent."""
    return plant(tmp_path / "my_model", THINGS)


def _change(path: Path, how: str) -> None:
    match how:
        case "write":
            path.write_bytes(b"other")
            os.utime(path, (0, 0))
        case "touch":
            os.utime(path, (0, 0))
        case "remove":
            path.unlink()
        case "link":
            path.rename(path.with_name("moved"))
            path.symlink_to("moved")
        case _:
            path.parent.rename(path.parent.with_name("moved folder"))
            path.parent.touch()


@pytest.mark.parametrize("how", ["write", "touch", "remove", "link", "folder"])
@pytest.mark.parametrize("name", [name for name in THINGS if name != "c/run.sh"])
async def test_a_file_that_changes_after_it_was_read(watched: WatchedRepository, tree: Path, name: str, how: str) -> None:
    """A record is a tree at one moment.

    The change is found before the commit, the error names the file, and nothing is recorded.
    """

    async def meddle(verb: str) -> None:
        if verb == "put":
            _change(tree / name, how)

    watched.before = meddle
    with pytest.raises(SourceChanged, match=name):
        await push(watched, tree)
    assert [] == await watched.inner.records()


async def test_a_file_that_was_not_even_read_and_changes(
    watched: WatchedRepository, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the push cache spares from reading must be unchanged at the end too."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + LATER)
    with PushCache(tmp_path / "push_cache") as push_cache:
        await push(watched, tree, push_cache=push_cache)
        plant(tree, {"b/new.txt": b"new"})

        async def meddle(verb: str) -> None:
            if verb == "put":
                os.utime(tree / "b/large.bin", (0, 0))

        watched.before = meddle
        with pytest.raises(SourceChanged, match=r"b/large\.bin"):
            await push(watched, tree, push_cache=push_cache)
    assert 1 == len(await watched.inner.records())


async def test_a_file_that_changes_while_its_chunks_are_sent_again(watched: WatchedRepository, tree: Path) -> None:
    """No other bytes are sent in place of the old chunks."""
    repository = watched.inner
    assert isinstance(repository, LocalRepository)

    async def lose(verb: str) -> None:
        if verb == "commit":
            digests = [chunk.digest for chunk in (await manifest_of(tree)).chunks]
            async with repository._index.transaction() as transaction:
                await transaction.forget_chunks(DEFAULT_NAMESPACE, digests)
            os.utime(tree / "b/large.bin", (0, 0))

    watched.before = lose
    with pytest.raises(SourceChanged, match=r"b/large\.bin"):
        await push(watched, tree)
    assert [] == await repository.records()


async def test_chunks_that_are_lost_again_and_again(watched: WatchedRepository, tree: Path) -> None:
    """Headers and contents are sent again a few times. Then the push fails and says so."""
    repository = watched.inner
    assert isinstance(repository, LocalRepository)
    digests = [chunk.digest for chunk in (await manifest_of(tree)).chunks]

    async def lose(verb: str) -> None:
        if verb == "commit":
            async with repository._index.transaction() as transaction:
                await transaction.forget_chunks(DEFAULT_NAMESPACE, digests)

    watched.before = lose
    with pytest.raises(ChunksMissing):
        await push(watched, tree)
    assert COMMIT_ATTEMPTS * len(digests) == watched.chunks_put
    watched.before = _nothing
    assert (await manifest_of(tree)).digest == (await push(watched, tree)).record.digest


async def _nothing(_: str) -> None:
    return None


@pytest.mark.parametrize("verb", [push, plan_push])
@pytest.mark.parametrize("name", [".", "b/large.bin"])
async def test_a_cancel_leaves_nothing_open(local_repository: Repository, tree: Path, verb: object, name: str) -> None:
    """A cancel at any await, of the push of a directory or a file, leaves no descriptor open."""
    await push(local_repository, tree)  # the repository opens some files once and keeps them open
    before = _open_count()
    async for place in cancelled_at_every_await(lambda: verb(local_repository, tree / name)):  # type: ignore[operator]  # either verb
        assert before == _open_count(), f"after a cancel at await {place}"


def _open_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.slow
async def test_windows_are_read_into_again_once_they_are_encoded(watched: WatchedRepository, tmp_path: Path) -> None:
    """While all buffers of frames are in use, as many windows are read and asked about."""
    tree = tmp_path / "tree"
    for number in range(3):
        plant(tree, {f"{number}.bin": random.Random(number).randbytes(WINDOW_SIZE * WINDOWS_IN_FLIGHT)})
    all_asked = asyncio.Event()

    async def hold(verb: str) -> None:
        if watched.calls.count("missing") == 2 * WINDOWS_IN_FLIGHT:
            all_asked.set()
        if verb == "put":
            async with asyncio.timeout(60):
                await all_asked.wait()

    watched.before = hold
    pushed = await push(watched, tree)
    assert Manifest.parse(await watched.manifest(pushed.record.digest)).size == pushed.record.size


async def test_a_push_that_forgets_what_it_asked_for(
    watched: WatchedRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal chunks that are far apart are asked for again. The record is the same."""
    monkeypatch.setattr(push_module, "ASKED_LIMIT", 1)
    content = random.Random(1).randbytes(WINDOW_SIZE)
    tree = plant(tmp_path / "tree", {"a": content, "b": content})
    pushed = await push(watched, tree)
    assert (await manifest_of(tree)).digest == pushed.record.digest
