"""A clock for how long something has waited."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_seconds() -> float:
    """Return seconds of a clock that nobody sets, and that goes on while the machine sleeps, if there is one."""
    return time.clock_gettime(_CLOCK)
