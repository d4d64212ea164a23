"""Use the library, then start a child: `python -m tests.support.forks METHOD REPOSITORY CACHE FOLDER WHOSE ID...`.

The parent pushes and resolves. Then a child resolves what is in the cache, resolves what is not, and pushes. Both print
what they did as JSON. METHOD: how the child is started; `loop` forks while the parent's event loop runs. WHOSE:
`parents`, the parent's objects, or `new`, objects that the child has made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from filestore import Cache, File, connect
from filestore.errors import FilestoreError
from filestore.http.client.repository import RemoteRepository
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache

SECONDS = 50


async def use(repository: Repository, cache: Cache, ids: list[str], source: Path) -> list[str]:
    """Return the result of each step: a resolved content, a pushed name, or the class of the error."""
    said = []
    for file_id in ids:
        try:
            path = await cache.resolve(File(id=file_id))
            async with cache.lease(File(id=file_id)) as leased:
                said.append(leased.read_text())
            assert path.exists()
        except FilestoreError as error:
            said.append(type(error).__name__)
    try:
        with PushCache(source.parent / "push_cache") as push_cache:
            said.append((await push(repository, source, push_cache=push_cache)).record.name)
    except FilestoreError as error:
        said.append(type(error).__name__)
    return said


async def use_new(url: str, root: Path, ids: list[str], source: Path) -> list[str]:
    """Do the same with new objects."""
    async with connect(url, token="a-token-for-tests") as repository, Cache(root, repository) as cache:
        return await use(repository, cache, ids, source)


def in_child(shared: tuple[Repository, Cache] | None, url: str, root: Path, ids: list[str], source: Path) -> list[str]:
    """Run a child's steps in its own event loop, with the objects that it shares with its parent, if any."""
    try:
        if shared is None:
            return asyncio.run(use_new(url, root, ids, source))
        return asyncio.run(use(*shared, ids, source))
    except FilestoreError as error:
        return [type(error).__name__]


def _put(queue: Any, *arguments: Any) -> None:
    queue.put(in_child(*arguments))


def started(method: str, *arguments: Any) -> list[str]:
    """Start a child in this way, and return what it reports."""
    if method == "pool":
        # Data loaders and worker pools start their processes in this way.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            return pool.submit(in_child, *arguments).result(SECONDS)
    context = multiprocessing.get_context("fork" if method == "loop" else method)
    queue = context.Queue()
    child = context.Process(target=_put, args=(queue, *arguments))  # type: ignore[attr-defined]  # each context has it
    child.start()
    said: list[str] = queue.get(timeout=SECONDS)
    child.join()
    return said


async def parent(given: argparse.Namespace) -> tuple[Any, ...]:
    """Use everything. Start the child here if the loop must be running then."""
    source = given.folder / "of-parent.txt"
    child_source = given.folder / "of-child.txt"
    opened = connect(given.repository, token="a-token-for-tests")
    repository = await opened.__aenter__()
    cache = Cache(given.cache, repository)
    said = await use(repository, cache, given.ids[:1], source)
    shared = (repository, cache)
    inherited = shared if given.whose == "parents" else None
    arguments = (inherited, given.repository, given.cache, given.ids, child_source)
    child: list[str] = []
    if given.method == "loop":
        child = started(given.method, *arguments)
    elif given.whose == "new" and not isinstance(repository, RemoteRepository):
        # A repository in a folder is closed before the fork.
        await opened.__aexit__(None, None, None)
    # Delete `opened` too, because the repository is closed with it.
    return said, arguments, child, shared, opened


def main() -> None:
    """Print what parent and child did, and what the parent does after that."""
    parser = argparse.ArgumentParser()
    for name, kind in {"method": str, "repository": str, "cache": Path, "folder": Path, "whose": str}.items():
        parser.add_argument(name, type=kind)
    parser.add_argument("ids", nargs="+")
    given = parser.parse_args()
    # Python 3.12 warns that a process with threads was forked. That is what this program tests.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")

    async def again(shared: tuple[Repository, Cache]) -> list[str]:
        with_content = await use(shared[0], shared[1], given.ids, given.folder / "afterwards.txt")
        await shared[1].close()
        await shared[0].close()
        return with_content

    # There is one loop, so that the parent continues with its own connections.
    with asyncio.Runner() as runner:
        said, arguments, child, shared, _opened = runner.run(parent(given))
        if given.method != "loop":
            child = started(given.method, *arguments)
        afterwards = [] if given.whose == "new" else runner.run(again(shared))
    sys.stdout.write(json.dumps({"parent": said, "child": child, "afterwards": afterwards}))


if __name__ == "__main__":
    main()
