"""Decide how many batches a client moves at the same time.

More connections are not always faster: a full link, a disk that seeks, or a middlebox with too little memory may move fewer bytes
the more connections share it. So the client measures goodput, which is bytes per second that arrived for good, and looks for the
best number by small steps.

Source: E. Yildirim, D. Yin, T. Kosar, "Prediction of Optimal Parallelism Level in Wide Area Data Transfers", IEEE TPDS 22(12),
2011: goodput rises with the number of streams to a peak, and falls after it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

EPOCH_SECONDS = 4.0
"""How long goodput is measured before a step. A short transfer takes none."""
MUCH_BETTER = 1.2
"""The factor by which a step must raise goodput to stay. Without it, the client would follow noise."""
FELL = 0.5
"""A fall of goodput below this part is answered at once by a step down."""
FAST = 64 << 20
"""Bytes per second from which on no better number is looked for, as long as goodput does not fall."""
LONGEST_WAIT = 32
"""Epochs between two steps, at most. The wait is one at first, and doubles after each step that did not help."""


class _Trial(NamedTuple):
    """A step that is being tried: the limit and the goodput before it."""

    limit: int
    goodput: float


class Concurrency:
    """How many batches may run, from 1 to `count`. It begins with `count`. For one event loop."""

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        self.limit = count
        self._count = count
        self._clock = clock
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._began: float | None = None
        self._moved = 0
        self._trial: _Trial | None = None
        self._usual = 0.0
        self._epochs = 0
        self._wait = 1

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait until one more batch may run, which is the block."""
        while self._running >= self.limit:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except BaseException:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                self._admit()
                raise
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._began = None  # time without a batch says nothing
            self._admit()

    def note_moved(self, size: int) -> None:
        """Count bytes that moved. A negative number takes back what did not arrive for good."""
        now = self._clock()
        if self._began is None or self._running > self.limit:
            # After a step down, the measurement begins when the batches that are too many have ended.
            self._began, self._moved = now, 0
            return
        self._moved += size
        if now - self._began >= EPOCH_SECONDS:
            goodput = max(0, self._moved) / (now - self._began)
            self._began, self._moved = now, 0
            self._end_epoch(goodput)
            self._admit()

    def _end_epoch(self, goodput: float) -> None:
        trial, self._trial = self._trial, None
        if trial is not None and goodput < trial.goodput * MUCH_BETTER:
            self.limit = trial.limit
            self._wait = min(LONGEST_WAIT, self._wait * 2)
            return
        if trial is not None:
            self._wait = 1
            self._usual = goodput
            self._try(goodput, is_down=self.limit < trial.limit)
            return
        has_fallen = goodput < self._usual * FELL
        self._usual = goodput if has_fallen else max(goodput, self._usual * MUCH_BETTER**-1)
        self._epochs += 1
        if has_fallen or (self._epochs >= self._wait and goodput < FAST):
            self._try(goodput, is_down=has_fallen or self.limit == self._count)

    def _try(self, goodput: float, *, is_down: bool) -> None:
        """Take a step. Down, the limit is halved; up, it grows by one."""
        self._epochs = 0
        wanted = max(1, self.limit // 2) if is_down else min(self._count, self.limit + 1)
        if wanted != self.limit:
            self._trial = _Trial(self.limit, goodput)
            self.limit = wanted

    def _admit(self) -> None:
        free = self.limit - self._running
        while free > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1
