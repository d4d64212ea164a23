"""The writers of one process, which take turns before they take a connection.

Those of one namespace take turns among each other, so that they need one connection and not many that wait for one lock. Writers
of different namespaces go on side by side, up to a number, so that connections are left for readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from filestore.errors import Busy
from filestore.system.turns import Turns


class Writers:
    """The turns for writing."""

    def __init__(self, where: str, *, limit: int) -> None:
        """At most `limit` namespaces write at a time. `where` names the index in messages."""
        self._where = where
        self._turns: dict[str | None, Turns] = {}
        self._places = asyncio.Semaphore(limit)
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return self._waiting

    @asynccontextmanager
    async def turn(self, namespace: str | None, deadline: float) -> AsyncIterator[None]:
        """Take a turn of a namespace, or of all, for the block. Raises Busy at `deadline`, in the time of the loop."""
        turns = self._turns.setdefault(namespace, Turns())
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await turns.acquire()
                try:
                    await self._places.acquire()
                except BaseException:
                    turns.release()
                    raise
        except TimeoutError:
            raise Busy(self._where, "other writes of this process took too long") from None
        finally:
            self._waiting -= 1
            self._drop(namespace, turns)
        try:
            yield
        finally:
            self._places.release()
            turns.release()
            self._drop(namespace, turns)

    def _drop(self, namespace: str | None, turns: Turns) -> None:
        if turns.is_free:
            self._turns.pop(namespace, None)
