"""Run commands and servers as processes that another process forks, so that a start takes a few milliseconds.

`python -m tests.kills.forking FOLDER NAME MODULES` imports what commands import, waits for requests on its standard input, and
forks one process after the other. Each of them is the real command: the same code from its entry to its end, with its
own arguments, environment, folder and output. The parent of them has no threads.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.kills.steps import Steps, Switch
from tests.support.commands import REPOSITORY

_MODULES = (
    "filestore_cli.main",
    "filestore_cli.backup",
    "filestore_cli.caching",
    "filestore_cli.check",
    "filestore_cli.gc",
    "filestore.system.own_process",
    "filestore_cli.records",
    "filestore_cli.removal",
    "filestore_cli.repairing",
    "filestore_cli.serving",
    "filestore_cli.fetching",
    "filestore_cli.transfer",
    "filestore_cli.usage",
    "filestore.backends",
    "filestore.http.client.transport",
    "filestore.http.server",
    "filestore.repository.maintenance.backup",
    "filestore.repository.maintenance.collect",
    "filestore.repository.maintenance.repair",
    "filestore.transfer.fetch_tree",
    "filestore.transfer.push",
)
_ENGINE_MODULES = (
    "asyncpg",
    "filestore.repository.object_repository",
    "filestore.repository.index.postgres.index",
    "obstore.store",
)
"""What processes import that use an object store and a database."""
_PR_SET_PDEATHSIG = 1
_SECONDS = 120.0
"""How long any command may take on a busy machine. A command that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Kill:
    """When a process is to be killed: at a step, or some time after its start."""

    step: str | None = None
    count: int = 1
    """At the how-manieth time of the step."""
    delay_seconds: float = 0.0
    """Without a step, how long after the start."""


class Outcome(NamedTuple):
    """How a process has ended."""

    status: int
    """The exit status, or the negative number of the signal that ended it."""
    output: str
    error: str
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL

    @property
    def result(self) -> Any:
        """The JSON object on standard output."""
        return json.loads(self.output)


class Running:
    """A process that was started. Only one thread may use it."""

    def __init__(self, forker: Forker, pid: int, output: Path, error: Path) -> None:
        self.pid = pid
        self._forker = forker
        self._output = output
        self._error = error
        self._started = time.monotonic()
        self._outcome: Outcome | None = None

    def wait(self, seconds: float) -> Outcome | None:
        """Return how it ended, or None if it still runs after that time."""
        if self._outcome is None:
            status = self._forker.ended(seconds)
            if status is not None:
                said = self._output.read_text("utf-8"), self._error.read_text("utf-8")
                self._outcome = Outcome(status, *said, time.monotonic() - self._started)
        return self._outcome

    def output(self) -> str:
        """Return what it has printed so far."""
        return self._output.read_text("utf-8")

    def kill(self, *, whole_group: bool = False) -> Outcome:
        """Kill the process, or also all processes that it has started, and return how it ended."""
        if self._outcome is None:
            # The process keeps its id until the next start, also if it has ended already.
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(self.pid, signal.SIGKILL)
        outcome = self.wait(_SECONDS)
        assert outcome is not None
        return outcome


class Forker:
    """The process that forks the others, one at a time. Only one thread may use it."""

    def __init__(self, folder: Path, name: str, environ: Mapping[str, str]) -> None:
        """Start it. `folder` is that of the trial; `name` is in the names of its files there."""
        self.name = name
        self.switch = Switch(folder / f"{name}.switch")
        self._files = folder / f"{name}.out", folder / f"{name}.err"
        self._environ = dict(environ)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.forking", folder, name, *_modules_for(self._environ)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def start(
        self,
        *arguments: str | Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        steps: Path | None = None,
    ) -> Running:
        """Start `filestore ARGUMENTS`. The process before must have ended. With `steps`, a file, its steps are listed there."""
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environ": self._environ | dict(environ or {}),
            "cwd": str(cwd or self._environ["HOME"]),
            "steps": None if steps is None else str(steps),
            "files": [str(path) for path in self._files],
        }
        for path in self._files:
            # Here already, so that nobody takes the output of the process before for that of this one.
            path.write_bytes(b"")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return Running(self, self._answer(_SECONDS, "the process that forks others"), *self._files)

    def run(
        self,
        *arguments: str | Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        kill: Kill | None = None,
    ) -> Outcome:
        """Run `filestore ARGUMENTS` to its end, or kill it on the way."""
        if kill is not None and kill.step is not None:
            self.switch.arm(kill.step, kill.count)
        running = self.start(*arguments, environ=environ, cwd=cwd)
        outcome = running.wait(_SECONDS if kill is None or kill.step is not None else kill.delay_seconds)
        if outcome is None:
            outcome = running.kill()
            if kill is None or kill.step is not None:
                raise AssertionError(f"the command did not end in {_SECONDS} seconds: filestore {' '.join(map(str, arguments))}")
        self.switch.disarm()
        return outcome

    def ended(self, seconds: float) -> int | None:
        """Return the status of the last process, or None if it still runs after that time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return self._answer(_SECONDS, "the last command")

    def close(self) -> None:
        """End it. The last process must have ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self, seconds: float, what: str) -> int:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise AssertionError(f"{what} does not answer")
        line = self._process.stdout.read(12)
        if len(line) != 12:
            raise AssertionError(f"{what} ended by itself")
        return int(line)


def _modules_for(environ: Mapping[str, str]) -> tuple[str, ...]:
    return (*_MODULES, *_ENGINE_MODULES) if "FILESTORE_STORE" in environ else _MODULES


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, so that nothing is left of a trial that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _become(request: Mapping[str, Any]) -> None:
    """Give this process, a fork, what a started process has."""
    _end_with_parent()
    os.setsid()
    descriptors = [os.open(os.devnull, os.O_RDONLY)]
    descriptors += [os.open(path, os.O_WRONLY) for path in request["files"]]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.argv = ["filestore", *request["arguments"]]


def _run_command(request: Mapping[str, Any], steps: Steps) -> NoReturn:
    _become(request)
    steps.install()
    # The end of the interpreter is that of a command, too.
    start = importlib.import_module("filestore_cli.start")
    start.main()
    raise AssertionError


def _listening(request: Mapping[str, Any], switch: Switch) -> tuple[Callable[[str], None], Callable[[], bool]]:
    """Return what is done at each step of a process, and whether anything is."""
    if request["steps"] is None:
        return switch.passed, lambda: switch.is_armed
    path = Path(request["steps"])

    def note(step: str) -> None:
        with path.open("a") as file:
            file.write(f"{step}\n")

    return note, lambda: True


def _say(number: int) -> None:
    os.write(1, b"%11d\n" % number)


def _main(arguments: Sequence[str]) -> None:
    _end_with_parent()
    folder = Path(arguments[0])
    for name in arguments[2:]:
        importlib.import_module(name)
    assert threading.active_count() == 1
    switch = Switch(folder / f"{arguments[1]}.switch")
    gc.freeze()
    pid = 0
    for line in sys.stdin:
        if pid:
            # Until here nobody else had its id, so that a late kill reached no other process.
            os.waitpid(pid, 0)
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run_command(request, Steps(folder, *_listening(request, switch)))
        _say(pid)
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        _say(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)


if __name__ == "__main__":
    _main(sys.argv[1:])
