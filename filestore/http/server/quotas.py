"""The quotas of namespaces and tokens, as one server process knows them, and what they permit at the moment.

Each process looks at the index at regular intervals. So a new quota holds within about a second, whoever set it. What requests
use of rates is counted for all processes of the server together.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from aiohttp import web

from filestore.core.quotas import EVERYBODY, KEPT, NO_QUOTA, Quota
from filestore.errors import FilestoreError, RateLimited
from filestore.http.server.access import Access
from filestore.http.server.errors import FailureLog
from filestore.http.server.throttle import ByteRate, Throttle
from filestore.repository.index.protocol import TOKEN_ID_LENGTH, Index
from filestore.system.shared_rates import RateKind, SharedRates
from filestore.system.threads import work_beside

CHECK_SECONDS = 0.5
"""The time between two looks at the quotas of the index."""
_COUNTED = "filestore.counted"
"""The key of a request that counts for the rates of requests."""
_THROTTLE = "filestore.throttle"
"""The key of a request for what limits the rate of its bodies."""


class Limited(NamedTuple):
    """A namespace or a token that has a limit of what it does."""

    words: str
    slot: int
    quota: Quota


class Quotas:
    """The quotas of a repository, as they were at the last look."""

    def __init__(self, index: Index, rates: SharedRates) -> None:
        """`rates` counts for all processes of the server."""
        self._index = index
        self._rates = rates
        self._namespaces: dict[str, Quota] = {}
        self._tokens: dict[str, Quota] = {}
        """The quotas of tokens, by what `Access` names them."""
        self._has_rates = False
        """Whether any quota limits what is done. Often none does, and then requests are not looked at."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the quotas now, and again and again during the block. Raises what `refresh` raises, at the start."""
        await self.refresh()
        async with work_beside(self._look()):
            yield

    async def refresh(self) -> None:
        """Read the quotas. Raises StorageError, IndexDamaged."""
        rows = await self._index.quotas()
        self._namespaces = {row.namespace: row.quota for row in rows if row.token is None}
        self._has_rates = any(_limits_traffic(row.quota) for row in rows)
        self._tokens = {str(row.token)[:TOKEN_ID_LENGTH]: row.quota for row in rows if row.token is not None}

    def of_namespace(self, namespace: str) -> Quota:
        """Return the quota of a namespace: its own, or else the one for everybody."""
        found = self._namespaces.get(namespace)
        return self._namespaces.get(EVERYBODY, NO_QUOTA) if found is None else found

    def count(self, request: web.Request, limits: Sequence[Limited]) -> None:
        """Count a request for the rates of its namespace and its token, once. Raises RateLimited, and counts nothing then."""
        if _COUNTED in request:
            return
        request[_COUNTED] = True
        counted: list[tuple[int, float]] = []
        for limited in limits:
            rate = limited.quota.requests_per_second
            if rate is None:
                continue
            wait = self._rates.try_add(limited.slot, RateKind.REQUESTS, 1 / rate)
            if wait > 0:
                for slot, seconds in counted:
                    self._rates.add(slot, RateKind.REQUESTS, -seconds)
                raise RateLimited(f"the requests a second of the {limited.words}", rate, math.ceil(wait))
            counted.append((limited.slot, 1 / rate))

    @contextmanager
    def connected(self, limits: Sequence[Limited]) -> Iterator[None]:
        """Count a connection as used by a namespace and a token during the block. Raises RateLimited."""
        entered = []
        try:
            for limited in limits:
                limit = limited.quota.connections
                if limit is None:
                    continue
                if not self._rates.try_enter(limited.slot, limit):
                    raise RateLimited(f"the connections of the {limited.words} that are in use", limit, 1)
                entered.append(limited.slot)
            yield
        finally:
            for slot in entered:
                self._rates.leave(slot)

    def throttle(self, request: web.Request, limits: Sequence[Limited]) -> None:
        """Limit the rate of the bodies of a request from now on. `throttle_of` returns what does it."""
        rates = [(each.slot, each.quota.bytes_per_second) for each in limits]
        byte_rates = [ByteRate(slot, rate) for slot, rate in rates if rate is not None]
        if byte_rates:
            request[_THROTTLE] = Throttle(self._rates, byte_rates)

    def limits(self, access: Access) -> list[Limited]:
        """Return whose limits of what is done hold for a request."""
        found: list[Limited] = []
        if not self._has_rates:
            return found
        quota = self.of_namespace(access.namespace)
        if _limits_traffic(quota):
            slot = self._rates.slot(f"namespace {access.namespace}")
            found.append(Limited(f"namespace {access.namespace}", slot, quota))
        token = self._tokens.get(access.token_id)
        if token is not None:
            found.append(Limited(f"token {access.token_id}", self._rates.slot(f"token {access.token_id}"), token))
        return found

    async def _look(self) -> None:
        failures = FailureLog("new quotas cannot be noticed now")
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.refresh()
            except FilestoreError as error:
                # The quotas stay as they are.
                failures.failed(error)
            else:
                failures.succeeded()


def _limits_traffic(quota: Quota) -> bool:
    return any(getattr(quota, limit) is not None for limit in Quota._fields if limit not in KEPT)


def throttle_of(request: web.Request) -> Throttle | None:
    """Return what limits the rate of the bodies of a request, or None."""
    throttle: Throttle | None = request.get(_THROTTLE)
    return throttle
