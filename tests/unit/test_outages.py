"""What the log says of an outage: a line when it begins, a count, and a line when it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from filestore.errors import Busy, DamagedChunk, StorageError
from filestore.http.server.outages import QUIET_SECONDS, Outages


class Time:
    """A clock that a test moves, and what is called later."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function when so many seconds have passed."""
        self._calls.append((self.now + seconds, function))

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while due := [call for call in self._calls if call[0] <= end]:
            call = min(due, key=lambda each: each[0])
            self._calls.remove(call)
            self.now = call[0]
            call[1]()
        self.now = end

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be called."""
        return not self._calls


@pytest.fixture
def time() -> Time:
    """The time of a test."""
    return Time()


@pytest.fixture
def outages(time: Time) -> Outages:
    """The outages of a server at this time."""
    return Outages(clock=lambda: time.now, later=time.later)


def test_an_outage_is_a_few_lines(outages: Outages, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """Of thousands of requests, the caller writes the first one. A line a minute has their number, and so has the last one."""
    written = 0
    for _ in range(1500):
        written += outages.is_first(Busy("the index", "the connection failed"))
        time.pass_seconds(0.1)
    assert 1 == written
    assert 2 == len(caplog.messages)
    assert all("the index: " in line and " requests have failed in " in line for line in caplog.messages)
    time.pass_seconds(2 * QUIET_SECONDS)
    assert "the index: no request fails any more; 1500 failed in 150 s" == caplog.messages[2]
    assert (3, True) == (len(caplog.messages), time.is_idle)
    assert outages.is_first(Busy("the index", "the connection failed"))


def test_each_place_has_its_outage(outages: Outages, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """One of them ends before the other one."""
    for _ in range(2):
        outages.is_first(Busy("the index", "gone"))
        outages.is_first(Busy("the store", "gone"))
    for _ in range(30):
        time.pass_seconds(1)
        outages.is_first(Busy("the store", "gone"))
    assert ["the index: no request fails any more; 2 failed in 0 s"] == caplog.messages
    time.pass_seconds(2 * QUIET_SECONDS)
    assert ["the store: no request fails any more; 32 failed in 30 s"] == caplog.messages[1:]


def test_one_failure_has_no_end(outages: Outages, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A lock that was held for too long once is not reported a second time."""
    assert outages.is_first(Busy("the index", "another process is writing to it"))
    time.pass_seconds(2 * QUIET_SECONDS)
    assert ([], True) == (caplog.messages, time.is_idle)


def test_what_stays_is_written_each_time(outages: Outages) -> None:
    """Damage is not an outage, and each line may name another chunk."""
    for error in (StorageError("the disk", "an error of the device"), DamagedChunk("0" * 64, "its digest is another one")):
        assert [True, True] == [outages.is_first(error) for _ in range(2)]
