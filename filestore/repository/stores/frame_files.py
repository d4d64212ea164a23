"""Open and read the files of frames and manifests. Whatever is not a file that can be read counts as absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filestore.core.digest import Digest
from filestore.core.unlocked import unlocked
from filestore.errors import InvalidFrame
from filestore.format.codec import FRAME_LIMIT, HEADER_SIZE, decoded_size, frame_limit
from filestore.system.files import is_unreadable, read_at

_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""With O_NONBLOCK, an open does not wait for the writer of a pipe that is in the place of a frame."""
_ANY = Digest(bytes(32))
"""The digest in an error that no one sees."""


class OpenFrame(NamedTuple):
    """The descriptor of a frame, which the caller closes, and its size."""

    descriptor: int
    size: int


def open_frame(path: Path | str) -> OpenFrame | None:
    """Open the frame at `path` for reading. Return None if nothing there can be a frame. Raises OSError."""
    try:
        descriptor = unlocked(os.open, path, _READING)
    except OSError as error:
        if is_unreadable(error):
            return None
        raise
    try:
        size = _size_of(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    if size:
        return OpenFrame(descriptor, size)
    os.close(descriptor)
    return None


def frame_size(path: str) -> int:
    """Return the size of the frame at `path`. Return 0 if `open_frame` would return None. Raises OSError."""
    try:
        return _size_of(unlocked(os.stat, path))  # a text: a push looks at each frame that it shares
    except OSError as error:
        if is_unreadable(error):
            return 0
        raise


def _size_of(found: os.stat_result) -> int:
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_size <= FRAME_LIMIT else 0


def read_frame(path: Path | str, buffer: memoryview) -> int:
    """Read the frame at `path` to the start of `buffer`, and return its size.

    Return 0 if it cannot be read, or if it has more bytes than the frame of its chunk can have. Raises ValueError if
    `buffer` is too small.
    """
    frame = open_frame(path)
    if frame is None:
        return 0
    try:
        memory = buffer if frame.size <= len(buffer) else memoryview(bytearray(HEADER_SIZE))
        read = read_at(frame.descriptor, memory[: frame.size], 0)
    except OSError as error:
        if is_unreadable(error):
            return 0
        raise
    finally:
        os.close(frame.descriptor)
    # A frame that has grown would take the space of those that follow.
    if _has_grown(memory[:read], frame.size):
        return 0
    if memory is not buffer:
        raise ValueError(f"the buffer has {len(buffer)} bytes left, but the frame has {frame.size}")
    return read


def _has_grown(frame: memoryview, size: int) -> bool:
    """Return whether `size` is larger than the header of a frame permits. A header that is not valid permits any size."""
    try:
        return size > frame_limit(decoded_size(frame, digest=_ANY))
    except InvalidFrame:
        return False


def read_small_file(path: Path) -> bytes:
    """Return the content of a file. Return b"" for anything that is not a file. Raises OSError."""
    file = open_small_file(path)
    if file is None:
        return b""
    with file:
        return file.read()


def open_small_file(path: Path) -> BinaryIO | None:
    """Open a file for reading. Return None for anything that is not a file. Raises OSError."""
    descriptor = os.open(path, _READING)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
