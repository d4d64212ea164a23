"""Kill a push at its n-th system call or SQL statement, for every n: `python -m tests.support.crashes FOLDER`.

Works on FOLDER/<n>, and prints the number of runs. The last run is not killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from filestore.backends import connect
from tests.support.frames import contents, encoded, manifest

NAME = "pushed"
CHUNKS = contents(2, size=5000)
CALLS = ("open", "write", "fsync", "mkdir", "rename", "link", "unlink", "rmdir")


class Fuse:
    """Kill this process at the n-th call of `burn`, as `kill -9` does."""

    def __init__(self, length: int) -> None:
        self._left = length
        self._lock = threading.Lock()

    def burn(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.burn()
            return function(*args, **kwargs)

        return call


def light(fuse: Fuse) -> None:
    """Burn the fuse at each system call that changes files, and at each SQL statement."""
    for name in CALLS:
        setattr(os, name, fuse.before(getattr(os, name)))

    class Connection(sqlite3.Connection):
        execute = fuse.before(sqlite3.Connection.execute)
        executemany = fuse.before(sqlite3.Connection.executemany)

    connect_plainly = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect_plainly(*args, factory=Connection, **kwargs)  # type: ignore[assignment]


async def push(root: Path) -> None:
    """Open or make a repository, put chunks and commit them. This is the work that is killed."""
    async with connect(str(root), create=True) as repository:
        await repository.put([encoded(content) for content in CHUNKS])
        await repository.commit(manifest(CHUNKS).encoded, name=NAME)


def kill_at_every_call(attempt: Callable[[int, Fuse], object]) -> int:
    """Run `attempt(n, fuse)` in one process after the other, killed at its n-th call, until one reaches its end.

    `attempt` lights the fuse. Returns the n of the last process.
    """
    for place in count(1):
        # A fork starts fast, and there are no threads yet.
        pid = os.fork()
        if pid == 0:
            attempt(place, Fuse(place))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return place
        if not os.WIFSIGNALED(status):
            sys.exit(f"what was to be killed at call {place} failed")
    raise AssertionError


def _main(folder: Path) -> None:
    def attempt(place: int, fuse: Fuse) -> None:
        light(fuse)
        asyncio.run(push(folder / str(place)))

    sys.stdout.write(str(kill_at_every_call(attempt)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
