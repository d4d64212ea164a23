"""Write what happens very often to the log, in one line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

LOG_SECONDS = 60.0


class Rarely:
    """Count events of one kind, and say when a line is due."""

    def __init__(self, seconds: float = LOG_SECONDS, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = clock()
        self._count = 0

    def count(self) -> int:
        """Count an event. Return how many happened since the last line if one is due now, otherwise 0."""
        self._count += 1
        if self._clock() < self._next:
            return 0
        self._next = self._clock() + self._seconds
        counted, self._count = self._count, 0
        return counted
