"""A process of a measurement: `python -m filestore_cli.bench.worker`.

It makes content, measures ceilings, or is one client.

It reads a job, one line of JSON, from standard input. It writes lines of JSON to standard output: some times a second
`{"done": BYTES}`, and at the end `{"result": {...}}` or `{"error": "sentence"}`. A client also writes `{"ready":
true}`, and waits for a line before it begins. The process ends when its standard input is closed, since its parent has
then ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filestore.core.digest import DIGEST_SIZE
from filestore.core.progress import Progress
from filestore.core.records import Kind
from filestore.core.references import Reference
from filestore.errors import FilestoreError
from filestore.repository.protocol import Repository
from filestore.system.metrics import StageTimes, Usage, count_into, own_usage
from filestore_cli.hints import explained
from filestore_cli.start import sentence
from filestore_cli.transfer import codec_of

TELL_SECONDS = 0.1

Job = dict[str, Any]
Begin = Callable[[], Awaitable[None]]


def main() -> None:
    """Do the job that is read from standard input."""
    try:
        asyncio.run(_main())
    except FilestoreError as error:
        _say(error=explained(error))
    except Exception as error:  # noqa: BLE001  # every failure is reported in a sentence
        _say(error=sentence(error))


def _say(**said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    heard = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(heard), sys.stdin)
    job: Job = json.loads(await heard.readline())
    beginning = asyncio.Event()
    listening = asyncio.create_task(_listen(heard, beginning))

    async def begin() -> None:
        _say(ready=True)
        await beginning.wait()

    try:
        _say(result=await _JOBS[job["do"]](job, begin))
    finally:
        listening.cancel()


async def _listen(heard: asyncio.StreamReader, beginning: asyncio.Event) -> None:
    while await heard.readline():
        beginning.set()
    # At once, in the middle of the work: the parent has ended.
    os._exit(1)


class _ProgressWriter:
    """Write the progress of the work, a few times per second."""

    def __init__(self) -> None:
        self._tell_at = 0.0
        self._done = 0

    def add(self, size: int) -> None:
        """Note that `size` more bytes are done."""
        self._done += size
        self.tell(self._done)

    def report(self, progress: Progress) -> None:
        """Note the progress of a transfer."""
        self.tell(progress.done)

    def tell(self, done: int) -> None:
        """Note that `done` bytes are done, and write it if it is time to."""
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL_SECONDS
            _say(done=done)


async def _make(job: Job, _: Begin) -> Job:
    from filestore_cli.bench.content import make  # heavy: a client does not need it

    path = Path(job["path"])
    await asyncio.to_thread(make, job["kind"], path, size=job["size"], seed=job["seed"], done=_ProgressWriter().add)
    return {}


async def _find_ceilings(job: Job, _: Begin) -> Job:
    from filestore_cli.bench.ceilings import ceilings  # only here

    return dict(await asyncio.to_thread(ceilings, Path(job["folder"]), size=job["size"]))


class _WorkerResult(NamedTuple):
    size: int
    bytes_moved: int
    """Encoded bytes of the frames that were sent or received."""
    bytes_shared: int


async def _upload(job: Job, begin: Begin) -> Job:
    from filestore.transfer.push import push  # heavy

    codec = codec_of(job["codec"])

    async def move(repository: Repository) -> _WorkerResult:
        report = _ProgressWriter().report
        pushed = await push(repository, Path(job["path"]), name=job["name"], codec=codec, report=report)
        return _WorkerResult(pushed.record.size, pushed.bytes_sent, pushed.bytes_shared)

    return await _measured(job, begin, move)


async def _fetch(job: Job, begin: Begin) -> Job:
    from filestore.transfer.fetch import fetch  # heavy
    from filestore.transfer.fetch_tree import fetch_tree  # heavy

    async def move(repository: Repository) -> _WorkerResult:
        record = await repository.record(Reference(name=job["name"]))
        into = fetch_tree if record.kind is Kind.DIRECTORY else fetch
        fetched = await into(repository, record, target=Path(job["path"]), report=_ProgressWriter().report)
        return _WorkerResult(record.size, fetched.bytes_received, fetched.bytes_reused)

    return await _measured(job, begin, move)


async def _measured(job: Job, begin: Begin, move: Callable[[Repository], Awaitable[_WorkerResult]]) -> Job:
    from filestore.backends import connect  # heavy
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    import numpy as np  # noqa: F401  # the first chunk would load it, which is not a part of a transfer

    names = ("connections", "processes", "transfer_memory", "stall_seconds", "retry_seconds", "tls_client_cert", "tls_client_key")
    options = {name: job[name] for name in names}
    async with connect(job["url"], token=job["token"], proxy=job["proxy"], **options) as repository:
        await repository.identity()
        await begin()
        stage_times = StageTimes()
        count_into(stage_times)
        before = own_usage()
        started = time.monotonic()
        moved = await move(repository)
        seconds = time.monotonic() - started
        used = own_usage()
    own = Usage(used.cpu_seconds - before.cpu_seconds, used.peak_memory, used.lock_seconds - before.lock_seconds)
    return {
        **moved._asdict(),
        "seconds": seconds,
        "processes": [process._asdict() for process in (own, *worker_usages())],
        "stages": {stage.value: passed._asdict() for stage, passed in stage_times.passed().items()},
    }


async def _measure_link(job: Job, _: Begin) -> Job:
    return await asyncio.to_thread(_link_rates, job)


def _link_rates(job: Job) -> Job:
    from filestore_cli.bench import link  # only here

    address = _address(job)
    if job["direction"] == "send":
        move, largest = link.send_bare_body, link.FRAMES_MAX << 20
        found = {"round_trip_seconds": link.round_trip_seconds(address), "may_remove": link.may_remove(address)}
    else:
        digests = bytes.fromhex(job["digests"])
        count = len(digests) // DIGEST_SIZE

        def move(connection: link.PlainConnection, size: int) -> int:
            # A chunk has about a MiB.
            return link.receive_bare_body(connection, digests[: min(count, max(1, size >> 20)) * DIGEST_SIZE])

        largest, found = count << 20, {}
    alone, size = link.goodput(address, move, largest=largest)
    together = link.goodput_together(address, move, size=size, connections=job["connections"])
    return {**found, "alone": alone, "together": together}


async def _move_plainly(job: Job, _: Begin) -> Job:
    from filestore_cli.bench import link  # only here

    address, path, done = _address(job), Path(job["path"]), _ProgressWriter().add
    started = time.monotonic()
    if job["direction"] == "upload":
        stored = await asyncio.to_thread(link.upload_plainly, address, path, name=job["name"], done=done)
        return {"seconds": time.monotonic() - started, "path": stored}
    size = await asyncio.to_thread(link.download_plainly, address, job["name"], path, done=done)
    return {"seconds": time.monotonic() - started, "size": size}


def _address(job: Job) -> Any:
    from filestore_cli.bench.link import Address  # only here

    return Address(job["url"], job["token"], job["proxy"], tuple(job["certificate"]), job["stall_seconds"])


def worker_usages() -> Sequence[Usage]:
    """Return what the worker processes of the finished transfers of this process used. There may be none."""
    from filestore.transfer.workers import usage  # heavy

    return usage()


_JOBS = {
    "make": _make,
    "ceilings": _find_ceilings,
    "upload": _upload,
    "fetch": _fetch,
    "link": _measure_link,
    "plain": _move_plainly,
}


if __name__ == "__main__":
    main()
