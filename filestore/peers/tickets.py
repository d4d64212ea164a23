"""Which tickets a peer accepts: those that the origin gives for the token of the peer itself."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable

from filestore.core.tickets import PeerTicket
from filestore.errors import Busy, FilestoreError, Forbidden, ScopeMissing, Unauthorized
from filestore.http.server.errors import FailureLog

RENEW_SECONDS = 300.0
"""With the first request after this time, the origin is asked again. A ticket of a key that was changed ends with the answer."""
ASK_SECONDS = 5.0
"""The least time between two questions because of tickets that are not known."""
WAIT_SECONDS = 10.0
"""How long a request waits for the answer of the origin."""
REFUSALS = (Unauthorized, Forbidden, ScopeMissing)
"""The errors that say that the token of the peer itself may not read. To wait does not help."""


class KnownTickets:
    """The tickets that the origin has given. They are compared in constant time, and nothing is computed from them."""

    def __init__(self, ask: Callable[[], Awaitable[PeerTicket]], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`ask` gets the ticket of the origin now, and the one before it."""
        self._ask = ask
        self._clock = clock
        self._known: dict[str, float] = {}
        """Until when each ticket is valid."""
        self._asked_at: float | None = None
        self._failure: FilestoreError | None = None
        self._failures = FailureLog("the origin gives no ticket to this peer", level=logging.WARNING)
        self._asking: asyncio.Task[None] | None = None

    async def accepts(self, authorization: str | None) -> bool:
        """Return whether an Authorization header has a valid ticket.

        A ticket that is not known may be a new one, so the origin is asked: once for all who wait, and once in 5 seconds. Without
        a token that may read, a peer accepts none. Raises Busy if the origin cannot be asked.
        """
        scheme, _, ticket = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        given = ticket.strip().encode(errors="surrogateescape")
        is_known = self._is_known(given)
        if self._is_due(RENEW_SECONDS if is_known else ASK_SECONDS):
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._renew())
        if is_known:
            return True
        if self._asking is not None:
            # It goes on if this caller ends: others wait for it too.
            await asyncio.wait([self._asking], timeout=WAIT_SECONDS)
        if self._is_known(given):
            return True
        if self._asking is not None or not (self._failure is None or isinstance(self._failure, REFUSALS)):
            raise Busy("the peer", "its origin cannot be asked about the ticket")
        return False

    async def close(self) -> None:
        """End a question that is in progress."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def _is_due(self, seconds: float) -> bool:
        return self._asking is None and (self._asked_at is None or self._clock() - self._asked_at >= seconds)

    def _is_known(self, given: bytes) -> bool:
        now = self._clock()
        # All are compared, so that the time does not tell which one is nearly right.
        return sum(hmac.compare_digest(known.encode(), given) and now < until for known, until in self._known.items()) > 0

    async def _renew(self) -> None:
        try:
            ticket = await self._ask()
        except FilestoreError as error:
            self._failure = error
            self._failures.failed(error)
            if isinstance(error, REFUSALS):
                self._known = {}  # the token of this peer may not read any more
        else:
            self._failure = None
            self._failures.succeeded()
            now = self._clock()
            found = [each for each in (ticket, ticket.earlier) if each is not None]
            self._known = {each.ticket: now + each.expires_in for each in found}
        finally:
            self._asking = None
