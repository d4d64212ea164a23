"""A sync makes a stored directory like a folder, and a folder like a stored directory."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from filestore.core.commits import NewCommit
from filestore.core.progress import Progress
from filestore.core.records import Kind, Record
from filestore.errors import (
    FilestoreError,
    HeadMoved,
    Interrupted,
    InvalidArchive,
    InvalidInput,
    InvalidReference,
    SourceChanged,
    TargetError,
)
from filestore.repository.protocol import Repository
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from filestore.transfer.sync import SyncAction, SyncChange, SyncResult, sync_to_folder, sync_to_name
from tests.support.archives import Forged, forged
from tests.support.fetching_trees import stored
from tests.support.generator import octets
from tests.support.watched import WatchedRepository

NAME = "team/model"
SMALL, LARGE = octets(1, 2000), octets(2, 8_000_000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files that are large and small, in a folder, executable and empty."""
    root = tmp_path / "tree"
    (root / "inner").mkdir(parents=True)
    (root / "weights.bin").write_bytes(LARGE)
    (root / "config.json").write_bytes(SMALL)
    (root / "inner/run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "inner/run.sh").chmod(0o755)
    (root / "inner/empty").touch()
    return root


def content(root: Path) -> dict[str, bytes | str]:
    """All files and links of a folder, and the paths of executable files with a `*`."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name + "*" * bool(path.stat().st_mode & stat.S_IXUSR)] = path.read_bytes()
    return found


async def fetched(repository: Repository, folder: Path) -> dict[str, bytes | str]:
    """The content of what the name means now."""
    await fetch_tree(repository, NAME, target=folder)
    return content(folder)


def changes(result: SyncResult) -> dict[str, SyncAction]:
    """What a sync did, by paths."""
    return {change.path: change.action for change in result.changes}


def change(root: Path) -> None:
    """Add, change and remove a file, change one bit of a large file, and what is executable."""
    (root / "new").write_bytes(b"new")
    (root / "config.json").write_bytes(octets(3, 2000))
    (root / "weights.bin").write_bytes(LARGE[:-1] + b"\0")
    (root / "inner/run.sh").chmod(0o644)
    (root / "inner/empty").unlink()


CHANGED = {
    "new": SyncAction.ADD,
    "config.json": SyncAction.CHANGE,
    "weights.bin": SyncAction.CHANGE,
    "inner/run.sh": SyncAction.CHANGE,
}


@pytest.mark.parametrize("delete", [False, True])
async def test_to_a_name(repository: Repository, tree: Path, tmp_path: Path, *, delete: bool) -> None:
    """One commit has all changes. What is only stored stays, unless it is to be deleted."""
    first = await sync_to_name(repository, tree, name=NAME)
    assert set(changes(first).values()) == {SyncAction.ADD}
    assert len(first.changes) == 4
    change(tree)
    expected = {**CHANGED, "inner/empty": SyncAction.REMOVE} if delete else CHANGED
    planned = await sync_to_name(repository, tree, name=NAME, delete=delete, plan=True)
    assert expected == changes(planned)
    assert first.record == await repository.record(NAME)

    done = await sync_to_name(repository, tree, name=NAME, delete=delete, message="Why.")
    assert planned.changes == done.changes
    assert "Why." == (await repository.find_commit(NAME)).message
    if not delete:
        (tree / "inner/empty").touch()
    assert content(tree) == await fetched(repository, tmp_path / "back")
    # It is the tree that a push of the same folder makes.
    assert done.record is not None
    assert done.record.digest == (await push(repository, tree, name="pushed")).record.digest

    again = await sync_to_name(repository, tree, name=NAME, delete=delete)
    assert again.record is not None
    assert ((), done.record.id) == (again.changes, again.record.id)
    assert 2 == len(await repository.history(NAME))


@pytest.mark.parametrize("delete", [False, True])
async def test_to_a_folder(repository: Repository, tree: Path, tmp_path: Path, *, delete: bool) -> None:
    """Only what differs is received. What is only in the folder stays, unless it is to be deleted."""
    record = (await push(repository, tree, name=NAME)).record
    expected = content(tree)
    change(tree)
    extra: dict[str, bytes | str] = {"new": b"new"}
    before = content(tree)
    actions = {
        "config.json": SyncAction.CHANGE,
        "weights.bin": SyncAction.CHANGE,
        "inner/run.sh": SyncAction.CHANGE,
        "inner/empty": SyncAction.ADD,
    }
    if delete:
        actions["new"] = SyncAction.REMOVE
    watched = WatchedRepository(repository)
    planned = await sync_to_folder(watched, NAME, target=tree, delete=delete, plan=True)
    assert (actions, before) == (changes(planned), content(tree))

    done = await sync_to_folder(watched, NAME, target=tree, delete=delete)
    assert (planned.changes, record) == (done.changes, done.record)
    assert (expected if delete else expected | extra) == content(tree)
    assert 0 < done.bytes_received < len(LARGE)
    again = await sync_to_folder(watched, NAME, target=tree, delete=delete)
    assert ((), 0) == (again.changes, again.bytes_received)

    new = await sync_to_folder(watched, NAME, target=tmp_path / "missing", delete=delete)
    assert 4 == len(new.changes)
    assert expected == content(tmp_path / "missing")


@pytest.mark.parametrize("delete", [False, True])
async def test_progress_of_a_sync_to_a_name(repository: Repository, tree: Path, *, delete: bool) -> None:
    """It is told while content is sent, up to the whole tree, whether what is only stored stays or goes."""
    await push(repository, tree, name=NAME)
    (tree / "weights.bin").write_bytes(octets(9, len(LARGE)))
    told: list[Progress] = []
    result = await sync_to_name(repository, tree, name=NAME, delete=delete, report=told.append)
    assert 2 < len(told)
    assert told[-1].total == told[-1].done > len(LARGE)
    assert told[-1].moved == result.bytes_sent > len(LARGE) // 2


async def test_links_that_are_stored(repository: Repository, tree: Path, tmp_path: Path) -> None:
    """They are made as links, and kept where they are right."""
    (tree / "link").symlink_to("inner/run.sh")
    await push(repository, tree, name=NAME, symlinks="keep")
    target = tmp_path / "target"
    target.mkdir()
    (target / "link").write_text("in the way")
    done = await sync_to_folder(repository, NAME, target=target)
    assert SyncAction.CHANGE is changes(done)["link"]
    assert content(tree) == content(target)
    assert () == (await sync_to_folder(repository, NAME, target=target)).changes


async def test_a_link_that_leads_out_is_not_followed(repository: Repository, tree: Path, tmp_path: Path) -> None:
    """In the place of a file it is replaced, in that of a folder it is refused, or removed with --delete; extra ones stay."""
    await push(repository, tree, name=NAME)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    (outside / "run.sh").write_text("precious")
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").symlink_to(outside / "victim")
    (target / "extra").symlink_to(outside)
    (target / "inner").symlink_to(outside)
    with pytest.raises(TargetError, match="inner"):
        await sync_to_folder(repository, NAME, target=target)
    assert (target / "config.json").is_symlink()

    planned = await sync_to_folder(repository, NAME, target=target, delete=True, plan=True)
    assert SyncAction.REMOVE is changes(planned)["extra"]
    (target / "inner").unlink()
    await sync_to_folder(repository, NAME, target=target)
    assert (target / "extra").is_symlink()
    assert SMALL == (target / "config.json").read_bytes()
    (target / "inner").rename(tmp_path / "moved")
    (target / "inner").symlink_to(outside)
    await sync_to_folder(repository, NAME, target=target, delete=True)
    assert content(tree) == content(target)
    assert {"victim": b"precious", "run.sh": b"precious"} == content(outside)


async def test_a_link_in_the_folder_that_leads_out_is_not_stored(repository: Repository, tree: Path, tmp_path: Path) -> None:
    """It is refused as by a push, with and without deletion."""
    await push(repository, tree, name=NAME)
    (tmp_path / "secret").write_text("secret")
    (tree / "link").symlink_to(tmp_path / "secret")
    for delete in (False, True):
        with pytest.raises(FilestoreError, match="link"):
            await sync_to_name(repository, tree, name=NAME, delete=delete)
    assert 1 == len(await repository.history(NAME))


@pytest.mark.parametrize(
    "entries",
    [
        [Forged("../victim", b"evil")],
        [Forged("/victim", b"evil")],
        [Forged("a/../../victim", b"evil")],
        [Forged("link", b"..", mode=0o120777), Forged("link/victim", b"evil")],
        [Forged("link", b"../victim", mode=0o120777)],
        [Forged("a", b"evil"), Forged(".0a0a0a0a0a0a0a0a.filestore-partial", b"evil")],
    ],
)
async def test_hostile_names_do_no_harm(repository: Repository, tmp_path: Path, entries: list[Forged]) -> None:
    """A stored zip file of another program is refused before anything is written."""
    await stored(repository, forged(entries), name="hostile.zip")
    target = tmp_path / "target"
    target.mkdir()
    for delete in (False, True):
        with pytest.raises((InvalidArchive, TargetError)):
            await sync_to_folder(repository, "hostile.zip", target=target, delete=delete)
    assert [] == list(target.iterdir())
    assert not (tmp_path / "victim").exists()


async def test_files_and_folders_in_the_way(repository: Repository, tree: Path, tmp_path: Path) -> None:
    """Without deletion nothing is lost: neither here nor there. With it, the target is like the source."""
    await push(repository, tree, name=NAME)
    other = tmp_path / "other"
    (other / "config.json").mkdir(parents=True)
    (other / "config.json/mine").write_text("mine")
    (other / "inner").write_text("a file")
    before = content(other)
    with pytest.raises(TargetError, match="in its place"):
        await sync_to_folder(repository, NAME, target=other)
    with pytest.raises(InvalidInput, match="is stored as a"):
        await sync_to_name(repository, other, name=NAME)
    assert before == content(other)

    copied = tmp_path / "copied"
    await sync_to_name(repository, other, name="team/other")
    planned = await sync_to_folder(repository, NAME, target=other, delete=True, plan=True)
    done = await sync_to_folder(repository, NAME, target=other, delete=True)
    assert content(tree) == content(other)
    assert SyncChange("inner", SyncAction.REMOVE, len("a file")) in planned.changes == done.changes
    await sync_to_folder(repository, "team/other", target=copied)
    planned = await sync_to_name(repository, copied, name=NAME, delete=True, plan=True)
    done = await sync_to_name(repository, copied, name=NAME, delete=True)
    assert SyncChange("config.json", SyncAction.REMOVE, len(SMALL)) in planned.changes == done.changes
    assert before == await fetched(repository, tmp_path / "back")


async def test_an_interrupted_sync_leaves_no_half_file(repository: Repository, tree: Path) -> None:
    """Each file is as it was or as it is stored, and the next sync completes the rest."""
    await push(repository, tree, name=NAME)
    expected = content(tree)
    change(tree)
    (tree / "new").unlink()
    before = content(tree)
    for gets in range(1, 6):
        watched = WatchedRepository(repository)

        async def fail(verb: str, watched: WatchedRepository = watched, gets: int = gets) -> None:
            if verb == "get" and watched.calls.count("get") == gets:
                raise Interrupted("there", "the connection was cut")

        watched.before = fail
        try:
            await sync_to_folder(watched, NAME, target=tree)
        except Interrupted:
            found = content(tree)
            names = {name.rstrip("*") for name in expected}
            for name, data in found.items():
                if name.rstrip("*") in names:
                    assert data in {before.get(name), expected.get(name), *expected.values(), *before.values()}
    await sync_to_folder(repository, NAME, target=tree, delete=True)
    assert expected == content(tree)
    assert [] == [path for path in tree.rglob("*") if "filestore" in path.name]


async def test_a_cancelled_sync_to_a_name_records_nothing(repository: Repository, tree: Path) -> None:
    """It is cancelled before the commit."""
    await push(repository, tree, name=NAME)
    change(tree)
    watched = WatchedRepository(repository)
    reached = asyncio.Event()

    async def stop(verb: str) -> None:
        if verb == "commit":
            reached.set()
            await asyncio.Event().wait()

    watched.before = stop
    syncing = asyncio.create_task(sync_to_name(watched, tree, name=NAME))
    await reached.wait()
    syncing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncing
    assert 1 == len(await repository.history(NAME))


@pytest.mark.parametrize("delete", [False, True])
async def test_what_an_interrupted_sync_has_left_is_not_stored(
    repository: Repository, tree: Path, tmp_path: Path, *, delete: bool
) -> None:
    """In whatever folder it is, and nothing else is left out."""
    await push(repository, tree, name=NAME)
    (tree / ".settings").mkdir()
    (tree / ".settings/a.filestore-b").write_bytes(b"mine")
    before = content(tree)
    for folder in (tree, tree / "inner"):
        (folder / ".0a[0]a.filestore-partial").write_bytes(b"half")
        (folder / ".0b0b.filestore-partial").mkdir()
        (folder / ".0b0b.filestore-partial/half").write_bytes(b"half")
    await sync_to_name(repository, tree, name=NAME, delete=delete)
    await sync_to_folder(repository, NAME, target=tmp_path / "back")
    assert before == content(tmp_path / "back")


@pytest.mark.parametrize("how", ["written", "another file", "a link"])
async def test_a_file_that_changes_meanwhile_is_not_stored(
    repository: Repository, tree: Path, tmp_path: Path, *, how: str
) -> None:
    """As with a push: it would be stored as a mixture that never was, or what a link out of the folder leads to."""
    await push(repository, tree, name=NAME)
    (tmp_path / "secret").write_bytes(b"secret")
    (tree / "config.json").write_bytes(b"public")
    watched = WatchedRepository(repository)

    async def change_it(verb: str) -> None:
        if verb == "missing":
            if how != "written":
                (tree / "config.json").unlink()
            if how == "a link":
                (tree / "config.json").symlink_to(tmp_path / "secret")
            else:
                (tree / "config.json").write_bytes(b"publid")
            watched.before = nothing

    async def nothing(_: str) -> None: ...

    watched.before = change_it
    with pytest.raises(SourceChanged):
        await sync_to_name(watched, tree, name=NAME)
    assert "missing" in watched.calls
    assert 1 == len(await repository.history(NAME))


@pytest.mark.parametrize(("is_new", "delete"), [(False, False), (False, True), (True, False), (True, True)])
async def test_what_another_user_stores_meanwhile_is_not_lost(
    repository: Repository, tree: Path, *, is_new: bool, delete: bool
) -> None:
    """The sync ends with an error, and changes nothing."""
    record = (await push(repository, tree, name="first" if is_new else NAME)).record
    (tree / "config.json").write_bytes(b"mine")
    (tree / "inner/empty").unlink()
    watched = WatchedRepository(repository)

    async def store_another(verb: str) -> None:
        if verb == "commit":
            await commit_another(repository, record)

    watched.before = store_another
    with pytest.raises(HeadMoved):
        await sync_to_name(watched, tree, name=NAME, delete=delete)
    assert "Theirs." == (await repository.find_commit(NAME)).message


async def commit_another(repository: Repository, record: Record) -> None:
    """Store another content under the name."""
    other = await stored(repository, forged([Forged("theirs", b"theirs")]), name="other.zip")
    assert other.digest != record.digest
    manifest = await repository.manifest(other.digest)
    await repository.commit(manifest, name=NAME, kind=Kind.DIRECTORY, commit=NewCommit("Theirs."))


async def test_single_files_are_refused(repository: Repository, tree: Path, tmp_path: Path) -> None:
    """Neither a stored file nor a file on this machine is one."""
    await push(repository, tree / "weights.bin", name="weights.bin")
    with pytest.raises(InvalidReference, match="single file"):
        await sync_to_folder(repository, "weights.bin", target=tmp_path / "target")
    with pytest.raises(InvalidReference, match="single file"):
        await sync_to_name(repository, tree, name="weights.bin")
    with pytest.raises(InvalidInput, match="is not a folder"):
        await sync_to_name(repository, tree / "weights.bin", name=NAME)
    await push(repository, tree, name=NAME)
    with pytest.raises(TargetError, match="not a folder"):
        await sync_to_folder(repository, NAME, target=tree / "weights.bin")
