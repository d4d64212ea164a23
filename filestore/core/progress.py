"""How far a transfer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a push or a fetch is, in bytes."""

    total: int
    """Decoded bytes in all."""
    done: int
    """Decoded bytes that are dealt with."""
    moved: int
    """Encoded bytes of frames that went over the wire."""
    shared: int
    """Decoded bytes of `done` that did not have to move."""
    read: int
    """Decoded bytes read so far from the source of a push, or from what a fetch found here already."""
    file_count: int = 1
    """Files in all: those of a tree, or one."""
    files_done: int = 0
    """Files that are dealt with as a whole."""


Report = Callable[[Progress], None]
