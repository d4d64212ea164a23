"""What is known of one request when it has ended. Logs and metrics are made of these records."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from filestore.core.records import Record
from filestore.http.server.access import Access

REQUEST_ID_HEADER = "X-Request-Id"


@dataclass(slots=True)
class RequestRecord:
    """One request. The parts that answer it fill in what they know."""

    id: str
    """16 hexadecimal digits, or what a trusted proxy says. The answer has it in the header X-Request-Id."""
    method: str
    """Empty if no head of a request was read."""
    route: str
    """The pattern of the path, such as `/native/v1/files/{id}`. Empty for an unknown path."""
    address: str
    """The address of the client."""
    access: Access | None = None
    """The token. None if it is not known, or if the request needs none."""
    status: int = 0
    """The status of the answer, or 0 if the connection ended before an answer began."""
    bytes_received: int = 0
    """Bytes of the body of the request that have arrived."""
    bytes_sent: int = 0
    """Bytes of the body of the answer that the kernel, or the buffer of the connection, has taken."""
    error: str = ""
    """The slug of the error that was answered, or that cut the answer, or an empty text."""
    seconds: float = 0.0
    facts: dict[str, str | int] = field(default_factory=dict)
    """What the request did, such as the id and the name of the record that it stored."""
    cut: bool = False
    """Whether an answer began and did not come to its end."""
    time: float = field(default_factory=time.time)
    """When the request began, in seconds since 1970."""

    def note_record(self, record: Record) -> None:
        """Note the stored file that the request is about."""
        self.facts |= {"record": record.id, "name": record.full_name, "digest": str(record.digest), "size": record.size}

    def note_body(self, size: int) -> None:
        """Note that the whole answer was sent, with `size` bytes of its body that were not counted before."""
        self.bytes_sent += size
        self.cut = False


Observer = Callable[[RequestRecord], None]
"""A function that is called with the record of each request when it has ended. It must not wait or fail."""

RECORD = "filestore.record"
"""The key of a request for its record."""


class ProblemAnswer(web.Response):
    """An answer that reports an error."""

    slug = ""
    """The slug of the error. Empty for an error of HTTP itself."""


def record_of(request: web.Request) -> RequestRecord:
    """Return the record of a request. It is made now if the request has none."""
    record: RequestRecord | None = request.get(RECORD)
    return begin_record(request, "") if record is None else record


def begin_record(request: web.Request, address: str, request_id: str | None = None) -> RequestRecord:
    """Make the record of a request, with our own id unless another one is given."""
    record = RequestRecord(request_id or new_id(), request.method, _route(request), address)
    request[RECORD] = record
    return record


def new_id() -> str:
    """Return an id that no other request has."""
    return secrets.token_hex(8)


@contextmanager
def recorded(
    request: web.Request, address: str, observers: Sequence[Observer], *, request_id: str | None = None
) -> Iterator[None]:
    """Keep a record of the request during the block, and give it to the observers at the end.

    A request that was asked to go on, after `Expect`, has its access in a record already.
    """
    began = time.monotonic()
    earlier: RequestRecord | None = request.get(RECORD)
    record = begin_record(request, address, request_id)
    if earlier is not None:
        record.access = earlier.access
    try:
        yield
    finally:
        record.seconds = time.monotonic() - began
        # aiohttp counts what has passed through it. `BodyReader` counts what threads have read from the connection.
        record.bytes_received += request.content.total_bytes
        for observe in observers:
            observe(record)


def note_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Write the id of a request into the head of its answer, and the status of the answer into the record.

    It is called when the head is about to be sent. The answer is incomplete until `note_body` is called.
    """
    record = request.get(RECORD)
    if record is None:
        return
    response.headers[REQUEST_ID_HEADER] = record.id
    if request.transport is None or request.transport.is_closing():
        return  # nobody gets this answer
    record.status, record.cut = response.status, True
    if isinstance(response, ProblemAnswer) and response.slug:
        record.error = response.slug


def note_error(request: web.Request, slug: str) -> None:
    """Note the error that ends a request, which may have no answer."""
    record_of(request).error = slug


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical.replace("/{slashes}", "/")
