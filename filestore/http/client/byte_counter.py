"""Report the progress of a batch. Bytes are counted in the thread that moves them, and reported in the event loop."""

from __future__ import annotations

import asyncio
import time

from filestore.repository.protocol import Moved

TELL_SECONDS = 0.05
"""Time between two reports, and before the first one. Waking the event loop for each piece would cost more than moving it."""


class ByteCounter:
    """Count bytes in a thread, and call `moved` with the numbers in the event loop.

    This is the event loop that was running when the object was made.
    """

    def __init__(self, moved: Moved | None) -> None:
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._count = self._told = 0
        self._tell_at = time.monotonic() + TELL_SECONDS
        self._is_settled = False

    def add(self, size: int) -> None:
        """Count `size` bytes. One thread at a time may call it."""
        self._count += size
        if self._moved is not None and (now := time.monotonic()) >= self._tell_at:
            self._tell_at = now + TELL_SECONDS
            self._loop.call_soon_threadsafe(self._tell)

    def settle(self, count: int) -> None:
        """Make the last report, so that all reports together add up to `count` bytes.

        The reported number is negative if too many bytes were reported before. Call it in the event loop.
        """
        self._count = count
        self._tell()
        self._is_settled = True

    def _tell(self) -> None:
        size = self._count - self._told
        if self._moved is not None and size and not self._is_settled:
            self._told += size
            self._moved(size)
