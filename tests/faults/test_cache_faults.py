from __future__ import annotations

import json
import signal
import subprocess
from itertools import count
from pathlib import Path

import pytest

from filestore.cache import Cache, verify_cache
from filestore.cache.cache import _ResolveRequest
from filestore.cache.leases import Leases
from filestore.core.records import Kind, Record
from filestore.core.references import Directory
from filestore.repository.protocol import Repository
from filestore.transfer.push import push
from tests.support.cancels import cancelled_at_every_await
from tests.support.commands import start_module
from tests.support.generator import octets, prose
from tests.support.resolvers import ResolveResult, resolve
from tests.support.trees import Planted, Script, plant, standing

MIB = 1 << 20

THINGS: dict[str, Planted] = {
    **{f"layers/{number}.bin": octets(number, 8 * MIB) for number in range(8)},
    "config.json": prose(1, 500),
    "run.sh": Script(b"#!/bin/sh\n"),
}
SMALL: dict[str, Planted] = {"a/b.txt": prose(1, 100), "c": Script(prose(2, 300_000)), "d": b""}


@pytest.fixture
async def record(local_repository: Repository, tmp_path: Path) -> Record:
    """A directory of 64 MiB in the repository."""
    return (await push(local_repository, plant(tmp_path / "model", THINGS))).record


@pytest.fixture
async def small_record(local_repository: Repository, tmp_path: Path) -> Record:
    """A directory of three files."""
    return (await push(local_repository, plant(tmp_path / "small", SMALL))).record


def start(tmp_path: Path, cache: str, record: Record, *options: str) -> subprocess.Popen[str]:
    """Start a process that resolves the directory."""
    return start_module("tests.support.resolvers", tmp_path / "repository", tmp_path / cache, record.id, *options)


def result(process: subprocess.Popen[str]) -> ResolveResult:
    """Return the result that it prints at its end."""
    said, errors = process.communicate()
    assert (0, "") == (process.returncode, errors)
    return ResolveResult(*json.loads(said))


@pytest.mark.slow
def test_sixteen_tasks_in_four_processes_fetch_once(record: Record, tmp_path: Path) -> None:
    """One process fetches for all of them. The others find its tree."""
    processes = [start(tmp_path, "cache", record, "--tasks", "4") for _ in range(4)]
    results = [result(process) for process in processes]
    (path,) = {found.path for found in results}
    assert THINGS == standing(Path(path))
    assert 1 == sum(found.calls.count("manifest") for found in results)
    assert [0, 0, 0] == sorted(found.chunks_got for found in results)[:3]


@pytest.mark.slow
async def test_a_resolve_that_is_killed_is_continued(record: Record, tmp_path: Path) -> None:
    """A tree is visible only as a whole. The next resolve keeps what was fetched, and leaves no other files."""
    killed = start(tmp_path, "cache", record, "--kill-at-get", "7")
    killed.communicate()
    assert -signal.SIGKILL == killed.returncode
    assert [] == list((tmp_path / "cache").glob("*/*/trees/*/*/*"))
    whole = await resolve(str(tmp_path / "repository"), tmp_path / "other cache", record.id)
    found = await resolve(str(tmp_path / "repository"), tmp_path / "cache", record.id)
    assert THINGS == standing(Path(found.path))
    assert 0 < found.chunks_got < whole.chunks_got
    assert [] == list((tmp_path / "cache").glob("*/*/staging/*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_resolve_that_is_killed_at_any_call_is_continued(small_record: Record, tmp_path: Path) -> None:
    """After a kill at any system call, the next resolve gives the whole tree, and leaves no other files."""
    said, errors = start(tmp_path, "caches", small_record, "--kill-at-every-call").communicate()
    assert "" == errors
    assert 20 < int(said)
    for place in range(1, int(said) + 1):
        cache = tmp_path / "caches" / str(place)
        assert {} == Leases(cache).held()
        found = await resolve(str(tmp_path / "repository"), cache, small_record.id)
        assert SMALL == standing(Path(found.path))
        assert [] == list(cache.glob("*/*/staging/*"))
        assert [] == await verify_cache(cache)


@pytest.mark.slow
async def test_a_resolve_that_is_cancelled_at_any_await_is_continued(
    local_repository: Repository, small_record: Record, tmp_path: Path
) -> None:
    """After a cancel at any await, the next resolve gives the whole tree, and leaves no other files."""
    wanted = Directory(id=small_record.id)
    caches = (tmp_path / "caches" / str(number) for number in count())
    used: list[Path] = []

    async def resolve_again() -> None:
        used.append(next(caches))
        cache = Cache(used[-1], local_repository)
        # `resolve` runs this in its own task. Here the cancelled task must be the one that waits.
        hold = cache._leases.hold()
        asked = _ResolveRequest(await cache._open_entry_store(), Kind.DIRECTORY, hold, None, None)
        try:
            await cache._fill(asked, wanted.reference, None)
        finally:
            hold.release()

    places = [place async for place in cancelled_at_every_await(resolve_again)]
    assert 15 < len(places)
    for cache in used:
        assert {} == Leases(cache).held()
        assert SMALL == standing(await Cache(cache, local_repository).resolve(wanted))
        assert [] == list(cache.glob("*/*/staging/*"))
