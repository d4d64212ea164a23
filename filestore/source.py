"""A file that is pushed: opened once, read in order into reused buffers, and watched for changes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple, Self

from filestore.chunking import CUTTING_VERSION, LOOKAHEAD, Cutter
from filestore.digest import chunk_digest
from filestore.errors import SourceChanged, SourceIsDirectory, SourceUnreadable
from filestore.manifest import Chunk

WINDOW_SIZE = 16 << 20
"""Bytes read, cut and hashed in one go; larger than `LOOKAHEAD`, so that each window cuts something."""


class FileState(NamedTuple):
    """What tells that a file was not written to. Times are nanoseconds."""

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int


class Source:
    """An open regular file. Its methods block: call them in a thread.

    Never mapped: mapped pages count as resident memory, and a file that is truncated meanwhile would kill the process.
    """

    def __init__(self, path: Path) -> None:
        """Raises SourceUnreadable, SourceIsDirectory."""
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceUnreadable(str(path), error.strerror or str(error)) from None
        try:
            self.state, mode = self._stat()
            if stat.S_ISDIR(mode):
                raise SourceIsDirectory(str(path))
            if not stat.S_ISREG(mode):
                raise SourceUnreadable(str(path), "it is not a regular file")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; safe to call again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises SourceChanged when the file ends before that."""
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            except OSError as error:
                raise SourceUnreadable(str(self.path), error.strerror or str(error)) from None
            if count == 0:
                raise SourceChanged(str(self.path), "it became shorter")
            filled += count

    def check_unchanged(self) -> None:
        """Raises SourceChanged when the file is not what it was when it was opened."""
        now, _ = self._stat()
        for field, before, after in zip(FileState._fields, self.state, now, strict=True):
            if before != after:
                raise SourceChanged(str(self.path), f"its {field} is {after}, it was {before}")

    def _stat(self) -> tuple[FileState, int]:
        now = os.fstat(self._descriptor)
        return FileState(now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev), now.st_mode


class Window(NamedTuple):
    """Chunks that lie back to back at the start of `content`."""

    content: memoryview
    chunks: list[Chunk]


class Scanner:
    """Reads a source once, in order, and cuts and hashes it window by window. Not thread-safe."""

    def __init__(self, source: Source, *, cutting: int = CUTTING_VERSION) -> None:
        self._source = source
        self._cutter = Cutter(cutting=cutting)
        self._uncut = bytearray(LOOKAHEAD)
        self._uncut_size = 0
        self.read = 0
        self.finished = source.state.size == 0

    def scan(self, buffer: memoryview) -> Window:
        """The next window, in `buffer`, which must be larger than `LOOKAHEAD`. Sets `finished` with the last one."""
        kept = self._uncut_size
        buffer[:kept] = memoryview(self._uncut)[:kept]
        end = min(len(buffer), kept + self._source.state.size - self.read)
        self._source.read_into(buffer[kept:end], self.read)
        self.read += end - kept
        self.finished = self.read == self._source.state.size
        content = buffer[:end]
        chunks = []
        start = 0
        for size in self._cutter.cut(content, final=self.finished):
            chunks.append(Chunk(chunk_digest(content[start : start + size]), size))
            start += size
        self._uncut_size = end - start
        self._uncut[: self._uncut_size] = content[start:]
        return Window(content[:start], chunks)
