"""Commands with several arguments: push, fetch and info."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import SCRIPTS, Home, notes

SIZE = 300_000


@pytest.fixture
def checkpoints(home: Home) -> list[Path]:
    """Three files and a directory in the home folder."""
    paths = []
    for number in (1, 2, 3):
        path = home.folder / f"ckpt-{number}.bin"
        path.write_bytes(random.Random(number).randbytes(SIZE))
        paths.append(path)
    folder = home.folder / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("a b c\n" * 1000)
    return [*paths, folder]


def run_json(home: Home, *arguments: str | Path, status: int = 0) -> tuple[Any, list[str]]:
    """The object that a command prints, and the lines of its standard error."""
    done = home.run(*arguments, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def test_several_are_pushed_and_fetched(home: Home, checkpoints: list[Path], tmp_path: Path) -> None:
    """Each is stored under its own name, and each is written under its own name into a folder, which is made."""
    home.create_repository()
    pushed, errors = run_json(home, "push", *checkpoints)
    names = ["ckpt-1.bin", "ckpt-2.bin", "ckpt-3.bin", "tokenizer.zip"]
    assert ([record["name"] for record in pushed["pushed"]], pushed["failed"], errors) == (names, [], [])
    assert pushed["repository"] == str(home.data)

    target = tmp_path / "new" / "folder"
    fetched, errors = run_json(home, "fetch", *names, "-o", target)
    assert ([each["name"] for each in fetched["fetched"]], fetched["failed"], errors) == (names, [], [])
    assert [path.read_bytes() for path in checkpoints[:3]] == [(target / path.name).read_bytes() for path in checkpoints[:3]]
    assert (target / "tokenizer" / "vocab.txt").read_text() == "a b c\n" * 1000


def test_for_a_person_each_has_a_block(home: Home, checkpoints: list[Path]) -> None:
    """The repository is named once, at the end."""
    home.create_repository()
    lines = home.run("push", *checkpoints[:2]).stdout.splitlines()
    words = [line.split()[:1] for line in lines]
    block = [["id"], ["digest"], ["path"], ["name"], ["size"], ["sent"], ["shared"], ["time"], []]
    assert words == [*block, *block, ["repository"]]

    lines = home.run("info", "ckpt-1.bin", "ckpt-2.bin").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("name ")] == ["ckpt-1.bin", "ckpt-2.bin"]
    assert sum(line.startswith("repository ") for line in lines) == 1


@pytest.mark.slow
def test_what_fails_stops_nothing(home: Home, checkpoints: list[Path]) -> None:
    """One line on standard error for each failure, exit status 1, and the results of all others."""
    home.create_repository()
    pushed, errors = run_json(home, "push", checkpoints[0], "missing.bin", checkpoints[1], status=1)
    assert [record["name"] for record in pushed["pushed"]] == ["ckpt-1.bin", "ckpt-2.bin"]
    assert [(failed["path"], failed["slug"]) for failed in pushed["failed"]] == [("missing.bin", "source-unreadable")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: missing.bin cannot be read: ")

    fetched, errors = run_json(home, "fetch", "ckpt-1.bin", "missing.bin", "ckpt-2.bin", "-o", "out", status=1)
    assert [each["path"] for each in fetched["fetched"]] == ["out/ckpt-1.bin", "out/ckpt-2.bin"]
    assert [failed["reference"] for failed in fetched["failed"]] == ["missing.bin"]
    assert len(errors) == 1

    shown, errors = run_json(home, "info", "missing.bin", "ckpt-2.bin", status=1)
    assert [record["name"] for record in shown["files"]] == ["ckpt-2.bin"]
    assert [failed["reference"] for failed in shown["failed"]] == ["missing.bin"]
    assert len(errors) == 1

    done = home.run("push", "missing.bin", checkpoints[0])
    assert done.returncode == 1
    assert notes(done).count("\n") == 1
    assert "ckpt-1.bin" in done.stdout


@pytest.mark.slow
def test_a_path_that_no_system_call_takes_stops_nothing(home: Home, checkpoints: list[Path]) -> None:
    """It fails alone, as any other path."""
    home.create_repository()
    pushed, [error] = run_json(home, "push", "x" * 300, checkpoints[0], status=1)
    assert (["ckpt-1.bin"], ["x" * 300]) == (
        [each["name"] for each in pushed["pushed"]],
        [each["path"] for each in pushed["failed"]],
    )
    assert "File name too long" in error


def test_a_pattern_that_no_shell_expanded(home: Home, checkpoints: list[Path]) -> None:
    """It means what matches it, in order, and has the result of several also where one matches. No match is an error."""
    home.create_repository()
    pushed, _ = run_json(home, "push", "ckpt-[12]*")
    assert [record["name"] for record in pushed["pushed"]] == ["ckpt-1.bin", "ckpt-2.bin"]
    assert [record["name"] for record in run_json(home, "push", "ckpt-3*")[0]["pushed"]] == ["ckpt-3.bin"]
    assert home.failure("push", "nothing-*", checkpoints[0]) == "nothing matches the pattern nothing-*"

    literal = home.folder / "ckpt-[1].bin"
    literal.write_bytes(b"literal")
    assert home.result("push", literal)["size"] == 7


@pytest.mark.slow
def test_equal_names_are_refused_before_anything_is_sent(home: Home, checkpoints: list[Path]) -> None:
    """Nothing is stored, and the message names both."""
    home.create_repository()
    other = home.folder / "other"
    other.mkdir()
    (other / "ckpt-1.bin").write_bytes(b"another")
    refused = home.failure("push", "ckpt-1.bin", "ckpt-2.bin", "other/ckpt-1.bin")
    assert refused == (
        "ckpt-1.bin and other/ckpt-1.bin would both be stored under the name ckpt-1.bin; "
        "push them one by one, each with its own --name"
    )
    (home.folder / "tokenizer.zip").write_bytes(b"a name like that of the folder")
    assert "tokenizer and tokenizer.zip would both be stored" in home.failure("push", "tokenizer", "tokenizer.zip")
    assert home.result("ls")["files"] == []


@pytest.mark.slow
def test_equal_targets_are_refused_before_anything_is_written(home: Home, checkpoints: list[Path]) -> None:
    """Two versions of a name have one name."""
    home.create_repository()
    run_json(home, "push", *checkpoints[:2])
    checkpoints[0].write_bytes(b"changed")
    home.result("push", checkpoints[0])
    refused = home.failure("fetch", "ckpt-2.bin", "ckpt-1.bin", "ckpt-1.bin@~1", "-o", "out")
    assert refused.startswith("ckpt-1.bin and ckpt-1.bin@~1 would both be written to ")
    assert list((home.folder / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["push", "ckpt-1.bin", "ckpt-2.bin", "--name", "x"], "--name names one file or directory"),
        (["push", "ckpt-*", "--name", "x"], "--name names one file or directory"),
        (["fetch", "ckpt-1.bin", "ckpt-2.bin", "-o", ""], "the path is empty"),
        (["push"], "Missing argument 'PATH...'"),
    ],
    ids=["name", "name of a pattern", "empty target", "nothing"],
)
def test_what_makes_no_sense_is_wrong_usage(home: Home, checkpoints: list[Path], arguments: list[str], sentence: str) -> None:
    """It is refused in one sentence."""
    home.create_repository()
    done = home.run(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), checkpoints
    assert sentence in done.stderr


@pytest.mark.slow
def test_several_do_not_go_to_a_file(home: Home, checkpoints: list[Path]) -> None:
    """A file at the target is neither replaced nor overwritten."""
    home.create_repository()
    run_json(home, "push", *checkpoints[:2])
    refused = home.failure("fetch", "ckpt-1.bin", "ckpt-2.bin", "-o", "ckpt-3.bin", "--force")
    assert refused.startswith("ckpt-3.bin cannot be written: a file is there, and several files are fetched into a folder")


@pytest.mark.slow
def test_options_of_directories_are_refused_where_a_file_is_among_them(home: Home, checkpoints: list[Path]) -> None:
    """As for one file."""
    home.create_repository()
    assert home.failure("push", "tokenizer", "ckpt-1.bin", "--exclude", "*.txt").startswith("ckpt-1.bin is not a directory")
    assert home.result("ls")["files"] == [], checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "fetch"])
def test_a_program_learns_which_error_it_was(home: Home, checkpoints: list[Path], tmp_path: Path, command: str) -> None:
    """Also where the message says more than that of the library."""
    home.create_repository()
    run_json(home, "push", *checkpoints[:2])
    target = ("-o", tmp_path / "target") if command == "fetch" else ()
    found, errors = run_json(home, command, "ckpt-1.bin", "absent", *target, status=1)
    assert ["not-found"] == [failed["slug"] for failed in found["failed"]]
    assert "`filestore ls` shows what is" in errors[-1]


@pytest.mark.slow
def test_a_dry_run_of_several(home: Home, checkpoints: list[Path]) -> None:
    """Each has its plan, and nothing is stored."""
    home.create_repository()
    planned, _ = run_json(home, "push", "--dry-run", "ckpt-1.bin", "tokenizer")
    assert [(plan["path"], plan["bytes_new"] == plan["size"]) for plan in planned["planned"]] == [
        ("ckpt-1.bin", True),
        ("tokenizer", True),
    ]
    lines = home.run("push", "--dry-run", "ckpt-1.bin", "tokenizer").stdout.splitlines()
    assert ["ckpt-1.bin:", "tokenizer:"] == [line for line in lines if line.endswith(":")]
    assert home.result("ls")["files"] == [], checkpoints


@pytest.mark.slow
def test_a_server_that_is_gone_is_not_waited_for_again(home: Home, checkpoints: list[Path]) -> None:
    """What comes after the failure of the server was not tried."""
    away = ("--url", "http://127.0.0.1:9", "--retry-seconds", "1")
    pushed, errors = run_json(home, "push", *checkpoints[:3], *away, status=1)
    failed = pushed["failed"]
    assert [each["slug"] for each in failed] == ["unreachable", None, None]
    assert [each["error"] for each in failed[1:]] == ["it was not tried"] * 2
    # The reason is not hidden by a line for each of many files.
    assert (2, f"Error: {checkpoints[1]} and 1 more were not tried") == (len(errors), errors[-1])
    last = run_json(home, "push", *checkpoints[:2], *away, status=1)[1][-1]
    assert f"Error: {checkpoints[1]}: it was not tried" == last


@pytest.mark.slow
def test_a_token_that_may_not_push_is_told_once(home: Home, checkpoints: list[Path]) -> None:
    """It would be refused for each of them."""
    with home.local_server() as server:
        made = home.result("token", "new", "--scope", "read", "--root", server.root)
        done = home.run("push", *checkpoints[:3], environ={"FILESTORE_URL": server.url, "FILESTORE_TOKEN": made["token"]})
    assert 1 == done.returncode
    assert 1 == done.stderr.count("only with a token of the scope 'write'")
    assert done.stderr.endswith(f"{checkpoints[1]} and 1 more were not tried\n")


@pytest.mark.slow
def test_one_display_in_a_terminal_for_all(home: Home, checkpoints: list[Path]) -> None:
    """It says which of them is being pushed. A failure is a line above it."""
    home.create_repository()
    terminal, inner = pty.openpty()
    command: list[str | Path] = [SCRIPTS / "filestore", "push", checkpoints[0], "missing.bin", checkpoints[1], "--json"]
    environ = home.environ | {"TERM": "xterm"}
    done = subprocess.run(command, env=environ, cwd=home.folder, stdout=subprocess.PIPE, stderr=inner, check=False)
    os.close(inner)
    shown = b""
    # A terminal gives a few kilobytes at a time. A slow push has redrawn its display more often than that.
    with suppress(OSError):  # the other end is closed
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    os.close(terminal)

    assert done.returncode == 1
    assert len(json.loads(done.stdout)["pushed"]) == 2
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "Error: missing.bin cannot be read" in text
