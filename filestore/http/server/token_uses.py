"""Keep the times at which tokens were last used, to about a minute. No request waits for it, and none fails by it.

Each process notes the tokens that it accepts, and asks the index now and then to keep the time. The index does so at most
once a minute for each token, for all processes, and only while nobody else writes.
"""

from __future__ import annotations

import asyncio
import logging

from filestore.errors import Busy, FilestoreError
from filestore.http.server.auth import Tokens
from filestore.http.server.errors import FailureLog
from filestore.repository.index.protocol import Index

NOTE_SECONDS = 2.0
"""The time between two looks at the tokens that were used. Mostly, there is nothing to write."""
RETRY_SECONDS = 60.0
"""The same after a failure. The uses meanwhile are not noted."""


async def note_uses_for_ever(
    index: Index, tokens: Tokens, *, note_seconds: float = NOTE_SECONDS, retry_seconds: float = RETRY_SECONDS
) -> None:
    """Keep the times of last use until it is cancelled."""
    failures = FailureLog("the times at which tokens were used are not kept", level=logging.WARNING)
    pause = note_seconds
    while True:
        await asyncio.sleep(pause)
        used = tokens.take_used()
        pause = note_seconds
        if not used:
            continue
        try:
            await index.note_token_uses(used)
            failures.succeeded()
        except Busy:
            # Somebody writes. The next look tries again.
            tokens.give_back(used)
        except FilestoreError as error:
            failures.failed(error)
            pause = retry_seconds
