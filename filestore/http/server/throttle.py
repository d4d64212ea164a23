"""Move the bodies of a request no faster than the quotas of its namespace and its token permit.

A body that is too fast is not an error: it waits. While it waits, it holds no thread and no memory besides the piece that it is
about to move. No wait is long, so that neither end takes the connection for stalled: after `PAUSE_SECONDS`, a connection moves
a little, however much the others have moved.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from filestore.system.shared_rates import BURST_SECONDS, RateKind, SharedRates

PAUSE_SECONDS = 4.0
"""The longest pause of a connection."""
LEAST_SIZE = 4096
"""What a connection moves after the longest pause."""
_SHARE = 0.125
"""The part of a second whose bytes a connection moves at a time, so that several take turns."""


class ByteRate(NamedTuple):
    """A limit of bytes per second, and the slot that counts for it."""

    slot: int
    bytes_per_second: int


class Throttle:
    """Says how many bytes one request may move now. For the event loop."""

    def __init__(self, rates: SharedRates, limits: Sequence[ByteRate], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._limits = limits
        self._clock = clock
        self._moved_at = clock()
        self._share = max(LEAST_SIZE, int(min(limit.bytes_per_second for limit in limits) * _SHARE))

    def take(self, wanted: int) -> int:
        """Return how many of `wanted` bytes may be moved now, perhaps 0. Return those that are not moved by `give_back`."""
        if self._excess() <= 0:
            size = min(wanted, self._share)
        elif self._left() <= 0:
            size = min(wanted, LEAST_SIZE)
        else:
            size = 0
        self.count(size)
        return size

    def give_back(self, size: int) -> None:
        """Do not count bytes that were taken and not moved."""
        if size:
            self._add(-size)

    def count(self, size: int) -> None:
        """Count bytes that were moved without being asked for."""
        if size:
            self._moved_at = self._clock()
            self._add(size)

    def delay(self) -> float:
        """Return for how many seconds no byte may be moved. It is 0 or less if some may be."""
        return min(self._excess(), self._left())

    async def wait(self) -> None:
        """Wait until bytes may be moved."""
        delay = self.delay()
        while delay > 0:
            await asyncio.sleep(delay)
            # Others may have been faster.
            delay = self.delay()

    async def passed(self, size: int) -> None:
        """Count bytes that were moved, and wait until more may be."""
        self.count(size)
        await self.wait()

    def _add(self, size: int) -> None:
        for limit in self._limits:
            self._rates.add(limit.slot, RateKind.BYTES, size / limit.bytes_per_second)

    def _excess(self) -> float:
        """Return how many seconds it takes until the rates have room for a share."""
        return max(self._rates.debt(limit.slot, RateKind.BYTES) for limit in self._limits) + _SHARE - BURST_SECONDS

    def _left(self) -> float:
        """Return how long the connection may pause."""
        return self._moved_at + PAUSE_SECONDS - self._clock()
