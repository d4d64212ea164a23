"""The runs of a runtime: their states, their answers, and which of them are kept."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from filestore.core.timestamps import format_seconds
from filestore.runtime.errors import RunFailed, RunTimedOut, TooManyRuns, UnknownRun
from filestore.runtime.generators import RunStream
from filestore.runtime.pipelines import Pipeline
from filestore.runtime.printed import RunLog
from filestore.runtime.starts import PipelineStart

REMEMBERED_SIZE = 64 << 20
"""Bytes of JSON of ended runs. The newest ones within this limit are kept."""
WAITING_LIMIT = 1000
"""The largest number of runs that have not ended. TooManyRuns is raised for more."""
WAITING_SIZE = 64 << 20
"""The largest number of bytes that the requests of these runs have together. TooManyRuns is raised for more."""


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


@dataclass(slots=True, eq=False)
class Run:
    """One run of a pipeline."""

    pipeline: Pipeline
    request_size: int
    id: str = field(default_factory=lambda: f"run_{uuid.uuid4().hex}")
    created_at: str = field(default_factory=timestamp)
    updated_at: str = field(default_factory=timestamp)
    state: State = State.IN_QUEUE
    outputs: bytes | None = None
    """The outputs as JSON, which takes a tenth of the memory of the values."""
    failure: RunFailed | None = None
    start: PipelineStart | None = None
    """What the start of the pipeline took. None until it is started."""
    log: RunLog = field(default_factory=RunLog)
    """What the pipeline printed during this run."""
    stream: RunStream | None = None
    """Where the outputs go while the run goes on, if a client reads them there."""
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
        self.failure = failure
        self.enter(State.FAILED)

    @property
    def size(self) -> int:
        """The approximate bytes of memory for keeping the run."""
        failure = "" if self.failure is None else f"{self.failure}{self.failure.traceback}"
        return 1000 + len(self.outputs or b"") + len(failure)

    @property
    def _start_as_json(self) -> dict[str, object] | None:
        """A member of our own in both formats."""
        return None if self.start is None else self.start.as_json()

    def as_json(self) -> dict[str, Any]:
        """Return the members of `Run` in version 1 of the Pipeline SDK.

        For a failed run, `detail` states the reason, as in every error.
        """
        answer: dict[str, Any] = {
            "id": self.id,
            "created_at": self.created_at,
            "pipeline_id": self.pipeline.id,
            "environment_id": self.pipeline.environment_id,
            "environment_hash": "",
            "state": self.state.value,
            "error": None,
            "result": None,
            "filestore": self._start_as_json,
        }
        if self.outputs is not None:
            answer["result"] = {"run_id": self.id, "outputs": json.loads(self.outputs)}
        if self.failure is not None:
            answer["error"] = {"exception": str(self.failure), "traceback": self.failure.traceback or None}
            answer["detail"] = str(self.failure)
        return answer

    def as_json_v4(self) -> dict[str, Any]:
        """Return the members of `ClusterRunResult` in version 2 of the Pipeline SDK."""
        answer: dict[str, Any] = {
            "id": self.id,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "pipeline_id": self.pipeline.id,
            "state": self.state.word,
            "queue_position": None,
            "inputs": None,
            "outputs": None if self.outputs is None else json.loads(self.outputs),
            "error": None,
            "filestore": self._start_as_json,
        }
        if self.failure is not None:
            kind = "timeout" if isinstance(self.failure, RunTimedOut) else "pipeline_error"
            answer["error"] = {"type": kind, "message": str(self.failure), "traceback": self.failure.traceback or None}
            answer["detail"] = str(self.failure)
        return answer


class Runs:
    """Holds all runs that have not ended, and the newest ended ones within a limit of memory."""

    def __init__(
        self, *, remembered_size: int = REMEMBERED_SIZE, waiting_limit: int = WAITING_LIMIT, waiting_size: int = WAITING_SIZE
    ) -> None:
        self._waiting: dict[str, Run] = {}
        self._waiting_limit = waiting_limit
        self._waiting_size = waiting_size
        self._ended: OrderedDict[str, Run] = OrderedDict()
        self._remembered = 0
        self._remembered_size = remembered_size

    @property
    def waiting(self) -> list[Run]:
        """The runs that have not ended, the oldest first."""
        return list(self._waiting.values())

    def add(self, pipeline: Pipeline, *, request_size: int) -> Run:
        """Add a run that waits for its start. Raises TooManyRuns if the queue is full."""
        size = request_size + sum(run.request_size for run in self._waiting.values())
        if self._waiting and (len(self._waiting) >= self._waiting_limit or size > self._waiting_size):
            raise TooManyRuns(len(self._waiting))
        run = Run(pipeline, request_size)
        self._waiting[run.id] = run
        return run

    def end(self, run: Run) -> None:
        """Mark a run as ended, and wake its waiters. The oldest ended runs beyond the limit are forgotten."""
        self._ended[run.id] = self._waiting.pop(run.id)
        self._remembered += run.size
        while self._remembered > self._remembered_size:
            _, oldest = self._ended.popitem(last=False)
            self._remembered -= oldest.size
        run.ended.set()

    def find(self, run_id: str) -> Run:
        """Return a run by its id. Raises UnknownRun."""
        run = self._waiting.get(run_id) or self._ended.get(run_id)
        if run is None:
            raise UnknownRun(run_id)
        return run
