"""Real processes are started and measured: memory and processor time of commands and servers, bytes over loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

TOKEN = "bench-token-on-loopback-only"  # noqa: S105  # for servers of this measurement only
FILESTORE = [str(Path(sys.executable).parent / "filestore")]
UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "GB": 10**9, "MB": 10**6}

_ISOLATED = "FILESTORE_BENCH_ISOLATED"
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_WATCH_SECONDS = 0.02
_START_SECONDS = 30


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 256MiB or 4GB."""
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(text)


class Command(NamedTuple):
    """A command to run, with additions to this process's environment, and its folder."""

    arguments: Sequence[str | Path]
    environment: Mapping[str, str] = {}
    folder: Path | None = None

    def __str__(self) -> str:
        return " ".join(map(str, self.arguments))


class Done(NamedTuple):
    """A command that has ended successfully."""

    output: str
    seconds: float
    peak_memory: int
    """Bytes of resident memory at the peak, including the processes that it started."""
    cpu_seconds: float
    """User and system time, including the processes that it waited for."""

    @property
    def json(self) -> dict[str, Any]:
        """The output of `--json`."""
        return dict(json.loads(self.output))


def _environment(command: Command) -> dict[str, str]:
    # Let Python write bytecode: a checkout's modules would be compiled at each start, unlike those of an installed
    # package.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | dict(command.environment)


def run(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Done:
    """Run `command` to its end. If it fails, raise SystemExit with its error output."""
    return run_all([Command(command, environment or {})])[0]


def run_all(commands: Sequence[Command]) -> list[Done]:
    """Run `commands` in parallel, all of them to their end.

    If one fails, raise SystemExit with the error output of the first that failed.
    """
    running = [_Running(command) for command in commands]
    try:
        ended = [one.wait() for one in running]
    finally:
        for one in running:
            one.end()
    for found in ended:
        if isinstance(found, SystemExit):
            raise found
    return [found for found in ended if isinstance(found, Done)]


class _Running:
    """A running command, with a thread that watches its memory."""

    def __init__(self, command: Command) -> None:
        self._command = command
        # Files, not pipes, because a pipe of each of several processes would have to be read at the same time.
        self._output, self._error = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  # `wait` closes them
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [str(part) for part in command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._error,
            env=_environment(command),
            cwd=command.folder,
        )
        self._peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def wait(self) -> Done | SystemExit:
        """Wait for the command; return its result, or the reason of its failure."""
        _, status, usage = os.wait4(self._process.pid, 0)
        seconds = time.perf_counter() - self._started
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()
        self._watcher.join()
        output, error = _text(self._output), _text(self._error)
        if self._process.returncode:
            return SystemExit(f"{self._command} failed: {error or output}")
        return Done(output, seconds, sum(self._peaks.values()), usage.ru_utime + usage.ru_stime)

    def end(self) -> None:
        """Kill the command if it is still running; a second call does nothing."""
        self._ended.set()
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        # Not ru_maxrss, because for a child it starts with the memory that its parent had at the fork.
        while not self._ended.wait(_WATCH_SECONDS):
            for pid in family(self._process.pid):
                self._peaks[pid] = max(self._peaks.get(pid, 0), _peak_memory(pid))


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


class Service:
    """A server process of this measurement, with the processes that it started. `stop` ends it."""

    def __init__(self, command: Command, *, log: Path, port: int | None = None) -> None:
        """With `port`, return when the server accepts connections there. Raises SystemExit if it does not start."""
        self.log = log
        self._command = command
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [str(part) for part in command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=_environment(command),
                cwd=command.folder,
            )
        if port is not None:
            self.wait_until(lambda: _is_open(port))

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Return when `is_ready()` is true. Raises SystemExit if the server ends before that, or takes too long."""
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"{self._command} did not start: {self.log.read_text(errors='replace')}")
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        """Return the user and system time so far, of all its processes."""
        return sum(_cpu_seconds(pid) for pid in family(self._process.pid))

    def peak_memory(self) -> int:
        """Return the peak of resident memory of its largest process, in bytes."""
        return max(_peak_memory(pid) for pid in family(self._process.pid))

    def forget_peak_memory(self) -> None:
        """Let `peak_memory` begin at the memory of now."""
        for pid in family(self._process.pid):
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")

    def stop(self) -> None:
        """Ask it to end, and wait; a second call does nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def family(pid: int) -> list[int]:
    """Return a process, and all processes that it and they started."""
    children: list[int] = []
    # A child belongs to the thread that started it.
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                children += map(int, (thread / "children").read_text(encoding="ascii").split())
    return [pid, *(below for child in children for below in family(child))]


def _peak_memory(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime, stime, and those of children that it has waited for
    return sum(map(int, fields[11:15])) * _TICK


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Server(NamedTuple):
    """A `filestore serve` of this measurement."""

    url: str
    root: Path
    service: Service

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which a command finds the server."""
        # Some measurements have an address of their own, with a slow link.
        return {"FILESTORE_URL": self.url, "FILESTORE_TOKEN": TOKEN, "FILESTORE_INSECURE": "1"}

    @property
    def pid(self) -> int:
        """The process of the command."""
        return self.service.pid

    def cpu_seconds(self) -> float:
        """Return the user and system time so far, of all its processes."""
        return self.service.cpu_seconds()

    def peak_memory(self) -> int:
        """Return the peak of resident memory of its largest process, in bytes."""
        return self.service.peak_memory()


def start_server(
    root: Path,
    *,
    workers: int | None = 1,
    host: str = "127.0.0.1",
    prefix: Sequence[str] = (),
    tls: Sequence[str] = ("--insecure",),
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start a server of the folder `root` on a free port; `prefix` starts the command, as `ip netns exec NAME` does.

    `workers` is the number of its processes; with None, it chooses. `tls` are the options that say how the server encrypts.
    `environment` has further variables, such as those that name an object store.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    options = ["--create", "--root", str(root), "--host", host, "--port", "0", *tls]
    options += [] if workers is None else ["--workers", str(workers)]
    service = Service(
        Command([*prefix, *FILESTORE, "serve", *options], {"FILESTORE_TOKEN": TOKEN, **(environment or {})}),
        log=root.with_name(f"{root.name}.log"),
    )
    found: list[str] = []

    def is_listening() -> bool:
        found.extend(re.findall(r"^listening on (\S+)$", service.log.read_text(encoding="utf-8"), re.MULTILINE))
        return bool(found)

    service.wait_until(is_listening)
    return Server(found[0], root, service)


@contextmanager
def serving(root: Path, *, workers: int = 1, tls: Sequence[str] = ("--insecure",)) -> Iterator[Server]:
    """Give a server on a free port, which is stopped at the end. `tls` is as for `start_server`."""
    server = start_server(root, workers=workers, tls=tls)
    try:
        yield server
    finally:
        server.service.stop()


def unwind_when_told_to_end() -> None:
    """Make SIGTERM end this program as Ctrl-C does, so that servers are stopped and folders removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def isolate() -> bool:
    """Start this program again in a network namespace of its own, if possible; return whether it runs in one.

    Only there does loopback count the bytes of this measurement alone.
    """
    if os.environ.get(_ISOLATED):
        return True
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    os.environ[_ISOLATED] = "1"
    script = 'ip link set lo up && exec "$@"'
    arguments = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    return os.execvp("unshare", arguments)  # noqa: S606  # starts this program itself


def loopback_bytes() -> int:
    """Return the bytes over loopback so far, including headers."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0


def folder_bytes(path: Path) -> int:
    """Return the bytes of the files below `path`."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(path) for name in names)
