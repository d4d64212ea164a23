"""What the process that transfers and its worker processes know of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from filestore.repository.protocol import Repository

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """A part of a transfer that a worker process does. It can be pickled and is small: it has no content of files."""

    async def run(self, worker: Worker, descriptors: Sequence[int]) -> T_co:
        """Do it, in the worker process. The result can be pickled.

        `descriptors` are open files. They are closed when this returns. An error is raised in the process that gave the job.
        """


class Worker(Protocol):
    """What a job has in the worker process that does it."""

    @property
    def repository(self) -> Repository:
        """The repository of the transfer, with connections of this process."""

    async def ask(self, question: object) -> Any:
        """Return what `answer(question)` returns in the process that gave the job."""

    def moved(self, size: int) -> None:
        """Count encoded bytes that moved. A negative number takes back some. It may be called in any thread."""

    def kept(self, key: str, make: Callable[[], T]) -> T:
        """Return the object that this process keeps for `key`, which `make` makes at the first call."""
