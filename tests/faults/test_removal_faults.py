"""Folders are read-only, or cannot be removed at all, as a user sees it who is not root."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.system.files import move, remove
from filestore.transfer.target import staging_folder
from tests.support.commands import AS_ANY_USER, SCRIPTS, Home
from tests.support.disks import small_disk
from tests.support.trees import Planted, plant, standing

OLD: dict[str, Planted] = {"config.json": b"{}", "data/deep/old.bin": b"old", "hidden/x": b"x", "only-old/y": b"y"}
NEW: dict[str, Planted] = {"config.json": b"{}\n", "data/deep/new.bin": b"new"}


@pytest.fixture
def new(home: Home, tmp_path: Path) -> dict[str, str]:
    """A tree that is stored."""
    pushed: dict[str, str] = home.result("push", plant(tmp_path / "model", NEW))
    return pushed


def protect(root: Path) -> Path:
    """Make folders read-only, and close one to everyone."""
    for name, mode in {"data/deep": 0o555, "data": 0o555, "hidden": 0, "": 0o555}.items():
        (root / name).chmod(mode)
    return root


def run(home: Home, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user to whom permissions apply."""
    program, *before = (*AS_ANY_USER, SCRIPTS / "filestore")
    return home.run(*before, *arguments, program=program)


def run_python(code: str, *arguments: str | Path) -> None:
    """Run some lines of Python as a user to whom permissions apply."""
    subprocess.run([*AS_ANY_USER, sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=60)


def names(folder: Path) -> list[str]:
    """Return all names in a folder, also hidden ones."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_tree_with_read_only_folders_is_replaced(home: Home, new: dict[str, str], tmp_path: Path) -> None:
    """It is replaced several times, and nothing of the old trees stays."""
    target = plant(tmp_path / "place" / "target", OLD)
    for _ in range(2):
        done = run(home, "fetch", new["id"], "-o", protect(plant(target, OLD)), "--force", "--quiet")
        assert (0, "") == (done.returncode, done.stderr)
        assert NEW == standing(target)
        assert ["target"] == names(target.parent)


@pytest.mark.slow
def test_a_mounted_folder_with_read_only_folders_is_replaced(home: Home, new: dict[str, str], tmp_path: Path) -> None:
    """Its folders are moved to another parent. For that, each must be writable."""
    with small_disk(tmp_path / "target", "size=8m"):
        target = plant(tmp_path / "target", OLD)
        (target / "data").chmod(0o555)
        done = run(home, "fetch", new["id"], "-o", target, "--force", "--quiet")
        assert (0, "") == (done.returncode, done.stderr)
        assert NEW == standing(target)


@pytest.mark.slow
def test_what_an_earlier_version_left_hidden_goes(home: Home, new: dict[str, str], tmp_path: Path) -> None:
    """An earlier version could not remove the old tree, and every later --force failed. Now the next one removes it."""
    place = tmp_path / "place"
    target = plant(place / "target", OLD)
    run(home, "fetch", new["id"], "-o", target, "--force")
    protect(plant(place / aside_name(tmp_path, new), OLD))
    done = run(home, "fetch", new["id"], "-o", plant(target, OLD), "--force", "--quiet")
    assert (0, "") == (done.returncode, done.stderr)
    assert ["target"] == names(place)


def aside_name(tmp_path: Path, record: dict[str, str]) -> str:
    """Return the name of a tree at `place/target` between two renames."""
    staging = staging_folder(tmp_path / "place" / "target", Digest.parse(record["digest"])).name
    return f".{staging.split('-')[1].removesuffix('.filestore')}.filestore-aside"


@pytest.mark.slow
def test_what_cannot_be_removed_is_told(home: Home, new: dict[str, str], tmp_path: Path) -> None:
    """The new tree is in place, and a message names the rest of the old one.

    The next fetch fails early, with the cause.
    """
    target = plant(tmp_path / "place" / "target", OLD | {"mounted/z": b"z"})
    aside = target.parent / aside_name(tmp_path, new).replace("aside", "discarded")
    with small_disk(tmp_path / "disk", "size=1m"):
        subprocess.run(["mount", "--bind", tmp_path / "disk", target / "mounted"], check=True)
        try:
            done = run(home, "fetch", new["id"], "-o", target, "--force")
            assert 0 == done.returncode
            assert f"could not be removed, and is now {aside}; remove it yourself" in done.stderr
            assert NEW == standing(target)
            done = run(home, "fetch", new["id"], "-o", plant(target, OLD), "--force", "--quiet")
            assert 1 == done.returncode
            assert f"{aside} cannot be written: an earlier fetch to {target} replaced it" in done.stderr
            assert "busy" in done.stderr
        finally:
            subprocess.run(["umount", "-l", aside / "mounted"], check=True)
    done = run(home, "fetch", new["id"], "-o", target, "--force", "--quiet")
    assert (0, "") == (done.returncode, done.stderr)
    assert (["target"], NEW) == (names(target.parent), standing(target))


@pytest.mark.slow
def test_what_cannot_be_removed_in_place_does_not_come_back(home: Home, new: dict[str, str], tmp_path: Path) -> None:
    """The target is mounted. The new tree stays as it is, and --force works again once the cause is removed."""
    with small_disk(tmp_path / "target", "size=8m"), small_disk(tmp_path / "disk", "size=1m"):
        target = plant(tmp_path / "target", OLD | {"outer/mounted/z": b"z"})
        subprocess.run(["mount", "--bind", tmp_path / "disk", target / "outer/mounted"], check=True)
        done = run(home, "fetch", new["id"], "-o", target, "--force")
        assert 0 == done.returncode
        (left,) = target.glob(".*")
        assert f"could not be removed, and is now {left}; remove it yourself" in done.stderr
        assert "already there" in run(home, "fetch", new["id"], "-o", target).stdout
        assert [left.name, "config.json", "data"] == names(target)
        done = run(home, "fetch", new["id"], "-o", target, "--force", "--quiet")
        assert f"{left} cannot be written: an earlier fetch to {target} replaced it" in done.stderr
        subprocess.run(["umount", "-l", left / "outer/mounted"], check=True)
        done = run(home, "fetch", new["id"], "-o", target, "--force", "--quiet")
        assert (0, "") == (done.returncode, done.stderr)
        assert NEW == standing(target)


@pytest.mark.slow
def test_a_read_only_folder_in_staging_goes(home: Home, new: dict[str, str], tmp_path: Path) -> None:
    """Things of an earlier fetch that are not part of the tree are removed."""
    target = tmp_path / "target"
    staging = staging_folder(target, Digest.parse(new["digest"]))
    protect(plant(staging / "stranger", OLD))
    done = run(home, "fetch", new["id"], "-o", target, "--quiet")
    assert (0, "") == (done.returncode, done.stderr)
    assert NEW == standing(target)
    assert not staging.exists()


@pytest.mark.slow
def test_an_entry_with_closed_folders_goes_from_the_cache(home: Home, new: dict[str, str]) -> None:
    """An entry can be evicted although someone has closed a folder of it."""
    home.run("cache", "warm", new["id"])
    (entry,) = home.result("cache", "ls")["entries"]
    path = Path(entry["paths"][0])
    (path / "data").chmod(0)
    done = run(home, "cache", "rm", "--json", new["digest"])
    assert (0, "") == (done.returncode, done.stderr)
    assert 1 == len(json.loads(done.stdout)["removed"])
    assert not path.parents[1].exists()
    assert [] == list((home.folder / ".cache/filestore").glob("*/*/staging/*"))


def test_a_removal_fixes_permissions_first(tmp_path: Path) -> None:
    """It works by path and below a descriptor. The target of a link stays."""
    kept = plant(tmp_path / "kept", {"file": b"kept"})
    for name in ("by path", "by descriptor"):
        protect(plant(tmp_path / name, OLD))
        (tmp_path / name).chmod(0o755)
        (tmp_path / name / "link").symlink_to(kept)
        (tmp_path / name).chmod(0o555)
    run_python("import sys; from filestore.system.files import remove; remove(sys.argv[1])", tmp_path / "by path")
    code = (
        "import os, sys; from filestore.system.files import remove; remove(sys.argv[2], dir_fd=os.open(sys.argv[1], os.O_RDONLY))"
    )
    run_python(code, tmp_path, "by descriptor")
    assert ["kept"] == names(tmp_path)
    assert b"kept" == (kept / "file").read_bytes()


def test_two_removals_at_once_are_one(tmp_path: Path) -> None:
    """Neither of them fails because the other was faster."""
    folder = plant(tmp_path / "tree", {f"{number}/{name}": b"" for number in range(200) for name in range(5)})
    with ThreadPoolExecutor(4) as pool:
        assert [None] * 4 == list(pool.map(remove, [folder] * 4))
    assert [] == names(tmp_path)


def test_a_removal_of_nothing_is_none(tmp_path: Path) -> None:
    """A second removal does nothing. A link is removed, and its target stays."""
    plant(tmp_path / "kept", {"file": b"kept"})
    (tmp_path / "link").symlink_to("kept")
    for _ in range(2):
        remove(tmp_path / "link")
    assert ["kept"] == names(tmp_path)


def test_a_read_only_folder_that_is_moved_stays_read_only(tmp_path: Path) -> None:
    """A thing that is put back after a crash has its old permissions."""
    plant(tmp_path, {"a/folder/file": b"1", "b/other": b"2"})
    (tmp_path / "a/folder").chmod(0o555)
    code = (
        "import sys; from pathlib import Path; from filestore.system.files import move;move(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    run_python(code, tmp_path / "a/folder", tmp_path / "b/folder")
    assert 0o555 == (tmp_path / "b/folder").stat().st_mode & 0o777
    (tmp_path / "b/folder").chmod(0o755)
    move(tmp_path / "b/folder", tmp_path / "a/folder")
    assert {"a/folder/file": b"1", "b/other": b"2"} == standing(tmp_path)
