"""Wait at the start of a server until its database and its object store can be used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from filestore.errors import FilestoreError
from filestore.http.server.rarely import LOG_SECONDS
from filestore.system.retries import Retries

T = TypeVar("T")

WAIT_SECONDS = 300.0
"""How long a server waits. Then it ends, and who started it decides: a service manager starts it again."""


async def once_there(open_place: Callable[[], Awaitable[T]], *, tell: Callable[[str], None], seconds: float = WAIT_SECONDS) -> T:
    """Return what `open_place` returns. While it fails with an error that may pass, call it again, for so many seconds.

    `tell` gets a sentence at the first failure, and then one a minute. Raises the last error, and at once one that stays, such as
    that of a wrong password.
    """
    retries = Retries(retry_seconds=seconds)
    told_at: float | None = None
    until = time.monotonic() + seconds
    with retries.request() as request:
        while True:
            try:
                return await open_place()
            except FilestoreError as error:
                pause = request.next_pause(error)
                if pause is None:
                    raise
                now = time.monotonic()
                if told_at is None or now >= told_at + LOG_SECONDS:
                    told_at = now
                    tell(f"waiting for at most {max(0.0, until - now):.0f} more seconds: {' '.join(str(error).split())}")
            await asyncio.sleep(pause)
