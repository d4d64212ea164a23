"""Write lines about requests in a thread. A disk that is full, slow or gone never delays or fails a request.

Lines wait in a queue. When it is full, lines are left out, and counted. The count is written as a line as soon as that is
possible. A line costs the event loop less than a microsecond; the thread formats and writes many at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Protocol, Self

from filestore.http.server.log import CLOSE_SECONDS, write
from filestore.http.server.request_record import RequestRecord
from filestore.system.metrics import Event, count

logger = logging.getLogger("filestore.server")

WAITING_LIMIT = 10_000
"""The most lines that wait for the thread. They take about 10 MB (I6)."""
BATCH_LIMIT = 1000
"""The most lines of one write."""
COLLECT_SECONDS = 0.05
"""How long the thread waits for more lines before a write."""
RETRY_SECONDS = 1.0
"""The time between two attempts to write where it fails."""


class Sink(Protocol):
    """Takes lines. Its methods block."""

    def append(self, lines: Sequence[bytes]) -> int:
        """Write the first of `lines`, as many as possible. Return their number. Raises OSError."""

    def close(self) -> None:
        """Write nothing more."""


class StandardError:
    """Takes lines for standard error, and waits until somebody reads them."""

    def append(self, lines: Sequence[bytes]) -> int:
        """Write the lines one by one: a pipe takes no more than one at once."""
        for line in lines:
            write(line.decode().removesuffix("\n"))
        return len(lines)

    def close(self) -> None:
        """Do nothing: other lines follow."""


class LogWriter:
    """Hand the records of requests to a thread, which writes a line for each. For one event loop."""

    def __init__(
        self,
        sink: Sink,
        *,
        name: str,
        line: Callable[[RequestRecord], str],
        left_out_line: Callable[[int], str],
        waiting_limit: int = WAITING_LIMIT,
        retry_seconds: float = RETRY_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        """`name` is a word for the log. `left_out_line` returns the line that says how many are left out."""
        self.left_out = 0
        """How many lines are left out so far."""
        self._sink = sink
        self._name = name
        self._line = line
        self._left_out_line = left_out_line
        self._waiting_limit = waiting_limit
        self._retry_seconds = retry_seconds
        self._close_seconds = close_seconds
        self._told = self._written = 0
        self._is_failing = False
        self._waiting: SimpleQueue[RequestRecord | None] = SimpleQueue()
        self._ending = threading.Event()
        # A daemon: a disk that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._write_all, name=f"filestore-{name}", daemon=True)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Write during the block. Its end blocks until everything is written, or nothing was for a short time."""
        self._thread.start()
        try:
            yield self
        finally:
            self._waiting.put(None)
            self._ending.set()
            before = -1
            while self._thread.is_alive() and before != self._written:
                before = self._written
                self._thread.join(self._close_seconds)
            if self._thread.is_alive():
                logger.warning("the last %d lines of the %s log were not written in time", self._waiting.qsize() - 1, self._name)

    def add(self, record: RequestRecord) -> None:
        """Write a line about a request soon, or leave it out. Nothing may change the record from now on."""
        if self._waiting.qsize() >= self._waiting_limit:
            self.leave_out()
        else:
            self._waiting.put(record)

    def leave_out(self) -> None:
        """Count a line that is left out."""
        self.left_out += 1
        count(Event.LOG_LINES_LEFT_OUT, self._name)

    def _write_all(self) -> None:
        while (records := self._next_records()) or self.left_out > self._told:
            left_out = self.left_out - self._told
            lines = [f"{self._line(record)}\n".encode() for record in records]
            if left_out:
                lines.append(f"{self._left_out_line(left_out)}\n".encode())
            if not self._write(lines):
                break
            self._told += left_out
        self._sink.close()

    def _next_records(self) -> list[RequestRecord]:
        """Wait for records. Return some of them, or none at the end."""
        records = []
        timeout = None if self.left_out == self._told else 0.0
        try:
            record = self._waiting.get(timeout=timeout)
            if record is not None:
                records.append(record)
                self._ending.wait(COLLECT_SECONDS)
            while len(records) < BATCH_LIMIT and record is not None:
                record = self._waiting.get_nowait()
                if record is not None:
                    records.append(record)
            if record is None:
                self._waiting.put(None)  # for the next call
        except Empty:
            pass
        return records

    def _write(self, lines: list[bytes]) -> bool:
        """Write lines, as often as it takes. Return False if the process ends before that."""
        while lines:
            is_last = self._ending.is_set()
            try:
                written = self._sink.append(lines)
                del lines[:written]
                self._written += written
            except OSError as error:
                self._note_failure(error)
                if is_last:
                    lost = len(lines) + self._waiting.qsize() - 1  # without the mark of the end
                    logger.error("the %s log cannot be written, and about %d lines are lost", self._name, lost)  # noqa: TRY400  # expected
                    return False
                self._ending.wait(self._retry_seconds)
        if self._is_failing:
            self._is_failing = False
            logger.warning("the %s log is written again", self._name)
        return True

    def _note_failure(self, error: OSError) -> None:
        if not self._is_failing:
            logger.warning(
                "the %s log cannot be written: %s; up to %d lines wait, and further ones are left out",
                *(self._name, error.strerror or error, self._waiting_limit),
            )
        self._is_failing = True
