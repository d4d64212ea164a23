"""Folders came with a container image. An overlay file system can empty and remove them, and cannot rename them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from filestore.cache.inventory import entries
from filestore.core.digest import Digest
from filestore.http.server.routes.sdk.uploads import begin, expire
from filestore.transfer.target import staging_folder, tree_label
from tests.support.commands import Home
from tests.support.disks import overlay, small_disk
from tests.support.generator import octets
from tests.support.trees import Folder, Link, Planted, plant, standing

OLD: dict[str, Planted] = {"config.json": b"{}", "data/deep/old.bin": b"old", "link": Link("data"), "only-old/y": b"y"}
NEW: dict[str, Planted] = {"config.json": b"{}\n", "data/deep/new.bin": octets(1, 300_000), "logs": Folder(), "now": Link("data")}


@pytest.fixture
def new(home: Home, tmp_path: Path) -> dict[str, str]:
    """A tree that is stored."""
    pushed: dict[str, str] = home.result("push", plant(tmp_path / "model", NEW), "--symlinks", "keep")
    return pushed


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The files that a container image brings."""
    folder = tmp_path / "image"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    """Return all names in a folder, also hidden ones."""
    return sorted(path.name for path in folder.iterdir())


def cannot_be_renamed(folder: Path) -> bool:
    """Return whether a folder has the property that these tests are about."""
    try:
        folder.rename(folder.with_name("renamed"))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


@pytest.mark.slow
def test_a_folder_of_an_image_is_replaced(home: Home, new: dict[str, str], image: Path, tmp_path: Path) -> None:
    """It is replaced name by name, also read-only folders, and a message says so. The next replacement is a normal one."""
    plant(image / "target", OLD)
    (image / "target/data/deep").chmod(0o555)
    with overlay(tmp_path / "root", image):
        target = tmp_path / "root/target"
        assert cannot_be_renamed(target)
        done = home.run("fetch", new["id"], "-o", target, "--force")
        assert 0 == done.returncode, done.stderr
        assert "the new names were moved into it one by one, and not in one step" in done.stderr
        assert (NEW, ["target"]) == (standing(target), names(target.parent))
        plant(target, OLD)
        home.result("fetch", new["id"], "-o", target, "--force", "--quiet")
        assert (NEW, ["target"]) == (standing(target), names(target.parent))


@pytest.mark.slow
def test_the_inner_folders_of_a_mounted_one_are_replaced(home: Home, new: dict[str, str], image: Path, tmp_path: Path) -> None:
    """The folders of the image inside a mounted folder cannot be moved aside."""
    plant(image, OLD)
    with overlay(tmp_path / "target", image):
        home.result("fetch", new["id"], "-o", tmp_path / "target", "--force", "--quiet")
        assert NEW == standing(tmp_path / "target")


@pytest.mark.slow
@pytest.mark.parametrize("stands", ["nothing", "empty folder", "folder", "file"])
def test_what_an_image_has_staged_is_used(home: Home, new: dict[str, str], image: Path, tmp_path: Path, stands: str) -> None:
    """A fetch that was cut while the image was built continues in the container, wherever its target is."""
    plant(image, {"place": Folder()})
    target = image / "place/target"
    if stands == "file":
        target.write_bytes(b"a file")
    elif stands != "nothing":
        plant(target, OLD if stands == "folder" else {})
    staging = staging_folder(target, Digest.parse(new["digest"])).name
    plant((target if stands == "empty folder" else target.parent) / staging, NEW | {"stranger/x": b"x"})
    with overlay(tmp_path / "root", image):
        target = tmp_path / "root/place/target"
        fetched = home.result("fetch", new["id"], "-o", target, *(["--force"] if stands in {"folder", "file"} else []), "--quiet")
        assert (NEW, ["target"]) == (standing(target), names(target.parent))
        assert 300_000 < fetched["bytes_reused"]


@pytest.mark.slow
@pytest.mark.parametrize("is_inside", [False, True])
def test_what_an_image_has_put_aside_comes_back(
    home: Home, new: dict[str, str], image: Path, tmp_path: Path, *, is_inside: bool
) -> None:
    """A replacement was cut while the image was built. The old content of the target is there again."""
    aside = f".{tree_label('target')}.filestore-aside"
    plant(image / (f"target/{aside}" if is_inside else aside), OLD)
    with overlay(tmp_path / "root", image):
        target = tmp_path / "root/target"
        assert "it is not empty" in home.failure("fetch", new["id"], "-o", target)
        assert (OLD, ["target"]) == (standing(target), names(target.parent))


@pytest.fixture
def filled(home: Home, image: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """A cache in an image: two files and a tree, used in this order."""
    records = []
    for number in range(2):
        (tmp_path / f"{number}.bin").write_bytes(octets(number, 500_000))
        records.append(home.result("push", tmp_path / f"{number}.bin"))
    records.append(home.result("push", plant(tmp_path / "tree", NEW), "--symlinks", "keep"))
    for number, record in enumerate(records):
        home.result("cache", "warm", record["id"], "--cache", image / "cache", "--quiet")
        (entry,) = [entry for entry in entries(image / "cache") if entry.digest == record["digest"]]
        used_at = time.time() - 86400 * (5 - number)
        os.utime(entry.folder / "entry.json", (used_at, used_at))
    return records


def listed(home: Home, cache: Path) -> set[str]:
    """Return the digests of the entries of a cache."""
    return {entry["digest"] for entry in home.result("cache", "ls", "--cache", cache)["entries"]}


@pytest.mark.slow
def test_a_cache_of_an_image_makes_space(home: Home, filled: list[dict[str, Any]], image: Path, tmp_path: Path) -> None:
    """Files and trees that came with the image are evicted and fetched like any others."""
    (tmp_path / "more.bin").write_bytes(octets(9, 500_000))
    more = home.result("push", tmp_path / "more.bin")
    with overlay(tmp_path / "root", image):
        cache = tmp_path / "root/cache"
        home.result("cache", "warm", more["id"], "--cache", cache, "--cache-size-limit", "1000000", "--quiet")
        assert {filled[2]["digest"], more["digest"]} == listed(home, cache)
        home.result("cache", "rm", filled[2]["digest"], "--cache", cache)
        assert {more["digest"]} == listed(home, cache)
        home.result("cache", "warm", *(record["id"] for record in filled), "--cache", cache, "--quiet")
        assert {more["digest"], *(record["digest"] for record in filled)} == listed(home, cache)
        assert [] == list(cache.glob("*/*/staging/*"))


@pytest.mark.slow
def test_damage_in_a_cache_of_an_image_is_mended(home: Home, filled: list[dict[str, Any]], image: Path, tmp_path: Path) -> None:
    """A verification of the cache repairs it, and so does a resolve of the entry."""
    for entry in entries(image / "cache"):
        (entry.folder / "entry.json").write_bytes(b"damaged")
    with overlay(tmp_path / "root", image):
        cache = tmp_path / "root/cache"
        home.result("cache", "warm", filled[0]["id"], filled[2]["id"], "--cache", cache, "--quiet")
        done = home.run("cache", "verify", cache)
        assert 1 == done.returncode
        assert f"{cache}: 1 damaged" in done.stdout
        assert {filled[0]["digest"], filled[2]["digest"]} == listed(home, cache)


@pytest.mark.slow
def test_an_entry_that_cannot_go_is_skipped(home: Home, filled: list[dict[str, Any]], image: Path, tmp_path: Path) -> None:
    """The next entry is evicted instead. If no other is left, the error gives the reason."""
    (tmp_path / "more.bin").write_bytes(octets(9, 500_000))
    more = home.result("push", tmp_path / "more.bin")
    cache = image / "cache"
    (stuck,) = [entry.folder for entry in entries(cache) if entry.digest == filled[0]["digest"]]
    kept = tmp_path / "kept"
    shutil.copytree(stuck, kept)
    with small_disk(tmp_path / "disk", "size=8m"):
        shutil.rmtree(stuck)
        stuck.mkdir()
        _mounted(tmp_path / "disk", kept, stuck)
        try:
            home.result("cache", "warm", more["id"], "--cache", cache, "--cache-size-limit", "1400000", "--quiet")
            assert {filled[0]["digest"], filled[2]["digest"], more["digest"]} == listed(home, cache)
            done = home.run("cache", "rm", filled[0]["digest"], filled[2]["digest"], "--cache", cache)
            assert 1 == done.returncode
            assert {filled[0]["digest"], more["digest"]} == listed(home, cache)
            sentence = home.failure("cache", "warm", filled[1]["id"], "--cache", cache, "--cache-size-limit", "600000", "--quiet")
            assert "what could not be removed stays" in sentence
        finally:
            subprocess.run(["umount", "-l", stuck], check=True)


def _mounted(disk: Path, content: Path, folder: Path) -> None:
    """Make a folder a mounted one, which cannot be renamed."""
    shutil.copytree(content, disk / "entry")
    subprocess.run(["mount", "--bind", disk / "entry", folder], check=True)


def test_an_upload_of_an_image_expires(image: Path, tmp_path: Path) -> None:
    """An upload that was begun while the image was built expires like any other."""
    upload = begin(image / "uploads", name="a", namespace="default")
    with overlay(tmp_path / "root", image):
        expire(tmp_path / "root/uploads", idle_seconds=-1)
        assert ["state.json", "state.lock"] == names(tmp_path / "root/uploads")
    assert [upload.id] == names(image / "uploads")
