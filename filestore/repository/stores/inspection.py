"""Inspect the files of frames for a check, whatever state they are in.

An error of the disk is a result here. An error that says nothing about the frame, such as too many open files, is
raised.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filestore.core.digest import Digest
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.stores.protocol import FrameProblem, FrameState
from filestore.system.files import ABSENT, BAD_DISK, is_unreadable, read_at

T = TypeVar("T")


def inspect_file(path: Path) -> FrameState:
    """Return what is at `path`, without opening it. A link counts as the file to which it leads. Raises OSError."""
    try:
        return _state(path.stat())
    except OSError as error:
        return _state_of_error(path, error)


def read_file(path: Path, digest: Digest, buffer: memoryview, visit: Callable[[Digest, memoryview], T]) -> T | FrameState:
    """Read the file at `path` into `buffer`, and return `visit(digest, bytes)`.

    If it is not a file that can be read, or has more than FRAME_LIMIT bytes, return its state instead. The bytes come
    from the disk, and not from the memory in which the operating system keeps files. Raises OSError.
    """
    try:
        # A device or a pipe must not make the open wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return _state_of_error(path, error)
    try:
        state = _state(os.fstat(descriptor))
        if state.problem is not None or state.size > FRAME_LIMIT:
            return state
        _forget_cached(descriptor)
        size = read_at(descriptor, buffer[: state.size], 0)
        _forget_cached(descriptor)
    except OSError as error:
        return _state_of_error(path, error)
    finally:
        os.close(descriptor)
    return visit(digest, buffer[:size])


def _state(found: os.stat_result) -> FrameState:
    if not stat.S_ISREG(found.st_mode):
        return FrameState(0, FrameProblem.NO_FILE, f"{_name(found.st_mode)} is in its place")
    return FrameState(found.st_size)


def _state_of_error(path: Path, error: OSError) -> FrameState:
    if error.errno in ABSENT:
        if path.is_symlink():
            return FrameState(0, FrameProblem.NO_FILE, "a link that leads nowhere is in its place")
        return FrameState(0, FrameProblem.MISSING, "it is missing")
    if error.errno in BAD_DISK:
        return FrameState(0, FrameProblem.UNREADABLE, f"the disk cannot read it ({error.strerror})")
    if is_unreadable(error):
        return FrameState(0, FrameProblem.NO_FILE, f"what is in its place cannot be opened ({error.strerror})")
    raise error


def _name(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _forget_cached(descriptor: int) -> None:
    """Drop the cached pages of a file.

    Before a read, so that the disk is read. After it, so that a check of a large store does not push out of memory what
    readers use.
    """
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
