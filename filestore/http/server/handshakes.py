"""Accept connections that begin with a handshake of TLS, for a limited time and with little memory.

A connection counts from when it is accepted, so unfinished handshakes are limited as all connections are.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from filestore.http.server.admission import Admission
from filestore.http.server.errors import closing_refusal
from filestore.http.server.rarely import Rarely
from filestore.http.server.tls_transport import TlsTransport

logger = logging.getLogger("filestore.access")

LINGER_SECONDS = 2.0
"""How long a client has to read why it is refused."""
_PLAIN = "this port speaks TLS, and the request was sent without it; use a URL that begins with https://"
_NOT_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"})
_NO_CERTIFICATE = frozenset({"PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED"})


class Handshakes:
    """The connections of a process whose handshake has not ended."""

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        admit: Callable[[str], Admission],
        make_protocol: Callable[[Admission], asyncio.Protocol],
        *,
        seconds: float,
        note_refused: Callable[[str, int], str],
    ) -> None:
        """`context` returns what a new connection needs, and `make_protocol` makes the protocol of one whose handshake ended.

        `note_refused` is `Connections.note_refused`.
        """
        self.context = context
        self.admit = admit
        self.make_protocol = make_protocol
        self.seconds = seconds
        self.note_refused = note_refused
        self._open: set[Handshake] = set()
        self._failures = {text: Rarely() for text in ("plain", "certificate", "other")}

    def begin(self) -> asyncio.Protocol:
        """Return the protocol of a connection that was accepted."""
        return _Accepted(self)

    def add(self, handshake: Handshake) -> None:
        """Keep a handshake until it ends."""
        self._open.add(handshake)

    def remove(self, handshake: Handshake) -> None:
        """Forget a handshake that has ended."""
        self._open.discard(handshake)

    def close(self) -> None:
        """End all handshakes."""
        for handshake in list(self._open):
            handshake.end()

    def note(self, address: str, error: ssl.SSLError) -> None:
        """Write to the log, in one line a minute for each kind, why handshakes fail."""
        reason = error.reason or ""
        if reason in _NOT_TLS:
            self._log("plain", address, "it does not speak TLS; its URL must begin with https://")
        elif reason in _NO_CERTIFICATE:
            why = getattr(error, "verify_message", "") or "it has none"
            self._log("certificate", address, f"its client certificate is refused, {why}")
        elif reason:
            self._log("other", address, reason.lower().replace("_", " "))

    def _log(self, kind: str, address: str, reason: str) -> None:
        if count := self._failures[kind].count():
            others = f"; {count - 1} others failed for such a reason since the last line" if count > 1 else ""
            logger.info("the handshake of TLS with %s failed: %s%s", address, reason, others)


class _Accepted(asyncio.Protocol):
    """A connection that asyncio has accepted. It is taken away from asyncio at once, before a byte is read."""

    def __init__(self, handshakes: Handshakes) -> None:
        self._handshakes = handshakes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake on a descriptor of our own."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # of a TCP server
        peername = transport.get_extra_info("peername")
        accepted: socket.socket | None = None
        with suppress(OSError):  # no descriptor is left, or the client has gone
            accepted = transport.get_extra_info("socket").dup()
        # The duplicate keeps the connection open.
        transport.abort()
        if accepted is not None:
            Handshake(self._handshakes, accepted, peername).begin()


class Handshake:
    """The handshake of one connection."""

    def __init__(self, handshakes: Handshakes, accepted: socket.socket, peername: Any) -> None:
        """Take over `accepted`."""
        self._handshakes = handshakes
        self._loop = asyncio.get_running_loop()
        self._peername = peername
        self._address = str(peername[0]) if peername else ""
        self._admission = handshakes.admit(self._address)
        self._plain = accepted
        self._connection: ssl.SSLSocket | None = None
        self._descriptor = accepted.fileno()
        self._deadline: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin, unless the connection is refused without an answer."""
        accepted = self._plain
        accepted.settimeout(0)
        if not self._admission.may_answer:
            self.end()
            return
        context = self._handshakes.context()
        try:
            self._connection = context.wrap_socket(
                accepted, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
        except (OSError, ValueError):  # the client has gone
            self.end()
            return
        self._descriptor = self._connection.fileno()
        self._handshakes.add(self)
        self._deadline = self._loop.call_later(self._handshakes.seconds, self.end)
        self._go_on()

    def end(self) -> None:
        """Close the connection."""
        self._leave()
        self._admission.release()
        (self._connection or self._plain).close()

    def _go_on(self) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101  # it has begun
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            self._wait(self._loop.add_reader, self._loop.remove_writer)
        except ssl.SSLWantWriteError:
            self._wait(self._loop.add_writer, self._loop.remove_reader)
        except ssl.SSLError as error:
            self._handshakes.note(self._address, error)
            if error.reason == "HTTP_REQUEST":
                # Below TLS, which the client does not speak. It has sent its token already, so this makes nothing worse.
                status = HTTPStatus.BAD_REQUEST
                answer = closing_refusal(status, _PLAIN, request_id=self._handshakes.note_refused(self._address, status))
                with suppress(OSError):
                    socket.socket.send(connection, answer)
                self._linger(connection)
            elif error.reason in _NO_CERTIFICATE:
                # OpenSSL has sent the reason.
                self._linger(connection)
            else:
                self.end()
        except (OSError, ValueError):  # the client has gone
            self.end()
        else:
            self._leave()
            protocol = self._handshakes.make_protocol(self._admission)
            TlsTransport(connection, protocol, context=connection.context, peername=self._peername)

    def _wait(self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], object]) -> None:
        remove(self._descriptor)
        add(self._descriptor, self._go_on)

    def _leave(self) -> None:
        """Watch the connection no longer."""
        self._handshakes.remove(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._connection is not None:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)

    def _linger(self, connection: ssl.SSLSocket) -> None:
        """Let the client read why it is refused. A close at once could discard that if it still sends."""
        self._leave()
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_WR)
        self._handshakes.add(self)
        self._deadline = self._loop.call_later(LINGER_SECONDS, self.end)
        self._loop.add_reader(self._descriptor, self._drop)

    def _drop(self) -> None:
        """Drop what the client still sends."""
        connection = self._connection
        assert connection is not None  # noqa: S101  # it has begun
        try:
            if not socket.socket.recv(connection, 64 << 10):
                self.end()
        except BlockingIOError:
            return
        except OSError:
            self.end()
