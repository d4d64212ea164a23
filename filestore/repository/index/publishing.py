"""Commit what several tasks publish in one transaction.

To wait for the turn of this process, to begin and to commit takes as long as to rename some frames. So the publications of a
namespace that wait for a turn share it, up to a number of rows. Each has its own outcome: one that is refused, or whose frames
cannot be renamed, leaves the others as they are, and one that is cancelled leaves the group before it begins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from filestore.core.digest import Digest
from filestore.errors import Busy
from filestore.repository.index.protocol import ChunkRow, Publication
from filestore.system.turns import working_for

_ROWS_AT_ONCE = 64
"""The most rows of one transaction, for which all other writers wait."""


class Waiter:
    """A publication that waits for its transaction."""

    def __init__(self, publication: Publication, *, deadline: float) -> None:
        self.publication = publication
        self.digests = {row.digest for row in publication.rows}
        self.deadline = deadline
        self.is_left = False
        """Whether its task was cancelled. It then waits only until no thread uses the publication."""
        self.is_done = False
        self.failure: BaseException | None = None
        self.new: list[ChunkRow] = []
        """The rows that were not live."""
        self._woken: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Wait until it is done or this is cancelled."""
        self._woken = asyncio.get_running_loop().create_future()
        if not self.is_done:
            await self._woken

    def end(self, failure: BaseException | None = None) -> None:
        """Let the task go on. The failure that a thread found is that of this publication alone."""
        self.failure = self.failure or failure
        self.is_done = True
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class Publishing:
    """The publications that wait in this process. Each namespace has a task while any of its own wait."""

    def __init__(self, commit: Callable[[deque[Waiter]], Awaitable[None]]) -> None:
        """`commit` takes a turn, takes a group from a queue by `next_waiters`, and ends its waiters."""
        self._commit = commit
        self._queues: dict[str, deque[Waiter]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def publish(self, waiter: Waiter) -> None:
        """Wait until a transaction has committed a publication. Raises what failed."""
        namespace = waiter.publication.namespace
        queue = self._queues.setdefault(namespace, deque())
        queue.append(waiter)
        if namespace not in self._tasks:
            self._tasks[namespace] = asyncio.get_running_loop().create_task(self._serve(namespace, queue))
        cancel = None
        while not waiter.is_done:
            try:
                await waiter.wait()
            except asyncio.CancelledError as error:
                cancel, waiter.is_left = error, True
                with suppress(ValueError):  # a thread uses it: the others of its group do not wait for it
                    queue.remove(waiter)
                    break
        if cancel is not None:
            raise cancel
        if waiter.failure is not None:
            raise waiter.failure

    async def _serve(self, namespace: str, queue: deque[Waiter]) -> None:
        with working_for(namespace):
            try:
                while queue:
                    await self._commit(queue)
            finally:
                del self._queues[namespace], self._tasks[namespace]
                for waiter in queue:
                    waiter.end(asyncio.CancelledError())


def next_waiters(queue: deque[Waiter]) -> list[Waiter]:
    """Take the publications of the next transaction from a queue, in their order."""
    waiters: list[Waiter] = []
    digests: set[Digest] = set()
    while queue and (not waiters or len(digests) + len(queue[0].digests) <= _ROWS_AT_ONCE):
        if not digests.isdisjoint(queue[0].digests):
            # It may be the first one that fails. So the next transaction looks whether the row is live.
            break
        waiters.append(queue.popleft())
        digests |= waiters[-1].digests
    return waiters


def drop(waiters: Iterable[Waiter], failure: Busy, *, now: float) -> list[Waiter]:
    """End the publications that were cancelled or have waited long enough. Return the others."""
    kept = []
    for waiter in waiters:
        if waiter.is_left or now >= waiter.deadline:
            waiter.end(failure)
        else:
            kept.append(waiter)
    return kept


@contextmanager
def own_failure(waiter: Waiter) -> Iterator[None]:
    """Keep a failure for one publication, so that the others go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # its task raises it
        waiter.failure = error
