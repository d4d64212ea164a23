"""Jobs for worker processes of a transfer, which import this module."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filestore.errors import StorageFull
from filestore.repository.protocol import Identity
from filestore.transfer.workers import Worker


class Identify(NamedTuple):
    """Return the identity of the repository, and the id of the process."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> tuple[Identity, int]:  # noqa: ARG002
        return await worker.repository.identity(), os.getpid()


class Read(NamedTuple):
    """Read from each of the given files, after the caller has said how much."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> list[bytes]:
        size = await worker.ask(len(descriptors))
        pieces = [os.pread(each, size, 0) for each in descriptors]
        worker.moved(2 * size)
        await asyncio.to_thread(worker.moved, -size)
        return pieces


class Fail(NamedTuple):
    """Fail with an error of this library, or with one that cannot be pickled."""

    is_ours: bool

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> None:  # noqa: ARG002
        if self.is_ours:
            raise StorageFull("/disk", "no space", hint="free-repository")
        raise ValueError(lambda: None)


class TwoFactsError(Exception):
    """An error that can be pickled, and from whose pickle no error can be made."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class FailUnreadably(NamedTuple):
    """Fail with an error that no other process can read."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> None:  # noqa: ARG002
        raise TwoFactsError("one", "two")


class Block(NamedTuple):
    """Say so in the first file, and keep the event loop of the process busy until the second one has a byte."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> None:  # noqa: ARG002
        os.write(descriptors[0], b"x")
        os.read(descriptors[1], 1)


class ReturnUnreadably(NamedTuple):
    """Return what cannot be pickled."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> object:  # noqa: ARG002
        return lambda: None


class CancelItself(NamedTuple):
    """End as a job does that was cancelled."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> None:  # noqa: ARG002
        raise asyncio.CancelledError


class Wait(NamedTuple):
    """Wait until it is cancelled, and say so in a file. `ask` tells the caller that it has begun."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> None:
        try:
            await worker.ask(os.getpid())
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            os.write(descriptors[0], b"cancelled")
            raise


class Count(NamedTuple):
    """Return how often this process has done this job."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> int:  # noqa: ARG002
        done: list[None] = worker.kept("done", list)
        done.append(None)
        return len(done)


class StopsOthers(NamedTuple):
    """An `Opening` that opens nothing. A process that another worker process has forked notes its id, and is stopped."""

    pid: int
    """The process that transfers."""
    noted: Path

    @asynccontextmanager
    async def open(self, *, share: int) -> AsyncIterator[Any]:  # noqa: ARG002
        if os.getppid() != self.pid:
            self.noted.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        yield None
