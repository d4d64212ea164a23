"""Tickets of peers: what a client shows to a cache on another machine, which gives it frames of one namespace.

The servers of a repository make a ticket from the namespace, a time, and the key that signs URLs:

    peer-ticket-EXPIRES-SIGNATURE

It is the same for everybody who may read the namespace. So a peer needs no key: it compares a ticket with those that it was
given itself for its own token. A new ticket is made every 40 minutes, and each is valid for an hour from then on.

Source: RFC 2104 (HMAC), with SHA-256.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from filestore.core.signing import SigningKeys, sign

PERIOD_SECONDS = 2400
"""How long the same ticket is given. The periods begin at the same times at all servers: at multiples of it since 1970."""
OVERLAP_SECONDS = 1200
"""For how long a ticket is valid after its period: at least so long after it was given."""


_TEXT = re.compile(r"[!-~]{1,200}")


class PeerTicket(NamedTuple):
    """A ticket. It is a secret: whoever has it can read frames at peers until it expires."""

    ticket: str
    expires_in: float
    """Seconds."""
    earlier: PeerTicket | None = None
    """The ticket of the period before, if it is valid still: other clients may have it."""

    def __repr__(self) -> str:
        return f"PeerTicket(expires_in={self.expires_in!r})"


def make_ticket(keys: SigningKeys, namespace: str, *, now: float) -> PeerTicket:
    """Return the ticket that is given at the time `now`, in seconds since 1970. It is valid for 20 to 60 minutes."""
    begins = int(now // PERIOD_SECONDS) * PERIOD_SECONDS
    earlier = _ticket(keys, namespace, begins - PERIOD_SECONDS, now)
    return _ticket(keys, namespace, begins, now)._replace(earlier=earlier if earlier.expires_in > 0 else None)


def _ticket(keys: SigningKeys, namespace: str, begins: int, now: float) -> PeerTicket:
    expires_at = begins + PERIOD_SECONDS + OVERLAP_SECONDS
    signature = sign(keys.current.secret, "peer ticket", namespace, expires_at=expires_at)
    return PeerTicket(f"peer-ticket-{expires_at}-{signature}", expires_at - now)


def ticket_as_json(ticket: PeerTicket) -> dict[str, Any]:
    """Return the form in which it is sent. `ticket_from_json` is the inverse."""
    earlier = None if ticket.earlier is None else ticket_as_json(ticket.earlier)
    return {"ticket": ticket.ticket, "expires_in": ticket.expires_in, **({} if earlier is None else {"earlier": earlier})}


def ticket_from_json(values: dict[str, Any]) -> PeerTicket:
    """Make a `PeerTicket` from its JSON form. Raises KeyError, TypeError, ValueError."""
    earlier = values.get("earlier")
    return _parsed(values)._replace(earlier=None if earlier is None else _parsed(earlier))


def _parsed(values: dict[str, Any]) -> PeerTicket:
    text, seconds = values["ticket"], values["expires_in"]
    if type(text) is not str or not _TEXT.fullmatch(text):
        raise ValueError("a ticket is not a text")
    if type(seconds) not in {int, float} or not 0 < seconds <= PERIOD_SECONDS + OVERLAP_SECONDS:
        raise ValueError("the time of a ticket is not a number of seconds")
    return PeerTicket(text, float(seconds))
