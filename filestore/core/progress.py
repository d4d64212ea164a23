"""The progress of a transfer, as it is reported to the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a push, a fetch or a resolve. The `report` callback receives a new object at each step.

    The callback is called in the thread of the event loop. It must return soon. An exception that it raises ends the transfer.

    total: The size of the whole content in bytes.
    done: Bytes of content that are finished: sent, received, or already present (see `shared`). Of a chunk that is
        being transferred, the part that was transferred so far counts.
    moved: Bytes that went over the network so far: compressed chunks with their headers. So it is smaller than `done`
        where content is compressed or was there already, and at the end it is usually not `total`.
    shared: Bytes of `done` that did not have to be transferred, because the receiver had them already.
    read: Bytes of content that a push has read from its source, or that a fetch has found on this machine.
    file_count: The number of files: for a directory, the number of files in it; otherwise 1.
    files_done: The number of files that are finished.
    checked: Bytes that were read of `to_check`.
    to_check: Bytes of content on this machine that a fetch looks at before it receives anything. 0 when it does not.
    is_total_known: Whether `total` is the whole size. Otherwise more content may come, and `total` is what is known so far.
    """

    total: int
    done: int
    moved: int
    shared: int
    read: int
    file_count: int = 1
    files_done: int = 0
    checked: int = 0
    to_check: int = 0
    is_total_known: bool = True


Report = Callable[[Progress], None]


def without_repeats(report: Report) -> Report:
    """Return a function that calls `report`, unless the progress is equal to that of the last call."""
    last: Progress | None = None

    def tell(progress: Progress) -> None:
        nonlocal last
        if progress != last:
            last = progress
            report(progress)

    return tell
