"""Start and end the processes of a measurement: workers and a server. Each ends at the end of its block, or earlier."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from filestore.system.files import remove_if_possible

START_SECONDS = 60.0
STOP_SECONDS = 60.0
_LINE_LIMIT = 1 << 20

Job = Mapping[str, Any]


class Server(NamedTuple):
    """The server that clients connect to."""

    url: str
    token: str | None
    proxy: str | None = None
    """The argument `proxy` of `filestore.backends.connect`. None means the proxy of the environment."""


class Worker:
    """A process that does one job. See `filestore_cli.bench.worker`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.done = 0
        """Bytes that are done, as the process last reported."""
        self.on_done: Callable[[], None] = lambda: None
        self._process = process
        self._log = log

    async def ready(self) -> None:
        """Wait until a client is connected. Raises ClickException."""
        while "ready" not in await self._hear():
            pass

    async def begin(self) -> None:
        """Tell a client that it may begin."""
        await self._say(b"\n")

    async def give(self, job: Job) -> None:
        """Send the job to the process."""
        await self._say(json.dumps(job).encode() + b"\n")

    async def result(self) -> dict[str, Any]:
        """Wait until the job is done, and return its result. Raises ClickException if the job failed."""
        while True:
            said = await self._hear()
            if "result" in said:
                return dict(said["result"])
            if "done" in said:
                self.done = said["done"]
                self.on_done()

    async def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        self._process.stdin.write(line)
        # A process that has ended gives the reason on its other pipe.
        with suppress(ConnectionError):
            await self._process.stdin.drain()

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        line = await self._process.stdout.readline()
        said = json.loads(line) if line else {"error": f"a process of the measurement died: {_last_line(self._log)}"}
        if "error" in said:
            raise click.ClickException(said["error"])
        return dict(said)


@asynccontextmanager
async def working(folder: Path, job: Job) -> AsyncIterator[Worker]:
    """Start a worker with `job`, and end it with the block. Its standard error is written to a file in `folder`."""
    log = folder / f"worker-{secrets.token_hex(8)}.log"
    async with _started("filestore_cli.bench.worker", log=log) as process:
        worker = Worker(process, log)
        await worker.give(job)
        yield worker


@asynccontextmanager
async def serving(folder: Path, *, workers: int) -> AsyncIterator[Server]:
    """Start `filestore serve` on a new folder below `folder`, on a free port of loopback.

    Stop it, and remove the folder, at the end.
    """
    root, log = folder / "served", folder / "server.log"
    token = secrets.token_urlsafe(32)
    arguments = ["serve", "--json", "--root", str(root), "--create", "--host", "127.0.0.1", "--port", "0"]
    arguments += ["--workers", str(workers)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FILESTORE_")}
    # In the environment: anyone on this machine can read arguments.
    environ["FILESTORE_TOKEN"] = token
    async with _started("filestore_cli.bench.server", *arguments, log=log, environ=environ) as process:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
        if not line:
            raise click.ClickException(f"the server did not start: {_last_line(log)}")
        try:
            # The server is on loopback, which no proxy can reach.
            yield Server(json.loads(line)["url"], token, proxy="")
        finally:
            _signal(process, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
    await asyncio.to_thread(remove_if_possible, root)


@asynccontextmanager
async def _started(
    module: str, *arguments: str, log: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environ,
            limit=_LINE_LIMIT,
            # Ctrl-C must reach only the parent, which ends them.
            process_group=0,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            _signal(process, signal.SIGKILL)
            await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # Its own method `kill` first takes the exit status of a process that has just ended. Then asyncio does not find the
    # status, and writes a complaint to standard error.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _last_line(log: Path) -> str:
    """Return the last line that a process wrote."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "it gave no reason")
    return said.removeprefix("Error: ")
