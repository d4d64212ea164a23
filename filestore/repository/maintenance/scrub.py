"""Scrub: read all stored frames slowly, again and again, and report damage before somebody needs the content.

One process at a time does it. It reads as slowly as one pass in the given number of days allows. Where a pass is, and
what it found, is kept in the index, so that a restart changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from filestore.errors import FilestoreError
from filestore.repository.index.protocol import Index
from filestore.repository.maintenance.check import SCRUB_TASK, NamespaceCheck
from filestore.repository.maintenance.findings import AffectedFile, Finding
from filestore.repository.maintenance.frames import FrameReader
from filestore.repository.maintenance.passes import SPACE, Pass
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.metrics import Event, count

logger = logging.getLogger("filestore.maintenance")

STEP_SECONDS = 60.0
"""The time between two steps, and before the first one, so that a server that runs for a moment does not begin."""
FAILURE_SECONDS = 600.0
"""The time before the next step after a failure, so that the log does not grow quickly."""
LOGGED_LIMIT = 100
"""The most findings and the most files that one step writes to the log."""
_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubPlan:
    """How fast to read."""

    rate: float
    """The most bytes per second."""
    days: float
    """How long one pass over all data takes, if `rate` allows it."""


async def scrub_for_ever(store: ChunkStore, index: Index, plan: ScrubPlan) -> None:
    """Scrub until this is cancelled. While another process does it, wait. Failures are written to the log."""
    while True:
        await asyncio.sleep(STEP_SECONDS * random.uniform(0.5, 1))  # noqa: S311  # so that processes do not meet
        try:
            async with index.try_lock(SCRUB_TASK) as is_ours:
                if is_ours:
                    await _scrub_with_lock(store, index, plan)
        except FilestoreError as error:
            logger.warning("the scrub of stored content failed and is tried again later: %s", error)
            await asyncio.sleep(FAILURE_SECONDS)


async def _scrub_with_lock(store: ChunkStore, index: Index, plan: ScrubPlan) -> None:
    reader = FrameReader(store, count=1, rate=plan.rate)
    while True:
        for namespace in await index.namespaces():
            await scrub_step(store, index, namespace, reader=reader, days=plan.days)
        await asyncio.sleep(STEP_SECONDS)


async def scrub_step(
    store: ChunkStore,
    index: Index,
    namespace: str,
    *,
    reader: FrameReader,
    days: float,
    now: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> None:
    """Read what a pass of `days` days should have read by now. At the end of a pass, keep and log its result.

    Damage is logged with the files that it affects. `now` gives microseconds since 1970.
    """
    state = Pass.load(await index.task_state(namespace, SCRUB_TASK))
    is_changed = not state.begin(Fraction(1), now=now())
    elapsed = (now() - state.begun_at) / (days * _DAY)
    if elapsed < 0:
        # The clock was set back. The pass goes on from where it is.
        elapsed, is_changed = state.left[0][0] / SPACE, True
        state.begun_at = now() - int(elapsed * days * _DAY)
    if is_changed:
        # Also if nothing is to be read yet: later steps need the time at which the pass began.
        async with index.transaction(namespace) as transaction:
            await transaction.set_task_state(namespace, SCRUB_TASK, state.as_json())
    checking = NamespaceCheck(store, index, namespace)
    until = int(SPACE * Fraction(min(elapsed, 1.0)))
    findings: list[Finding] = []
    with _counted(state):
        async for finding in checking.read_pass(reader, state, task=SCRUB_TASK, until=until):
            findings.append(finding)
            del findings[LOGGED_LIMIT:]
    is_over = not state.left
    if not (findings or is_over):
        return
    files: list[AffectedFile] = []
    async for each in checking.records():
        (files if isinstance(each, AffectedFile) else findings).append(each)  # type: ignore[arg-type]  # by its class
        del files[LOGGED_LIMIT:], findings[LOGGED_LIMIT:]
    _log(namespace, findings, files)
    if is_over and state.read_count:
        logger.info("scrub of the namespace %s: %s", namespace, state.summary(days=days))


@contextmanager
def _counted(state: Pass) -> Iterator[None]:
    """Count what a pass reads during the block."""
    before = (state.read_count, state.read_size, state.damaged_count)
    try:
        yield
    finally:
        read_count, read_size, damaged_count = before
        count(Event.SCRUBBED_CHUNKS, amount=state.read_count - read_count)
        count(Event.SCRUBBED_SIZE, amount=state.read_size - read_size)
        count(Event.SCRUB_DAMAGED, amount=state.damaged_count - damaged_count)


def _log(namespace: str, findings: Sequence[Finding], files: Sequence[AffectedFile]) -> None:
    for finding in findings:
        logger.error("damage in the namespace %s: %s %s: %s", namespace, finding.kind, finding.digest, finding.detail)
    for file in files:
        record, parts = file.record, f"{file.damaged_count} of {file.chunk_count} chunks"
        what = parts if file.chunk_count else "its manifest"
        logger.error("damage in the namespace %s affects the file %s, %r: %s", namespace, record.id, record.full_name, what)
