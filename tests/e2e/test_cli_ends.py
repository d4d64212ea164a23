"""How a command ends: by a signal, without its outputs, and by what nobody foresaw."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home
from tests.support.daemons import lasting_port
from tests.support.generator import octets
from tests.support.links import running_link
from tests.support.server import eventually

SIZE = 24 << 20
ENDINGS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]
GOES_ON = "run the same command again to continue: what was transferred already is not transferred again.\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small file."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 1000)
    return path


def as_first_process() -> list[str | Path]:
    """Return what makes a command process 1, as in a container. CI must be able to do that."""
    command: list[str | Path] = ["unshare", "--pid", "--fork"]
    made = subprocess.run([*command, "true"], check=False, capture_output=True, text=True)
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"needs the right to make a namespace: {made.stderr}")
    return command


def ended(home: Home, command: Sequence[str | Path], *numbers: signal.Signals, of_child: bool = False) -> tuple[int, str, str]:
    """The end of a push to a server that never answers, once it has connected and got these signals."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [*command, "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--quiet"],
            env=home.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        pid = process.pid
        if of_child:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        for number in numbers:
            os.kill(pid, number)
        output, errors = process.communicate(timeout=60)
        connection.close()
    return process.returncode, output, errors


# Signals.


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_the_first_process_of_a_container_ends_by_a_signal(home: Home, model: Path, number: signal.Signals, status: int) -> None:
    """Where the kernel ignores a signal that a process has no handler for."""
    command = [*as_first_process(), SCRIPTS / "filestore", "push", model]
    assert (status, "", f"Interrupted by {number.name}; {GOES_ON}") == ended(home, command, number, of_child=True)


def test_a_signal_ends_a_command_as_an_interrupt_does(home: Home, model: Path) -> None:
    """With a sentence, and 128 and the signal's number; also under the name that pipelines have for it."""
    done = ended(home, [SCRIPTS / "pipeline", "create", "file", model], signal.SIGTERM)
    assert (143, "", f"Interrupted by SIGTERM; {GOES_ON}") == done


@pytest.mark.slow
@pytest.mark.parametrize("command", [["cache", "warm"], ["warm"]])
def test_an_interrupted_fetch_into_the_cache_says_how_to_go_on(home: Home, command: list[str | Path]) -> None:
    """Under both names of the command."""
    done = ended(home, [SCRIPTS / "filestore", *command, "model.bin"], signal.SIGTERM)
    assert (143, "", f"Interrupted by SIGTERM; {GOES_ON}") == done


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["push", "fetch"])
async def test_an_interrupt_ends_the_wait_for_another_try(home: Home, tmp_path: Path, verb: str) -> None:
    """While a server is tried again, an interrupt ends the command at once, and the same command goes on where it stopped."""
    file = tmp_path / "model.bin"
    file.write_bytes(octets(1, SIZE))
    is_cut, has_tried = asyncio.Event(), asyncio.Event()
    passed = 0

    async def cut(piece: bytes) -> bytes:
        nonlocal passed
        if is_cut.is_set():
            has_tried.set()
            raise ConnectionResetError
        passed += len(piece)
        if passed > SIZE * 3 // 4:
            is_cut.set()
        return piece

    with home.server(root=tmp_path / "root", complains=None) as server:
        if verb == "fetch":
            await asyncio.to_thread(home.result, "push", file, "--quiet", environ=server.environ)
        async with running_link(int(server.url.rpartition(":")[2])) as link:
            link.up, link.down = (cut, link.down) if verb == "push" else (link.up, cut)
            command: list[str | Path] = ["push", file] if verb == "push" else ["fetch", "model.bin", "-o", tmp_path / "back.bin"]
            environ = server.environ | {"FILESTORE_URL": f"http://127.0.0.1:{link.port}", "FILESTORE_RETRY_SECONDS": "86400"}
            with subprocess.Popen(
                [SCRIPTS / "filestore", *command, "--quiet", "--connections", "1"],
                env=home.environ | environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                await has_tried.wait()
                process.send_signal(signal.SIGINT)
                output, errors = await asyncio.to_thread(process.communicate, timeout=60)
            assert (130, "", f"Interrupted; {GOES_ON}") == (process.returncode, output, errors)
            is_cut.clear()
            passed = -4 * SIZE
            link.up_size = link.down_size = 0
            await asyncio.to_thread(home.result, *command, "--quiet", environ=environ)
            assert max(link.up_size, link.down_size) < SIZE


def test_a_signal_ends_a_command_whose_interrupt_is_ignored(home: Home, model: Path) -> None:
    """A shell ignores SIGINT for commands in the background."""
    command: list[str | Path] = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", SCRIPTS / "filestore", "push", model]
    assert (143, "", f"Interrupted by SIGTERM; {GOES_ON}") == ended(home, command, signal.SIGINT, signal.SIGTERM)


_STUBBORN = """
import asyncio
from filestore_cli import start
async def main():
    try:
        print("works", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleans up", flush=True)
        await asyncio.Event().wait()
start._take_signals()
start.run_to_end(main())
"""


def test_a_second_signal_ends_a_command_at_once(home: Home) -> None:
    """This holds even if the cleanup would wait for ever."""
    command = [sys.executable, "-c", _STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for said in ("works\n", "cleans up\n"):
            assert said == process.stdout.readline()
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (143, "") == (process.returncode, errors)


def test_a_hang_up_that_is_ignored_stays_ignored(home: Home, model: Path) -> None:
    """As nohup has it."""
    command: list[str | Path] = ["nohup", SCRIPTS / "filestore", "push", model]
    assert (143, "", f"Interrupted by SIGTERM; {GOES_ON}") == ended(home, command, signal.SIGHUP, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number"), [("1", signal.SIGTERM), ("1", signal.SIGHUP), ("2", signal.SIGTERM), ("2", signal.SIGHUP)]
)
def test_a_signal_stops_a_server_well(home: Home, tmp_path: Path, workers: str, number: signal.Signals) -> None:
    """It drains, and its exit status is 0; also as the first process of a container."""
    process = subprocess.Popen(
        [
            *as_first_process(),
            SCRIPTS / "filestore",
            "serve",
            "--root",
            tmp_path / "root",
            "--create",
            "--port",
            "0",
            "--workers",
            workers,
        ],
        env=home.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any(line.startswith("listening on ") for line in process.stdout)
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()), number)
    said, errors = process.communicate(timeout=60)
    assert (0, "") == (process.returncode, errors)
    assert "stopping, no transfer is under way\nstopped\n" == said


@pytest.mark.slow
def test_a_server_stops_well_when_nobody_reads_its_output(home: Home, tmp_path: Path) -> None:
    """The line about the stop is then lost, and nothing else; with --json the output stays one object."""
    with home.server(root=tmp_path / "root") as server:
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.process.send_signal(signal.SIGTERM)
        assert 0 == server.process.wait(timeout=60)
    command: list[str | Path] = [SCRIPTS / "filestore", "serve", "--root", tmp_path / "root", "--port", "0", "--json"]
    with subprocess.Popen(command, env=home.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"].startswith("http://")
        process.send_signal(signal.SIGTERM)
        assert ("", 0) == (process.communicate(timeout=60)[0], process.returncode)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_under_nohup_outlives_its_terminal(home: Home, tmp_path: Path, workers: str) -> None:
    """The hang-up is ignored; SIGTERM still stops it."""
    command = ("nohup", SCRIPTS / "filestore", "serve")
    with home.server("--workers", workers, root=tmp_path / "root", command=command) as server:
        os.kill(server.process.pid, signal.SIGHUP)
        assert home.result("ls", environ=server.environ)["files"] == []


def test_a_measurement_that_is_interrupted_promises_nothing(home: Home, tmp_path: Path) -> None:
    """Its content is removed, so that all of it would be transferred again."""
    process = subprocess.Popen(
        [SCRIPTS / "filestore", "bench", "upload", "--size", "1GiB", "--folder", tmp_path, "--quiet"],
        env=home.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: any(tmp_path.glob("filestore-bench-*/*")))
    process.send_signal(signal.SIGINT)
    assert (130, "Interrupted.\n") == (process.wait(timeout=60), process.communicate()[1])


# Outputs.


def outcome(home: Home, redirected: str, *arguments: str | Path) -> tuple[int, str]:
    """Return the exit status of a command whose outputs a shell redirects, and its other output."""
    command = ["sh", "-c", f'exec "$@" {redirected}', "sh", SCRIPTS / "filestore", *arguments]
    done = subprocess.run(command, env=home.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["ls"], ["token", "ls"]])
def test_an_output_that_is_closed(home: Home, arguments: list[str]) -> None:
    """A result that cannot be written is a failure; messages to standard error may be lost."""
    home.result("ls")
    sentence = "Error: the work is done, but its result cannot be written to standard output: it is closed\n"

    assert (1, sentence) == outcome(home, ">&-", *arguments)
    assert (1, "") == outcome(home, ">&- 2>&-", *arguments)
    assert (1, "") == outcome(home, "<&- >&- 2>&-", *arguments)
    assert (0, "") == outcome(home, "2>&-", *arguments)
    assert (0, "") == outcome(home, "2>/dev/full", *arguments)
    assert (1, "") == outcome(home, ">/dev/full 2>/dev/full", *arguments)


@pytest.mark.slow
def test_a_closed_output_is_not_what_is_opened_next(home: Home, model: Path) -> None:
    """Otherwise output would be written to a file that has the number of a standard stream."""
    assert (1, "") == outcome(home, "<&- >&- 2>&-", "push", model)
    assert home.result("fetch", "model.bin", "-o", home.folder / "back.bin")["size"] == 1000
    assert model.read_bytes() == (home.folder / "back.bin").read_bytes()


def test_help_that_goes_nowhere(home: Home) -> None:
    """Output before a command runs is a result too."""
    assert (1, "Error: standard output cannot be written: it is closed\n") == outcome(home, ">&-", "--help")
    assert (1, "Error: standard output cannot be written: No space left on device\n") == outcome(home, ">/dev/full", "--version")
    assert (2, "") == outcome(home, "2>&-", "no-such-command")


@pytest.mark.slow
def test_a_server_whose_output_is_closed(home: Home, tmp_path: Path) -> None:
    """It says that nothing is served, and why."""
    sentence = "Error: nothing is served, because the start cannot be reported on standard output: it is closed\n"
    assert (1, sentence) == outcome(home, ">&-", "serve", "--root", tmp_path / "root", "--create", "--port", "0")
    assert (1, sentence) == outcome(home, ">&-", "serve", "--root", tmp_path / "root", "--create", "--port", "0", "--json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ls", "--help"],
        ["ls", "--json"],
        ["push", "{model}", "--quiet"],
        ["create", "file", "{model}", "--quiet"],
        ["hash", "{model}", "--quiet"],
        ["token", "new", "--quiet"],
        ["serve", "--port", "0"],
    ],
)
def test_a_reader_that_leaves(home: Home, model: Path, arguments: list[str]) -> None:
    """As of `ls | head`: the status that Unix tools have then, and no word."""
    reader, writer = os.pipe()
    os.close(reader)
    filled = [argument.format(model=model) for argument in arguments]
    done = subprocess.run([SCRIPTS / "filestore", *filled], env=home.environ, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (128 + signal.SIGPIPE, b"") == (done.returncode, done.stderr)


# What nobody foresaw.


def broken(home: Home, tmp_path: Path, statement: str, *arguments: str) -> str:
    """Return the output of a command whose process begins with `statement`."""
    (tmp_path / "sitecustomize.py").write_text(statement)
    return home.run(*arguments, environ={"PYTHONPATH": str(tmp_path)}).stderr


@pytest.mark.parametrize("module", ["click", "platformdirs", "blake3"])
def test_an_installation_that_lacks_a_part(home: Home, tmp_path: Path, module: str) -> None:
    """Whichever it is, and whenever it is missed: one sentence."""
    said = broken(home, tmp_path, f"import sys; sys.modules[{module!r}] = None", "ls")
    assert said.startswith("Error: a part of this installation cannot be loaded (import of ")
    assert said.endswith("; install filestore again\n")
    assert said.count("\n") == 1


def test_a_fault_of_our_own_is_one_sentence(home: Home, tmp_path: Path) -> None:
    """It says what to report, and the place of the fault."""
    said = broken(home, tmp_path, "import json\njson.dumps = lambda *_: {}['x']", "ls", "--json")
    assert re.fullmatch(
        r"Error: filestore failed by a fault of its own, KeyError: 'x' \(sitecustomize\.py, line 2\); please report it\n", said
    )


def test_an_interrupt_from_the_first_moment_on(home: Home, tmp_path: Path) -> None:
    """While the command is still being loaded."""
    interrupt = "import builtins, signal\nclass Finder:\n def find_spec(self, name, *_):\n"
    interrupt += "  if name == 'click': signal.raise_signal(signal.SIGTERM)\n"
    (tmp_path / "sitecustomize.py").write_text(f"{interrupt}import sys\nsys.meta_path.insert(0, Finder())\n")
    done = home.run("ls", environ={"PYTHONPATH": str(tmp_path)})
    assert (143, "Interrupted by SIGTERM.\n") == (done.returncode, done.stderr)


# What libraries say.


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("command", ["ls", "fetch"])
def test_a_host_without_an_address(home: Home, scheme: str, command: str) -> None:
    """The advice is to check the host name: neither a start of a server nor the same command again can help."""
    url = f"{scheme}://store.invalid"
    sentence = home.failure(command, *(["model.bin"] if command == "fetch" else []), "--url", url)
    assert re.fullmatch(rf"{url} cannot be reached: [^;]*; check the host name", sentence), sentence


@pytest.mark.slow
def test_a_url_with_a_path_that_the_server_does_not_have(home: Home, tmp_path: Path) -> None:
    """The advice is to leave out the path."""
    with home.server(root=tmp_path / "root") as server:
        url = f"{server.url}/foo"
        sentence = f"{url} answered 404: this is not the address of a filestore server; give the URL without its path"
        assert sentence == home.failure("ls", "--url", url, environ={"FILESTORE_TOKEN": server.token})


@pytest.mark.parametrize(
    ("command", "advice"),
    [(["ls"], ""), (["fetch", "model.bin"], "; what was transferred already is not transferred again")],
)
def test_an_answer_that_ends_too_early(home: Home, command: list[str], advice: str) -> None:
    """Only a command that transfers speaks about what was transferred."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        arguments: list[str | Path] = [SCRIPTS / "filestore", *command, "--url", url, "--quiet"]
        with subprocess.Popen(arguments, env=home.environ, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            connection.recv(1 << 16)
            connection.close()
            _, sentence = process.communicate(timeout=60)
    assert f"Error: {url} cut the connection: its answer ended too early; try again{advice}\n" == sentence


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_is_not_a_name_is_told_in_plain_words(home: Home, scheme: str) -> None:
    """Python's encoding of names is nothing to a user."""
    sentence = home.failure("ls", "--url", f"{scheme}://a..b:80")
    assert sentence.startswith(f"{scheme}://a..b:80 cannot be reached: its host is not a name that a network can have; ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "url", "reason"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "https://",
            "what answers there does not speak TLS; a URL that begins with http://",
        ),
        (b"", "https://", "it ended the connection in the middle of TLS"),
        (b"", "http://", "its answer ended too early"),
        (None, "http://", "Connection refused"),
        (None, "https://", "Connection refused"),
    ],
)
def test_why_a_connection_failed_in_plain_words(home: Home, answer: bytes | None, url: str, reason: str) -> None:
    """Neither a class of a library nor a code of one is in the sentence."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = lasting_port() if answer is None else listener.getsockname()[1]
        command: list[str | Path] = [SCRIPTS / "filestore", "ls", "--url", f"{url}127.0.0.1:{port}"]
        with subprocess.Popen(command, env=home.environ, stderr=subprocess.PIPE, text=True) as process:
            if answer is not None:
                connection, _ = listener.accept()
                connection.recv(1 << 16)
                connection.sendall(answer)
                connection.close()
            _, errors = process.communicate(timeout=60)
    assert reason in errors
    assert not re.search(r"\w+Error|Errno|_ssl|\[", errors)
