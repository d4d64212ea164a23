"""Decide when a connection has stalled. Both ends of a transfer use it, in both directions.

A timer alone does not find a peer that sends one byte every few seconds. So a connection must move `LEAST_RATE` on average over
the time of the timer. On the other side, bytes that the kernel has taken may take minutes to pass a slow link, and bytes that the
peer has acknowledged count as moved: a full buffer is not a stall.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

LEAST_RATE = 32
"""Bytes per second below which a connection has stalled.

The slowest links in use are satellite modems of 2400 bits per second. If four connections share one, each still has twice this
rate. A link of 128 kbit/s has 500 times this rate.
"""
LEAST_ANSWER_RATE = 0.5
"""The same for the head of an answer, and for a small answer. While a server works, it sends one byte per second."""
# struct tcp_info of Linux, which only grows at its end: tcpi_bytes_acked and tcpi_bytes_received.
_SIZES = struct.Struct("=120xQQ")
_HAS_SIZES = sys.platform == "linux"


def acknowledged_size(connection: socket.socket) -> int:
    """Return how many bytes the peer has acknowledged since the connection was made. It is 0 if the system does not say it.

    Source: tcp(7), TCP_INFO; RFC 4898, tcpEStatsAppHCThruOctetsAcked.
    """
    return _sizes(connection)[0]


def transferred_size(connection: socket.socket) -> int:
    """Return how many bytes a connection has moved in both directions. It is 0 if the system does not say it."""
    return sum(_sizes(connection))


def _sizes(connection: socket.socket) -> tuple[int, int]:
    if not _HAS_SIZES:
        return 0, 0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZES.size)
    except OSError:  # it is closed, or not a connection of TCP
        return 0, 0
    if len(info) != _SIZES.size:
        return 0, 0
    sent, received = _SIZES.unpack(info)
    return sent, received


class StallTimer:
    """Add up the time that one connection has waited for its peer, until enough bytes have moved.

    Only waiting counts: time in which this process was busy with something else is not the fault of the peer.
    """

    def __init__(
        self,
        seconds: float,
        *,
        connection: socket.socket | None = None,
        least_rate: float = LEAST_RATE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connection` is asked which of the bytes that were sent have arrived."""
        self.seconds = seconds
        self._connection = connection
        self._least = max(1.0, least_rate * seconds)
        self._clock = clock
        self._waited = 0.0
        self._moved = 0
        self._acknowledged = self._read_acknowledged()

    def count(self, size: int) -> None:
        """Count bytes that were received, or that the kernel has taken."""
        self._moved += size

    def left(self) -> float:
        """Return how many seconds the connection may wait now. It is 0 or less if the connection has stalled."""
        if not self._waited:
            return self.seconds
        moved = self._moved
        if moved < self._least:
            moved += self._read_acknowledged() - self._acknowledged
        if moved >= self._least:
            self.restart()
        return self.seconds - self._waited

    def restart(self) -> None:
        """Start over, as if the connection had never waited."""
        self._waited, self._moved = 0.0, 0
        self._acknowledged = self._read_acknowledged()

    def began(self) -> float:
        """Return the start of a wait, for `ended`."""
        return self._clock()

    def ended(self, began: float) -> None:
        """Count the time since `began` as waited."""
        self._waited += self._clock() - began

    def _read_acknowledged(self) -> int:
        return 0 if self._connection is None else acknowledged_size(self._connection)
