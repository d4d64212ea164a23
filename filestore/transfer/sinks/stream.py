"""The sink for a stream, such as the standard output: content goes out in order, and nothing is read again."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from filestore.transfer.seeds import ContentRange
from filestore.transfer.sinks.protocol import FilePart, Ordering, Staging

_WRITE_SIZE = 1 << 20
_SAFE_SIZE = select.PIPE_BUF
"""A pipe that is ready takes this many bytes without a wait."""


class StreamSink:
    """Writes verified content to a descriptor, each byte once and in order.

    Its reader may be slow or stopped. `stop` ends a write that waits for it.
    """

    file_count = 1
    needs_checksums = False

    def __init__(self, descriptor: int, size: int, *, check: Callable[[memoryview], None] | None = None) -> None:
        """`size` is that of the content. `check` is called with each piece before it is written, and may raise an error.

        The caller closes the descriptor.
        """
        self._size = size
        self._check = check
        self._position = 0
        self._own, self._write_size = _without_waits(descriptor)
        self._descriptor = descriptor if self._own < 0 else self._own
        self._waked, self._wake = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)
        self._poll.register(self._waked, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._waked, self._wake, self._own):
            if descriptor >= 0:
                os.close(descriptor)

    def stop(self) -> None:
        """Make a write that waits end at once, with an error. It does not block."""
        os.write(self._wake, b"\0")

    @property
    def files_done(self) -> int:
        return int(self._position == self._size)

    def order(self, offset: int, size: int) -> Ordering | None:  # noqa: ARG002  # the protocol's
        return Ordering.AFTER if offset else Ordering.ONCE

    def write(self, content: memoryview, offset: int, *, is_held: bool = False) -> None:
        """Write the next piece. Raises OSError; BrokenPipeError if nobody reads any more."""
        if is_held or offset != self._position:
            raise AssertionError(f"the piece at {offset} comes after {self._position} bytes")
        self.put(content)

    def put(self, content: memoryview) -> None:
        """Write the next piece, as `write` does."""
        if self._check is not None:
            self._check(content)
        self._position += len(content)
        while content:
            if any(number == self._waked for number, _ in self._poll.poll()):
                raise InterruptedError("the transfer was stopped")
            with suppress(BlockingIOError):  # another process has filled the pipe
                content = content[os.write(self._descriptor, content[: self._write_size]) :]

    def sync(self) -> None:
        """Do nothing: nothing can be resumed."""

    def check_ours(self) -> None:
        """Do nothing: nobody else publishes it."""

    def read_into(self, memory: memoryview, offset: int) -> bool:  # noqa: ARG002  # the protocol's
        return False

    def copy(self, source: ContentRange, offset: int, size: int) -> bool:  # noqa: ARG002  # the protocol's
        return False

    # Worker processes write to files only.

    def file_at(self, offset: int, size: int) -> FilePart | None:  # noqa: ARG002  # the protocol's
        return None

    def open_file(self, number: int) -> int:
        raise AssertionError(number)

    def note_written(self, offset: int, size: int, checksum: int) -> None:
        raise AssertionError(offset, size, checksum)

    def write_error(self, offset: int, error: OSError) -> Exception:  # noqa: ARG002  # the protocol's
        return error

    @property
    def staging(self) -> Staging:
        raise AssertionError("a stream has no staging")


def _without_waits(descriptor: int) -> tuple[int, int]:
    """Return a new descriptor of a pipe whose writes do not wait, or -1, and how many bytes to write at a time.

    The flag that says so belongs to the opened pipe, which other processes may use too. So the pipe is opened once more.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return -1, _WRITE_SIZE if stat.S_ISREG(os.fstat(descriptor).st_mode) else _SAFE_SIZE
    if sys.platform == "linux":
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), _WRITE_SIZE
    return -1, _SAFE_SIZE
