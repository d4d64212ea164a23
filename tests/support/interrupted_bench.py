"""Interrupt `filestore bench` in the middle of what it sends to a server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.commands import SCRIPTS, Home, Server
from tests.support.links import running_link
from tests.support.server import eventually


class Interrupted(NamedTuple):
    """How a command ended."""

    url: str
    """By which it knew the server."""
    status: int
    errors: str


async def interrupted_bench(home: Home, server: Server, *arguments: str, stored: Callable[[Server], set[Path]]) -> Interrupted:
    """Measure a server with random content of 64 MiB, and interrupt it once `stored` has something new.

    What it sends after that waits until then, so the command cannot end before.
    """
    before, interrupted = stored(server), asyncio.Event()

    async def held(piece: bytes) -> bytes:
        if not interrupted.is_set() and stored(server) - before:
            await asyncio.Event().wait()
        return piece

    async with running_link(int(server.url.rpartition(":")[2])) as link:
        link.up = held
        url = f"http://127.0.0.1:{link.port}"
        process = subprocess.Popen(
            [SCRIPTS / "filestore", "bench", *arguments, "--server", url, "--size", "64MiB", "--kind", "random"],
            env=home.environ | server.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        await asyncio.to_thread(eventually, lambda: bool(stored(server) - before))
        process.send_signal(signal.SIGINT)
        interrupted.set()
        _, errors = await asyncio.to_thread(process.communicate, timeout=60)
    return Interrupted(url, process.returncode, errors)
