"""Resolve a URL in processes that are killed meanwhile.

`python -m tests.support.downloads REPOSITORY CACHE URL` prints its result as JSON. With --kill-at-every-call it
resolves into CACHE/<n>, killed at the n-th system call that changes a disk, for every n, and prints the number of runs;
the last run is not killed. With --kill-at N it is killed after N bytes.
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

import aiohttp  # noqa: F401  # before a fork, or each child would load it again

from filestore.backends import connect
from filestore.cache import Cache
from filestore.core.progress import Progress, Report
from filestore.core.references import FileURL
from filestore.download import download
from filestore.download.download import DownloadLimits
from tests.support.crashes import Fuse, kill_at_every_call

CALLS = ("open", "pwrite", "ftruncate", "fsync", "mkdir", "rename", "unlink", "rmdir", "chmod")


class ResolveResult(NamedTuple):
    """The result that a process prints."""

    path: str
    bytes_received: int
    bytes_reused: int


async def resolve(
    repository: str, cache: Path, url: str, *, fuse: Fuse | None = None, report: Report | None = None
) -> ResolveResult:
    """Resolve a URL. `fuse` decides what happens at one of the calls."""
    async with connect(repository) as connected:
        resolver = Cache(cache, connected, downloads=DownloadLimits(private_allowed=True))
        await resolver._open_entry_store()
        if fuse is not None:
            for name in CALLS:
                setattr(os, name, fuse.before(getattr(os, name)))
        resolved = await resolver.resolved(FileURL(url), report=report)
    return ResolveResult(str(resolved.path), resolved.bytes_received, resolved.bytes_reused)


def kill_each(repository: str, cache: Path, url: str) -> int:
    """Resolve into one folder after the other, killed at each call."""
    return kill_at_every_call(lambda place, fuse: asyncio.run(resolve(repository, cache / str(place), url, fuse=fuse)))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("repository")
    parser.add_argument("cache", type=Path)
    parser.add_argument("url")
    parser.add_argument("--kill-at-every-call", action="store_true")
    parser.add_argument("--kill-at", type=int)
    given = parser.parse_args()
    # Small pieces let even a small file be continued.
    download.SYNC_SIZE = download.PIECE = 256 << 10
    if given.kill_at_every_call:
        sys.stdout.write(str(kill_each(given.repository, given.cache, given.url)))
        return

    def watch(progress: Progress) -> None:
        if given.kill_at is not None and progress.done >= given.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.stdout.write(json.dumps(asyncio.run(resolve(given.repository, given.cache, given.url, report=watch))))


if __name__ == "__main__":
    _main()
