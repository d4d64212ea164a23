"""`filestore fetch` uses what this machine has. Each test counts the bytes that are received from a server or a folder."""

from __future__ import annotations

import filecmp
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.trees import plant, standing

MIB = 1 << 20
OLD = random.Random(1).randbytes(12 * MIB)
NEW = OLD[: 5 * MIB] + b"changed" + OLD[5 * MIB :]


@pytest.mark.slow
def test_a_seed(home: Home, tmp_path: Path) -> None:
    """What a seed has is not received. The result says where it came from."""
    new = plant(tmp_path / "new", {"model.bin": NEW}) / "model.bin"
    seed = plant(tmp_path / "old", {"older.bin": OLD}) / "older.bin"
    home.result("push", new)
    by_file = home.result("fetch", "model.bin", "-o", tmp_path / "a/1", "--seed", seed)
    by_folder = home.result("fetch", "model.bin", "-o", tmp_path / "a/2", "--seed", tmp_path / "old", "--seed", seed)
    shown = home.run("fetch", "model.bin", "-o", tmp_path / "a/3", "--seed", seed)

    assert filecmp.cmp(new, tmp_path / "a/1", shallow=False)
    assert filecmp.cmp(new, tmp_path / "a/2", shallow=False)
    assert by_file["bytes_received"] < 3 * MIB
    assert [{"path": str(seed), "size": by_file["bytes_reused"]}] == by_file["reused_from"]
    assert [str(tmp_path / "old")] == [each["path"] for each in by_folder["reused_from"]]
    assert str(seed) in shown.stdout


@pytest.mark.slow
def test_seeds_that_cannot_be_read(home: Home, tmp_path: Path) -> None:
    """One sentence, and nothing is made."""
    home.result("push", plant(tmp_path / "new", {"model.bin": b"content"}) / "model.bin")
    os.mkfifo(tmp_path / "pipe")

    assert home.failure("fetch", "model.bin", "-o", tmp_path / "a/1", "--seed", tmp_path / "pipe") == (
        f"{tmp_path}/pipe cannot be read: it is not a regular file"
    )
    assert "No such file" in home.failure("fetch", "model.bin", "-o", tmp_path / "a/1", "--seed", tmp_path / "absent")
    assert not (tmp_path / "a").exists()
    assert "leave it out" in home.run("fetch", "model.bin", "-o", "-", "--seed", tmp_path / "pipe").stderr


@pytest.mark.slow
def test_two_fetches_at_once_into_a_missing_folder(home: Home, tmp_path: Path) -> None:
    """Both make the folders above their target, and both are right."""
    tree = plant(tmp_path / "tree", {"model.bin": NEW, "config.json": b"{}"})
    home.result("push", tree)
    targets = [tmp_path / "a/b/c/one", tmp_path / "a/b/c/one", tmp_path / "a/b/c/two"]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda target: home.result("fetch", "tree.zip", "-o", target), targets))

    assert [standing(tree)] * 3 == [standing(target) for target in targets]
    assert [str(target) for target in targets] == [result["path"] for result in results]
    assert ["one", "two"] == sorted(path.name for path in (tmp_path / "a/b/c").iterdir())


@pytest.mark.slow
def test_another_version_beside_the_target(home: Home, tmp_path: Path) -> None:
    """It is found without an option, for files and directories, and stays as it is."""
    for name, content in (("model-v1.bin", OLD), ("model-v2.bin", NEW)):
        home.result("push", plant(tmp_path / name, {name: content}) / name)
        home.result("push", plant(tmp_path / f"{name}.tree", {"model.bin": content}), "--name", f"{name[:-4]}.zip")
    target = tmp_path / "target"
    first = [home.result("fetch", name, "-o", target / name) for name in ("model-v1.bin", "model-v2.bin")]
    trees = [home.result("fetch", f"{name}.zip", "-o", target / name) for name in ("model-v1", "model-v2")]

    assert (OLD, NEW) == ((target / "model-v1.bin").read_bytes(), (target / "model-v2.bin").read_bytes())
    assert ({"model.bin": OLD}, {"model.bin": NEW}) == (standing(target / "model-v1"), standing(target / "model-v2"))
    for old, new, name in ((*first, "model-v1.bin"), (*trees, "model-v1")):
        assert old["bytes_received"] > 12 * MIB > 3 * MIB > new["bytes_received"]
        assert [str(target / name)] == [each["path"] for each in new["reused_from"]]


def warmed(home: Home, tmp_path: Path) -> None:
    """Two files and a directory are stored, and the older ones are in the cache."""
    for name, content in (("one.bin", OLD), ("two.bin", NEW), ("small.txt", b"text")):
        home.result("push", plant(tmp_path / name, {name: content}) / name)
    home.result("push", plant(tmp_path / "tree", {"a/model.bin": OLD, "b.json": b"{}"}))
    home.result("cache", "warm", "one.bin", "small.txt", "tree.zip")


@pytest.mark.slow
def test_a_fetch_copies_from_the_cache(home: Home, tmp_path: Path) -> None:
    """The same content is not received at all, and of another version only what changed."""
    warmed(home, tmp_path)
    target = tmp_path / "target"
    whole = [home.result("fetch", name, "-o", target / name) for name in ("one.bin", "small.txt")]
    tree = home.result("fetch", "tree.zip", "-o", target / "tree")
    other = home.result("fetch", "two.bin", "-o", target / "two.bin")
    without = home.result("fetch", "one.bin", "-o", target / "without", "--cache", tmp_path / "absent")

    assert (OLD, NEW) == ((target / "one.bin").read_bytes(), (target / "two.bin").read_bytes())
    assert {"a/model.bin": OLD, "b.json": b"{}"} == standing(target / "tree")
    assert [0, 0] == [each["bytes_received"] for each in whole]
    assert all(".cache/filestore" in each["path"] for fetched in (*whole, tree, other) for each in fetched["reused_from"])
    assert tree["bytes_received"] < MIB
    assert other["bytes_received"] < 3 * MIB
    assert without["bytes_received"] > 12 * MIB
    assert not (tmp_path / "absent").exists()
    assert [] == [path for path in (home.folder / ".cache/filestore/leases").iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["content", "cut", "fifo", "manifest", "format", "forbidden"])
def test_a_damaged_cache_does_no_harm(home: Home, tmp_path: Path, what: str) -> None:
    """What is wrong in it is received."""
    warmed(home, tmp_path)
    cache = home.folder / ".cache/filestore"
    [content] = cache.glob("*/*/files/??/??/*/content/one.bin")
    entry = content.parents[1]
    if what in {"content", "cut"}:
        content.chmod(0o600)
        content.write_bytes(bytes(len(OLD)) if what == "content" else b"")
    elif what == "fifo":
        content.unlink()
        os.mkfifo(content)
    elif what == "manifest":
        (entry / "manifest").write_bytes(b"x")
    elif what == "format":
        (cache / "format").write_text('{"cache": 99}')
    else:
        os.chown(cache, 12345, 12345) if os.geteuid() == 0 else cache.chmod(0)
    fetched = home.result("fetch", "one.bin", "-o", tmp_path / "target/one.bin")
    cache.chmod(0o700)

    assert OLD == (tmp_path / "target/one.bin").read_bytes()
    if what in {"format", "forbidden"}:
        assert fetched["bytes_received"] > 12 * MIB


@pytest.mark.slow
def test_fetches_at_once_with_one_cache_that_is_being_evicted(home: Home, tmp_path: Path) -> None:
    """All are right, whichever of them finds its entry."""
    warmed(home, tmp_path)
    commands = [
        ("fetch", "one.bin", "-o", tmp_path / "target/1"),
        ("cache", "prune", "--cache-size-limit", "1MB"),
        ("fetch", "one.bin", "-o", tmp_path / "target/2"),
        ("fetch", "two.bin", "-o", tmp_path / "target/3"),
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda command: home.result(*command), commands))

    assert [OLD, OLD, NEW] == [(tmp_path / "target" / name).read_bytes() for name in "123"]
