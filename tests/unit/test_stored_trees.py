"""Stored directories that the requests of a server process share."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from filestore.core.content_digests import FileDigests
from filestore.core.digest import Digest
from filestore.errors import Busy, LimitExceeded, NotFound
from filestore.format.zip.read import ZipLimits
from filestore.http.server.stored_trees import SharedTrees
from filestore.repository.local import LocalRepository
from filestore.transfer.push import push
from tests.support.trees import plant


async def stored(repository: LocalRepository, folder: Path, count: int) -> Digest:
    """Store a directory with so many files."""
    things = {f"{number:04}.txt": f"{folder.name} {number}".encode() for number in range(count)}
    return (await push(repository, plant(folder, things))).record.digest


async def test_readers_at_the_same_time_open_a_tree_once(repository: LocalRepository, tmp_path: Path) -> None:
    """And a later one uses what is in memory."""
    digest = await stored(repository, tmp_path / "a", 3)
    trees = SharedTrees(wait_seconds=60)

    async def read() -> object:
        async with trees.reading(repository, digest) as opened:
            return opened.tree

    found = {id(tree) for tree in await asyncio.gather(*(read() for _ in range(5)))}
    assert {id(await read())} == found
    assert trees.size > 0


async def test_a_tree_that_nobody_uses_makes_room(repository: LocalRepository, tmp_path: Path) -> None:
    """The one that was used last stays the longest."""
    first, second, third = [await stored(repository, tmp_path / name, 10) for name in "abc"]
    trees = SharedTrees(wait_seconds=60)
    async with trees.reading(repository, first) as opened:
        size = trees.size
    limited = SharedTrees(wait_seconds=60, limit=2 * size + size // 2)
    kept = []
    for digest in (first, second, first, third, first):
        async with limited.reading(repository, digest) as opened:
            kept.append(opened)
    assert kept[0] is kept[2] is kept[4]
    assert limited.size <= 2 * size + size // 2
    async with limited.reading(repository, second) as opened:
        assert opened is not kept[1]


async def test_a_tree_waits_while_others_use_all_memory(repository: LocalRepository, tmp_path: Path) -> None:
    """Then it is opened, or refused after a time. One that is open is given at once."""
    first, second = [await stored(repository, tmp_path / name, 10) for name in "ab"]
    trees, impatient = SharedTrees(wait_seconds=60, limit=1), SharedTrees(wait_seconds=0, limit=1)

    async def read(digest: Digest) -> None:
        async with trees.reading(repository, digest):
            pass

    async with trees.reading(repository, first):
        waiting = asyncio.create_task(read(second))
        await read(first)
        assert not waiting.done()
    await waiting
    async with impatient.reading(repository, first):
        with pytest.raises(Busy):
            async with impatient.reading(repository, second):
                pass


async def test_a_tree_that_cannot_be_opened_is_not_kept(repository: LocalRepository, tmp_path: Path) -> None:
    """The next request tries again."""
    digest = await stored(repository, tmp_path / "a", 10)
    trees = SharedTrees(wait_seconds=60, limits=ZipLimits(entries=9))
    for _ in range(2):
        with pytest.raises(LimitExceeded):
            async with trees.reading(repository, digest):
                pass
        with pytest.raises(NotFound):
            async with trees.reading(repository, Digest(bytes(32))):
                pass
    assert 0 == trees.size


async def test_digests_are_asked_for_until_they_are_known(repository: LocalRepository, tmp_path: Path) -> None:
    """Those of a wrong number of files are not believed."""
    digest = await stored(repository, tmp_path / "a", 2)
    trees = SharedTrees(wait_seconds=60)
    packed = bytes(range(104))
    for known, expected in ((None, None), (packed, FileDigests(packed[52:84], packed[84:]))):
        if known is not None:
            async with repository._index.transaction() as transaction:
                await transaction.set_tree_digests(repository.namespace, digest, known)
        async with trees.reading(repository, digest) as opened:
            entry = opened.find("0001.txt")
            assert entry is not None
            assert expected == opened.digests_of(entry)


async def test_only_some_entries_are_unpacked_at_the_same_time() -> None:
    """Another one waits, and is refused after a time. A namespace leaves half of the turns to the others."""
    trees, impatient = SharedTrees(wait_seconds=60), SharedTrees(wait_seconds=0)
    async with AsyncExitStack() as stack:
        for namespace in ("one", "two"):
            for _ in range(4):
                await stack.enter_async_context(impatient.unpacking(namespace))
            with pytest.raises(Busy):
                await stack.enter_async_context(impatient.unpacking(namespace))
        with pytest.raises(Busy):
            await stack.enter_async_context(impatient.unpacking("three"))
    async with impatient.unpacking("three"):
        pass

    async def unpack() -> None:
        async with trees.unpacking("one"):
            pass

    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(trees.unpacking("one"))
        waiting = asyncio.create_task(unpack())
        async with trees.unpacking("two"):
            assert not waiting.done()
    await waiting
