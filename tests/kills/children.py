"""Fork processes that do one piece of work, talk to them by lines, and kill them.

A fork starts in a few milliseconds, and is a process of its own in every respect. The process that forks has no
threads and no event loop.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

SECONDS = 120.0
"""How long a child may take on a busy machine. One that takes longer hangs."""

_ours: set[int] = set()
"""Descriptors of the parent for its children. No other child may have them, because it would keep a pipe open."""


_MODULES = (
    "filestore.backends",
    "filestore.cache",
    "filestore.cache.quota",
    "filestore.cache.seeds",
    "filestore.cache.verify",
    "filestore.download.download",
    "filestore.http.client.transport",
    "filestore.transfer.fetch_tree",
    "filestore.transfer.push",
    "filestore.repository.maintenance.collect",
    "filestore_cli.caching",
    "filestore_cli.gc",
    "filestore.system.own_process",
    "filestore_cli.start",
    "filestore_cli.fetching",
    "filestore_cli.transfer",
    "numpy",
)


class Channel(NamedTuple):
    """The end of a child: it says lines, and is asked by lines."""

    say_to: int
    hear_from: int

    def say(self, line: str) -> None:
        """Send a line of less than 4096 bytes to the parent. Any thread may call it."""
        os.write(self.say_to, f"{line}\n".encode())

    def hear(self, seconds: float) -> str | None:
        """Return the next line of the parent, "" after its last one, or None if there is none in that time. Blocks."""
        if not select.select([self.hear_from], [], [], seconds)[0]:
            return None
        return os.read(self.hear_from, 4096).decode().strip()


Work = Callable[[Channel], None]


def preload() -> None:
    """Import what children need, so that each of them need not do so itself."""
    # With more than one, numpy makes threads when it is imported.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in _MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1
    gc.freeze()


class Child:
    """A process that was forked."""

    def __init__(self, name: str, work: Work, errors: Path) -> None:
        """Fork a process that calls `work`. What it prints to its standard error is in `errors`."""
        heard, say_to = os.pipe()
        hear_from, told = os.pipe()
        _ours.update((heard, told))
        self.name = name
        self.status: int | None = None
        """The exit status, or the negative number of the signal that ended it."""
        self._errors = errors
        self._heard = heard
        self._told = told
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, Channel(say_to, hear_from), errors)
        os.close(say_to)
        os.close(hear_from)
        self._ended = os.pidfd_open(self.pid)
        _ours.add(self._ended)

    def ask(self, line: str) -> str:
        """Send a line, and return the next one that it says."""
        with suppress(BrokenPipeError):
            os.write(self._told, f"{line}\n".encode())
        return self.line()

    def line(self) -> str:
        """Wait for the next line that it says. Raises AssertionError if it ends before."""
        while b"\n" not in self._rest:
            if not select.select([self._heard], [], [], SECONDS)[0]:
                raise AssertionError(f"{self.name} says nothing")
            piece = os.read(self._heard, 1 << 16)
            if not piece:
                self.wait()
                raise AssertionError(f"{self.name} ended with {self.status}: {self.error()}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def lines(self) -> list[str]:
        """Return all lines that it has said until its end. The last one may be torn, and is then left out."""
        self.wait()
        while piece := os.read(self._heard, 1 << 16):
            self._rest += piece
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in lines]

    def wait(self, seconds: float = SECONDS) -> int | None:
        """Return its status. Return None if it still runs after `seconds`. Without them, it must end in time."""
        if self.status is None:
            if not select.select([self._ended], [], [], seconds)[0]:
                if seconds < SECONDS:
                    return None
                self.kill()
                raise AssertionError(f"{self.name} did not end in {SECONDS} seconds: {self.error()}")
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> None:
        """Kill it, as `kill -9` does, and wait for its end."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it. It must have ended."""
        return self.status == -signal.SIGKILL

    def error(self) -> str:
        """Return what it has printed to standard error."""
        return self._errors.read_text("utf-8") if self._errors.exists() else ""

    def close(self) -> None:
        """Kill it if it runs, and close the pipes."""
        self.kill()
        for descriptor in (self._heard, self._told, self._ended):
            _ours.discard(descriptor)
            os.close(descriptor)


@contextmanager
def frozen(children: Iterable[Child]) -> Iterator[None]:
    """Stop processes during the block, so that nothing changes."""
    stopped = []
    for child in children:
        if child.status is None:
            os.kill(child.pid, signal.SIGSTOP)
            # The status of a process that has just ended stays for `wait`.
            if os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT) is not None:
                stopped.append(child.pid)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def command(arguments: Sequence[str | Path], environ: dict[str, str]) -> Work:
    """Return the work of `filestore ARGUMENTS`: the real command, from its entry to the end of the interpreter."""

    def run(_: Channel) -> None:
        from filestore_cli.start import main

        sys.argv = ["filestore", *map(str, arguments)]
        os.environ.clear()
        os.environ.update(environ)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main()

    return run


def _run(work: Work, channel: Channel, errors: Path) -> None:
    for descriptor in _ours:
        os.close(descriptor)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    status = 1
    try:
        work(channel)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  # it is printed here, since a child must not return into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
