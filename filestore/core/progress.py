"""How far a transfer is, as its caller is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a push, a fetch or a resolve is, in bytes. A `report` callback receives one at each step.

    The callback is called in the thread of the event loop. It must return soon. An exception that it raises ends the transfer.
    """

    total: int
    """Bytes of content in all."""
    done: int
    """Bytes of content that were sent or received, or did not have to be. A chunk that moves counts with what has moved."""
    moved: int
    """Bytes that went over the network: compressed chunks with their headers."""
    shared: int
    """Bytes of `done` that did not have to move, because they were there already."""
    read: int
    """Bytes of content that were read from the source of a push, or that a fetch found on this machine."""
    file_count: int = 1
    """Number of files: those of a directory, or 1."""
    files_done: int = 0
    """Number of files that are finished."""


Report = Callable[[Progress], None]
