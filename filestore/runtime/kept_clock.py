"""A clock for how long things are kept. It does not jump when somebody sets the clock of the machine.

While the runtime runs, it follows the monotonic clock. For the time in which the runtime was stopped it believes the
clock of the machine, but it never goes back. So a clock that is set while the runtime runs removes nothing too early.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable


class KeptClock:
    """The seconds since the first opening of the runtime's database. Used by one thread at a time."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Continue the clock that `connection` has stored, or begin one."""
        self._monotonic = monotonic
        self._wall = wall
        row = connection.execute("SELECT elapsed, wall FROM clock").fetchone()
        elapsed, stored_wall = row or (0.0, wall())
        self._latest_wall = max(stored_wall, wall())
        self._start = elapsed + self._latest_wall - stored_wall
        self._started = monotonic()

    def now(self) -> float:
        """Return the time in seconds."""
        return self._start + self._monotonic() - self._started

    def store(self, connection: sqlite3.Connection) -> float:
        """Return the time, and store it in the transaction of `connection`."""
        now = self.now()
        # A clock that is set back would make the next stop seem long.
        self._latest_wall = max(self._latest_wall, self._wall())
        connection.execute("DELETE FROM clock")
        connection.execute("INSERT INTO clock (elapsed, wall) VALUES (?, ?)", (now, self._latest_wall))
        return now
