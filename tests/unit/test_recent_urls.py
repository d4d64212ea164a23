"""Which URLs a server gives again, and when it forgets them."""

from __future__ import annotations

from filestore.core.digest import chunk_digest
from filestore.http.server.recent_urls import REUSED_SECONDS, URL_SECONDS, RecentFrames, RecentUrls
from filestore.system.clock import elapsed_seconds

DIGESTS = [chunk_digest(b"%d" % number) for number in range(4)]


def signed(seconds_ago: float = 0, *, size: int = 10) -> RecentFrames:
    """A list of so many bytes whose URLs were signed so long ago."""
    return RecentFrames(bytes(size), elapsed_seconds() - seconds_ago + URL_SECONDS)


def test_the_same_frames_of_the_same_namespace_are_found() -> None:
    """Neither others, nor another order, nor those of another namespace."""
    recent = RecentUrls()
    kept = signed()
    recent.keep("a", DIGESTS[:2], kept)
    assert kept is recent.find("a", DIGESTS[:2])
    assert recent.find("b", DIGESTS[:2]) is None
    for others in (DIGESTS[1::-1], DIGESTS[:1], DIGESTS[:3], []):
        assert recent.find("a", others) is None


def test_urls_that_end_soon_are_not_given_again() -> None:
    """A client needs time to use them."""
    recent = RecentUrls()
    recent.keep("a", DIGESTS, signed(REUSED_SECONDS - 30))
    assert recent.find("a", DIGESTS) is not None
    recent.keep("a", DIGESTS, signed(REUSED_SECONDS))
    assert recent.find("a", DIGESTS) is None


def test_the_memory_has_a_limit() -> None:
    """The list that was kept first goes first. One that was kept again counts once."""
    recent = RecentUrls(limit=30)
    for number in (0, 1, 0, 2):
        recent.keep("a", [DIGESTS[number]], signed())
    assert all(recent.find("a", [DIGESTS[number]]) for number in range(3))
    recent.keep("a", [DIGESTS[3]], signed(size=11))
    assert [False, False, True, True] == [recent.find("a", [digest]) is not None for digest in DIGESTS]
    recent.keep("a", DIGESTS, signed(size=31))
    assert recent.find("a", DIGESTS) is None
