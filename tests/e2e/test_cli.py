from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.digest import token_digest
from tests.support.commands import REPOSITORY, SCRIPTS, Home, Server, notes
from tests.support.daemons import lasting_port

SIZE = 3_000_000
PROCESS_LIST = "Warning: other users of this machine can see the token of --token in the list of processes;"
GOES_ON = "; run the same command again to continue: what was transferred already is not transferred again"
RECORD_KEYS = {"id", "name", "digest", "path", "size", "kind", "namespace", "created_at", "updated_at"}
NAMES = [
    "with space.bin",
    'it\'s "quoted".bin',
    "100%.bin",
    "%2e%2e%2f.bin",
    "模型-é-😀.bin",
    "n" * 255,
    "é" * 127 + "x",
    ".hidden",
    "..x",
    "-o",
    "[red]$HOME`id`.bin",
    "a?b#c&d=e+f;g.bin",
    "back\\slash",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that does not compress."""
    path = tmp_path / "model.bin"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on its first start."""
    folder = tmp_path_factory.mktemp("served")
    with Home(folder).server(root=folder / "root") as server:
        yield server


# What is printed.


def test_version(home: Home) -> None:
    """--version names the program and the version that pyproject.toml has."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]

    assert home.run("--version").stdout == f"filestore {version}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["push", "--help"], ["ls"], ["no-such-command"], ["info", "nothing"]], ids=" ".join
)
def test_python_m_filestore_is_the_command_filestore(home: Home, arguments: list[str]) -> None:
    """`python -m filestore` has the output and the exit status of the console script."""
    script = home.run(*arguments)
    module = home.run("-m", "filestore", *arguments, program=sys.executable)

    assert (script.returncode, script.stdout, script.stderr) == (module.returncode, module.stdout, module.stderr)


@pytest.mark.slow
def test_push_for_a_person(home: Home, model: Path) -> None:
    """A result holds all that is asked of it, and where it was done."""
    done = home.run("push", model)

    assert done.returncode == 0
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["id", "digest", "path", "name", "size", "sent", "shared", "time", "repository"]
    assert f"repository  {home.data} (local folder" in done.stdout


def test_push_for_a_program(home: Home, model: Path) -> None:
    """One object, and nothing else."""
    result = home.result("push", model)

    assert result["commit"] == home.result("log", "model.bin")["commits"][0]["id"]
    numbers = {"file_count", "bytes_read", "bytes_sent", "bytes_shared", "seconds"}
    assert RECORD_KEYS | numbers | {"commit", "repository", "repository_created"} == set(result)
    assert (result["name"], result["size"], result["bytes_shared"]) == ("model.bin", SIZE, 0)
    assert result["path"] == f"pipeline_files/{result['digest'][:2]}/{result['digest'][2:4]}/{result['digest']}/model.bin"
    assert str(home.data) == result["repository"]
    assert 0 < result["bytes_sent"] - SIZE < 1000


@pytest.mark.slow
def test_a_second_push_sends_nothing(home: Home, model: Path) -> None:
    """The same bytes again, under another name too, are shared."""
    first = home.result("push", model)
    second = home.result("push", model, "--name", "other.bin", "--rehash")

    assert first["digest"] == second["digest"]
    assert (second["bytes_sent"], second["bytes_shared"], second["bytes_read"]) == (0, SIZE, SIZE)


@pytest.mark.slow
def test_an_unchanged_file_is_not_read_again(home: Home) -> None:
    """A push remembers the state of a file that has settled, as this one has; --rehash forgets it."""
    settled = Path(os.__file__)
    size = settled.stat().st_size

    assert [size, 0, size] == [home.result("push", settled, *more)["bytes_read"] for more in ([], [], ["--rehash"])]


@pytest.mark.slow
def test_a_changed_file_sends_its_change(home: Home, model: Path) -> None:
    """A push of another version shares all common chunks, and reports that."""
    home.result("push", model)
    content = bytearray(model.read_bytes())
    content[10:20] = bytes(10)
    model.write_bytes(content)
    result = home.result("push", model)

    assert 0 < result["bytes_sent"] < SIZE
    assert 0 < result["bytes_shared"] < SIZE


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["raw", "zstd", "planes2+zstd", "planes4+zstd", "auto"])
def test_codecs(home: Home, tmp_path: Path, codec: str) -> None:
    """Any codec gives the same digest, and the same bytes back."""
    model = tmp_path / "zeros.bin"
    model.write_bytes(bytes(1_000_000))
    digest = home.result("hash", model)["digest"]

    assert digest == home.result("push", model, "--codec", codec)["digest"]
    home.result("fetch", digest, "-o", tmp_path / "back.bin")
    assert model.read_bytes() == (tmp_path / "back.bin").read_bytes()


@pytest.mark.slow
def test_hash_is_the_digest_of_a_push(new_home: Home, model: Path) -> None:
    """A digest is known without a server."""
    result = new_home.result("hash", model)

    assert {"digest", "path", "size", "chunks", "chunking_version", "seconds"} == set(result)
    assert new_home.run("hash", model).stdout == f"{result['digest']}  {model}\n"
    assert not new_home.data.exists()
    assert new_home.result("push", model, "--create")["digest"] == result["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["id", "digest", "path", "name"])
def test_fetch_by_any_reference(home: Home, model: Path, key: str) -> None:
    """An id, a digest, a path and a name all find the file."""
    pushed = home.result("push", model)
    fetched = home.result("fetch", pushed[key])

    numbers = {"size", "file_count", "bytes_received", "bytes_reused", "reused_from", "was_there", "seconds"}
    assert {"id", "digest", "name", "path", "repository"} | numbers == set(fetched)
    assert (pushed["bytes_sent"], 0, SIZE) == (fetched["bytes_received"], fetched["bytes_reused"], fetched["size"])
    assert model.read_bytes() == (home.folder / fetched["path"]).read_bytes()
    assert home.folder / "model.bin" == home.folder / fetched["path"]


@pytest.mark.slow
def test_fetch_for_a_person(home: Home, model: Path) -> None:
    """The result says what was fetched, and where it was written."""
    home.result("push", model)
    done = home.run("fetch", "model.bin")

    assert done.returncode == 0
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["path", "digest", "size", "received", "reused", "time", "repository"]
    assert str(home.data) in done.stdout


@pytest.mark.slow
def test_ls_info_and_rm(home: Home, model: Path) -> None:
    """A pushed file is listed, the newest first; it is shown, and gone after `rm`."""
    first = home.result("push", model)
    second = home.result("push", model, "--name", "second.bin")

    listed = home.result("ls")
    assert {"files", "repository"} == set(listed)
    assert [second["id"], first["id"]] == [record["id"] for record in listed["files"]]
    assert all(set(record) == RECORD_KEYS for record in listed["files"])
    assert [second["id"]] == [record["id"] for record in home.result("ls", "--limit", "1")["files"]]
    assert home.result("info", "second.bin") == {key: second[key] for key in RECORD_KEYS | {"repository"}}
    shown = home.result("info", second["id"])
    location = shown.pop("repository")
    removed = home.result("rm", second["id"])
    assert (removed["removed"], removed["failed"], removed["repository"]) == ([shown], [], location)
    assert home.failure("info", "second.bin") == "nothing is stored under 'second.bin'; `filestore ls` shows what is"


@pytest.mark.slow
def test_ls_for_a_person(home: Home, model: Path) -> None:
    """A line a file, and a line about where."""
    record = home.result("push", model)
    lines = home.run("ls").stdout.splitlines()

    assert lines[0] == "    SIZE  STORED (UTC)      DIGEST      NAME"
    stored = record["updated_at"][:16].replace("T", " ")
    assert lines[1] == f" 3.00 MB  {stored}  {record['digest'][:10]}  model.bin"
    assert lines[2].startswith(f"1 file, 3.00 MB in {home.data} (local folder")
    assert record["id"] == home.result("info", f"model.bin@{record['digest'][:10]}")["id"]


@pytest.mark.slow
def test_ls_sorts_and_filters(home: Home, tmp_path: Path) -> None:
    """By a pattern, which is told from a name by its characters, and in an order that the user chooses."""
    for name, size in (("b.bin", 30), ("a[1].bin", 20), ("c.txt", 10)):
        (tmp_path / name).write_bytes(bytes(size))
        home.result("push", tmp_path / name, "--create")

    def listed(*arguments: str) -> list[str]:
        return [record["name"] for record in home.result("ls", *arguments)["files"]]

    assert ["c.txt", "a[1].bin", "b.bin"] == listed() == listed("--sort", "age") == listed("*")
    assert ["a[1].bin", "b.bin", "c.txt"] == listed("--sort", "name")
    assert ["b.bin", "a[1].bin"] == listed("--sort", "size", "--limit", "2")
    assert ["a[1].bin", "b.bin"] == listed("*.bin")
    assert ["a[1].bin"] == listed("*.bin", "--limit", "1") == listed("a[[]1].bin")
    assert ["b.bin", "c.txt"] == listed("[bc].???", "--sort", "name")
    assert [] == listed("*.BIN")
    assert home.run("ls", "*.none").stdout.startswith("0 files that match *.none, 0 B in ")
    assert home.run("ls", "*.txt").stdout.splitlines()[-1].startswith("1 file that matches *.txt, 10 B in ")
    assert "--sort is for the list of stored files" in home.run("ls", "b.bin", "--sort", "name").stderr


@pytest.mark.slow
def test_create_file(home: Home, model: Path) -> None:
    """Standard output is exactly the line that scripts read; a note names the folder."""
    done = home.run("create", "file", model)

    [record] = home.result("ls")["files"]
    assert f"Pipeline File created with ID= {record['id']}\n" == done.stdout
    assert str(home.data) in done.stderr
    assert home.result("create", "file", model, "-n", "alias.bin")["name"] == "alias.bin"


def test_quiet_says_nothing_beside_the_result(home: Home, model: Path) -> None:
    """--quiet leaves standard error to errors."""
    assert home.run("create", "file", model, "--quiet").stderr == ""


def test_a_terminal_shows_a_bar(home: Home, model: Path) -> None:
    """Progress is there from the first moment, on standard error, and gone from the result."""
    terminal, inner = pty.openpty()
    environ = home.environ | {"TERM": "xterm"}
    done = subprocess.run(
        [SCRIPTS / "filestore", "push", model, "--json"], env=environ, stdout=subprocess.PIPE, stderr=inner, check=True
    )
    os.close(inner)
    shown = os.read(terminal, 1 << 20).decode()
    os.close(terminal)

    assert "push model.bin" in shown
    assert json.loads(done.stdout)["name"] == "model.bin"


# Where a fetch writes.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("folder", "folder/model.bin"),
        ("folder/", "folder/model.bin"),
        ("new.bin", "new.bin"),
        ("folder/new", "folder/new"),
        ("missing/", "missing/model.bin"),
        ("missing/too/new", "missing/too/new"),
    ],
)
def test_targets_as_with_cp(home: Home, model: Path, target: str, expected: str) -> None:
    """Into a folder under the file's own name, else to that path. Missing folders are made."""
    home.result("push", model)
    (home.folder / "folder").mkdir()

    assert home.folder / expected == home.folder / home.result("fetch", "model.bin", "-o", target)["path"]
    assert model.read_bytes() == (home.folder / expected).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("file/", "file/model.bin cannot be written: file is there and is not a folder; give another target"),
        ("file/a/b", "file/a/b cannot be written: file is there and is not a folder; give another target"),
        ("folder", "folder/model.bin cannot be written: there is a folder at that path; give another target with -o"),
        ("pipe", "pipe cannot be written: it exists and is not a regular file; give another target"),
    ],
)
def test_targets_that_cannot_be(home: Home, model: Path, target: str, sentence: str) -> None:
    """The error says why the target cannot be written, and nothing is left."""
    home.result("push", model)
    (home.folder / "file").touch()
    (home.folder / "folder/model.bin").mkdir(parents=True)
    os.mkfifo(home.folder / "pipe")
    before = sorted(home.folder.glob("*"))

    assert home.failure("fetch", "model.bin", "-o", target) == sentence
    assert sorted(home.folder.glob("*")) == before


@pytest.mark.slow
def test_a_link_goes_on_pointing_at_its_file(home: Home, model: Path) -> None:
    """A fetch to a symbolic link replaces the file that it names, as cp does."""
    home.result("push", model)
    (home.folder / "real.bin").write_bytes(b"old")
    (home.folder / "link.bin").symlink_to("real.bin")
    home.result("fetch", "model.bin", "-o", "link.bin")

    assert (home.folder / "link.bin").is_symlink()
    assert model.read_bytes() == (home.folder / "real.bin").read_bytes()


@pytest.mark.slow
def test_an_older_version_is_reused(home: Home, model: Path) -> None:
    """Content that the file at the target already has is not fetched."""
    home.result("push", model)
    home.result("fetch", "model.bin")
    assert home.result("fetch", "model.bin")["bytes_reused"] == SIZE


# Names and files that are out of the ordinary.


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names(home: Home, tmp_path: Path, server: Server, name: str) -> None:
    """Any name that a file can have here comes back as it was, by way of a server too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(name.encode())
    pushed = home.result("push", "--", name, environ=server.environ, cwd=tmp_path / "in")
    fetched = home.result("fetch", "--", name, environ=server.environ, cwd=tmp_path / "out")

    assert name == pushed["name"]
    assert name == fetched["path"]
    assert name.encode() == (tmp_path / "out" / name).read_bytes()
    assert pushed["id"] == fetched["id"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../x", "a/b/c", "..", ".", "", "a\nb", "n" * 256, "é" * 128])
def test_names_that_cannot_be_kept(home: Home, model: Path, name: str) -> None:
    """A name that is not valid is refused, and nothing is recorded."""
    assert "cannot be kept" in home.failure("push", model, "--name", name)
    assert home.result("ls")["files"] == []


def test_a_file_whose_name_is_not_text(home: Home, tmp_path: Path) -> None:
    """A name that is not UTF-8 is refused in a sentence that can be printed."""
    path = os.fsencode(tmp_path) + b"/\xff.bin"
    Path(os.fsdecode(path)).write_bytes(b"x")
    assert "not valid UTF-8" in home.failure("push", os.fsdecode(path))


def test_a_name_cannot_command_the_terminal(home: Home, tmp_path: Path) -> None:
    """Escape sequences in a path are printed escaped."""
    assert "\\x1b[31m" in home.failure("push", tmp_path / "\x1b[31m")


@pytest.mark.slow
def test_an_encoding_that_lacks_letters_is_not_a_failure(home: Home, tmp_path: Path) -> None:
    """A name is printed as well as the terminal can."""
    (tmp_path / "模型.bin").write_bytes(b"x")
    done = home.run("push", tmp_path / "模型.bin", environ={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0
    assert "\\u6a21\\u578b.bin" in done.stdout


def test_an_empty_file(home: Home, tmp_path: Path, server: Server) -> None:
    """Nothing is a file too."""
    (tmp_path / "empty").touch()
    pushed = home.result("push", tmp_path / "empty", environ=server.environ)
    fetched = home.result("fetch", pushed["id"], environ=server.environ)

    assert (pushed["size"], pushed["bytes_sent"], pushed["bytes_shared"]) == (0, 0, 0)
    assert (home.folder / fetched["path"]).read_bytes() == b""


@pytest.mark.slow
def test_sources_that_are_no_file(home: Home, tmp_path: Path) -> None:
    """For a pipe, a device and a missing path, the error says what it is."""
    os.mkfifo(tmp_path / "pipe")

    assert "it is not a regular file" in home.failure("push", tmp_path / "pipe")
    assert "it is not a regular file" in home.failure("hash", "/dev/zero")
    assert "No such file or directory" in home.failure("push", tmp_path / "vanished")
    assert "Not a directory" in home.failure("push", "/dev/null/x")


# Usage and settings.


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["push"],
        ["push", "a", "b", "--name", "c"],
        ["fetch"],
        ["pull", "x"],
        ["push", "x", "--unknown"],
        ["push", ""],
        ["create", "file", ""],
        ["create", "file", "-r", ""],
        ["hash", ""],
        ["fetch", "x", "--output", ""],
        ["leftovers", ""],
        ["cache", "verify", ""],
        ["ls", "--url", ""],
        ["push", "x", "--codec", "gzip"],
        ["serve", "--port", "70000"],
        ["serve", "--workers", "0"],
        ["ls", "--limit", "0"],
        ["ls", "--token", "two words"],
        ["token", "new", "--label", "two\nlines"],
        ["token", "new", "--label", "\udcff"],
    ],
)
def test_wrong_usage(home: Home, arguments: list[str]) -> None:
    """Status 2, a word about usage on standard error, and nothing on standard output."""
    done = home.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: filestore ")


@pytest.mark.slow
def test_option_environment_file_in_that_order(home: Home, tmp_path: Path) -> None:
    """A command's repository is that of the first that names one; a folder is as good as a server."""
    home.config_file.write_text(f'url = "{tmp_path}/file"\n')
    environ = {"FILESTORE_URL": f"file://{tmp_path}/environment"}
    for name in ("file", "environment", "option"):
        home.create_repository(tmp_path / name)

    assert f"{tmp_path}/file" == home.result("ls")["repository"]
    assert f"{tmp_path}/environment" == home.result("ls", environ=environ)["repository"]
    assert f"{tmp_path}/option" == home.result("ls", "--url", tmp_path / "option", environ=environ)["repository"]
    assert "(local folder" not in home.run("ls").stdout


def test_the_local_folder_is_the_served_one(home: Home, tmp_path: Path) -> None:
    """FILESTORE_ROOT sets the folder for `serve` and for all other commands."""
    home.create_repository(tmp_path / "root")
    assert str(tmp_path / "root") == home.result("ls", environ={"FILESTORE_ROOT": str(tmp_path / "root")})["repository"]


@pytest.mark.slow
def test_a_tilde_in_a_variable_is_the_home_folder(home: Home, tmp_path: Path) -> None:
    """Where no shell has replaced it, a folder of that name is not made in the current one."""
    here = tmp_path / "here"
    here.mkdir()
    home.config_file.write_text('cache = "~/cached"\nurl = "~/repository"')
    pushed = home.result("push", "--create", SCRIPTS / "filestore", cwd=here)
    assert str(home.folder / "repository") == pushed["repository"]
    assert str(home.folder / "cached") == home.result("cache", "warm", pushed["id"], cwd=here)["cache"]
    home.create_repository(home.folder / "root")
    assert str(home.folder / "root") == home.result("token", "ls", "--root=~/root", cwd=here)["root"]
    assert [] == list(here.iterdir())


@pytest.mark.slow
def test_a_byte_order_mark_is_ignored(home: Home, tmp_path: Path) -> None:
    """Some editors begin a text with one. A text that is not UTF-8 gives an error."""
    home.create_repository(tmp_path / "file")
    home.config_file.write_bytes(b"\xef\xbb\xbf" + f'url = "{tmp_path}/file"'.encode())
    assert f"{tmp_path}/file" == home.result("ls")["repository"]
    home.config_file.write_bytes('url = "x"'.encode("utf-16"))
    assert home.failure("ls") == f"{home.config_file} cannot be used: it is not text in UTF-8; save it as UTF-8"
    home.config_file.write_text("a = " + "[" * 100_000)
    assert home.failure("ls").startswith(f"{home.config_file} cannot be used: it is not valid TOML")


@pytest.mark.slow
def test_a_user_without_a_home(new_home: Home, tmp_path: Path) -> None:
    """Commands that need no home folder work; the others say what they need."""
    command = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    made = subprocess.run([*command, "true"], check=False, capture_output=True, text=True)
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"needs the right to make a namespace: {made.stderr}")

    def run(*arguments: str | Path, **environ: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, SCRIPTS / "filestore", *arguments],
            env={"PATH": os.environ["PATH"]} | environ,
            cwd=new_home.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, notes(done)

    needs = (
        "Error: the default of {0} cannot be used: the home folder of this user is not known; set HOME, or give --{0} or {1}\n"
    )
    assert (1, needs.format("root", "FILESTORE_ROOT")) == run("ls")
    assert (1, needs.format("cache", "FILESTORE_CACHE")) == run("cache", "ls")
    assert (1, needs.format("root", "FILESTORE_ROOT")) == run("ls", HOME="")
    assert (0, "") == run("hash", SCRIPTS / "filestore")
    assert (0, "") == run("push", "--create", "--quiet", SCRIPTS / "filestore", FILESTORE_URL=str(tmp_path / "root"))
    assert [] == list(new_home.folder.iterdir())


@pytest.mark.slow
def test_bad_settings_are_told_with_their_place(home: Home) -> None:
    """A bad variable or file is named; a secret is not."""
    assert home.failure("serve", environ={"FILESTORE_PORT": "x"}).startswith("FILESTORE_PORT cannot be used: 'x' is not a whole")
    assert "secret" not in home.failure("ls", environ={"FILESTORE_TOKEN": "my secret"})

    home.config_file.write_text("urll = 1")
    assert home.failure("ls").startswith(
        f"urll in {home.config_file} cannot be used: there is no such setting; did you mean url?"
    )
    home.config_file.write_text("url = ")
    assert home.failure("ls").startswith(f"{home.config_file} cannot be used: it is not valid TOML")


def test_a_token_that_others_can_read_is_told(home: Home) -> None:
    """A configuration file that holds a token is warned about unless it is the user's alone."""
    home.config_file.write_text('token = "secret"')
    home.config_file.chmod(0o644)
    assert home.run("ls").stderr.startswith("Warning: other users of this machine can read the token in ")
    home.config_file.chmod(0o600)
    assert home.run("ls").stderr == ""


@pytest.mark.slow
def test_a_repository_that_others_can_change_is_told(home: Home) -> None:
    """A warning of the library looks as one of the command, and --quiet leaves it out."""
    home.result("ls")
    home.data.chmod(0o777)
    warning = f"Warning: the folder of the repository, '{home.data}', is writable by other users (permissions 777): "
    for arguments in ((), ("--json",)):
        said = home.run("gc", *arguments).stderr
        assert (True, 1) == (said.startswith(warning), said.count("\n")), said
    assert "" == home.run("gc", "--quiet").stderr == home.run("gc", "--quiet", "--json").stderr


def test_a_root_that_is_not_a_folder(home: Home, model: Path) -> None:
    """A file in the place of the folder gives one message."""
    assert str(model) in home.failure("ls", environ={"FILESTORE_ROOT": str(model)})


def test_a_folder_of_a_later_format(home: Home) -> None:
    """A repository that this version cannot read is refused in one sentence."""
    home.result("ls")
    (home.data / "format").write_text(json.dumps({"format": 2, "cutting": 1, "id": "0" * 32}))
    assert "has format 2, this program knows 1" in home.failure("ls")


# How a command ends.


def test_a_full_output(home: Home) -> None:
    """A result that cannot be written is a failure."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([SCRIPTS / "filestore", "ls"], env=home.environ, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == b"Error: the work is done, but its result cannot be written to standard output: No space left on device\n"
    )


def test_an_interrupt(home: Home, model: Path) -> None:
    """Ctrl-C ends a command with status 130 and a sentence."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [SCRIPTS / "filestore", "push", model, "--quiet", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}"],
            env=home.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        connection.close()

    assert (process.returncode, output) == (130, "")
    assert errors == f"Interrupted{GOES_ON}.\n"


# With a server.


@pytest.mark.slow
def test_push_and_fetch_through_a_server(home: Home, tmp_path: Path, model: Path, server: Server) -> None:
    """The same verbs, and the result names the server."""
    pushed = home.result("push", model, environ=server.environ)
    fetched = home.result("fetch", pushed["id"], "-o", tmp_path / "back.bin", environ=server.environ)

    assert server.url == pushed["repository"] == fetched["repository"]
    assert model.read_bytes() == (tmp_path / "back.bin").read_bytes()
    assert server.url in home.run("info", pushed["id"], environ=server.environ).stdout
    assert "local folder" not in home.run("ls", environ=server.environ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("token", ["wrong", "None"])
def test_a_wrong_token(home: Home, model: Path, server: Server, token: str) -> None:
    """For an unknown token, the error says where it is from, and where to find the right one."""
    sentence = home.failure("push", model, environ={"FILESTORE_URL": server.url, "FILESTORE_TOKEN": token})
    assert (
        sentence == f"{server.url} refused the token; give a token of that server (this one is from FILESTORE_TOKEN); "
        "it may be mistyped, removed, or of another server; on the machine of that server, `filestore token ls` lists its "
        "tokens, and `filestore token new` makes one"
    )


@pytest.mark.slow
def test_a_refused_token_is_told_with_its_place(home: Home, server: Server) -> None:
    """Each place that can give a token is named, and the token itself is not."""
    path = home.folder / "token.txt"
    path.write_text("wrong-token")
    path.chmod(0o600)
    variables = {"FILESTORE_URL": server.url}

    def place(*options: str | Path, **environ: str) -> str:
        said = home.run("ls", *options, environ=variables | environ).stderr.splitlines()[-1]
        assert "wrong-token" not in said
        (found,) = re.findall(r"\(this one is from (.*?)\);", said)
        return str(found)

    assert "--token" == place("--token", "wrong-token", FILESTORE_TOKEN="another")
    assert "--token-file" == place("--token-file", path)
    assert "FILESTORE_TOKEN_FILE" == place(FILESTORE_TOKEN_FILE=str(path))
    home.config_file.write_text('token = "wrong-token"\n')
    home.config_file.chmod(0o600)
    assert f"token in {home.config_file}" == place()


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", None])
def test_no_token(home: Home, model: Path, server: Server, token: str | None) -> None:
    """For a missing token, the error says that none was given, and not that one was refused."""
    environ = {"FILESTORE_URL": server.url} | ({} if token is None else {"FILESTORE_TOKEN": token})
    assert (
        f"{server.url} needs a token, and none was given; give a token of that server; "
        "--token-file or FILESTORE_TOKEN gives it, and PIPELINE_API_TOKEN to `pipeline create file`; "
        "the first start of `filestore serve` prints one, and `filestore token new` makes another"
    ) == home.failure("push", model, environ=environ)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["fetch"], ["info"], ["cache", "warm"]])
def test_what_a_name_may_mean(home: Home, model: Path, tmp_path: Path, command: list[str]) -> None:
    """Where nothing has a name, the error suggests the zip file of that directory, or a digest in lower case."""
    (tmp_path / "my_model").mkdir()
    model.rename(tmp_path / "my_model" / "model.bin")
    digest = home.result("push", tmp_path / "my_model")["digest"]

    missing = "nothing is stored under {!r}; `filestore ls` shows what is"
    assert f"{missing.format('my_model')}; did you mean 'my_model.zip'?" == home.failure(*command, "my_model")
    assert "a pattern is for `filestore ls` and `filestore push`" in home.failure(*command, "my_*")
    assert missing.format("other") == home.failure(*command, "other")
    said = home.failure(*command, digest.upper())
    assert f"{missing.format(digest.upper())}; digests have lower-case letters" == said


def test_an_unknown_command(home: Home) -> None:
    """The error names the nearest command, if one is near."""
    done = home.run("puush", "model.bin")
    assert done.returncode == 2
    assert done.stderr.endswith("No such command 'puush'. Did you mean 'push'?\n")
    assert "Did you mean" not in home.run("unheard-of").stderr
    # What other programs call it.
    assert home.run("upload", "model.bin").stderr.endswith("No such command 'upload'. Did you mean 'push'?\n")


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["push", "--synlinks", "keep", "x"], "(?:Did you mean|Possible options:) '?--symlinks'?"),
        (["push", "--symlinks", "inzide", "x"], "'inzide' is not one of .*'refuse'. Did you mean 'inside'\\?"),
        (["push", "--codec", "ztsd", "x"], "'ztsd' is not one of .*; did you mean zstd\\?"),
        (["token", "new", "--scope", "reed"], "'reed' is not one of .*'admin'. Did you mean 'read'\\?"),
    ],
    ids=["option", "choice", "setting", "scope"],
)
def test_a_mistyped_option_or_value(home: Home, arguments: list[str], question: str) -> None:
    """The error names the nearest one."""
    done = home.run(*arguments)
    assert done.returncode == 2
    assert re.search(question, done.stderr.splitlines()[-1])


def test_a_mistyped_variable(home: Home) -> None:
    """A warning says that it has no effect. Variables of other programs may begin in the same way."""
    warning = "Warning: {} has no effect: {}\n"
    mistyped = ("FILESTORE_TOKNE", "FILESTORE_URI", "FILESTORE_HOST")
    # Kubernetes sets some of these for a service of this name.
    of_others = (
        "FILESTORE_SITE",
        "FILESTORE_JOURNAL",
        "FILESTORE_SERVICE_HOST",
        "FILESTORE_SERVICE_PORT",
        "FILESTORE_PORT_80_TCP",
    )
    done = home.run("hash", "--json", SCRIPTS / "filestore", environ=dict.fromkeys((*mistyped, *of_others), "x"))
    assert done.returncode == 0
    assert done.stderr == (
        warning.format("FILESTORE_HOST", "only the option --host changes it")
        + warning.format("FILESTORE_TOKNE", "no setting has this name; did you mean FILESTORE_TOKEN?")
        + warning.format("FILESTORE_URI", "no setting has this name; did you mean FILESTORE_URL?")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "typed", "meant"), [("cache", "lst", "ls"), ("token", "lst", "ls"), ("runtime", "srve", "serve")]
)
def test_an_unknown_command_of_a_group(home: Home, group: str, typed: str, meant: str) -> None:
    """The error names the nearest command of the group."""
    done = home.run(group, typed)
    assert done.returncode == 2
    assert done.stderr.endswith(f"No such command '{typed}'. Did you mean '{meant}'?\n")


@pytest.mark.parametrize("limit", ["x", "0", "1.5"])
def test_a_limit_that_cannot_be_used(home: Home, limit: str) -> None:
    """The error says which values the option takes."""
    done = home.run("ls", "--limit", limit)
    assert done.returncode == 2
    assert done.stderr.endswith(f": '{limit}' cannot be used; a whole number from 1 is expected\n")


def test_a_cache_that_is_not_there_yet(home: Home) -> None:
    """The error says which command makes one."""
    assert home.failure("cache", "ls").endswith("; give the folder of one; `filestore cache warm` makes one")


@pytest.mark.slow
def test_a_plan_with_nothing_new(home: Home, model: Path) -> None:
    """Only where there are new bytes, the output says that they are encoded."""
    first = home.run("push", model, "--dry-run", "--quiet").stdout
    assert f"({SIZE} bytes); they are encoded first, so that fewer are sent\n" in first
    home.result("push", model)
    second = home.run("push", model, "--dry-run", "--quiet").stdout
    assert "  0 bytes\n" in second
    assert "encoded" not in second


@pytest.mark.slow
def test_no_server(home: Home, model: Path) -> None:
    """The error says that the server cannot be reached, and that a transfer then continues."""
    url = f"http://127.0.0.1:{lasting_port()}"
    sentence = (
        f"{url} cannot be reached: Connection refused; check that a filestore server runs there; `filestore serve` starts one"
    )
    assert sentence == home.failure("ls", "--url", url)
    for command in (["push", model], ["fetch", "model.bin"], ["cache", "warm", "model.bin"]):
        assert sentence + GOES_ON == home.failure(*command, "--url", url)


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "http://", "http://[::1", "http://host:99999", "http://user:secret@host", "file://host/dir", "file://["],
)
def test_urls_that_name_no_repository(home: Home, url: str) -> None:
    """A URL that is neither a server nor a folder is refused."""
    assert "names no repository" in home.failure("ls", "--url", url)


def test_first_start(server: Server) -> None:
    """It prints the folder, the token, the URL, what to type next, and the line for waiting programs."""
    token = server.token
    assert [
        f"folder  {server.root} (a new repository, made just now)",
        f"token   {token}  (shown only this once, because only its digest is stored)",
        f"URL     {server.url}",
        "",
        "To see what is stored, open the URL in a browser, and sign in with the token.",
        "",
        "To push a file, type in another terminal:",
        f"  export FILESTORE_URL={server.url}",
        f"  export FILESTORE_TOKEN={token}",
        "  filestore push model.safetensors",
        "",
        "For the tools of the Hugging Face Hub:",
        f"  export HF_ENDPOINT={server.url}",
        f"  export HF_TOKEN={token}",
        "  export HF_HUB_DISABLE_XET=1",
        "",
        f"listening on {server.url}",
    ] == server.said.splitlines()
    assert len(token) == 43


def test_a_start_behind_a_proxy(home: Home, tmp_path: Path) -> None:
    """The line to copy has the URL of the clients. The server still says where it listens."""
    with home.server("--public-url", "https://files.example.org", root=tmp_path / "root") as server:
        for variable in ("FILESTORE_URL", "HF_ENDPOINT"):
            assert f"  export {variable}=https://files.example.org" in server.said.splitlines()
        assert f"listening on {server.url}" == server.said.splitlines()[-1]


def test_a_token_is_kept_nowhere(server: Server) -> None:
    """The folder holds the digest of a token only."""
    for path in server.root.rglob("*"):
        assert path.is_dir() or server.token.encode() not in path.read_bytes()


@pytest.mark.slow
def test_later_starts(home: Home, tmp_path: Path) -> None:
    """The first token stays valid, and is not printed again; the output says how to make another one."""
    with home.server(root=tmp_path / "root") as first:
        token = first.token
    with home.server(root=tmp_path / "root") as second:
        assert token not in second.said
        another = f"`filestore token new --root {tmp_path / 'root'}` makes another one"
        line = f"  # export FILESTORE_TOKEN=...  (a token of the folder, printed when it was made; {another})"
        assert line in second.said.splitlines()
        assert "  # export HF_TOKEN=...  (the same token)" in second.said.splitlines()
        assert home.result("ls", environ={"FILESTORE_URL": second.url, "FILESTORE_TOKEN": token})["files"] == []


@pytest.mark.slow
@pytest.mark.parametrize("by", ["option", "environment", "file"])
def test_a_given_token(home: Home, tmp_path: Path, by: str) -> None:
    """--token, --token-file and FILESTORE_TOKEN give a server a token for one run, and none is made."""
    given = "a-token-of-one-run"
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f"{given}\n")
    arguments = {"option": ["--token", given], "file": ["--token-file", str(path)], "environment": []}[by]
    environ = {"FILESTORE_TOKEN": given} if by == "environment" else {}
    with home.server(*arguments, root=tmp_path / "root", environ=environ, complains=by == "option") as server:
        assert home.result("ls", "--url", server.url, "--token-file", path)["files"] == []
    (listed,) = home.result("token", "ls", "--root", tmp_path / "root")["tokens"]
    assert (str(token_digest(given)), "default") == (listed["digest"], listed["namespace"])
    with home.server(root=tmp_path / "root") as server:
        assert "refused the token" in home.failure("ls", "--url", server.url, "--token-file", path)


def test_what_the_list_of_processes_shows_is_warned_about(home: Home, tmp_path: Path) -> None:
    """A token in the arguments and a token file that others can read give a warning; the environment gives none."""
    home.create_repository()
    assert PROCESS_LIST in home.run("ls", "--token", "a-token-of-one-run").stderr
    assert "" == home.run("ls", environ={"FILESTORE_TOKEN": "a-token-of-one-run"}).stderr
    path = tmp_path / "token"
    path.touch(mode=0o640)
    path.write_text("a-token-of-one-run")
    assert f"Warning: other users of this machine can read the token in {path};" in home.run("ls", "--token-file", path).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_token_file_that_another_user_gave_to_a_group_is_not_warned_about(home: Home, tmp_path: Path) -> None:
    """Service managers give a service its secrets so, and it cannot change them. What everyone can read is still named."""
    home.create_repository()
    path = tmp_path / "token"
    path.write_text("a-token-of-one-run")
    os.chown(path, 65534, 0)
    path.chmod(0o440)
    assert "" == home.run("ls", "--token-file", path).stderr
    path.chmod(0o444)
    assert "can read the token" in home.run("ls", "--token-file", path).stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not a file of one line, the token"),
        ("one\ntwo\n", "is not a file of one line, the token"),
        ("x" * 5000, "is not a file of one line, the token"),
        ("two words", "a token has printable ASCII characters only, and no spaces"),
    ],
    ids=["missing", "empty", "two lines", "long", "spaces"],
)
def test_a_token_file_that_is_none(home: Home, tmp_path: Path, content: str | None, reason: str) -> None:
    """The error says what is wrong, and does not repeat the content."""
    path = tmp_path / "token"
    if content is not None:
        path.touch(mode=0o600)
        path.write_text(content)
    told = home.failure("ls", "--token-file", path)
    assert reason in told
    assert not content or content not in told


def test_one_place_gives_one_token(home: Home, tmp_path: Path) -> None:
    """A token and a token file in one place are an error; a token of an earlier place hides a later file."""
    path = tmp_path / "absent"
    both = {"FILESTORE_TOKEN": "a-token-of-one-run", "FILESTORE_TOKEN_FILE": str(path)}
    assert "FILESTORE_TOKEN gives a token too; give one of them" in home.failure("ls", environ=both)
    home.create_repository()
    done = home.run("ls", "--token", "a-token-of-one-run", environ={"FILESTORE_TOKEN_FILE": str(path)})
    assert (0, 1) == (done.returncode, done.stderr.count("\n"))


@pytest.mark.slow
def test_a_short_token_of_a_server_is_warned_about(home: Home, tmp_path: Path) -> None:
    """It can be guessed. A client is not warned: it does not choose the token."""
    with home.server(root=tmp_path / "root", environ={"FILESTORE_TOKEN": "abc"}, complains=True) as server:
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": "abc"}
        assert [] == home.result("ls", environ=environ)["files"]


@pytest.mark.slow
def test_tokens(home: Home, tmp_path: Path) -> None:
    """A running server lets a new token in at once, into its namespace alone; one that was removed is refused."""
    root = tmp_path / "root"
    with home.server(root=root) as server:
        home.result("push", SCRIPTS / "filestore", environ=server.environ)
        made = home.result("token", "new", "--root", root, "--namespace", "guests", "--label", "for Ann")
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": made["token"]}
        assert home.result("ls", environ=environ)["files"] == []
        assert home.result("push", SCRIPTS / "filestore", environ=environ)["namespace"] == "guests"

        first, second = home.result("token", "ls", "--root", root)["tokens"]
        assert (first["namespace"], second["namespace"], second["label"]) == ("default", "guests", "for Ann")
        assert made["digest"] == second["digest"]
        removed = home.result("token", "rm", made["digest"][:8], "--root", root)
        # A server may have noted its use since.
        assert removed == second | {"root": str(root), "used_at": removed["used_at"]}
    # Another server process: one that just let a token in remembers that for two seconds.
    with home.server(root=root) as later:
        assert "refused the token" in home.failure("ls", environ=environ | {"FILESTORE_URL": later.url})
        assert len(home.result("ls", environ=server.environ | {"FILESTORE_URL": later.url})["files"]) == 1


@pytest.mark.slow
def test_tokens_for_a_person(home: Home) -> None:
    """Standard output of `token new` is the token. `rm` removes it, and refuses an unknown one."""
    done = home.run("token", "new")
    token = done.stdout.strip()
    assert str(home.data) in done.stderr
    assert re.fullmatch("hf_[A-Za-z0-9]{40}", token)
    assert home.run("token", "ls").stdout.endswith(f"1 token in {home.data}\n")
    assert token not in home.failure("token", "rm", f"x{token}")
    assert "0 tokens match" in home.failure("token", "rm", "0" * 64)
    assert "no spaces" in home.failure("token", "rm", "\udcff")
    assert home.run("token", "rm", token).returncode == 0
    assert home.run("token", "ls").stdout == f"0 tokens in {home.data}\n"


@pytest.mark.slow
@pytest.mark.parametrize("namespace", ["", "UPPER", "a/b", "x" * 64])
def test_a_namespace_that_is_none(home: Home, namespace: str) -> None:
    """A namespace is part of paths and keys, and must be fit for it."""
    assert "a namespace is" in home.failure("token", "new", "--namespace", namespace)


@pytest.mark.slow
def test_two_workers(home: Home, tmp_path: Path, model: Path) -> None:
    """Several processes serve one port from the first start on, and all stop on the signal."""
    with home.server("--workers", "2", root=tmp_path / "root") as server:
        pushed = home.result("push", model, environ=server.environ)
        home.result("fetch", pushed["id"], "-o", tmp_path / "back.bin", environ=server.environ)
        tasks = Path(f"/proc/{server.process.pid}/task")
        children = [child for task in tasks.iterdir() for child in (task / "children").read_text().split()]
        assert len(children) >= 2
    assert model.read_bytes() == (tmp_path / "back.bin").read_bytes()
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []


@pytest.mark.slow
def test_serve_for_a_program(home: Home, tmp_path: Path) -> None:
    """With --json, serve prints one object once it listens."""
    process = subprocess.Popen(
        [SCRIPTS / "filestore", "serve", "--root", tmp_path / "root", "--create", "--port", "0", "--json"],
        env=home.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    files = home.result("ls", environ={"FILESTORE_URL": said["url"], "FILESTORE_TOKEN": said["token"]})["files"]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)

    assert {"url", "root", "token", "repository_created"} == set(said)
    assert (files, rest, process.returncode) == ([], "", 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_costs_no_token(home: Home, tmp_path: Path, server: Server, workers: str) -> None:
    """A port in use gives one message, before a folder or a token is made."""
    port = server.url.rpartition(":")[2]
    sentence = home.failure("serve", "--root", tmp_path / "root", "--create", "--port", port, "--workers", workers)

    assert sentence.startswith(f"127.0.0.1:{port} is taken: ")
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_an_address_that_others_reach_needs_tls_or_a_permission(home: Home, tmp_path: Path) -> None:
    """The refusal comes before anything is made. With --insecure there is a warning. No machine has the address 192.0.2.1."""
    serve = ("serve", "--root", tmp_path / "root", "--create", "--port", "0", "--host", "192.0.2.1")
    told = home.failure(*serve)
    assert told == home.failure("runtime", *serve, environ={"FILESTORE_TOKEN": "a-token-for-this-test"})
    done = home.run(*serve, "--insecure")

    assert told.startswith("192.0.2.1 can be reached from other machines, and traffic would not be encrypted")
    assert all(option in told for option in ("--tls-cert", "--tls-key", "--tls-by-proxy", "--insecure"))
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert warning.startswith("Warning: 192.0.2.1 can be reached from other machines, and traffic is not encrypted")
    assert error.startswith("Error: ")
