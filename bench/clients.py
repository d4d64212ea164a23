"""Clients of a measurement that begin together, with the memory that they take, on some of the cores."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Self, cast

from bench.run import family

_CLIENT = Path(__file__).resolve().parent / "client.py"
_WATCH_SECONDS = 0.05
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_RSS = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


class ClientUsage(NamedTuple):
    """A command that has ended successfully, without the start of Python."""

    output: str
    began: float
    """Of `time.monotonic`, as is `ended`."""
    ended: float
    cpu_seconds: float
    """User and system time of all its processes."""
    lock_seconds: Sequence[float]
    """At most so long did each of its processes hold the interpreter lock."""


class Client:
    """A `filestore` that waits until it may begin. `end` ends it."""

    def __init__(self, arguments: Sequence[str | Path], *, environment: Mapping[str, str], folder: Path) -> None:
        """`folder` is for its files. Raises SystemExit if it does not start."""
        self._told = Path(tempfile.mkstemp(dir=folder, prefix="client-")[1])
        self._error = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [sys.executable, str(_CLIENT), str(self._told), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._error,
            env=inherited | dict(environment),
        )
        self._input, self._output = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)

    @property
    def pid(self) -> int:
        """The process of the command."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return when the client has imported everything. Raises SystemExit if it has ended."""
        if self._output.readline() != b"ready\n":
            self._process.wait()
            raise SystemExit(f"a client did not start: {self._said()}")

    def begin(self) -> None:
        """Tell it that it may begin."""
        self._input.write(b"\n")
        self._input.flush()

    def wait(self) -> ClientUsage:
        """Wait for its end. Raises SystemExit with the error output if it failed."""
        output = self._output.read().decode()
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise SystemExit(f"a client failed: {self._said()}")
        found = json.loads(self._told.read_text(encoding="utf-8"))
        # What the kernel counts has the processes that it waited for. What it tells has those that another one waited for.
        counted = used.ru_utime + used.ru_stime - found["cpu_seconds_before"]
        told = sum(cpu for cpu, _ in found["processes"])
        return ClientUsage(output, found["began"], found["ended"], max(counted, told), [lock for _, lock in found["processes"]])

    def end(self) -> None:
        """Kill it if it runs, and close its files. A second call does nothing."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._input, self._output, self._error):
            stream.close()
        self._told.unlink(missing_ok=True)

    def _said(self) -> str:
        self._error.seek(0)
        return self._error.read().decode(errors="replace").strip()


class MemoryWatch:
    """Watches the memory of processes, each with all that it started, in a thread of its own.

    Memory that processes share counts once: of each page, a process has its part (Pss in /proc/PID/smaps_rollup). Where the
    kernel does not tell that, the resident memory of all is added up, which is more.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._peaks = dict.fromkeys(pids, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def peak(self, pids: Sequence[int]) -> int:
        """Return the peak of one of these processes with all that it started, in bytes: that of the largest."""
        return max(self._peaks[pid] for pid in pids)

    def _watch(self) -> None:
        while True:
            for pid, peak in self._peaks.items():
                self._peaks[pid] = max(peak, sum(map(_memory, family(pid))))
            if self._ended.wait(_WATCH_SECONDS):
                return


def _memory(pid: int) -> int:
    for name, pattern in (("smaps_rollup", _PSS), ("status", _RSS)):
        try:
            found = pattern.search(Path(f"/proc/{pid}/{name}").read_text(encoding="ascii"))
        except OSError:
            continue
        if found:
            return int(found[1]) << 10
    return 0


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let processes that this thread starts in the block use only the first `count` of its cores."""
    every = usable_cores()
    if count >= len(every):
        yield
        return
    os.sched_setaffinity(0, every[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)
