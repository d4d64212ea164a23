"""Remember where frames are that a fetch will soon ask for, so that not each batch costs the server a request."""

from __future__ import annotations

import time
from collections.abc import Sequence

from filestore.core.digest import DIGEST_AND_NUMBER, DIGEST_SIZE, Digest
from filestore.core.manifest import HEADER_SIZE
from filestore.http.client.frame_urls import FramePlace, FramePlaces

AHEAD = 1024
"""How many frames a server is asked about at a time, which is as many URLs as it gives. They have about 450 KB."""
_KNOWN_LIMIT = 2 * AHEAD
_MANIFEST_LIMIT = 8 << 20
"""Bytes of the largest manifest that is kept for its order: that of a file of about 200 GB."""


class KnownPlaces:
    """The places that are known, and the order of the chunks of the manifest that was read last."""

    def __init__(self) -> None:
        self._places: dict[Digest, FramePlace] = {}
        self._end = 0.0
        self._entries = b""

    def note_manifest(self, encoded: bytes) -> None:
        """Take over the order of a manifest, whose chunks are probably asked for next."""
        self._entries = encoded[HEADER_SIZE:] if len(encoded) <= _MANIFEST_LIMIT else b""

    def following(self, digest: Digest, count: int) -> list[Digest]:
        """Return up to `count` digests that follow a chunk in the manifest. None follow if it is in another one."""
        place = -1
        while True:
            place = self._entries.find(digest, place + 1)
            if place < 0:
                return []
            if place % DIGEST_AND_NUMBER.size == 0:
                break
        start = place + DIGEST_AND_NUMBER.size
        stop = min(len(self._entries), start + count * DIGEST_AND_NUMBER.size)
        return [Digest(self._entries[at : at + DIGEST_SIZE]) for at in range(start, stop, DIGEST_AND_NUMBER.size)]

    def add(self, digests: Sequence[Digest], places: FramePlaces) -> None:
        """Remember the places of these digests."""
        if len(self._places) > _KNOWN_LIMIT or self._end < time.monotonic():
            self._places.clear()
        self._end = min(places.end, self._end) if self._places else places.end
        self._places.update(zip(digests, places.frames, strict=True))

    def take(self, digests: Sequence[Digest]) -> FramePlaces | None:
        """Return the places of these digests, and forget them. Return None if one of them is not known, or has ended."""
        if self._end < time.monotonic() or not all(digest in self._places for digest in digests):
            return None
        found = FramePlaces([self._places[digest] for digest in digests], self._end)
        for digest in digests:
            self._places.pop(digest, None)
        return found
