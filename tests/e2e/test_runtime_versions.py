"""Each version of the Pipeline SDK beside the runtime. `test_runtime.py` has the version that the extra installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home, scripts_of
from tests.support.runtimes import (
    STATIC_FILES,
    TOKEN,
    VENVS,
    make_graphs,
    python_without_filestore,
    run_static_files,
    running_runtime,
)

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


def test_a_pipeline_runs_in_its_environment(user: Home, graphs: Path, tmp_path: Path) -> None:
    """The environment has a version of the SDK and no filestore. Its graphs need its Python; an unknown name is refused."""
    later = make_graphs(user, tmp_path / "graphs", venv=VENVS["1.0.26"])
    python = python_without_filestore(tmp_path / "later", venv=VENVS["1.0.26"])
    with running_runtime(user, tmp_path / "root", "--environment", f"later={python}") as runtime:
        own = runtime.pipeline(graphs / "misbehave")
        other = runtime.pipeline(later / "misbehave", environment_id_or_name="later")
        versions = [runtime.value(pipeline, "sdk") for pipeline in (own, other)]
        found = [runtime.value(pipeline, "filestore") for pipeline in (own, other)]
        files = runtime.run(runtime.pipeline(later / "returned", environment_id_or_name="later"), "file")["result"]["outputs"]
        unknown = runtime.upload((later / "misbehave").read_bytes(), environment_id_or_name="numpy")

    assert ["1.0.15", "1.0.26"] == versions
    assert [True, False] == found
    assert ["file.txt"] == [output["file"]["name"] for output in files]
    assert (400, "unknown-environment") == (unknown.status, unknown.slug)
    assert "this runtime has 2 environments: default, later" in unknown.json["detail"]


@pytest.mark.parametrize("arguments", [[], ["--environment", "new=PYTHON", "--environment", "default=PYTHON"]])
def test_a_version_that_does_not_work_is_refused_at_the_start(user: Home, tmp_path: Path, arguments: list[str]) -> None:
    """In one sentence with the versions that work, before anything is made."""
    scripts = scripts_of(".venv-container")
    given = [each.replace("PYTHON", str(scripts / "python")) for each in arguments]
    done = user.run(
        "runtime",
        "serve",
        "--root",
        tmp_path / "root",
        *given,
        program=scripts / "filestore",
        environ={"FILESTORE_TOKEN": TOKEN},
    )
    name = "new" if arguments else "default"

    assert (1, "") == (done.returncode, done.stdout)
    assert (
        f"Error: the environment '{name}' cannot be used: pipeline-ai 2.8.0 is installed there; "
        "the versions that work are 1.0.12, 1.0.15 and 1.0.26\n" == done.stderr
    )
    assert not (tmp_path / "root").exists()
