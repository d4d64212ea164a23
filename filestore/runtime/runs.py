"""Runs: their states, what they are told as, and which of them are remembered."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from filestore.errors import RunFailed, RunTimedOut, TooManyRuns, UnknownRun
from filestore.runtime.pipelines import Pipeline

REMEMBERED_SIZE = 64 << 20
"""Bytes of JSON of runs that have ended, the newest of which are kept."""
WAITING_LIMIT = 1000
"""Runs that have not ended."""


class State(IntEnum):
    """What the Pipeline SDK's `RunState` calls these: in version 1 by its numbers, in version 2 by its `word`."""

    CACHING_GRAPH = 6
    RUNNING = 7
    COMPLETED = 10
    FAILED = 12
    IN_QUEUE = 16

    @property
    def word(self) -> str:
        """Version 2 has fewer."""
        return {State.CACHING_GRAPH: "routing", State.IN_QUEUE: "queued"}.get(self, self.name.lower())


def timestamp() -> str:
    """Now, as answers have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(slots=True, eq=False)
class Run:
    """One run of a pipeline."""

    pipeline: Pipeline
    id: str = field(default_factory=lambda: f"run_{uuid.uuid4().hex}")
    created_at: str = field(default_factory=timestamp)
    updated_at: str = field(default_factory=timestamp)
    state: State = State.IN_QUEUE
    outputs: Sequence[dict[str, Any]] | None = None
    failure: RunFailed | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_ended(self) -> bool:
        """Whether nothing about it will change."""
        return self.state in {State.COMPLETED, State.FAILED}

    def enter(self, state: State) -> None:
        """It has come that far."""
        self.state, self.updated_at = state, timestamp()

    def complete(self, outputs: Sequence[dict[str, Any]]) -> None:
        """It returned, and all that it returned is stored."""
        self.outputs = outputs
        self.enter(State.COMPLETED)

    def fail(self, failure: RunFailed) -> None:
        """It has no outputs, and never will."""
        self.failure = failure
        self.enter(State.FAILED)

    def as_json(self) -> dict[str, Any]:
        """What `Run` is made from in version 1 of the Pipeline SDK; of one that failed, `detail` says why, as of any error."""
        told: dict[str, Any] = {
            "id": self.id,
            "created_at": self.created_at,
            "pipeline_id": self.pipeline.id,
            "environment_id": self.pipeline.environment_id,
            "environment_hash": "",
            "state": self.state.value,
            "error": None,
            "result": None,
        }
        if self.outputs is not None:
            told["result"] = {"run_id": self.id, "outputs": self.outputs}
        if self.failure is not None:
            told["error"] = {"exception": str(self.failure), "traceback": self.failure.traceback or None}
            told["detail"] = str(self.failure)
        return told

    def as_json_v4(self) -> dict[str, Any]:
        """The same for version 2 of the SDK, whose `ClusterRunResult` it is."""
        told: dict[str, Any] = {
            "id": self.id,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "pipeline_id": self.pipeline.id,
            "state": self.state.word,
            "queue_position": None,
            "inputs": None,
            "outputs": self.outputs,
            "error": None,
        }
        if self.failure is not None:
            kind = "timeout" if isinstance(self.failure, RunTimedOut) else "pipeline_error"
            told["error"] = {"type": kind, "message": str(self.failure), "traceback": self.failure.traceback or None}
            told["detail"] = str(self.failure)
        return told


class Runs:
    """The runs that have not ended, all of them, and as many of the others as may be remembered."""

    def __init__(self, *, remembered_size: int = REMEMBERED_SIZE, waiting_limit: int = WAITING_LIMIT) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._size = 0
        self._remembered_size = remembered_size
        self._waiting_limit = waiting_limit

    def add(self, pipeline: Pipeline) -> Run:
        """A run that is to be done. Raises TooManyRuns."""
        if len(self._runs) - len(self._sizes) >= self._waiting_limit:
            raise TooManyRuns(self._waiting_limit)
        run = Run(pipeline)
        self._runs[run.id] = run
        return run

    def end(self, run: Run) -> None:
        """It has ended: whoever waits is told, and the oldest ended ones are forgotten where too much is remembered."""
        self._sizes[run.id] = len(json.dumps(run.as_json()))
        self._size += self._sizes[run.id]
        while self._size > self._remembered_size:
            oldest, size = self._sizes.popitem(last=False)
            self._size -= size
            del self._runs[oldest]
        run.ended.set()

    def find(self, run_id: str) -> Run:
        """Raises UnknownRun."""
        if run_id not in self._runs:
            raise UnknownRun(run_id)
        return self._runs[run_id]
