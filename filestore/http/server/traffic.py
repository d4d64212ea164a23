"""What a server process does, and what it still does while it stops: its requests in progress, and their transfers.

A transfer is many requests. So a server that stops keeps its port open and answers the next requests of transfers under way, on
the connections that it knows. It refuses everything else, and says when to ask again: the next server is then there.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from aiohttp import web

from filestore.http.server.current_transfers import (
    WRITE_SECONDS,
    CurrentTransfer,
    CurrentTransfers,
    SharedCurrentTransfers,
    with_own,
)
from filestore.http.server.errors import refusal
from filestore.http.server.request_record import RequestRecord, record_of
from filestore.system.stalls import transferred_size

logger = logging.getLogger("filestore.server")

LULL_SECONDS = 3.0
"""How long a transfer may do other work between two requests, such as hashing 16 MiB."""
RETRY_AFTER_SECONDS = 2
FIRST_REPORT_SECONDS = 1.0
"""Most requests end sooner, and need no line in the log."""
REPORT_SECONDS = 10.0
REPORT_LIMIT = 5
"""The most kinds of transfers that a report names."""
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class _Transfer:
    """The requests of a transfer on one connection."""

    began: float
    size_before: int
    """Bytes that the connection had moved for transfers before this one."""
    record: RequestRecord
    """Its last request."""
    running: int = 0
    ended: float = 0.0
    size_after: int = 0
    """Bytes that the connection had moved when its last request ended."""

    @property
    def what(self) -> str:
        """Its last request: the method, the route and the namespace."""
        namespace = "" if self.record.access is None else self.record.access.namespace
        return f"{self.record.method} {self.record.route} of {namespace!r}"


class SharedTransfers:
    """How many transfers each process of a server waits for while it stops. Processes are forked after this object is made.

    Each connection of a push or a fetch counts as one transfer.
    """

    _FIELDS = 4

    def __init__(self, count: int) -> None:
        self._numbers = memoryview(mmap.mmap(-1, count * self._FIELDS * 8)).cast("d")
        self._count = count
        self._own = 0
        self.current = SharedCurrentTransfers(count)
        """What the transfers are."""

    def join(self, place: int) -> None:
        """Write to `place` in this process. Another process may have used this place before."""
        self._own = place * self._FIELDS
        self._write(0, 0, 0, 0)
        self.current.join(place)

    def stop(self, waiting: int) -> None:
        """Note that this process begins to stop, and for how many transfers it waits."""
        self._write(1, waiting, waiting, 0)

    def go_on(self, waiting: int) -> None:
        """Note for how many transfers this process still waits."""
        self._numbers[self._own + 2] = waiting

    def end(self, cut: int) -> None:
        """Note that this process waits no longer, and how many transfers it has cut."""
        self._numbers[self._own + 2], self._numbers[self._own + 3] = 0, cut

    def is_stopping(self, place: int) -> bool:
        """Return whether the process at `place` has begun to stop."""
        return bool(self._numbers[place * self._FIELDS])

    @property
    def first(self) -> int:
        """For how many transfers all processes waited when they began to stop."""
        return self._sum(1)

    @property
    def waiting(self) -> int:
        """For how many transfers all processes wait."""
        return self._sum(2)

    @property
    def cut(self) -> int:
        """How many transfers all processes have cut."""
        return self._sum(3)

    def _sum(self, field: int) -> int:
        return int(sum(self._numbers[place * self._FIELDS + field] for place in range(self._count)))

    def _write(self, *values: int) -> None:
        # The first number says that the others are there.
        for field in reversed(range(self._FIELDS)):
            self._numbers[self._own + field] = values[field]


class StopWords:
    """The sentences about a stop, for the person who stops a server. One process of the server says them."""

    def __init__(
        self,
        transfers: SharedTransfers,
        drain_seconds: float,
        say: Callable[[str], None] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transfers = transfers
        self._drain_seconds = drain_seconds
        self._say = say or (lambda _: None)
        self._clock = clock
        self._ends_at = self.next_at = clock()

    def begin(self) -> None:
        """Say how many transfers may finish."""
        now, count = self._clock(), self._transfers.first
        self._ends_at, self.next_at = now + self._drain_seconds, now + REPORT_SECONDS
        if count:
            seconds = f"{self._drain_seconds:g}"
            self._say(f"stopping, {_transfers(count)} may finish within {seconds} s; a second signal stops the server at once")
        else:
            self._say("stopping, no transfer is under way")

    def go_on(self) -> None:
        """Say every ten seconds for how many transfers the server waits. `next_at` is the next time."""
        now, count = self._clock(), self._transfers.waiting
        if now < self.next_at:
            return
        self.next_at += REPORT_SECONDS
        if count:
            self._say(f"waiting for {_transfers(count)}, for {max(0.0, self._ends_at - now):.0f} s more")

    def end(self, *, killed: int = 0) -> None:
        """Say that the server has stopped. `killed` transfers were cut by the end of their process."""
        count = self._transfers.cut + killed
        self._say(f"stopped, and cut {_transfers(count)}" if count else "stopped")


def _transfers(count: int) -> str:
    return "1 transfer" if count == 1 else f"{count} transfers"


class Traffic:
    """Count the requests in progress, and know the connections of transfers. For one server process."""

    def __init__(self, shared: SharedTransfers | None = None) -> None:
        """`shared` gets the number of the transfers that the process waits for."""
        self._shared = shared or SharedTransfers(1)
        self._draining_since: float | None = None
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._transfers: WeakKeyDictionary[asyncio.Transport, _Transfer] = WeakKeyDictionary()
        self._telling: asyncio.TimerHandle | None = None

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining_since is not None

    @property
    def requests(self) -> int:
        """How many requests are in progress."""
        return self._count

    @property
    def transfers(self) -> int:
        """How many connections have a transfer under way."""
        return len(self._under_way())

    def drain(self) -> None:
        """Refuse new transfers from now on."""
        self._draining_since = time.monotonic()
        self._shared.stop(len(self._under_way()))

    def note_end(self) -> None:
        """Say in the log which transfers the server does not wait for any longer."""
        self._report("cutting")
        self._shared.end(sum(bool(transfer.running) for transfer in self._under_way().values()))

    async def idle(self) -> None:
        """Wait until no request is in progress."""
        await self._idle.wait()

    async def drained(self, look: Callable[[], None] = lambda: None) -> None:
        """Wait until no request is in progress and no transfer is under way. Say in the log what is waited for.

        `look` is called again and again meanwhile.
        """
        report_at = time.monotonic() + FIRST_REPORT_SECONDS
        while self._count or self._under_way():
            await asyncio.sleep(_LOOK_SECONDS)
            self._shared.go_on(len(self._under_way()))
            look()
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
        now, record = time.monotonic(), record_of(request)
        transfer = self._transfers.get(connection)
        if transfer is None or not self._is_under_way(connection, transfer):
            # The first bytes of this request are there already, so what has moved by now is too much.
            size_before = 0 if transfer is None else transfer.size_after
            transfer = self._transfers[connection] = _Transfer(now, size_before, record)
        transfer.running += 1
        transfer.record = record
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(WRITE_SECONDS, self._tell)
        try:
            yield
        finally:
            transfer.running -= 1
            transfer.ended = time.monotonic()
            transfer.size_after = _moved_by(connection)

    def all_transfers(self) -> CurrentTransfers:
        """Return what all processes of the server transfer now. Of the others it may be a second old."""
        return with_own(self._current(), self._shared.current.of_others())

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

    def _tell(self) -> None:
        """Say to the other processes what this one transfers, and again in a second while there is anything."""
        transfers = self._current()
        self._shared.current.write(transfers)
        self._telling = asyncio.get_running_loop().call_later(WRITE_SECONDS, self._tell) if transfers else None

    def _current(self) -> list[CurrentTransfer]:
        """Return the transfers of this process, the oldest first."""
        wall = time.time() - time.monotonic()
        found = [
            _current(transfer, wall + transfer.began, _moved_by(connection)) for connection, transfer in self._under_way().items()
        ]
        return sorted(found, key=lambda transfer: transfer.began_at)

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
        sizes: Counter[str] = Counter()
        for connection, transfer in transfers.items():
            sizes[transfer.what] += _moved_by(connection)
        counts = Counter(transfer.what for transfer in transfers.values())
        kinds = [f"{counts[kind]} by {kind}, {size} bytes" for kind, size in sizes.most_common(REPORT_LIMIT)]
        if len(sizes) > REPORT_LIMIT:
            kinds.append(f"and {len(sizes) - REPORT_LIMIT} other kinds")
        logger.warning(
            "stopping: %s the transfers of %d connections; they have moved %d bytes, and the oldest began %.0f seconds ago: %s",
            *(what, len(transfers), sizes.total(), oldest, "; ".join(kinds)),
        )


def _moved_by(connection: asyncio.Transport) -> int:
    """Return how many bytes a connection has moved since it was made."""
    found = connection.get_extra_info("socket")
    return 0 if found is None else transferred_size(found)


def _current(transfer: _Transfer, began_at: float, size: int) -> CurrentTransfer:
    """Return what others may know of a transfer. `size` is what its connection has moved."""
    record = transfer.record
    access, facts = record.access, record.facts
    return CurrentTransfer(
        namespace="" if access is None else access.namespace,
        method=record.method,
        route=record.route,
        name=str(facts.get("name", facts.get("path", ""))),
        record_id=str(facts.get("record", "")),
        upload_id=str(facts.get("upload", "")),
        token_id="" if access is None else access.token_id,
        label="" if access is None else access.label,
        size=max(0, size - transfer.size_before),
        began_at=began_at,
        is_running=bool(transfer.running),
    )


TRAFFIC = web.AppKey("traffic", Traffic)
