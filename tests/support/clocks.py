"""Run a process whose clock is wrong."""

from __future__ import annotations

from tests.support.daemons import program


def clock_apart(apart: str) -> dict[str, str]:
    """Return the environment of a process whose clock differs by `apart`, such as `+1h`.

    What it measures itself goes on, and the times of files are those of the disk. Skips the test where faketime is missing; in
    CI that is a failure.
    """
    program("faketime")
    return {
        "LD_PRELOAD": "/usr/$LIB/faketime/libfaketime.so.1",
        "FAKETIME": apart,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
