"""Rates and counts that all processes of a server share.

Each key has a slot in memory that is mapped before the processes are forked:

    key        u64     a hash of the key, 0 for a free slot
    2 x debt   f64     for each kind of rate, the moment at which its debt is paid
    counts     i64     one for each process, which alone writes it

A rate is a leaky bucket that holds one second. What it permits is kept as one moment, so to change the rate needs nothing else.
A slot is changed under a lock of its byte in a file, which ends with its process. The lock is held for microseconds. A process
that is stopped just then must not stop the others, so they go on without the lock after many tries.

Source: ITU-T I.371, Annex A, the virtual scheduling algorithm.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from blake3 import blake3

SLOTS = 16384
"""How many keys may be in use until the server ends. Those that come later share one slot."""
BURST_SECONDS = 1.0
"""How much of a rate may be used at once after a pause."""
_TRIES = 200
_WORD = 8


class RateKind(IntEnum):
    """What a rate is of. The value is its place in a slot."""

    REQUESTS = 1
    BYTES = 2


_COUNTS = len(RateKind) + 1


class SharedRates:
    """Rates and counts by keys. One thread of each process may use it. Make it before the processes are forked."""

    def __init__(self, processes: int, *, slots: int = SLOTS, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` must be the same one in all processes."""
        self._processes = processes
        self._slots = slots
        self._clock = clock
        self._words = _COUNTS + processes
        # One slot more, which late keys share.
        memory = memoryview(mmap.mmap(-1, (slots + 1) * self._words * _WORD))
        self._numbers = memory.cast("q")
        self._hashes = memory.cast("Q")
        self._moments = memory.cast("d")
        self._descriptor = _empty_file() if processes > 1 else -1
        """It is open until the process ends."""
        self._place = 0
        self._known: dict[str, int] = {}

    def join(self, place: int) -> None:
        """Count for this process at `place`. What a process counted that had this place before ends."""
        self._place = place
        for slot in range(self._slots + 1):
            self._numbers[slot * self._words + _COUNTS + place] = 0

    def slot(self, key: str) -> int:
        """Return the slot of a key, which it keeps."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._claimed(key)
        return found

    def debt(self, slot: int, kind: RateKind) -> float:
        """Return how many seconds of a rate are used. More than `BURST_SECONDS` is too much."""
        return max(0.0, self._moments[slot * self._words + kind] - self._clock())

    def add(self, slot: int, kind: RateKind, seconds: float) -> None:
        """Use so many seconds of a rate, or return them if the number is negative."""
        place = slot * self._words + kind
        with self._locked(slot):
            self._moments[place] = max(self._moments[place], self._clock()) + seconds

    def try_add(self, slot: int, kind: RateKind, seconds: float) -> float:
        """Use so many seconds of a rate, if that is not too much. Otherwise return how long to wait, or else 0."""
        place = slot * self._words + kind
        with self._locked(slot):
            now = self._clock()
            after = max(self._moments[place], now) + seconds
            wait = after - now - max(BURST_SECONDS, seconds)
            if wait > 1e-9:
                return wait
            self._moments[place] = after
            return 0.0

    def try_enter(self, slot: int, limit: int) -> bool:
        """Add 1 to the count of a key, unless it is `limit` already in all processes together. Return whether it was added."""
        start = slot * self._words + _COUNTS
        with self._locked(slot):
            if sum(self._numbers[start : start + self._processes]) >= limit:
                return False
            self._numbers[start + self._place] += 1
            return True

    def leave(self, slot: int) -> None:
        """Take 1 from the count of a key."""
        self._numbers[slot * self._words + _COUNTS + self._place] -= 1

    def _claimed(self, key: str) -> int:
        wanted = int.from_bytes(blake3(key.encode(errors="surrogateescape")).digest()[:_WORD], "big") or 1
        with self._locked(self._slots):
            for step in range(self._slots):
                slot = (wanted + step) % self._slots
                found = self._hashes[slot * self._words]
                if found in (0, wanted):
                    self._hashes[slot * self._words] = wanted
                    return slot
        return self._slots

    @contextmanager
    def _locked(self, slot: int) -> Iterator[None]:
        if self._processes == 1:
            yield
            return
        is_held = False
        for _ in range(_TRIES):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except OSError:
                os.sched_yield()
                continue
            is_held = True
            break
        try:
            yield
        finally:
            if is_held:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, slot)


def _empty_file() -> int:
    """Return the descriptor of a file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rates")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
