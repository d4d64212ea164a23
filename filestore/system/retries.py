"""Decide whether a failed request is sent again, and after which pause.

Attempts are not counted. What counts is the time since the last progress: a server that restarts does not end a transfer, and a
link that fails again and again does not either, as long as bytes arrive in between.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015, for the pauses ("decorrelated jitter").
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from filestore.errors import FilestoreError, ForeignAnswer

RETRY_SECONDS = 300.0
"""How long a server is tried again. A restart of a server, or of its machine, takes less."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0
"""The longest pause that the server has not asked for. A server that is back is noticed after this time at the latest."""
STRANGER_SECONDS = 10.0
"""How long a proxy is tried again that has never led to the server. Its URL may be wrong."""
_GROWTH = 3
_SPREAD = 0.1
"""The random part that is added to a pause for which the server asks, as a part of it. Many requests get the same answer."""

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Retries:
    """The failures of one server. Its requests share them, so the progress of one request gives all others more time."""

    def __init__(
        self,
        *,
        retry_seconds: float = RETRY_SECONDS,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`clock` returns monotonic seconds, and `sleep` lets some pass."""
        self.retry_seconds = retry_seconds
        self.first_pause_seconds = first_pause_seconds
        self.clock = clock
        self.sleep = sleep
        self.progress_at = clock()
        self.has_succeeded = False
        """Whether the server has ever made progress. Until then, the answers of others may all be from a wrong address."""
        self._failing: list[RequestRetries] = []
        self._asked_until = self._all_until = self.progress_at
        self._asked_because = ""
        self._failed_because = ""

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        """For how many more seconds a request waits because the server asked for it, and why. None if none does."""
        left = self._asked_until - self.clock()
        return (left, self._asked_because) if left > 0 else None

    async def wait_as_asked(self) -> None:
        """Wait if the server has asked all requests to wait. The requests do not go on at the same moment."""
        left = self._all_until - self.clock()
        if left > 0:
            await self.sleep(left + self.spread(left))

    def spread(self, seconds: float) -> float:
        """Return a random part to add to a pause that the server has asked for."""
        return random.uniform(0, max(self.first_pause_seconds, seconds * _SPREAD))  # noqa: S311  # no secret

    @property
    def waited_seconds(self) -> float | None:
        """For how long a request has failed again and again without progress. None if no request waits for another try."""
        since = [request.failing_since for request in self._failing if request.failing_since is not None]
        return self.clock() - min(since) if since else None

    @property
    def waited_because(self) -> str:
        """Why the last request failed that is tried again. Empty if no request waits for another try."""
        return "" if self.waited_seconds is None else self._failed_because

    def note_progress(self) -> None:
        """Note that a request succeeded, or that bytes arrived for good before it failed."""
        self.progress_at = self.clock()
        self.has_succeeded = True

    def note_pause(self, seconds: float, error: FilestoreError, *, now: float) -> None:
        """Note that a request waits for some seconds after an error."""
        self._failed_because = str(error.named_facts().get("reason", error))
        if error.wait_reason and now + seconds > self._asked_until:
            self._asked_until, self._asked_because = now + seconds, error.wait_reason
        if error.pauses_all:
            self._all_until = max(self._all_until, now + (error.retry_after_seconds or 0.0))

    @contextmanager
    def request(self) -> Iterator[RequestRetries]:
        """Yield what decides about the retries of one request, which is made in the block."""
        request = RequestRetries(self)
        self._failing.append(request)
        try:
            yield request
        finally:
            self._failing.remove(request)


class RequestRetries:
    """The failures of one request. `Retries.request` makes it."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._failed_at: float | None = None
        self._pause = retries.first_pause_seconds
        self._is_retried_once = False

    @property
    def failing_since(self) -> float | None:
        """When the request failed for the first time since the last progress of the server. None if it has not failed."""
        return None if self._failed_at is None else max(self._failed_at, self._retries.progress_at)

    def next_pause(self, error: FilestoreError) -> float | None:
        """Note a failure. Return how many seconds to wait before the next try, or None if there is none.

        The pause is at least as long as the server asks for. If that is more than the time that is left, the request is not
        tried again. If the error limits all requests, they all wait (`Retries.wait_as_asked`).
        """
        if error.is_retried_once and self._is_retried_once:
            return None
        limit = self._retries.retry_seconds
        if isinstance(error, ForeignAnswer) and not self._retries.has_succeeded:
            limit = min(limit, STRANGER_SECONDS)
        now = self._retries.clock()
        if self._failed_at is None or self._failed_at < self._retries.progress_at:
            self._failed_at, self._pause = now, self._retries.first_pause_seconds
        left = self._failed_at + limit - now
        asked = error.retry_after_seconds or 0.0
        if not error.retryable or left <= 0 or asked > left:
            return None
        self._is_retried_once |= error.is_retried_once
        first = self._retries.first_pause_seconds
        self._pause = min(LONGEST_PAUSE_SECONDS, random.uniform(first, self._pause * _GROWTH))  # noqa: S311  # no secret
        # The last try comes at the end of the time, not after it.
        pause = min(left, max(self._pause, asked + self._retries.spread(asked) if asked else 0.0))
        self._retries.note_pause(pause, error, now=now)
        return pause
