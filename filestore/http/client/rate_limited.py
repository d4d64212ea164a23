"""A connection that moves bytes no faster than a limit permits, which all connections of a client share."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from filestore.http.client.connection import Connection
from filestore.system.rate_limit import RateLimit


class RateLimitedConnection:
    """A `Connection` around another one. It waits before it sends, and after it has received, in the thread of the caller."""

    def __init__(self, inner: Connection, rate: RateLimit) -> None:
        """`inner` belongs to this object."""
        self._inner = inner
        self._rate = rate
        self._ended = threading.Event()
        self._unsent: list[memoryview] = []
        """What the last call would have sent without blocking. The next one must have the same."""

    @property
    def socket(self) -> socket.socket:
        return self._inner.socket

    @property
    def awaited(self) -> int:
        return self._inner.awaited

    def send(self, views: Sequence[memoryview]) -> int:
        if not self._unsent:
            self._unsent = _beginning(views, self._rate.piece)
            self._rate.take(_size(self._unsent), self._ended)
        sent = self._inner.send(self._unsent)
        self._rate.give_back(_size(self._unsent) - sent)
        self._unsent = []
        return sent

    def receive_into(self, memory: memoryview) -> int:
        received = self._inner.receive_into(memory[: self._rate.piece])
        # Afterwards: only then it is known how many bytes there are.
        self._rate.take(received, self._ended)
        return received

    @property
    def holds_more(self) -> bool:
        return self._inner.holds_more

    def has_arrived(self) -> bool:
        return self._inner.has_arrived()

    def end(self) -> None:
        self._ended.set()
        self._inner.end()

    def close(self) -> None:
        self._inner.close()


def _beginning(views: Sequence[memoryview], size: int) -> list[memoryview]:
    """Return the first `size` bytes of views."""
    taken = []
    for view in views:
        taken.append(view[:size])
        size -= len(taken[-1])
        if not size:
            break
    return taken


def _size(views: Sequence[memoryview]) -> int:
    return sum(map(len, views))
