"""Read the zip file of a tree at any offset. The zip file is not stored: its bytes are made when they are read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property

from filestore.format.zip.write import Entry, PlacedEntry, central_directory, local_header

Read = Callable[[int, int, memoryview], None]
"""A function `read(index, offset, memory)`. It fills `memory` with content of an entry, from `offset` on, or raises."""


class VirtualZip:
    """Returns the bytes of a zip at any offset: it makes the headers and reads the content."""

    def __init__(self, entries: Sequence[Entry], crcs: Sequence[int], offsets: Sequence[int], read: Read) -> None:
        """Prepare to read. `offsets` has the offsets of all local headers, and then that of the central directory."""
        self._entries = entries
        self._crcs = crcs
        self._offsets = offsets
        self._read = read

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` with the bytes of the zip from `offset` on, which must exist. Errors of `read` are raised."""
        place = bisect_right(self._offsets, offset) - 1
        while len(memory) and place < len(self._entries):
            size = min(len(memory), self._offsets[place + 1] - offset)
            self._read_entry(place, memory[:size], offset - self._offsets[place])
            memory, offset, place = memory[size:], offset + size, place + 1
        if len(memory):
            start = offset - self._offsets[-1]
            memory[:] = self._tail[start : start + len(memory)]

    def _read_entry(self, place: int, memory: memoryview, start: int) -> None:
        """Fill `memory` with a part of an entry, from `start` bytes after the start of its local header on."""
        entry = self._entries[place]
        header = local_header(entry, self._crcs[place])
        head = header[start : start + len(memory)]
        memory[: len(head)] = head
        content = memory[len(head) :]
        content_start = max(start - len(header), 0)
        if entry.target is not None:
            content[:] = entry.target.encode()[content_start : content_start + len(content)]
        elif len(content):
            self._read(place, content_start, content)

    @cached_property
    def _tail(self) -> bytes:
        return central_directory(map(PlacedEntry, self._entries, self._crcs, self._offsets), self._offsets[-1])
