"""One entry of a stored directory on the command line: ls, info and fetch with a path after the reference."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.format.chunking.segments import SEGMENT_MIN
from tests.support.commands import Home
from tests.support.generator import octets
from tests.support.trees import Folder, Link, Planted, Script, plant, standing

THINGS: dict[str, Planted] = {
    ".hidden": b"a name that the user types",
    "config.json": b"{}\n",
    "latest": Link("config.json"),
    "logs": Folder(),
    "run.sh": Script(b"#!/bin/sh\n"),
    "tokenizer/inner/größe 1.txt": b"a\nb\n",
    "tokenizer/vocabulary.txt": b"words",
    "weights/model.bin": octets(1, 3 * SEGMENT_MIN),
}


@pytest.fixture(params=["folder", "server"])
def environ(request: pytest.FixtureRequest, home: Home, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What names the repository, in which a directory is stored."""
    if request.param == "server":
        with home.local_server() as server:
            home.result("push", plant(tmp_path / "my_model", THINGS), "--symlinks", "keep", environ=server.environ)
            yield server.environ
        return
    home.result("push", plant(tmp_path / "my_model", THINGS), "--symlinks", "keep", "--create")
    yield {}


@pytest.mark.slow
def test_what_is_in_a_directory(home: Home, environ: dict[str, str]) -> None:
    """It is listed folder by folder, or all of it, without fetching a file."""
    listed = home.result("ls", "my_model.zip:", environ=environ)
    top = [".hidden", "config.json", "latest", "logs", "run.sh", "tokenizer", "weights"]
    assert top == [entry["path"] for entry in listed["entries"]]
    assert ["file", "file", "link", "folder", "file", "folder", "folder"] == [entry["kind"] for entry in listed["entries"]]
    assert home.result("info", "my_model.zip", environ=environ)["id"] == listed["id"]
    assert listed == home.result("ls", "my_model.zip@~0", environ=environ)

    inside = home.result("ls", "my_model.zip:tokenizer", environ=environ)["entries"]
    assert ["tokenizer/inner", "tokenizer/vocabulary.txt"] == [entry["path"] for entry in inside]
    every = home.result("ls", "--recursive", f"{listed['id']}:", environ=environ)["entries"]
    folders = {"tokenizer", "tokenizer/inner", "weights"}
    assert sorted({*THINGS, *folders}) == sorted(entry["path"] for entry in every)
    assert every[:2] == home.result("ls", "-r", "my_model.zip:", "--limit", "2", environ=environ)["entries"]
    (one,) = home.result("ls", "my_model.zip:run.sh", environ=environ)["entries"]
    assert {"path": "run.sh", "kind": "file", "size": 10, "is_executable": True} == one
    assert [] == home.result("ls", "my_model.zip:logs", environ=environ)["entries"]

    lines = home.run("ls", "my_model.zip:", environ=environ).stdout.splitlines()
    assert "     3 B  config.json" == lines[1]
    assert "          tokenizer/" == lines[5]
    assert lines[-1].startswith("7 entries, ")


@pytest.mark.slow
def test_one_entry_is_shown(home: Home, environ: dict[str, str], tmp_path: Path) -> None:
    """With the digest that it has when it is pushed alone, if its content has chunks of its own."""
    shown = home.result("info", "my_model.zip:weights/model.bin", environ=environ)
    assert home.result("hash", tmp_path / "my_model/weights/model.bin")["digest"] == shown["digest"]
    assert ("file", 3 * SEGMENT_MIN, "my_model.zip") == (shown["kind"], shown["size"], shown["directory"]["name"])
    small = home.result("info", "my_model.zip:tokenizer/inner/größe 1.txt", environ=environ)
    assert (4, False, False) == (small["size"], small["is_executable"], "digest" in small)
    assert "folder" == home.result("info", "my_model.zip:tokenizer", environ=environ)["kind"]
    assert "executable        yes" in home.run("info", "my_model.zip:run.sh", environ=environ).stdout.splitlines()


@pytest.mark.slow
def test_one_entry_is_fetched(home: Home, environ: dict[str, str], tmp_path: Path) -> None:
    """A file by the rules of cp, a folder as a tree; the name that the user typed is the default target."""
    folder = tmp_path / "here"
    folder.mkdir()
    fetched = home.result("fetch", "my_model.zip:config.json", "-o", folder, environ=environ)
    assert (str(folder / "config.json"), 3, 1) == (fetched["path"], fetched["size"], fetched["file_count"])
    assert "config.json" == fetched["entry_path"]
    for path in ("run.sh", ".hidden", "weights/model.bin"):
        home.result("fetch", f"my_model.zip:{path}", cwd=folder, environ=environ)
        thing = THINGS[path]
        assert (thing.content if isinstance(thing, Script) else thing) == (folder / Path(path).name).read_bytes()
    assert (folder / "run.sh").stat().st_mode & stat.S_IXUSR
    fetched = home.result("fetch", "my_model.zip:tokenizer", cwd=folder, environ=environ)
    expected = {path.partition("/")[2]: thing for path, thing in THINGS.items() if path.startswith("tokenizer/")}
    assert expected == standing(folder / "tokenizer")
    assert 2 == fetched["file_count"]
    home.result("fetch", "my_model.zip:", "-o", tmp_path / "whole", environ=environ)
    assert THINGS == standing(tmp_path / "whole")


@pytest.mark.slow
def test_a_path_that_cannot_be_fetched(home: Home, environ: dict[str, str]) -> None:
    """The error says why, and what to do."""
    assert "'my_model.zip' has no entry 'missing'; `filestore ls my_model.zip:` shows its entries" == home.failure(
        "fetch", "my_model.zip:missing", environ=environ
    )
    assert "has no entry 'missing'" in home.failure("info", "my_model.zip:missing", environ=environ)
    assert "has no entry 'missing'" in home.failure("ls", "my_model.zip:missing", environ=environ)
    assert "it is a symbolic link to 'config.json'" in home.failure("fetch", "my_model.zip:latest", environ=environ)
    for option in ("--zip", "--unzip"):
        done = home.run("fetch", "my_model.zip:config.json", option, environ=environ)
        assert 2 == done.returncode
        assert "leave out --zip and --unzip" in done.stderr
