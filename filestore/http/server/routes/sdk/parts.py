"""Read the parts of an upload, in order, as one content. More parts may be added while it is cut."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.manifest import Manifest
from filestore.errors import InvalidParts, SourceError
from filestore.format.chunking import CHUNKING_VERSION, Chunker
from filestore.transfer.sources.file import Window, read_exactly, unpacked


class UploadPart(Protocol):
    """A part that arrived completely. It does not change any more."""

    @property
    def number(self) -> int:
        """Its number, from 1 on."""

    @property
    def tag(self) -> str:
        """64 hexadecimal digits that identify its bytes. The client got them as the ETag when it sent the part."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` with its bytes from `offset` on. Blocks. Raises InvalidParts if it is gone or damaged."""


class FilePart(NamedTuple):
    """A part in a file. Each read opens it, because there may be more parts than a process may have descriptors."""

    number: int
    tag: str
    size: int
    path: Path

    @property
    def is_whole(self) -> bool:
        """Whether the disk has not shortened the file. Raises OSError."""
        return self.path.stat().st_size == self.size

    def read_into(self, memory: memoryview, offset: int) -> None:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                read_exactly(descriptor, memory, offset, self.path)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise InvalidParts(f"part {self.number} was removed while the upload was put together") from None
        except (OSError, SourceError) as error:
            raise InvalidParts(f"part {self.number} cannot be read any more") from error


class PartsContent:
    """Give a push the content of contiguous parts, from the first one on.

    `chunks` has the chunks that were cut so far, packed; new ones are appended. Another process may have cut them. If
    `is_whole` is true, no part will follow, and the last bytes are cut too. Otherwise the last bytes are left for
    later; they are never more than a chunker looks ahead.
    """

    file_count = 1
    cached_size = 0

    def __init__(self, folder: Path, parts: Sequence[UploadPart], chunks: bytearray, chunker: Chunker, *, is_whole: bool) -> None:
        self.path = folder
        self.chunker = chunker
        self.chunks = chunks
        self.cut_size = sum(chunk.size for chunk in unpacked(chunks))
        """Bytes of content in all chunks so far."""
        self.read = 0
        self._parts = parts
        self._ends = list(accumulate(part.size for part in parts))
        self._is_whole = is_whole
        self.size = self._ends[-1] if parts else 0
        self._reached = self.cut_size

    @property
    def files_done(self) -> int:
        return int(self.is_finished)

    @property
    def is_finished(self) -> bool:
        return self._reached == self.size

    def scan_limit(self, wanted: int) -> int:  # noqa: ARG002
        return 1

    def scan(self, buffer: memoryview) -> list[Window]:
        if self.chunker.fed < self.cut_size and not self.chunker.needs_no_more:
            self._look_through(buffer)
            return []
        self.chunker.pass_over(buffer[:0], until=self.cut_size)
        start = self.cut_size
        # Bytes that were read and not cut the last time are read again. They are few, and the system still has them in
        # memory.
        data = buffer[: self.size - start]
        self.read_into(data, start)
        self._reached = start + len(data)
        self.read = self._reached
        sizes = self.chunker.cut(data, final=self._is_whole and self.is_finished)
        self.cut_size += sum(sizes)
        return [Window.cut(data, sizes, self.chunks)]

    def manifest(self) -> Manifest:
        return Manifest.build(unpacked(self.chunks), chunking_version=CHUNKING_VERSION)

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` from `offset` on. Raises InvalidParts for a part that is gone or damaged."""
        place = bisect_right(self._ends, offset)
        while memory:
            part = self._parts[place]
            start = self._ends[place] - part.size
            piece = memory[: self._ends[place] - offset]
            part.read_into(piece, offset - start)
            memory = memory[len(piece) :]
            offset += len(piece)
            place += 1

    def check_unchanged(self) -> None:
        """Do nothing. A part never changes once it has its name."""

    def _look_through(self, buffer: memoryview) -> None:
        """Let the chunker read bytes that another chunker has cut already.

        It needs them to find the boundaries in them.
        """
        start = self.chunker.fed
        data = buffer[: self.cut_size - start]
        self.read_into(data, start)
        self.chunker.pass_over(data, until=start + len(data))


def unbroken(parts: Sequence[UploadPart]) -> list[UploadPart]:
    """Return the parts from number 1 up to the first number that is missing, in order."""
    in_order = sorted(parts, key=lambda part: (part.number, part.tag))
    return [part for number, part in enumerate(in_order, start=1) if part.number == number]
