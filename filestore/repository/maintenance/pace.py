"""Limit the speed of background work."""

from __future__ import annotations

import asyncio


class Pace:
    """Limits the bytes per second that one or more tasks read or copy. Without a rate, it limits nothing."""

    def __init__(self, rate: float | None) -> None:
        """`rate` is in bytes per second."""
        self._rate = rate
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes may be moved. An unused second is not saved for later."""
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + size / self._rate
        if start > now:
            await asyncio.sleep(start - now)
