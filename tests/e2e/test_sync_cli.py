"""The command sync, in both directions, with a folder and a server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home
from tests.support.generator import octets
from tests.support.server import eventually

pytestmark = pytest.mark.slow

NAME = "team/my-model"


@pytest.fixture(params=["folder", "server"])
def environ(request: pytest.FixtureRequest, home: Home) -> Iterator[dict[str, str]]:
    """The variables for a repository in a folder, or at a server."""
    if request.param == "folder":
        yield {}
        return
    with home.local_server() as server:
        yield server.environ


def files(folder: Path) -> dict[str, bytes]:
    """The files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(home: Home, environ: dict[str, str]) -> None:
    """A sync to a name stores what differs in one version, and a sync to a folder receives it."""
    here, there = home.folder / "here", home.folder / "there"
    here.mkdir()
    (here / "weights.bin").write_bytes(octets(1, 300_000))
    (here / "old.json").write_bytes(b"old")
    home.result("sync", "./here", NAME, environ=environ)
    home.result("sync", NAME, "./there", environ=environ)
    assert files(here) == files(there)

    (here / "old.json").unlink()
    (here / "new.json").write_bytes(b"newer")
    planned = home.run("sync", "./here", NAME, "--delete", "--plan", environ=environ)
    assert planned.stdout.splitlines()[:2] == ["add          5 B  new.json", "remove       3 B  old.json"]
    assert planned.stdout.endswith("Nothing was changed.\n")
    assert "\nadded       1 file, 5 bytes\nchanged     0 files, 0 bytes\n" in planned.stdout
    done = home.result("sync", "./here", NAME, "--delete", "--message", "Why.", environ=environ)
    assert [("new.json", "add", 5), ("old.json", "remove", 3)] == [tuple(each.values()) for each in done["changes"]]
    assert ["Why.", ""] == [commit["message"] for commit in home.result("log", NAME, environ=environ)["commits"]]

    (there / "mine").write_bytes(b"mine")
    home.result("sync", NAME, "./there", environ=environ)
    assert files(here) | {"mine": b"mine", "old.json": b"old"} == files(there)
    home.result("sync", NAME, "./there", "--delete", environ=environ)
    assert files(here) == files(there)
    home.result("sync", f"{NAME}@~1", "there/", environ=environ)
    assert b"old" == (there / "old.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("./one", "./two"), "SOURCE and TARGET are both folders"),
        (("folder", "folder"), "both could be folders; begin the folder with ./"),
        (("name", "other"), "neither is a folder that exists; begin the folder with ./, as in ./name or ./other"),
        (("name", "./folder", "--message", "Why."), "--message is about a new version of a name"),
    ],
)
def test_wrong_usage(home: Home, arguments: tuple[str, ...], said: str) -> None:
    """It must be clear which one is the folder."""
    (home.folder / "folder").mkdir()
    done = home.run("sync", *arguments)
    assert (2, "") == (done.returncode, done.stdout)
    assert said in " ".join(done.stderr.split())


def test_what_cannot_be_stored(home: Home) -> None:
    """The advice names no option that the command does not have."""
    folder = home.folder / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("../outside")
    (home.folder / "outside").touch()
    said = home.failure("sync", "./folder", NAME)
    assert "is a link that leads out" in said
    assert said.endswith("`filestore push` has --symlinks and --exclude for that, and `filestore sync` takes all files")


def test_the_folder_is_found_without_a_mark(home: Home) -> None:
    """If only one of the two is a folder, it is meant."""
    (home.folder / "folder").mkdir()
    (home.folder / "folder/file").write_bytes(b"content")
    assert 1 == len(home.result("sync", "folder", "name")["changes"])
    (home.folder / "folder/file").unlink()
    assert 1 == len(home.result("sync", "name", "folder")["changes"])
    assert "neither" not in home.failure("sync", "absent", "folder")


def test_a_sync_to_a_folder_that_is_killed_leaves_no_half_file(home: Home) -> None:
    """Each file is the old one or the new one, and the next sync completes it."""
    folder = home.folder / "folder"
    folder.mkdir()
    for seed in range(10):
        (folder / f"{seed}.bin").write_bytes(octets(seed, 4 << 20))
    new = files(folder)
    home.result("sync", "./folder", NAME, "--quiet")
    for seed in range(10):
        (folder / f"{seed}.bin").write_bytes(octets(100 + seed, 4 << 20))
    old = files(folder)

    process = subprocess.Popen(
        [SCRIPTS / "filestore", "sync", NAME, "./folder", "--quiet"], env=home.environ, cwd=home.folder, stdout=subprocess.DEVNULL
    )
    eventually(lambda: (folder / "0.bin").read_bytes() == new["0.bin"] or process.poll() is not None)
    process.kill()
    process.wait()
    found = files(folder)
    assert all(found[name] in {old[name], new[name]} for name in new)
    assert set(new) <= set(found)
    home.result("sync", NAME, "./folder", "--quiet")
    assert new == {name: data for name, data in files(folder).items() if name in new}
    assert [] == home.result("leftovers", folder)["leftovers"]
