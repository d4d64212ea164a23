from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestore.transfer.sources.walk import Symlinks
from filestore_cli.transfer import SYMLINKS
from tests.support.archives import Forged, forged
from tests.support.commands import SCRIPTS, Home, Server, notes
from tests.support.trees import Folder, Link, Planted, Script, looped_tree, plant, snapshot, standing

LARGE = random.Random(3).randbytes(400_000)
THINGS: dict[str, Planted] = {
    "config.json": b"{}\n",
    "model.bin": LARGE,
    "run.sh": Script(b"#!/bin/sh\n"),
    "tokenizer/größe 1.txt": b"a\nb\n",
    "tokenizer/vocabulary.txt": b"",
    "logs": Folder(),
}
FILE_COUNT = 5
RECORD_KEYS = {"id", "name", "digest", "path", "size", "kind", "namespace", "created_at", "updated_at"}
PUSHED_KEYS = RECORD_KEYS | {
    "file_count",
    "bytes_read",
    "bytes_sent",
    "bytes_shared",
    "seconds",
    "repository",
    "repository_created",
    "commit",
}
FETCHED_KEYS = {
    *("id", "digest", "name", "path", "size", "file_count"),
    *("bytes_received", "bytes_reused", "reused_from", "was_there", "seconds", "repository"),
}
NOT_ATOMIC = "the new names were moved into it one by one, and not in one step"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small model as a directory."""
    return plant(tmp_path / "my_model", THINGS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on its first start."""
    folder = tmp_path_factory.mktemp("served")
    with Home(folder).server(root=folder / "root") as server:
        yield server


def usage_error(home: Home, *arguments: str | Path) -> str:
    """Return the message for wrong usage, with status 2 and an empty standard output."""
    done = home.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr.splitlines()[-1].removeprefix("Error: ")


def zip_of(path: Path, contents: dict[str, bytes]) -> Path:
    """A zip file as Python's own library writes it, deflated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


# Push, fetch, hash.


@pytest.mark.slow
def test_a_tree_comes_back(home: Home, tree: Path, server: Server) -> None:
    """Names, bytes, executable bits, empty folders; by way of a server, under the folder's own name."""
    pushed = home.result("push", tree, environ=server.environ)
    fetched = home.result("fetch", pushed["id"], environ=server.environ)

    assert PUSHED_KEYS == set(pushed)
    assert FETCHED_KEYS == set(fetched)
    assert ("my_model.zip", "directory", FILE_COUNT) == (pushed["name"], pushed["kind"], pushed["file_count"])
    assert ("my_model", FILE_COUNT) == (fetched["path"], fetched["file_count"])
    assert pushed["size"] == fetched["size"] > len(LARGE)
    assert standing(home.folder / "my_model") == THINGS
    assert [".local"] == [path.name for path in home.folder.glob(".*") if path.name != ".config"]


@pytest.mark.slow
def test_equal_trees_are_one(home: Home, tree: Path, tmp_path: Path) -> None:
    """Times, owners' other permissions and the folder's name make no other tree; `hash` says the same without a repository."""
    other = plant(tmp_path / "other", THINGS)
    (other / "config.json").chmod(0o600)
    os.utime(other / "model.bin", (1, 1))
    digest = home.result("hash", tree)["digest"]
    first = home.result("push", tree)
    second = home.result("push", other)

    assert {digest} == {first["digest"], second["digest"], home.result("hash", other)["digest"]}
    assert (second["bytes_sent"], second["bytes_shared"]) == (0, second["size"])
    assert first["id"] == home.result("push", tree)["id"] != second["id"]


@pytest.mark.slow
def test_a_file_alone_and_in_a_tree_is_sent_once(home: Home, tree: Path) -> None:
    """A large file of a directory shares its chunks with the same file on its own."""
    home.result("push", tree / "model.bin")
    pushed = home.result("push", tree)

    assert pushed["bytes_sent"] < 3000
    assert pushed["bytes_shared"] == len(LARGE)


@pytest.mark.slow
def test_a_push_for_a_person(home: Home, tree: Path) -> None:
    """As for a file, and how many files it has."""
    pushed = home.run("push", tree)
    fetched = home.run("fetch", "my_model.zip")

    assert [line.split()[0] for line in pushed.stdout.splitlines()] == [
        *("id", "digest", "path", "name", "size", "files", "sent", "shared", "time", "repository"),
    ]
    assert "files       5\n" in pushed.stdout
    assert [line.split()[0] for line in fetched.stdout.splitlines()] == [
        *("path", "digest", "size", "files", "received", "reused", "time", "repository"),
    ]
    assert (notes(pushed), notes(fetched)) == ("", "")
    assert "  my_model.zip  (directory)\n" in home.run("ls").stdout
    assert "kind        directory\n" in home.run("info", "my_model.zip").stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["."], ["../my_model/"], ["../my_model/tokenizer/.."]])
def test_a_directory_by_another_path_has_its_own_name(home: Home, tree: Path, arguments: list[str]) -> None:
    """The record has the name of the folder that the path means, and never `.` or `..`."""
    done = home.run("push", *arguments, "--json", cwd=tree)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "my_model.zip"


@pytest.mark.slow
def test_a_name_of_ones_own(home: Home, tree: Path) -> None:
    """--name names the zip; its tree is called so, without .zip where there is one."""
    assert home.result("push", tree, "--name", "v2")["name"] == "v2"
    assert home.result("fetch", "v2")["path"] == "v2"
    home.result("push", tree, "--name", "v3.zip")
    assert home.result("fetch", "v3.zip")["path"] == "v3"


@pytest.mark.slow
@pytest.mark.parametrize("name", [".zip", "..zip", "...zip"])
def test_a_name_that_would_lead_elsewhere(home: Home, tree: Path, tmp_path: Path, name: str) -> None:
    """A tree is written under its own name, and never as the current folder or its parent."""
    home.result("push", tree, "--name", name)
    (tmp_path / "in").mkdir()
    assert home.result("fetch", name, "--force", cwd=tmp_path / "in")["path"] == name
    assert standing(tmp_path / "in" / name) == THINGS
    assert tree.exists()


@pytest.mark.slow
def test_an_empty_directory(home: Home, tmp_path: Path) -> None:
    """Nothing at all is a tree too."""
    (tmp_path / "empty").mkdir()
    pushed = home.result("push", tmp_path / "empty")
    fetched = home.result("fetch", pushed["id"])

    assert (22, 0, 0) == (pushed["size"], pushed["file_count"], fetched["file_count"])
    assert standing(home.folder / "empty") == {}


def test_a_terminal_counts_files(home: Home, tree: Path) -> None:
    """The bar of a directory says how many of its files are dealt with."""
    terminal, inner = pty.openpty()
    environ = home.environ | {"TERM": "xterm", "COLUMNS": "200"}
    subprocess.run(
        [SCRIPTS / "filestore", "push", "."], cwd=tree, env=environ, stdout=subprocess.DEVNULL, stderr=inner, check=True
    )
    os.close(inner)
    shown = os.read(terminal, 1 << 20).decode()
    os.close(terminal)

    assert "push my_model" in shown


# The zip itself, and zips of others.


@pytest.mark.slow
def test_any_tool_reads_the_zip(home: Home, tree: Path, server: Server, tmp_path: Path) -> None:
    """--zip writes what curl gets: a zip file that Info-ZIP and Python unpack to the same tree."""
    pushed = home.result("push", tree, environ=server.environ)
    fetched = home.result("fetch", pushed["id"], "--zip", "-o", tmp_path, environ=server.environ)
    path = tmp_path / "my_model.zip"
    plain = subprocess.run(
        ["curl", "-sSf", "-H", f"Authorization: Bearer {server.token}", f"{server.url}/{pushed['path']}"],
        capture_output=True,
        check=True,
    ).stdout

    assert (str(path), pushed["size"], 1) == (fetched["path"], path.stat().st_size, fetched["file_count"])
    assert plain == path.read_bytes()
    subprocess.run(["unzip", "-tqq", path], check=True)
    subprocess.run(["unzip", "-qq", path, "-d", tmp_path / "by_unzip"], env=os.environ | {"LC_ALL": "C.UTF-8"}, check=True)
    assert standing(tmp_path / "by_unzip") == THINGS
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("model.bin") == LARGE


@pytest.mark.slow
def test_a_zip_from_curl_is_unpacked(home: Home, server: Server, tmp_path: Path) -> None:
    """A zip from any tool is a file; --unzip writes its tree, whose name is that of the zip."""
    contents = {"a.txt": b"a" * 10_000, "folder/b.bin": LARGE}
    path = zip_of(tmp_path / "my_zip_file.zip", contents)
    subprocess.run(
        [
            *("curl", "-sSf", "-o", tmp_path / "answer", f"{server.url}/v3/pipeline_files"),
            *("-H", f"Authorization: Bearer {server.token}", "-F", f"pfile=@{path}"),
        ],
        check=True,
    )
    as_file = home.result("fetch", "my_zip_file.zip", environ=server.environ)
    as_tree = home.result("fetch", "my_zip_file.zip", "--unzip", environ=server.environ)

    assert ("my_zip_file.zip", "my_zip_file", 2) == (as_file["path"], as_tree["path"], as_tree["file_count"])
    assert path.read_bytes() == (home.folder / "my_zip_file.zip").read_bytes()
    assert standing(home.folder / "my_zip_file") == contents


@pytest.mark.slow
def test_options_that_change_nothing(home: Home, tree: Path, tmp_path: Path) -> None:
    """--zip of a file is the file, --unzip of a directory its tree."""
    home.result("push", tree)
    home.result("push", tree / "model.bin")

    assert home.result("fetch", "model.bin", "--zip", "-o", tmp_path / "file")["size"] == len(LARGE)
    assert home.result("fetch", "my_model.zip", "--unzip", "-o", tmp_path / "back")["file_count"] == FILE_COUNT


def test_unzip_of_what_is_not_a_zip(home: Home, tree: Path) -> None:
    """The error says that it is not a zip file, and nothing is left."""
    home.result("push", tree / "model.bin")
    before = sorted(home.folder.iterdir())

    assert "it is not a zip file, or its end is missing" in home.failure("fetch", "model.bin", "--unzip", "-o", "out")
    assert sorted(home.folder.iterdir()) == before


def test_an_unsafe_zip_is_refused_by_the_name_of_its_entry(home: Home, tmp_path: Path) -> None:
    """An entry that leads out of its folder stops the whole, in one sentence."""
    path = tmp_path / "evil.zip"
    path.write_bytes(forged([Forged("good.txt", b"good"), Forged("../evil.txt", b"evil")]))
    home.result("push", path)

    sentence = home.failure("fetch", "evil.zip", "--unzip")
    assert sentence.startswith("the entry '../evil.txt' of the archive was refused: ")
    assert not (home.folder / "evil").exists()
    assert not (home.folder / "evil.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["environment", "file"])
def test_limits_are_settings(home: Home, tmp_path: Path, by: str) -> None:
    """A bomb is refused in a sentence that names the setting, which lets it through."""
    path = zip_of(tmp_path / "zeros.zip", {"zeros": bytes(4 << 20)})
    home.result("push", path)
    sentence = home.failure("fetch", "zeros.zip", "--unzip")
    assert sentence.startswith("the ratio of what the archive unpacks to and its size is ")
    assert sentence.endswith(
        ", more than the limit of 200; if you trust it, raise the setting zip_ratio; FILESTORE_ZIP_RATIO sets it"
    )

    environ = {"FILESTORE_ZIP_RATIO": "1032"} if by == "environment" else {}
    if by == "file":
        home.config_file.write_text("zip_ratio = 1032\n")
    assert home.result("fetch", "zeros.zip", "--unzip", environ=environ)["file_count"] == 1


# Where a tree is written.


@pytest.mark.slow
def test_an_existing_empty_folder_is_filled(home: Home, tree: Path, tmp_path: Path) -> None:
    """It stays the folder that it was, and a note says that its names came one by one."""
    home.result("push", tree)
    volume = tmp_path / "volume"
    volume.mkdir()
    inode = volume.stat().st_ino
    done = home.run("fetch", "my_model.zip", "-o", volume)

    assert done.returncode == 0
    assert notes(done) == f"{volume} existed, so {NOT_ATOMIC}.\n"
    assert inode == volume.stat().st_ino
    assert standing(volume) == THINGS


@pytest.mark.slow
def test_a_new_target_needs_no_note(home: Home, tree: Path, tmp_path: Path) -> None:
    """A tree that appears in one step is nothing to speak of, nor is anything with --quiet."""
    home.result("push", tree)
    (tmp_path / "empty").mkdir()

    assert notes(home.run("fetch", "my_model.zip", "-o", tmp_path / "new/")) == ""
    assert home.run("fetch", "my_model.zip", "-o", tmp_path / "empty", "--quiet").stderr == ""


@pytest.mark.slow
def test_a_target_that_is_not_empty(home: Home, tree: Path, tmp_path: Path) -> None:
    """It is refused in a sentence that names --force, and stays as it is; with --force it is the new tree, and nothing else."""
    home.result("push", tree)
    old = plant(tmp_path / "old", {"mine.txt": b"mine", "config.json": b"old"})
    sentence = home.failure("fetch", "my_model.zip", "-o", old)
    assert sentence.startswith(f"{old} cannot be written: ")
    assert "--force" in sentence
    assert {"mine.txt": b"mine", "config.json": b"old"} == standing(old)

    done = home.run("fetch", "my_model.zip", "-o", old, "--force")
    assert (done.returncode, notes(done)) == (0, "")
    assert standing(old) == THINGS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "my_model", "old"]


@pytest.mark.slow
def test_force_takes_over_what_is_the_same(home: Home, tree: Path, tmp_path: Path) -> None:
    """Only changed files are received, and the end of the zip, which lists the others."""
    plant(tree, {"vocabulary.txt": random.Random(4).randbytes(100_000)})
    home.result("push", tree)
    target = tmp_path / "target"
    home.result("fetch", "my_model.zip", "-o", target)
    (tree / "config.json").write_bytes(b'{"changed": true}\n')
    home.result("push", tree)
    fetched = home.result("fetch", "my_model.zip", "-o", target, "--force")

    assert fetched["bytes_received"] < 110_000
    assert fetched["bytes_reused"] >= len(LARGE)
    assert standing(target) == standing(tree)


@pytest.mark.slow
def test_a_file_stands_at_the_target(home: Home, tree: Path, tmp_path: Path) -> None:
    """It is not written over, but by --force."""
    home.result("push", tree)
    target = tmp_path / "target"
    target.write_bytes(b"mine")

    assert "--force" in home.failure("fetch", "my_model.zip", "-o", target)
    assert target.read_bytes() == b"mine"
    home.result("fetch", "my_model.zip", "-o", target, "--force")
    assert standing(target) == THINGS


@pytest.mark.slow
def test_a_folder_that_is_missing(home: Home, tree: Path, tmp_path: Path) -> None:
    """Folders above the tree are made. Where the same tree is there, nothing is replaced."""
    home.result("push", tree)
    target = tmp_path / "missing/too/tree"
    first = home.result("fetch", "my_model.zip", "-o", target)
    before = {path: path.lstat().st_mtime_ns for path in target.rglob("*")}
    again = home.result("fetch", "my_model.zip", "-o", target)

    assert (False, True) == (first["was_there"], again["was_there"])
    assert before == {path: path.lstat().st_mtime_ns for path in target.rglob("*")}
    assert "already there" in home.run("fetch", "my_model.zip", "-o", target).stdout
    assert standing(target) == THINGS


def test_wrong_usage_of_fetch(home: Home) -> None:
    """Options that exclude each other are wrong usage."""
    assert (
        usage_error(home, "fetch", "x", "--zip", "--unzip")
        == "--zip writes a zip file and --unzip writes its content; give one of them"
    )


# What is taken of a directory.


@pytest.mark.slow
def test_symlink_policies(home: Home, tmp_path: Path) -> None:
    """A link inside becomes its target, unless links are kept or refused."""
    tree = plant(tmp_path / "tree", {"a.txt": b"a", "b/link": Link("../a.txt")})

    for policy, expected in {
        "inside": {"a.txt": b"a", "b/link": b"a"},
        "follow": {"a.txt": b"a", "b/link": b"a"},
        "keep": {"a.txt": b"a", "b/link": Link("../a.txt")},
    }.items():
        pushed = home.result("push", tree, "--symlinks", policy)
        assert pushed["digest"] == home.result("hash", tree, "--symlinks", policy)["digest"]
        home.result("fetch", pushed["id"], "-o", tmp_path / policy)
        assert expected == standing(tmp_path / policy)
    assert "b/link" in home.failure("push", tree, "--symlinks", "refuse")
    (tree / "b/out").symlink_to("../../out")
    for policy in ("inside", "keep"):
        assert "out" in home.failure("push", tree, "--symlinks", policy)


@pytest.mark.slow
def test_a_folder_of_links_needs_follow(home: Home, tmp_path: Path) -> None:
    """Links out of the tree are refused; the error names the option that allows them."""
    found = snapshot(tmp_path / "hub")
    # A snapshot of Hugging Face's cache is recognised by its place.
    tree = found.path.parents[1].rename(tmp_path / "copied") / "snapshots" / found.path.name
    sentence = home.failure("push", tree, "--name", "model.zip")
    assert "--symlinks follow" in sentence

    home.result("push", tree, "--name", "model.zip", "--symlinks", "follow")
    home.result("fetch", "model.zip")
    assert found.contents == standing(home.folder / "model")


def test_a_loop_of_links(home: Home, tmp_path: Path) -> None:
    """Links in a circle are an error, and are not followed for ever."""
    tree = looped_tree(tmp_path / "looped")
    for policy in ("inside", "follow"):
        assert str(tree) in home.failure("push", tree, "--symlinks", policy)


@pytest.mark.slow
def test_include_and_exclude(home: Home, tree: Path) -> None:
    """One pattern that includes is enough, one that excludes decides."""
    pushed = home.result("push", tree, "--include", "*.json", "--include", "tokenizer/*", "--exclude", "*.txt")
    home.result("fetch", pushed["id"])

    assert pushed["file_count"] == 1
    assert {"config.json": b"{}\n"} == standing(home.folder / "my_model")
    assert "model.bin" not in json.dumps(home.result("push", tree, "--dry-run", "--exclude", "*.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--symlinks", "follow"], ["--include", "*"], ["--exclude", "*"]])
@pytest.mark.parametrize("command", ["push", "hash"])
def test_a_file_has_nothing_to_select(home: Home, tree: Path, command: str, option: list[str]) -> None:
    """The options for directories are refused for a file."""
    path = tree / "config.json"
    sentence = home.failure(command, path, *option)
    assert sentence == f"{path} is not a directory; --symlinks, --include and --exclude are only for directories"


@pytest.mark.slow
def test_what_a_directory_cannot_hold(home: Home, tmp_path: Path) -> None:
    """The error about a pipe, or a name that is not UTF-8, has its path."""
    tree = plant(tmp_path / "tree", {"a": b"a"})
    os.mkfifo(tree / "pipe")
    assert str(tree / "pipe") in home.failure("push", tree)
    (tree / "pipe").unlink()
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff.bin")).write_bytes(b"x")
    assert "UTF-8" in home.failure("push", tree)
    assert home.result("ls")["files"] == []


@pytest.mark.slow
def test_what_is_not_there(home: Home, tmp_path: Path) -> None:
    """Every command that takes a directory reports a missing path."""
    for command in (["push"], ["push", "--dry-run"], ["push", "--symlinks", "keep"], ["hash"], ["create", "file", "-r"]):
        assert "No such file or directory" in home.failure(*command, tmp_path / "vanished")


def test_symlinks_are_those_of_walk() -> None:
    """The command line offers every policy that there is."""
    assert tuple(Symlinks) == SYMLINKS


# Dry run.


@pytest.mark.slow
def test_a_dry_run_sends_nothing(home: Home, tree: Path, server: Server) -> None:
    """It shows what a push would send: entry by entry, and in total."""
    environ = server.environ
    plant(tree, {"new.bin": random.Random(8).randbytes(300_000)})
    before = home.result("ls", environ=environ)["files"]
    plan = home.result("push", tree, "--dry-run", environ=environ)
    assert home.result("ls", environ=environ)["files"] == before
    assert plan == home.result("push", tree, "--dry-run", environ=environ) | {"seconds": plan["seconds"]}
    pushed = home.result("push", tree, environ=environ)

    assert {"digest", "size", "entries", "bytes_new", "bytes_shared", "bytes_read", "seconds", "repository"} == set(plan)
    assert {"name", "size", "bytes_new"} == set(plan["entries"][0])
    assert (pushed["digest"], pushed["size"], pushed["bytes_shared"]) == (*(plan["digest"], plan["size"], plan["bytes_shared"]),)
    assert pushed["size"] == plan["bytes_new"] + plan["bytes_shared"]
    assert [*(f"{name}/" if thing == Folder() else name for name, thing in sorted(standing(tree).items()))] == [
        entry["name"] for entry in plan["entries"]
    ]
    assert 300_000 <= new_bytes(plan)["new.bin"]


def new_bytes(plan: Any) -> dict[str, int]:
    """Return the new bytes of each entry."""
    return {entry["name"]: entry["bytes_new"] for entry in plan["entries"]}


@pytest.mark.slow
def test_a_dry_run_of_a_change(home: Home, tree: Path) -> None:
    """For a directory that is stored already, only changes are new."""
    home.result("push", tree)
    assert home.result("push", tree, "--dry-run")["bytes_new"] == 0
    (tree / "model.bin").write_bytes(random.Random(9).randbytes(400_000))
    plan = home.result("push", tree, "--dry-run")

    assert [name for name, new in new_bytes(plan).items() if new >= 100_000] == ["model.bin"]
    assert 400_000 <= plan["bytes_new"] < 403_000


def test_a_dry_run_for_a_person(home: Home, tree: Path) -> None:
    """A line an entry, then the totals, and that nothing was sent."""
    done = home.run("push", tree, "--dry-run")
    lines = done.stdout.splitlines()

    assert (done.returncode, notes(done)) == (0, "")
    assert lines[0] == "    size       new  name"
    assert "  400 kB    400 kB  model.bin" in lines
    assert "tokenizer/größe 1.txt" in done.stdout
    totals = lines[lines.index("") + 1 :]
    assert [*("digest", "size", "new", "shared", "time", "repository", "Nothing")] == [line.split()[0] for line in totals]
    assert "fewer are sent" in totals[2]


@pytest.mark.slow
def test_a_dry_run_of_a_file(home: Home, tree: Path) -> None:
    """A file is one entry."""
    path = tree / "model.bin"
    plan = home.result("push", path, "--dry-run")
    assert [{"name": "model.bin", "size": len(LARGE), "bytes_new": len(LARGE)}] == plan["entries"]
    assert plan["digest"] == home.result("hash", path)["digest"]
    home.result("push", path)
    assert home.result("push", path, "--dry-run")["bytes_new"] == 0


# create file.


@pytest.mark.slow
def test_create_file_of_a_directory(home: Home, tree: Path) -> None:
    """Standard output is exactly the line that scripts read, for a directory with -r."""
    done = home.run("create", "file", "-r", tree)

    [record] = home.result("ls")["files"]
    assert f"Pipeline File created with ID= {record['id']}\n" == done.stdout
    assert ("my_model.zip", "directory") == (record["name"], record["kind"])
    assert home.result("create", "file", "--recursive", tree, "-n", "alias.zip")["name"] == "alias.zip"


@pytest.mark.slow
def test_create_file_says_what_it_takes(home: Home, tree: Path) -> None:
    """A directory is refused without -r, a file with it, and nothing is recorded."""
    path = tree / "config.json"

    assert home.failure("create", "file", tree) == f"{tree} is a directory; give -r to store it"
    assert home.failure("create", "file", "-r", path) == f"{path} is not a directory; leave out -r to store it"
    assert home.result("ls")["files"] == []


# Many files.


@pytest.mark.slow
def test_thousands_of_small_files(home: Home, server: Server, tmp_path: Path) -> None:
    """They come back one by one as they were, and a second fetch elsewhere gives the same tree."""
    things: dict[str, Planted] = {f"{number % 50:02}/{number:04}.txt": str(number).encode() * 40 for number in range(3000)}
    tree = plant(tmp_path / "many", things)
    pushed = home.result("push", tree, environ=server.environ)
    fetched = home.result("fetch", pushed["id"], environ=server.environ)

    assert (3000, 3000) == (pushed["file_count"], fetched["file_count"])
    assert standing(home.folder / "many") == things
