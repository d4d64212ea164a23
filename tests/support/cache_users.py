"""Share a cache between processes: `python -m tests.support.cache_users REPOSITORY CACHE SIZE_LIMIT ID... [options]`.

Uses one file after the other, prints `used <name>` for each, and keeps the last one in use until its standard input
ends.

--kill-at-get N     kills itself, as `kill -9` does, when it asks for the n-th batch of chunks
--processes N       does so in N forked processes at once; prints what each asked the repository for, as JSON
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.references import File
from tests.support.watched import WatchedRepository


async def use(given: argparse.Namespace) -> list[str]:
    """Use one file after the other; return the calls that reached the repository."""
    async with connect(given.repository) as connected:
        watched = WatchedRepository(connected)

        async def kill(verb: str) -> None:
            if verb == "get" and watched.calls.count("get") == given.kill_at_get:
                os.kill(os.getpid(), signal.SIGKILL)

        watched.before = kill
        async with Cache(given.cache, watched, size_limit=given.size_limit) as cache:
            for file_id in given.ids:
                async with cache.lease(File(id=file_id)) as path:
                    if given.processes:
                        continue
                    sys.stdout.write(f"used {path.name}\n")
                    sys.stdout.flush()
                    if file_id == given.ids[-1]:
                        await asyncio.to_thread(sys.stdin.read)
        return watched.calls


def fork(given: argparse.Namespace) -> list[list[str]]:
    """Call `use` in many processes at once; return the calls of each."""
    # A fork starts fast, and there are no threads yet. All begin when the last one is started.
    ends = [os.pipe() for _ in range(given.processes)]
    begin, began = os.pipe()
    for _, writer in ends:
        if os.fork() == 0:
            os.close(began)
            os.read(begin, 1)
            os.write(writer, json.dumps(asyncio.run(use(given))).encode())
            os._exit(0)
        os.close(writer)
    os.close(began)
    told = []
    for reader, _ in ends:
        with open(reader, "rb") as pipe:  # noqa: PTH123  # a descriptor has no Path
            told.append(json.loads(pipe.read()))
    return told


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("repository")
    parser.add_argument("cache", type=Path)
    parser.add_argument("size_limit", type=int)
    parser.add_argument("ids", nargs="+")
    parser.add_argument("--kill-at-get", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    given = parser.parse_args()
    if given.processes:
        sys.stdout.write(json.dumps(fork(given)))
    else:
        asyncio.run(use(given))


if __name__ == "__main__":
    _main()
