"""Write the outage of a database, an object store or a disk to the log: a line when it begins, a count, and a line when it ends.

Each failed request has an answer that says so, and a line of the access log. In an outage there are thousands of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web

from filestore.errors import FilestoreError
from filestore.http.server.rarely import LOG_SECONDS

logger = logging.getLogger("filestore.server")

QUIET_SECONDS = 15.0
"""An outage has ended when no request has failed by it for so long."""
_LOOK_SECONDS = 5.0

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after some seconds."""


def _later(seconds: float, function: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, function)


class Outages:
    """The outages of one server process, by the place that cannot be used."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, later: Later = _later) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._later = later
        self._open: dict[str, _Outage] = {}

    def is_first(self, error: FilestoreError) -> bool:
        """Count a failed request. Return whether the caller writes it to the log: only errors that may pass are outages."""
        place = getattr(error, "where", None) or getattr(error, "path", None)
        if not error.retryable or place is None:
            return True
        now, found = self._clock(), self._open.get(str(place))
        if found is not None:
            found.count += 1
            found.failed_at = now
            return False
        self._open[str(place)] = _Outage(now)
        if len(self._open) == 1:
            self._later(_LOOK_SECONDS, self._look)
        return True

    def _look(self) -> None:
        now = self._clock()
        for place, outage in list(self._open.items()):
            seconds = now - outage.began_at
            if now - outage.failed_at >= QUIET_SECONDS:
                del self._open[place]
                if outage.count:
                    lasted = outage.failed_at - outage.began_at
                    logger.warning("%s: no request fails any more; %d failed in %.0f s", place, outage.count + 1, lasted)
            elif now >= outage.told_at + LOG_SECONDS and outage.count:
                outage.told_at = now
                logger.error("%s: %d requests have failed in %.0f s", place, outage.count + 1, seconds)
        if self._open:
            self._later(_LOOK_SECONDS, self._look)


class _Outage:
    """When a place failed, and how often."""

    def __init__(self, now: float) -> None:
        self.began_at = self.failed_at = self.told_at = now
        self.count = 0
        """The failures after the first one."""


OUTAGES = web.AppKey("outages", Outages)
