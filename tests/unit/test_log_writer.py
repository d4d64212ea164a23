"""Lines are written in a thread. Whatever the disk does, nobody waits for it, and what is left out is counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence

import pytest

from filestore.http.server.log_writer import LogWriter
from filestore.http.server.request_record import RequestRecord
from filestore.system.metrics import Event, StageTimes, count_into
from tests.support.server import SECONDS

WAITING = 10


class Disk:
    """A disk that a test makes slow, full or whole again."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.attempts = 0
        self.is_full = False
        self.takes = 1000
        """How many lines it takes in one write."""
        self.free = threading.Event()
        """While it is not set, a write hangs."""
        self.free.set()
        self.began = threading.Semaphore(0)

    def append(self, lines: Sequence[bytes]) -> int:
        """Take lines."""
        self.attempts += 1
        self.began.release()
        self.free.wait(SECONDS)
        if self.is_full:
            raise OSError(28, "No space left on device")
        taken = [line.decode() for line in lines[: self.takes]]
        self.lines += taken
        return len(taken)

    def close(self) -> None:
        """Note the end."""
        self.lines.append("closed")

    @property
    def ids(self) -> list[int]:
        """The ids of all lines about requests, in their order."""
        return [int(line) for line in self.lines if line.strip().isdigit()]

    @property
    def left_out(self) -> int:
        """How many lines are said to be left out."""
        return sum(json.loads(line)["left_out"] for line in self.lines if line.startswith("{"))


@pytest.fixture
def counted() -> Iterator[StageTimes]:
    """Yield what this process counts."""
    stage_times = StageTimes()
    count_into(stage_times)
    yield stage_times
    count_into(None)


def writer(disk: Disk, *, waiting_limit: int = WAITING, close_seconds: float = SECONDS) -> LogWriter:
    """Return a writer whose lines are the ids of requests."""
    return LogWriter(
        disk,
        name="access",
        line=lambda record: record.id,
        left_out_line=lambda count: json.dumps({"left_out": count}),
        waiting_limit=waiting_limit,
        retry_seconds=0.001,
        close_seconds=close_seconds,
    )


def add(log: LogWriter, *numbers: int) -> None:
    """Add lines about requests with these ids."""
    for number in numbers:
        log.add(RequestRecord(str(number), "GET", "/", "127.0.0.1"))


def test_lines_keep_their_order() -> None:
    """All are written before the end, also if the disk takes a few at a time."""
    disk = Disk()
    disk.takes = 3
    with writer(disk, waiting_limit=5000).running() as log:
        add(log, *range(2500))
    assert list(range(2500)) == disk.ids
    assert 0 == disk.left_out
    assert "closed" == disk.lines[-1]


def test_a_disk_that_hangs_delays_nobody() -> None:
    """Lines wait up to a limit. Further ones are left out, and their number is written when the disk goes on."""
    disk = Disk()
    disk.free.clear()
    with writer(disk).running() as log:
        add(log, 0)
        assert disk.began.acquire(timeout=SECONDS)
        add(log, *range(1, 31))
        assert 30 - WAITING == log.left_out
        disk.free.set()
    assert list(range(WAITING + 1)) == disk.ids
    assert 30 - WAITING == disk.left_out


def test_a_disk_that_hangs_does_not_keep_a_process_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """The log of the server says that lines are missing."""
    disk = Disk()
    disk.free.clear()
    with writer(disk, close_seconds=0.01).running() as log:
        add(log, 0)
        assert disk.began.acquire(timeout=SECONDS)
    assert "lines of the access log were not written in time" in caplog.text
    disk.free.set()


def test_lines_wait_for_a_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    """No line that waits is lost. The log of the server says once that it fails, and once that it works again."""
    disk = Disk()
    disk.is_full = True
    with writer(disk).running() as log:
        add(log, 0, 1)
        for _ in range(3):
            assert disk.began.acquire(timeout=SECONDS)
        disk.is_full = False
    assert [0, 1] == disk.ids
    assert 1 == caplog.text.count("the access log cannot be written: No space left on device")
    assert 1 == caplog.text.count("the access log is written again")


def test_lines_that_cannot_be_written_at_the_end_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The process does not wait for the disk."""
    disk = Disk()
    disk.is_full = True
    with writer(disk).running() as log:
        add(log, 0, 1)
    assert "the access log cannot be written, and about 2 lines are lost" in caplog.text


def test_lines_that_others_leave_out_are_counted(counted: StageTimes) -> None:
    """They are told with the next line, or at the end. The metrics have their number."""
    disk = Disk()
    with writer(disk).running() as log:
        log.leave_out()
        add(log, 0)
        log.leave_out()
    assert ([0], 2) == (disk.ids, disk.left_out)
    assert 2.0 == counted.numbers.all()[Event.LOG_LINES_LEFT_OUT, "access"]
