"""The processes that share a cache in the kills of caches: users that come and go, and one that keeps what it uses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.references import File
from tests.kills.cache_world import LIMITS, Item, World
from tests.kills.children import Channel, Work

_LOOK_SECONDS = 0.03
"""How long a keeper waits between two looks at what it uses."""


class WrongContentError(AssertionError):
    """A process got a path from the cache, and its bytes are wrong or missing while its lease lives."""


@asynccontextmanager
async def _opened(world: World) -> AsyncIterator[Cache]:
    async with (
        connect(str(world.root), read_only=True) as repository,
        Cache(world.cache, repository, size_limit=world.size_limit, downloads=LIMITS) as cache,
    ):
        yield cache


def using(world: World, names: list[str], way: str, *, prepare: Callable[[], None] = lambda: None) -> Work:
    """Return the work of a process that uses items one after the other, each in the given way, and checks their bytes.

    The way is `resolve`, `lease` or `open`. `prepare` is called first.
    """

    async def use() -> None:
        async with _opened(world) as cache:
            for name in names:
                await _use(cache, world.items[name], way)

    def run(_: Channel) -> None:
        prepare()
        asyncio.run(use())

    return run


def keeping(world: World, name: str) -> Work:
    """Return the work of a process that uses an item until it is told to stop, and looks at it all the time."""
    item = world.items[name]

    def run(channel: Channel) -> None:
        asyncio.run(_keep(world, item, channel))

    return run


async def _keep(world: World, item: Item, channel: Channel) -> None:
    async with _opened(world) as cache, cache.lease(item.wanted) as path:
        channel.say("has it")
        while True:
            said = await asyncio.to_thread(channel.hear, _LOOK_SECONDS)
            if said is None:
                _check(item.begins_at(path), item, path)
                continue
            _check(item.is_at(path), item, path)
            channel.say("is right")
            if said != "look":
                return


async def _use(cache: Cache, item: Item, way: str) -> None:
    if way == "open" and isinstance(item.wanted, File):
        await _read_while_fetched(cache, item)
    elif way == "resolve":
        path = await cache.resolve(item.wanted)
        _check(item.is_at(path), item, path)
    else:
        async with cache.lease(item.wanted) as path:
            _check(item.is_at(path), item, path)


async def _read_while_fetched(cache: Cache, item: Item) -> None:
    assert isinstance(item.wanted, File)
    assert isinstance(item.content, bytes)
    chance = random.Random(len(item.name))
    async with cache.open(item.wanted) as opened:
        assert opened.size == len(item.content)
        for _ in range(4):
            start = chance.randrange(opened.size)
            stop = min(opened.size, start + 70_000)
            _check(await opened.read(start, stop) == item.content[start:stop], item, Path(f"bytes {start} to {stop}"))
        path = await opened.whole()
        _check(item.is_at(path), item, path)


def _check(is_right: bool, item: Item, path: Path) -> None:  # noqa: FBT001  # what is checked
    if not is_right:
        raise WrongContentError(f"{item.name}: its bytes at {path} are wrong or missing")
