"""The tensors of stored files, and what is different between two of them, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.models import gguf_file, safetensors_file, tensor
from tests.support.trees import Planted, plant

TENSORS = [
    tensor("embed\x1b[31m.weight", 300, 512, seed=1, dtype="BF16"),
    tensor("norm", 512, seed=2, dtype="F32"),
    tensor("scale", seed=3, dtype="F16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_tensors_are_listed(home: Home, tmp_path: Path, kind: str) -> None:
    """Of a file, of its versions, and of a file of a directory, in the order of their data."""
    content = safetensors_file(TENSORS) if kind == "safetensors" else gguf_file(TENSORS)
    folder = plant(tmp_path / "my_model", {f"model.{kind}": content, "config.json": b"{}"})
    home.result("push", folder / f"model.{kind}", "--create")
    home.result("push", folder)
    listed = home.result("ls", f"model.{kind}", "--tensors")
    assert kind == listed["format"]
    assert [(each.name, each.dtype, list(each.shape)) for each in TENSORS] == [
        (each["name"], each["dtype"], each["shape"]) for each in listed["tensors"]
    ]
    assert all(
        each.data == content[found["offset"] : found["offset"] + found["size"]]
        for each, found in zip(TENSORS, listed["tensors"], strict=True)
    )
    assert listed == home.result("ls", f"model.{kind}@~0", "--tensors")
    inside = home.result("ls", f"my_model.zip:model.{kind}", "--tensors")
    assert (f"model.{kind}", "my_model.zip") == (inside["path"], inside["name"])
    assert listed["tensors"] == inside["tensors"]
    assert listed["tensors"][:1] == home.result("ls", f"model.{kind}", "--tensors", "--limit", "1")["tensors"]

    lines = home.run("ls", f"my_model.zip:model.{kind}", "--tensors").stdout.splitlines()
    assert lines[:4] == [
        "DTYPE  SHAPE         SIZE  NAME",
        "BF16   300 x 512   307 kB  embed\\x1b[31m.weight",
        "F32    512        2.05 kB  norm",
        "F16    scalar         2 B  scale",
    ]
    assert lines[4].startswith(f"3 tensors, 309 kB in my_model.zip:model.{kind} ({kind}) in ")


@pytest.mark.slow
def test_what_has_no_tensors(home: Home, tmp_path: Path) -> None:
    """Each failure says what to give in place of it."""
    home.result("push", plant(tmp_path / "my_model", {"config.json": b"{}", "empty.gguf": gguf_file([])}), "--create")
    assert "not a safetensors or GGUF file" in home.failure("ls", "--tensors", "my_model.zip:config.json")
    assert "give the path of one of its files after a ':'" in home.failure("ls", "--tensors", "my_model.zip")
    assert "has no entry 'absent'" in home.failure("ls", "--tensors", "my_model.zip:absent")
    assert "did you mean 'my_model.zip'" in home.failure("ls", "--tensors", "my_model:config.json")
    assert home.run("ls", "my_model.zip:empty.gguf", "--tensors").stdout.startswith("0 tensors, 0 B in ")
    assert "--tensors is for one file" in home.run("ls", "--tensors").stderr


@pytest.fixture
def versions(home: Home, tmp_path: Path) -> Path:
    """Two versions of a directory, and the folder of the second one."""
    things: dict[str, Planted] = {"model.safetensors": safetensors_file(TENSORS), "config.json": b"{}", "a.txt": b"a"}
    home.result("push", plant(tmp_path / "first/my_model", things), "--create")
    other = tensor("norm", 512, seed=9, dtype="F32")
    things = {"model.safetensors": safetensors_file([TENSORS[0], other, TENSORS[2]]), "config.json": b"{}", "b.txt": b"b"}
    second = plant(tmp_path / "second/my_model", things)
    home.result("push", second)
    return second


@pytest.mark.slow
def test_two_versions_are_compared(home: Home, versions: Path) -> None:
    """By file and by tensor; the status tells only if that is asked for."""
    done = home.run("diff", "my_model.zip@~1", "my_model.zip")
    assert (0, "") == (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert "files       1 changed, 1 added, 1 removed, 1 same" in lines
    assert not any(line.startswith("to send") for line in lines)
    assert "added               1 B        1 B  b.txt" in lines
    assert "tensors in model.safetensors: 1 changed, 2 same" in lines
    assert lines[-1] == "changed  F32    512    2.05 kB  norm"
    assert 3 == home.run("diff", "my_model.zip@~1", "my_model.zip", "--exit-code").returncode
    assert 0 == home.run("diff", "my_model.zip", "my_model.zip@main", "--exit-code").returncode

    found = home.result("diff", "my_model.zip@~1", "my_model.zip")
    assert [("a.txt", "removed"), ("b.txt", "added"), ("model.safetensors", "changed")] == [
        (file["path"], file["status"]) for file in found["files"]
    ]
    shown = {"dtype": "F32", "shape": [512], "size": 2048}
    assert [{"name": "norm", "status": "changed", "old": shown, "new": shown}] == found["files"][2]["tensors"]
    assert (2, 1, None) == (found["files"][2]["same_tensors"], found["same_count"], found["bytes_to_send"])


@pytest.mark.slow
def test_a_local_path_is_compared(home: Home, versions: Path) -> None:
    """A path is told from a name, and the last lines tell how to see more."""
    folder = versions.parent
    (versions / "config.json").write_bytes(b"{ }")
    for number in range(12):
        (versions / f"{number:02}.txt").write_text(str(number))
    found = home.result("diff", "my_model.zip", versions)
    assert 13 == len(found["files"])
    assert 0 < found["bytes_to_send"] <= found["bytes_new"]
    lines = home.run("diff", "my_model.zip", "my_model", cwd=folder).stdout.splitlines()
    assert lines[-1] == "3 more files; --all shows them, and --json shows everything"
    whole = home.run("diff", "my_model.zip", "./my_model", "--all", cwd=folder).stdout.splitlines()
    assert 13 == sum(line.startswith(("added ", "changed ")) and "norm" not in line for line in whole)
    some = home.result("diff", "my_model.zip", versions, "--exclude", "[01]?.txt")
    assert [("config.json", "changed")] == [(file["path"], file["status"]) for file in some["files"]]
    # Where both could be paths, the first one is the stored one.
    (folder / "my_model.zip").mkdir()
    assert "my_model.zip, " in home.run("diff", "my_model.zip", "my_model", cwd=folder).stdout
    assert "one of them must name a stored file" in home.failure("diff", "./my_model.zip", versions, cwd=folder)
    # Unless the first one is marked.
    assert "my_model.zip, " in home.run("diff", "./my_model", "my_model.zip", cwd=folder).stdout
    assert "begins with ./, as in ./my_model" in home.failure("diff", "my_model", "./my_model.zip", cwd=folder)


@pytest.mark.slow
def test_a_token_that_only_reads_compares_a_local_path(home: Home, versions: Path) -> None:
    """What a push would send is not told to it."""
    with home.local_server() as server:
        made = home.result("token", "new", "--scope", "read", "--root", server.root)
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": made["token"]}
        (versions / "config.json").write_bytes(b"{ }")
        found = home.result("diff", "my_model.zip", versions, environ=environ)
        assert (None, ["config.json"]) == (found["bytes_to_send"], [file["path"] for file in found["files"]])
        assert "to send" not in home.run("diff", "my_model.zip", versions, environ=environ).stdout


@pytest.mark.slow
def test_what_cannot_be_compared(home: Home, versions: Path) -> None:
    """The error says what is meant."""
    assert "did you mean 'my_model.zip'" in home.failure("diff", "my_model", "my_model.zip")
    assert "is a directory and" in home.failure("diff", "my_model.zip", "my_model.zip:config.json")
    assert "are for a directory of this machine" in home.run("diff", "my_model.zip", "x", "--include", "*").stderr
    assert "is not a directory; --symlinks" in home.failure("diff", "x", versions / "config.json", "--include", "*")
    assert "has no entry 'absent'" in home.failure("diff", "my_model.zip:absent", versions)
