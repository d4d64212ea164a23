"""Real processes, measured: commands with their peak memory, and a server with its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

TOKEN = "bench-token-on-loopback-only"  # noqa: S105  # a server of this run's own
FILESTORE = [str(Path(sys.executable).parent / "filestore")]


def parse_size(text: str) -> int:
    """Bytes of a size such as 256MiB or 4GiB."""
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if text.endswith(unit):
            return int(text.removesuffix(unit)) << shift
    return int(text)


class Done(NamedTuple):
    """A command that has ended well."""

    output: str
    seconds: float
    peak_memory: int
    """Bytes of resident memory."""

    @property
    def json(self) -> dict[str, Any]:
        """What `--json` printed."""
        return dict(json.loads(self.output))


def run(command: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> Done:
    """Run `command` to its end. Raises SystemExit with its error output when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | (environment or {})
    )
    # Not ru_maxrss: that of a child begins with what its parent held when it forked.
    peaks: list[int] = [0]
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    output, error = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]  # both are pipes
    process.wait()
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {error.decode()}")
    return Done(output.decode(), seconds, max(peaks))


def _watch(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    while process.returncode is None:
        peaks.append(_peak(process.pid))
        time.sleep(0.02)


class Server(NamedTuple):
    """A `filestore serve` of this run's own."""

    url: str
    root: Path
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {"FILESTORE_URL": self.url, "FILESTORE_TOKEN": TOKEN}

    def peak_memory(self) -> int:
        """Bytes of resident memory at the peak of the largest of its processes."""
        return max(_peak(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [self.process.pid, *map(int, children.split())]


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


@contextmanager
def serving(root: Path, *, workers: int = 1) -> Iterator[Server]:
    """A server on a free port, stopped at the end."""
    process = subprocess.Popen(
        [*FILESTORE, "serve", "--root", str(root), "--port", "0", "--workers", str(workers), "--token", TOKEN],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout or ():
            if line.startswith("listening on "):
                yield Server(line.split()[-1], root, process)
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(30)
