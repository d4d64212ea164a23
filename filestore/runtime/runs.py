"""The runs of a runtime: their states, their answers, and which of them are kept."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from filestore.core.timestamps import format_seconds
from filestore.errors import FilestoreError
from filestore.http.server.errors import log_failure
from filestore.runtime.database import Database
from filestore.runtime.errors import RunFailed, RunLost, RunTimedOut, TooManyRuns, UnknownRun
from filestore.runtime.generators import RunStream
from filestore.runtime.kept_clock import KeptClock
from filestore.runtime.pipelines import Pipeline
from filestore.runtime.printed import Line, RunLog
from filestore.runtime.starts import PipelineStart
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done

KEPT_SECONDS = 7 * 86400
"""How long the result and the log of an ended run are kept by default."""
KEPT_SIZE = 256 << 20
"""Bytes of the results and the logs of ended runs. The newest ones within this limit are kept."""
WAITING_LIMIT = 1000
"""The largest number of runs that have not ended. TooManyRuns is raised for more."""
WAITING_SIZE = 64 << 20
"""The largest number of bytes that the requests of these runs have together. TooManyRuns is raised for more."""
UNSTORED_SIZE = 64 << 20
"""Bytes of the outputs of ended runs that are kept in memory while they cannot be stored, such as on a full disk."""

_SUMMARY = "id, pipeline_id, environment_id, created_at, updated_at, state, url_mark, failure, start"
_ID_LIMIT = 100


class State(IntEnum):
    """The states of the Pipeline SDK's `RunState`: version 1 uses the numbers, version 2 the `word`."""

    CACHING_GRAPH = 6
    RUNNING = 7
    COMPLETED = 10
    FAILED = 12
    IN_QUEUE = 16

    @property
    def word(self) -> str:
        """The name of the state in version 2, which has fewer states."""
        return {State.CACHING_GRAPH: "routing", State.IN_QUEUE: "queued"}.get(self, self.name.lower())


def timestamp() -> str:
    """Return the current time in the format of answers."""
    return format_seconds(time.time())


class Failure(NamedTuple):
    """Why a run failed, as its answers tell it."""

    exception: str
    traceback: str
    is_timeout: bool


@dataclass(slots=True, eq=False)
class Run:
    """One run of a pipeline."""

    pipeline_id: str
    environment_id: str
    request_size: int = 0
    id: str = field(default_factory=lambda: f"run_{uuid.uuid4().hex}")
    created_at: str = field(default_factory=timestamp)
    updated_at: str = field(default_factory=timestamp)
    state: State = State.IN_QUEUE
    url_mark: str = field(default_factory=lambda: secrets.token_hex(16))
    """In `outputs`, this and `:` and the id of a file stand for the file's URL. Nobody outside knows the mark."""
    outputs: bytes | None = None
    """The outputs as JSON, which takes a tenth of the memory of the values."""
    failure: Failure | None = None
    start: PipelineStart | None = None
    """What the start of the pipeline took. None until it is started."""
    log: RunLog = field(default_factory=RunLog)
    """What the pipeline printed during this run."""
    stream: RunStream | None = None
    """Where the outputs go while the run goes on, if a client reads them there."""
    uses: frozenset[str] = frozenset()
    """The ids of outputs of earlier runs that are inputs of this one."""
    is_cancelled: bool = False
    task: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_ended(self) -> bool:
        """Whether the run will not change any more."""
        return self.state in {State.COMPLETED, State.FAILED}

    def enter(self, state: State) -> None:
        """Set the state of the run."""
        self.state, self.updated_at = state, timestamp()

    def complete(self, outputs: bytes) -> None:
        """End the run successfully, with its stored `outputs` as JSON."""
        self.outputs = outputs
        self.enter(State.COMPLETED)

    def fail(self, failure: RunFailed) -> None:
        """End the run without outputs."""
        self.failure = Failure(str(failure), failure.traceback, isinstance(failure, RunTimedOut))
        self.enter(State.FAILED)

    @property
    def _start_as_json(self) -> dict[str, object] | None:
        """A member of our own in both formats."""
        return None if self.start is None else self.start.as_json()

    def as_json(self, outputs: bytes | None = None) -> dict[str, Any]:
        """Return the members of `Run` in version 1 of the Pipeline SDK.

        `outputs` is the outputs as JSON, in which the URLs of files stand in the place of the `url_mark`.
        For a failed run, `detail` states the reason, as in every error.
        """
        answer: dict[str, Any] = {
            "id": self.id,
            "created_at": self.created_at,
            "pipeline_id": self.pipeline_id,
            "environment_id": self.environment_id,
            "environment_hash": "",
            "state": self.state.value,
            "error": None,
            "result": None,
            "filestore": self._start_as_json,
        }
        if outputs is not None:
            answer["result"] = {"run_id": self.id, "outputs": json.loads(outputs)}
        if self.failure is not None:
            answer["error"] = {"exception": self.failure.exception, "traceback": self.failure.traceback or None}
            answer["detail"] = self.failure.exception
        return answer

    def as_json_v4(self, outputs: bytes | None = None) -> dict[str, Any]:
        """Return the members of `ClusterRunResult` in version 2 of the Pipeline SDK."""
        answer: dict[str, Any] = {
            "id": self.id,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "pipeline_id": self.pipeline_id,
            "state": self.state.word,
            "queue_position": None,
            "inputs": None,
            "outputs": None if outputs is None else json.loads(outputs),
            "error": None,
            "filestore": self._start_as_json,
        }
        if self.failure is not None:
            kind = "timeout" if self.failure.is_timeout else "pipeline_error"
            answer["error"] = {
                "type": kind,
                "message": self.failure.exception,
                "traceback": self.failure.traceback or None,
            }
            answer["detail"] = self.failure.exception
        return answer


class Runs:
    """Holds all runs that have not ended, and keeps ended ones in the database, for a time and within a size.

    A run is in the database before its request is answered, and its result before anybody is told of it. The limit of the
    size may be exceeded by the newest run. Make it with `open_runs`.
    """

    def __init__(
        self, database: Database, clock: KeptClock, *, kept_seconds: float, kept_size: int, waiting_limit: int, waiting_size: int
    ) -> None:
        self._database = database
        self._clock = clock
        self._kept_seconds = kept_seconds
        self._kept_size = kept_size
        self._waiting: dict[str, Run] = {}
        self._waiting_limit = waiting_limit
        self._waiting_size = waiting_size
        self._unstored: dict[str, Run] = {}
        self._storing = asyncio.Lock()
        self._size = 0
        """Bytes of the ended runs in the database."""

    def open(self) -> None:
        """End the runs that were under way when an earlier runtime was killed. Blocks. Raises StorageError, StorageFull."""
        with self._database.write() as connection:
            lost = Run("", "")
            lost.fail(RunLost())
            connection.execute(
                "UPDATE runs SET state = ?, failure = ?, updated_at = ?, ended_at = ? WHERE ended_at IS NULL",
                (lost.state, json.dumps(lost.failure), lost.updated_at, self._clock.store(connection)),
            )
            (self._size,) = connection.execute("SELECT total(size) FROM runs").fetchone()
            self._size -= self._prune(connection, self._size)

    @property
    def waiting(self) -> list[Run]:
        """The runs that have not ended, the oldest first."""
        return list(self._waiting.values())

    async def add(self, pipeline: Pipeline, *, request_size: int) -> Run:
        """Add a run that waits for its start. Raises TooManyRuns if the queue is full, StorageError, StorageFull."""
        size = request_size + sum(run.request_size for run in self._waiting.values())
        if self._waiting and (len(self._waiting) >= self._waiting_limit or size > self._waiting_size):
            raise TooManyRuns(len(self._waiting))
        run = Run(pipeline.id, pipeline.environment_id, request_size)
        self._waiting[run.id] = run
        try:
            await shield_until_done(in_disk_thread(self._insert, run))
        except asyncio.CancelledError:
            # The client is gone before it learned the id.
            await shield_until_done(self.end(run, RunFailed("its client was gone before it began")))
            raise
        except BaseException:
            del self._waiting[run.id]
            run.ended.set()
            raise
        return run

    async def end(self, run: Run, outcome: bytes | RunFailed) -> None:
        """Store how a run ended: its outputs or its failure. Then mark it as ended, and wake its waiters.

        If it cannot be stored, it is kept in memory, and stored with one of the next runs.
        """
        ended = Run(run.pipeline_id, run.environment_id, id=run.id, created_at=run.created_at, start=run.start, log=run.log)
        if isinstance(outcome, RunFailed):
            ended.fail(outcome)
        else:
            ended.complete(outcome)
        self._unstored[run.id] = ended
        await self._store_ended()
        run.outputs, run.failure, run.updated_at, run.state = ended.outputs, ended.failure, ended.updated_at, ended.state
        if run.id in self._unstored:
            self._unstored[run.id] = run
            while len(self._unstored) > 1 and sum(len(each.outputs or b"") for each in self._unstored.values()) > UNSTORED_SIZE:
                del self._unstored[next(iter(self._unstored))]
        del self._waiting[run.id]
        run.ended.set()

    async def find(self, run_id: str) -> Run:
        """Return a run by its id. Raises UnknownRun, StorageError."""
        run = self._waiting.get(run_id) or self._unstored.get(run_id)
        if run is not None:
            return run
        return await in_disk_thread(self._select, run_id)

    async def lines(self, run_id: str) -> list[Line]:
        """Return what a run has printed up to now. Raises UnknownRun, StorageError."""
        run = self._waiting.get(run_id) or self._unstored.get(run_id)
        if run is not None:
            return run.log.lines()
        text = await in_disk_thread(self._select_lines, run_id)
        return await in_cpu_thread(lambda: [Line(*line) for line in json.loads(text)])

    async def page(self, *, pipeline_id: str | None, skip: int, limit: int) -> tuple[int, list[Run]]:
        """Return the number of all runs, and a page of them, the newest first and without outputs.

        `pipeline_id` selects those of one pipeline. Raises StorageError.
        """
        total, runs = await in_disk_thread(self._select_page, pipeline_id, skip, limit)
        return total, [self._waiting.get(run.id) or self._unstored.get(run.id) or run for run in runs]

    async def close(self) -> None:
        """Try once more to store the runs that could not be stored."""
        await self._store_ended()

    def _insert(self, run: Run) -> None:
        with self._database.write() as connection:
            connection.execute(
                f"INSERT INTO runs ({_SUMMARY}, lines, size) VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, '[]', 0)",  # noqa: S608  # a constant
                (run.id, run.pipeline_id, run.environment_id, run.created_at, run.updated_at, run.state, run.url_mark),
            )

    async def _store_ended(self) -> None:
        async with self._storing:
            for run in list(self._unstored.values()):
                try:
                    await shield_until_done(in_disk_thread(self._update, run, run.log.lines()))
                except FilestoreError as error:
                    log_failure(f"the result of {run.id} is not stored, and a restart will lose it", error)
                    return
                self._unstored.pop(run.id, None)

    def _update(self, run: Run, lines: Sequence[Line]) -> None:
        text, failure = json.dumps(lines), None if run.failure is None else json.dumps(run.failure)
        start = None if run.start is None else json.dumps(run.start.as_json())
        size = 1000 + len(run.outputs or b"") + len(failure or "") + len(text)
        with self._database.write() as connection:
            now = self._clock.store(connection)
            connection.execute(
                "UPDATE runs SET state = ?, updated_at = ?, outputs = ?, failure = ?, start = ?, lines = ?, size = ?,"
                " ended_at = ? WHERE id = ?",
                (run.state, run.updated_at, run.outputs, failure, start, text, size, now, run.id),
            )
            freed = self._prune(connection, self._size + size, newest=run.id)
        self._size += size - freed

    def _prune(self, connection: sqlite3.Connection, size: int, *, newest: str = "") -> int:
        """Remove the ended runs that are too old, and the oldest ones above the limit. Return their size.

        `size` is that of all ended runs. The run with the id `newest` stays.
        """
        freed = 0
        oldest = connection.execute(
            "SELECT number, size, ended_at FROM runs WHERE ended_at IS NOT NULL AND id != ? ORDER BY ended_at, number", (newest,)
        )
        horizon = self._clock.now() - self._kept_seconds
        numbers = []
        for number, own_size, ended_at in oldest:
            if ended_at >= horizon and size - freed <= self._kept_size:
                break
            numbers.append((number,))
            freed += own_size
        connection.executemany("DELETE FROM runs WHERE number = ?", numbers)
        return freed

    def _select(self, run_id: str) -> Run:
        row = self._row(f"{_SUMMARY}, outputs", run_id)
        run = _run(row[:-1])
        run.outputs = row[-1]
        return run

    def _select_lines(self, run_id: str) -> str:
        (text,) = self._row("lines", run_id)
        return str(text)

    def _row(self, columns: str, run_id: str) -> Any:
        row = None
        # SQLite fails for some texts that are no ids.
        if run_id.isascii() and len(run_id) < _ID_LIMIT:
            with self._database.read() as connection:
                row = connection.execute(f"SELECT {columns} FROM runs WHERE id = ?", (run_id,)).fetchone()  # noqa: S608  # constants
        if row is None:
            raise UnknownRun(run_id)
        return row

    def _select_page(self, pipeline_id: str | None, skip: int, limit: int) -> tuple[int, list[Run]]:
        condition, values = ("", ()) if pipeline_id is None else (" WHERE pipeline_id = ?", (pipeline_id,))
        with self._database.read() as connection:
            (total,) = connection.execute(f"SELECT count(*) FROM runs{condition}", values).fetchone()  # noqa: S608  # constants
            statement = f"SELECT {_SUMMARY} FROM runs{condition} ORDER BY number DESC LIMIT ? OFFSET ?"  # noqa: S608  # constants
            return total, [_run(row) for row in connection.execute(statement, (*values, limit, skip))]


def open_runs(
    database: Database,
    clock: KeptClock,
    *,
    kept_seconds: float = KEPT_SECONDS,
    kept_size: int = KEPT_SIZE,
    waiting_limit: int = WAITING_LIMIT,
    waiting_size: int = WAITING_SIZE,
) -> Runs:
    """Return the runs that a database keeps. Those that an earlier runtime did not end have failed. Blocks.

    Raises StorageError, StorageFull, Busy.
    """
    runs = Runs(
        database, clock, kept_seconds=kept_seconds, kept_size=kept_size, waiting_limit=waiting_limit, waiting_size=waiting_size
    )
    runs.open()
    return runs


def _run(row: Sequence[Any]) -> Run:
    """Return the run of a row with the columns `_SUMMARY`."""
    run_id, pipeline_id, environment_id, created_at, updated_at, state, url_mark, failure, start = row
    return Run(
        pipeline_id,
        environment_id,
        id=run_id,
        created_at=created_at,
        updated_at=updated_at,
        state=State(state),
        url_mark=url_mark,
        failure=None if failure is None else Failure(*json.loads(failure)),
        start=None if start is None else PipelineStart(**json.loads(start)),
    )
