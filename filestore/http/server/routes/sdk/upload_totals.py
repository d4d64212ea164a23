"""What a namespace has of unfinished uploads in an object store, for its limits, without a listing for each request.

While a namespace has used little of a limit, a process that has just listed its uploads accepts a small share of the limit
without another listing. So the limit holds for all servers together, unless a quarter of it arrives within `KEPT_SECONDS`: then
each process may have accepted one share too many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

KEPT_SECONDS = 5.0
"""How long what was listed counts."""
SHARES = 128
"""A process accepts one of so many shares of a limit by what it listed before."""


class UploadTotals(NamedTuple):
    """The unfinished uploads of a namespace, and the bytes of their parts."""

    uploads: int
    size: int


class _Listed:
    """What was listed of a namespace, and what this process has accepted since."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.until = 0.0
        self.totals = UploadTotals(0, 0)
        self.accepted = UploadTotals(0, 0)


class ListedTotals:
    """The totals of each namespace, for one process."""

    def __init__(
        self, list_totals: Callable[[str], Awaitable[UploadTotals]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`list_totals` returns those of a namespace. `clock` returns monotonic seconds."""
        self._list = list_totals
        self._clock = clock
        self._listed: dict[str, _Listed] = {}

    async def used_with(self, namespace: str, more: UploadTotals, limits: UploadTotals, *, takes: bool) -> UploadTotals:
        """Return the totals of a namespace with `more`, which are exact if they are near one of `limits`.

        With `takes`, `more` is what the caller adds if that is within the limits.
        """
        listed = self._listed.setdefault(namespace, _Listed())
        async with listed.turn:
            wanted = _sum(listed.accepted, more)
            is_known = self._clock() < listed.until and all(map(_is_far, listed.totals, wanted, limits))
            if not is_known:
                # The time before: what others add meanwhile may not be in the listing.
                until = self._clock() + KEPT_SECONDS
                listed.totals, listed.accepted, wanted = await self._list(namespace), UploadTotals(0, 0), more
                listed.until = until
            used = _sum(listed.totals, wanted)
            if takes and all(part <= limit for part, limit in zip(used, limits, strict=True)):
                listed.accepted = wanted
            return used


def _sum(one: UploadTotals, two: UploadTotals) -> UploadTotals:
    return UploadTotals(one.uploads + two.uploads, one.size + two.size)


def _is_far(listed: int, accepted: int, limit: int) -> bool:
    """Return whether a limit is far enough for what is accepted without a listing."""
    return not accepted or (listed <= limit * 3 // 4 and accepted <= limit // SHARES)
