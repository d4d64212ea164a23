"""Stand between a client and a server of plain HTTP, and write down what the client asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_PIECE = 1 << 20
_OF_A_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding"})


class Asked(NamedTuple):
    """A request and the head of its answer. Names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    status: int
    answered: dict[str, str]
    body_size: int
    """Of the request."""

    @property
    def path(self) -> str:
        """The target without the query."""
        return self.target.partition("?")[0]


class Relay(NamedTuple):
    """A relay that is running."""

    url: str
    asked: list[Asked]
    """The requests in the order in which their answers began. A test empties it before what it counts."""


class Spoiled(NamedTuple):
    """What is done to one request."""

    status: int = 0
    """The status of the answer if the server is not asked."""
    body: bytes = b""
    kept_size: int | None = None
    """How many bytes of the body of the server's answer are sent before the connection is cut. -1: not even a status."""
    without: str = ""
    """A header that the server does not get, in lower case."""
    only_with: str = ""
    """A header, in lower case. A request that does not have it is not spoiled."""


UNSPOILED = Spoiled()


@contextmanager
def running_relay(url: str, *, spoil: Callable[[str, str], Spoiled] = lambda _method, _target: UNSPOILED) -> Iterator[Relay]:
    """Forward requests to a server until the end of the block. The header Host stays, so URLs in answers lead here again.

    `spoil` says for the method and the target of each request what goes wrong with it.
    """
    asked: list[Asked] = []

    class Handler(_Handler):
        upstream = urlsplit(url).netloc
        log = asked
        spoiled = staticmethod(spoil)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Relay(f"http://127.0.0.1:{server.server_address[1]}", asked)
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    upstream: str
    log: list[Asked]
    spoiled: Callable[[str, str], Spoiled]

    def forward(self) -> None:
        """Answer a request with what the server answers."""
        body = self._body()
        spoiled = self.spoiled(self.command, self.path)
        if spoiled.only_with and spoiled.only_with not in self.headers:
            spoiled = UNSPOILED
        if spoiled.status:
            self.log.append(Asked(self.command, self.path, _lower(self.headers.items()), spoiled.status, {}, len(body)))
            self._answer_instead(spoiled)
            return
        connection = HTTPConnection(self.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_A_CONNECTION | {"content-length", "expect", spoiled.without}:
                    connection.putheader(name, value)
            if body or self.command in {"POST", "PUT"}:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            with connection.getresponse() as answer:
                # Before the answer is sent: the client may end as soon as it has it.
                self.log.append(self._asked(answer, body))
                self._answer(answer, spoiled.kept_size)
        finally:
            connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = forward  # noqa: N815  # names of the base class

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _asked(self, answer: HTTPResponse, body: bytes) -> Asked:
        answered = _lower(answer.getheaders())
        return Asked(self.command, self.path, _lower(self.headers.items()), answer.status, answered, len(body))

    def _answer_instead(self, spoiled: Spoiled) -> None:
        self.send_response_only(spoiled.status)
        self.send_header("Content-Length", str(len(spoiled.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(spoiled.body)

    def _answer(self, answer: HTTPResponse, kept_size: int | None) -> None:
        if kept_size is not None:
            self.close_connection = True
            if kept_size < 0:
                return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_A_CONNECTION:
                self.send_header(name, value)
        has_no_body = self.command == "HEAD" or answer.status in {204, 304}
        is_chunked = not has_no_body and answer.getheader("Content-Length") is None
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if kept_size is not None:
            self.wfile.write(answer.read(kept_size))
            return
        while not has_no_body and (piece := answer.read(_PIECE)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is that of the base class
        """Say nothing."""


def _lower(headers: Any) -> dict[str, str]:
    pairs: Sequence[tuple[str, str]] = list(headers)
    return {name.lower(): value for name, value in pairs}
