"""Resolve all static files of a pipeline before it starts: in parallel, the largest first."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filestore.cache import Cache, ResolveResult
from filestore.core.progress import Report
from filestore.errors import InvalidArchive
from filestore.repository.protocol import Repository
from filestore.runtime.errors import FoldersLost
from filestore.runtime.values import Stored
from filestore.system.threads import task_group
from filestore.transfer.repeated_names import find_repeated_names, listed_names

T = TypeVar("T")

FILES_AT_ONCE = 4
"""Files that are resolved or stored in parallel. More would not be faster, and each transfer has its own buffers."""


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """The paths of the prepared files, and what the start needed, in bytes."""

    paths: tuple[Path, ...]
    """One for each file, in the order of the request."""
    bytes_received: int
    """Encoded bytes that were received over the network."""
    bytes_cached: int
    """Decoded bytes that were already in the cache."""
    bytes_reused: int
    """Decoded bytes that were copied from other versions, or were left by an interrupted fetch."""
    seconds: float


async def prepare(
    cache: Cache,
    repository: Repository,
    wanted: Sequence[Stored],
    *,
    report: Report | None = None,
    files_at_once: int = FILES_AT_ONCE,
) -> PrepareResult:
    """Resolve each of `wanted`. A cached file needs no network. `report` gets the progress of all fetches.

    Raises what `Cache.resolve` raises, for the first file that fails. The other fetches are stopped, and resume at the
    next call.
    """
    started = time.monotonic()
    distinct = list(dict.fromkeys(wanted))
    here = {value: found.size for value in distinct if (found := await cache.cached(value)) is not None}
    sizes = await _sizes(repository, [value for value in distinct if value not in here])
    resolved: dict[Stored, ResolveResult] = {}

    async def resolve(values: Iterator[Stored]) -> None:
        for value in values:
            async with folders_checked(repository, value):
                resolved[value] = await cache.resolved(value, report=report)

    # Cached files take no time. The largest of the others come first, because one that starts last would run alone.
    ordered = [*here, *sorted(sizes, key=sizes.__getitem__, reverse=True)]
    await map_bounded(resolve, ordered, task_count=files_at_once)
    return PrepareResult(
        tuple(resolved[value].path for value in wanted),
        sum(each.bytes_received for each in resolved.values()),
        sum(size for value, size in here.items() if resolved[value].was_cached),
        sum(each.bytes_reused for each in resolved.values()),
        time.monotonic() - started,
    )


@asynccontextmanager
async def folders_checked(repository: Repository, wanted: Stored) -> AsyncIterator[None]:
    """Say so if a directory cannot be unpacked in the block because it was stored without its folders.

    Raises FoldersLost in the place of InvalidArchive.
    """
    try:
        yield
    except InvalidArchive:
        if wanted.url is not None:
            raise
        record = await repository.record(wanted.reference)
        names = await find_repeated_names(repository, record)
        if not names:
            raise
        raise FoldersLost(f"{record.name} ({record.id})", listed_names(names)) from None


async def map_bounded(
    work: Callable[[Iterator[T]], Awaitable[None]], values: Sequence[T], *, task_count: int = FILES_AT_ONCE
) -> None:
    """Run `work` in at most `task_count` tasks. All tasks take their values from one iterator."""
    row = iter(values)

    async def worker() -> None:
        await work(row)

    async with task_group() as group:
        for _ in range(min(task_count, len(values))):
            group.create_task(worker())


async def _sizes(repository: Repository, wanted: Sequence[Stored]) -> dict[Stored, float]:
    """Return the sizes of files that are not cached."""
    sizes: dict[Stored, float] = {}

    async def measure(values: Iterator[Stored]) -> None:
        for value in values:
            # The size of a file behind a URL is not known: it may be the largest.
            sizes[value] = math.inf if value.url else (await repository.record(value.reference)).size

    await map_bounded(measure, wanted)
    return sizes
