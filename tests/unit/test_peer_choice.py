"""Which peers a client asks for a chunk."""

from __future__ import annotations

from collections import Counter

import pytest

from filestore.core.digest import chunk_digest
from filestore.peers import choice
from filestore.peers.choice import COPIES, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Health, choose
from tests.support.clock import Clock

DIGESTS = [chunk_digest(str(number).encode()) for number in range(2000)]
PEERS = [f"10.0.0.{number}:8600" for number in range(1, 11)]


def sets(peers: list[str], *, client: bytes = b"a client") -> list[frozenset[str]]:
    """The peers of each chunk."""
    return [frozenset(peers[number] for number in each) for each in choose(DIGESTS, peers, client=client)]


def test_all_clients_choose_the_same_peers() -> None:
    """The peers of a chunk depend neither on the client nor on the order in which it knows them."""
    assert sets(PEERS) == sets(PEERS[::-1], client=b"another client")
    assert {COPIES} == {len(each) for each in sets(PEERS)}


def test_chosen_peers_of_known_digests() -> None:
    """Clients of later versions choose the same peers. A change would double what leaves the server during an upgrade."""
    chosen = [sorted(each) for each in sets(PEERS)[:4]]
    assert [
        ["10.0.0.1:8600", "10.0.0.6:8600"],
        ["10.0.0.1:8600", "10.0.0.6:8600"],
        ["10.0.0.10:8600", "10.0.0.6:8600"],
        ["10.0.0.10:8600", "10.0.0.6:8600"],
    ] == chosen


def test_clients_ask_in_different_orders() -> None:
    """For each chunk, about half of the clients ask each of its peers first."""
    first = Counter(choose(DIGESTS[:1], PEERS, client=str(number).encode())[0][0] for number in range(1000))
    assert 2 == len(first)
    assert 400 < min(first.values())


def test_chunks_are_spread_evenly() -> None:
    """Each peer has about the same share of the chunks."""
    counts = Counter(peer for each in sets(PEERS) for peer in each)
    fair = len(DIGESTS) * COPIES / len(PEERS)
    assert PEERS == sorted(counts, key=PEERS.index)
    assert 0.85 * fair < min(counts.values()) <= max(counts.values()) < 1.15 * fair


def test_a_peer_that_goes_changes_only_its_own_chunks() -> None:
    """The other peer of such a chunk stays, and one more takes the place of the one that is gone."""
    gone = PEERS[3]
    for before, after in zip(sets(PEERS), sets([peer for peer in PEERS if peer != gone]), strict=True):
        assert before - {gone} <= after
        assert gone in before or before == after


def test_few_peers() -> None:
    """One peer is the only one of each chunk, and without peers there is nobody to ask."""
    assert [(0,), (0,)] == choose(DIGESTS[:2], PEERS[:1], client=b"")
    assert [(), ()] == choose(DIGESTS[:2], [], client=b"")
    assert [] == choose([], PEERS, client=b"")


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many digests are computed in blocks, with the same result."""
    whole = choose(DIGESTS, PEERS, client=b"x")
    monkeypatch.setattr(choice, "_BLOCK", 37)
    assert whole == choose(DIGESTS, PEERS, client=b"x")


def test_failed_peer_is_left_out_for_longer_each_time() -> None:
    """A peer that fails again is left out for twice the time, up to a limit. One that works again begins from the start."""
    clock = Clock()
    health = Health(clock=clock)
    pauses = []
    for _ in range(10):
        assert health.note_failure("a")
        assert ["b"] == health.working(["a", "b"])
        began = clock.now
        while not health.working(["a"]):
            clock.now += 1.0
        pauses.append(clock.now - began)
    assert [FIRST_PAUSE_SECONDS * 2**number for number in range(6)] == pauses[:6]
    assert LONGEST_PAUSE_SECONDS == pauses[-1]
    health.note_success("a")
    health.note_failure("a")
    clock.now += FIRST_PAUSE_SECONDS
    assert ["a"] == health.working(["a"])


def test_failures_at_the_same_time_count_once() -> None:
    """Several requests that fail together are one failure, and an answer that was under way does not end the pause."""
    clock = Clock()
    health = Health(clock=clock)
    assert [True, False, False] == [health.note_failure("a") for _ in range(3)]
    health.note_success("a")
    assert [] == health.working(["a"])
    clock.now += FIRST_PAUSE_SECONDS
    assert ["a"] == health.working(["a"])


def test_old_failures_are_forgotten() -> None:
    """A peer that failed long ago, and may not be known any more, takes no memory. If it fails again, that is its first time."""
    clock = Clock()
    health = Health(clock=clock)
    health.note_failure("a")
    clock.now += FIRST_PAUSE_SECONDS
    health.note_failure("a")
    clock.now += 2 * LONGEST_PAUSE_SECONDS
    health.note_failure("b")
    health.note_failure("a")
    clock.now += FIRST_PAUSE_SECONDS
    assert ["a", "b"] == health.working(["a", "b"])
