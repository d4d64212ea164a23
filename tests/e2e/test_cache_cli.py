from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import connect
from filestore.cache import Cache
from filestore.cache.inventory import entries
from filestore.cache.leases import Leases
from filestore.core.references import File
from filestore.transfer.push import push
from tests.support.commands import Home
from tests.support.generator import octets
from tests.support.trees import Planted, plant, standing

SIZE = 2_000_000
THINGS = {"config.json": b"{}", "weights.bin": octets(9, 500_000)}


@pytest.fixture
async def files(home: Home) -> list[dict[str, Any]]:
    """Three files of 2 MB in the user's local folder."""
    pushed = []
    async with connect(str(home.data)) as repository:
        for number in range(3):
            path = home.folder / f"{number}.bin"
            path.write_bytes(octets(number, SIZE))
            pushed.append((await push(repository, path)).record.as_json())
    return pushed


@pytest.fixture
def cache(home: Home) -> Path:
    """The user's cache folder."""
    return home.folder / ".cache/filestore"


async def fill(home: Home, cache: Path, files: list[dict[str, Any]]) -> list[Path]:
    """Have the cache hold files; their paths in it."""
    async with connect(str(home.data)) as repository, Cache(cache, repository) as filled:
        return [await filled.resolve(File(id=file["id"])) for file in files]


def listed(home: Home, *arguments: str) -> list[list[str]]:
    """The names of each entry that `cache ls` shows."""
    return [entry["names"] for entry in home.result("cache", "ls", *arguments)["entries"]]


def was_used(cache: Path, name: str, *, days: int) -> None:
    """Have an entry be used last so many days ago."""
    (path,) = cache.glob(f"*/*/*/??/??/*/content/{name}")
    used_at = time.time() - 86400 * days
    os.utime(path.parents[1] / "entry.json", (used_at, used_at))


@contextmanager
def used(cache: Path, name: str) -> Iterator[None]:
    """Have this process use an entry."""
    (found,) = [entry for entry in entries(cache) if name in entry.names]
    leases = Leases(cache)
    leases.hold().pin(found.key)
    yield
    leases.close()


@pytest.mark.slow
def test_warm_fills_the_cache(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """Files by any reference, directories as trees; the second time nothing is received."""
    tree = home.result("push", plant(home.folder / "my_model", THINGS))
    references = [files[0]["id"], files[1]["digest"], "2.bin", tree["path"]]
    first = home.result("cache", "warm", *references)
    assert ["0.bin", "1.bin", "2.bin", "my_model.zip"] == [file["name"] for file in first["files"]]
    assert [False] * 4 == [file["was_cached"] for file in first["files"]]
    assert 3 * SIZE < first["bytes_received"]
    assert octets(0, SIZE) == Path(first["files"][0]["path"]).read_bytes()
    assert THINGS == standing(Path(first["files"][3]["path"]))
    second = home.result("cache", "warm", *references)
    assert ([True] * 4, 0) == ([file["was_cached"] for file in second["files"]], second["bytes_received"])
    assert str(cache) == second["cache"]
    assert [file["path"] for file in first["files"]] == [file["path"] for file in second["files"]]
    by_alias = home.result("warm", *references)
    assert [file["path"] for file in second["files"]] == [file["path"] for file in by_alias["files"]]
    said = home.run("cache", "warm", "2.bin")
    assert said.stdout.startswith(f"was there   {first['files'][2]['path']}\nreceived")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_model.zip", "team/my_model"])
def test_rm_takes_the_name_that_warm_took(home: Home, name: str) -> None:
    """An entry has it in another form: without the owner, and without `.zip`."""
    home.result("push", plant(home.folder / "my_model", THINGS), "--name", name, "--create")
    (warmed,) = home.result("cache", "warm", name)["files"]
    (removed,) = home.result("cache", "rm", name)["removed"]
    assert warmed["digest"] == removed["digest"]
    assert not Path(warmed["path"]).exists()


@pytest.mark.slow
def test_warm_keeps_zips_where_one_says_so(home: Home) -> None:
    """--zip and --unzip choose, as in fetch; both at once are wrong usage."""
    home.result("push", plant(home.folder / "my_model", THINGS))
    (as_zip,) = home.result("cache", "warm", "my_model.zip", "--zip")["files"]
    assert Path(as_zip["path"]).is_file()
    home.result("push", as_zip["path"], "--name", "theirs.zip")
    (as_tree,) = home.result("cache", "warm", "theirs.zip", "--unzip")["files"]
    assert THINGS == standing(Path(as_tree["path"]))
    assert 2 == home.run("cache", "warm", "theirs.zip", "--unzip", "--zip").returncode


@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "server"])
def test_warm_takes_entries_of_directories(home: Home, cache: Path, where: str) -> None:
    """A path after a reference: one file or one folder. A second process finds them; ls, verify and rm know them."""
    things: dict[str, Planted] = {"config.json": b"{}", "deep/weights.bin": octets(9, 500_000), "deep/er/a.txt": b"a"}
    with ExitStack() as stack:
        environ = stack.enter_context(home.local_server()).environ if where == "server" else {}
        creates = () if where == "server" else ("--create",)
        home.result("push", plant(home.folder / "model", things), "--name", "team/model", *creates, environ=environ)
        references = [f"team/model{path}" for path in (":config.json", ":deep/weights.bin", "@main:deep")]
        first = home.result("cache", "warm", *references, environ=environ)
        second = home.result("cache", "warm", *references, environ=environ)
        missing = home.failure("cache", "warm", references[0], "team/model:absent", environ=environ)
        assert 2 == home.run("cache", "warm", references[0], "--zip", environ=environ).returncode
    files = first["files"]
    assert ["config.json", "deep/weights.bin", "deep"] == [file["entry_path"] for file in files]
    assert [("model", "file"), ("model", "file"), ("model", "directory")] == [(file["name"], file["kind"]) for file in files]
    assert [2, 500_000] == [file["size"] for file in files[:2]]
    assert [b"{}", octets(9, 500_000)] == [Path(file["path"]).read_bytes() for file in files[:2]]
    assert {"weights.bin": octets(9, 500_000), "er/a.txt": b"a"} == standing(Path(files[2]["path"]))
    assert 500_000 < first["bytes_received"] < 600_000
    assert ([True] * 3, 0) == ([file["was_cached"] for file in second["files"]], second["bytes_received"])
    assert [file["path"] for file in files] == [file["path"] for file in second["files"]]
    assert "absent" in missing
    assert [["config.json"], ["deep"], ["weights.bin"]] == sorted(listed(home))
    assert [] == home.result("cache", "verify")["removed"]
    home.result("cache", "rm", "config.json", files[1]["path"], "deep")
    assert [] == listed(home)


@pytest.mark.slow
def test_warm_keeps_within_limits(home: Home, files: list[dict[str, Any]]) -> None:
    """A file that does not fit, with the others of the same command, is an error that says what to do."""
    said = home.failure("cache", "warm", "1.bin", "2.bin", "--cache-size-limit", "3MiB")
    assert said.startswith(f"the cache {home.folder}/.cache/filestore has no room: ")
    assert "raise the limit (setting cache_size_limit)" in said
    assert "FILESTORE_CACHE_SIZE_LIMIT sets the limit" in said
    assert [["1.bin"]] == listed(home)
    said = home.failure("cache", "warm", "2.bin", "--cache-min-free", "1000TiB")
    assert "must stay free" in said
    assert "FILESTORE_CACHE_MIN_FREE" in said


def test_a_slip_is_told_before_anything_is_fetched(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """The last of many references included."""
    assert "nothing is stored under 'missing'" in home.failure("cache", "warm", "0.bin", "missing")
    assert not cache.exists()


@pytest.mark.slow
async def test_ls_shows_what_there_is(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """It shows sizes, ages, names and use, the most recently used first; filters choose."""
    await fill(home, cache, files)
    was_used(cache, "0.bin", days=3)
    was_used(cache, "1.bin", days=8)
    assert [["2.bin"], ["0.bin"], ["1.bin"]] == listed(home)
    assert [["0.bin"], ["1.bin"]] == listed(home, "--filter", "accessed>2d")
    assert [["0.bin"]] == listed(home, "--filter", "accessed>2d", "--filter", "accessed<1w")
    assert [] == listed(home, "--filter", "size>1GB")
    assert 2 == home.run("cache", "ls", "--filter", "size").returncode
    with used(cache, "0.bin"):
        lines = home.run("cache", "ls").stdout.splitlines()
    assert 4 == len(lines)
    assert f"{files[0]['digest'][:16]}   2.02 MB      3 d  0.bin  (in use)" == lines[1]
    assert f"3 entries, 6.07 MB in {cache}" == lines[3]
    (entry,) = home.result("cache", "ls", "--filter", "accessed>7d")["entries"]
    assert (files[1]["digest"], "file", SIZE, False) == (entry["digest"], entry["kind"], entry["size"], entry["in_use"])
    assert octets(1, SIZE) == Path(entry["paths"][0]).read_bytes()


@pytest.mark.slow
async def test_rm_removes_what_is_named(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """By digest or its beginning, id, name, or path; a dry run removes nothing."""
    paths = await fill(home, cache, files)
    shown = home.result("cache", "rm", files[0]["digest"][:8], files[1]["id"], "--dry-run")
    assert (True, [["0.bin"], ["1.bin"]]) == (shown["dry_run"], [entry["names"] for entry in shown["removed"]])
    assert [True] * 3 == [path.exists() for path in paths]
    removed = home.result("cache", "rm", files[0]["digest"][:8], files[1]["id"])
    assert shown["removed"] == removed["removed"]
    assert [False, False, True] == [path.exists() for path in paths]
    await fill(home, cache, files)
    home.result("cache", "rm", files[0]["digest"], "1.bin", paths[2])
    assert [False] * 3 == [path.exists() for path in paths]


@pytest.mark.slow
async def test_rm_of_what_is_not_there_or_in_use(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """There is one message. An entry in use stays, and the others are removed."""
    await fill(home, cache, files[:2])
    said = home.failure("cache", "rm", "2.bin", "0.bin")
    assert said == (
        "'2.bin' names no file: nothing in the cache has that digest, id, name or path; `filestore cache ls` shows what it has"
    )
    with used(cache, "0.bin"):
        done = home.run("cache", "rm", "0.bin", "1.bin")
    assert done.returncode == 1
    assert done.stderr == "Error: 0.bin is in use and was not removed; end the process that uses it, and try again\n"
    assert [["0.bin"]] == listed(home)


@pytest.mark.slow
def test_prune_removes_small_files_that_were_never_finished(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """A process was killed while it wrote down a record. What another process writes right now stays."""
    home.result("cache", "warm", files[0]["id"])
    (records,) = cache.glob("*/*/records")
    left, written_now = records / f".{'a' * 32}", records / f".{'b' * 32}"
    for path in (left, written_now):
        path.write_bytes(b"{")
    os.utime(left, (1, 1))
    home.result("cache", "prune", "--dry-run")
    assert left.exists()
    home.result("cache", "prune")
    assert (False, True) == (left.exists(), written_now.exists())


@pytest.mark.slow
async def test_prune_removes_what_is_too_much(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """Without a filter it removes leftovers and enforces the limits; with one, it removes all that match."""
    await fill(home, cache, files)
    was_used(cache, "1.bin", days=8)
    (entry_store,) = cache.glob("*/default")
    left = entry_store / "staging" / ("0" * 64) / "content" / "half.bin"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(8192))
    pruned = home.result("cache", "prune", "--dry-run")
    assert ([], True) == (pruned["removed"], pruned["left_by_cut_fetches"] >= 8192)
    assert left.exists()
    pruned = home.result("cache", "prune", "--cache-size-limit", "5MiB")
    assert [["1.bin"]] == [entry["names"] for entry in pruned["removed"]]
    assert not left.exists()
    was_used(cache, "0.bin", days=8)
    was_used(cache, "2.bin", days=8)
    with used(cache, "0.bin"):
        assert [["2.bin"]] == [entry["names"] for entry in home.result("cache", "prune", "--filter", "accessed>7d")["removed"]]
    assert home.run("cache", "prune").stdout == f"removed 0 entries, 0 B in {cache}\n"


@pytest.mark.slow
async def test_verify_finds_damage(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """A damaged file is found, removed and reported with status 1; for an intact cache the status is 0."""
    (path,) = await fill(home, cache, files[:1])
    assert home.result("cache", "verify") == {"cache": str(cache), "removed": []}
    path.chmod(0o644)
    path.write_bytes(bytes(SIZE))
    done = home.run("cache", "verify", cache, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"cache": str(cache), "removed": [str(path)]}
    assert done.stderr == "Error: 1 damaged entry was removed from the cache; it is fetched again when needed\n"
    assert not path.exists()
    assert home.run("cache", "verify").stdout == f"{cache}: 0 damaged\n"


@pytest.mark.parametrize("command", [["verify", "missing"], ["prune", "--cache", "missing"]])
def test_what_is_not_a_cache(home: Home, command: list[str]) -> None:
    """A mistyped folder is not reported as an intact cache, and no cache is made there."""
    assert home.failure("cache", *command).startswith("there is no cache in ")
    assert not (home.folder / "missing").exists()


@pytest.mark.slow
def test_a_cache_of_a_newer_version(home: Home, files: list[dict[str, Any]], cache: Path) -> None:
    """One sentence that says so, and nothing is touched."""
    cache.mkdir(parents=True)
    (cache / "format").write_text('{"cache": 2}')
    expected = (
        f"{cache} has format {{'cache': 2}}, this program knows {{'cache': 1}}; "
        "use the version of filestore that made it, or a newer one"
    )
    for command in (["cache", "warm", "0.bin"], ["cache", "ls"], ["cache", "verify"]):
        assert expected == home.failure(*command)
    assert ["format"] == [path.name for path in cache.iterdir()]
