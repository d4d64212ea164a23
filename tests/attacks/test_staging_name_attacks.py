"""Another user knows the name under which a fetch stages data in a shared folder, and puts something there before."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from filestore.core.records import Record
from filestore.errors import TargetError
from filestore.repository.local import LocalRepository
from filestore.transfer import fetch as fetch_module
from filestore.transfer.fetch import fetch, staging_file
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.leftovers import leftovers
from filestore.transfer.sinks import tree as tree_sink
from filestore.transfer.target import Target, staging_folder, tree_label
from tests.support.archives import Forged, forged
from tests.support.fetching_trees import stored
from tests.support.strangers import STRANGER, give_away, needs_root
from tests.support.trees import standing

CONTENT = b"as pushed" * 1000
MODES = (0o777, 0o1777, 0o775)


@pytest.fixture(params=MODES, ids=oct)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder in which other users may write, with and without the sticky bit."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(request.param)
    return folder


async def file_record(repository: LocalRepository) -> Record:
    """A stored file in several chunks."""
    return await stored(repository, CONTENT, name="model.bin", chunk_size=1000)


async def tree_record(repository: LocalRepository) -> Record:
    """A stored tree."""
    return await stored(repository, forged([Forged("a", CONTENT), Forged("inner/b", b"b")]))


TREE = {"a": CONTENT, "inner/b": b"b"}


def plant_file(path: Path, victim: Path) -> None:
    """Put a file of the right size there, which its owner can change later."""
    assert victim.exists()
    path.write_bytes(b"x" * len(CONTENT))
    give_away(path)


def plant_open_file(path: Path, victim: Path) -> None:
    """Put a file of the user's own there, which everybody may write to."""
    assert victim.exists()
    path.write_bytes(CONTENT)
    path.chmod(0o666)


def plant_link(path: Path, victim: Path) -> None:
    """Put a symbolic link to a file of the user there."""
    path.symlink_to(victim)
    give_away(path)


def plant_second_name(path: Path, victim: Path) -> None:
    """Put a second name of a file of the user there."""
    os.link(victim, path)


def plant_pipe(path: Path, victim: Path) -> None:
    """Put a pipe there, which would hold up whoever opens it."""
    assert victim.exists()
    os.mkfifo(path)
    give_away(path)


@pytest.mark.parametrize("plant", [plant_file, plant_open_file, plant_link, plant_second_name, plant_pipe])
async def test_a_planted_staging_file_is_not_used(
    repository: LocalRepository, shared: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    """The fetched file is the user's own, and nothing else is written to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"of the user")
    record = await file_record(repository)
    plant(staging_file(shared / "model.bin", record.digest), victim)
    await fetch(repository, record, target=shared / "model.bin")
    status = (shared / "model.bin").lstat()
    assert CONTENT == (shared / "model.bin").read_bytes()
    assert (os.geteuid(), 1) == (status.st_uid, status.st_nlink)
    assert b"of the user" == victim.read_bytes()


@pytest.mark.parametrize("plant", [plant_file, plant_link, plant_second_name])
async def test_a_planted_staging_file_in_a_private_folder_is_not_used(
    repository: LocalRepository, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    """It may have come there before the folder was made private."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"of the user")
    record = await file_record(repository)
    plant(staging_file(tmp_path / "model.bin", record.digest), victim)
    await fetch(repository, record, target=tmp_path / "model.bin")
    assert (os.geteuid(), CONTENT) == ((tmp_path / "model.bin").lstat().st_uid, (tmp_path / "model.bin").read_bytes())
    assert b"of the user" == victim.read_bytes()


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
async def test_staged_data_is_private_until_it_is_published(
    repository: LocalRepository, shared: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can open a staging file or enter a staging folder. The umask decides about the published ones."""
    seen: list[int] = []
    monkeypatch.setattr(tree_sink, "check_space", lambda *_, **__: note_modes(seen, shared))
    monkeypatch.setattr(fetch_module, "check_space", lambda *_, **__: note_modes(seen, shared))
    before = os.umask(umask)
    try:
        await fetch(repository, await file_record(repository), target=shared / "model.bin")
        await fetch_tree(repository, await tree_record(repository), target=shared / "tree")
    finally:
        os.umask(before)
    assert [0, 0] == seen
    modes = [(shared / name).stat().st_mode & 0o777 for name in ("model.bin", "tree", "tree/a", "tree/inner")]
    assert [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask, 0o777 & ~umask] == modes


def note_modes(seen: list[int], folder: Path) -> None:
    """Note the permissions that others have for what is staged in a folder."""
    seen.extend(path.lstat().st_mode & 0o077 for path in folder.glob(".*.filestore-partial"))


async def test_the_name_cannot_be_known_before(
    repository: LocalRepository, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared folder each fetch stages under a new name."""
    seen: list[str] = []

    def note(*_: object, **__: object) -> None:
        seen.extend(path.name for path in shared.glob(".*.filestore-partial"))

    monkeypatch.setattr(tree_sink, "check_space", note)
    monkeypatch.setattr(fetch_module, "check_space", note)
    file, tree = await file_record(repository), await tree_record(repository)
    for _ in range(2):
        await fetch(repository, file, target=shared / "model.bin")
        await fetch_tree(repository, tree, target=shared / "tree")
        (shared / "model.bin").unlink()
        (shared / "tree").rename(shared.parent / f"tree{len(seen)}")
    assert 4 == len(set(seen))
    assert not {staging_file(shared / "model.bin", file.digest).name, staging_folder(shared / "tree", tree.digest).name} & set(
        seen
    )


@pytest.mark.parametrize("kind", ["file", "tree"])
async def test_what_an_interrupted_fetch_left_is_found_again(
    repository: LocalRepository, shared: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random name is found by its owner. It counts as a leftover, and the next fetch takes it."""
    record = await (file_record if kind == "file" else tree_record)(repository)

    async def fetch_it() -> None:
        await (fetch if kind == "file" else fetch_tree)(repository, record, target=shared / "target")

    with monkeypatch.context() as patched:
        patched.setattr(fetch_module._PartialFile if kind == "file" else Target, "publish", interrupted)
        with pytest.raises(InterruptedFetchError):
            await fetch_it()
    (left,) = leftovers(shared)
    assert left.path.name.endswith(".filestore-partial")
    assert left.path.name not in {
        staging_file(shared / "target", record.digest).name,
        staging_folder(shared / "target", record.digest).name,
    }
    inode = left.path.stat().st_ino
    await fetch_it()
    assert inode == (shared / "target").stat().st_ino
    assert [] == leftovers(shared)


class InterruptedFetchError(BaseException):
    """The process is ended."""


def interrupted(*_: object, **__: object) -> None:
    """End a fetch before it publishes anything."""
    raise InterruptedFetchError


@needs_root
@pytest.mark.parametrize(
    ("end", "stands"),
    [("aside", "new"), ("halfway", "new"), ("aside", "empty"), ("halfway", "empty"), ("replacing", "empty"), ("moving", "empty")],
)
async def test_a_planted_folder_is_not_published(repository: LocalRepository, shared: Path, end: str, stands: str) -> None:
    """A fetch would move it to the target as if it was the old tree, or complete a publication that never began."""
    record = await tree_record(repository)
    target = shared / "target"
    label = tree_label("target")
    name = f".{label}.filestore-{end}" if end in {"aside", "halfway"} else f".{record.digest.hex()[:32]}-{label}.filestore-{end}"
    home = shared
    if stands == "empty":
        target.mkdir()
        target.chmod(0o777)
        home = target
    (home / name).mkdir()
    (home / name / "evil").write_bytes(b"evil")
    give_away(home / name)
    with pytest.raises(TargetError, match=f"{name} is from another user"):
        await fetch_tree(repository, record, target=target)
    assert not (target / "evil").exists()
    assert not target.exists() or stands == "empty"
    (home / name / "evil").unlink()
    (home / name).rmdir()
    await fetch_tree(repository, record, target=target)
    assert TREE == standing(target)


@needs_root
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("holds", ["nothing", "the same tree"])
async def test_a_planted_target_is_not_filled(repository: LocalRepository, shared: Path, holds: str, *, force: bool) -> None:
    """Its owner could change what is fetched. Nothing is put in it. In a private folder, the user knows what is there."""
    record = await tree_record(repository)
    target = shared / "target"
    if holds == "nothing":
        target.mkdir()
    else:
        await fetch_tree(repository, record, target=target)
    give_away(target)
    before = standing(target)
    with pytest.raises(TargetError, match=f"belongs to another user \\(user id {STRANGER}\\)"):
        await fetch_tree(repository, record, target=target, force=force)
    assert before == standing(target)
    shared.chmod(0o755)
    await fetch_tree(repository, record, target=target, force=True)
    assert TREE == standing(target)


async def test_a_planted_staging_folder_is_not_used(repository: LocalRepository, shared: Path) -> None:
    """The published tree is the user's own."""
    record = await tree_record(repository)
    planted = staging_folder(shared / "target", record.digest)
    planted.mkdir()
    (planted / "a").write_bytes(CONTENT)
    give_away(planted)
    await fetch_tree(repository, record, target=shared / "target")
    assert TREE == standing(shared / "target")
    assert os.geteuid() == (shared / "target").stat().st_uid
    assert planted.exists()


@pytest.mark.parametrize("kind", ["file", "tree"])
async def test_two_fetches_at_once_to_one_target_in_a_shared_folder(repository: LocalRepository, shared: Path, kind: str) -> None:
    """Neither fails because the other one has published first under a name that it did not know. Nothing is left."""
    record = await (stored(repository, CONTENT, name="model.bin") if kind == "file" else tree_record(repository))
    verb = fetch if kind == "file" else fetch_tree
    await asyncio.gather(*(verb(repository, record, target=shared / "target") for _ in range(4)))
    assert [shared / "target"] == list(shared.iterdir())
    assert [] == leftovers(shared)
