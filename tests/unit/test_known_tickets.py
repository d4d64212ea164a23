"""Which tickets a peer accepts, by a clock of the test."""

from __future__ import annotations

import asyncio

import pytest

from filestore.core.tickets import PeerTicket
from filestore.errors import Busy, FilestoreError, Unauthorized, Unreachable
from filestore.peers.tickets import ASK_SECONDS, RENEW_SECONDS, KnownTickets


class Origin:
    """A server that gives tickets, and counts the questions."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.ticket = PeerTicket("new", 3600, PeerTicket("old", 1000))
        self.error: FilestoreError | None = None
        self.known = KnownTickets(self.ask, clock=lambda: self.now)

    async def ask(self) -> PeerTicket:
        """Give the ticket."""
        await asyncio.sleep(0)
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.ticket

    async def accepts(self, ticket: str) -> bool:
        """Whether the peer accepts a ticket."""
        return await self.known.accepts(f"Bearer {ticket}")


async def test_a_ticket_is_accepted_until_it_expires() -> None:
    """The ticket of the period before is one too, and others are not."""
    origin = Origin()
    assert [True, True, False] == [await origin.accepts(ticket) for ticket in ("new", "old", "other")]
    assert [False] * 4 == [await origin.known.accepts(text) for text in (None, "", "new", "Basic new")]
    origin.error = Unreachable("http://server", "refused")
    origin.now = 1000
    assert await origin.accepts("new")
    with pytest.raises(Busy):
        await origin.accepts("old")
    await origin.known.close()


async def test_unknown_tickets_ask_the_server_once_in_five_seconds() -> None:
    """Also if many come at once."""
    origin = Origin()
    assert [False] * 50 == await asyncio.gather(*(origin.accepts(f"guess-{number}") for number in range(50)))
    assert 1 == origin.asked
    origin.now = ASK_SECONDS - 0.1
    assert not await origin.accepts("newer")
    origin.ticket = PeerTicket("newer", 3600)
    origin.now = ASK_SECONDS
    assert await origin.accepts("newer")
    assert 2 == origin.asked


async def test_a_ticket_of_a_key_that_was_changed_ends() -> None:
    """Known tickets are renewed in the background, and those that the server does not name any more are forgotten."""
    origin = Origin()
    assert await origin.accepts("new")
    origin.ticket = PeerTicket("of the new key", 3600)
    origin.now = RENEW_SECONDS
    assert await origin.accepts("new")
    while origin.asked < 2:
        await asyncio.sleep(0)
    assert await origin.accepts("of the new key")
    assert not await origin.accepts("new")


async def test_a_peer_whose_token_was_removed_accepts_nothing() -> None:
    """Nobody waits for it: it refuses, as a peer of another server does."""
    origin = Origin()
    assert await origin.accepts("new")
    origin.error, origin.now = Unauthorized("the server"), RENEW_SECONDS
    assert await origin.accepts("new")
    while origin.asked < 2:
        await asyncio.sleep(0)
    assert not await origin.accepts("new")
    origin.error, origin.now = None, RENEW_SECONDS + ASK_SECONDS
    assert await origin.accepts("new")


async def test_the_server_cannot_be_asked() -> None:
    """Then nobody knows whether a ticket is right. Known ones are right until they expire."""
    origin = Origin()
    origin.error = Unreachable("http://server", "refused")
    with pytest.raises(Busy):
        await origin.accepts("new")
    origin.error, origin.now = None, ASK_SECONDS
    assert await origin.accepts("new")
