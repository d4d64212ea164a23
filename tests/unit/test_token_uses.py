"""The times at which tokens were last used are kept beside the requests."""

from __future__ import annotations

import asyncio
import logging
from unittest.mock import AsyncMock, Mock

import pytest

from filestore.core.digest import token_digest
from filestore.errors import Busy, ReadOnly
from filestore.http.server.token_uses import note_uses_for_ever
from filestore.system.threads import work_beside

USED = [token_digest("used")]


async def noted(outcomes: list[BaseException | None], *, uses: int) -> tuple[Mock, Mock]:
    """Note that many uses at an index whose calls end as `outcomes`, and return the index and the tokens."""
    done = asyncio.Event()
    calls = iter([*outcomes, done])

    async def note(_: object) -> None:
        outcome = next(calls)
        if outcome is done:
            done.set()
        elif isinstance(outcome, BaseException):
            raise outcome

    index = Mock(note_token_uses=AsyncMock(side_effect=note))
    tokens = Mock(take_used=Mock(side_effect=[USED] * uses + [[]] * 100_000))
    async with work_beside(note_uses_for_ever(index, tokens, note_seconds=0, retry_seconds=0)), asyncio.timeout(60):
        await done.wait()
    return index, tokens


async def test_a_use_waits_for_those_who_write() -> None:
    """It is given back, and noted at a later look."""
    index, tokens = await noted([Busy("index", "another process is writing")], uses=2)
    tokens.give_back.assert_called_once_with(USED)
    assert 2 == index.note_token_uses.await_count


async def test_a_failure_is_told_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An index that this user may only read, or a full disk."""
    caplog.set_level(logging.WARNING)
    index, tokens = await noted([ReadOnly("index")] * 3, uses=4)
    assert 4 == index.note_token_uses.await_count
    assert ["the times at which tokens were used are not kept"] == [
        record.getMessage().partition(":")[0] for record in caplog.records
    ]
    tokens.give_back.assert_not_called()
