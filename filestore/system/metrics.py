"""Measure the time, the processor time and the bytes of each stage of transfers, and count events, for the whole process.

Nothing is counted before `count_into` is called. Use `span` for work on 1 MiB or more. To count a span takes 3 us, ten
times as much if threads wait for each other, and 0.2 us while nothing is counted. Use `part` for smaller pieces of
work. `count` takes 0.5 us.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple, Self

from filestore.core.unlocked import measure_unlocked
from filestore.system.numbers import KEYS_SIZE, Numbers


class Stage(StrEnum):
    """A step of a transfer.

    Most stages count bytes of content. SEND, RECEIVE and, at a server, WRITE count bytes of frames.
    """

    READ = "read"
    """Read content from its files. At a server: open frames that are sent."""
    CUT = "cut"
    """Find where chunks begin. For a directory, also make the headers of its zip and the checksums of its files."""
    HASH = "hash"
    """Compute the digests of the content that is pushed."""
    ENCODE = "encode"
    SEND = "send"
    """Write to a connection, and wait until it takes the bytes."""
    WAIT = "wait"
    """Wait for the answer of the other end."""
    RECEIVE = "receive"
    """Wait for bytes from a connection, and read them."""
    VERIFY = "verify"
    """Decode and hash received frames. At a server, also read them from their files first."""
    WRITE = "write"
    SYNC = "sync"
    """Wait until written bytes and the names of their files are on the disk."""
    COMMIT = "commit"
    """Read and change the index, and rename files."""


class Event(StrEnum):
    """Something that a process counts. The comment of each names its labels, if it has any.

    The values of a label come from a small set that this program knows. What a client sends never is one: each new value
    takes memory for ever, here and in the programs that read the numbers.
    """

    REQUESTS = "requests"
    """Requests. Labels: route, method, class of the status."""
    REQUEST_SECONDS = "request_seconds"
    """Seconds of all requests. Label: route."""
    REQUEST_TIMES = "request_times"
    """Requests by how long they took. Labels: route, number of the bucket."""
    BYTES_RECEIVED = "bytes_received"
    """Bytes of the bodies of requests. Label: route."""
    BYTES_SENT = "bytes_sent"
    """Bytes of the bodies of answers. Label: route."""
    ERRORS = "errors"
    """Errors that were answered. Label: slug."""
    CONNECTIONS_REFUSED = "connections_refused"
    WRONG_CREDENTIALS = "wrong_credentials"
    """Wrong tokens and signatures."""
    GUESSES_REFUSED = "guesses_refused"
    """Those of them that were refused without a look, because their address had sent too many."""
    REQUESTS_CUT = "requests_cut"
    """Requests whose token was removed while they were in progress."""
    FILES_STORED = "files_stored"
    FILES_STORED_SIZE = "files_stored_size"
    FILES_REMOVED = "files_removed"
    CHUNKS_STORED = "chunks_stored"
    CHUNKS_STORED_SIZE = "chunks_stored_size"
    """Bytes of content of the stored chunks."""
    FRAMES_STORED_SIZE = "frames_stored_size"
    """Bytes of the frames of the stored chunks."""
    ENCODING_SAVED_SIZE = "encoding_saved_size"
    """By how many bytes the frames of the stored chunks are smaller than their content."""
    CHUNKS_SHARED = "chunks_shared"
    """Chunks that a push asked about, and that were there."""
    CHUNKS_SHARED_SIZE = "chunks_shared_size"
    CACHE_LOOKUPS = "cache_lookups"
    """Looks into a cache. Labels: cache, result."""
    COLLECTIONS = "collections"
    """Collections of one namespace. Label: result."""
    COLLECTION_SECONDS = "collection_seconds"
    COLLECTED_CHUNKS = "collected_chunks"
    COLLECTED_SIZE = "collected_size"
    SCRUBBED_CHUNKS = "scrubbed_chunks"
    SCRUBBED_SIZE = "scrubbed_size"
    SCRUB_DAMAGED = "scrub_damaged"
    """Damaged chunks that a scrub has found."""
    DIGESTED_SIZE = "digested_size"
    """Bytes of content that were read for secondary digests."""
    LOG_LINES_LEFT_OUT = "log_lines_left_out"
    """Lines about requests that a log has no room for. Label: log."""
    PROCESS_STARTS = "process_starts"
    FRAMES_GIVEN = "frames_given"
    """Frames that a peer has given to readers."""
    FRAMES_GIVEN_SIZE = "frames_given_size"
    FRAMES_FETCHED = "frames_fetched"
    """Frames that a peer has fetched from its origin."""
    FRAMES_FETCHED_SIZE = "frames_fetched_size"


class Gauge(StrEnum):
    """Something that a process has now. A process that takes the place of another one begins with 0."""

    CONNECTIONS = "connections"
    REQUESTS = "requests_now"
    """Requests in progress."""
    TRANSFERS = "transfers_now"
    """Connections whose transfers are under way."""
    BUDGET_TAKEN = "budget_taken"
    """Bytes of memory that bodies take. Label: budget."""
    MANIFESTS_SIZE = "manifests_size"
    DIGESTS_WAITING = "digests_waiting"
    """Stored files and trees whose secondary digests are due."""
    TREES_SIZE = "trees_size"
    QUEUE = "queue"
    """Tasks that wait. Label: what they wait for."""
    MEMORY = "memory"
    """Resident memory."""
    OPEN_FILES = "open_files"
    CERTIFICATE_EXPIRES_AT = "certificate_expires_at"
    """When the certificate for new connections expires, in seconds since 1970."""
    STARTED_AT = "started_at"
    """When the process began, in seconds since 1970."""


class StageTotals(NamedTuple):
    """The totals of all spans of one stage."""

    times: int = 0
    """The number of spans."""
    size: int = 0
    seconds: float = 0.0
    """The time of all spans, added over all threads. Time in spans that are inside another span counts only there."""
    cpu_seconds: float = 0.0
    """The processor time of the threads during these spans."""

    def since(self, earlier: StageTotals) -> StageTotals:
        """Return the difference between these totals and the totals `earlier`."""
        return StageTotals(
            self.times - earlier.times,
            self.size - earlier.size,
            self.seconds - earlier.seconds,
            self.cpu_seconds - earlier.cpu_seconds,
        )


class StartTotals(NamedTuple):
    """The totals of all starts of pipelines, or one start."""

    times: int = 0
    """The number of starts."""
    already_loaded: int = 0
    """The number of runs that needed no start."""
    bytes_received: int = 0
    bytes_cached: int = 0
    bytes_reused: int = 0
    process_seconds: float = 0.0
    fetch_seconds: float = 0.0
    load_seconds: float = 0.0


class Usage(NamedTuple):
    """The processor time and memory of a process since its start."""

    cpu_seconds: float = 0.0
    """User and system time."""
    peak_memory: int = 0
    """The largest resident memory so far, in bytes."""
    lock_seconds: float = 0.0
    """The part of `cpu_seconds` that was not spent in calls of `unlocked`. The process held the interpreter lock for at most this
    time. Before `count_into` was called, all time counts."""


def own_usage() -> Usage:
    """Return the usage of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    cpu_seconds = used.ru_utime + used.ru_stime
    return Usage(cpu_seconds, used.ru_maxrss * unit, max(0.0, cpu_seconds - _unlocked_seconds()))


_STAGES = tuple(Stage)
_GAUGES = frozenset(Gauge)
_PLACES = {stage: len(Usage._fields) + place * len(StageTotals._fields) for place, stage in enumerate(_STAGES)}
_STARTS = len(Usage._fields) + len(_STAGES) * len(StageTotals._fields)
_NUMBERS = _STARTS + len(StartTotals._fields)
_TALLY_SIZE = _NUMBERS * 8
_MEMORY_SIZE = _TALLY_SIZE + KEYS_SIZE


class StageTimes:
    """The totals of each stage and the numbers of one process. All its threads may add to them.

    `SharedTimes` lets other processes read them.
    """

    def __init__(self, memory: memoryview | None = None) -> None:
        """Use `memory`, a part of a `SharedTimes`, or new memory. Spans are added to the numbers in `memory`."""
        # Doubles are exact for whole numbers up to 2 ** 53, and are read and written in one step.
        memory = memoryview(bytearray(_MEMORY_SIZE)) if memory is None else memory
        self._numbers = memory[:_TALLY_SIZE].cast("d")
        self.numbers = Numbers(memory[_TALLY_SIZE:])
        """The events and gauges of this process."""
        self._lock = threading.Lock()
        self._cpu_seconds_before, self._lock_seconds_before = self._numbers[0], self._numbers[2]

    def add(self, stage: Stage, size: int, seconds: float, cpu_seconds: float, *, times: int = 1) -> None:
        """Add one or several spans of a stage."""
        place, numbers = _PLACES[stage], self._numbers
        with self._lock:
            numbers[place] += times
            numbers[place + 1] += size
            numbers[place + 2] += seconds
            numbers[place + 3] += cpu_seconds

    def add_start(self, start: StartTotals) -> None:
        """Add the start of a pipeline."""
        with self._lock:
            for place, amount in enumerate(start, _STARTS):
                self._numbers[place] += amount

    def note_usage(self) -> None:
        """Save the processor time and the peak memory of this process. Only the process that adds the spans may call this."""
        used = own_usage()
        self._numbers[0] = self._cpu_seconds_before + used.cpu_seconds
        self._numbers[1] = max(self._numbers[1], used.peak_memory)
        self._numbers[2] = self._lock_seconds_before + used.lock_seconds

    def usage(self) -> Usage:
        """Return the usage that was saved last.

        Several processes may have used this memory one after the other. Their processor times are added. The peak
        memory is the largest of all.
        """
        return Usage(self._numbers[0], int(self._numbers[1]), self._numbers[2])

    def passed(self) -> dict[Stage, StageTotals]:
        """Return the totals of each stage that has at least one span."""
        found = {}
        for stage, place in _PLACES.items():
            times, size, seconds, cpu_seconds = self._numbers[place : place + len(StageTotals._fields)]
            if times:
                found[stage] = StageTotals(int(times), int(size), seconds, cpu_seconds)
        return found

    def starts(self) -> StartTotals:
        """Return the totals of the starts of pipelines."""
        counts = len(StartTotals._fields) - 3
        numbers = self._numbers[_STARTS:_NUMBERS].tolist()
        return StartTotals(*map(int, numbers[:counts]), *numbers[counts:])


class SharedTimes:
    """The stage times and numbers of several processes, which are forked after this object is made.

    Each process writes to a place of its own, and can read all places.
    """

    def __init__(self, count: int) -> None:
        memory = memoryview(mmap.mmap(-1, count * _MEMORY_SIZE))
        self._parts = [memory[place * _MEMORY_SIZE : (place + 1) * _MEMORY_SIZE] for place in range(count)]
        self.own = StageTimes()
        """The stage times of this process."""

    def join(self, place: int) -> None:
        """Count the spans of this process at `place`. Another process may have used this place before."""
        self.own = StageTimes(self._parts[place])
        for key in self.own.numbers.all():
            if key[0] in _GAUGES:
                self.own.numbers.set(key, 0.0)
        count_into(self.own)
        count(Event.PROCESS_STARTS)

    def each_process(self) -> list[StageTimes]:
        """Return the stage times of all places. Only read them: each place belongs to another process."""
        return [StageTimes(part) for part in self._parts]


def added(several: list[dict[Stage, StageTotals]]) -> dict[Stage, StageTotals]:
    """Return the sum of several totals, stage by stage."""
    total = {}
    for stage in _STAGES:
        found = [passed[stage] for passed in several if stage in passed]
        if found:
            times, size, seconds, cpu_seconds = map(sum, zip(*found, strict=True))
            total[stage] = StageTotals(times, size, seconds, cpu_seconds)
    return total


def added_starts(several: list[StartTotals]) -> StartTotals:
    """Return the sum of several totals."""
    return StartTotals(*map(sum, zip(*several, strict=True)))


class _Part:
    """The totals of those parts of a span that count for one other stage."""

    __slots__ = ("seconds", "size", "times")

    def __init__(self) -> None:
        self.times = self.size = 0
        self.seconds = 0.0


class _Span:
    """Measures one block of work in a thread."""

    __slots__ = (
        *("_cpu_started", "_cpu_within", "_outer", "_parts", "_size", "_stage", "_stage_times", "_started", "_times", "_within"),
    )

    def __init__(self, stage_times: StageTimes, stage: Stage, size: int, times: int) -> None:
        self._stage_times = stage_times
        self._stage = stage
        self._size = size
        self._times = times
        self._within = self._cpu_within = 0.0
        self._parts: dict[Stage, _Part] = {}

    def add(self, size: int) -> None:
        """Add bytes to the size of the span."""
        self._size += size

    def give(self, which: Stage, size: int, seconds: float, times: int) -> None:
        """Count a part of the span's time for the stage `which`."""
        found = self._parts.get(which)
        if found is None:
            found = self._parts[which] = _Part()
        found.times += times
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
        self._stage_times.add(self._stage, self._size, own_seconds, own_seconds * rate, times=self._times)


class _NoSpan:
    """The span that is used while nothing is counted. It does nothing."""

    def add(self, size: int) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_uncounted = _NoSpan()


class _Thread(threading.local):
    """The open spans of each thread."""

    passage: _Span | None = None
    """The innermost open span of this thread."""

    unlocked: _Unlocked | None = None
    """None until the first call that is measured."""


class _Unlocked:
    """The processor time of one thread in calls of `unlocked`, in nanoseconds."""

    __slots__ = ("nanoseconds",)

    def __init__(self) -> None:
        self.nanoseconds = 0


_each_unlocked: list[_Unlocked] = []
"""That of each thread, also of those that have ended."""
_thread = _Thread()
_stage_times: StageTimes | None = None
_measuring_nanoseconds = 0
"""How much of the time that `_measure_unlocked` measures is its own."""


def count_into(stage_times: StageTimes | None) -> None:
    """Count into `stage_times` from now on, in all threads of this process. None stops counting."""
    global _stage_times, _measuring_nanoseconds  # noqa: PLW0603  # what a process does is the process's
    _stage_times = stage_times
    if stage_times is not None and not _measuring_nanoseconds:
        _measuring_nanoseconds = min(_elapsed_nanoseconds() for _ in range(8))
    measure_unlocked(None if stage_times is None else _measure_unlocked)


def _measure_unlocked(function: Callable[..., Any], args: tuple[Any, ...], times: int = 1) -> Any:
    own, clock = _thread.unlocked, time.thread_time_ns
    if own is None:
        own = _thread.unlocked = _Unlocked()
        _each_unlocked.append(own)
    began = clock()
    try:
        return function(*args)
    finally:
        # Nothing comes between the end of the call and the clock: it would count as time without the lock.
        elapsed = clock() - began
        # The calls that are not measured do not read the clock.
        own.nanoseconds += elapsed + (times - 1) * max(0, elapsed - _measuring_nanoseconds)


def _elapsed_nanoseconds() -> int:
    """Return what is measured of nothing."""
    began = time.thread_time_ns()
    return time.thread_time_ns() - began


def _unlocked_seconds() -> float:
    return sum(each.nanoseconds for each in list(_each_unlocked)) / 1e9


def is_counting() -> bool:
    """Return whether this process counts."""
    return _stage_times is not None


def add_stages(stages: dict[Stage, StageTotals]) -> None:
    """Add what another process has counted for this one, if this one counts."""
    if _stage_times is not None:
        for stage, totals in stages.items():
            _stage_times.add(stage, totals.size, totals.seconds, totals.cpu_seconds, times=totals.times)


def count_start(start: StartTotals) -> None:
    """Count the start of a pipeline, if this process counts."""
    if _stage_times is not None:
        _stage_times.add_start(start)


def count(event: Event, *labels: str, amount: float = 1.0) -> None:
    """Count an event, if this process counts. `amount` is more than 0, or nothing is counted."""
    if _stage_times is not None and amount > 0:
        _stage_times.numbers.add((event, *labels), amount)


def note(what: Gauge, *labels: str, value: float) -> None:
    """Note a gauge of this process, if it counts."""
    if _stage_times is not None:
        _stage_times.numbers.set((what, *labels), value)


def _begin_child() -> None:
    # A forked child does not count for its parent, whose threads may hold the lock of the counter.
    count_into(None)
    for each in _each_unlocked:
        each.nanoseconds = 0


os.register_at_fork(after_in_child=_begin_child)


def span(which: Stage, size: int = 0, *, times: int = 1) -> _Span | _NoSpan:
    """Measure a `with` block as work of the stage `which`. It counts as `times` spans.

    `size` is the number of bytes. If it is known only during the block, call `add` of the span. The block must stay in
    its thread and must not await anything. A block may contain other such blocks.
    """
    return _uncounted if _stage_times is None else _Span(_stage_times, which, size, times)


def part(which: Stage, size: int, seconds: float, *, times: int = 1) -> None:
    """Count the last `seconds` of this thread for the stage `which`, and not for the stage of the open span.

    The processor time of the span is divided in the same ratio. This takes a tenth of the time of a span. Outside a
    span, nothing is counted.
    """
    if _thread.passage is not None:
        _thread.passage.give(which, size, seconds, times)


@contextmanager
def async_span(which: Stage, size: int = 0) -> Iterator[_AsyncSpan]:
    """Measure a block of a coroutine for the stage `which`.

    Processor time is not counted, because other tasks run at the same time.
    """
    awaited = _AsyncSpan(size)
    started = time.perf_counter()
    try:
        yield awaited
    finally:
        if _stage_times is not None:
            _stage_times.add(which, awaited.size, time.perf_counter() - started, 0.0)


class _AsyncSpan:
    """Counts the bytes of a block that `async_span` measures."""

    def __init__(self, size: int) -> None:
        self.size = size

    def add(self, size: int) -> None:
        """Add bytes to the size of the block."""
        self.size += size
