"""Where the time of transfers goes: how much of it, of processor time and of bytes each stage took, for this whole process.

Nothing is counted until `count_into` says where. A stage is for a piece of work of a MiB and more: counting costs 3 us alone, and
ten times that where threads wait for each other; 0.2 us while nobody wants it. `part` is for smaller pieces.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple, Self


class Stage(StrEnum):
    """A step of a transfer. The bytes of each are content, but for those of SEND, RECEIVE and, at a server, WRITE: frames."""

    READ = "read"
    """Content from its files; at a server, frames opened to be sent."""
    CUT = "cut"
    """Where chunks begin. Of a directory, what its zip is made of besides: headers, and a checksum of each byte."""
    HASH = "hash"
    """Digests of what is pushed."""
    ENCODE = "encode"
    SEND = "send"
    """Bytes into a connection, and waiting for it to take them."""
    WAIT = "wait"
    """Nothing to do before the other end answers."""
    RECEIVE = "receive"
    """Bytes out of a connection, and waiting for them."""
    VERIFY = "verify"
    """Decoding, and digests of what came; at a server, reading it back."""
    WRITE = "write"
    SYNC = "sync"
    """Waiting for the disk to have what was written, and its names."""
    COMMIT = "commit"
    """What the index is asked and told, and renames."""


class StageTotals(NamedTuple):
    """What has passed a stage."""

    times: int = 0
    """How often it was entered."""
    size: int = 0
    seconds: float = 0.0
    """From entering to leaving it, in all threads added; less what another stage took meanwhile in the same thread."""
    cpu_seconds: float = 0.0
    """Processor time of these threads."""

    def since(self, earlier: StageTotals) -> StageTotals:
        """What has passed since it was `earlier`."""
        return StageTotals(
            self.times - earlier.times,
            self.size - earlier.size,
            self.seconds - earlier.seconds,
            self.cpu_seconds - earlier.cpu_seconds,
        )


class Usage(NamedTuple):
    """What a process has used so far."""

    cpu_seconds: float = 0.0
    """User and system time."""
    peak_memory: int = 0
    """Bytes of resident memory, when they were most."""


def own_usage() -> Usage:
    """That of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss * unit)


_STAGES = tuple(Stage)
_PLACES = {stage: len(Usage._fields) + place * len(StageTotals._fields) for place, stage in enumerate(_STAGES)}
_NUMBERS = len(Usage._fields) + len(_STAGES) * len(StageTotals._fields)
_TALLY_SIZE = _NUMBERS * 8


class StageTimes:
    """The numbers of a process. Any of its threads may add to them, and any process that shares the memory may read them."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """`memory`: a part of a `SharedTimes`. What an earlier process has left in it is added to."""
        # Doubles: exact for whole numbers up to 2 ** 53, and read and written in one go.
        self._numbers = (memoryview(bytearray(_TALLY_SIZE)) if memory is None else memory).cast("d")
        self._lock = threading.Lock()
        self._cpu_seconds_before = self._numbers[0]

    def add(self, stage: Stage, size: int, seconds: float, cpu_seconds: float, *, times: int = 1) -> None:
        """Add what passed a stage, once or so many times."""
        place, numbers = _PLACES[stage], self._numbers
        with self._lock:
            numbers[place] += times
            numbers[place + 1] += size
            numbers[place + 2] += seconds
            numbers[place + 3] += cpu_seconds

    def note_usage(self) -> None:
        """Write down what this process has used, which must be the one that adds."""
        used = own_usage()
        self._numbers[0] = self._cpu_seconds_before + used.cpu_seconds
        self._numbers[1] = max(self._numbers[1], used.peak_memory)

    def usage(self) -> Usage:
        """What was noted last: the time of all processes that had this memory, the memory of the largest of them."""
        return Usage(self._numbers[0], int(self._numbers[1]))

    def passed(self) -> dict[Stage, StageTotals]:
        """What has passed each stage that was entered at all."""
        found = {}
        for stage, place in _PLACES.items():
            times, size, seconds, cpu_seconds = self._numbers[place : place + len(StageTotals._fields)]
            if times:
                found[stage] = StageTotals(int(times), int(size), seconds, cpu_seconds)
        return found


class SharedTimes:
    """The stage times of processes that are forked after it was made: each has a place, and all see all of them."""

    def __init__(self, count: int) -> None:
        memory = memoryview(mmap.mmap(-1, count * _TALLY_SIZE))
        self._parts = [memory[place * _TALLY_SIZE : (place + 1) * _TALLY_SIZE] for place in range(count)]
        self.own = StageTimes()
        """That of this process."""

    def join(self, place: int) -> None:
        """Count what this process does at a place, where another one may have counted before."""
        self.own = StageTimes(self._parts[place])
        count_into(self.own)

    def each_process(self) -> list[StageTimes]:
        """All of them, to be read."""
        return [StageTimes(part) for part in self._parts]


def added(several: list[dict[Stage, StageTotals]]) -> dict[Stage, StageTotals]:
    """What has passed each stage in all of `several`."""
    total = {}
    for stage in _STAGES:
        found = [passed[stage] for passed in several if stage in passed]
        if found:
            times, size, seconds, cpu_seconds = map(sum, zip(*found, strict=True))
            total[stage] = StageTotals(times, size, seconds, cpu_seconds)
    return total


class _Part:
    """What of a passage is another stage's."""

    __slots__ = ("seconds", "size", "times")

    def __init__(self) -> None:
        self.times = self.size = 0
        self.seconds = 0.0


class _Span:
    """A thread on its way through a stage."""

    __slots__ = ("_cpu_started", "_cpu_within", "_outer", "_parts", "_size", "_stage", "_stage_times", "_started", "_within")

    def __init__(self, stage_times: StageTimes, stage: Stage, size: int) -> None:
        self._stage_times = stage_times
        self._stage = stage
        self._size = size
        self._within = self._cpu_within = 0.0
        self._parts: dict[Stage, _Part] = {}

    def add(self, size: int) -> None:
        """Count more bytes."""
        self._size += size

    def give(self, which: Stage, size: int, seconds: float) -> None:
        """Count a part of it as another stage's."""
        found = self._parts.get(which)
        if found is None:
            found = self._parts[which] = _Part()
        found.times += 1
        found.size += size
        found.seconds += seconds

    def __enter__(self) -> Self:
        self._outer = _thread.passage
        _thread.passage = self
        self._started = time.perf_counter()
        self._cpu_started = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        cpu_seconds = time.thread_time() - self._cpu_started
        seconds = time.perf_counter() - self._started
        _thread.passage = self._outer
        if self._outer is not None:
            self._outer._within += seconds  # noqa: SLF001  # its own kind
            self._outer._cpu_within += cpu_seconds  # noqa: SLF001  # the same
        own_seconds, own_cpu_seconds = seconds - self._within, cpu_seconds - self._cpu_within
        rate = own_cpu_seconds / own_seconds if own_seconds > 0 else 0.0
        for which, found in self._parts.items():
            self._stage_times.add(which, found.size, found.seconds, found.seconds * rate, times=found.times)
            own_seconds -= found.seconds
        self._stage_times.add(self._stage, self._size, own_seconds, own_seconds * rate)


class _NoSpan:
    """A passage that nobody wants to know of."""

    def add(self, size: int) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_uncounted = _NoSpan()


class _Thread(threading.local):
    """What a thread is in."""

    passage: _Span | None = None
    """The innermost."""


_thread = _Thread()
_stage_times: StageTimes | None = None


def count_into(stage_times: StageTimes | None) -> None:
    """Count into `stage_times` from now on, in all threads of this process; None: nowhere."""
    global _stage_times  # noqa: PLW0603  # what a process does is the process's
    _stage_times = stage_times


# What a forked child does is not counted for its parent, whose threads may hold the lock of the counter.
os.register_at_fork(after_in_child=lambda: count_into(None))


def span(which: Stage, size: int = 0) -> _Span | _NoSpan:
    """A block of work that belongs to a stage; `add` on what the block is given counts bytes that are known only later.

    For a block that stays in its thread: nothing may be awaited in it. Blocks may lie in each other.
    """
    return _uncounted if _stage_times is None else _Span(_stage_times, which, size)


def part(which: Stage, size: int, seconds: float) -> None:
    """Count what this thread has just done, for `seconds`, as a stage's, and not as that of the stage that it is in.

    Its processor time is taken for its share of that. Costs a tenth of a stage; counts nothing outside of one.
    """
    if _thread.passage is not None:
        _thread.passage.give(which, size, seconds)


@contextmanager
def async_span(which: Stage, size: int = 0) -> Iterator[_AsyncSpan]:
    """A block of a coroutine that belongs to a stage, as `stage`. Processor time is not counted: others take it meanwhile."""
    awaited = _AsyncSpan(size)
    started = time.perf_counter()
    try:
        yield awaited
    finally:
        if _stage_times is not None:
            _stage_times.add(which, awaited.size, time.perf_counter() - started, 0.0)


class _AsyncSpan:
    """What a coroutine waits for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def add(self, size: int) -> None:
        """Count more bytes."""
        self.size += size
