"""Fetch a stored file to a stream, such as the standard output: each chunk is verified before any of its bytes is written."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace

from filestore.core.manifest import Manifest
from filestore.core.progress import Progress, Report
from filestore.core.records import Record
from filestore.repository.protocol import Repository
from filestore.system.threads import disk_threads, in_cpu_thread, in_stoppable_thread
from filestore.transfer.fetch_entry import FoundEntry, checked_kind, own_manifest
from filestore.transfer.receiver import Receiver
from filestore.transfer.schedule import DEFAULT_OPTIONS
from filestore.transfer.sinks.stream import StreamSink
from filestore.transfer.stored_tree import EntryKind, read_entry

_OPTIONS = replace(DEFAULT_OPTIONS, large_size=sys.maxsize)
"""No worker process can write to the stream."""


@dataclass(frozen=True, slots=True)
class FetchStreamResult:
    """What a fetch to a stream did.

    record: The record that was fetched.
    size: Bytes that were written.
    bytes_received: Bytes that were received: compressed chunks with their headers.
    seconds: How long the fetch took.
    """

    record: Record
    size: int
    bytes_received: int
    seconds: float


async def fetch_stream(
    repository: Repository,
    record: Record,
    descriptor: int,
    *,
    found: FoundEntry | None = None,
    check: Callable[[memoryview], None] | None = None,
    report: Report | None = None,
) -> FetchStreamResult:
    """Write the content of `record` to `descriptor`, in order. A directory is written as the zip file that it is stored as.

    found: a file of the stored directory of `record`, of which only the content is written.
    descriptor: a pipe, a socket or a file that is open for writing. The caller closes it. Nothing else writes to it meanwhile.
    check: called in a thread with each piece of content before it is written. An error that it raises ends the fetch.
    report: called with a `Progress` at each step, in the thread of the event loop.

    What was written is right, also if the fetch fails: it is then the beginning of the content.

    Cost: each chunk is received, verified and written once, several of them side by side. Nothing is written to this machine's
    disk, and memory is bounded, whatever the size.

    Cancellation: it does not wait for a reader that has stopped.

    Raises OSError where the descriptor cannot be written, BrokenPipeError where nobody reads it; InvalidReference for a folder
    and a link of a directory; InvalidArchive, DamagedChunk, ChunksMissing, NotFound, Unauthorized, TransferError.
    """
    started = time.monotonic()
    if found is not None:
        await checked_kind(repository, found, EntryKind.FILE)
        manifest = await in_cpu_thread(own_manifest, found)
        size = found.entry.size
    else:
        manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
        size = manifest.size
    with StreamSink(descriptor, size, check=check) as sink:
        if manifest is not None:
            receiving = Receiver(repository, manifest, report, options=_OPTIONS)
            await _stopped_with(sink.stop, _receive(receiving, sink))
            received = receiving.moved
        else:
            assert found is not None  # noqa: S101  # only such a file has no manifest
            received = await _read_small(repository, found, sink, report)
    return FetchStreamResult(record, size, received, time.monotonic() - started)


async def _receive(receiving: Receiver, sink: StreamSink) -> None:
    await receiving.reuse(sink, (), resume=False)
    await receiving.download(sink)


async def _read_small(repository: Repository, found: FoundEntry, sink: StreamSink, report: Report | None) -> int:
    """Write a file that shares its chunks with others, or that is deflated. Return how many bytes were received."""
    received = done = 0

    def count(size: int) -> None:
        nonlocal received
        received += size

    async for piece in read_entry(repository, found.tree, found.entry, moved=count):
        await in_stoppable_thread(disk_threads(), sink.stop, sink.put, memoryview(piece))
        done += len(piece)
        if report is not None:
            report(Progress(found.entry.size, done, received, 0, 0))
    return received


async def _stopped_with(stop: Callable[[], None], work: Coroutine[None, None, None]) -> None:
    """Do `work`. If this is cancelled, call `stop` first, which ends a thread that the work waits for."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            stop()
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # read, so that the loop does not report it as lost
        raise
