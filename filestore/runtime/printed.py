"""Capture what the code of a pipeline prints: lines from the pipe of its process, in memory that is limited.

A process does one run at a time, so the lines between the begin and the end of a run are its lines. They are kept for
the run, and written to the server's log, each marked with the run and the pipeline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

logger = logging.getLogger("filestore.runtime.printed")

KEPT_SIZE = 256 << 10
"""The first and the last bytes that a run prints are kept, so many of each. The bytes between them are left out."""
LINE_LIMIT = 4096
"""The largest number of bytes in one line. A longer line becomes several."""

_PIECE = 16 << 10
_PIPE_LIMIT = 1 << 20
"""More bytes are never in a pipe, without the rights of an administrator. Source: pipe(7)."""
_LINE_OVERHEAD = 100
_WAIT_SECONDS = 0.01
_QUEUE_LIMIT = 64
_CLOSE_SECONDS = 5.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_HARMFUL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that would move the cursor of a terminal, begin a line of the log, or change the order of letters."""


class Line(NamedTuple):
    """A line that was printed. `time` is in nanoseconds since 1970, UTC."""

    time: int
    text: str


class RunLog:
    """What one run has printed: the first lines, and the last ones. Used in the event loop only."""

    def __init__(self, writer: LogWriter | None = None, *, mark: str = "", kept_size: int = KEPT_SIZE) -> None:
        """`writer` also writes the first lines to the server's log, each behind `mark`."""
        self._writer = writer
        self._mark = mark
        self._kept_size = kept_size
        self._first: list[Line] = []
        self._first_size = 0
        self._last = bytearray()
        self._omitted = 0
        self._is_full = False

    @property
    def is_full(self) -> bool:
        """Whether the first lines are complete. Whatever is printed from now on, only its end is kept."""
        return self._is_full

    @property
    def is_behind(self) -> bool:
        """Whether the server's log has to be written first."""
        return self._writer is not None and self._writer.is_behind

    def add(self, lines: list[bytes]) -> None:
        """Keep complete lines, without their ends."""
        was_full = self._is_full
        now = time.time_ns()
        added = []
        for number, line in enumerate(lines):
            if self._first_size >= self._kept_size:
                self._is_full = True
                self.add_rest(b"".join(rest + b"\n" for rest in lines[number:]))
                break
            self._first_size += len(line) + _LINE_OVERHEAD
            added.append(Line(now, readable_text(line)))
        self._first += added
        if self._writer is not None:
            texts = [f"{self._mark}{line.text}" for line in added]
            if self._is_full and not was_full:
                texts.append(f"{self._mark}it prints more than this log takes; the logs of the run have the end")
            self._writer.write(texts)

    def add_rest(self, piece: bytes) -> None:
        """Keep the end of what is printed after the first lines."""
        self._last += piece
        surplus = len(self._last) - self._kept_size
        if surplus > 0:
            self._omitted += surplus
            del self._last[:surplus]

    def first_lines(self) -> list[Line]:
        """Return the first lines. Later calls return the same ones, and more behind them."""
        return list(self._first)

    def lines(self) -> list[Line]:
        """Return all lines that are kept. If some were left out, a line in their place says so."""
        if not self._last:
            return list(self._first)
        now = time.time_ns()
        rest = bytes(self._last)
        between = []
        if self._omitted:
            between = [Line(now, f"[{self._omitted} bytes are left out here]")]
            rest = rest.partition(b"\n")[2] or rest
        split = [line[-LINE_LIMIT:] for line in rest.removesuffix(b"\n").split(b"\n")]
        return [*self._first, *between, *(Line(now, readable_text(line)) for line in split)]


def readable_text(line: bytes) -> str:
    """Return a printed line as text. Bytes that are not UTF-8, and characters that control a terminal, are escaped.

    Colours are left out. Of a line that a progress bar writes again and again, the last state is returned.
    """
    line = line.removesuffix(b"\r")
    text = line[line.rfind(b"\r") + 1 :].decode(errors="backslashreplace")
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), _COLOURS.sub("", text))


class LogWriter:
    """Writes lines to the server's log in a thread, because whoever reads that log may be slow, or may have stopped."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        # A daemon: a log that nobody reads must not keep the server from its end.
        self._thread = threading.Thread(target=self._write_all, name="filestore-printed", daemon=True)
        self._thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether so much waits that no more should be read from the pipelines."""
        return self._waiting.qsize() >= _QUEUE_LIMIT

    def write(self, texts: list[str]) -> None:
        """Write one line for each text, soon. They are left out while far too much waits."""
        if texts and self._waiting.qsize() < 2 * _QUEUE_LIMIT:
            self._waiting.put(texts)

    def close(self) -> None:
        """Wait a short time until everything is written. Blocks."""
        self._waiting.put(None)
        self._thread.join(timeout=_CLOSE_SECONDS)

    def _write_all(self) -> None:
        while (texts := self._waiting.get()) is not None:
            for text in texts:
                logger.info("%s", text)


class PrintReader:
    """Reads the pipe to which a process prints. Used in the event loop in which it was made."""

    def __init__(self, descriptor: int, log: RunLog) -> None:
        """The reader owns `descriptor`, the end of the pipe to read from. What is printed goes to `log`."""
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._log = log
        self._begun = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read_some)

    @contextmanager
    def into(self, log: RunLog, *, otherwise: RunLog) -> Iterator[None]:
        """Give what is printed during the block to `log`, also what is still in the pipe at the end of the block.

        What is printed after the block goes to `otherwise`.
        """
        self.drain()
        self._log = log
        try:
            yield
        finally:
            self.drain()
            self._log = otherwise

    def drain(self) -> None:
        """Take everything that was printed up to now. A process that prints without end cannot prolong this."""
        taken = 0
        while self._is_open and taken < _PIPE_LIMIT:
            size = self._read()
            if not size:
                break
            taken += size
        if self._begun:
            self._take([bytes(self._begun)])
            self._begun.clear()

    def close(self) -> None:
        """Take what is left in the pipe, and close it. A second call does nothing."""
        if self._is_open:
            self.drain()
            self._stop()
            self._is_open = False
            os.close(self._descriptor)

    def _read_some(self) -> None:
        """Read one piece. A process that prints too much waits: the event loop has other work, and the log its limit."""
        if self._read() is None:
            self._stop()
        elif self._log.is_full or self._log.is_behind:
            self._stop()
            self._timer = self._loop.call_later(_WAIT_SECONDS, self._continue)

    def _continue(self) -> None:
        self._timer = None
        if self._log.is_behind:
            self._timer = self._loop.call_later(_WAIT_SECONDS, self._continue)
        else:
            self._loop.add_reader(self._descriptor, self._read_some)

    def _stop(self) -> None:
        self._loop.remove_reader(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self) -> int | None:
        """Read one piece. Return its size, 0 if the pipe is empty, and None if nothing can print to it any more."""
        try:
            piece = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        if not piece:
            return None
        if self._log.is_full and not self._begun:
            self._log.add_rest(piece)
        else:
            self._split(piece)
        return len(piece)

    def _split(self, piece: bytes) -> None:
        self._begun += piece
        *lines, rest = bytes(self._begun).split(b"\n")
        # Of a line that is written again and again, only the last state is kept.
        rest = rest[max(0, rest.rfind(b"\r", 0, -1)) :]
        while len(rest) > LINE_LIMIT:
            lines.append(rest[:LINE_LIMIT])
            rest = rest[LINE_LIMIT:]
        self._begun = bytearray(rest)
        self._take([line[start : start + LINE_LIMIT] for line in lines for start in range(0, len(line) or 1, LINE_LIMIT)])

    def _take(self, lines: list[bytes]) -> None:
        if lines:
            self._log.add(lines)
