"""The clock of this machine."""

from __future__ import annotations

import time


def system_now() -> int:
    """Return the time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000
