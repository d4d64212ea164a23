"""Keep how the last collection and the last check of each namespace went: when, how long, and what they found.

They are in the states of two tasks of the index. An attempt that has begun and not ended is kept too: it is still in progress, or
its process was killed. The last one that came to its end stays beside a later one that did not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from filestore.core.timestamps import LAST_MOMENT
from filestore.errors import FilestoreError
from filestore.repository.index.protocol import Index
from filestore.repository.maintenance.collection_plan import TASK

NO_NAMESPACE = ""
"""Stands for the index as a whole, which a check looks at first."""
ERROR_LIMIT = 1000
"""Characters of an error that are kept."""
_NUMBER_LIMIT = 1 << 63


class ResultKind(StrEnum):
    """What has a result. The value is the name of the task in the index."""

    COLLECTION = "collection-result"
    CHECK = "check-result"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    """It was told to end early, such as at the end of the permitted hours."""
    FAILED = "failed"
    OPEN = "open"
    """It has not ended: it is in progress, or its process was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One attempt. Times are in microseconds since 1970."""

    began_at: int
    ended_at: int = 0
    """0 if it has not ended."""
    outcome: Outcome = Outcome.OPEN
    error: str = ""
    """Why it failed, in the words of the error."""
    facts: Mapping[str, int] = field(default_factory=dict)
    """What it found or did: numbers of things, and bytes in those whose names end in `size`."""

    @property
    def seconds(self) -> float:
        """How long it took. 0 if it has not ended, or if the clock was set back."""
        return max(0, self.ended_at - self.began_at) / 1_000_000

    def as_json(self) -> dict[str, Any]:
        """Return the result for the index."""
        return {
            "began_at": self.began_at,
            "ended_at": self.ended_at,
            "outcome": str(self.outcome),
            "error": self.error[:ERROR_LIMIT],
            "facts": dict(self.facts),
        }


class LastResults(NamedTuple):
    """What is known of one kind of work in a namespace."""

    last: TaskResult | None = None
    """The last attempt."""
    complete: TaskResult | None = None
    """The last one that came to its end. It may be the same."""


class Attempt:
    """An attempt in progress. `kept` gives it."""

    def __init__(self) -> None:
        self.outcome = Outcome.COMPLETE
        self.facts: Callable[[], Mapping[str, int]] = dict
        """Returns what was found so far."""


async def results_of(index: Index, namespace: str, kind: ResultKind) -> LastResults:
    """Return what is kept. What cannot be understood is not known. Raises StorageError."""
    state = await index.task_state(namespace, kind) or {}
    return LastResults(_parsed(state.get("last")), _parsed(state.get("complete")))


async def collection_results(index: Index, namespace: str) -> LastResults:
    """Return what is kept of collections, also what an earlier version kept: that of the last one that came to its end."""
    found = await results_of(index, namespace, ResultKind.COLLECTION)
    if found.complete is not None:
        return found
    earlier = _of_earlier_version(await index.task_state(namespace, TASK) or {})
    return LastResults(found.last or earlier, earlier)


async def keep_result(index: Index, namespace: str, kind: ResultKind, result: TaskResult) -> None:
    """Keep the result of an attempt in place of the last one. Raises StorageError, StorageFull, Busy."""
    async with index.transaction(namespace or None) as transaction:
        state = await index.task_state(namespace, kind) or {}
        state = {"last": result.as_json(), "complete": state.get("complete")}
        if result.outcome is Outcome.COMPLETE:
            state["complete"] = state["last"]
        await transaction.set_task_state(namespace, kind, state)


@asynccontextmanager
async def kept(index: Index, namespace: str, kind: ResultKind, *, now: Callable[[], int]) -> AsyncIterator[Attempt]:
    """Keep the result of the block, and before it that it has begun.

    A block that a FilestoreError ends has failed. One that is cancelled, or whose process is killed, stays open. `now` gives
    microseconds since 1970. Raises StorageError, StorageFull, Busy.
    """
    attempt, began_at = Attempt(), now()
    await keep_result(index, namespace, kind, TaskResult(began_at=began_at))
    try:
        yield attempt
    except FilestoreError as error:
        result = TaskResult(
            began_at=began_at, ended_at=now(), outcome=Outcome.FAILED, error=str(error), facts=dict(attempt.facts())
        )
        # The first error is the one to tell. It may be that of a full disk.
        with suppress(FilestoreError):
            await keep_result(index, namespace, kind, result)
        raise
    result = TaskResult(began_at=began_at, ended_at=now(), outcome=attempt.outcome, facts=dict(attempt.facts()))
    await keep_result(index, namespace, kind, result)


def _parsed(values: Any) -> TaskResult | None:
    """Return the result that `as_json` returned, or None if the values are not those of one."""
    if not isinstance(values, dict):
        return None
    began_at, ended_at = _moment(values.get("began_at")), _moment(values.get("ended_at"))
    error, facts = values.get("error"), values.get("facts")
    if began_at is None or ended_at is None or not (isinstance(error, str) and isinstance(facts, dict)):
        return None
    try:
        outcome = Outcome(str(values.get("outcome")))
    except ValueError:
        return None
    numbers = {name: value for name, value in facts.items() if type(value) is int and 0 <= value < _NUMBER_LIMIT}
    return TaskResult(began_at=began_at, ended_at=ended_at, outcome=outcome, error=error[:ERROR_LIMIT], facts=numbers)


def _of_earlier_version(state: dict[str, Any]) -> TaskResult | None:
    began_at, ended_at, report = _moment(state.get("started_at")), _moment(state.get("ended_at")), state.get("report")
    if began_at is None or ended_at is None or not isinstance(report, dict):
        return None
    parts = {name: report[name] for name in ("freed", "waiting", "kept") if isinstance(report.get(name), dict)}
    facts = {f"{name}_{key}": part.get(key) for name, part in parts.items() for key in ("count", "size")}
    facts["old_versions"] = report.get("old_versions")
    values = {"began_at": began_at, "ended_at": ended_at, "outcome": "complete", "error": "", "facts": facts}
    return _parsed(values)


def _moment(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < LAST_MOMENT else None
