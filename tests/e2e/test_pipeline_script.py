from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.support.commands import SCRIPTS, Home, Server, notes, scripts_of
from tests.support.trees import Folder, plant, standing

SDKS = ["sdk1", "sdk2"]
CREATED = re.compile(r"Pipeline File created with ID= (file_[0-9a-f]{32})\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file."""
    path = tmp_path / "my_file.txt"
    path.write_text("content\n")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests of this module store on."""
    folder = tmp_path_factory.mktemp("served")
    with Home(folder).server(root=folder / "root") as server:
        yield server


@pytest.fixture
def variables(server: Server) -> Mapping[str, str]:
    """The variables that tell the SDK which server to use, as its own default has the URL: with a slash at its end."""
    return {"PIPELINE_API_URL": f"{server.url}/", "PIPELINE_API_TOKEN": server.token}


def log_in(home: Home, server: Server, *, sdk: str = "sdk1", is_active: bool = True, token: str | None = None) -> None:
    """What `pipeline cluster login my-server TOKEN -u URL` writes, in the format of a version of the SDK."""
    remote = {"alias": "my-server", "url": server.url, "token": token or server.token}
    other = {"alias": "another", "url": "http://127.0.0.1:9", "token": "unused"}
    if sdk == "sdk1":
        values: dict[str, object] = {"remotes": [other | {"active": False}, remote | {"active": is_active}]}
    else:
        values = {"active_remote": "my-server" if is_active else "none", "remotes": [other, remote]}
    (home.folder / ".pipeline").mkdir()
    (home.folder / ".pipeline/config.yaml").write_text(yaml.dump(values))


def names(server: Server) -> list[str]:
    """The names of the stored files."""
    return [record["name"] for record in Home(server.root.parent).result("ls", environ=server.environ)["files"]]


@pytest.mark.slow
def test_create_file(home: Home, file: Path, server: Server, variables: Mapping[str, str]) -> None:
    """The documented words, and nothing else, on standard output; the server on standard error."""
    done = home.run("create", "file", file, "--name", "documented", program=SCRIPTS / "pipeline", environ=variables)

    created = CREATED.fullmatch(done.stdout)
    assert created is not None
    assert f"It is stored on {server.url} (from PIPELINE_API_URL).\n" == notes(done)
    assert created[1] == home.result("info", "documented", environ=server.environ)["id"]
    assert home.result("ls")["files"] == []


@pytest.mark.slow
def test_create_file_of_a_directory(home: Home, tmp_path: Path, file: Path, server: Server, variables: Mapping[str, str]) -> None:
    """With -r, a directory in the same words; fetched, it is a folder again."""
    plant(tmp_path / "my_dir", {"my_file.txt": file.read_bytes(), "empty": Folder()})
    done = home.run("create", "file", "-r", "./my_dir", program=SCRIPTS / "pipeline", cwd=tmp_path, environ=variables)

    created = CREATED.fullmatch(done.stdout)
    assert created is not None
    assert home.result("fetch", created[1], environ=server.environ)["path"] == "my_dir"
    assert standing(home.folder / "my_dir") == standing(tmp_path / "my_dir")


@pytest.mark.slow
def test_recursive_on_a_file_is_not_an_empty_zip(home: Home, file: Path, server: Server, variables: Mapping[str, str]) -> None:
    """It is refused, while the SDK stores an empty zip. A directory without -r is refused too."""
    before = names(server)
    done = home.run("create", "file", "-r", file, program=SCRIPTS / "pipeline", environ=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {file} is not a directory; leave out -r to store it\n"
    done = home.run("create", "file", file.parent, program=SCRIPTS / "pipeline", environ=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {file.parent} is a directory; give -r to store it\n"
    assert before == names(server)


@pytest.mark.slow
def test_create_file_has_the_options_of_a_push(home: Home, file: Path, variables: Mapping[str, str]) -> None:
    """Usage, options and failures are those of `filestore create file`, under this name."""
    program = SCRIPTS / "pipeline"
    done = home.run("create", "file", file, "--name", "alias.txt", "--json", program=program, environ=variables)
    assert '"name": "alias.txt"' in done.stdout
    assert done.stderr == ""
    wrong = home.run("create", "file", program=SCRIPTS / "pipeline")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Usage: pipeline create file ")
    failed = home.run("create", "file", file.parent / "none", program=SCRIPTS / "pipeline", environ=variables)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)


def test_without_a_server_it_is_not_stored_in_the_local_folder(home: Home, file: Path) -> None:
    """Another program would not find it there; `filestore create file` stores there, and says so."""
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline")

    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr == (
        "Error: no server was found to store it on: `pipeline cluster login` has stored no active one, and PIPELINE_API_URL is "
        "not set; set PIPELINE_API_URL and PIPELINE_API_TOKEN, or use `filestore create file` for the local folder\n"
    )
    assert [] == home.result("ls")["files"]


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_a_stored_login_counts_before_the_variables(home: Home, file: Path, server: Server, sdk: str) -> None:
    """So it does for the SDK; the token of the variables is not used either."""
    log_in(home, server, sdk=sdk)
    environ = {
        "PIPELINE_API_URL": "http://127.0.0.1:9",
        "PIPELINE_API_TOKEN": "of-another-server",
        "FILESTORE_URL": "http://127.0.0.1:9",
        "FILESTORE_TOKEN": "of-a-third",
    }
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline", environ=environ)

    assert CREATED.fullmatch(done.stdout), done.stderr
    assert f"It is stored on {server.url} (from the server my-server of `pipeline cluster login`).\n" == notes(done)


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_without_an_active_login_the_variables_count(
    home: Home, file: Path, server: Server, variables: Mapping[str, str], sdk: str
) -> None:
    """They also count before the variables of filestore."""
    log_in(home, server, sdk=sdk, is_active=False)
    environ = {**variables, "FILESTORE_URL": "http://127.0.0.1:9", "FILESTORE_TOKEN": "of-another-server"}
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline", environ=environ)

    assert CREATED.fullmatch(done.stdout), done.stderr
    assert f"It is stored on {server.url} (from PIPELINE_API_URL).\n" == notes(done)


@pytest.mark.slow
def test_an_option_counts_before_everything(home: Home, file: Path, server: Server) -> None:
    """And with --url, filestore's own token is used; without the SDK's sources, filestore's own server too."""
    log_in(home, server, token="of-another-server")
    done = home.run("create", "file", file, "--url", server.url, program=SCRIPTS / "pipeline", environ=server.environ)
    assert f"It is stored on {server.url}.\n" == notes(done)
    (home.folder / ".pipeline/config.yaml").unlink()
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline", environ=server.environ)
    assert f"It is stored on {server.url}.\n" == notes(done)


def test_a_token_is_sent_only_to_its_own_server(home: Home, file: Path, server: Server) -> None:
    """A server of the SDK without a token gets none; an error names the server and no token."""
    home.config_file.write_text(f'token = "{server.token}"\n')
    home.config_file.chmod(0o600)
    environ = {"PIPELINE_API_URL": server.url, "FILESTORE_TOKEN": server.token}
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline", environ=environ)

    assert (1, "") == (done.returncode, done.stdout)
    assert f"The server is {server.url} (from PIPELINE_API_URL).\n" in done.stderr
    assert "needs a token" in done.stderr
    assert server.token not in done.stderr
    wrong = home.run(
        "create", "file", file, program=SCRIPTS / "pipeline", environ={**environ, "PIPELINE_API_TOKEN": "secret-but-wrong"}
    )
    assert "refused the token" in wrong.stderr
    assert "secret-but-wrong" not in wrong.stderr


def test_a_stored_login_that_cannot_be_used_is_an_error(home: Home, file: Path, variables: Mapping[str, str]) -> None:
    """To ignore it could mean to store the file on another server. PIPELINE_DIR is the folder of the file."""
    path = home.folder / "of-the-sdk/config.yaml"
    path.parent.mkdir()
    path.write_bytes(b"")
    environ = {**variables, "PIPELINE_DIR": str(path.parent)}
    done = home.run("create", "file", file, program=SCRIPTS / "pipeline", environ=environ)

    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr == f"Error: {path} cannot be used: it is empty; remove the file and run `pipeline cluster login` again\n"


def test_filestore_create_file_uses_the_repository_of_all_commands(home: Home, file: Path, variables: Mapping[str, str]) -> None:
    """Its file is where `filestore ls` shows it. Where the variables of the SDK are set, it says that they do not count."""
    done = home.run("create", "file", file, environ=variables)

    assert CREATED.fullmatch(done.stdout)
    assert "; PIPELINE_API_URL is only for `pipeline create file`.\n" in done.stderr
    assert [file.name] == [record["name"] for record in home.result("ls")["files"]]


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_what_the_sdk_stored_is_what_is_used(home: Home, file: Path, server: Server, sdk: str) -> None:
    """The real `pipeline cluster login` writes the file, and both commands use the same server."""
    program = scripts_of(f".venv-{sdk}-first") / "pipeline"
    home.run("cluster", "login", "my-server", server.token, "-u", server.url, "-a", program=program)
    done = home.run("create", "file", file, "--name", f"by-{sdk}", program=program)

    assert f"It is stored on {server.url} (from the server my-server of `pipeline cluster login`).\n" == notes(done)
    assert f"by-{sdk}" in home.run("get", "files", program=program).stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "x"], ["create", "pointer"]])
def test_without_the_sdk_the_rest_is_explained(home: Home, arguments: list[str]) -> None:
    """One message says what this script is, and what installs the other one."""
    done = home.run(*arguments, program=SCRIPTS / "pipeline")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: this `pipeline` has only `pipeline create file PATH`; `pip install pipeline-ai`")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_installed_after_the_sdk_ours_wins(home: Home, file: Path, variables: Mapping[str, str], sdk: str) -> None:
    """`create file` is ours; anything else runs the SDK's own console script, with its exit status."""
    program = scripts_of(f".venv-{sdk}-first") / "pipeline"

    assert CREATED.fullmatch(home.run("create", "file", file, program=program, environ=variables).stdout)
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
