"""The looks at the tokens of the index."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock, Mock

import pytest

from filestore.http.server import revocation
from filestore.http.server.revocation import Revocation


async def test_an_unexpected_error_of_a_look_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without these looks, a removed token would permit requests for ever. So the block, which is the server, ends."""
    monkeypatch.setattr(revocation, "CHECK_SECONDS", 0.0)
    tokens = Mock(refresh=AsyncMock(side_effect=[None, ZeroDivisionError]))
    with pytest.raises(ZeroDivisionError):
        async with Revocation(tokens).running():
            await asyncio.sleep(60)


async def test_the_looks_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not wait for the next one."""
    monkeypatch.setattr(revocation, "CHECK_SECONDS", 3600.0)
    tokens = Mock(refresh=AsyncMock())
    async with Revocation(tokens).running():
        await asyncio.sleep(0)
    assert 1 == tokens.refresh.await_count
