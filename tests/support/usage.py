"""Measure how much disk space something takes during a test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

INTERVAL_SECONDS = 0.01


def disk_usage(root: Path) -> int:
    """Return the bytes of disk that the files below a folder take, without holes.

    A file with several names counts once.
    """
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                status = (Path(folder) / name).lstat()
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


@asynccontextmanager
async def sampled(root: Path) -> AsyncIterator[list[int]]:
    """Measure `disk_usage` of a folder every 10 ms until the end of the block."""
    samples: list[int] = []

    async def sample() -> None:
        while True:
            # Not in a thread: files that are moved, or take the place of others, during a long look would count twice.
            samples.append(disk_usage(root))
            await asyncio.sleep(INTERVAL_SECONDS)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampling.cancel()
        await asyncio.wait([sampling])
