"""Completion of command lines, in real shells and by what shells ask."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from filestore_cli.completion import COUNT_LIMIT, SHELLS, TypedLine, typed_in_bash
from tests.support.commands import SCRIPTS, Home
from tests.support.shells import Shell

BREAKS = " \t\n\"'@><=;|&(:"
"""The default of bash."""
PATIENT = {"FILESTORE_COMPLETION_SECONDS": "60"}
"""For a machine that is busy with other work."""


@pytest.fixture
def stored(home: Home, tmp_path: Path) -> Home:
    """A home whose local repository has a directory with a tag, and two files."""
    (tmp_path / "my_model/tokenizer").mkdir(parents=True)
    (tmp_path / "my_model/config.json").write_text("{}")
    (tmp_path / "my_model/tokenizer/vocab.txt").write_text("a\n")
    (tmp_path / "weights").write_text("1")
    home.create_repository()
    for arguments in (
        ["push", tmp_path / "my_model"],
        ["tag", "my_model.zip", "release"],
        ["push", tmp_path / "weights", "--name", "two words.bin"],
        ["push", tmp_path / "weights", "--name", "team/weights.bin"],
    ):
        assert 0 == home.run(*arguments).returncode
    return home


def candidates(home: Home, *words: str, **environ: str) -> list[str]:
    """What zsh would offer for the last word. Completion succeeds, and prints nothing else."""
    asked = {"_FILESTORE_COMPLETE": "zsh_complete", "COMP_WORDS": " ".join(["filestore", *words]), "COMP_CWORD": str(len(words))}
    done = home.run(environ=PATIENT | asked | environ)
    assert (0, "") == (done.returncode, done.stderr)
    lines = done.stdout.rstrip("\n").split("\n")
    return [f"<{kind}>" if kind != "plain" else value for kind, value in zip(lines[::3], lines[1::3], strict=False)]


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
@pytest.mark.parametrize("name", SHELLS)
def test_the_tab_key_completes_in_a_real_shell(stored: Home, tmp_path: Path, name: str) -> None:
    """Commands, options, values, paths and names become whole words, also those with spaces, '@' and ':'."""
    script = tmp_path / "script"
    script.write_text(stored.run("completion", name).stdout)
    environ = stored.environ | PATIENT | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    with Shell(name, script, environ=environ, cwd=tmp_path) as shell:
        assert ["fetch"] == shell.complete("filestore fetc")
        assert ["cache", "verify"] == shell.complete("filestore cache veri")
        assert ["push", "--symlinks"] == shell.complete("filestore push --syml")
        assert ["push", "--symlinks", "inside"] == shell.complete("filestore push --symlinks ins")
        assert ["hash", "my_model/config.json"] == shell.complete("filestore hash my_model/conf")
        assert ["fetch", "team/weights.bin"] == shell.complete("filestore fetch tea")
        assert ["info", "two words.bin"] == shell.complete("filestore info tw")
        assert ["info", "two words.bin"] == shell.complete("filestore info two\\ wo")
        assert ["info", "my_model.zip@release"] == shell.complete("filestore info my_model.zip@rel")
        assert ["ls", "my_model.zip:tokenizer/vocab.txt"] == shell.complete("filestore ls my_model.zip:tokenizer/v")


@pytest.mark.slow
@pytest.mark.parametrize(("quote", "offered"), [("", {0, 1, 2, 3, 4}), ('"', {1, 4}), ("'", {0, 2, 3, 4})])
def test_bash_executes_nothing_of_a_name(home: Home, tmp_path: Path, quote: str, offered: set[int]) -> None:
    """Another person has chosen it. What the quotes on the line would not keep as it is, is not offered."""
    names = ["$(touch executed)", "it's", "`touch executed`", 'a"b\\c!d', "plain name"]
    (tmp_path / "model").mkdir()
    for name in names:
        (tmp_path / "model" / name).write_text("")
    home.create_repository()
    assert 0 == home.run("push", tmp_path / "model").returncode
    asked = {"_FILESTORE_COMPLETE": "bash_complete", "COMP_LINE": f"filestore info {quote}model.zip:", "COMP_BREAKS": BREAKS}
    found = [line.removeprefix("plain,") for line in home.run(environ=PATIENT | asked).stdout.splitlines()]
    words = [f"{quote}{value}{quote}" for value in found]
    said = home.run("-c", f"printf '%s\\n' {' '.join(words)}", program="/bin/bash").stdout.splitlines()
    assert {names[number] for number in offered} == {word.removeprefix("model.zip:") for word in said}
    assert not (home.folder / "executed").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_what_is_offered(stored: Home) -> None:
    """Each word is completed by what it can be, and the candidates begin with what was typed."""
    assert {"push", "pipeline"} & set(candidates(stored, "pu")) == {"push"}
    assert ["new", "ls", "rotate", "rm"] == sorted(candidates(stored, "token", ""), key=["new", "ls", "rotate", "rm"].index)
    assert ["zstd"] == candidates(stored, "push", "--codec", "z")
    assert ["raw"] == candidates(stored, "push", "--codec=ra")
    assert ["yes", "no"] == candidates(stored, "fetch", "--presigned-reads", "")
    assert (
        ["<file>"]
        == candidates(stored, "push", "we")
        == candidates(stored, "fetch", "x", "-o", "")
        == candidates(stored, "ls", "--url", "/")
    )
    assert ["team/weights.bin", "two words.bin", "my_model.zip"] == candidates(stored, "rm", "")
    # A stored file or a path of this machine.
    assert ["my_model.zip", "<file>"] == candidates(stored, "diff", "my") == candidates(stored, "sync", "my")
    assert ["my_model.zip", "<file>"] == candidates(stored, "sync", "my_model", "my")
    assert ["<file>"] == candidates(stored, "diff", "my_model.zip", "./m") == candidates(stored, "backup", "b")
    ids = candidates(stored, "info", "file_")
    assert 3 == len(ids)
    assert [ids[0]] == candidates(stored, "info", ids[0][:-1])
    assert ["my_model.zip@release"] == candidates(stored, "log", "my_model.zip@r")
    assert ["my_model.zip@release:config.json"] == candidates(stored, "fetch", "my_model.zip@release:c")


@pytest.mark.slow
def test_nothing_is_said_where_there_is_nothing(stored: Home, tmp_path: Path) -> None:
    """Without a repository, with a wrong one, or without a token, no names are offered, and nothing is printed."""
    assert [] == candidates(stored, "fetch", "", FILESTORE_URL=str(tmp_path))
    assert [] == candidates(stored, "fetch", "", FILESTORE_URL="http://127.0.0.1:9")
    assert [] == candidates(stored, "fetch", "", FILESTORE_CODEC="no such")
    assert [] == candidates(stored, "fetch", "other:")
    assert ["<file>"] == candidates(stored, "sync", "", FILESTORE_URL="http://127.0.0.1:9")
    stored.config_file.write_text("mistyped = 1")
    assert [] == candidates(stored, "fetch", "")


@pytest.mark.slow
def test_a_server_that_does_not_answer(home: Home) -> None:
    """When the time of the setting is over, no names are offered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environ = {"FILESTORE_URL": f"http://127.0.0.1:{listening.getsockname()[1]}", "FILESTORE_TOKEN": "x" * 40}
        assert [] == candidates(home, "fetch", "", FILESTORE_COMPLETION_SECONDS="0.1", **environ)


@pytest.mark.slow
def test_names_of_a_server(home: Home, tmp_path: Path) -> None:
    """They need its token, which the line, the environment or a file gives."""
    (tmp_path / "weights.bin").write_bytes(b"1")
    with home.server(root=tmp_path / "root") as server:
        assert 0 == home.run("push", tmp_path / "weights.bin", environ=server.environ).returncode
        assert ["weights.bin"] == candidates(home, "fetch", "w", **server.environ)
        assert ["weights.bin"] == candidates(home, "fetch", "--url", server.url, "--token", server.token, "w")
        assert [] == candidates(home, "fetch", "w", FILESTORE_URL=server.url)
        assert [] == candidates(home, "fetch", "w", FILESTORE_URL=server.url, FILESTORE_TOKEN="x" * 40)


@pytest.mark.slow
def test_completion_writes_nothing(stored: Home, tmp_path: Path) -> None:
    """Neither in the repository nor in the home folder, also where it is a folder that could become a repository."""

    def state() -> dict[Path, tuple[int, int]]:
        found = [path for folder in (stored.folder, tmp_path) for path in folder.rglob("*")]
        # While SQLite reads, a file with its locks is in the folder.
        return {path: (path.lstat().st_mtime_ns if path.is_file() else 0, path.lstat().st_size) for path in found}

    (tmp_path / "empty").mkdir()
    before = state()
    assert ["my_model.zip"] == candidates(stored, "fetch", "my")
    assert ["my_model.zip:config.json"] == candidates(stored, "fetch", "my_model.zip:c")
    assert [] == candidates(stored, "push", "--create", "--url", str(tmp_path / "empty"), "--name", "")
    assert [] == candidates(stored, "fetch", "my", FILESTORE_URL=str(tmp_path / "empty"))
    assert before == state()


@pytest.mark.slow
def test_the_number_of_candidates_is_bounded(home: Home, tmp_path: Path) -> None:
    """A directory may have more entries than a shell should show."""
    (tmp_path / "many").mkdir()
    for number in range(COUNT_LIMIT + 20):
        (tmp_path / f"many/{number:03}").write_bytes(b"")
    home.create_repository()
    assert 0 == home.run("push", tmp_path / "many").returncode
    assert COUNT_LIMIT == len(candidates(home, "fetch", "many.zip:"))
    assert [f"many.zip:{COUNT_LIMIT + 3}"] == candidates(home, "fetch", f"many.zip:{COUNT_LIMIT + 3}")


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("filestore ", TypedLine(["filestore"], "", 0, quote="")),
        ("filestore fetch my_model.zip:a/b", TypedLine(["filestore", "fetch"], "my_model.zip:a/b", 13, quote="")),
        ("filestore fetch m@v", TypedLine(["filestore", "fetch"], "m@v", 1, quote="")),
        ("filestore fetch m@v1:a", TypedLine(["filestore", "fetch"], "m@v1:a", 5, quote="")),
        ("filestore fetch two\\ wo", TypedLine(["filestore", "fetch"], "two wo", 0, quote="")),
        ("filestore fetch 'two wo", TypedLine(["filestore", "fetch"], "two wo", 0, quote="'")),
        ("filestore fetch 'two words' ", TypedLine(["filestore", "fetch", "two words"], "", 0, quote="")),
        ('filestore fetch "m:a', TypedLine(["filestore", "fetch"], "m:a", 0, quote='"')),
        ("filestore push '' --codec=z", TypedLine(["filestore", "push", ""], "--codec=z", 8, quote="")),
    ],
)
def test_a_line_of_bash_is_separated_as_bash_does(line: str, typed: TypedLine) -> None:
    """Into words, with what bash keeps of the last one: it replaces only what is behind one of its break characters."""
    assert typed == typed_in_bash(line, BREAKS)
