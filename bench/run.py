"""Real processes, measured: commands and services with their memory and processor time, and what went over loopback."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

TOKEN = "bench-token-on-loopback-only"  # noqa: S105  # a server of this run's own
FILESTORE = [str(Path(sys.executable).parent / "filestore")]
UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "GB": 10**9, "MB": 10**6}

_ISOLATED = "FILESTORE_BENCH_ISOLATED"
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_WATCH_SECONDS = 0.02
_START_SECONDS = 30


def parse_size(text: str) -> int:
    """Bytes of a size such as 256MiB or 4GB."""
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(text)


class Command(NamedTuple):
    """What to run, with what besides this process's environment, and where."""

    arguments: Sequence[str | Path]
    environment: Mapping[str, str] = {}
    folder: Path | None = None

    def __str__(self) -> str:
        return " ".join(map(str, self.arguments))


class Done(NamedTuple):
    """A command that has ended well."""

    output: str
    seconds: float
    peak_memory: int
    """Bytes of resident memory, the processes that it started included."""
    cpu_seconds: float
    """User and system time, the processes that it waited for included."""

    @property
    def json(self) -> dict[str, Any]:
        """What `--json` printed."""
        return dict(json.loads(self.output))


def _environment(command: Command) -> dict[str, str]:
    # Programs of a checkout would be compiled anew at each start; those that people install are not.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | dict(command.environment)


def run(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Done:
    """Run `command` to its end. Raises SystemExit with its error output when it fails."""
    return run_all([Command(command, environment or {})])[0]


def run_all(commands: Sequence[Command]) -> list[Done]:
    """Run `commands` side by side, all of them to the end. Raises SystemExit with the error output of the first that failed."""
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
    """A command under way, with a thread that watches its memory."""

    def __init__(self, command: Command) -> None:
        self._command = command
        # Files, not pipes: nobody has to read two streams of four processes at once.
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
        """What it did, or why it failed."""
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
        """Leave nothing running; safe to call again."""
        self._ended.set()
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        # Not ru_maxrss: that of a child begins with what its parent held when it forked.
        while not self._ended.wait(_WATCH_SECONDS):
            for pid in family(self._process.pid):
                self._peaks[pid] = max(self._peaks.get(pid, 0), _peak_memory(pid))


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


class Service:
    """A server process of this run's own, with the processes that it started; ended by `stop`."""

    def __init__(self, command: Command, *, log: Path, port: int | None = None) -> None:
        """With `port`, return once it takes connections there. Raises SystemExit when it does not start."""
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

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Return once `is_ready()`. Raises SystemExit when the server ends before that, or takes too long."""
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"{self._command} did not start: {self.log.read_text(errors='replace')}")
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        """User and system time so far, of all its processes."""
        return sum(_cpu_seconds(pid) for pid in family(self._process.pid))

    def peak_memory(self) -> int:
        """Bytes of resident memory at the peak of the largest of its processes."""
        return max(_peak_memory(pid) for pid in family(self._process.pid))

    def stop(self) -> None:
        """Ask it to end, and wait; safe to call again."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def family(pid: int) -> list[int]:
    """A process and those that its main thread, and theirs, started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *(below for child in children for below in family(int(child)))]


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
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Server(NamedTuple):
    """A `filestore serve` of this run's own."""

    url: str
    root: Path
    service: Service

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {"FILESTORE_URL": self.url, "FILESTORE_TOKEN": TOKEN}

    def cpu_seconds(self) -> float:
        """User and system time so far, of all its processes."""
        return self.service.cpu_seconds()

    def peak_memory(self) -> int:
        """Bytes of resident memory at the peak of the largest of its processes."""
        return self.service.peak_memory()


def start_server(root: Path, *, workers: int = 1, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Server:
    """A server of the folder `root` on a free port; `prefix` starts the command, as `ip netns exec NAME` does."""
    root.parent.mkdir(parents=True, exist_ok=True)
    options = ["--create", "--root", str(root), "--host", host, "--port", "0", "--workers", str(workers), "--token", TOKEN]
    service = Service(Command([*prefix, *FILESTORE, "serve", *options]), log=root.with_name(f"{root.name}.log"))
    found: list[str] = []

    def is_listening() -> bool:
        found.extend(re.findall(r"^listening on (\S+)$", service.log.read_text(encoding="utf-8"), re.MULTILINE))
        return bool(found)

    service.wait_until(is_listening)
    return Server(found[0], root, service)


@contextmanager
def serving(root: Path, *, workers: int = 1) -> Iterator[Server]:
    """A server on a free port, stopped at the end."""
    server = start_server(root, workers=workers)
    try:
        yield server
    finally:
        server.service.stop()


def unwind_when_told_to_end() -> None:
    """Have SIGTERM end this program as Ctrl-C does, so that servers are stopped and folders removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def isolate() -> bool:
    """Start this program again in a network of its own, where that is possible; whether it runs in one.

    Only there does loopback count this run's bytes alone.
    """
    if os.environ.get(_ISOLATED):
        return True
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    os.environ[_ISOLATED] = "1"
    script = 'ip link set lo up && exec "$@"'
    arguments = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    return os.execvp("unshare", arguments)  # noqa: S606  # this very program


def loopback_bytes() -> int:
    """Bytes that went over loopback so far, headers included."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0


def folder_bytes(path: Path) -> int:
    """Bytes of the files below `path`."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(path) for name in names)
