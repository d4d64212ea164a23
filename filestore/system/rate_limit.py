"""Limit the bytes that all connections of a client move together, in both directions.

A leaky bucket whose state is one moment: when all that was moved so far is paid for. A caller takes a small piece, and waits
until its turn comes, so connections take turns.
Source: ITU-T I.371, Annex A, the virtual scheduling algorithm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_SECONDS = 0.25
"""How much of the rate may be used at once after a pause."""
LEAST_PIECE, LARGEST_PIECE = 1 << 10, 256 << 10
"""Bytes of a piece. All pieces of a fast rate are large, because each costs a call."""
LEAST_RATE = 10_000
"""The lowest limit, in bytes per second. Below it, a connection that shares it with others would seem to stall."""
_PIECE_SECONDS = 0.05


def _wait_until(moment: float, ended: threading.Event) -> None:
    ended.wait(max(0.0, moment - time.monotonic()))


class RateLimit:
    """A limit of bytes per second. Any number of threads may share it."""

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_until: Callable[[float, threading.Event], None] = _wait_until,
    ) -> None:
        """`clock` returns seconds. `wait_until` waits for a moment of this clock, or until an event is set."""
        self.bytes_per_second = bytes_per_second
        self.piece = min(LARGEST_PIECE, max(LEAST_PIECE, int(bytes_per_second * _PIECE_SECONDS)))
        """The most bytes that one caller takes at a time."""
        self._clock = clock
        self._wait_until = wait_until
        self._paid_at = clock() - BURST_SECONDS
        self._lock = threading.Lock()

    def take(self, size: int, ended: threading.Event) -> None:
        """Wait until `size` bytes, at most `piece`, may be moved, or more after they were moved, or until `ended` is set."""
        with self._lock:
            now = self._clock()
            moment = self._paid_at = max(self._paid_at, now - BURST_SECONDS) + size / self.bytes_per_second
        if moment > now:
            self._wait_until(moment, ended)

    def give_back(self, size: int) -> None:
        """Give back bytes that were taken and not moved."""
        with self._lock:
            self._paid_at -= size / self.bytes_per_second
