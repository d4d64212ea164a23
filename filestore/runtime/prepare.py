"""The start of a pipeline: all its static files at once, the large ones first."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filestore.cache import Cache, ResolveResult
from filestore.core.progress import Report
from filestore.repository.protocol import Repository
from filestore.runtime.values import Stored
from filestore.system.threads import task_group

T = TypeVar("T")

FILES_AT_ONCE = 4
"""Files that are resolved or stored side by side: more would not be faster, and each transfer has its buffers."""


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """What a start took, in bytes."""

    paths: tuple[Path, ...]
    """One for each file, in the order asked."""
    bytes_received: int
    """Encoded bytes that came over the network."""
    bytes_cached: int
    """Decoded bytes that were in the cache, ready to be opened."""
    bytes_reused: int
    """Decoded bytes that were copied from other versions, or were here from a fetch that was cut."""
    seconds: float


async def prepare(
    cache: Cache, repository: Repository, wanted: Sequence[Stored], *, report: Report | None = None
) -> PrepareResult:
    """Resolve each of `wanted`; what is cached asks no network. `report` is told of all that are fetched, as they go on.

    Raises what `Cache.resolve` raises, for the first that fails; the others are stopped, and go on from there next time.
    """
    started = time.monotonic()
    distinct = list(dict.fromkeys(wanted))
    here = {value: found.size for value in distinct if (found := await cache.cached(value)) is not None}
    sizes = await _sizes(repository, [value for value in distinct if value not in here])
    resolved: dict[Stored, ResolveResult] = {}

    async def resolve(values: Iterator[Stored]) -> None:
        for value in values:
            resolved[value] = await cache.resolved(value, report=report)

    # What is here takes no time; of the rest the largest first: one that begins last would be waited for alone.
    await map_bounded(resolve, [*here, *sorted(sizes, key=sizes.__getitem__, reverse=True)])
    return PrepareResult(
        tuple(resolved[value].path for value in wanted),
        sum(each.bytes_received for each in resolved.values()),
        sum(size for value, size in here.items() if resolved[value].was_cached),
        sum(each.bytes_reused for each in resolved.values()),
        time.monotonic() - started,
    )


async def map_bounded(work: Callable[[Iterator[T]], Awaitable[None]], values: Sequence[T]) -> None:
    """Have a few tasks take values from one row."""
    row = iter(values)

    async def worker() -> None:
        await work(row)

    async with task_group() as group:
        for _ in range(min(FILES_AT_ONCE, len(values))):
            group.create_task(worker())


async def _sizes(repository: Repository, wanted: Sequence[Stored]) -> dict[Stored, float]:
    """How large files are that are not here."""
    sizes: dict[Stored, float] = {}

    async def measure(values: Iterator[Stored]) -> None:
        for value in values:
            # Of what stands behind a URL nobody knows it before: it may be the largest of all.
            sizes[value] = math.inf if value.url else (await repository.record(value.reference)).size

    await map_bounded(measure, wanted)
    return sizes
