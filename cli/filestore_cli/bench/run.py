"""Carry out a plan: make content, measure its transfer, and remove the content again."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import click

from filestore.core.progress import Progress
from filestore.core.references import Reference
from filestore.errors import FilestoreError, Forbidden, InvalidUrl, NotFound, OutsidePrefix, ScopeMissing, ServerError
from filestore.http.client.repository import default_connections
from filestore.system.files import free_space, remove_if_possible
from filestore.system.metrics import Stage, StageTotals, Usage, added
from filestore.system.threads import task_group
from filestore_cli.bench.processes import Job, Server, Worker, serving, working
from filestore_cli.hints import explained
from filestore_cli.progress import Activity, show_progress
from filestore_cli.start import say
from filestore_cli.text import for_display, in_units

_LINK_CHUNKS = 256
"""Chunks with which a link is measured. Their digests must fit into one line that a worker reads."""
"""Those of `filestore.http.client.repository`, if the user gives no number."""
CEILING_SIZE_MIN, CEILING_SIZE_MAX = 16 << 20, 256 << 20

Stages = Mapping[Stage, StageTotals]


class Link(TypedDict):
    """How clients communicate with a server."""

    connections: int | None
    processes: int | None
    transfer_memory: int | None
    stall_seconds: float
    retry_seconds: float
    tls_client_cert: str | None
    tls_client_key: str | None


class Plan(NamedTuple):
    """What to measure: each size with each number of clients."""

    verb: str
    """`upload` or `fetch`."""
    kind: str
    """The kind of content that is made."""
    path: Path | None
    """The path of the user's content, or None. If it is given, it is measured, and `sizes` has only its size."""
    sizes: Sequence[int]
    """The sizes to measure: the bytes that one client moves."""
    clients: Sequence[int]
    server: Server | None
    """The user's server. None means a server that is started for the measurement."""
    workers: int
    """Number of processes of a server that is started."""
    folder: Path
    codec: str
    link: Link


class Side(NamedTuple):
    """The numbers of one side: of all clients, or of all processes of the server."""

    processes: Sequence[Usage]
    peak_memory: int
    """The peak memory in bytes of the largest client, with all its processes, or of the largest process of a server since its
    start.
    """
    stages: Stages

    @property
    def cpu_seconds(self) -> float:
        """User and system time of all processes."""
        return sum(process.cpu_seconds for process in self.processes)

    @property
    def lock_seconds(self) -> float:
        """At most so long did all processes together hold their interpreter locks."""
        return sum(process.lock_seconds for process in self.processes)

    @property
    def busiest_lock_seconds(self) -> float:
        """At most so long did the process that did so longest hold its interpreter lock."""
        return max(process.lock_seconds for process in self.processes)


class Measurement(NamedTuple):
    """The result for one size and one number of clients."""

    size: int
    """Bytes of content of all clients together."""
    clients: int
    seconds: float
    bytes_moved: int
    """Encoded bytes of the frames that were sent or received."""
    bytes_shared: int
    """Bytes of content that did not have to move."""
    client: Side
    server: Side | None
    """None if the server does not report its numbers for this token."""
    machine_busy: float | None
    """The number of cores of this machine that any program kept busy. None if it is not known."""

    @property
    def rate(self) -> float:
        """Bytes of content per second."""
        return self.size / self.seconds


class BenchResult(NamedTuple):
    """The result of a whole plan."""

    url: str
    """The URL of the user's server, or of the last server that was started."""
    ceilings: Mapping[str, float]
    """Bytes a second."""
    runs: Sequence[Measurement]
    removed: int
    """Number of records that were removed from the user's server."""


def check_space(plan: Plan) -> None:
    """Raise ClickException if the files of the plan do not fit on the disk."""
    size, clients = max(plan.sizes), max(plan.clients)
    copies = (plan.path is None) + (plan.server is None)
    # Each client that uploads has content of its own. Each client that fetches writes a copy.
    needed = size * clients * copies if plan.verb == "upload" else size * (copies + clients)
    free = free_space(plan.folder)
    if free < max(needed, ceiling_size(plan)):
        raise click.ClickException(
            f"{for_display(plan.folder)} has {in_units(free)} free, and up to {in_units(needed)} are written there;"
            " give another --folder, a smaller --size or fewer --clients"
        )


async def measure(plan: Plan, *, shows_progress: bool) -> BenchResult:
    """Carry out `plan`. Raises ClickException, FilestoreError."""
    if plan.server is not None:
        # Checked before anything takes time: the server can be reached, and accepts the token.
        async with connected(plan.server, plan.link) as repository:
            await repository.identity()
    with tempfile.TemporaryDirectory(dir=plan.folder, prefix="filestore-bench-") as name:
        measuring = Measuring(plan, Path(name), shows_progress=shows_progress)
        job = {"do": "ceilings", "folder": name, "size": ceiling_size(plan)}
        measuring.ceilings |= await measuring.done(job, Activity("measure", counts=False), "this machine", total=0)
        runs = [await measuring.run(size, clients) for size in plan.sizes for clients in plan.clients]
        return BenchResult(measuring.url, measuring.ceilings, runs, measuring.removed)


def ceiling_size(plan: Plan) -> int:
    """Return the bytes with which the ceilings of a plan are measured."""
    return min(max(*plan.sizes, CEILING_SIZE_MIN), CEILING_SIZE_MAX)


class Measuring:
    """The state of a plan that is carried out, in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path, *, shows_progress: bool) -> None:
        self.removed = 0
        self.ceilings: dict[str, float] = {}
        """The highest rates of this machine, and of the link to a server of the user."""
        self._sends = False
        self.url = ""
        self._plan = plan
        self._folder = folder
        self._shows_progress = shows_progress

    async def run(self, size: int, clients: int) -> Measurement:
        """Measure one size with one number of clients."""
        async with self._server() as server:
            self.url = server.url
            if self._plan.verb == "upload":
                return await self._upload(server, size, clients)
            return await self._fetch(server, size, clients)

    async def done(self, job: Job, activity: Activity, name: str | None = None, *, total: int) -> dict[str, Any]:
        """Do a job that is not a transfer to measure, and return its result. `name` is what the progress names."""
        async with working(self._folder, job) as worker, self._shown(activity, total, [worker], name):
            await worker.begin()
            return await worker.result()

    async def link(self, server: Server, direction: str, *, name: str | None = None) -> dict[str, Any]:
        """Measure the link to a server. Its direction is `send`, or `receive` with the name of a record whose frames are sent."""
        digests = "" if name is None else await _digests_of(server, name, self._plan.link)
        job = {"do": "link", "direction": direction, "digests": digests, **address_of(server, self._plan.link)}
        return await self.done(job, Activity("measure", counts=False), "the link", total=0)

    async def _find_link(self, server: Server, direction: str, *, name: str | None = None) -> None:
        """Note the rate of the link to a server of the user as a ceiling. It is left out if the server permits no measurement."""
        if self._plan.server is None or f"link_{direction}" in self.ceilings:
            return
        with suppress(click.ClickException):
            found = await self.link(server, direction, name=name)
            self.ceilings[f"link_{direction}"] = max(found["alone"], found["together"])

    async def _upload(self, server: Server, size: int, clients: int) -> Measurement:
        await self._find_link(server, "send")
        names = [new_name() for _ in range(clients)]
        async with self.removing(server, names), AsyncExitStack() as stack:
            paths = [await stack.enter_async_context(self.content(name, size)) for name in names]
            jobs = [self.transfer("upload", server, name, path) for name, path in zip(names, paths, strict=True)]
            return await self.moved(server, jobs, size)

    async def _fetch(self, server: Server, size: int, clients: int) -> Measurement:
        name = new_name()
        async with self.removing(server, [name]):
            async with self.content(name, size) as path:
                await self.done(self.transfer("upload", server, name, path), Activity("push"), total=size)
            await self._find_link(server, "receive", name=name)
            targets = [self._folder / f"fetched-{place}" for place in range(clients)]
            try:
                return await self.moved(server, [self.transfer("fetch", server, name, target) for target in targets], size)
            finally:
                for target in targets:
                    await asyncio.to_thread(remove_if_possible, target)

    async def moved(self, server: Server, jobs: Sequence[Job], size: int, *, verb: str | None = None) -> Measurement:
        """Do the transfers of `jobs` at the same time, and measure them. `size` is that of each, and `verb` that of the plan."""
        async with AsyncExitStack() as stack:
            workers = [await stack.enter_async_context(working(self._folder, job)) for job in jobs]
            for worker in workers:
                await worker.ready()
            before = await _status(server, self._plan.link)
            await stack.enter_async_context(self._shown(Activity(verb or self._plan.verb), size * len(jobs), workers))
            busy_before = busy_seconds()
            started = time.perf_counter()
            for worker in workers:
                await worker.begin()
            async with task_group() as group:
                ending = [group.create_task(worker.result()) for worker in workers]
            seconds = time.perf_counter() - started
            busy_after = busy_seconds()
        results = [ended.result() for ended in ending]
        after = await _status(server, self._plan.link)
        return Measurement(
            size=sum(result["size"] for result in results),
            clients=len(jobs),
            seconds=seconds,
            bytes_moved=sum(result["bytes_moved"] for result in results),
            bytes_shared=sum(result["bytes_shared"] for result in results),
            client=_all_clients(results),
            server=None if before is None or after is None else _since(before, after),
            machine_busy=None if busy_before is None or busy_after is None else (busy_after - busy_before) / seconds,
        )

    def transfer(self, verb: str, server: Server, name: str, path: Path) -> Job:
        """Return the job of a client that uploads or fetches."""
        self._sends |= verb == "upload"
        return {
            "do": verb,
            "url": server.url,
            "token": server.token,
            "proxy": server.proxy,
            "name": name,
            "path": str(path),
            "codec": self._plan.codec,
            **self._plan.link,
        }

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[Server]:
        if self._plan.server is not None:
            yield self._plan.server
            return
        async with serving(self._folder, workers=self._plan.workers) as server:
            yield server

    @asynccontextmanager
    async def content(self, name: str, size: int) -> AsyncIterator[Path]:
        """Yield content to upload: the content of the user, or new content that is removed at the end of the block."""
        if self._plan.path is not None:
            yield self._plan.path
            return
        path = self._folder / name
        # A new seed each time: the same seed gives the same content, which would not be sent again.
        job = {"do": "make", "kind": self._plan.kind, "path": str(path), "size": size, "seed": secrets.randbits(63)}
        try:
            await self.done(job, Activity("make"), total=size)
            yield path
        finally:
            await asyncio.to_thread(remove_if_possible, path)

    @asynccontextmanager
    async def removing(self, server: Server, names: Sequence[str]) -> AsyncIterator[None]:
        """Remove the records with these names from the user's server at the end, also if the measurement fails."""
        try:
            yield
        except BaseException:
            if self._plan.server is not None and self._sends:
                say(
                    f"Warning: chunks that were already sent to {for_display(server.url)} stay there,"
                    " because nothing removes chunks without a record yet."
                )
            raise
        finally:
            if self._plan.server is not None:
                try:
                    self.removed += await _remove_records(server, names, self._plan.link)
                except FilestoreError as error:
                    kept = f"the records named {', '.join(names)} may still be there, since {for_display(explained(error))}"
                    say(f"Warning: {kept}; `filestore rm` removes them.")

    @asynccontextmanager
    async def _shown(
        self, activity: Activity, total: int, workers: Sequence[Worker], name: str | None = None
    ) -> AsyncIterator[None]:
        """Show the progress of all workers together. By default, it names the content."""
        label = name or str(self._plan.path or self._plan.kind)
        async with show_progress(activity, label, enabled=self._shows_progress) as report:

            def tell() -> None:
                if report is not None:
                    report(Progress(total, sum(worker.done for worker in workers), 0, 0, 0))

            for worker in workers:
                worker.on_done = tell
            yield


def new_name() -> str:
    """Return a name that no other record has, so that only our own record is removed."""
    return f"filestore-bench-{secrets.token_hex(16)}"


@asynccontextmanager
async def connected(server: Server, link: Link) -> AsyncIterator[Any]:
    """Give the repository of a server. Raises InvalidUrl for a folder."""
    from filestore.backends import connect, repository_folder  # heavy

    if repository_folder(server.url) is not None:
        raise InvalidUrl(server.url, "a server's URL looks like http://HOST:PORT")
    async with connect(server.url, token=server.token, proxy=server.proxy, **link) as repository:
        yield repository


def address_of(server: Server, link: Link) -> dict[str, Any]:
    """Return what a worker needs to reach a server by plain HTTP."""
    return {
        "url": server.url,
        "token": server.token,
        "proxy": server.proxy,
        "certificate": [link["tls_client_cert"], link["tls_client_key"]],
        "stall_seconds": link["stall_seconds"],
        "connections": connection_count(link),
    }


def connection_count(link: Link) -> int:
    """Return how many connections one process of a client uses at most."""
    return link["connections"] or default_connections()


async def _digests_of(server: Server, name: str, link: Link) -> str:
    """Return the digests of some chunks of a record, in hexadecimal digits."""
    from filestore.core.manifest import Manifest  # heavy

    async with connected(server, link) as repository:
        record = await repository.record(Reference(name=name))
        manifest = Manifest.parse(await repository.manifest(record.digest))
    digests = list(dict.fromkeys(digest for digest, _ in manifest.chunks))
    return b"".join(digests[:_LINK_CHUNKS]).hex()


async def _remove_records(server: Server, names: Sequence[str], link: Link) -> int:
    """Remove the records with these names, and the chunks that no other record needs. Return the number of records."""
    count = 0
    async with connected(server, link) as repository:
        for name in names:
            try:
                record = await repository.record(Reference(name=name))
            except NotFound:
                # A client that failed recorded nothing.
                continue
            await repository.remove(record.id, with_chunks=True)
            count += 1
    return count


async def _status(server: Server, link: Link) -> Side | None:
    """Return the numbers of the server since its start, or None if it does not report them."""
    async with connected(server, link) as repository:
        try:
            said = await repository.status()
        except (Forbidden, ScopeMissing, OutsidePrefix, ServerError):
            return None
    try:
        stages = {Stage(name): StageTotals(**passed) for name, passed in said["stages"].items() if name in set(Stage)}
        # A server of an earlier version does not tell of its lock.
        processes = [
            Usage(float(process["cpu_seconds"]), int(process["peak_memory"]), float(process.get("lock_seconds", 0)))
            for process in said["processes"]
        ]
        return Side(processes, max(process.peak_memory for process in processes), stages)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _since(before: Side, after: Side) -> Side:
    passed = {stage: passed.since(before.stages.get(stage, StageTotals())) for stage, passed in after.stages.items()}
    entered = {stage: since for stage, since in passed.items() if since.times}
    processes = [
        Usage(now.cpu_seconds - then.cpu_seconds, now.peak_memory, now.lock_seconds - then.lock_seconds)
        for then, now in zip(before.processes, after.processes, strict=True)
    ]
    return Side(processes, after.peak_memory, entered)


def _all_clients(results: Sequence[Mapping[str, Any]]) -> Side:
    clients = [[Usage(**process) for process in result["processes"]] for result in results]
    return Side(
        [process for client in clients for process in client],
        max(sum(process.peak_memory for process in client) for client in clients),
        added([{Stage(name): StageTotals(**passed) for name, passed in result["stages"].items()} for result in results]),
    )


def busy_seconds() -> float | None:
    """Return the processor time of all programs of this machine since its start, or None if the system does not tell it."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
