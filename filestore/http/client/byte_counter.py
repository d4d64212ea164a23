"""Progress: bytes are counted where they move, and told to the event loop now and then."""

from __future__ import annotations

import asyncio
import time

from filestore.repository.protocol import Moved

TELL_SECONDS = 0.05
"""Between two reports of progress: waking the loop for each piece would cost more than moving it."""


class ByteCounter:
    """Counts bytes in a thread, and tells `moved` of them on the event loop that it was made in."""

    def __init__(self, moved: Moved | None) -> None:
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._count = self._told = 0
        self._tell_at = 0.0
        self._is_settled = False

    def add(self, size: int) -> None:
        """Count `size` bytes; for one thread."""
        self._count += size
        if self._moved is not None and (now := time.monotonic()) >= self._tell_at:
            self._tell_at = now + TELL_SECONDS
            self._loop.call_soon_threadsafe(self._tell)

    def settle(self, count: int) -> None:
        """Tell, once and for all, what is left to tell of `count` bytes; a negative number where more were told. In the loop."""
        self._count = count
        self._tell()
        self._is_settled = True

    def _tell(self) -> None:
        size = self._count - self._told
        if self._moved is not None and size and not self._is_settled:
            self._told += size
            self._moved(size)
