"""How often a failure of repeated work is logged, by a clock of the test."""

from __future__ import annotations

import pytest

from filestore.errors import StorageFull
from filestore.http.server.errors import FailureLog

FAILURE = StorageFull("the folder", "no room")


def test_it_is_logged_again_after_a_success(caplog: pytest.LogCaptureFixture) -> None:
    """And not for each failure."""
    log = FailureLog("work cannot be done")
    for _ in range(2):
        log.failed(FAILURE)
        log.failed(FAILURE)
        log.succeeded()
    assert 2 == len(caplog.records)


def test_successes_between_failures_are_no_end(caplog: pytest.LogCaptureFixture) -> None:
    """Small frames find room on a disk that is full for large ones."""
    now = [0.0]
    log = FailureLog("work cannot be done", quiet_seconds=60, clock=lambda: now[0])
    for _ in range(100):
        log.failed(FAILURE)
        now[0] += 50
        log.succeeded()
    assert 1 == len(caplog.records)
    now[0] += 10
    log.succeeded()
    log.failed(FAILURE)
    assert 2 == len(caplog.records)
