"""A file that is read while it is fetched. The parts that its reader waits for are fetched first."""

from __future__ import annotations

import asyncio
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from filestore.core.manifest import Manifest

_ASKED_TOGETHER = 4096
"""The most chunks that a reader waits for at a time."""


class PartialFile:
    """Track which chunks of a file have arrived, and which chunks its reader waits for.

    A fetch notes the chunks that arrived, and asks which chunks to fetch next. One reader waits for parts of the file.

    Make it in the event loop of the reader. `begin` and `took` may be called in any thread, all other methods only in
    that loop.
    """

    def __init__(self) -> None:
        self.began = asyncio.Event()
        """An event that is set as soon as the manifest is known and content may arrive."""
        self.size = 0
        """Bytes of the file. It is 0 until `began` is set."""
        self.descriptor = -1
        """The open file that has the chunks that arrived, at their offsets. It is valid until `close`. It is -1 until
        `began` is set.
        """
        self._loop = asyncio.get_running_loop()
        self._offsets: Sequence[int] = ()
        self._present = bytearray()
        self._took: deque[int] = deque()
        """Offsets that a thread has noted, and the event loop has not taken yet."""
        self._waiting: dict[int, asyncio.Event] = {}
        self._asked: deque[int] = deque()
        self._is_whole = False
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        self._is_closed = False

    def begin(self, manifest: Manifest, descriptor: int) -> None:
        """Set the open file to which chunks are written from now on. A fetch that starts over calls this again.

        The caller keeps its `descriptor`: this object uses a duplicate.
        """
        with self._lock:
            # A fetch that was cancelled may still run in a thread.
            if self._is_closed:
                return
            own = os.dup(descriptor)
            self._descriptors.append(own)
            # What an earlier fetch has noted is of no use to this one.
            self._took = deque()
        self._loop.call_soon_threadsafe(self._begin, manifest, own)

    def took(self, offset: int) -> None:
        """Note that the chunk at `offset` was verified and written."""
        with self._lock:
            self._took.append(offset)
            # The event loop is told once for many chunks: its queue would grow faster than it can take tiny ones.
            if len(self._took) == 1:
                self._loop.call_soon_threadsafe(self._note_all, self._took)

    def next_asked(self) -> int | None:
        """Return the offset of the next chunk that the reader waits for. Each offset is returned once.

        Return None if there are no more such chunks.
        """
        return self._asked.popleft() if self._asked else None

    def finish(self) -> None:
        """Note that the whole file has arrived."""
        self._is_whole = True
        for event in self._waiting.values():
            event.set()
        self._waiting.clear()

    async def have(self, start: int, stop: int) -> None:
        """Wait until the bytes from `start` up to `stop` have arrived.

        Call it after `began` is set, with a range inside the file.
        """
        while missing := self._missing(start, stop):
            for place in missing:
                if place not in self._waiting:
                    self._waiting[place] = asyncio.Event()
                    self._asked.append(self._offsets[place])
            for event in [self._waiting[place] for place in missing]:
                await event.wait()

    def close(self) -> None:
        """Close the descriptors. They must not be used after this."""
        with self._lock:
            self._is_closed = True
            descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)
        self.descriptor = -1

    def _begin(self, manifest: Manifest, descriptor: int) -> None:
        if self._is_closed:
            return
        self.descriptor = descriptor
        self.size = manifest.size
        self._offsets = manifest.offset_table()
        self._present = bytearray(len(self._offsets))
        # A fetch that starts over has lost the chunks that it was asked for, so they are asked for again.
        self._asked = deque(self._offsets[place] for place in self._waiting)
        self.began.set()

    def _note_all(self, took: deque[int]) -> None:
        with self._lock:
            offsets = list(took)
            took.clear()
        for offset in offsets:
            place = self._place(offset)
            self._present[place] = 1
            event = self._waiting.pop(place, None)
            if event is not None:
                event.set()

    def _missing(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the first chunks that are missing in a range, at most `_ASKED_TOGETHER`."""
        missing: list[int] = []
        if self._is_whole or start == stop:
            return missing
        end = self._place(stop - 1) + 1
        place = self._present.find(0, self._place(start), end)
        while place >= 0 and len(missing) < _ASKED_TOGETHER:
            missing.append(place)
            place = self._present.find(0, place + 1, end)
        return missing

    def _place(self, offset: int) -> int:
        """Return the number of the chunk that contains a byte."""
        return bisect_right(self._offsets, offset) - 1
