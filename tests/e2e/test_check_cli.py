"""The command check, as a user runs it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import AS_ANY_USER, SCRIPTS, Home, notes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one file, which each test copies."""
    folder = tmp_path_factory.mktemp("template")
    home = Home(folder)
    (folder / "model.bin").write_bytes(random.Random(3).randbytes(3 << 20))
    home.result("push", folder / "model.bin", "--create", "--url", folder / "root")
    return folder / "root"


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of the repository."""
    return Path(shutil.copytree(template, tmp_path / "root"))


def flip(root: Path) -> None:
    """Flip a bit of the largest frame."""
    path = max(root.glob("chunks/*/*/*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def checked(home: Home, root: Path, *options: str) -> tuple[int, Any]:
    """Return the exit status of a check, and its JSON object."""
    done = home.run("check", "--root", root, *options, "--json")
    return done.returncode, json.loads(done.stdout)


def test_sound_repository_gives_status_0(home: Home, root: Path) -> None:
    """With and without reading the data, also by --url."""
    status, result = checked(home, root, "--read-data")
    assert (0, 0, 0) == (status, result["damage_count"], result["file_count"])
    assert result["read_size"] == result["stored_size"] > 3 << 20
    assert "no damage" in home.run("check", "--url", root).stdout


def test_damage_gives_status_1_and_the_names_of_files(home: Home, root: Path) -> None:
    """The last line on standard error is the failure; standard output has the report."""
    flip(root)
    status, result = checked(home, root, "--read-data")
    assert (1, ["frame-changed"], ["model.bin"]) == (
        status,
        [each["kind"] for each in result["damage"]],
        [each["name"] for each in result["files"]],
    )
    done = home.run("check", "--root", root)
    assert 1 == done.returncode
    assert "model.bin  (1 of " in done.stdout
    assert "1 file is affected; `filestore check --repair`" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_check_beside_a_server_that_receives_a_push(home: Home, root: Path, tmp_path: Path) -> None:
    """A server and a check share a folder, and neither disturbs the other."""
    source = tmp_path / "more.bin"
    source.write_bytes(random.Random(4).randbytes(2 << 20))
    with home.server(root=root, environ={"FILESTORE_TOKEN": "a-token-of-this-test"}) as server:
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": "a-token-of-this-test"}
        home.result("push", source, environ=environ)
        status, result = checked(home, root, "--read-data", "1/2")
        assert (0, 2) == (status, result["record_count"])


def test_root_has_priority_over_the_url_of_the_environment(home: Home, root: Path) -> None:
    """A user who works with a server by FILESTORE_URL can still check a folder."""
    done = home.run("check", "--root", root, environ={"FILESTORE_URL": "http://127.0.0.1:9"})
    assert (0, "") == (done.returncode, done.stderr)


def test_folder_that_cannot_be_written_is_checked(home: Home, root: Path) -> None:
    """Nothing is kept there, and the data is read."""
    before = sorted(root.rglob("*"))
    subprocess.run(["chmod", "-R", "a-w", root], check=True)
    arguments: list[str | Path] = [*AS_ANY_USER[1:], SCRIPTS / "filestore", "check", "--root", root, "--read-data"]
    done = home.run(*arguments, program=AS_ANY_USER[0]) if AS_ANY_USER else home.run(*arguments[1:])
    subprocess.run(["chmod", "-R", "u+w", root], check=True)
    assert (0, "") == (done.returncode, notes(done))
    assert "; read " in done.stdout
    assert before == sorted(root.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:9"], "run it on the machine of that server"),
        (["--url", "nowhere"], "no such folder; check the path"),
    ],
    ids=["server", "no folder"],
)
def test_other_places_are_refused(home: Home, arguments: list[str], words: str) -> None:
    """A check needs the folder itself."""
    assert words in home.failure("check", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [["--rate", "1MB"], ["--read-data", "0%"], ["--read-data", "200%"], ["--read-data", "much"], ["--read-data", "--rate", "0"]],
    ids=" ".join,
)
def test_wrong_usage_gives_status_2(home: Home, arguments: list[str]) -> None:
    """The message says what a value looks like."""
    done = home.run("check", *arguments)
    assert (2, "") == (done.returncode, done.stdout)
    assert "Error: " in done.stderr
