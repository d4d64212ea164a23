"""The source for content of unknown size that arrives once and in order, such as the standard input."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Self

from filestore.core.manifest import Manifest
from filestore.errors import LimitExceeded, SourceUnreadable
from filestore.format.chunking import LOOKAHEAD, Chunker
from filestore.system.buffers import allocate_pages, copy_memory
from filestore.system.files import source_error, storage_errors
from filestore.system.metrics import Stage, span
from filestore.transfer.sources.file import Window, unpacked

_PATIENCE_SECONDS = 0.25
"""After this time a scan returns with what has arrived if no more is there, so that progress is shown."""


class StreamSource:
    """What arrives at a descriptor until its end. It is cut while it arrives, and kept nowhere.

    So it cannot be read again: if the repository loses a chunk of it before the commit, the push fails.

    `size` is what has arrived so far, until `is_finished`.
    """

    file_count = 1
    cached_size = 0

    def __init__(self, descriptor: int, name: str, *, chunking_version: int, size_limit: int | None = None) -> None:
        """`name` is its name in errors. With more than `size_limit` bytes, a scan raises LimitExceeded.

        The caller closes the descriptor. It may be one that does not block.
        """
        self.path = Path(name)
        self.size = self.read = 0
        self._descriptor = descriptor
        self._size_limit = size_limit
        self._chunking_version = chunking_version
        self._chunker = Chunker(chunking_version=chunking_version)
        self._row = bytearray()
        self._uncut = allocate_pages(LOOKAHEAD)
        self._uncut_size = 0
        self._has_ended = False
        self._waked, self._wake = os.pipe()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._waked, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what the source has opened itself. Another call does nothing."""
        if self._wake >= 0:
            os.close(self._waked)
            os.close(self._wake)
            self._wake = -1

    def stop(self) -> None:
        """Make a scan that waits for content end at once. The source cannot be used after this. It does not block."""
        os.write(self._wake, b"\0")

    @property
    def files_done(self) -> int:
        return int(self.is_finished)

    @property
    def is_finished(self) -> bool:
        return self._has_ended and not self._uncut_size

    def scan_limit(self, wanted: int) -> int:  # noqa: ARG002  # the protocol's
        return 1

    def scan(self, buffer: memoryview) -> list[Window]:
        kept = self._uncut_size
        copy_memory(self._uncut[:kept], buffer)
        with span(Stage.READ) as reading:
            size = self._fill(buffer[kept:])
            reading.add(size)
        content = buffer[: kept + size]
        with span(Stage.CUT, size):
            sizes = self._chunker.cut(content, final=self._has_ended)
        window = Window.cut(content, sizes, self._row)
        uncut = content[len(window.content) :]
        copy_memory(uncut, self._uncut)
        self._uncut_size = len(uncut)
        return [window] if sizes else []

    def manifest(self) -> Manifest:
        return Manifest.build(unpacked(self._row), chunking_version=self._chunking_version)

    def read_into(self, memory: memoryview, offset: int) -> None:  # noqa: ARG002  # the protocol's
        """Raise SourceUnreadable."""
        reason = "the repository has lost a part of it that was sent already, and it cannot be read again; push it once more"
        raise SourceUnreadable(str(self.path), reason)

    def check_unchanged(self) -> None:
        """Do nothing. What has arrived does not change."""

    def _fill(self, memory: memoryview) -> int:
        """Read until `memory` is full, the content ends, nothing more has come in time, or `stop` is called. Return its size."""
        filled, until = 0, time.monotonic() + _PATIENCE_SECONDS
        while filled < len(memory):
            # What has arrived is not kept waiting.
            ready = self._poll.poll(max(0.0, until - time.monotonic()) * 1000 if filled else None)
            if not ready or any(number == self._waked for number, _ in ready):
                break
            with storage_errors(self.path, translate=source_error):
                try:
                    size = os.readv(self._descriptor, [memory[filled:]])
                except BlockingIOError:
                    continue  # another process has read it
            if not size:
                self._has_ended = True
                break
            filled += size
            self.size += size
            self.read += size
            if self._size_limit is not None and self.size > self._size_limit:
                raise LimitExceeded("the file's size in bytes", self.size, self._size_limit, "upload_limit")
        return filled
