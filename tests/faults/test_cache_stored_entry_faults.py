"""Processes that resolve one file or folder of a stored directory at once, are killed, and are cancelled."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest

from filestore.cache import Cache, verify_cache
from filestore.cache.cache import _ResolveRequest
from filestore.cache.leases import Leases
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from filestore.transfer.stored_tree import StoredTree
from tests.support.cancels import cancelled_at_every_await
from tests.support.commands import start_module
from tests.support.generator import octets, prose
from tests.support.resolvers import ResolveResult, resolve
from tests.support.trees import Planted, Script, plant, standing
from tests.support.watched import WatchedRepository

SMALL, LARGE, FOLDER = "a/b.txt", "a/large.bin", "a"
THINGS: dict[str, Planted] = {
    "a/b.txt": prose(1, 100),
    "a/large.bin": octets(2, SEGMENT_MIN),
    "a/run.sh": Script(prose(3, 200)),
    "b": b"",
}
EACH = pytest.mark.parametrize("path", [SMALL, LARGE, FOLDER])


@pytest.fixture
async def record(local_repository: Repository, tmp_path: Path) -> Record:
    """A directory of four files."""
    return (await push(local_repository, plant(tmp_path / "model", THINGS))).record


def is_right(found: Path, path: str) -> bool:
    """Whether what was resolved has all of the right content, and nothing else."""
    if path == FOLDER:
        return standing(found) == {name.removeprefix("a/"): thing for name, thing in THINGS.items() if name != "b"}
    return found.read_bytes() == THINGS[path]


@pytest.mark.slow
@EACH
async def test_tasks_in_four_processes_fetch_once(
    local_repository: Repository, record: Record, tmp_path: Path, path: str
) -> None:
    """One process fetches for all of them: what the others receive is the list of entries at most."""
    watched = WatchedRepository(local_repository)
    await StoredTree.open(watched, record.digest)
    arguments = (tmp_path / "repository", tmp_path / "cache", f"{record.id}:{path}", "--tasks", "4")
    processes = [start_module("tests.support.resolvers", *arguments) for _ in range(4)]
    results = []
    for process in processes:
        said, errors = process.communicate()
        assert (0, "") == (process.returncode, errors)
        results.append(ResolveResult(*json.loads(said)))
    (found,) = {result.path for result in results}
    assert is_right(Path(found), path)
    assert all(got <= watched.chunks_got for got in sorted(result.chunks_got for result in results)[:3])
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@EACH
async def test_a_resolve_that_is_killed_at_any_call_is_continued(record: Record, tmp_path: Path, path: str) -> None:
    """After a kill at any system call, the next resolve gives the whole content, and leaves no other files."""
    wanted = f"{record.id}:{path}"
    arguments = (tmp_path / "repository", tmp_path / "caches", wanted, "--kill-at-every-call")
    said, errors = start_module("tests.support.resolvers", *arguments).communicate()
    assert "" == errors
    assert 20 < int(said)
    for place in range(1, int(said) + 1):
        cache = tmp_path / "caches" / str(place)
        assert {} == Leases(cache).held()
        found = await resolve(str(tmp_path / "repository"), cache, wanted)
        assert is_right(Path(found.path), path)
        assert [] == list(cache.glob("*/*/staging/*"))
        assert [] == await verify_cache(cache)


@pytest.mark.slow
@pytest.mark.parametrize("path", [SMALL, FOLDER])
async def test_a_resolve_that_is_cancelled_at_any_await_is_continued(
    local_repository: Repository, record: Record, tmp_path: Path, path: str
) -> None:
    """After a cancel at any await, the next resolve gives the whole content, and leaves no other files."""
    reference = Reference(id=record.id, entry_path=path)
    caches = (tmp_path / "caches" / str(number) for number in count())
    used: list[Path] = []

    async def resolve_again() -> None:
        used.append(next(caches))
        cache = Cache(used[-1], local_repository)
        # `resolve` runs this in its own task. Here the cancelled task must be the one that waits.
        hold = cache._leases.hold()
        asked = _ResolveRequest(await cache._open_entry_store(), Kind.FILE, hold, None, None)
        try:
            await cache._fill_entry(asked, reference, None, record)
        finally:
            hold.release()

    places = [place async for place in cancelled_at_every_await(resolve_again)]
    assert 15 < len(places)
    for cache in used:
        assert {} == Leases(cache).held()
        assert is_right(await Cache(cache, local_repository).resolve(str(reference)), path)
        assert [] == list(cache.glob("*/*/staging/*"))
