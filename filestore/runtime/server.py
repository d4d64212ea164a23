"""The runtime that the routes use. It makes pipelines of uploads, and runs of requests.

Each run is done in the process of its pipeline.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from filestore.cache import Cache
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, FileURL
from filestore.errors import Busy, FilestoreError, NotFound, SourceError, StorageFull, TransferError
from filestore.http.server.errors import log_failure
from filestore.http.wire import status_of
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.runtime.adapter import Adapter
from filestore.runtime.database import Database, open_database
from filestore.runtime.environments import OWN_ONLY, Environments
from filestore.runtime.errors import RunCancelled, RunFailed, UnknownPipeline
from filestore.runtime.generators import RunStream, read_outputs
from filestore.runtime.kept_clock import KeptClock
from filestore.runtime.loaded import LoadedPipeline, LoadedPipelines
from filestore.runtime.pipelines import Pipeline, Pipelines
from filestore.runtime.printed import LogWriter, RunLog, readable_text
from filestore.runtime.process import PipelineProcess, ProcessLimits, start_process
from filestore.runtime.run_files import OutputRepository, RunFiles, remove_expired
from filestore.runtime.runs import KEPT_SECONDS, Run, Runs, State, open_runs
from filestore.runtime.starts import PipelineStart
from filestore.runtime.uses import Uses
from filestore.runtime.worker_protocol import UnsupportedValue, encode_value
from filestore.system.files import remove_if_possible, storage_errors, write_error
from filestore.system.locks import FileLock
from filestore.system.owners import PRIVATE_FOLDER, make_private
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done

_REASON_LIMIT = 1000
"""Characters of the reason of a failed run that are written to the log."""
_DECLARED: Mapping[str, object] = {"file": File, "directory": Directory, "url": FileURL, "handle": File}


MakeCache = Callable[[Repository], Cache]
"""A function that makes a cache in always the same folder. Each loaded pipeline has such a cache, and all runs share
one more.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeLimits:
    """The limits of a runtime."""

    pipelines: int
    """The number of processes at the same time."""
    process: ProcessLimits
    processes_per_pipeline: int = 1
    """The number of processes of one pipeline at the same time. They also count among those of all pipelines."""
    run_kept_seconds: float = KEPT_SECONDS
    """How long the result and the log of a run are kept after its end."""
    output_seconds: float | None = None
    """How long a file that runs have returned is kept after its last use. None keeps it for ever."""
    public_url: str | None = None
    """The URL of this server as clients know it. None if it is not known."""
    public_outputs: bool = False
    """Whether everyone who knows its path can read a file that a run has returned."""


class _LocalFile(NamedTuple):
    """A file of a run's inputs, on this machine."""

    kind: Kind
    path: Path


class _RunAdapter(Adapter):
    """An adapter that writes a mark in the place of each URL, because URLs are signed for each answer."""

    def __init__(self, cache: Cache, repository: Repository, *, url: str, mark: str) -> None:
        super().__init__(cache, repository, url=url)
        self._mark = mark

    async def _output_url(self, record: Record) -> str:
        return f"{self._mark}:{record.id}"


class Runtime:
    """Runs the pipelines of one repository. Make it with `open_runtime`; use it in one event loop."""

    def __init__(
        self,
        repository: LocalRepository,
        make_cache: MakeCache,
        folder: Path,
        *,
        pipelines: Pipelines,
        runs: Runs,
        run_files: RunFiles,
        environ: Mapping[str, str],
        limits: RuntimeLimits,
        environments: Environments = OWN_ONLY,
    ) -> None:
        self.environments = environments
        self.pipelines = pipelines
        self.runs = runs
        self.run_files = run_files
        self.uses = Uses(repository)
        self._repository = repository
        self._make_cache = make_cache
        self._cache = make_cache(repository)
        self.work_folder = folder / "work"
        self._environ = environ
        self._limits = limits
        self._loaded = LoadedPipelines(limit=limits.pipelines, limit_per_pipeline=limits.processes_per_pipeline)
        self._log_writer = LogWriter()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def limits(self) -> RuntimeLimits:
        """The limits of the runtime."""
        return self._limits

    @property
    def namespace(self) -> str:
        """The namespace in which the runtime stores files."""
        return self._repository.namespace

    async def begin(
        self, pipeline: Pipeline, input_data: list[Any], *, request: str, url: str, stream: RunStream | None = None
    ) -> Run:
        """Start a run. `url` is the URL of this server as the client knows it, and `request` the JSON of the request.

        The outputs are sent to `stream`, if there is one. Raises TooManyRuns, StorageError, StorageFull.
        """
        run = await self.runs.add(pipeline, request_size=len(request))
        run.stream = stream
        run.log = RunLog(self._log_writer, mark=f"{run.id} {pipeline.id}: ")
        # The run is a task of its own. It continues when the client is gone, and the client can ask for it later.
        run.task = asyncio.create_task(self._perform(run, pipeline, input_data, url))
        self._tasks.add(run.task)
        run.task.add_done_callback(self._tasks.discard)
        if run.is_cancelled:
            _cancel(run.task)
        return run

    async def cancel(self, run_id: str) -> Run:
        """End a run that waits or is under way, and its process. A run that has ended stays as it is.

        Raises UnknownRun, StorageError.
        """
        run = await self.runs.find(run_id)
        if not run.has_ended:
            run.is_cancelled = True
            if run.task is not None:
                _cancel(run.task)
            await run.ended.wait()
        return run

    async def outputs_of(self, run: Run, *, url: str, repository: Repository) -> bytes | None:
        """Return the outputs of a run as JSON, with URLs as `with_urls` puts them. None if it has no outputs."""
        return None if run.outputs is None else await self.with_urls(run, run.outputs, url=url, repository=repository)

    async def with_urls(self, run: Run, outputs: bytes, *, url: str, repository: Repository) -> bytes:
        """Put URLs below `url` that `repository` signs now in the place of the marks in outputs of a run, which are JSON.

        `repository` is that of the request that is answered, so the URLs are bound to its token.
        """
        # What a pipeline returns cannot hold the mark, so only places that the adapter filled are found.
        place = re.compile(rb'"path": ("(?:[^"\\]|\\.)*"), "url": "%s:(file_[0-9a-f]{32})"' % run.url_mark.encode())
        urls: dict[bytes, bytes] = {}
        for stored_path, file_id in set(await in_cpu_thread(place.findall, outputs)):
            try:
                path = await repository.sign(file_id.decode())
            except NotFound:
                path = quote(json.loads(stored_path))  # the answer there says that the file is gone
            urls[file_id] = json.dumps(f"{url}/{path}").encode()
        return await in_cpu_thread(place.sub, lambda found: b'"path": %s, "url": %s' % (found[1], urls[found[2]]), outputs)

    def as_resource(self) -> dict[str, Any]:
        """Return the members that the Pipeline SDK prints of a machine that runs pipelines."""
        waiting = [run.id for run in self.runs.waiting]
        return {
            "id": f"runtime-{os.getpid()}",
            "pipeline_cache": {"loaded": self._loaded.pipeline_ids},
            "busy": int(bool(waiting)),
            "current_run": waiting[0] if waiting else -1,
            "run_queue": waiting[1:],
            "gpus": None,
        }

    async def repair_uses(self) -> None:
        """Add missing uses of pipelines to the index, and remove those whose pipeline does not exist. See `uses`."""
        await self.uses.repair(await in_disk_thread(self.pipelines.all), self._cache)

    async def unload(self, pipeline_id: str) -> None:
        """End the processes of a pipeline that was deleted, as soon as none of its runs is under way."""
        await self._loaded.unload(pipeline_id)

    async def release_if_deleted(self, pipeline: Pipeline) -> None:
        """Remove the uses of a pipeline that was deleted while they were written."""
        try:
            await in_disk_thread(self.pipelines.find, pipeline.id)
        except UnknownPipeline:
            await self.uses.remove(pipeline)

    async def close(self) -> None:
        """End all runs and all processes."""
        tasks = list(self._tasks)
        for task in tasks:
            _cancel(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.runs.close()
        await self._loaded.close()
        await self._cache.close()
        await in_disk_thread(self._log_writer.close)
        await in_disk_thread(remove_if_possible, self.work_folder)

    async def _perform(self, run: Run, pipeline: Pipeline, input_data: list[Any], url: str) -> None:
        """Do a run to its end, successful or not."""
        outcome: bytes | RunFailed | None = None
        try:
            run.uses = await in_disk_thread(self.run_files.note_inputs, input_data)
            adapter = _RunAdapter(self._cache, self._repository, url=url, mark=run.url_mark)
            async with self._loaded.acquire(pipeline.id, partial(self._load, run, pipeline)) as loaded:
                if run.start is None:
                    run.start = PipelineStart(was_loaded=True)
                run.start.report(run.id, pipeline.id, self._log_writer)
                run.enter(State.RUNNING)
                between_runs = RunLog(self._log_writer, mark=f"{pipeline.id}: ")
                with loaded.process.printed.into(run.log, otherwise=between_runs):
                    outcome = await self._outputs(run, loaded, input_data, adapter)
        except RunFailed as failure:
            outcome = failure
        except Exception as error:  # noqa: BLE001  # any error ends this run only
            outcome = _failure(run, error)
        finally:
            if outcome is None:
                outcome = RunCancelled() if run.is_cancelled else RunFailed("the server was stopped before the run had ended")
            if isinstance(outcome, RunFailed):
                reason = readable_text(" ".join(str(outcome)[:_REASON_LIMIT].split()).encode(errors="backslashreplace"))
                self._log_writer.write([f"{run.id} {pipeline.id}: the run has failed: {reason}"])
            try:
                await shield_until_done(self.runs.end(run, outcome))
            finally:
                if run.stream is not None:
                    run.stream.end()

    async def remove_expired_outputs(self) -> None:
        """Remove the files of earlier runs that have expired, if there is a limit of time for them."""
        if self._limits.output_seconds is not None:
            in_use = frozenset().union(*(run.uses for run in self.runs.waiting))
            await remove_expired(self.run_files, self._repository, expire_seconds=self._limits.output_seconds, in_use=in_use)

    def start_expiry(self) -> None:
        """Remove expired outputs from now on, until the runtime is closed."""
        if self._limits.output_seconds is not None:
            self._tasks.add(asyncio.create_task(self._expire(max(1.0, min(3600.0, self._limits.output_seconds / 10)))))

    async def _expire(self, interval_seconds: float) -> None:
        while True:
            try:
                await self.remove_expired_outputs()
            except Exception as error:  # noqa: BLE001  # the next time may be better
                log_failure("expired outputs are not removed", error)
            await asyncio.sleep(interval_seconds)

    async def _load(self, run: Run, pipeline: Pipeline) -> LoadedPipeline:
        """Load the pipeline into a new process and start it.

        Later runs use its static files too, so the URL by which the client of the first run knows this server does not
        count for them.
        """
        run.enter(State.CACHING_GRAPH)
        # It may have been deleted while the run waited.
        await in_disk_thread(self.pipelines.find, pipeline.id)
        environment = self.environments.find(pipeline.environment_id)
        # A cache of its own: the files that it resolves stay pinned until the pipeline is ended.
        cache = self._make_cache(self._repository)
        folder = self.work_folder / run.id
        limits = self._limits.process
        start = PipelineStart()
        with start.process():
            process = await start_process(folder, environ=self._environ, limits=limits, environment=environment, log=run.log)
        loaded = LoadedPipeline(pipeline.id, process, cache, [])
        try:
            with start.process():
                await process.ask("import_sdk", {}, what="the start of the process")
            adapter = Adapter(cache, self._repository, url=self._limits.public_url)
            start.add_files(graph := await adapter.prepare([File(id=pipeline.graph_id)]))
            with start.load():
                answer = await process.ask("load", {"graph": str(graph.paths[0])}, what="the loading of the pipeline")
            files = [_static(**values) for values in answer["files"]]
            await self.uses.add_loaded(pipeline, files)
            await self.release_if_deleted(pipeline)
            start.add_files(prepared := await adapter.prepare(files))
            with start.load():
                await process.ask("start", {"paths": [str(path) for path in prepared.paths]}, what="the start of the pipeline")
        except BaseException:
            await shield_until_done(loaded.end())
            raise
        run.start = start
        return loaded._replace(input_kinds=[str(kind) for kind in answer["inputs"]])

    async def _outputs(self, run: Run, loaded: LoadedPipeline, input_data: list[Any], adapter: Adapter) -> bytes:
        """Do the run, store its outputs, and return them as JSON."""
        declared = [_DECLARED.get(kind) for kind in loaded.input_kinds]
        async with adapter.inputs(input_data, declared, make=_LocalFile) as arguments, _folder(loaded.process, run) as folder:
            # In threads, because the arguments may be megabytes of JSON.
            sent = await in_cpu_thread(_encode_arguments, arguments, input_data)
            answer = await loaded.process.ask("run", {"inputs": sent, "folder": str(folder)}, what="the run")
            outputs = await read_outputs(loaded.process, answer["outputs"], adapter, stream=run.stream)
        return (await in_cpu_thread(json.dumps, outputs)).encode()


@asynccontextmanager
async def open_runtime(
    repository: OutputRepository,
    make_cache: MakeCache,
    folder: Path,
    *,
    environ: Mapping[str, str],
    limits: RuntimeLimits,
    environments: Environments = OWN_ONLY,
) -> AsyncIterator[Runtime]:
    """Open a runtime that keeps its pipelines in `folder`. Its processes get `environ` and end with the block.

    Raises Busy while another runtime uses the folder, StorageError, StorageFull, UnknownFormat.
    """
    lock = await in_disk_thread(_locked, folder)
    try:
        async with _database(folder) as database:
            pipelines = await in_disk_thread(Pipelines, database, folder / "pipelines")
            clock = await in_disk_thread(_clock, database)
            runs = await in_disk_thread(partial(open_runs, database, clock, kept_seconds=limits.run_kept_seconds))
            repository.run_files = RunFiles(database, clock)
            runtime = Runtime(
                repository,
                make_cache,
                folder,
                pipelines=pipelines,
                runs=runs,
                run_files=repository.run_files,
                environ=environ,
                limits=limits,
                environments=environments,
            )
            try:
                # A killed runtime leaves its work folder.
                await in_disk_thread(remove_if_possible, runtime.work_folder)
                await runtime.repair_uses()
                runtime.start_expiry()
                yield runtime
            finally:
                await shield_until_done(runtime.close())
    finally:
        lock.release()


@asynccontextmanager
async def _database(folder: Path) -> AsyncIterator[Database]:
    database = await in_disk_thread(open_database, folder)
    try:
        yield database
    finally:
        await shield_until_done(in_disk_thread(database.close))


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task after its first step. Before that step, it would end without noticing the cancel."""
    asyncio.get_running_loop().call_soon(task.cancel)


def _clock(database: Database) -> KeptClock:
    with database.read() as connection:
        return KeptClock(connection)


def _locked(folder: Path) -> FileLock:
    """Return the lock of a runtime's folder, acquired. Raises Busy if another runtime has it, StorageError.

    The lock is required: without it, a runtime would remove the files of another one in the folder.
    """
    with storage_errors(folder, translate=write_error):
        make_private(folder)
        lock = FileLock.of_file(folder / "lock", is_required=True)
    try:
        if not lock.try_acquire():
            raise Busy(str(folder), "another runtime runs its pipelines; stop that runtime first")
    except FilestoreError:
        lock.release()
        raise
    return lock


@asynccontextmanager
async def _folder(process: PipelineProcess, run: Run) -> AsyncIterator[Path]:
    """Make the folder in which a run works. It is removed after the run's outputs are stored."""
    folder = process.folder / run.id
    await in_disk_thread(folder.mkdir, PRIVATE_FOLDER)
    try:
        yield folder
    finally:
        await shield_until_done(in_disk_thread(remove_if_possible, folder))


def _static(*, kind: str, id: str | None, url: str | None, path: str | None) -> File | Directory:  # noqa: A002  # as messages have it
    """Return a static file of a graph by its id, else its URL, else its path.

    The path is last, because it may be a path on the machine that uploaded the graph.
    """
    make = Directory if kind == "directory" else File
    if id is not None:
        return make(id=id)
    return make(path) if url is None else make(url=url)


def _encode_arguments(arguments: list[object], input_data: list[Any]) -> list[dict[str, Any]]:
    """Return the arguments in the format of messages."""
    return [encode_value(argument, _file_encoder(given)) for argument, given in zip(arguments, input_data, strict=True)]


def _file_encoder(given: Any) -> Any:
    """Return a function that describes the files in the arguments that were made from one input."""
    url = next((given[member] for member in ("file_url", "file_path") if given.get(member)), None)

    def encode_file(value: object) -> dict[str, Any] | None:
        return {"path": str(value.path), "kind": value.kind.value, "url": url} if isinstance(value, _LocalFile) else None

    return encode_file


def _failure(run: Run, error: Exception) -> RunFailed:
    """Return the failure of a run. Details that only concern the server are written to its log."""
    if isinstance(error, UnsupportedValue | SourceError | TransferError):
        return RunFailed(str(error))
    if isinstance(error, FilestoreError) and status_of(type(error)) < 500:
        return RunFailed(str(error))
    log_failure(f"{run.id} failed", error)
    reason = "its disk is full" if isinstance(error, StorageFull) else "its log says why"
    return RunFailed(f"the server failed during {run.id}; {reason}")
