"""The clocks of this machine."""

from __future__ import annotations

import time

_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def system_now() -> int:
    """Return the time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def elapsed_seconds() -> float:
    """Return seconds of a clock that nobody sets, and that goes on while the machine sleeps, if there is one."""
    return time.clock_gettime(_ELAPSED)
