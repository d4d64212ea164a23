"""The members of a zip file and their positions. Its bytes can be read back from the fetched tree."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property

from filestore.format.zip.read import (
    End,
    Extent,
    Member,
    Members,
)
from filestore.format.zip.write import Entry, local_header
from filestore.system.files import BLOCK_SIZE, in_blocks
from filestore.transfer.seeds import read_whole
from filestore.transfer.sinks.protocol import FilePart

GATHER_LIMIT = 1 << 20
"""Bytes of the largest entry with an order that is collected in memory."""
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WriteMode(IntEnum):
    """How the content of an entry is written."""

    RANDOM = 0
    """In any order."""
    BUFFERED = 1
    """When the entry is complete. Until then, it is collected in memory, in any order."""
    SEQUENTIAL = 2
    """In order."""


class Zip:
    """The structure of a zip file: its members and their positions, as the central directory describes them."""

    def __init__(self, members: Sequence[Member], end: End, tail: bytes) -> None:
        """`tail` has the bytes from the central directory on."""
        self.members = members
        self.body_size = end.start
        self.tail = tail
        self._starts = members.starts if isinstance(members, Members) else [member.start for member in members]

    @cached_property
    def file_count(self) -> int:
        """Number of files and links."""
        return sum(not member.is_folder for member in self.members)

    @cached_property
    def stored_size(self) -> int:
        """Bytes that the tree takes on the disk."""
        folders = len(parent_folders(self.members) | {member.path for member in self.members if member.is_folder})
        return folders * BLOCK_SIZE + sum(in_blocks(member.size) for member in self.members if not member.is_folder)

    def overlap(self, offset: int, size: int) -> range:
        """Return the numbers of the members that have a part of these bytes."""
        first = max(bisect_right(self._starts, offset) - 1, 0)
        if offset >= self.body_size:
            return range(0)
        return range(first, bisect_left(self._starts, offset + size))

    def content_at(self, offset: int, size: int) -> FilePart | None:
        """Return where these bytes are in the stored content of a member, whose number is that of its file.

        Return None if they are not in the content of a single one.
        """
        numbers = self.overlap(offset, size)
        if len(numbers) != 1 or write_mode_of(self.members[numbers[0]]) is not WriteMode.RANDOM:
            return None
        extent = known_extent(self.members[numbers[0]])
        if offset < extent.start or extent.end < offset + size:
            return None
        return FilePart(numbers[0], offset - extent.start)

    @property
    def preamble_size(self) -> int:
        """Number of bytes before the first member."""
        return self._starts[0] if self._starts else self.body_size


class ZipPart(Zip):
    """The structure of a part of a zip file: there are other bytes before, between and after its members."""

    def overlap(self, offset: int, size: int) -> range:
        found = super().overlap(offset, size)
        return found[1:] if found and self.members[found.start].end <= offset else found


def read_zip(root: int, archive: Zip, memory: memoryview, offset: int) -> bool:
    """Fill `memory` with the bytes of a zip from `offset` on, read from its tree. Return whether that was possible.

    `root` is a descriptor of the tree. Headers are rendered as our own writer renders them. The bytes of deflated
    entries, and of entries with a descriptor, are not in the tree.
    """
    if offset < archive.preamble_size:
        return False
    end = min(offset + len(memory), max(archive.body_size, offset))
    behind = memory[end - offset :]
    behind[:] = archive.tail[end - archive.body_size :][: len(behind)]
    for number in archive.overlap(offset, len(memory)):
        member = archive.members[number]
        start, stop = max(member.start, offset), min(member.end, end)
        if not _read_member(root, member, memory[start - offset : stop - offset], start):
            return False
    return True


def _read_member(root: int, member: Member, memory: memoryview, start: int) -> bool:
    extent = member.extent
    if extent is None or member.is_deflated:
        return False
    head = memory[: max(extent.start - start, 0)]
    if head:
        header = render_header(member)
        if len(header) != extent.start - member.start:
            return False
        head[:] = header[start - member.start :][: len(head)]
    content = memory[len(head) :]
    return not content or _read_content(root, member, content, max(start - extent.start, 0))


def _read_content(root: int, member: Member, memory: memoryview, offset: int) -> bool:
    try:
        if member.is_link:
            target = os.fsencode(os.readlink(member.path, dir_fd=root))[offset : offset + len(memory)]
            memory[: len(target)] = target
            return len(target) == len(memory)
        descriptor = os.open(member.path, READ_FLAGS, dir_fd=root)
    except OSError:
        return False
    try:
        return read_whole(descriptor, memory, offset)
    finally:
        os.close(descriptor)


def write_mode_of(member: Member, *, gather_limit: int = GATHER_LIMIT) -> WriteMode:
    """Return how the content of an entry is written."""
    if member.extent is not None and not member.is_deflated and not member.is_link:
        return WriteMode.RANDOM
    is_file = not member.is_link and not member.is_folder
    return WriteMode.SEQUENTIAL if is_file and member.end - member.start > gather_limit else WriteMode.BUFFERED


def known_extent(member: Member) -> Extent:
    """Return where the content of a member without a descriptor is."""
    extent = member.extent
    if extent is None:
        raise AssertionError(f"{member.path!r} has a descriptor")
    return extent


def render_header(member: Member) -> bytes:
    """Return the local header that our own writer would write."""
    target = "" if member.is_link else None
    path = member.full_path or member.path
    return local_header(Entry(path, member.size, is_folder=member.is_folder, target=target), member.crc)


def parent_folders(members: Iterable[Member]) -> set[str]:
    """Return the folders that are not empty."""
    found = set()
    for member in members:
        end = member.path.rfind("/")
        while end > 0 and (parent := member.path[:end]) not in found:
            found.add(parent)
            end = parent.rfind("/")
    return found


def member_paths(members: Sequence[Member]) -> tuple[dict[str, int], set[str]]:
    """Return the paths of files and links, with the numbers of their members, and the paths of folders."""
    folders = parent_folders(members)
    folders.update(member.path for member in members if member.is_folder and member.path)
    return {member.path: number for number, member in enumerate(members) if not member.is_folder}, folders
