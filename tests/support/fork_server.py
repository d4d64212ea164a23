"""Start programs of Python fast: a process that has imported what they need forks itself for each.

Half of the processor time of a whole run went into starts of Python: `filestore ls` takes 0.18 s, and 0.02 if it is
forked. The new process is a child of the test like any other, with its own standard streams, environment, working
directory and exit status. There are three differences, and a test that is about one of them starts its program by
`subprocess`: `/proc` shows the command and the environment of the server that forked it, all modules are imported at its
start, and Python ends at once when its handlers of the end have run.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import platform
import runpy
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OMP_", "OPENBLAS_", "OPENSSL_", "SSL_", "TZ")
"""How variables begin that Python or a library reads when it starts."""
_NEEDS_A_START = ("COVERAGE_", "LD_PRELOAD")
"""How variables begin with which no program is forked: lines are counted from the start, and a library may read any variable."""
_EXTRAS = ("filestore.runtime", "filestore.repository.index.postgres.", "filestore.repository.stores.s3")
_STARTS = 2
"""How many programs start as always before a server is worth its own start."""
_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None
"""The number of the system call."""
_CLONE_PARENT = 0x8000
"""Makes the new process a child of the caller's parent (`man 2 clone`), so the test can wait for it."""
_REQUEST_LIMIT = 1 << 16
_ANSWER_LIMIT = 32


class Program(subprocess.Popen[str]):
    """A process with nothing to read and two pipes of text as its outputs, which is forked if that is possible."""

    def __init__(
        self, arguments: Sequence[str | Path], *, cwd: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Start it. `cwd` and `env` are those of `subprocess.Popen`."""
        pipe = subprocess.PIPE
        super().__init__(arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def _execute_child(self, *given: Any) -> None:
        arguments, cwd, env, pipes = given[0], given[5], given[6], given[10:16]
        command = [os.fspath(argument) for argument in arguments]
        variables = {name: os.fspath(value) for name, value in (os.environ if env is None else env).items()}
        process_id = _forked(command, os.fspath(cwd or Path.cwd()), variables, (pipes[0], pipes[3], pipes[5]))
        if process_id is None:
            super()._execute_child(*given)  # type: ignore[misc]
        else:
            self.pid = process_id
            self._child_created = True
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run_program(
    arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing to read.

    Raises subprocess.TimeoutExpired.
    """
    with Program(arguments, cwd=cwd, env=env) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


class _ForkServer:
    """A process that forks itself on request."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = Lock()
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, __file__, str(other.fileno())]
            self._process = subprocess.Popen(command, env=environment, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)

    def fork(self, request: bytes, streams: Sequence[int]) -> int | None:
        """Return the number of a new process, or None if there can be none."""
        with self._lock:
            try:
                socket.send_fds(self._socket, [request], streams)
                return int(self._socket.recv(_ANSWER_LIMIT) or 0) or None
            except ConnectionError:  # it could not start, and has said why
                return None

    def end(self) -> None:
        """Let the server end, and wait for it."""
        self._socket.close()
        self._process.wait()


_servers: dict[frozenset[tuple[str, str]], _ForkServer] = {}
_started: Counter[frozenset[tuple[str, str]]] = Counter()
_lock = Lock()
# A child that a test forks could not wait for what the server of its parent forks.
os.register_at_fork(after_in_child=_servers.clear)


def _forked(command: Sequence[str], cwd: str, environment: Mapping[str, str], streams: Sequence[int]) -> int | None:
    """Return the number of a process that runs a command, or None if it must start as always."""
    program = Path(command[0])
    is_ours = program.parent == Path(sys.executable).parent and (program.name == "filestore" or command[1:2] == ["-m"])
    can_fork = _CLONE is not None and Path(cwd).is_dir() and not any(name.startswith(_NEEDS_A_START) for name in environment)
    request = json.dumps([command, cwd, dict(environment)]).encode()
    if not is_ours or not can_fork or len(request) > _REQUEST_LIMIT:
        return None
    server = _server(environment)
    return None if server is None else server.fork(request, streams)


def _server(environment: Mapping[str, str]) -> _ForkServer | None:
    """Return the server for programs that start with these variables, once there were enough of them."""
    read_at_start = frozenset(item for item in environment.items() if item[0].startswith(_READ_AT_START))
    with _lock:
        _started[read_at_start] += 1
        if read_at_start not in _servers and _started[read_at_start] > _STARTS:
            _servers[read_at_start] = server = _ForkServer(dict(read_at_start))
            atexit.register(server.end)
        return _servers.get(read_at_start)


def _main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    del sys.path[0]
    status: list[int] = []
    # It runs after all other handlers, because it is the first to be registered.
    atexit.register(_leave, status)
    _import_all()
    # Other threads would be missing in what is forked.
    assert 1 == sum(1 for _ in Path("/proc/self/task").iterdir())
    gc.freeze()
    command = _next_command(requests)
    if command is not None:
        _run(command, status)


def _import_all() -> None:
    """Import all modules but those of the extras, which few programs use."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for package in map(importlib.import_module, ("filestore", "filestore_cli")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(_EXTRAS) and not module.name.endswith("__main__"):
                # Where tests run with the lowest versions, some extras are not installed.
                with suppress(ModuleNotFoundError):
                    importlib.import_module(module.name)


def _next_command(requests: socket.socket) -> list[str] | None:
    """Return a command in the new process that is to run it, or None in this one when nobody asks any more."""
    while True:
        request, streams, _, _ = socket.recv_fds(requests, _REQUEST_LIMIT, 3)
        if not request:
            return None
        process_id = _fork()
        if process_id == 0:
            requests.close()
            command, cwd, environment = json.loads(request)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            _take_streams(streams)
            return list(command)
        for stream in streams:
            os.close(stream)
        requests.send(str(max(process_id, 0)).encode())


def _fork() -> int:
    """Fork as `os.fork` does, but make the new process a child of this one's parent. Returns -1 if that is not permitted."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    # PyDLL keeps the lock of the interpreter during the call.
    process_id = int(ctypes.PyDLL(None).syscall(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    if process_id == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    return process_id


def _take_streams(streams: Sequence[int]) -> None:
    """Make these the standard streams, as Python does at its start."""
    for number, (name, stream) in enumerate(zip(("stdin", "stdout", "stderr"), streams, strict=True)):
        os.dup2(stream, number)
        os.close(stream)
        before = getattr(sys, name)
        opened = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115  # stays open
        after = io.TextIOWrapper(opened, before.encoding, before.errors, newline="\n", line_buffering=name == "stderr")
        setattr(sys, name, after)
        setattr(sys, f"__{name}__", after)


def _run(command: Sequence[str], status: list[int]) -> None:
    """Run a program, and leave its status in `status` if it comes to its end."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    try:
        if command[1:2] == ["-m"]:
            sys.argv[:] = command[2:]
            sys.path.insert(0, str(Path.cwd()))
            # As Python does for `-m`: what the module has made is there until the last handler of the end.
            runpy._run_module_as_main(command[2])  # type: ignore[attr-defined]
        else:
            sys.argv[:] = command
            sys.path.insert(0, str(Path(command[0]).parent))
            main.__file__ = command[0]
            exec(compile(Path(command[0]).read_bytes(), command[0], "exec"), main.__dict__)
    except SystemExit as end:
        if isinstance(end.code, int):
            status.append(end.code)
        raise
    status.append(0)


def _leave(status: Sequence[int]) -> None:
    """End now if the program has come to its end. Python would take apart all modules, which takes 0.08 s."""
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status[0] & 0xFF)


if __name__ == "__main__":
    _main()
