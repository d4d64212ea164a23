"""What a namespace has of unfinished uploads in an object store, for its limits, without a listing for each request.

While a namespace has used little of a limit, a process that has just listed its uploads accepts a small share of the limit
without another listing. A process counts exactly what it has accepted itself, from then on until a listing has it. Of what the
others have accepted, it may miss a share of the limit for each of them, if a quarter of the limit arrives within `KEPT_SECONDS`,
and what they are just putting. So the limit is exact for one process. N processes together accept at most (1 + N / SHARES) of it,
and what each of the others is putting at one moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.repository.index.protocol import Index
from filestore.system.retries import Clock

KEPT_SECONDS = 5.0
"""How long what was listed counts."""
SHARES = 128
"""A process accepts one of so many shares of a limit by what it listed before."""


TASK = "uploads"
"""The task in whose state of the namespace `default` the index has the totals of all namespaces."""


class UploadTotals(NamedTuple):
    """The unfinished uploads of a namespace, and the bytes of their parts."""

    uploads: int
    size: int


class ListTotals(Protocol):
    """Lists the unfinished uploads of a namespace."""

    async def __call__(self, namespace: str, *, without: Collection[str]) -> UploadTotals:
        """Return what they are together, without the objects of these names."""


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """What a caller was allowed to put. Two callers may put the same."""

    name: str
    more: UploadTotals


class _Listed:
    """What was listed of a namespace, and what this process has accepted since."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.until = 0.0
        self.totals = UploadTotals(0, 0)
        self.accepted = UploadTotals(0, 0)
        """What the listing does not have. This includes what was being put when it began."""
        self.arriving: set[_Taken] = set()
        """What is being put. A listing may have it already, or not yet."""


class ListedTotals:
    """The totals of each namespace, for one process."""

    def __init__(self, list_totals: ListTotals, *, clock: Clock = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        self._list = list_totals
        self._clock = clock
        self._listed: dict[str, _Listed] = {}

    async def used_with(self, namespace: str, more: UploadTotals, limits: UploadTotals) -> UploadTotals:
        """Return the totals of a namespace with `more`, which are exact if they are near one of `limits`."""
        return await self._used(namespace, more, limits, taken=None)

    @asynccontextmanager
    async def taking(self, namespace: str, name: str, more: UploadTotals, limits: UploadTotals) -> AsyncIterator[UploadTotals]:
        """Yield the same totals. If they are within the limits, the block puts `more`, as an object with this name.

        It counts from now on. If the block fails, nobody knows whether the object was put, and the next listing decides.
        """
        taken = _Taken(name, more)
        try:
            yield await self._used(namespace, more, limits, taken=taken)
        finally:
            self._listed[namespace].arriving.discard(taken)

    async def _used(self, namespace: str, more: UploadTotals, limits: UploadTotals, *, taken: _Taken | None) -> UploadTotals:
        listed = self._listed.setdefault(namespace, _Listed())
        async with listed.turn:
            wanted = sum_of(listed.accepted, more)
            is_known = self._clock() < listed.until and all(map(_is_far, listed.totals, wanted, limits))
            if not is_known:
                # The time before: what others add meanwhile may not be in the listing.
                until = self._clock() + KEPT_SECONDS
                arriving = list(listed.arriving)
                listed.totals = await self._list(namespace, without={each.name for each in arriving})
                listed.accepted = sum_of(*(each.more for each in arriving))
                listed.until, wanted = until, sum_of(listed.accepted, more)
            used = sum_of(listed.totals, wanted)
            if taken is not None and all(part <= limit for part, limit in zip(used, limits, strict=True)):
                listed.accepted = wanted
                listed.arriving.add(taken)
            return used


def sum_of(*totals: UploadTotals) -> UploadTotals:
    """Return what they are together."""
    return UploadTotals(sum(each.uploads for each in totals), sum(each.size for each in totals))


def _is_far(listed: int, accepted: int, limit: int) -> bool:
    """Return whether a limit is far enough for what is accepted without a listing."""
    return not accepted or (listed <= limit * 3 // 4 and accepted <= limit // SHARES)


async def note_totals(index: Index, totals: UploadTotals) -> None:
    """Note the totals of all namespaces for all servers. Raises StorageError, StorageFull, Busy."""
    async with index.transaction(DEFAULT_NAMESPACE) as transaction:
        await transaction.set_task_state(DEFAULT_NAMESPACE, TASK, totals._asdict())


async def noted_totals(index: Index) -> UploadTotals:
    """Return what was noted last. It is 0 where nobody has noted anything. Raises StorageError, Busy."""
    state = await index.task_state(DEFAULT_NAMESPACE, TASK) or {}
    return UploadTotals(int(state.get("uploads", 0)), int(state.get("size", 0)))
