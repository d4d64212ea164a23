"""A proxy in front of an S3-compatible gateway that does what networks and object stores do on a bad day.

    with faulty_gateway(bucket.endpoint) as faulty:
        faulty.inject(Answer(503, "SlowDown"), kinds=["PUT"], times=2)
        url = faulty.before(bucket).location()

It works in threads of its own, so a test may block its event loop. The header Host goes on as it came, because clients sign it:
they sign for the address of the proxy, and the gateway checks against the header.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit

from tests.support.ceph import Bucket

KINDS = ("GET", "HEAD", "LIST", "PUT", "POST", "DELETE")
"""A LIST is a GET of a bucket; a POST removes many objects, or is a step of an upload in parts."""
_OF_A_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with an error, and do nothing else. Codes of S3: `InternalError`, `SlowDown`, `ExpiredToken`, `AccessDenied`."""

    status: int
    code: str


@dataclass(frozen=True, slots=True)
class Silence:
    """Never answer."""


@dataclass(frozen=True, slots=True)
class CutRequest:
    """Close the connection before the gateway has the request."""


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """Have the gateway carry the request out, and close the connection after this share of the body of its answer."""

    share: float = 0.5


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Have the gateway carry the request out, and close the connection before the answer."""


@dataclass(frozen=True, slots=True)
class CarryOutLate:
    """Close the connection, and keep the request until `FaultyGateway.carry_out_late`."""


Fault = Answer | Silence | CutRequest | CutAnswer | LoseAnswer | CarryOutLate


@dataclass(slots=True)
class _Injected:
    fault: Fault
    kinds: Collection[str]
    after: int
    times: int

    def takes(self, kind: str) -> bool:
        """Whether the fault is for this request, which counts."""
        if kind not in self.kinds:
            return False
        if self.after:
            self.after -= 1
            return False
        if not self.times:
            return False
        self.times -= 1
        return True


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def kind(self) -> str:
        """One of KINDS."""
        parts = urlsplit(self.target)
        # `/bucket` and `/bucket/` name a bucket.
        is_bucket = "/" not in parts.path.strip("/")
        return "LIST" if self.method == "GET" and is_bucket else self.method


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class FaultyGateway:
    """A proxy that is running."""

    def __init__(self, upstream: str) -> None:
        self.endpoint = ""
        self.counts: Counter[str] = Counter()
        """Requests of each kind, those that a fault met too."""
        self.received: Counter[str] = Counter()
        """Bytes of the bodies of the requests of each kind."""
        self.sent: Counter[str] = Counter()
        """Bytes of the bodies of the answers of each kind."""
        self.deleted: list[str] = []
        """The targets of the DELETE requests, in the order in which they came."""
        self.closing = threading.Event()
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._injected: list[_Injected] = []
        self._late: list[_Request] = []

    def before(self, bucket: Bucket) -> Bucket:
        """Return a bucket of the gateway, as it is reached through the proxy."""
        return bucket._replace(endpoint=self.endpoint)

    def inject(self, fault: Fault, *, kinds: Collection[str] = KINDS, times: int = 1, after: int = 0) -> None:
        """Have the next `times` requests of some kinds meet a fault, once `after` of them have passed."""
        with self._lock:
            self._injected.append(_Injected(fault, kinds, after, times))

    def heal(self) -> None:
        """Have no request meet a fault any more. Those that are kept stay kept."""
        with self._lock:
            self._injected.clear()

    @property
    def late(self) -> int:
        """How many requests are kept."""
        return len(self._late)

    def carry_out_late(self) -> list[int]:
        """Have the gateway carry out the requests that are kept; return the statuses of its answers."""
        with self._lock:
            late, self._late = self._late, []
        return [self.forward(request).status for request in late]

    def fault_of(self, request: _Request) -> Fault | None:
        """Count a request, and return the fault that it meets."""
        with self._lock:
            self.counts[request.kind] += 1
            self.received[request.kind] += len(request.body)
            if request.method == "DELETE":
                self.deleted.append(request.target)
            return next((injected.fault for injected in self._injected if injected.takes(request.kind)), None)

    def note_sent(self, request: _Request, size: int) -> None:
        """Count bytes of the body of an answer."""
        with self._lock:
            self.sent[request.kind] += size

    def keep(self, request: _Request) -> None:
        """Keep a request, to carry it out later."""
        with self._lock:
            self._late.append(request)

    def forward(self, request: _Request) -> _Reply:
        """Have the gateway carry out a request."""
        connection = HTTPConnection(self._upstream, timeout=60)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in _OF_A_CONNECTION:
                    connection.putheader(name, value)
            if request.body or request.method in {"PUT", "POST"}:
                connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body)
            with connection.getresponse() as answer:
                body = answer.read()
                length = answer.getheader("Content-Length") if request.method == "HEAD" else str(len(body))
                headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION]
                if length is not None and answer.status != 204:
                    headers.append(("Content-Length", length))
                return _Reply(answer.status, answer.reason, headers, body)
        finally:
            connection.close()


class _Server(ThreadingMixIn, HTTPServer):
    # The end of the block waits for the threads, so that none outlives its test.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, gateway: FaultyGateway) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.gateway = gateway
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client may leave when it wants."""

    def disconnect(self) -> None:
        """End all connections."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def pass_on(self) -> None:
        """Answer a request."""
        gateway = self.server.gateway
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = _Request(self.command, self.path, self.headers.items(), body)
        match gateway.fault_of(request):
            case None:
                self._answer(request, gateway.forward(request))
                return
            case Answer(status, code):
                self._answer(request, _error(status, code))
                return
            case Silence():
                gateway.closing.wait()
            case CutAnswer(share):
                self._answer(request, gateway.forward(request), share=share)
            case LoseAnswer():
                gateway.forward(request)
            case CarryOutLate():
                gateway.keep(request)
            case CutRequest():
                pass
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = pass_on  # noqa: N815  # names of the base class

    def _answer(self, request: _Request, reply: _Reply, *, share: float = 1) -> None:
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        body = reply.body[: int(len(reply.body) * share)] if request.method != "HEAD" else b""
        self.wfile.write(body)
        self.server.gateway.note_sent(request, len(body))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is that of the base class
        """Say nothing."""


def _error(status: int, code: str) -> _Reply:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>a fault of a test</Message></Error>'.encode()
    )
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    return _Reply(status, code, headers, body)


@contextmanager
def faulty_gateway(endpoint: str) -> Iterator[FaultyGateway]:
    """Stand in front of the gateway at `endpoint` until the end of the block."""
    gateway = FaultyGateway(endpoint)
    with _Server(gateway) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        gateway.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield gateway
        finally:
            gateway.closing.set()
            server.shutdown()
            thread.join()
            server.disconnect()
