"""The contract of a sink, to which a fetch writes."""

from __future__ import annotations

import os
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from filestore.transfer.seeds import ContentRange


class Ordering(IntEnum):
    """When a sink can take a chunk."""

    ANY = 0
    """At any time, together with other offsets of the same chunk."""
    ONCE = 1
    """At any time, as a whole, and for this offset only."""
    AFTER = 2
    """Like ONCE, but only after the chunk before it."""


class FilePart(NamedTuple):
    """A position in one of the files of a sink."""

    number: int
    """The number of the file."""
    offset: int


class Staging(NamedTuple):
    """The staging file or folder of a fetch. Another process can check it, too."""

    path: Path
    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int, path: Path) -> Self:
        """Describe the file or folder that is open as `descriptor`. It must stay open, so that no other one gets its number."""
        found = os.fstat(descriptor)
        return cls(path.absolute(), found.st_dev, found.st_ino)

    def check(self) -> None:
        """Raise OvertakenError if it is not at its path any more: another process has published or removed it.

        What is published is never written to.
        """
        with suppress(FileNotFoundError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                return
        raise OvertakenError


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

    def file_at(self, offset: int, size: int) -> FilePart | None:
        """Return where this content is in one file, if `copy` or another process can put it there.

        Otherwise return None.
        """

    def open_file(self, number: int) -> int:
        """Open a file of `file_at`, so that another process can write to it. The caller closes the descriptor.

        It is also open for reading, so that it can be mapped, unless its permissions forbid that. It shares no lock with
        the descriptors of the sink. Raises what `write` raises, and OvertakenError.
        """

    def note_written(self, offset: int, size: int, checksum: int) -> None:
        """Note that another process has verified this content, and has written it where `file_at` says.

        `checksum` is its CRC-32, or 0 if the sink does not need it. Each chunk is noted once for each offset, or written.

        Raises what `write` raises.
        """

    @property
    def needs_checksums(self) -> bool:
        """Whether `note_written` needs checksums."""

    def write_error(self, offset: int, error: OSError) -> Exception:
        """Return the error to raise if another process could not write the content at `offset`."""

    @property
    def staging(self) -> Staging:
        """The staging that `check_ours` checks."""

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
