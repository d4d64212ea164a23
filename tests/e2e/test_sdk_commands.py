"""Every subcommand of three versions of the Pipeline SDK, unmodified, against one runtime."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.commands import REPOSITORY, Home, scripts_of
from tests.support.runtimes import TOKEN, VENVS, RunningRuntime, running_runtime

DOC = (REPOSITORY / "docs/sdk.md").read_text().partition("## The examples of the SDK's documentation")[0]
ROW = re.compile(r"^\| `(pipeline .*?)` \| (.*) \|$", re.MULTILINE)
PIECE = re.compile(r"`(.*?)`")
NO_COMMAND = "the SDK has no such command"
VERBS = ("create", "get", "edit", "delete", "cluster")

UPLOAD = """
import json, sys
from pathlib import Path
from pipeline import Pipeline, Variable, pipe
from pipeline.cloud.pipelines import upload_pipeline
from pipeline.objects import File

@pipe
def read(text, file):
    return text + file.path.read_text()

with Pipeline() as builder:
    text = Variable(str, is_input=True)
    file = File(path=Path(sys.argv[2]))
    builder.output(read(text, file))
graph = builder.get_pipeline()
if not any(variable is file for variable in graph.variables):
    graph.variables.append(file)
uploaded = upload_pipeline(graph, sys.argv[1], "default")
print(json.dumps([uploaded.id, str(file.path)]))
"""

TYPE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pipeline.console import _run
outputs = []
for sys.argv[1:] in json.loads(sys.argv[1]):
    with io.StringIO() as output:
        with suppress(SystemExit), redirect_stdout(output), redirect_stderr(output):
            _run()
        outputs.append(output.getvalue())
print(json.dumps(outputs))
"""
"""What the script `pipeline` does, for many commands in one process. That script may be the one of filestore."""


class User(NamedTuple):
    """A user of one version of the SDK, who has uploaded a pipeline."""

    version: str
    home: Home
    environ: dict[str, str]
    name: str
    pipeline_id: str
    file_id: str
    """The id of the pipeline's static file."""
    said: str
    """What the upload printed."""

    def pipeline(self, *commands: list[str]) -> list[str]:
        """Return all output of each command. Its exit status is not checked."""
        done = _python(self.version, self.home, self.environ, "-c", TYPE, json.dumps(commands))
        outputs: list[str] = json.loads(done[0])
        return outputs


def _python(version: str, home: Home, environ: dict[str, str], *arguments: str | Path) -> tuple[str, str]:
    done = home.run(*arguments, program=scripts_of(VENVS[version]) / "python", environ=environ)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRuntime]:
    """A runtime that all tests of this module share."""
    folder = tmp_path_factory.mktemp("runtime")
    with running_runtime(Home(folder), folder / "root") as runtime:
        yield runtime


@pytest.fixture(scope="module", params=VENVS)
def user(request: pytest.FixtureRequest, runtime: RunningRuntime, tmp_path_factory: pytest.TempPathFactory) -> User:
    """A user of each version."""
    home = Home(tmp_path_factory.mktemp("user"))
    (home.folder / "my_file.txt").write_text(f"static, {request.param}")
    (home.folder / "my_dir").mkdir()
    environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
    name = f"team/model-{request.param}"
    said, errors = _python(request.param, home, environ, "-c", UPLOAD, name, home.folder / "my_file.txt")
    assert said, errors
    pipeline_id, path = json.loads(said.splitlines()[-1])
    # Version 1.0.26 does not say the id.
    (file_id,) = [record["id"] for record in runtime.ask("GET", "/v3/pipeline_files").json if record["path"] == path]
    return User(request.param, home, environ, name, pipeline_id, file_id, said)


@pytest.mark.slow
def test_an_upload_tells_the_pointer_of_its_version(user: User) -> None:
    """It is also the first of the pointers of the name, and the runs of all of them are those of this pipeline."""
    assert f"Uploaded pipeline '{user.name}:v1' with ID = {user.pipeline_id}" in user.said


@pytest.mark.slow
def test_a_static_file_is_not_removed_and_a_graph_is_not_listed(user: User, runtime: RunningRuntime) -> None:
    """Neither through the server nor in its folder, whoever asks. The error has the name of the pipeline."""
    listed = {record["id"] for record in runtime.ask("GET", "/v3/pipeline_files").json}
    pipeline = runtime.ask("GET", f"/v3/pipelines/{user.name}").json
    answer = runtime.ask("DELETE", f"/native/v1/files/{user.file_id}")

    assert user.file_id in listed
    assert pipeline["path"] not in {record["path"] for record in runtime.ask("GET", "/v3/pipeline_files").json}
    assert (409, f"{user.name}:v1") == (answer.status, answer.json["pipelines"])
    for environ in ({"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}, {"FILESTORE_URL": str(runtime.server.root)}):
        said = user.home.failure("rm", user.file_id, environ=environ)
        assert said.startswith(f"{user.file_id} is needed by the pipeline {user.name}:v1; ")
        assert "--force removes the file" in said
        assert listed == {record["id"] for record in user.home.result("ls", environ=environ)["files"]}


@pytest.mark.slow
def test_every_command_prints_what_the_page_says(user: User, runtime: RunningRuntime) -> None:
    """In the order of the page."""
    known = {"PIPELINE": user.pipeline_id, "NAME": user.name, "TOKEN": TOKEN, "URL": runtime.server.url}

    def fill(text: str) -> str:
        return re.sub("|".join(known), lambda found: known[found[0]], text)

    rows = [row for row in ROW.findall(DOC) if row[1] != NO_COMMAND]
    outputs = user.pipeline(*(fill(command).split()[1:] for command, _ in rows))

    for (command, printed), output in zip(rows, outputs, strict=True):
        for piece in PIECE.findall(printed):
            assert fill(piece) in output, (command, output)


@pytest.mark.slow
def test_a_deleted_pipeline_has_left_its_files(user: User, runtime: RunningRuntime) -> None:
    """Its static file may be removed, in the folder while the server runs. Its graph is gone."""
    folder = {"FILESTORE_URL": str(runtime.server.root)}

    assert user.file_id == user.home.result("rm", user.file_id, environ=folder)["removed"][0]["id"]
    assert 404 == runtime.ask("GET", f"/v3/pipelines/{user.pipeline_id}").status
    graph = user.home.failure("info", f"{user.pipeline_id}.graph", environ=folder)
    assert f"{user.pipeline_id}.graph" in graph


@pytest.mark.slow
def test_every_subcommand_of_the_sdk_is_in_the_table(user: User) -> None:
    """Neither more nor fewer; those that the SDK does not have print its usage."""
    helps = user.pipeline(*([verb, "--help"] for verb in VERBS))
    listed = {(verb, target) for verb, text in zip(VERBS, helps, strict=True) for target in _subcommands(text)}
    described = {tuple(command.split()[1:3]) for command, printed in ROW.findall(DOC) if printed != NO_COMMAND}
    absent = {
        tuple(command.removeprefix("pipeline ").split())
        for line in DOC.splitlines()
        if NO_COMMAND in line
        for command in PIECE.findall(line)
    }

    plural = {(verb, {"pointer": "pointers"}.get(target, target)) for verb, target in described}
    assert listed == plural
    assert set() == absent & listed


def _subcommands(text: str) -> set[str]:
    """Return the subcommands that a help text names, without their short forms."""
    return set(re.findall(r"^    ([a-z]+)", text, re.MULTILINE))
