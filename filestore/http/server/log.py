"""The log of server processes. Nobody may read it: then its pipe is full, and a write to it would stop the process.

An event loop hands records to a thread, which writes them. The process that starts workers may have no threads, so it
leaves out what cannot be written at once. Lines that are left out are counted, and the count is written when there is
room again.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler

from filestore.errors import redact_secrets

FORMAT = "%(asctime)s %(process)d %(levelname)s %(message)s"
WAITING_LIMIT = 1000
"""The most records that wait for the thread."""
CLOSE_SECONDS = 2.0
"""How long the end of a process waits for the log."""

_WHOLE = 4096
"""A pipe that can be written to takes so many bytes at once. Source: pipe(7), PIPE_BUF."""


class RedactingFormatter(logging.Formatter):
    """Formats a record, and leaves out the signatures of signed URLs and the tokens in it, also in tracebacks.

    Who reads the log must not be able to use them.
    """

    def format(self, record: logging.LogRecord) -> str:
        return redact_secrets(super().format(record))


class DirectHandler(logging.Handler):
    """Writes to standard error at once, or not at all. It takes no lock that the end of the process needs."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(RedactingFormatter(FORMAT))
        self.left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001  # as in the handlers of the library
            self.handleError(record)
            return
        if self.left_out and write_if_possible(left_out_line(self.left_out)):
            self.left_out = 0
        if self.left_out or not write_if_possible(text):
            self.left_out += 1


class WaitingHandler(QueueHandler):
    """Hands records to a thread, and counts those that do not fit into its queue."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(WAITING_LIMIT)
        super().__init__(self._waiting)
        self.setFormatter(RedactingFormatter(FORMAT))
        self._direct = DirectHandler()
        self._process = os.getpid()
        self._left_out = 0
        # A daemon: a log that nobody reads must not keep the process from its end.
        self._thread = threading.Thread(target=self._write_all, name="filestore-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._process:
            # A child of a fork, which has no such thread.
            self._direct.emit(record)
        else:
            super().emit(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            # Under the lock of the handler.
            self._left_out += 1

    def finish(self) -> None:
        """Wait a short time until everything is written. Blocks."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(timeout=CLOSE_SECONDS)

    def _write_all(self) -> None:
        while (record := self._waiting.get()) is not None:
            write(record.getMessage())
            self._tell_left_out()
        self._tell_left_out()

    def _tell_left_out(self) -> None:
        if not self._left_out or not self._waiting.empty():
            return
        # The lock is not held during the write, because every writer of a record needs it.
        self.acquire()
        count, self._left_out = self._left_out, 0
        self.release()
        write(left_out_line(count))


def left_out_line(count: int) -> str:
    """Return the line about lines that were left out."""
    return f"{os.getpid()} WARNING {count} lines of this log were left out, because nobody read it"


def write(text: str) -> None:
    """Write a line to standard error, and wait as long as its reader does not read."""
    data = _encoded(text)
    with suppress(OSError):
        while data:
            data = data[os.write(_descriptor(), data) :]


def write_if_possible(text: str) -> bool:
    """Write a line to standard error if its reader has room for it now. Return whether it was written or is useless."""
    try:
        poll = select.poll()
        poll.register(_descriptor(), select.POLLOUT)
        if not any(event & (select.POLLOUT | select.POLLERR) for _, event in poll.poll(0)):
            return False
        os.write(_descriptor(), _encoded(text)[-_WHOLE:])
    except OSError:
        pass  # nobody can read it any more
    return True


@contextmanager
def log_by_thread() -> Iterator[None]:
    """Let a thread write the log during the block, in which an event loop runs."""
    root = logging.getLogger()
    before = root.handlers[:]
    ours = [handler for handler in before if isinstance(handler, DirectHandler)]
    if not ours:
        yield  # the program that serves has a log of its own
        return
    waiting = WaitingHandler()
    root.handlers[:] = [handler for handler in before if handler not in ours] + [waiting]
    try:
        yield
    finally:
        root.handlers[:] = before
        waiting.finish()


def _descriptor() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode(errors="backslashreplace")
