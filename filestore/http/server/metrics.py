"""Count the requests of a server process, and answer `/metrics` for all processes of the server.

What is counted is in memory that all processes share (`filestore.system.metrics`), so each process can
answer for all of them, and a process that takes the place of a dead one goes on with its numbers. Each process notes
its gauges every few seconds. The process that is asked looks at the disk and the index, at most every few seconds too.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.errors import FilestoreError, Forbidden
from filestore.http.limits import ServerLimits
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import log_failure
from filestore.http.server.metric_families import BUCKETS, COUNTED, DURATION, PROCESSES, STAGES, Family
from filestore.http.server.request_record import RequestRecord
from filestore.http.server.routes.sdk.upload_totals import noted_totals
from filestore.http.server.traffic import Traffic
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import SCRUB_TASK
from filestore.repository.maintenance.collection_plan import TASK, CollectionPlan
from filestore.repository.maintenance.passes import Pass
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.metrics import Event, Gauge, SharedTimes, StageTimes, added, added_starts, count, note
from filestore.system.numbers import Key
from filestore.system.threads import in_cpu_thread, in_disk_thread, waiting_calls, work_beside

NOTE_SECONDS = 5.0
"""The time between two looks of a process at its own gauges."""
KEPT_SECONDS = 10.0
"""How long is kept what was seen on the disk and in the index."""
LOOK_SECONDS = 2.0
"""How long an answer waits for a look at the disk and the index. After that it has what the last look saw."""
NAMESPACES_LIMIT = 100
"""The metrics with a label for the namespace have at most so many of them."""
OTHERS = "(others)"
"""Stands for all namespaces whose usage is not shown alone. No namespace can have this name."""
_USAGE = {
    "namespace_files": "record_count",
    "namespace_names": "name_count",
    "namespace_content_bytes": "size",
    "namespace_chunks": "chunk_count",
    "namespace_stored_bytes": "stored_size",
}
"""The field of `NamespaceUsage` of each metric."""
_DAY = 86400.0
_SECOND = 1_000_000
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATUS = {1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}
_NO_ROUTE = "other"
_BOUNDS = tuple(str(number) for number in range(len(BUCKETS) + 1))

Samples = dict[str, dict[Key, float]]
"""The values of metrics by the names of their families and the values of their labels.

A histogram has one more label: the number of a bucket, or `sum`.
"""


def count_request(record: RequestRecord) -> None:
    """Count a request that has ended. This takes a few microseconds.

    A client chooses its method and its path. So a method that is not known counts as `other`, and so does a path without
    a route.
    """
    route = record.route or _NO_ROUTE
    count(
        Event.REQUESTS, route, record.method if record.method in _METHODS else "other", _STATUS.get(record.status // 100, "cut")
    )
    bucket = next((number for number, bound in zip(_BOUNDS, BUCKETS, strict=False) if record.seconds <= bound), _BOUNDS[-1])
    count(Event.REQUEST_TIMES, route, bucket)
    count(Event.REQUEST_SECONDS, route, amount=record.seconds)
    count(Event.BYTES_RECEIVED, route, amount=record.bytes_received)
    count(Event.BYTES_SENT, route, amount=record.bytes_sent)
    if record.error:
        count(Event.ERRORS, record.error)


class Metrics:
    """The metrics of one server, as one of its processes knows them."""

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        *,
        shared_times: SharedTimes,
        traffic: Traffic,
        upload_quota: UploadQuota,
        limits: ServerLimits,
        note_memory: Callable[[], None],
    ) -> None:
        """`note_memory` notes the gauges of the memory that requests take."""
        self._index = index
        self._shared_times = shared_times
        self._traffic = traffic
        self._limits = limits
        self._note_memory = note_memory
        self._look = _Look(store, index, upload_quota)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Note the gauges of this process during the block."""
        note(Gauge.STARTED_AT, value=time.time())
        async with work_beside(self._note_for_ever()):
            try:
                yield
            finally:
                self._look.cancel()

    async def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics, and the type of this text, which `accept` may choose (the header Accept)."""
        await self._note()
        looked_at = await self._look.samples()
        text = await in_cpu_thread(importlib.import_module, "filestore.http.server.metrics_text")  # it takes 0.15 s
        rendered: tuple[bytes, str] = await in_cpu_thread(lambda: text.render(self._samples() | looked_at, accept))
        return rendered

    async def _note_for_ever(self) -> None:
        while True:
            await self._note()
            await asyncio.sleep(NOTE_SECONDS)

    async def _note(self) -> None:
        self._shared_times.own.note_usage()
        note(Gauge.REQUESTS, value=self._traffic.requests)
        note(Gauge.TRANSFERS, value=self._traffic.transfers)
        self._note_memory()
        for queue, waiting in {**self._index.waiting, **waiting_calls()}.items():
            note(Gauge.QUEUE, queue, value=waiting)
        await note_memory_and_files()

    def _samples(self) -> Samples:
        each_process = self._shared_times.each_process()
        plan = CollectionPlan(self._limits.gc_grace, self._limits.gc_rate)
        return {
            **samples_of(each_process),
            "processes": {(): len(each_process)},
            "collection_interval_seconds": {(): plan.interval_seconds if self._limits.gc_rate else 0},
            "scrub_interval_seconds": {(): self._limits.scrub_days * _DAY if self._limits.scrub_rate else 0},
            "numbers_left_out": {(): sum(process.numbers.left_out for process in each_process)},
        }


def samples_of(each_process: list[StageTimes], *, counted: Sequence[Family] = COUNTED) -> Samples:
    """Return what processes have counted and noted. `counted` are the sums over all processes."""
    return {
        **_counted(each_process, counted),
        **_staged(each_process),
        **_started(each_process),
        **_of_processes(each_process),
    }


METRICS = web.AppKey("metrics", Metrics)


async def show_metrics(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with all metrics, as a Prometheus server reads them."""
    # The numbers cover all namespaces. A token of one namespace must not learn about the others.
    if repository.namespace != DEFAULT_NAMESPACE:
        raise Forbidden("the server", DEFAULT_NAMESPACE)
    text, kind = await context.request.app[METRICS].text(context.request.headers.get("Accept", ""))
    return web.Response(body=text, headers={"Content-Type": kind, "Cache-Control": "no-store"})


class _Look:
    """What was seen on the disk and in the index. A disk that hangs holds up one look, and no answer for long."""

    def __init__(self, store: ChunkStore, index: Index, upload_quota: UploadQuota) -> None:
        self._store = store
        self._index = index
        self._upload_quota = upload_quota
        self._looking: asyncio.Task[None] | None = None
        self._ended: float | None = None
        self._seen: Samples = {}

    async def samples(self) -> Samples:
        """Return what was seen. It has nothing about what could not be looked at."""
        if self._looking is None and (self._ended is None or time.monotonic() - self._ended >= KEPT_SECONDS):
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=LOOK_SECONDS)
        return dict(self._seen)

    def cancel(self) -> None:
        """End the look that is in progress."""
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        try:
            for look in (self._disk, self._usage, self._index_and_scrubs, self._uploads):
                try:
                    self._seen |= await look()
                except FilestoreError as error:
                    log_failure("a part of the metrics cannot be measured", error)
        finally:
            self._ended = time.monotonic()
            self._looking = None

    async def _disk(self) -> Samples:
        disk = await self._store.disk()
        if disk is None:
            return {}
        return {f"disk_{name}_bytes": {(): value} for name, value in disk._asdict().items()}

    async def _uploads(self) -> Samples:
        uploads, size = await in_disk_thread(self._upload_quota.totals)
        in_store = await noted_totals(self._index)
        return {
            "uploads_open": {(): uploads},
            "uploads_open_bytes": {(): size},
            "uploads_in_store": {(): in_store.uploads},
            "uploads_in_store_bytes": {(): in_store.size},
        }

    async def _usage(self) -> Samples:
        """The largest namespaces are shown alone, and the sum of all others."""
        usages = sorted(await self._index.usages(), key=lambda usage: usage.stored_size, reverse=True)
        samples: Samples = {}
        for name, field in _USAGE.items():
            samples[name] = {(usage.namespace,): getattr(usage, field) for usage in usages[:NAMESPACES_LIMIT]}
            if len(usages) > NAMESPACES_LIMIT:
                samples[name][OTHERS,] = sum(getattr(usage, field) for usage in usages[NAMESPACES_LIMIT:])
        return samples

    async def _index_and_scrubs(self) -> Samples:
        namespaces = await self._index.namespaces()
        shown = sorted(namespaces)[:NAMESPACES_LIMIT]
        passes = {
            (namespace,): Pass.load(state)
            for namespace in shown
            if (state := await self._index.task_state(namespace, SCRUB_TASK)) is not None
        }
        collected = {(namespace,): await self._index.task_state(namespace, TASK) for namespace in shown}
        return {
            "collection_last_end_timestamp_seconds": {
                key: state["ended_at"] / _SECOND for key, state in collected.items() if state and "ended_at" in state
            },
            "index_size_bytes": {(): await self._index.stored_size()},
            "namespaces": {(): len(namespaces)},
            "scrub_position_ratio": {key: each.share_read for key, each in passes.items()},
            "scrub_pass_begin_timestamp_seconds": {key: each.begun_at / _SECOND for key, each in passes.items()},
            "scrub_last_pass_end_timestamp_seconds": {key: each.last_ended_at / _SECOND for key, each in passes.items()},
            "damaged_chunks": {key: len(each.damaged) for key, each in passes.items()},
        }


def _counted(each_process: list[StageTimes], families: Sequence[Family]) -> Samples:
    sums: defaultdict[str, defaultdict[Key, float]] = defaultdict(lambda: defaultdict(float))
    for process in each_process:
        for (name, *labels), value in process.numbers.all().items():
            sums[name][tuple(labels)] += value
    # Without labels there is always a sample, so that a rate is 0 and not absent.
    samples: Samples = {family.name: {**({} if family.labels else {(): 0.0}), **sums[family.source or ""]} for family in families}
    samples[DURATION.name] = dict(sums[Event.REQUEST_TIMES])
    for (route,), seconds in sums[Event.REQUEST_SECONDS].items():
        samples[DURATION.name][route, "sum"] = seconds
    return samples


def _staged(each_process: list[StageTimes]) -> Samples:
    stages = added([process.passed() for process in each_process])
    return {
        family.name: {(stage.value,): totals[place] for stage, totals in stages.items()} for place, family in enumerate(STAGES)
    }


def _started(each_process: list[StageTimes]) -> Samples:
    starts = added_starts([process.starts() for process in each_process])
    return {
        "pipeline_starts": {(): starts.times},
        "pipeline_runs_without_start": {(): starts.already_loaded},
        "pipeline_start_bytes": {
            ("received",): starts.bytes_received,
            ("cached",): starts.bytes_cached,
            ("reused",): starts.bytes_reused,
        },
        "pipeline_start_seconds": {
            ("process",): starts.process_seconds,
            ("fetch",): starts.fetch_seconds,
            ("load",): starts.load_seconds,
        },
    }


def _of_processes(each_process: list[StageTimes]) -> Samples:
    samples: Samples = {family.name: {} for family in PROCESSES}
    for place, process in enumerate(each_process):
        key, numbers, usage = (str(place),), process.numbers.all(), process.usage()
        samples["process_cpu_seconds"][key] = usage.cpu_seconds
        samples["process_peak_memory_bytes"][key] = usage.peak_memory
        for family in PROCESSES:
            if family.source is not None and (family.source,) in numbers:
                samples[family.name][key] = numbers[family.source,]
    return samples


async def note_memory_and_files() -> None:
    """Note the resident memory and the open files of this process."""
    memory, files = await in_disk_thread(_memory_and_files)
    note(Gauge.MEMORY, value=memory)
    note(Gauge.OPEN_FILES, value=files)


def _memory_and_files() -> tuple[int, int]:
    """Return the resident memory of this process and the number of its open files, 0 where the system does not say."""
    memory = files = 0
    with suppress(OSError, ValueError):
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return memory, files
