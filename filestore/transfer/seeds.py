"""Local data that may have chunks of the file that is fetched. A seed is never trusted: its content is verified."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.manifest import Manifest
from filestore.system.files import read_at


class ContentRange(NamedTuple):
    """An open file, and the offset of content in it."""

    descriptor: int
    offset: int


class Seed(Protocol):
    """Local data that may have chunks of the file that is fetched. Its content is verified before it is used.

    Its methods block. They are called by one thread at a time. A function that takes a seed as an argument must close
    it.
    """

    @property
    def manifest(self) -> Manifest:
        """The manifest that says which chunks the seed should have."""

    def read_into(self, memory: memoryview, offset: int) -> bool:
        """Fill `memory` with content from `offset` on.

        Return True if that was possible. If it was not, return False or raise SourceError.
        """

    def locate(self, offset: int, size: int) -> ContentRange | None:
        """Return where this content is, or None if it is not in one file.

        The descriptor is valid until the next call.
        """

    def close(self) -> None:
        """Close the descriptors of the seed. It may be called more than once."""


class FileSeed:
    """A file that has, or once had, the content of a manifest. It is opened on first use, and may be gone by then."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._path = path
        self._descriptor: int | None = None

    def read_into(self, memory: memoryview, offset: int) -> bool:
        return read_whole(self._open(), memory, offset)

    def locate(self, offset: int, size: int) -> ContentRange | None:  # noqa: ARG002  # the protocol's
        descriptor = self._open()
        return None if descriptor < 0 else ContentRange(descriptor, offset)

    def close(self) -> None:
        if self._descriptor is not None and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self) -> int:
        """Open the file on first use. Return -1 if that is not possible."""
        if self._descriptor is None:
            try:
                # O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                self._descriptor = -1
        return self._descriptor


@contextmanager
def closing(seeds: Iterable[Seed]) -> Iterator[None]:
    """Close seeds at the end of the block."""
    try:
        yield
    finally:
        for seed in seeds:
            seed.close()


def read_whole(descriptor: int, memory: memoryview, offset: int) -> bool:
    """Fill `memory` from an open file. Return whether all of it could be filled.

    Return False for a hole of the file, where nothing was ever written.
    """
    try:
        if descriptor < 0 or not has_data(descriptor, offset, len(memory)):
            return False
        return read_at(descriptor, memory, offset) == len(memory)
    except OSError:
        return False


def copy_range(source: ContentRange, descriptor: int, offset: int, size: int) -> bool:
    """Copy from file to file by a call of the operating system, which may share disk blocks.

    Return whether that was possible.

    If the source ends before the range does, the copy is shorter.
    """
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    try:
        while copied < size:
            count = os.copy_file_range(source.descriptor, descriptor, size - copied, source.offset + copied, offset + copied)
            if not count:
                break
            copied += count
    except OSError:
        return False  # not possible between these files; if the disk is full, the next write reports it
    return True


def has_data(descriptor: int, offset: int, size: int) -> bool:
    """Return whether anything was ever written to this part of a file, as far as its file system can tell."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) < offset + size
    except OSError as error:
        return error.errno != errno.ENXIO
