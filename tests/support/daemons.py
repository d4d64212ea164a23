"""Run the daemons of an engine (PostgreSQL, Ceph) in the foreground, and leave nothing of them behind."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

START_SECONDS = 90
"""How long a daemon may take until it answers, on a machine that does much else."""
_LOG_BYTES = 3_000
_starter = ThreadPoolExecutor(1)
"""Starts daemons: the kernel ends them with the thread that has started them, and other threads may end early."""
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_UNPRIVILEGED = 1024


def program(name: str, *folders: str | Path) -> str:
    """Return the path of a program of an engine. Skip the test if it is missing. In CI that is a failure."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"], "/usr/sbin"]))
    if found is None:
        message = f"{name} is missing: tests/run.sh installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def engine_folder(name: str, user: str | None = None) -> Iterator[Path]:
    """Make a folder for an engine that runs as `user`, and remove it at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix=f"filestore-{name}-"))
    try:
        if user is not None:
            record = pwd.getpwnam(user)
            os.chown(folder, record.pw_uid, record.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder)


class Daemons:
    """The processes of one engine. They end at the latest with this process.

    Their logs, and what one-shot programs print, go to `folder`/log.
    """

    def __init__(self, folder: Path, *, user: str | None = None) -> None:
        self.log = folder / "log"
        self.log.mkdir()
        self._folder = folder
        self._as_user = [] if user is None else [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str | Path) -> str:
        """Run a program to its end; return what it printed. Raises RuntimeError, with the ends of all logs, if it fails."""
        command = [*self._prefix(), *arguments]
        try:
            done = subprocess.run(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=START_SECONDS
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            message = f"{error}: {error.output!r} {error.stderr!r}\n{self.ends_of_logs()}"
            raise RuntimeError(message) from error
        return done.stdout.decode()

    def start(self, name: str, arguments: Sequence[str | Path], *, answers: Callable[[], bool]) -> subprocess.Popen[bytes]:
        """Start a daemon and return once `answers()` is true. Raises RuntimeError, with the ends of all logs, if it does not."""
        with (self.log / f"{name}.out").open("ab") as output:
            command = [*self._prefix(), *arguments]
            # Ctrl-C ends the tests, which then end the daemons in their order: hence a session of its own.
            process = _starter.submit(
                lambda: subprocess.Popen(
                    command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            ).result()
        self._running.append(process)
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{name} did not start (exit status {process.poll()}).\n{self.ends_of_logs()}"
                raise RuntimeError(message)
            time.sleep(0.02)
        return process

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Signal the processes, the youngest first, and wait for each. One that does not end in time is killed."""
        while self._running:
            process = self._running.pop()
            process.send_signal(number)
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill one of the processes. The others go on."""
        self._running.remove(process)
        process.kill()
        process.wait()

    def ends_of_logs(self) -> str:
        """The last lines of each log."""
        ends = []
        for path in sorted(self.log.iterdir()):
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - _LOG_BYTES))
                ends.append(f"--- {path.name}\n{log.read().decode(errors='replace')}")
        return "\n".join(ends)

    def _prefix(self) -> list[str]:
        # After the change of user, which clears the signal.
        return ["setpriv", *self._as_user, "--pdeathsig=KILL", "--"]


def lasting_port() -> int:
    """Return a free port of 127.0.0.1 that stays free while its server is down, because no outgoing connection is given it.

    A client that connects to such a port of the others, again and again, may be connected to itself.
    """
    first = int(_OUTGOING_PORTS.read_text().split()[0])
    lowest = max(_UNPRIVILEGED, first // 2)
    assert lowest < first, "outgoing connections have all ports of this machine"
    while True:
        # Not by the generator of all others: a test may have given that the same seed in each process.
        port = lowest + secrets.randbelow(first - lowest)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def accepts(port: int) -> bool:
    """Whether a process accepts connections on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
