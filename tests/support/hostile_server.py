"""A server on loopback that answers with exactly the bytes that a test says, and counts what it was asked and what it sent.

No library checks its answers, so that they may be anything. It serves any number of connections, each in a thread.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from filestore.core.digest import chunk_digest
from filestore.core.records import Kind, Record
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http import wire
from tests.support.tls import server_tls

IDENTITY: dict[str, Any] = {"id": "0a" * 16, "namespace": "default", "chunking_version": CHUNKING_VERSION, "format": 1}
"""The document of a repository."""
RECORD = Record(
    id="file_" + "0a" * 16,
    name="model.bin",
    digest=chunk_digest(b"one"),
    size=3,
    kind=Kind.FILE,
    namespace="default",
    created_at=1_700_000_000_000_000,
    updated_at=1_700_000_000_000_000,
)


class Asked(NamedTuple):
    """A request that the server received."""

    method: str
    path: str
    """Below the prefix of all routes, with its query."""
    fields: dict[str, str]
    """The header fields, by their names in lower case."""
    body: bytes


Answer = Callable[[Asked], bytes | Iterable[bytes]]
"""Gives the bytes of an answer, with its head. They may be without end."""


class HostileServer:
    """A server that is running. The connection ends after each answer."""

    def __init__(self, listener: socket.socket, answer: Answer, *, tls: ssl.SSLContext | None) -> None:
        self._listener = listener
        self._answer = answer
        self._tls = tls
        self.url = f"http{'s' if tls else ''}://localhost:{listener.getsockname()[1]}"
        self.asked: list[Asked] = []
        self.sent = 0
        """Bytes of answers that the kernel has taken."""
        self.is_over = threading.Event()

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            talk = connection if self._tls is None else self._tls.wrap_socket(connection, server_side=True)
            with talk:
                asked = _receive(talk)
                if asked is None:
                    return
                self.asked.append(asked)
                answer = self._answer(asked)
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    if self.is_over.is_set():
                        return
                    talk.sendall(piece)
                    self.sent += len(piece)
                talk.shutdown(socket.SHUT_WR)


@contextmanager
def hostile_server(answer: Answer, *, tls: bool = False) -> Iterator[HostileServer]:
    """Run a server for a block, whose `answer` is called in the thread of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HostileServer(listener, answer, tls=server_tls() if tls else None)
        threading.Thread(target=server.serve, daemon=True).start()
        try:
            yield server
        finally:
            server.is_over.set()
            # Without it, `accept` stays in the kernel and keeps the listener open.
            listener.shutdown(socket.SHUT_RDWR)


def answering(body: bytes, *, status: str = "200 OK", content_type: str = "application/json", fields: bytes = b"") -> bytes:
    """Return a whole answer."""
    return head(len(body), status=status, content_type=content_type, fields=fields) + body


def head(size: int | None, *, status: str = "200 OK", content_type: str = "application/json", fields: bytes = b"") -> bytes:
    """Return the head of an answer of `size` bytes, or of one that announces no size."""
    length = "" if size is None else f"Content-Length: {size}\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{length}".encode() + fields + b"\r\n"


def document(values: object, *, status: str = "200 OK") -> bytes:
    """Return an answer that is a JSON document, in ASCII."""
    return answering(json.dumps(values).encode(), status=status)


def by_path(routes: Mapping[str, bytes | Iterable[bytes]]) -> Answer:
    """Return what answers each request by the first route that its path begins with. Any other one is not found."""

    def answer(asked: Asked) -> bytes | Iterable[bytes]:
        for path, said in routes.items():
            if asked.path.startswith(path):
                return said
        return document({"type": "urn:filestore:error:not-found", "reference": "x", "detail": "x"}, status="404 Not Found")

    return answer


def _receive(connection: socket.socket) -> Asked | None:
    received = bytearray()
    while b"\r\n\r\n" not in received:
        piece = connection.recv(1 << 16)
        if not piece:
            return None
        received += piece
    raw, _, body = bytes(received).partition(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split(" ")
    parts = [body]
    left = int(fields.get("content-length", 0)) - len(body)
    while left > 0 and (piece := connection.recv(min(left, 1 << 16))):
        parts.append(piece)
        left -= len(piece)
    return Asked(method, path.removeprefix(wire.API), fields, b"".join(parts))
