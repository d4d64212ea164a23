"""`push -` and `fetch -o -`: standard input and standard output."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home, notes
from tests.support.process_memory import peak_until_end

MIB = 1 << 20
PUSH = (SCRIPTS / "filestore", "push", "-", "--name", "stream.bin")
MEMORY_LIMIT = 500 * MIB
"""Bytes of memory that no stream may need, whatever its size: the budget of a transfer on two cores, and the program."""


@pytest.fixture
def content() -> bytes:
    """More than one window, which does not compress."""
    return random.Random(1).randbytes(20 * MIB)


def push_input(home: Home, content: bytes) -> subprocess.CompletedProcess[bytes]:
    """Push what comes from a pipe."""
    return subprocess.run([*PUSH, "--json"], input=content, env=home.environ, cwd=home.folder, capture_output=True, check=False)


def test_standard_input_is_stored(home: Home, content: bytes) -> None:
    """As if it were a file, which comes back."""
    home.create_repository()
    (home.folder / "same.bin").write_bytes(content)
    done = push_input(home, content)
    assert done.returncode == 0, done.stderr
    assert home.result("info", "stream.bin")["digest"] == home.result("hash", "same.bin")["digest"]
    home.result("fetch", "stream.bin")
    assert (home.folder / "stream.bin").read_bytes() == content


@pytest.mark.slow
def test_a_pipeline_of_a_shell(home: Home) -> None:
    """What the documentation shows, and what a person sees of it."""
    home.create_repository()
    (home.folder / "data").mkdir()
    (home.folder / "data" / "a.txt").write_text("a")
    done = home.run("-c", f"tar c data | {SCRIPTS}/filestore push - --name data.tar", program="/bin/sh")
    assert (done.returncode, notes(done)) == (0, "")
    assert "name        data.tar" in done.stdout


@pytest.mark.slow
def test_empty_standard_input_is_refused(home: Home) -> None:
    """What should have written to it has failed."""
    home.create_repository()
    failure = home.failure("push", "-", "--name", "stream.bin")
    assert failure.startswith("standard input cannot be read: no bytes arrived")
    assert home.result("ls")["files"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "give one by --name"),
        (["a.bin"], "- is standard input, which is pushed alone"),
        (["--name", "x", "--dry-run"], "which is read once"),
        (["--name", "x", "--rehash"], "which is read once"),
        (["--name", "x", "--exclude", "*.tmp"], "which is read once"),
    ],
    ids=["no name", "two", "dry run", "rehash", "selection"],
)
def test_what_makes_no_sense_for_standard_input(home: Home, more: list[str], sentence: str) -> None:
    """It is wrong usage, in one sentence."""
    done = home.run("push", "-", *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.slow
def test_a_terminal_is_not_pushed(home: Home) -> None:
    """A person who typed `-` would wait for ever."""
    terminal, inner = pty.openpty()
    done = subprocess.run(PUSH, stdin=inner, env=home.environ, capture_output=True, text=True, check=False, timeout=60)
    os.close(inner)
    os.close(terminal)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard input is a terminal; ")


@pytest.mark.slow
def test_closed_standard_input_is_not_pushed(home: Home) -> None:
    """As a service manager may start a program."""
    home.create_repository()
    done = home.run("-c", f"{SCRIPTS}/filestore push - --name x <&-", program="/bin/sh")
    assert (1, "Error: standard input is closed; let a program write to it\n") == (done.returncode, done.stderr)


def test_a_file_may_be_called_a_hyphen(home: Home) -> None:
    """`./-` is that file."""
    home.create_repository()
    (home.folder / "-").write_bytes(b"content")
    assert home.result("push", "./-")["name"] == "-"


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_the_program_that_writes(home: Home) -> None:
    """It has written something, and goes on later or never."""
    home.create_repository()
    reads, writes = os.pipe()
    os.write(writes, b"the beginning")
    process = subprocess.Popen(PUSH, stdin=reads, stderr=subprocess.PIPE, text=True, env=home.environ)
    os.close(reads)
    assert process.stderr is not None
    assert any("13 B read" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    os.close(writes)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("Interrupted")
    assert home.result("ls")["files"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_three_gigabytes_in_bounded_memory(home: Home) -> None:
    """The stream is kept nowhere."""
    home.create_repository()
    size = 3 << 30
    writer = subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE)
    process = subprocess.Popen([*PUSH, "--quiet"], stdin=writer.stdout, stdout=subprocess.DEVNULL, env=home.environ)
    assert writer.stdout is not None
    writer.stdout.close()
    peak = peak_until_end(process)
    assert (process.returncode, writer.wait()) == (0, 0)
    assert 0 < peak < MEMORY_LIMIT
    assert home.result("info", "stream.bin")["size"] == size


# Standard output.


def fetch_output(home: Home, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Fetch to a pipe."""
    command: list[str | Path] = [SCRIPTS / "filestore", "fetch", *arguments, "-o", "-"]
    return subprocess.run(command, env=home.environ, cwd=home.folder, capture_output=True, check=False, timeout=60)


@pytest.fixture
def stored(home: Home, content: bytes) -> Home:
    """A home with a stored file and a stored directory."""
    home.create_repository()
    (home.folder / "model.bin").write_bytes(content)
    folder = home.folder / "data"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}\n')
    (folder / "large.bin").write_bytes(content[: 2 * MIB])
    home.result("push", "model.bin")
    home.result("push", "data")
    return home


def test_a_file_is_written_to_standard_output(stored: Home, content: bytes) -> None:
    """Exactly its bytes, and nothing beside them."""
    done = fetch_output(stored, "model.bin", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, content, b"")


@pytest.mark.slow
def test_the_result_of_standard_output_is_on_standard_error(stored: Home, content: bytes) -> None:
    """With --json only."""
    done = fetch_output(stored, "model.bin", "--json")
    result = json.loads(done.stderr)
    assert (done.stdout, result["size"], result["path"]) == (content, len(content), "-")
    assert result["digest"] == stored.result("info", "model.bin")["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["config.json", "large.bin"])
def test_a_file_of_a_directory_is_written_to_standard_output(stored: Home, entry: str) -> None:
    """Alone."""
    done = fetch_output(stored, f"data.zip:{entry}")
    assert (done.returncode, done.stdout) == (0, (stored.folder / "data" / entry).read_bytes())


@pytest.mark.slow
def test_a_directory_is_written_as_a_zip_file(stored: Home) -> None:
    """Only with --zip; otherwise the message says so."""
    refused = fetch_output(stored, "data.zip")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"data.zip is a directory, and standard output takes one file; give --zip" in refused.stderr

    written = fetch_output(stored, "data.zip", "--zip")
    assert written.returncode == 0
    with zipfile.ZipFile(io.BytesIO(written.stdout)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["config.json", "large.bin"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["model.bin", "data.zip"], b"writes one file to standard output"), (["data.zip", "--unzip"], b"leave out --unzip")],
    ids=["two", "unzip"],
)
def test_what_makes_no_sense_for_standard_output(stored: Home, arguments: list[str], sentence: bytes) -> None:
    """It is wrong usage, in one sentence."""
    done = fetch_output(stored, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert sentence in done.stderr


@pytest.mark.slow
def test_a_reader_that_ends_early_fails_nothing(stored: Home, content: bytes) -> None:
    """No message, and the exit status of Unix tools."""
    command: list[str | Path] = [SCRIPTS / "filestore", "fetch", "model.bin", "-o", "-", "--quiet"]
    process = subprocess.Popen(command, env=stored.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 10) == content[:10]
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_the_program_that_reads(stored: Home) -> None:
    """It has read something, and goes on later or never."""
    command: list[str | Path] = [SCRIPTS / "filestore", "fetch", "model.bin", "-o", "-"]
    process = subprocess.Popen(command, env=stored.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 10)
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 130
    process.stdout.close()
    process.stderr.close()
    assert errors.splitlines()[-1] == b"Interrupted."


@pytest.mark.slow
def test_what_is_damaged_is_not_written(stored: Home, content: bytes) -> None:
    """What came before it is right."""
    for path in stored.data.glob("chunks/*/*/*/*"):
        damaged = bytearray(path.read_bytes())
        if len(damaged) > 100_000 and content[-1000:] in damaged:
            damaged[-2000] ^= 1
            path.write_bytes(damaged)
    done = fetch_output(stored, "model.bin", "--quiet")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")
    assert len(done.stdout) < len(content)
    assert content.startswith(done.stdout)


@pytest.mark.slow
def test_only_text_is_written_to_a_terminal(stored: Home) -> None:
    """Other content could control it. --force writes it all the same."""
    for arguments, status, shown in (
        (["data.zip:config.json"], 0, b'{"a": 1}'),
        (["data.zip:large.bin"], 1, b"Error: the content is not plain text, and standard output is a terminal"),
        (["data.zip", "--zip", "--force"], 0, b"PK\x03\x04"),
    ):
        terminal, inner = pty.openpty()
        command: list[str | Path] = [SCRIPTS / "filestore", "fetch", *arguments, "-o", "-"]
        process = subprocess.Popen(command, env=stored.environ, stdin=subprocess.DEVNULL, stdout=inner, stderr=inner)
        os.close(inner)
        written = b""
        while True:
            try:
                written += os.read(terminal, 1 << 16)
            except OSError:  # the other end is closed
                break
        os.close(terminal)
        assert (process.wait(timeout=60), written.startswith(shown)) == (status, True), written[:200]


@pytest.mark.slow
def test_a_full_disk_behind_standard_output(stored: Home) -> None:
    """It is a failure with a message."""
    command: list[str | Path] = [SCRIPTS / "filestore", "fetch", "model.bin", "-o", "-", "--quiet"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, env=stored.environ, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("Error: the content cannot be written to standard output: No space left on device")


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_a_stream_of_a_stream_in_bounded_memory(home: Home) -> None:
    """3 GB are fetched and never kept."""
    home.create_repository()
    size = 3 << 30
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as writer:
        subprocess.run([*PUSH, "--quiet"], stdin=writer.stdout, stdout=subprocess.DEVNULL, env=home.environ, check=True)
    command: list[str | Path] = [SCRIPTS / "filestore", "fetch", "stream.bin", "-o", "-", "--quiet"]
    with subprocess.Popen(["wc", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as counter:
        process = subprocess.Popen(command, stdout=counter.stdin, env=home.environ)
        assert counter.stdin is not None
        counter.stdin.close()
        peak = peak_until_end(process)
        assert counter.stdout is not None
        assert (process.returncode, int(counter.stdout.read())) == (0, size)
    assert 0 < peak < MEMORY_LIMIT
