"""Local data that may hold chunks of what is fetched. A seed is never trusted: what it gives is verified."""

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
    """Where content lies in an open file."""

    descriptor: int
    offset: int


class Seed(Protocol):
    """Something on this machine that may hold chunks of what is fetched. What it gives is verified before it counts.

    Its methods block, and are called by one thread at a time. Whoever is given a seed closes it.
    """

    @property
    def manifest(self) -> Manifest:
        """The chunks that it should hold."""

    def read_into(self, memory: memoryview, offset: int) -> bool:
        """Fill `memory` with content from `offset` on; whether that was possible. May raise SourceError for the same."""

    def locate(self, offset: int, size: int) -> ContentRange | None:
        """Where content lies, if it does in one file. The descriptor is good until the next call."""

    def close(self) -> None:
        """Give descriptors back; safe to call again."""


class FileSeed:
    """A file that holds, or has held, the content of a manifest. Opened on first need, so that it may be gone by then."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._path = path
        self._descriptor: int | None = None

    def read_into(self, memory: memoryview, offset: int) -> bool:
        return read_whole(self._opened(), memory, offset)

    def locate(self, offset: int, size: int) -> ContentRange | None:  # noqa: ARG002  # the protocol's
        descriptor = self._opened()
        return None if descriptor < 0 else ContentRange(descriptor, offset)

    def close(self) -> None:
        if self._descriptor is not None and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _opened(self) -> int:
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
    """Whether `memory` could be filled from an open file. A hole is not read: nothing of worth is in it."""
    try:
        if descriptor < 0 or not has_data(descriptor, offset, len(memory)):
            return False
        return read_at(descriptor, memory, offset) == len(memory)
    except OSError:
        return False


def copy_range(source: ContentRange, descriptor: int, offset: int, size: int) -> bool:
    """Have the operating system copy from file to file, or share what it can; whether it did.

    Where the source ends before that, so does the copy.
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
        return False  # between these file systems, or of this kind; a full disk is met again by who writes
    return True


def has_data(descriptor: int, offset: int, size: int) -> bool:
    """Whether anything was ever written to this part of a file, as far as its file system can tell."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) < offset + size
    except OSError as error:
        return error.errno != errno.ENXIO
