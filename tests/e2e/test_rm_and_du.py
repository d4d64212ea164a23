"""The commands rm and du, in a folder and at a server."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import connect
from filestore.core.commits import NewCommit
from filestore.core.references import Reference
from tests.support.commands import SCRIPTS, Home
from tests.support.generator import octets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
"""Some tests type twenty commands, each of which takes long on a machine that is busy with other work."""

SIZE = 50_000


@pytest.fixture(params=["folder", "server"])
def environ(request: pytest.FixtureRequest, home: Home) -> Iterator[dict[str, str]]:
    """The variables for a repository in a folder, or at a server."""
    if request.param == "folder":
        yield {}
        return
    with home.local_server() as server:
        yield server.environ


def push(home: Home, environ: dict[str, str], number: int, *, name: str = "model.bin") -> Any:
    """Store content of a number under a name."""
    (home.folder / "source").write_bytes(octets(number, SIZE))
    return home.result("push", home.folder / "source", "--name", name, "--quiet", environ=environ)


def listed(home: Home, environ: dict[str, str]) -> list[str]:
    """The ids of all records, the newest first."""
    return [record["id"] for record in home.result("ls", environ=environ)["files"]]


def ids(result: Any) -> list[str]:
    """The ids of the removed records."""
    return [record["id"] for record in result["removed"]]


def test_rm_chooses_versions(home: Home, environ: dict[str, str]) -> None:
    """A name means its newest version, a revision one version, a rule those that it does not keep, and --all each."""
    first, second, third, fourth = [push(home, environ, number)["id"] for number in range(4)]
    digest = push(home, environ, 1, name="other.bin")["digest"]
    other = listed(home, environ)[0]

    planned = home.result("rm", "model.bin", "--dry-run", environ=environ)
    assert ([fourth], True, {"model.bin": 3}) == (ids(planned), planned["dry_run"], planned["remaining"])
    assert planned["freed_size"] > SIZE
    assert [other, fourth, third, second, first] == listed(home, environ)

    done = home.run("rm", "model.bin", environ=environ)
    assert "3 versions of model.bin remain" in done.stdout
    assert f"({planned['freed_size']} bytes) that no other file needs can be freed" in done.stderr
    shared = home.result("rm", "model.bin@~1", environ=environ)
    assert ([second], {"model.bin": 2}) == (ids(shared), shared["remaining"])
    assert shared["freed_size"] < 1000
    second = push(home, environ, 1)["id"]

    refused = home.failure("rm", digest, environ=environ)
    assert f"{digest!r} names no file: 2 records have this content ('model.bin', 'other.bin'); give the id of one" in refused
    assert "nobody can be asked here; --yes removes them" in home.failure("rm", digest, "--all", environ=environ)
    assert {second, other} == set(ids(home.result("rm", digest, "--all", "--yes", environ=environ)))

    fifth = push(home, environ, 5)["id"]
    assert [] == ids(home.result("rm", "model.bin", "--older-than", "1h", environ=environ))
    assert [third, first] == ids(home.result("rm", "model.bin", "--keep-last", "1", environ=environ))
    assert [fifth] == ids(home.result("rm", "model.bin", "--all", "--yes", environ=environ))
    assert [] == listed(home, environ)


def test_versions_with_labels_stay(home: Home, environ: dict[str, str]) -> None:
    """A version with a tag or a branch is removed by force only. A rule leaves it out and says so, as what the name means."""
    first, second, third, fourth = [push(home, environ, number)["id"] for number in range(4)]
    home.result("tag", "model.bin@~3", "v1", environ=environ)
    home.result("tag", "model.bin@~2", "dev", "--branch", environ=environ)

    for dry in ((), ("--dry-run",)):
        refused = home.run("rm", "model.bin@v1", *dry, environ=environ)
        assert (1, "") == (refused.returncode, refused.stdout)
        assert f"{first} has the label v1; remove each label" in refused.stderr
        assert "`filestore tag --delete` removes one" in refused.stderr
    planned = home.run("rm", "model.bin", "--keep-last", "1", "--dry-run", environ=environ)
    assert "2 versions of model.bin have a tag or a branch, which keeps them; --force removes them too" in planned.stderr
    ruled = home.result("rm", "model.bin", "--keep-last", "1", environ=environ)
    assert ([third], {"model.bin": 3}, {"model.bin": 2}) == (ids(ruled), ruled["remaining"], ruled["labelled"])
    assert [fourth] == ids(home.result("rm", "model.bin", environ=environ))
    assert [second] == ids(home.result("rm", "model.bin", "--force", environ=environ))
    assert ["dev", "v1"] == [label["name"] for label in home.result("tag", "model.bin", environ=environ)["labels"]]
    assert [first] == ids(home.result("rm", "model.bin", "--all", "--yes", "--force", environ=environ))
    assert [] == listed(home, environ)


async def test_a_name_means_the_newest_version_of_main(home: Home, environ: dict[str, str]) -> None:
    """A version that was stored later on another branch is neither removed in its place, nor keeps it from a rule."""
    first, second = [push(home, environ, number)["id"] for number in range(2)]
    home.result("tag", "model.bin", "dev", "--branch", environ=environ)
    async with connect(environ.get("FILESTORE_URL", home.data), token=environ.get("FILESTORE_TOKEN")) as repository:
        other = await repository.record(Reference(id=push(home, environ, 2, name="other.bin")["id"]))
        manifest = await repository.manifest(other.digest)
        third = (await repository.commit(manifest, name="model.bin", commit=NewCommit(branch="dev"))).id
    assert [third, second, first] == [each for each in listed(home, environ) if each != other.id]
    assert second == home.result("info", "model.bin", environ=environ)["id"]
    assert third == home.result("info", "model.bin@dev", environ=environ)["id"]
    assert [first] == ids(home.result("rm", "model.bin", "--keep-last", "1", environ=environ))
    assert [second] == ids(home.result("rm", "model.bin", environ=environ))


@pytest.mark.slow
def test_rm_of_an_old_version_leaves_what_the_name_means(home: Home, environ: dict[str, str], tmp_path: Path) -> None:
    """After A, B, A, the oldest commit and the newest one stored one record, which only `--force` removes by the oldest."""
    for number, content in enumerate((b"A", b"B", b"A")):
        (tmp_path / f"{number}.bin").write_bytes(content)
        home.result("push", tmp_path / f"{number}.bin", "--name", "model.bin", environ=environ)
    for option in ((), ("--dry-run",)):
        said = home.failure("rm", "model.bin@~2", *option, environ=environ)
        assert said.startswith("model.bin@~2 was not removed: the newest commit of 'model.bin' stored the same content")
    assert 3 == len(home.result("log", "model.bin", environ=environ)["commits"])
    home.result("rm", "model.bin@~2", "--force", environ=environ)
    assert 1 == len(home.result("log", "model.bin", environ=environ)["commits"])


def test_rm_removes_what_it_can(home: Home) -> None:
    """Several arguments of every kind; each failure has a message, and the exit status is 1."""
    records = [push(home, {}, number, name=f"{number}.bin") for number in range(4)]
    wanted = [records[0]["id"], records[0]["id"], "1.bin", records[2]["digest"], records[3]["path"]]
    done = home.run("rm", "nothing.bin", *wanted, "a/b/c", "0.bin@~1", "1.bin@v2", "--json")
    assert 1 == done.returncode
    result = json.loads(done.stdout)
    assert [record["id"] for record in records] == ids(result)
    assert ["nothing.bin", "a/b/c", "0.bin@~1", "1.bin@v2"] == [failed["reference"] for failed in result["failed"]]
    assert 4 == done.stderr.count("Error: ")
    assert "'0.bin' has no version '~1'" in done.stderr
    assert "'0.bin' has 1 version\n" in done.stderr
    assert [] == listed(home, {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--all", "--keep-last", "1"), "give one of them"),
        (("--keep-last", "0"), "a whole number from 1 is expected"),
        (("--older-than", "1y"), "'1y' is not a time such as 24h"),
    ],
)
def test_rm_refuses_impossible_options(home: Home, arguments: tuple[str, ...], said: str) -> None:
    """They are wrong usage."""
    done = home.run("rm", "model.bin", *arguments)
    assert 2 == done.returncode
    assert said in " ".join(done.stderr.split())


def test_rules_are_for_names(home: Home) -> None:
    """An id, a digest and a revision mean one version, so no rule can choose among them."""
    record = push(home, {}, 1)
    for reference in (record["id"], record["digest"], record["path"], "model.bin@~0"):
        assert "choose among the versions of a name" in home.failure("rm", reference, "--keep-last", "1")
    assert "it means one version, and --all means all" in home.failure("rm", "model.bin@~0", "--all", "--yes")
    assert [record["id"]] == listed(home, {})


@pytest.mark.parametrize(("answer", "status", "left"), [("n", 1, 2), ("y", 0, 0)])
def test_rm_asks_in_a_terminal(home: Home, answer: str, status: int, left: int) -> None:
    """Before --all. Nothing is removed unless the answer is yes."""
    for number in range(2):
        push(home, {}, number)
    ours, theirs = pty.openpty()
    command: list[str | Path] = [SCRIPTS / "filestore", "rm", "model.bin", "--all"]
    with subprocess.Popen(
        command, env=home.environ, cwd=home.folder, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        assert status == process.wait(timeout=60)
    os.close(ours)
    assert left == len(listed(home, {}))


def on_disk(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def test_du_and_rm_say_that_a_collection_is_held(home: Home, environ: dict[str, str]) -> None:
    """What they say can be freed is not freed before the hold has ended."""
    push(home, environ, 1)
    assert (None, False) == (
        home.result("du", environ=environ)["hold"],
        home.result("rm", "model.bin", "--dry-run", environ=environ)["is_held"],
    )
    hold = {"reason": "a backup was restored", "since": 1, "manifest_count": 2}
    with closing(sqlite3.connect(home.data / "index.sqlite", timeout=60)) as index:
        index.execute("INSERT INTO tasks (namespace, task, state) VALUES ('default', 'hold', ?)", (json.dumps(hold),))
        index.commit()
    assert hold | {"namespace": "default"} == home.result("du", environ=environ)["hold"]
    assert (
        "held      [default] 2 manifests had no record, because a backup was restored" in home.run("du", environ=environ).stdout
    )
    assert home.result("rm", "model.bin", "--dry-run", environ=environ)["is_held"]
    assert "nothing is freed before `filestore gc --end-hold`" in home.run("rm", "model.bin", environ=environ).stderr


def test_du_agrees_with_the_disk(home: Home, environ: dict[str, str]) -> None:
    """All figures add up to the bytes of the files."""
    push(home, environ, 1)
    push(home, environ, 2)
    push(home, environ, 2, name="twin.bin")
    push(home, environ, 3, name="gone.bin")
    home.result("rm", "gone.bin", environ=environ)
    cache = home.folder / "cache"
    home.result("cache", "warm", "model.bin", "--cache", cache, "--quiet", environ=environ)

    usage = home.result("du", "--cache", cache, environ=environ)
    content = sum(on_disk(home.data / kind / "default") for kind in ("chunks", "manifests"))
    figures = ("needed_size", "manifests_size", "free_size", "waiting_size")
    assert content == sum(usage[figure] for figure in figures)
    assert (3 * SIZE, 2 * SIZE) == (usage["logical_size"], usage["distinct_size"])
    assert usage["waiting_size"] > SIZE
    by_name = {name["name"]: name for name in usage["names"]}
    assert usage["needed_size"] == by_name["model.bin"]["own_size"] + by_name["model.bin"]["shared_size"]
    assert by_name["twin.bin"]["shared_size"] == by_name["model.bin"]["shared_size"] > 0 == by_name["twin.bin"]["own_size"]
    assert usage["cache"]["stored_size"] >= SIZE
    if environ:
        assert usage["other_files"] is None
    else:
        assert on_disk(home.data) == content + sum(usage["other_files"].values())
        at_once = environ | {"FILESTORE_GC_GRACE": "0s"}
        free = home.result("du", environ=at_once)["free_size"]
        assert SIZE < free == home.result("gc", environ=at_once)["freed_size"]
        assert on_disk(home.data / "chunks") + on_disk(home.data / "manifests") == content - free
    printed = home.run("du", "--limit", "1", "--cache", home.folder / "nothing", environ=environ).stdout
    assert "and 1 more names" in printed
    assert "cache " not in printed.replace(str(home.folder), "")
