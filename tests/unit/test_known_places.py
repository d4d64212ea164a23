"""Which frames a client asks about ahead, and when what it knows counts no more."""

from __future__ import annotations

import time

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http.client.frame_urls import FramePlace, FramePlaces, StoreUrl
from filestore.http.client.known_places import AHEAD, KnownPlaces

DIGESTS = [chunk_digest(b"%d" % number) for number in range(3 * AHEAD)]


def places(count: int, *, seconds: float = 60) -> FramePlaces:
    """Places of so many frames."""
    frames = [FramePlace(number + 1, StoreUrl("http://store.test", f"/{number}")) for number in range(count)]
    return FramePlaces(frames, time.monotonic() + seconds)


def test_the_frames_that_follow_are_those_of_the_manifest() -> None:
    """In its order, and none after its end or after a chunk of another manifest."""
    known = KnownPlaces()
    assert [] == known.following(DIGESTS[0], 3)
    known.note_manifest(Manifest.build([Chunk(digest, 1) for digest in DIGESTS[:10]], chunking_version=CHUNKING_VERSION).encoded)
    assert DIGESTS[1:4] == known.following(DIGESTS[0], 3)
    assert DIGESTS[8:10] == known.following(DIGESTS[7], 100)
    assert [] == known.following(DIGESTS[9], 3)
    assert [] == known.following(DIGESTS[11], 3)
    assert [] == known.following(DIGESTS[0], 0)


def test_a_place_is_given_once() -> None:
    """A second question about the same frame goes to the server, as after a failure."""
    known = KnownPlaces()
    known.add(DIGESTS[:4], places(4))
    found = known.take(DIGESTS[1:3])
    assert found is not None
    assert [2, 3] == [frame.size for frame in found.frames]
    assert known.take(DIGESTS[1:3]) is None
    assert known.take(DIGESTS[3:5]) is None
    assert known.take(DIGESTS[3:4]) is not None


def test_places_that_have_ended_are_not_known() -> None:
    """Their URLs would be refused."""
    known = KnownPlaces()
    known.add(DIGESTS[:4], places(4, seconds=-1))
    assert known.take(DIGESTS[:1]) is None
    known.add(DIGESTS[:4], places(4))
    known.add(DIGESTS[4:6], places(2, seconds=-1))
    assert known.take(DIGESTS[:1]) is None


def test_only_a_few_places_are_known() -> None:
    """A fetch that uses none of them does not make a client grow (I6)."""
    known = KnownPlaces()
    for _ in range(3):
        for start in range(0, len(DIGESTS), AHEAD):
            known.add(DIGESTS[start : start + AHEAD], places(AHEAD))
    assert len(known._places) <= 5 * AHEAD
