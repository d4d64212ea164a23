from __future__ import annotations

from typing import Any

import pytest

from filestore.core.signing import SigningKeys
from filestore.core.tickets import OVERLAP_SECONDS, PERIOD_SECONDS, make_ticket, ticket_as_json, ticket_from_json

KEYS = SigningKeys.first(b"s" * 32)
BEGINS = 750_000 * PERIOD_SECONDS


@pytest.mark.parametrize("passed", [0, 1, OVERLAP_SECONDS, PERIOD_SECONDS - 1])
def test_a_ticket_is_the_same_for_a_period_and_valid_for_twenty_minutes_to_an_hour(passed: int) -> None:
    """The same one for all who ask."""
    ticket = make_ticket(KEYS, "team", now=BEGINS + passed)
    assert ticket.ticket == make_ticket(KEYS, "team", now=BEGINS).ticket
    assert 1200 < ticket.expires_in <= 3600


def test_the_ticket_of_the_period_before_is_named_while_it_is_valid() -> None:
    """A client may have it when a peer starts."""
    earlier = make_ticket(KEYS, "team", now=BEGINS - 1)
    at_once = make_ticket(KEYS, "team", now=BEGINS)
    assert earlier.ticket != at_once.ticket
    assert at_once.earlier is not None
    assert (earlier.ticket, OVERLAP_SECONDS) == at_once.earlier[:2]
    assert make_ticket(KEYS, "team", now=BEGINS + OVERLAP_SECONDS).earlier is None


def test_a_ticket_is_of_one_namespace_and_one_key() -> None:
    """A peer gives nothing for the tickets of others."""
    others = [
        make_ticket(KEYS, "other", now=BEGINS),
        make_ticket(KEYS.rotated(b"n" * 32, now=BEGINS, until=BEGINS + 9), "team", now=BEGINS),
        make_ticket(SigningKeys.first(b"o" * 32), "team", now=BEGINS),
        make_ticket(KEYS, "team", now=BEGINS + PERIOD_SECONDS),
        make_ticket(KEYS, "team", now=BEGINS),
    ]
    assert len(others) == len({ticket.ticket for ticket in others})


def test_a_ticket_is_not_shown() -> None:
    """It is a secret."""
    assert "peer-ticket" not in repr(make_ticket(KEYS, "team", now=BEGINS))


def test_a_ticket_returns_from_its_json_form() -> None:
    """With the one before it, and without."""
    for passed in (0, OVERLAP_SECONDS):
        ticket = make_ticket(KEYS, "team", now=BEGINS + passed)
        assert ticket == ticket_from_json(ticket_as_json(ticket))


@pytest.mark.parametrize(
    "changed",
    [
        {"ticket": 1},
        {"ticket": ""},
        {"ticket": "a b"},
        {"ticket": "a\r\nb"},
        {"ticket": "a" * 201},
        {"expires_in": 0},
        {"expires_in": True},
        {"expires_in": float("nan")},
        {"expires_in": 3601},
        {"earlier": []},
        {"earlier": {"ticket": "a"}},
    ],
)
def test_what_a_server_says_about_a_ticket_is_checked(changed: dict[str, Any]) -> None:
    """I4: a ticket goes into the head of a request."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        ticket_from_json({"ticket": "a", "expires_in": 1, **changed})
