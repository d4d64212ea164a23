"""Each version of the Pipeline SDK beside the runtime. `test_runtime.py` has the version that the extra installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.runtimes import STATIC_FILES, VENVS, make_graphs, run_static_files, running_runtime

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("version", ["1.0.12", "1.0.26"])
def test_a_version_of_the_sdk_runs_pipelines(user: Home, tmp_path: Path, version: str) -> None:
    """It runs what the same version uploads: inputs of each kind, static files, and files as outputs."""
    venv = VENVS[version]
    graphs = make_graphs(user, tmp_path / "graphs", venv=venv)
    environ = {"FILESTORE_URL_PRIVATE_ALLOWED": "yes"}
    with running_runtime(user, tmp_path / "root", environ=environ, complains=None, venv=venv) as runtime:
        static = run_static_files(user, runtime, tmp_path, venv=venv)
        (given,) = runtime.run(runtime.pipeline(graphs / "returned"), "memory")["result"]["outputs"]
        (tree,) = runtime.run(runtime.pipeline(graphs / "returned"), "directory")["result"]["outputs"]
        entered = runtime.value(
            runtime.pipeline(graphs / "entered"), *({"type": "file", "file_path": made["file"]["path"]} for made in (tree, given))
        )
        failure = runtime.failure(runtime.pipeline(graphs / "misbehave"), "raise")

    assert STATIC_FILES == static
    assert [["a.txt", "inner", "inner/a.txt", "run.sh"], True, "content"] == entered
    assert "ValueError: what a pity" == failure
