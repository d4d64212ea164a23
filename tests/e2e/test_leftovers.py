"""What fetches leave: nothing where they are refused; what was cut is listed, used by the next one, and removed on request."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.digest import Digest
from filestore.core.records import Kind, Record, record_from_json
from filestore.transfer.fetch import fetch
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.leftovers import leftovers, remove_leftover
from filestore.transfer.target import staging_folder, tree_label
from tests.support.commands import SCRIPTS, Home
from tests.support.disks import refuse_locks, small_disk
from tests.support.generator import octets
from tests.support.trees import plant, standing
from tests.support.watched import WatchedRepository

SIZE = 3 << 20


@pytest.fixture
def file(home: Home, tmp_path: Path) -> Record:
    """A stored file."""
    (tmp_path / "model.bin").write_bytes(octets(1, SIZE))
    return _record(home, tmp_path / "model.bin")


@pytest.fixture
def tree(home: Home, tmp_path: Path) -> Record:
    """A stored directory."""
    return _record(home, plant(tmp_path / "model", {"small": b"1", "weights.bin": octets(2, SIZE)}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where things are fetched to."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def _record(home: Home, path: Path) -> Record:
    pushed = home.result("push", path)
    return record_from_json(pushed)


@asynccontextmanager
async def fetching(home: Home, record: Record, target: Path) -> AsyncIterator[Path]:
    """Start a fetch, and return its staging when it has begun to receive."""
    waits = asyncio.Event()
    # The directory of a tree is read before anything is staged.
    last = 2 if record.kind is Kind.DIRECTORY else 1

    async def before(verb: str) -> None:
        if verb == "get" and watched.calls.count("get") >= last:
            waits.set()
            await asyncio.Event().wait()

    async with connect(str(home.data)) as repository:
        watched = WatchedRepository(repository, before=before)
        run = fetch_tree if record.kind is Kind.DIRECTORY else fetch
        task = asyncio.create_task(run(watched, record, target=target))
        await waits.wait()
        (staged,) = target.parent.glob(".*.filestore-partial")
        try:
            yield staged
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def names(folder: Path) -> list[str]:
    """Return all names in a folder, also hidden ones."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_refused_fetch_leaves_nothing(home: Home, place: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """A full disk is noticed before anything is fetched, and no hidden file or folder is left."""
    record: Record = request.getfixturevalue(kind)
    with small_disk(place / "disk", "size=1m"):
        assert "is full" in home.failure("fetch", record.id, "-o", place / "disk/target")
        assert [] == names(place / "disk")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_refused_warm_leaves_nothing(home: Home, tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """Nor in the staging of a cache."""
    record: Record = request.getfixturevalue(kind)
    with small_disk(tmp_path / "disk", "size=1m"):
        home.failure("cache", "warm", record.id, "--cache", tmp_path / "disk/cache", "--quiet")
        assert [] == list((tmp_path / "disk/cache").glob("*/*/staging/*"))


@pytest.mark.slow
async def test_a_refused_fetch_keeps_what_an_earlier_one_has_left(home: Home, file: Record, place: Path) -> None:
    """Only a leftover without content is removed."""
    with small_disk(place / "disk", "size=4m"):
        async with fetching(home, file, place / "disk/target") as staged:
            pass
        staged.write_bytes(octets(1, SIZE)[: SIZE // 2])
        (place / "disk/other").write_bytes(bytes(2 << 20))
        await asyncio.to_thread(home.failure, "fetch", file.id, "-o", place / "disk/target")
        assert [staged.name, "other"] == names(place / "disk")


@pytest.mark.slow
def test_what_a_cut_fetch_has_left_is_listed_and_removed(home: Home, file: Record, tree: Record, place: Path) -> None:
    """This holds for files and directories. Everything else in the folder stays."""
    plant(place, {"mine": b"1", ".hidden": b"2"})
    plant(staging_folder(place / "tree", tree.digest), {"weights.bin": octets(2, 100_000)})
    (place / f".{file.digest.hex()[:32]}-{'0' * 16}.filestore-partial").write_bytes(octets(1, 200_000))
    listed = home.result("leftovers", place)
    assert [(False, False, False)] * 2 == [(each["in_use"], each["needed"], each["removed"]) for each in listed["leftovers"]]
    assert 300_000 <= listed["stored_size"] == sum(each["stored_size"] for each in listed["leftovers"])
    done = home.run("leftovers", cwd=place)
    assert "2 leftovers" in done.stdout
    assert "--remove" in done.stderr
    removed = home.result("leftovers", place, "--remove")
    assert [True, True] == [each["removed"] for each in removed["leftovers"]]
    assert {"mine": b"1", ".hidden": b"2"} == standing(place)
    assert [] == home.result("leftovers", place)["leftovers"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "tree"])
async def test_what_a_running_fetch_uses_stays(home: Home, place: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """It is shown as in use, and is removed after that process has ended."""
    record: Record = request.getfixturevalue(kind)
    async with fetching(home, record, place / "target") as staged:
        (listed,) = (await asyncio.to_thread(home.result, "leftovers", place, "--remove"))["leftovers"]
        assert (str(staged), True, False) == (listed["path"], listed["in_use"], listed["removed"])
        assert staged.exists()
    await asyncio.to_thread(home.result, "leftovers", place, "--remove")
    assert not list(place.glob(".*"))


@pytest.mark.slow
def test_what_stood_at_a_target_is_not_removed(home: Home, tree: Record, place: Path) -> None:
    """Between two renames it is the only copy; the next fetch moves it back, or publishes the new tree."""
    aside = place / f".{tree_label('target')}.filestore-aside"
    plant(aside, {"mine": b"1"})
    (listed,) = home.result("leftovers", place, "--remove")["leftovers"]
    assert (True, False) == (listed["needed"], listed["removed"])
    assert "fetch to that target again" in home.run("leftovers", place).stdout
    home.result("fetch", tree.id, "-o", place / "target", "--force")
    assert ["target"] == names(place)
    plant(aside, {"mine": b"1"})
    (listed,) = home.result("leftovers", place, "--remove")["leftovers"]
    assert (False, True) == (listed["needed"], listed["removed"])


def test_what_a_publication_in_a_folder_needs_is_not_removed(home: Home, tree: Record, place: Path) -> None:
    """The new tree and the old one that it replaces stay; a tree that was replaced already is removed."""
    label = tree_label(place.name)
    stem = staging_folder(place, tree.digest).name.removesuffix(".filestore-partial")
    needed = {f"{stem}.filestore-{kind}" for kind in ("replacing", "moving")}
    needed |= {f".{label}.filestore-{kind}" for kind in ("aside", "halfway")}
    for name in (*needed, f".{label}.filestore-discarded"):
        plant(place / name, {"mine": b"1"})
    listed = home.result("leftovers", place, "--remove")["leftovers"]
    assert needed == {Path(each["path"]).name for each in listed if each["needed"]}
    assert sorted(needed) == names(place)


def test_without_locks_what_was_written_lately_stays(tree: Record, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks, it may be in use."""
    refuse_locks(monkeypatch)
    staging = plant(staging_folder(place / "tree", tree.digest), {"a": b"1"})
    (found,) = leftovers(place)
    assert (True, False) == (found.is_in_use, remove_leftover(found))
    for path in (staging / "a", staging):
        os.utime(path, (time.time() - 90_000,) * 2)
    (found,) = leftovers(place)
    assert (False, True) == (found.is_in_use, remove_leftover(found))
    assert [] == names(place)


@pytest.mark.slow
def test_a_fetch_waits_for_a_removal(home: Home, tree: Record, place: Path) -> None:
    """It begins while its staging folder is being removed, and makes its own."""
    staging = plant(staging_folder(place / "tree", tree.digest), {"weights.bin": octets(2, SIZE)})
    descriptor = os.open(staging, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    process = subprocess.Popen(
        [SCRIPTS / "filestore", "fetch", tree.id, "-o", place / "tree", "--quiet"], env=home.environ, stdout=subprocess.DEVNULL
    )
    staging.rename(place / "removed")
    os.close(descriptor)
    assert 0 == process.wait(timeout=60)
    assert ["removed", "tree"] == names(place)
    assert {"small": b"1", "weights.bin": octets(2, SIZE)} == standing(place / "tree")


def test_a_folder_that_is_not_there(home: Home, place: Path) -> None:
    """It is named."""
    assert f"{place}/missing failed: No such file or directory" == home.failure("leftovers", place / "missing")


@pytest.mark.slow
def test_cache_ls_shows_what_cut_fetches_have_left(home: Home, file: Record) -> None:
    """A note says how to remove it; `prune` does so."""
    home.result("cache", "warm", file.id)
    cache = home.folder / ".cache/filestore"
    (entry_store,) = cache.glob("*/default")
    left = plant(entry_store / "staging" / str(Digest(bytes(32))), {"content/a.bin": octets(1, 200_000)})
    (listed,) = home.result("cache", "ls")["staged"]
    assert (str(left), False) == (listed["path"], listed["in_use"])
    done = home.run("cache", "ls")
    assert "Interrupted fetches left" in done.stderr
    assert "`filestore cache prune` removes it" in done.stderr
    home.result("cache", "prune")
    assert [] == home.result("cache", "ls")["staged"]
