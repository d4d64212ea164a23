"""What a server process does, and what it still does while it stops: its requests in progress, and their transfers.

A transfer is many requests. So a server that stops keeps its port open and answers the next requests of transfers under way, on
the connections that it knows. It refuses everything else, and says when to ask again: the next server is then there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from aiohttp import web

from filestore.http.server.errors import refusal
from filestore.system.stalls import transferred_size

logger = logging.getLogger("filestore.server")

LULL_SECONDS = 3.0
"""How long a transfer may do other work between two requests, such as hashing 16 MiB."""
RETRY_AFTER_SECONDS = 2
FIRST_REPORT_SECONDS = 1.0
"""Most requests end sooner, and need no line in the log."""
REPORT_SECONDS = 10.0
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class _Transfer:
    """The requests of a transfer on one connection."""

    began: float
    running: int = 0
    ended: float = 0.0


class Traffic:
    """Count the requests in progress, and know the connections of transfers. For one server process."""

    def __init__(self) -> None:
        self._draining_since: float | None = None
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._transfers: WeakKeyDictionary[asyncio.Transport, _Transfer] = WeakKeyDictionary()

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining_since is not None

    def drain(self) -> None:
        """Refuse new transfers from now on."""
        self._draining_since = time.monotonic()

    def note_end(self) -> None:
        """Say in the log which transfers the server does not wait for any longer."""
        self._report("cutting")

    async def idle(self) -> None:
        """Wait until no request is in progress."""
        await self._idle.wait()

    async def drained(self) -> None:
        """Wait until no request is in progress and no transfer is under way. Say in the log what is waited for."""
        report_at = time.monotonic() + FIRST_REPORT_SECONDS
        while self._count or self._under_way():
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() >= report_at:
                report_at += REPORT_SECONDS
                self._report("waiting for")

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Count one request as in progress during the block."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._idle.set()

    @contextmanager
    def transferring(self, request: web.Request) -> Iterator[None]:
        """Note that the block answers a request of a transfer. The next requests of its connection belong to the transfer."""
        connection = request.transport
        if connection is None:
            yield
            return
        now = time.monotonic()
        transfer = self._transfers.get(connection)
        if transfer is None or not self._is_under_way(connection, transfer):
            transfer = self._transfers[connection] = _Transfer(now)
        transfer.running += 1
        try:
            yield
        finally:
            transfer.running -= 1
            transfer.ended = time.monotonic()

    def is_known(self, request: web.Request) -> bool:
        """Return whether the connection of a request has carried a transfer that was under way when the stop began.

        One connection of a transfer may have nothing to do for long while another one moves a batch.
        """
        transfer = None if request.transport is None else self._transfers.get(request.transport)
        if transfer is None:
            return False
        return bool(transfer.running) or transfer.ended + LULL_SECONDS > (self._draining_since or 0.0)

    def refused(self, *, is_known: bool) -> web.Response | None:
        """Return the answer for a request that a stopping server does not take, or None if it takes it."""
        if not self.draining or is_known:
            return None
        return refusal("the server", "it is stopping and begins no transfer", retry_after_seconds=RETRY_AFTER_SECONDS)

    def _under_way(self) -> dict[asyncio.Transport, _Transfer]:
        return {
            connection: transfer for connection, transfer in self._transfers.items() if self._is_under_way(connection, transfer)
        }

    @staticmethod
    def _is_under_way(connection: asyncio.Transport, transfer: _Transfer) -> bool:
        return bool(transfer.running) or (not connection.is_closing() and time.monotonic() < transfer.ended + LULL_SECONDS)

    def _report(self, what: str) -> None:
        """Log how many transfers there are, how long the oldest one takes, and how much they have moved."""
        # Those between two requests are not worth a line: the client may have ended, and only kept its connection.
        transfers = {connection: transfer for connection, transfer in self._under_way().items() if transfer.running}
        if not transfers:
            return
        oldest = time.monotonic() - min(transfer.began for transfer in transfers.values())
        size = sum(transferred_size(connection.get_extra_info("socket")) for connection in transfers)
        logger.warning(
            "stopping: %s the transfers of %d connections; they have moved %d bytes, and the oldest began %.0f seconds ago",
            *(what, len(transfers), size, oldest),
        )
