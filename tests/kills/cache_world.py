"""What the processes of the kills of caches share: a repository, an origin of URLs, a cache folder, and its right content."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filestore.backends import connect, open_backend
from filestore.cache.inventory import ENTRY_SIZE
from filestore.core.references import Directory, File, FileURL
from filestore.download.download import DownloadLimits
from filestore.transfer.push import push
from tests.support.nginx import Nginx
from tests.support.trees import Planted, Script, plant, standing

BLOCK_SIZE = 640 << 10
"""Bytes of random content. Neighbours have blocks in common, so that one is a seed of the other."""
FILES, TREES, URLS = 6, 4, 4
_ROOM = 5
"""How many of the items the cache has space for."""
LIMITS = DownloadLimits(private_allowed=True)


class Item(NamedTuple):
    """One thing that processes get from the cache, with the right content."""

    name: str
    wanted: File | Directory | FileURL
    content: bytes | Mapping[str, Planted]

    @property
    def is_tree(self) -> bool:
        """Whether its path is a folder."""
        return isinstance(self.wanted, Directory)

    def is_at(self, path: Path) -> bool:
        """Return whether `path` has all of the right content, and nothing else."""
        try:
            if isinstance(self.content, bytes):
                return path.read_bytes() == self.content
            return path.is_dir() and standing(path) == self.content
        except OSError:
            return False

    def begins_at(self, path: Path) -> bool:
        """Return whether the first bytes at `path` are right. This takes a few microseconds."""
        if isinstance(self.content, bytes):
            name, content = "", self.content
        else:
            name, content = next((name, each) for name, each in self.content.items() if isinstance(each, bytes))
        try:
            with (path / name).open("rb") as file:
                return file.read(64) == content[:64]
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class World:
    """The folders and the items."""

    folder: Path
    items: Mapping[str, Item]
    size_limit: int

    @property
    def root(self) -> Path:
        """The repository."""
        return self.folder / "repository"

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        return self.folder / "cache"


def make_world(folder: Path, origin: Nginx, *, seed: int) -> World:
    """Push files and directories, and put files at the origin. Make and use an event loop, which ends here."""
    chance = random.Random(seed)
    blocks = [chance.randbytes(BLOCK_SIZE) for _ in range(FILES + TREES + URLS + 1)]
    items = asyncio.run(_push_all(folder, blocks))
    for number in range(URLS):
        name = f"url-{number}.bin"
        # The first two have the content of a file of the repository, so that both are one entry.
        first = number if number < URLS // 2 else FILES + TREES + number
        content = blocks[first] + blocks[first + 1]
        items[name] = Item(name, FileURL(origin.put(name, content)), content)
    size = 2 * BLOCK_SIZE + ENTRY_SIZE + 2 * 4096
    return World(folder, items, _ROOM * size)


async def _push_all(folder: Path, blocks: list[bytes]) -> dict[str, Item]:
    items = {}
    store, index = await open_backend(folder / "repository", create=True)
    await index.close()
    await store.close()
    async with connect(str(folder / "repository")) as repository:
        for number in range(FILES):
            path = folder / f"file-{number}.bin"
            content = blocks[number] + blocks[number + 1]
            path.write_bytes(content)
            record = (await push(repository, path)).record
            items[path.name] = Item(path.name, File(id=record.id), content)
            path.unlink()
        for number in range(TREES):
            things: dict[str, Planted] = {
                "weights.bin": blocks[FILES + number],
                "deep/more.bin": blocks[FILES + number - 1],
                "deep/small.txt": b"small %d\n" % number * 50,
                "run.sh": Script(b"#!/bin/sh\nexit %d\n" % number),
                "empty": b"",
            }
            path = plant(folder / f"tree-{number}", things)
            record = (await push(repository, path)).record
            items[path.name] = Item(path.name, Directory(id=record.id), things)
    return items
