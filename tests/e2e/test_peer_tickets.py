"""Tickets of peers, as servers give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from filestore.core.tickets import PeerTicket
from filestore.errors import Unauthorized
from filestore.http.client.repository import RemoteRepository
from tests.support.server import running_server


async def ticket_for(url: str, token: str) -> PeerTicket:
    """The ticket that a server gives for a token."""
    client = RemoteRepository(url, token=token)
    try:
        return await client.peer_ticket()
    finally:
        await client.close()


async def test_everybody_who_may_read_a_namespace_gets_its_ticket(tmp_path: Path) -> None:
    """Nobody else does."""
    with running_server(tmp_path / "repository") as server:
        ticket = await ticket_for(server.url, server.token)
        assert 1200 < ticket.expires_in <= 3600
        with pytest.raises(Unauthorized):
            await ticket_for(server.url, "wrong")
