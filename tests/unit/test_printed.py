"""What a pipeline prints, from a real pipe."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator

import pytest

from filestore.runtime.printed import LINE_LIMIT, Line, LogWriter, PrintReader, RunLog, readable_text

KEPT = 64 << 10


class Pipe:
    """A pipe, and its reader."""

    def __init__(self, log: RunLog) -> None:
        reading, self.writing = os.pipe()
        self.reader = PrintReader(reading, log)

    def print(self, content: bytes) -> None:
        """Print as a process does, which waits where the pipe is full."""
        while content:
            content = content[os.write(self.writing, content[: 16 << 10]) :]
            self.reader.drain()


@pytest.fixture
async def log() -> RunLog:
    """The log of a run."""
    return RunLog(kept_size=KEPT)


@pytest.fixture
async def pipe(log: RunLog) -> AsyncIterator[Pipe]:
    """A pipe whose lines go to `log`."""
    pipe = Pipe(log)
    yield pipe
    pipe.reader.close()
    os.close(pipe.writing)


def texts(log: RunLog) -> list[str]:
    """Return the kept lines."""
    return [line.text for line in log.lines()]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", ""),
        ("größer\t1".encode(), "größer\t1"),
        (b"windows\r", "windows"),
        (b" 1%\r 50%\r100%", "100%"),
        (b"\xff\x00", "\\xff\\x00"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("a\u202eb\u2028c\x85".encode(), "a\\u202eb\\u2028c\\x85"),
    ],
)
def test_a_printed_line_controls_no_terminal(line: bytes, text: str) -> None:
    """Bytes that are not text and control characters are escaped; of a progress bar the last state stays."""
    assert text == readable_text(line)


async def test_lines_go_to_the_run_that_printed_them(pipe: Pipe, log: RunLog) -> None:
    """What is in the pipe when a run ends belongs to that run, also a line without an end."""
    first, between = RunLog(), RunLog()
    os.write(pipe.writing, b"before\n")
    with pipe.reader.into(first, otherwise=between):
        os.write(pipe.writing, b"first\nunended")
    os.write(pipe.writing, b"between\n")
    with pipe.reader.into(log, otherwise=between):
        os.write(pipe.writing, b"second\n")

    assert ["first", "unended"] == texts(first)
    assert ["between"] == texts(between)
    assert ["before", "second"] == texts(log)


async def test_the_loop_reads_lines_as_they_are_printed(pipe: Pipe, log: RunLog) -> None:
    """Nobody has to ask, and a line arrives in pieces."""
    os.write(pipe.writing, b"one\ntw")
    while texts(log) != ["one"]:
        await asyncio.sleep(0)
    os.write(pipe.writing, b"o\n")
    while texts(log) != ["one", "two"]:
        await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"x" * 50 + b"\n", b"\n", b"\x00" * 1000 + b"\n", b"no end", b"50%\r", b"\xff" * LINE_LIMIT])
async def test_a_flood_is_bounded(pipe: Pipe, log: RunLog, line: bytes) -> None:
    """The first and the last bytes are kept, and their size is limited, whatever is printed."""
    pipe.print(line * ((4 << 20) // len(line)))
    pipe.print(b"\nthe end\n")

    assert "the end" == texts(log)[-1]
    assert sum(len(text) for text in texts(log)) < 4 * 3 * KEPT
    assert len(texts(log)) < 2 * KEPT


async def test_the_middle_of_a_flood_is_told_of(pipe: Pipe, log: RunLog) -> None:
    """Its place holds the number of bytes that are left out; the lines around it are whole."""
    for number in range(10_000):
        pipe.print(b"%059d\n" % number)

    found = texts(log)
    (gap,) = [place for place, text in enumerate(found) if "bytes are left out here" in text]
    assert list(range(gap)) == [int(text) for text in found[:gap]]
    assert list(range(10_000))[-len(found) + gap + 1 :] == [int(text) for text in found[gap + 1 :]]


async def test_a_process_that_prints_on_cannot_prolong_the_end(log: RunLog) -> None:
    """A drain takes at most what a pipe can hold."""
    source = os.open("/dev/zero", os.O_RDONLY)
    reader = object.__new__(PrintReader)  # the loop does not watch a device
    reader._descriptor, reader._log, reader._begun, reader._is_open = source, log, bytearray(), True
    reader.drain()
    os.close(source)

    assert log.is_full


async def test_lines_are_in_the_log_of_the_server(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    """Each with its mark. A line cannot begin another line of that log. After the limit one line says so."""
    caplog.set_level(logging.INFO)
    writer = LogWriter()
    marked = RunLog(writer, mark="run_1 pipeline_1: ", kept_size=1000)
    with pipe.reader.into(marked, otherwise=RunLog()):
        pipe.print(b"one\nt\rwo\n\x1b[1mthree\x1b[0m\n")
        pipe.print(b"x\n" * 1000)
    for _ in range(3):
        marked.add([b"more"])
    await asyncio.to_thread(writer.close)

    said = [record.getMessage() for record in caplog.records]
    assert ["run_1 pipeline_1: one", "run_1 pipeline_1: wo", "run_1 pipeline_1: three"] == said[:3]
    assert "run_1 pipeline_1: it prints more than this log takes; the logs of the run have the end" == said[-1]
    assert 1 == sum("prints more" in line for line in said)
    assert len(said) < 20


def test_lines_have_times() -> None:
    """In nanoseconds, in the order of their printing."""
    log = RunLog()
    log.add([b"a"])
    log.add([b"b"])
    first, second = log.lines()

    assert isinstance(first, Line)
    assert 1_700_000_000 * 10**9 < first.time <= second.time
