"""The errors of pipelines and their runs. They belong to the tree of `filestore.errors`.

FilestoreError
├── InvalidInput
│   ├── InvalidRun
│   └── UnknownEnvironment
├── InvalidArchive
│   └── FoldersLost
├── NotFound
│   ├── ExpiredOutput
│   ├── UnknownPipeline
│   ├── UnknownPointer
│   └── UnknownRun
├── PointerExists
├── PointerLocked
├── RunFailed                 a pipeline, or its run
│   ├── RunTimedOut
│   ├── RunCancelled
│   ├── RunLost
│   └── PipelineEnded
├── TooManyRuns
└── UnusableEnvironment       a Python that the runtime is given

A client that has imported this module raises the same errors as the server. Any other client raises ServerError
instead.
"""

from __future__ import annotations

from typing import ClassVar

from filestore.errors import FilestoreError, InvalidArchive, InvalidInput, NotFound
from filestore.http.wire import register_status
from filestore.transfer.repeated_names import WAY_ROUND


class InvalidRun(InvalidInput):
    """A part of a run's request, or of what a pipeline returned, cannot be used.

    `where` names that part, such as `outputs[0]`.
    """

    slug = "invalid-run"
    facts = ("where", "reason")
    sentence = "{where} of the run cannot be used: {reason}"
    where: str
    reason: str


class UnknownEnvironment(InvalidInput):
    """A pipeline asks for an environment that the runtime does not have. `known` lists those that it has."""

    slug = "unknown-environment"
    facts = ("environment", "known")
    sentence = "the environment {environment!r} is not known here; this runtime has {known}"


class UnusableEnvironment(FilestoreError):
    """A Python cannot run pipelines."""

    slug = "unusable-environment"
    facts = ("environment", "reason")
    sentence = "the environment {environment!r} cannot be used: {reason}"


class FoldersLost(InvalidArchive):
    """A directory of a pipeline was stored without its folders, and several of its files have the same name."""

    slug = "folders-lost"
    facts = ("name", "names")
    hint = "store-folder"
    sentence = (
        "a Directory of the pipeline or of the run, stored as {name!r}, cannot be unpacked: several files in it have the same "
        "name: {names}. upload_pipeline of the Pipeline SDK left out the folders; " + WAY_ROUND
    )
    name: str
    names: str


class ExpiredOutput(NotFound):
    """A file that a run has returned was removed, because its time was over."""

    slug = "expired-output"
    sentence = "{reference!r} was an output of a run and has expired; start the run again, and push what is needed for longer"
    hint = ""


class UnknownPipeline(NotFound):
    """No pipeline has this id, pointer or name."""

    slug = "unknown-pipeline"
    sentence = "no pipeline is known as {reference!r}; upload it, and run it by the id that the upload prints, or by its name"
    hint = ""


class UnknownPointer(NotFound):
    """No pipeline has this pointer."""

    slug = "unknown-pointer"
    sentence = "no pointer is known as {reference!r}; the list of pointers has all that can be moved, locked and deleted"
    hint = ""


class PointerExists(FilestoreError):
    """A new pointer, or a new pipeline, would have the name of a pointer or a pipeline that exists."""

    slug = "pointer-exists"
    facts = ("pointer",)
    sentence = "{pointer!r} is already the name of a pointer or a pipeline; choose another name, or move the pointer"
    pointer: str


class PointerLocked(FilestoreError):
    """A pointer is locked, so it is not moved, and it is not deleted with its pipeline."""

    slug = "pointer-locked"
    facts = ("pointer",)
    sentence = "the pointer {pointer!r} is locked, so it and its pipeline stay as they are; unlock the pointer first"
    pointer: str


class UnknownRun(NotFound):
    """No run has this id, or the run is too old."""

    slug = "unknown-run"
    sentence = "no run is known as {reference!r}; a run is kept for a time after its end, and only the latest ones are"
    hint = ""


class RunFailed(FilestoreError):
    """A pipeline could not be loaded or started, or its run failed. `traceback` is empty where its own code did not fail."""

    slug = "run-failed"
    facts: ClassVar[tuple[str, ...]] = ("exception", "traceback")
    sentence = "{exception}"
    traceback: str = ""


class RunTimedOut(RunFailed):
    """A pipeline took too long."""

    slug = "run-timed-out"
    facts = ("what", "seconds")
    sentence = "{what} took longer than {seconds:g} seconds and was ended; to allow more, raise the server's setting run_seconds"
    seconds: float


class RunCancelled(RunFailed):
    """A user has cancelled the run."""

    slug = "run-cancelled"
    facts = ()
    sentence = "the run was cancelled"


class RunLost(RunFailed):
    """The runtime has ended in the middle of the run, so nobody knows a result."""

    slug = "run-lost"
    facts = ()
    sentence = "the server ended in the middle of the run, and no result was stored; start the run again"


class PipelineEnded(RunFailed):
    """The process of a pipeline has ended."""

    slug = "pipeline-ended"
    facts = ("how", "what")
    sentence = "the process of the pipeline {how} in the middle of {what}; the next run is given a new one"


class TooManyRuns(FilestoreError):
    """The queue of runs is full."""

    slug = "too-many-runs"
    facts = ("count",)
    retryable = True
    sentence = "the queue of runs is full, {count} are waiting; try again when some have ended"
    count: int


register_status(PointerExists, 409)
register_status(PointerLocked, 409)
register_status(TooManyRuns, 429)
