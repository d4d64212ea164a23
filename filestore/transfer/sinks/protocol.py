"""The contract of what a fetch writes to."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from filestore.transfer.seeds import ContentRange


class Ordering(IntEnum):
    """When a sink can take a chunk."""

    ANY = 0
    """At any time, and wherever else the same chunk stands."""
    ONCE = 1
    """At any time, for this one place, as a whole."""
    AFTER = 2
    """As ONCE, and after the chunk before it."""


class Sink(Protocol):
    """Where content goes. Its methods block: call them in threads. All may run in several threads at once."""

    @property
    def file_count(self) -> int:
        """Files in all."""

    @property
    def files_done(self) -> int:
        """Files that are whole."""

    def order(self, offset: int, size: int) -> Ordering | None:
        """When the chunk at `offset` can be taken; None where it need not be."""

    def file_at(self, offset: int, size: int) -> int | None:
        """The number of the one file that content lies in, where it does, and can be put there by `copy`."""

    def read_into(self, memory: memoryview, offset: int) -> bool:
        """Fill `memory` with what staging holds for the content at `offset`, verified or not; whether that was possible."""

    def copy(self, source: ContentRange, offset: int, size: int) -> bool:
        """Have the operating system copy content that lies in one file. It counts as rubbish until `take` says that it is held.

        Whether that was possible.
        """

    def take(self, content: memoryview, offset: int, *, is_held: bool = False) -> None:
        """Put verified content in its place; where `is_held`, it is there. Each chunk is taken once for each offset.

        Raises StorageFull, StorageError, and what the sink refuses.
        """

    def sync(self) -> None:
        """Have the disk keep what was taken so far, if that is one call. More may be taken meanwhile.

        Raises StorageError, StorageFull.
        """

    def check_ours(self) -> None:
        """Raises OvertakenError when another process has published or removed what is written to."""


class OvertakenError(Exception):
    """Another process has published or removed the staging that this one writes to, or has published before it."""
