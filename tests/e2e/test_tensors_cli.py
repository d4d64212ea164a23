"""The tensors of stored files on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.models import gguf_file, safetensors_file, tensor
from tests.support.trees import plant

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
