"""Separate words into planes of bytes, merge planes to words, and copy bytes: with numpy, or without it.

numpy gives up the interpreter's lock while it works, and takes a fifth of the time. But its import takes 0.06 s under the
lock, which is more than a small transfer needs for all else. So a process does its first work without it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked

PLAIN_LIMIT = 4 << 20
"""Bytes that a process handles without numpy. They take some milliseconds, so little is lost if more follow."""
PLAIN_ENCODED_LIMIT = 8 << 20
"""The same for encoding. A large push encodes its first window without numpy, so that frames are sent while numpy is imported."""
_LARGE = 64 << 10
"""From so many bytes on, a copy gives up the interpreter's lock. The switch takes as long as a copy of some KiB."""

_WORDS = {2: "<u2", 4: "<u4"}
"""The layout of a word, by the number of its planes."""

_plain_done = 0


def numpy_for(size: int, *, limit: int = PLAIN_LIMIT) -> ModuleType | None:
    """Return numpy for work on `size` bytes. Return None while it is not worth its import: for `limit` bytes of a process."""
    global _plain_done  # noqa: PLW0603  # what a process has imported is the process's
    if _plain_done + size <= limit and "numpy" not in sys.modules:
        _plain_done += size
        return None
    import numpy as np  # noqa: PLC0415  # see above

    return np


def copy(content: Buffer, out: memoryview, np: ModuleType | None) -> None:
    """Copy `content` to `out`, which has the same length."""
    if np is None or len(content) < _LARGE:
        out[:] = content
    else:
        # The assignment of a slice would hold the lock.
        unlocked(np.copyto, np.frombuffer(out, "u1"), np.frombuffer(content, "u1"))


def take_plane(content: memoryview, place: int, count: int, plane: memoryview, np: ModuleType | None) -> None:
    """Fill `plane` with the bytes of `content` at `place`, `place` + `count`, ..."""
    if np is None:
        plane[:] = bytes(content)[place : len(plane) * count : count]
        return
    # The lowest byte of a little-endian word is its first. So narrowing the words that start at the plane's bytes gives
    # the plane. This works at any alignment and is seven times faster than a strided copy. The last word may end after
    # the content, so the last byte is copied alone.
    last = len(plane) - 1
    words = np.frombuffer(content, _WORDS[count], last, place)
    unlocked(np.copyto, np.frombuffer(plane, "u1", last), words, "unsafe")
    plane[last] = content[last * count + place]


def merge_planes(planes: Iterator[memoryview], content: memoryview, count: int, np: ModuleType | None) -> None:
    """Fill `content` from `count` planes, of which the last comes first. Each is used before the next one is made.

    `content` has the size of all planes.
    """
    if np is None:
        merged = bytearray(len(content))
        for place in reversed(range(count)):
            merged[place::count] = next(planes)
        content[:] = merged
        return
    frombuffer, step = np.frombuffer, _step(count)
    words = frombuffer(content, _WORDS[count])
    if count == 2 and content:
        # A word that starts one byte later has the last plane as its lower byte. To widen the bytes costs half of a shift. The
        # word of the last byte would end after the content.
        plane, last = next(planes), len(words) - 1
        unlocked(np.copyto, frombuffer(content, _WORDS[count], last, 1), frombuffer(plane, "u1", last))
        content[0], content[-2], content[-1] = 0, 0, plane[last]
    else:
        unlocked(np.left_shift, frombuffer(next(planes), "u1"), step, words)
    for place in range(count - 2, -1, -1):
        unlocked(np.bitwise_or, words, frombuffer(next(planes), "u1"), words)
        if place:
            unlocked(np.left_shift, words, step, words)


@cache
def _step(count: int) -> Any:
    """Return the number of bits by which a word is shifted.

    It is an array of words. With a number, old versions of numpy would shift the 8 bits of a plane.
    """
    import numpy as np  # noqa: PLC0415  # it is imported by now

    return np.array([8], _WORDS[count])
