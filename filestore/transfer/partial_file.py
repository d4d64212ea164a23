"""Following: a file that is read while it is fetched, what is waited for first."""

from __future__ import annotations

import asyncio
import os
import threading
from bisect import bisect_right
from collections import deque

from filestore.core.manifest import Manifest


class PartialFile:
    """What of a file is here already. A fetch tells, and asks what is waited for; one reader asks, and waits.

    Made in the event loop of the reader. `begin` and `took` are called in any thread, all others in that loop.
    """

    def __init__(self) -> None:
        self.began = asyncio.Event()
        """Set once the manifest is known, and content may come."""
        self.size = 0
        """Bytes of the file, once it began."""
        self.descriptor = -1
        """The open file that what is here lies in, at its offsets. It is good until `close`."""
        self._loop = asyncio.get_running_loop()
        self._offsets: list[int] = []
        self._present = bytearray()
        self._waiting: dict[int, asyncio.Event] = {}
        self._asked: deque[int] = deque()
        self._is_whole = False
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        self._is_closed = False

    def begin(self, manifest: Manifest, descriptor: int) -> None:
        """What is taken from now on lies in this open file, which stays the caller's. Once more where a fetch starts over."""
        with self._lock:
            # A fetch that was cancelled may be in a thread still.
            if self._is_closed:
                return
            own = os.dup(descriptor)
            self._descriptors.append(own)
        self._loop.call_soon_threadsafe(self._begin, manifest, own)

    def took(self, offset: int) -> None:
        """The chunk at `offset` lies in its place, verified."""
        self._loop.call_soon_threadsafe(self._note, offset)

    def next_asked(self) -> int | None:
        """The offset of a chunk that is waited for, each once; None where nothing is."""
        return self._asked.popleft() if self._asked else None

    def finish(self) -> None:
        """All of it is here."""
        self._is_whole = True
        for event in self._waiting.values():
            event.set()
        self._waiting.clear()

    async def have(self, start: int, stop: int) -> None:
        """Wait until the bytes from `start` to `stop`, which lie in the file, are here. After it began."""
        while missing := self._missing(start, stop):
            events = []
            for place in missing:
                if place not in self._waiting:
                    self._waiting[place] = asyncio.Event()
                    self._asked.append(self._offsets[place])
                events.append(self._waiting[place])
            for event in events:
                await event.wait()

    def close(self) -> None:
        """Give descriptors back. Nobody may read them any more."""
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
        self._offsets = list(manifest.offsets())
        self._present = bytearray(len(self._offsets))
        # What was handed out to a fetch that starts over is lost with it.
        self._asked = deque(self._offsets[place] for place in self._waiting)
        self.began.set()

    def _note(self, offset: int) -> None:
        place = self._place(offset)
        self._present[place] = 1
        event = self._waiting.pop(place, None)
        if event is not None:
            event.set()

    def _missing(self, start: int, stop: int) -> list[int]:
        if self._is_whole or start == stop:
            return []
        return [place for place in range(self._place(start), self._place(stop - 1) + 1) if not self._present[place]]

    def _place(self, offset: int) -> int:
        """The number of the chunk that a byte lies in."""
        return bisect_right(self._offsets, offset) - 1
