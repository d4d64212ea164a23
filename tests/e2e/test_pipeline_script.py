from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home, scripts_of
from tests.support.trees import Folder, plant, standing

SDKS = ["sdk1", "sdk2"]
CREATED = re.compile(r"Pipeline File created with ID= (file_[0-9a-f]{32})\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file."""
    path = tmp_path / "my_file.txt"
    path.write_text("content\n")
    return path


def test_create_file(home: Home, file: Path) -> None:
    """The documented words, and nothing else, on standard output."""
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline")

    created = CREATED.fullmatch(done.stdout)
    assert created is not None
    assert [created[1]] == [record["id"] for record in home.result("ls")["files"]]


def test_create_file_of_a_directory(home: Home, tmp_path: Path, file: Path) -> None:
    """With -r, a directory in the same words; fetched, it is a folder again."""
    plant(tmp_path / "my_dir", {"my_file.txt": file.read_bytes(), "empty": Folder()})
    done = home.run("create", "file", "-r", "./my_dir", program=SCRIPTS / "pipeline", cwd=tmp_path)

    created = CREATED.fullmatch(done.stdout)
    assert created is not None
    assert home.result("fetch", created[1])["path"] == "my_dir"
    assert standing(home.folder / "my_dir") == standing(tmp_path / "my_dir")


def test_recursive_on_a_file_is_not_an_empty_zip(home: Home, file: Path) -> None:
    """It is refused, while the SDK stores an empty zip. A directory without -r is refused too."""
    done = home.run("create", "file", "-r", file, program=SCRIPTS / "pipeline")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {file} is not a directory; leave out -r to store it\n"
    done = home.run("create", "file", file.parent, program=SCRIPTS / "pipeline")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {file.parent} is a directory; give -r to store it\n"
    assert home.result("ls")["files"] == []


@pytest.mark.slow
def test_create_file_has_the_options_of_a_push(home: Home, file: Path) -> None:
    """Usage, options and failures are those of `filestore create file`, under this name."""
    assert (
        '"name": "alias.txt"'
        in home.run("create", "file", file, "--name", "alias.txt", "--json", program=SCRIPTS / "pipeline").stdout
    )
    wrong = home.run("create", "file", program=SCRIPTS / "pipeline")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Usage: pipeline create file ")
    failed = home.run("create", "file", file.parent / "none", program=SCRIPTS / "pipeline")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "x"], ["create", "pointer"]])
def test_without_the_sdk_the_rest_is_explained(home: Home, arguments: list[str]) -> None:
    """One message says what this script is, and what installs the other one."""
    done = home.run(*arguments, program=SCRIPTS / "pipeline")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: this `pipeline` has only `pipeline create file PATH`; `pip install pipeline-ai`")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_installed_after_the_sdk_ours_wins(home: Home, file: Path, sdk: str) -> None:
    """`create file` is ours; anything else runs the SDK's own console script, with its exit status."""
    program = scripts_of(f".venv-{sdk}-first") / "pipeline"

    assert CREATED.fullmatch(home.run("create", "file", file, program=program).stdout)
    assert "Create or run pipelines locally or in the cloud!" in home.run("--help", program=program).stdout
    assert home.run("create", "pointer", "--help", program=program).stdout.startswith("usage: pipeline create pointers")
    unknown = home.run("no-such-command", program=program)
    assert unknown.returncode == 2
    assert "pipeline: error: argument command: invalid choice: 'no-such-command'" in unknown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_installed_before_the_sdk_theirs_wins(home: Home, tmp_path: Path, file: Path, sdk: str) -> None:
    """`pipeline create file` is the SDK's then, which uploads to a filestore server too; `filestore create file` stays ours."""
    folder = scripts_of(f".venv-{sdk}-last")
    with home.server(root=tmp_path / "root") as server:
        environ = {"PIPELINE_API_URL": server.url + "/", "PIPELINE_API_TOKEN": server.token}
        theirs = home.run("create", "file", file, program=folder / "pipeline", environ=environ)
        ours = home.run("create", "file", file, program=folder / "filestore", environ=server.environ)

        created = CREATED.fullmatch(ours.stdout)
        assert theirs.returncode == 0, theirs.stderr
        assert created is not None
        # The same name and the same bytes, by either way: the same record.
        assert created[1] in theirs.stdout + theirs.stderr
        assert len(home.result("ls", environ=server.environ)["files"]) == 1
