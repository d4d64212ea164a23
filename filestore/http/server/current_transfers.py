"""What the processes of a server send and receive now, for the page that shows it.

Each process writes its transfers into memory that all of them share, in a place of its own, about once a second while it has any:

    number      u64     how often it was written. It is odd while this is done
    size        u64     bytes of the text
    checksum    u64     CRC-32 of the text
    written     f64     when, in seconds of the monotonic clock of the machine
    text                JSON: the transfers, the oldest first

A reader that meets a writer looks again. A process that was killed writes no more, so what is old does not count.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

PLACE_SIZE = 128 << 10
"""Bytes of each process. Memory that nobody has written to takes no space."""
TRANSFERS_LIMIT = 256
"""The most transfers that a process tells of: the oldest ones."""
WRITE_SECONDS = 1.0
STALE_SECONDS = 5.0
"""What a process with transfers has not written again for so long is not true any more."""
TEXT_LIMIT = 200
"""Characters of a name or a label."""

_WORD = 8
_HEAD = struct.Struct("=QQQd")
_HEAD_AFTER_NUMBER = struct.Struct("=QQd")
"""`pack_into` sets its bytes to zero before it writes them. The number is not among them, so no reader sees it as 0."""
_TRIES = 20


class CurrentTransfer(NamedTuple):
    """What moves on one connection of a client. A push or a fetch by our own client has several."""

    namespace: str
    method: str
    route: str
    """The pattern of the path of its last request, such as `/native/v1/chunks/get`."""
    name: str
    """The name of the stored file. Empty if it is not known, or not yet."""
    record_id: str
    """Its id, in the same way."""
    upload_id: str
    """The id of the upload of which it is a part, in the same way."""
    token_id: str
    """Empty for a request that needed no token."""
    label: str
    size: int
    """Bytes that the connection has moved for the transfer, in both directions. 0 where the system does not say it."""
    began_at: float
    """In seconds since 1970."""
    is_running: bool
    """Whether a request is in progress. Otherwise the client does something else between two of them."""

    def shortened(self) -> CurrentTransfer:
        """Return this without the ends of long texts."""
        return self._replace(name=self.name[:TEXT_LIMIT], label=self.label[:TEXT_LIMIT])


class CurrentTransfers(NamedTuple):
    """The transfers of some processes."""

    transfers: list[CurrentTransfer]
    """The oldest first."""
    left_out: int
    """How many more there are."""
    silent: int
    """How many processes have not said for seconds what they do: they hang, or have just ended."""


class SharedCurrentTransfers:
    """The transfers of the processes of a server. They are forked after this object is made. One thread of each may use it."""

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` must be the same one in all processes."""
        self._memory = memoryview(mmap.mmap(-1, count * PLACE_SIZE))
        self._words = self._memory.cast("Q")
        self._count = count
        self._clock = clock
        self._own = 0

    def join(self, place: int) -> None:
        """Write to `place` in this process. What another process has said there is not true any more."""
        self._own = place
        self.write([])

    def write(self, transfers: Sequence[CurrentTransfer]) -> None:
        """Say what this process transfers. The oldest ones come first."""
        told = [transfer.shortened() for transfer in transfers[:TRANSFERS_LIMIT]]
        text = _encoded(told, len(transfers))
        while _HEAD.size + len(text) > PLACE_SIZE:
            told = told[: len(told) // 2]
            text = _encoded(told, len(transfers))
        start = self._own * PLACE_SIZE
        number = self._words[start // _WORD] | 1
        self._words[start // _WORD] = number
        _HEAD_AFTER_NUMBER.pack_into(self._memory, start + _WORD, len(text), zlib.crc32(text), self._clock())
        self._memory[start + _HEAD.size : start + _HEAD.size + len(text)] = text
        self._words[start // _WORD] = number + 1

    def of_others(self) -> CurrentTransfers:
        """Return what the other processes said last."""
        found = CurrentTransfers([], 0, 0)
        for place in range(self._count):
            if place != self._own:
                found = _together(found, self._of(place))
        return found

    def _of(self, place: int) -> CurrentTransfers:
        for _ in range(_TRIES):
            start = place * PLACE_SIZE
            number, size, checksum, written_at = _HEAD.unpack_from(self._memory, start)
            if number == 0:
                return CurrentTransfers([], 0, 0)  # it has begun nothing yet
            text = bytes(self._memory[start + _HEAD.size : start + _HEAD.size + min(size, PLACE_SIZE - _HEAD.size)])
            if number % 2 or number != self._words[start // _WORD] or zlib.crc32(text) != checksum:
                continue
            rows, count = json.loads(text)
            if rows and self._clock() - written_at > STALE_SECONDS:
                break
            return CurrentTransfers([CurrentTransfer(*row) for row in rows], count - len(rows), 0)
        return CurrentTransfers([], 0, 1)


def _together(first: CurrentTransfers, second: CurrentTransfers) -> CurrentTransfers:
    transfers = sorted([*first.transfers, *second.transfers], key=lambda transfer: transfer.began_at)
    return CurrentTransfers(transfers, first.left_out + second.left_out, first.silent + second.silent)


def with_own(own: Sequence[CurrentTransfer], others: CurrentTransfers) -> CurrentTransfers:
    """Return the transfers of this process, and those of the others."""
    return _together(CurrentTransfers(list(own), 0, 0), others)


def _encoded(told: Sequence[CurrentTransfer], count: int) -> bytes:
    return json.dumps([told, count]).encode()
