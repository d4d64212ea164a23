"""Limit what clients can make a server read that ask it to verify chunks again: a small request may mean 16 GiB."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from filestore.core.digest import Digest
from filestore.errors import Busy
from filestore.repository.local import LocalRepository

KEPT_SECONDS = 60.0
"""A chunk that was found intact is not read again for so long."""
KEPT_COUNT = 16384
"""The most chunks that are remembered as intact, in all namespaces together."""
WAITING_COUNT = 8
"""The most requests of one namespace that wait for their turn."""
_SLICE = 64
"""The number of chunks that are verified before the server looks whether the client is still there."""


class Rechecks:
    """The checks of one process: one at a time for each namespace."""

    def __init__(self, *, wait_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`wait_seconds` is how long a request waits for its turn."""
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._places: dict[str, int] = {}
        self._intact: OrderedDict[tuple[str, Digest], float] = OrderedDict()

    async def damaged(
        self, repository: LocalRepository, digests: Sequence[Digest], *, check_client: Callable[[], object]
    ) -> list[Digest]:
        """Return the digests of damaged chunks, as `LocalRepository.verify_chunks` does, and remember which are intact.

        Call it in the block of `turn`. `check_client` raises an error if the client has gone.
        """
        damaged: list[Digest] = []
        unknown = self._unknown(repository.namespace, digests)
        for start in range(0, len(unknown), _SLICE):
            check_client()
            part = unknown[start : start + _SLICE]
            found = await repository.verify_chunks(part)
            damaged += found
            self._note_intact(repository.namespace, set(part).difference(found))
        return damaged

    @asynccontextmanager
    async def turn(self, namespace: str) -> AsyncIterator[None]:
        """Wait for the turn of a request of a namespace, which has the block for itself.

        Raises Busy if too many requests of the namespace wait, or this one waited too long.
        """
        turn = self._turns.setdefault(namespace, asyncio.Semaphore(1))
        if self._places.get(namespace, 0) > WAITING_COUNT:
            raise _busy()
        self._places[namespace] = self._places.get(namespace, 0) + 1
        try:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    await turn.acquire()
            except TimeoutError:
                raise _busy() from None
            try:
                yield
            finally:
                turn.release()
        finally:
            self._places[namespace] -= 1
            if not self._places[namespace]:
                del self._places[namespace], self._turns[namespace]

    def _unknown(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the chunks that were not verified lately."""
        earliest = self._clock() - KEPT_SECONDS
        while self._intact and next(iter(self._intact.values())) < earliest:
            self._intact.popitem(last=False)
        return [digest for digest in dict.fromkeys(digests) if (namespace, digest) not in self._intact]

    def _note_intact(self, namespace: str, digests: Iterable[Digest]) -> None:
        for digest in digests:
            self._intact[namespace, digest] = self._clock()
            self._intact.move_to_end((namespace, digest))
        while len(self._intact) > KEPT_COUNT:
            self._intact.popitem(last=False)


def _busy() -> Busy:
    return Busy("the server", "it verifies other chunks of this namespace")
