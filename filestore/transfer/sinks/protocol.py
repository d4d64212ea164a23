"""The contract of a sink, to which a fetch writes."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from filestore.transfer.seeds import ContentRange


class Ordering(IntEnum):
    """When a sink can take a chunk."""

    ANY = 0
    """At any time, together with other offsets of the same chunk."""
    ONCE = 1
    """At any time, as a whole, and for this offset only."""
    AFTER = 2
    """Like ONCE, but only after the chunk before it."""


class Sink(Protocol):
    """A place to which a fetch writes. Its methods block: call them in threads.

    They may run in several threads at once.
    """

    @property
    def file_count(self) -> int:
        """Number of files."""

    @property
    def files_done(self) -> int:
        """Number of files that are complete."""

    def order(self, offset: int, size: int) -> Ordering | None:
        """Return when the chunk at `offset` can be taken, or None if it is not needed."""

    def file_at(self, offset: int, size: int) -> int | None:
        """Return the number of the one file that has this content, if `copy` can put it there.

        Otherwise return None.
        """

    def read_into(self, memory: memoryview, offset: int) -> bool:
        """Fill `memory` with content of the staging from `offset` on.

        Return whether that was possible. The content may not be verified.
        """

    def copy(self, source: ContentRange, offset: int, size: int) -> bool:
        """Copy content of one file by a call of the operating system. Return whether that was possible.

        The copy is not trusted until `write` is called for it with `is_held`.
        """

    def write(self, content: memoryview, offset: int, *, is_held: bool = False) -> None:
        """Write verified content to its place. With `is_held`, the content is there already and is only noted.

        Each chunk is taken once for each offset.

        Raises StorageFull, StorageError, and the errors of the sink for content that it refuses.
        """

    def sync(self) -> None:
        """Sync the content that was written so far to the disk. More content may be written meanwhile.

        Raises StorageError, StorageFull.
        """

    def check_ours(self) -> None:
        """Raise OvertakenError if another process has published or removed the staging."""


class OvertakenError(Exception):
    """Another process has published or removed the staging that this process uses, or has published earlier."""
