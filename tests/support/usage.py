"""How much of a disk something takes while a test goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

INTERVAL_SECONDS = 0.01


def disk_usage(root: Path) -> int:
    """Bytes that the files below a folder take on disk, each once, whatever its names; holes left out."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                status = (Path(folder) / name).lstat()
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


@asynccontextmanager
async def sampled(root: Path) -> AsyncIterator[list[int]]:
    """`disk_usage` of a folder, every 10 ms until the end of the block."""
    samples: list[int] = []

    async def sample() -> None:
        while True:
            samples.append(await asyncio.to_thread(disk_usage, root))
            await asyncio.sleep(INTERVAL_SECONDS)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampling.cancel()
        await asyncio.wait([sampling])
