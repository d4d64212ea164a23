"""Collection in a server: one process at a time, at a bounded rate, in the permitted hours of the day."""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filestore.errors import FilestoreError
from filestore.repository.full_disk import with_reserve
from filestore.repository.index.protocol import Index
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.metrics import Event, count
from filestore.system.threads import in_cpu_thread

if TYPE_CHECKING:
    from filestore.repository.maintenance.collect import CollectionReport

logger = logging.getLogger("filestore.maintenance")

TASK = "collect"
"""The name of the state of a collection in the index, and of its lock."""

_LONGEST_SECONDS = 6 * 3600.0
_SHORTEST_SECONDS = 2.0
_STEP_SECONDS = 60.0
"""The time between two looks at the clock, and before the first collection of a server."""
_SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """When and how fast a server collects."""

    grace_seconds: float
    rate: int
    """How many chunks a second are looked at, more than 0."""
    hours: tuple[int, int] | None = None
    """The first hour of the day, in local time, and the hour before which it ends. None means the whole day."""

    @property
    def interval_seconds(self) -> float:
        """The time between two collections of a namespace."""
        return min(_LONGEST_SECONDS, max(_SHORTEST_SECONDS, self.grace_seconds / 4))

    def is_permitted(self, hour: int) -> bool:
        """Return whether to collect in this hour of the day."""
        if self.hours is None:
            return True
        start, end = self.hours
        return start <= hour < end if start < end else hour >= start or hour < end


async def collect_for_ever(
    store: ChunkStore,
    index: Index,
    plan: CollectionPlan,
    *,
    now: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> None:
    """Collect all namespaces again and again, until this is cancelled. Failures are written to the log."""
    step_seconds = min(_STEP_SECONDS, plan.interval_seconds)
    # In a thread, because it imports numpy, which takes 0.15 s.
    await in_cpu_thread(importlib.import_module, "filestore.repository.maintenance.collect")
    failed_at: dict[str, int] = {}
    while True:
        await asyncio.sleep(step_seconds * random.uniform(0.5, 1))  # noqa: S311  # so that processes do not meet
        if not _is_permitted_now(plan):
            continue
        try:
            async with index.try_lock(TASK) as is_ours:
                if is_ours:
                    await _collect_what_is_due(store, index, plan, now, failed_at)
        except Exception as error:  # noqa: BLE001  # the server goes on, and tries again
            logger.warning("what is no longer needed could not be removed, and is tried again later: %s", error)


async def _collect_what_is_due(
    store: ChunkStore, index: Index, plan: CollectionPlan, now: Callable[[], int], failed_at: dict[str, int]
) -> None:
    """Collect where it is time. `failed_at` has the times of failures, which are not repeated at each look at the clock."""
    from filestore.repository.maintenance.collect import Collection  # noqa: PLC0415  # heavy

    await store.remove_abandoned()
    for namespace in await index.namespaces():
        state = await index.task_state(namespace, TASK) or {}
        ended_at = state.get("ended_at")
        # A time in the future is from a clock that was wrong.
        if 0 <= now() - failed_at.get(namespace, -1 << 62) < plan.interval_seconds * _SECOND:
            continue
        if isinstance(ended_at, int) and 0 <= now() - ended_at < plan.interval_seconds * _SECOND and "cursor" not in state:
            continue
        collection = Collection(
            store,
            index,
            namespace,
            grace_seconds=plan.grace_seconds,
            rate=plan.rate,
            stop=lambda: not _is_permitted_now(plan),
            now=now,
        )
        started = time.monotonic()
        try:
            report = await with_reserve(store, collection.run)
        except FilestoreError as error:
            failed_at[namespace] = now()
            _count(collection.report, "failed", time.monotonic() - started)
            logger.warning("nothing is removed from the namespace %s: %s", namespace, error)
            continue
        _count(report, "complete" if report.is_complete else "stopped", time.monotonic() - started)
        if report.freed.count or report.old_versions:
            logger.info("collected in the namespace %s: %s", namespace, report.summary())


def _count(report: CollectionReport, result: str, seconds: float) -> None:
    """Count what a collection did."""
    chunks = (report.removed_files, report.abandoned_pushes, report.frames_without_rows)
    count(Event.COLLECTIONS, result)
    count(Event.COLLECTION_SECONDS, amount=seconds)
    count(Event.COLLECTED_CHUNKS, amount=sum(part.count for part in chunks))
    count(Event.COLLECTED_SIZE, amount=report.freed.size)


def _is_permitted_now(plan: CollectionPlan) -> bool:
    return plan.is_permitted(time.localtime().tm_hour)
