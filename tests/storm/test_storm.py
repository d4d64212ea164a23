"""A storm leaves the server alone: each frame leaves it two or three times, however many readers there are."""

from __future__ import annotations

from tests.storm.storm import Storm, simulate


def test_frames_leave_the_server_twice() -> None:
    """Each of the two peers of a frame gets it once, and no reader asks the server."""
    outcome = simulate(Storm(readers=100, chunks=60))
    assert (2, 2, 0) == (outcome.copies, outcome.most_copies, outcome.given_to_readers)


def test_peers_die_meanwhile() -> None:
    """The other peer of a frame gives it, and the next one if both are dead: no frame leaves the server more than three times."""
    outcome = simulate(Storm(readers=100, chunks=60, dying=0.1))
    assert 2 < outcome.copies < 2.2
    assert (3, 0) == (outcome.most_copies, outcome.given_to_readers)


def test_peers_are_full() -> None:
    """Who is refused waits. If all of them asked the server instead, it would have the storm that the peers are there for."""
    outcome = simulate(Storm(readers=60, chunks=30, requests_limit=4))
    assert outcome.refused > 60
    assert (2, 0) == (outcome.copies, outcome.given_to_readers)
