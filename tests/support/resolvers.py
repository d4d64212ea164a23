"""Resolve a directory, or a part of one, in processes that are killed meanwhile.

`python -m tests.support.resolvers REPOSITORY CACHE ID [--tasks N] [--kill-at-get N]` prints its result as JSON.
--kill-at-get kills it, as `kill -9` does, when it asks for the n-th batch of chunks. `... --kill-at-every-call`
resolves into CACHE/<n>, killed at the n-th system call that changes a disk, for every n, and prints the number of runs;
the last run is not killed. `:` and a path may follow the ID.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.references import Directory
from tests.support.crashes import Fuse, kill_at_every_call
from tests.support.watched import WatchedRepository

CALLS = ("open", "write", "pwrite", "pwritev", "ftruncate", "fsync", "mkdir", "rename", "symlink", "unlink", "rmdir", "chmod")


class ResolveResult(NamedTuple):
    """The result that a process prints."""

    path: str
    chunks_got: int
    calls: list[str]
    """The calls that reached the repository."""


async def resolve(repository: str, cache: Path, file_id: str, *, tasks: int = 1, kill_at_get: int = 0) -> ResolveResult:
    """Resolve a directory, or what a path after its id names, in many tasks at once, which must all give the same path."""
    async with connect(repository) as connected:
        watched = WatchedRepository(connected)

        async def kill(verb: str) -> None:
            if verb == "get" and watched.calls.count("get") == kill_at_get:
                os.kill(os.getpid(), signal.SIGKILL)

        watched.before = kill
        resolver = Cache(cache, watched)
        wanted = file_id if ":" in file_id else Directory(id=file_id)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(resolver.resolve(wanted)) for _ in range(tasks)]
        (path,) = {task.result() for task in running}
        return ResolveResult(str(path), watched.chunks_got, watched.calls)


def kill_each(repository: str, cache: Path, file_id: str) -> int:
    """Resolve into one folder after the other, killed at each call."""

    def attempt(place: int, fuse: Fuse) -> None:
        for name in CALLS:
            setattr(os, name, fuse.before(getattr(os, name)))
        asyncio.run(resolve(repository, cache / str(place), file_id))

    return kill_at_every_call(attempt)


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("repository")
    parser.add_argument("cache", type=Path)
    parser.add_argument("file_id")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--kill-at-get", type=int, default=0)
    parser.add_argument("--kill-at-every-call", action="store_true")
    given = parser.parse_args()
    if given.kill_at_every_call:
        sys.stdout.write(str(kill_each(given.repository, given.cache, given.file_id)))
        return
    resolving = resolve(given.repository, given.cache, given.file_id, tasks=given.tasks, kill_at_get=given.kill_at_get)
    sys.stdout.write(json.dumps(asyncio.run(resolving)))


if __name__ == "__main__":
    _main()
