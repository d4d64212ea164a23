"""The connections under a channel, with and without TLS: sockets that never block, and say what they wait for.

OpenSSL allows one thread at a time. A channel has one request at a time, in one thread, so nothing is locked here. The exception
is `end`, which another thread may call: it works on the socket below TLS.
Source: RFC 8446, section 6.1 (the end of TLS), and SSL_write(3), SSL_get_error(3) of OpenSSL.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Protocol

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked, unlocked_in_series
from filestore.http.client.exchange import ClientCertificate
from filestore.system.certificates import load_pair

RECORD_SIZE = 16 << 10
"""Bytes of the largest record of TLS. OpenSSL receives at most one in a call. Source: RFC 8446, section 5.1."""
_PIECE_SIZE = 64 << 10
"""Bytes that OpenSSL sends in a call. It needs the same bytes again until the kernel has taken all of them."""
_STEP_SIZE = 1 << 20
"""About how many bytes one call moves, if the other end keeps up."""
_VIEWS_AT_ONCE = 64
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection(Protocol):
    """A connection to a server. A method that would block raises BlockingIOError instead."""

    @property
    def socket(self) -> socket.socket:
        """The socket to wait with, and to ask for facts. Through TLS, its own bytes are encrypted."""
        ...

    @property
    def awaited(self) -> int:
        """The event of `poll` that the last call which raised BlockingIOError waits for."""
        ...

    def send(self, views: Sequence[memoryview]) -> int:
        """Send bytes of `views`, which are not empty. Return their number.

        After BlockingIOError, the next call must have the same views. Raises BlockingIOError, OSError.
        """
        ...

    def receive_into(self, memory: memoryview) -> int:
        """Receive bytes. Return their number, which is 0 only at the end. Raises BlockingIOError, OSError."""
        ...

    @property
    def holds_more(self) -> bool:
        """Whether bytes, or the end of the connection, have left the socket, and `receive_into` has not returned them."""
        ...

    def has_arrived(self) -> bool:
        """Return whether `receive_into` would not block, where the socket can be read."""
        ...

    def end(self) -> None:
        """End the connection in both directions, so that a call in another thread fails. Any thread may call it."""
        ...

    def close(self) -> None:
        """Close the connection. No thread may use it."""
        ...


class PlainConnection:
    """A connection without TLS."""

    def __init__(self, connected: socket.socket) -> None:
        """Take over `connected`, a socket in non-blocking mode."""
        self.socket = connected
        self.awaited = select.POLLIN

    def send(self, views: Sequence[memoryview]) -> int:
        self.awaited = select.POLLOUT
        return unlocked(self.socket.sendmsg, list(islice(views, _VIEWS_AT_ONCE)))

    def receive_into(self, memory: memoryview) -> int:
        self.awaited = select.POLLIN
        return unlocked(self.socket.recv_into, memory)

    @property
    def holds_more(self) -> bool:
        return False

    def has_arrived(self) -> bool:
        return True

    def end(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.socket.close()


class TlsConnection:
    """A connection with TLS. Call `shake_hands` until it returns."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Take over `connected`, a socket in non-blocking mode. `host` must be in the certificate.

        Raises OSError, and ValueError if `host` is not a name.
        """
        # An end without the end of TLS may have been made by somebody between the two ends, so it is an error.
        self._tls = context.wrap_socket(
            connected, server_hostname=host.rstrip("."), do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        self.socket: socket.socket = self._tls
        self.awaited = select.POLLIN
        self._receives = 0
        """How many calls have received."""
        self._early = b""
        """A byte that was read to find out whether there is one."""
        self._failure: OSError | None = None
        """Why the connection failed, for the next call. OpenSSL says it once."""
        self._has_ended = False
        """Whether the end of TLS has arrived. The socket may be silent from then on."""

    def shake_hands(self) -> None:
        """Go on with the handshake. Raises BlockingIOError, and OSError if the server cannot be trusted."""
        try:
            unlocked(self._tls.do_handshake)
        except _WANTS as want:
            raise self._blocked(want) from None

    def send(self, views: Sequence[memoryview]) -> int:
        # About 1 MiB. Python asks OpenSSL to take all of a piece in one call, which gives up the lock for all of its records.
        send, sent = self._tls.send, 0
        place = start = 0
        try:
            while place < len(views) and sent < _STEP_SIZE:
                # The piece depends on where it begins alone: after a call that would have blocked, OpenSSL wants the same.
                piece: Buffer = views[place][start : start + _PIECE_SIZE]
                if len(piece) < RECORD_SIZE:
                    piece = _joined(piece, islice(views, place + 1, None))
                moved = unlocked(send, piece)
                sent += moved
                start += moved
                while place < len(views) and start >= len(views[place]):
                    start -= len(views[place])
                    place += 1
        except _WANTS as want:
            if not sent:
                raise self._blocked(want) from None
        return sent

    def receive_into(self, memory: memoryview) -> int:
        # As many records as there are, so that the caller's steps are few. A record takes a call, so a GB takes 61,000.
        receive, received, size = self._tls.recv_into, 0, min(len(memory), _STEP_SIZE)
        if self._failure is not None:
            raise self._failure
        if self._early:
            memory[:1] = self._early
            received, self._early = 1, b""
        try:
            while received < size and not self._has_ended:
                moved = unlocked_in_series(self._receives, receive, memory[received:], size - received)
                self._receives += 1
                received += moved
                self._has_ended = not moved
        except _WANTS as want:
            if not received:
                raise self._blocked(want) from None
        except OSError as error:
            if not received:
                raise
            self._failure = error
        return received

    @property
    def holds_more(self) -> bool:
        return bool(self._early) or self._has_ended or self._failure is not None or self._tls.pending() > 0

    def has_arrived(self) -> bool:
        # What TLS itself sends, such as a ticket, is not for the caller.
        if self.holds_more:
            return True
        try:
            self._early = self._tls.recv(1)
            self._has_ended = not self._early
        except _WANTS:
            return False
        except OSError as error:
            self._failure = error
        return True

    def end(self) -> None:
        # The method of SSLSocket would take the TLS away from the thread that uses it.
        with suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def close(self) -> None:
        # It tells the server that nothing is missing, and does not wait for the same. After an error it does nothing.
        with suppress(OSError, ValueError):
            self._tls.unwrap()
        self._tls.close()

    def _blocked(self, want: ssl.SSLError) -> BlockingIOError:
        self.awaited = select.POLLIN if isinstance(want, ssl.SSLWantReadError) else select.POLLOUT
        return BlockingIOError()


def _joined(first: Buffer, others: Iterable[memoryview]) -> Buffer:
    """Return a record that has `first` and what follows. Small frames share one: the copy costs less than a call."""
    parts: list[Buffer] = [first]
    left = RECORD_SIZE - len(first)
    for view in others:
        parts.append(view[:left])
        left -= len(parts[-1])
        if not left:
            break
    return b"".join(parts) if len(parts) > 1 else first


def client_tls(certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """Return what a client needs to speak TLS. It trusts the authorities of SSL_CERT_FILE, or else those of the system.

    Raises InvalidSetting if `certificate` cannot be used.
    """
    if certificate is None:
        return _shared_tls(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    context = _new_tls()
    load_pair(context, certificate.cert, certificate.key, name="tls_client")
    return context


@lru_cache(maxsize=4)
def _shared_tls(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    # OpenSSL reads the two variables. To load the authorities of a system takes 30 ms.
    return _new_tls()


def _new_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
