"""Samples of who holds the interpreter lock, by py-spy."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Self

RATE = 500
"""Samples a second."""
_START_SECONDS = 30
_PROCESS = re.compile(r'(?:^|;)process (\d+):"')
_BARE = re.compile(r'(?:(?:^|;)process \d+:"[^"]*")+$')
"""A stack without a frame of Python."""
_LATE = re.compile(r"([0-9.]+)s behind in sampling")


def program() -> str | None:
    """Return the path of py-spy, beside Python or on PATH, or None."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def lock_seconds(raw: str) -> list[float]:
    """Return how long each process held the lock: the samples of `py-spy record --gil --format raw`, divided by their rate.

    A stack begins with the process and, before it, those that started it, the first one at the beginning.

    Samples without a frame are left out. They are those of a process at its end: its main thread has left all its Python code and
    still counts as the holder, while memory is given back and nobody waits for the lock. The command has ended before that. There
    may be many, since py-spy makes up for late samples then (`late_seconds`).
    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if not _BARE.search(stack):
            found = _PROCESS.findall(stack)
            counts[found[-1] if found else ""] += int(count)
    return [count / RATE for count in counts.values()]


def late_seconds(log: str) -> float:
    """Return how late py-spy was at most, as its messages tell: 0 if it was never a second late.

    It takes the samples that it missed as soon as it can. So there are too few of the time when all were busy, and too many of
    the time after that.
    """
    return max(map(float, _LATE.findall(log)), default=0.0)


class Spy:
    """Samples a process and those that it starts, until it ends or the block ends."""

    def __init__(self, pid: int, folder: Path) -> None:
        """`folder` is for its files. Raises SystemExit if py-spy is not permitted to do it."""
        self.lock_seconds: list[float] = []
        """How long each process held the lock, after the block."""
        self.late_seconds = 0.0
        """How late py-spy was at most, after the block."""
        found = program()
        if found is None:
            raise SystemExit("py-spy is not installed")
        self._raw = Path(tempfile.mkstemp(dir=folder, prefix="py-spy-")[1])
        self._log = self._raw.with_suffix(".log")
        options = ["--gil", "--rate", str(RATE), "--subprocesses", "--format", "raw", "--output", str(self._raw)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([found, "record", *options, "--pid", str(pid)], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while "Sampling process" not in self._said():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise SystemExit(f"py-spy cannot sample: {self._said().strip().splitlines()[-1:]}")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self.late_seconds = late_seconds(self._said())
        self.lock_seconds = lock_seconds(self._raw.read_text(encoding="utf-8")) or [0.0]
        for path in (self._raw, self._log):
            path.unlink(missing_ok=True)

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def reason_against(folder: Path) -> str | None:
    """Return why py-spy cannot be used here, or None. `folder` is for its files."""
    if program() is None:
        return "it is not installed"
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            with Spy(process.pid, folder):
                time.sleep(0.2)
        except SystemExit as error:
            return str(error)
        finally:
            process.kill()
    return None
