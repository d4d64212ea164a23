"""The frames of one call of `get`, which several peers give at the same time into one buffer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from filestore.core.digest import Digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import InvalidBatch, InvalidFrame
from filestore.format.codec import Decoder, Frame
from filestore.http.client.answers import BatchAnswer
from filestore.repository.protocol import Moved
from filestore.system.threads import per_thread

_decoder = per_thread(Decoder)
_scratch = per_thread(lambda: memoryview(bytearray(CHUNK_LIMIT)))


class Place(NamedTuple):
    """Where a frame is in the buffer."""

    start: int
    size: int
    peer: str
    """The address of the peer that gave it."""


class PeerBatch:
    """The frames that are wanted, and those that have arrived, by their numbers."""

    def __init__(self, digests: Sequence[Digest], buffer: memoryview) -> None:
        self.digests = digests
        self.places: dict[int, Place] = {}
        """The frames that peers gave."""
        self.absent: dict[int, str] = {}
        """The frames that a peer said to be absent, with the address of this peer."""
        self.others: dict[int, memoryview | None] = {}
        """What the server gave."""
        self.lacks_room = False
        """Whether a peer announced more than there was room for."""
        self._buffer = buffer
        self._end = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the whole buffer."""
        return len(self._buffer)

    def claim(self, size: int) -> int | None:
        """Return where the next `size` bytes of the buffer begin, or None if there are fewer. Any thread may call it."""
        with self._lock:
            start, end = self._end, self._end + size
            if end > len(self._buffer):
                self.lacks_room = True
                return None
            self._end = end
            return start

    def part(self, start: int, size: int) -> memoryview:
        """Return a part of the buffer."""
        return self._buffer[start : start + size]

    def room(self) -> memoryview:
        """Return the part of the buffer that nobody has claimed."""
        return self._buffer[self._end :]

    def left(self) -> list[int]:
        """Return the numbers of the frames that have not arrived."""
        return [number for number in range(len(self.digests)) if number not in self.places]

    def compact(self) -> None:
        """Move the frames together, so that all other room is behind them. Nothing may be under way."""
        end = 0
        for number, place in sorted(self.places.items(), key=lambda each: each[1].start):
            if place.start != end:
                self._buffer[end : end + place.size] = self.part(place.start, place.size)
                self.places[number] = place._replace(start=end)
            end += place.size
        self._end = end
        self.lacks_room = False

    def wrong(self) -> list[int]:
        """Return the numbers of the frames that do not decode to their digests. It takes long, so call it in a thread."""
        return [number for number, place in self.places.items() if not self.is_right(self.digests[number], place)]

    def is_right(self, digest: Digest, place: Place) -> bool:
        """Return whether a frame decodes to its digest. Call it in a thread."""
        try:
            _decoder().decode(Frame(digest, self.part(place.start, place.size)), _scratch())
        except InvalidFrame:
            return False
        return True

    def frames(self) -> list[memoryview | None]:
        """Return all frames as parts of the buffer, or what the server gave."""
        places = self.places
        return [
            self.part(places[number].start, places[number].size) if number in places else self.others.get(number)
            for number in range(len(self.digests))
        ]


class PeerAnswer(BatchAnswer):
    """An `AnswerBody` for the part of a batch that one peer gives. It claims its memory when the sizes are known."""

    def __init__(self, location: str, digests: Sequence[Digest], batch: PeerBatch, *, moved: Moved) -> None:
        super().__init__(location, digests, memoryview(b""), moved=moved)
        self._shared = batch
        self._start = 0
        self.lacks_room = False
        """Whether there was not enough room because of what other peers announced, which may be too much."""

    def places(self, peer: str) -> list[Place | None]:
        """Return where the frames are that have arrived whole, in order. None is for an absent one."""
        found: list[Place | None] = []
        start = self._start
        for frame in self.frames():
            found.append(None if frame is None else Place(start, len(frame), peer))
            start += 0 if frame is None else len(frame)
        return found

    def _claim(self, size: int) -> memoryview:
        start = self._shared.claim(size)
        if start is None:
            self.lacks_room = size <= self._shared.size
            raise InvalidBatch(f"{self._location} answered with larger frames than there is room for")
        self._start = start
        return self._shared.part(start, size)
