"""Programs that are forked behave as programs that are started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fork_server
from tests.support.commands import SCRIPTS
from tests.support.fork_server import Program, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has clone")
_SECONDS = 100
_ENDS = """
import atexit, sys, threading, time
atexit.register(print, "at the end")
print("to the error output", file=sys.stderr)
released = threading.Event()
threading.Thread(target=lambda: (released.wait(), print("in a thread"))).start()
print(sys.argv[1:], __name__, sys.stdin.read() == "")
released.set()
"""
_LOGS_AT_THE_END = """
import logging, logging.handlers, sys
handler = logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout))
handler.emit(logging.makeLogRecord({"levelno": logging.INFO, "msg": "a line that waits for the end"}))
"""
_SHOWS_STREAMS = """
import sys
for stream in sys.stdin, sys.stdout, sys.stderr:
    print(stream.fileno(), stream.encoding, stream.errors, stream.line_buffering, stream.isatty(), stream.seekable())
"""


@pytest.fixture
def environ() -> dict[str, str]:
    """The variables of a program. The server for these has started."""
    variables = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "COLOUR": "blue"}
    while fork_server._server(variables) is None:
        pass
    return variables


def _module(folder: Path, code: str) -> list[str | Path]:
    (folder / "program.py").write_text(code)
    return [sys.executable, "-m", "program"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (_ENDS, 0),
        (_LOGS_AT_THE_END, 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit(256)", 0),
        ("import sys; sys.exit('a message')", 1),
        ("import sys; sys.exit()", 0),
        ("import os; print(os.getcwd(), sorted(os.environ.items()))", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("raise ValueError('of the program')", 1),
        (_SHOWS_STREAMS, 0),
        ("import os; print(os.getppid(), os.listdir('/proc/self/fd').__len__())", 0),
        ("import random; print(random.Random(1).random())", 0),
    ],
)
def test_a_forked_program_does_what_a_started_one_does(tmp_path: Path, environ: dict[str, str], code: str, status: int) -> None:
    """Its output, its status and the signal that ended it are the same."""
    command = [*_module(tmp_path, code), "an argument"]
    forked = run_program(command, cwd=tmp_path, env=environ, timeout=_SECONDS)
    started = subprocess.run(
        command, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (status, started.stdout) == (forked.returncode, forked.stdout)
    assert status == started.returncode
    assert started.stderr.splitlines()[-1:] == forked.stderr.splitlines()[-1:]


def test_two_forked_programs_draw_different_numbers(tmp_path: Path, environ: dict[str, str]) -> None:
    """They share no state of a generator of random numbers."""
    command = _module(tmp_path, "import random, tempfile, uuid; print(random.random(), tempfile.mkstemp(), uuid.uuid4())")
    first, second = (run_program(command, cwd=tmp_path, env=environ, timeout=_SECONDS).stdout.split() for _ in range(2))
    assert all(one != other for one, other in zip(first[:1] + first[2:], second[:1] + second[2:], strict=True))


def test_a_forked_program_is_killed_by_its_test(tmp_path: Path, environ: dict[str, str]) -> None:
    """It is a child of the test, which sees how it ended."""
    command = _module(tmp_path, "import time; print('begins', flush=True); time.sleep(100)")
    with Program(command, cwd=tmp_path, env=environ) as process:
        assert process.stdout is not None
        assert "begins\n" == process.stdout.readline()
        assert b"fork_server.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.kill()
        assert -signal.SIGKILL == process.wait(_SECONDS)


def test_the_command_line_is_forked(tmp_path: Path, environ: dict[str, str]) -> None:
    """The console script runs as if it had been started."""
    done = run_program([SCRIPTS / "filestore", "--version"], cwd=tmp_path, env=environ, timeout=_SECONDS)
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("filestore ")


def test_other_variables_of_python_need_another_start(tmp_path: Path, environ: dict[str, str]) -> None:
    """What Python reads at its start is as the test has set it."""
    command = _module(tmp_path, "import sys; print(sys.flags.optimize)")
    done = run_program(command, cwd=tmp_path, env=environ | {"PYTHONOPTIMIZE": "2"}, timeout=_SECONDS)
    assert "2\n" == done.stdout


def test_a_child_of_a_test_starts_its_own_programs(tmp_path: Path, environ: dict[str, str]) -> None:
    """It waits for them, and sees their status."""
    command = _module(tmp_path, "import sys; sys.exit(7)")
    child = os.fork()
    if not child:
        status = 1
        try:
            status = run_program(command, cwd=tmp_path, env=environ, timeout=_SECONDS).returncode
        finally:
            os._exit(status)
    assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 7 == run_program(command, cwd=tmp_path, env=environ, timeout=_SECONDS).returncode
