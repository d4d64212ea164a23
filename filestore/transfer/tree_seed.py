"""A tree on this machine as a seed, and the structure of a zip file as its end describes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filestore.core.manifest import Manifest
from filestore.errors import (
    FilestoreError,
    InvalidArchive,
    NotAnArchive,
)
from filestore.format.zip import structures as zip_
from filestore.format.zip.read import (
    DEFAULT_LIMITS,
    OFFSET_SPACE,
    TAIL_SIZE,
    End,
    Member,
    Members,
    ZipLimits,
    check_other_reading,
    check_preamble,
    find_end,
    other_readings,
    parse_central_directory,
)
from filestore.system.threads import in_cpu_thread
from filestore.transfer.receiver import Receiver
from filestore.transfer.seeds import ContentRange
from filestore.transfer.sinks.zip_index import READ_FLAGS, Zip, read_zip
from filestore.transfer.sources.tree import TreeSource


async def read_structure(
    receiving: Receiver, name: str, size: int, limits: ZipLimits, *, offset_space: int = OFFSET_SPACE
) -> Zip:
    """Read the structure of a zip file from its end. Little more than the end is received.

    Raises NotAnArchive, InvalidArchive, LimitExceeded.
    """
    end, tail = await read_directory(receiving, name, size, limits, offset_space=offset_space)
    members = await in_cpu_thread(parse_central_directory, tail, end, limits=limits)
    archive = Zip(members, end, tail)
    await check_other_parts(receiving, members, end)
    return archive


async def read_directory(
    receiving: Receiver, name: str, size: int, limits: ZipLimits, *, offset_space: int = OFFSET_SPACE
) -> tuple[End, bytes]:
    """Return where the central directory of a zip file is, and the bytes of the file from there on.

    Raises NotAnArchive, InvalidArchive, LimitExceeded.
    """
    start = max(size - TAIL_SIZE, 0)
    tail = await receiving.content(range(start, size))
    try:
        end = find_end(tail, size, limits=limits, offset_space=offset_space)
    except InvalidArchive as error:
        if zip_.END_SIGNATURE in tail:
            raise
        raise NotAnArchive(name, error.reason) from None
    # Chunks that were received already are kept, so that this does not receive them again.
    return end, tail[end.start - start :] if end.start >= start else await receiving.content(range(end.start, size))


async def check_other_parts(receiving: Receiver, members: Sequence[Member], end: End) -> None:
    """Check what tells whether another reader finds other entries in the file. Raises InvalidArchive."""
    if not members or members[0].start:
        check_preamble(await receiving.content(range(min(members[0].start if members else end.start, 4))), members, end)
    for offset in other_readings(members, end):
        check_other_reading(await receiving.content(range(offset, offset + 4)))


def tree_tail(tree: TreeSource) -> bytes:
    """Return the bytes of a directory's zip from its central directory on."""
    start = max((stop for _, _, stop in tree.spans()), default=0)
    memory = bytearray(tree.size - start)
    tree.read_into(memoryview(memory), start)
    return bytes(memory)


class TreeSeed:
    """A tree that was fetched or pushed.

    `manifest` is the manifest of its zip, and `tail` has the zip's bytes from the central directory on. The tree is
    opened on first use, and may be gone by then.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        tail: bytes,
        *,
        limits: ZipLimits = DEFAULT_LIMITS,
        offset_space: int = OFFSET_SPACE,
    ) -> None:
        self.manifest = manifest
        self._root = root
        self._tail = tail
        self._limits = limits
        self._offset_space = offset_space
        self._archive: Zip | None = None
        self._descriptor = -1
        self._located: tuple[int, int] | None = None
        """The file that was located last: its number, and its descriptor."""

    def read_into(self, memory: memoryview, offset: int) -> bool:
        archive = self._open()
        return archive is not None and read_zip(self._descriptor, archive, memory, offset)

    def locate(self, offset: int, size: int) -> ContentRange | None:
        archive = self._open()
        found = None if archive is None else archive.content_at(offset, size)
        if archive is None or found is None:
            return None
        if self._located is None or self._located[0] != found.number:
            self._close_located()
            try:
                descriptor = os.open(archive.members[found.number].path, READ_FLAGS, dir_fd=self._descriptor)
            except OSError:
                return None
            self._located = found.number, descriptor
        return ContentRange(self._located[1], found.offset)

    def close(self) -> None:
        self._close_located()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._archive = None
        self._tail = b""

    def _open(self) -> Zip | None:
        """Open the tree on first use. Return None if there is no such tree, or if the seed is closed."""
        if self._archive is None and self._tail:
            tail, self._tail = self._tail, b""
            with suppress(FilestoreError, OSError):
                end = find_end(tail[-TAIL_SIZE:], self.manifest.size, limits=self._limits, offset_space=self._offset_space)
                if self.manifest.size - len(tail) == end.start:
                    members = Members(tail, end, limits=self._limits)
                    self._descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    self._archive = Zip(members, end, tail)
        return self._archive

    def _close_located(self) -> None:
        if self._located is not None:
            os.close(self._located[1])
            self._located = None
