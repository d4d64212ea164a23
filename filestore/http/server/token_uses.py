"""Keep the times at which tokens were last used, to about a minute. No request waits for it, and none fails by it.

Each process notes the tokens that it accepts, and asks the index now and then to keep the time. The index does so at most
once a minute for each token, for all processes, and only while nobody else writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from filestore.errors import Busy, FilestoreError
from filestore.http.server.auth import Tokens
from filestore.http.server.errors import log_failure
from filestore.repository.index.protocol import Index

NOTE_SECONDS = 2.0
"""The time between two looks at the tokens that were used. Mostly, there is nothing to write."""
RETRY_SECONDS = 60.0
"""The same after a failure. The uses meanwhile are not noted."""


@asynccontextmanager
async def noting_token_uses(
    index: Index, tokens: Tokens, *, note_seconds: float = NOTE_SECONDS, retry_seconds: float = RETRY_SECONDS
) -> AsyncIterator[None]:
    """Keep the times of last use during the block. A failure of it never ends the server."""
    noting = asyncio.create_task(_note(index, tokens, note_seconds, retry_seconds))
    try:
        yield
    finally:
        noting.cancel()
        await asyncio.wait([noting])


async def _note(index: Index, tokens: Tokens, note_seconds: float, retry_seconds: float) -> None:
    pause, is_failing = note_seconds, False
    while True:
        await asyncio.sleep(pause)
        used = tokens.take_used()
        pause = note_seconds
        if not used:
            continue
        try:
            await index.note_token_uses(used)
            is_failing = False
        except Busy:
            # Somebody writes. The next look tries again.
            tokens.give_back(used)
        except FilestoreError as error:
            if not is_failing:
                log_failure("the times at which tokens were used are not kept", error, level=logging.WARNING)
            pause, is_failing = retry_seconds, True
