"""What is known of one request when it has ended. Logs and metrics are made of these records."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from filestore.http.server.access import Access

REQUEST_ID_HEADER = "X-Request-Id"


@dataclass(slots=True)
class RequestRecord:
    """One request. The parts that answer it fill in what they know."""

    id: str
    """16 hexadecimal digits. The answer has it in the header X-Request-Id."""
    method: str
    route: str
    """The pattern of the path, such as `/native/v1/files/{id}`. Empty for an unknown path."""
    address: str
    """The address of the client."""
    access: Access | None = None
    """The token. None if it is not known, or if the request needs none."""
    status: int = 0
    """The status of the answer, or 0 if the connection ended before an answer began."""
    bytes_received: int = 0
    """Bytes of the body of the request."""
    bytes_sent: int = 0
    """Bytes of the body of the answer."""
    error: str = ""
    """The slug of the error that was answered, or an empty text."""
    seconds: float = 0.0
    facts: dict[str, str | int] = field(default_factory=dict)
    """What the request did, such as the id and the name of the record that it stored."""


Observer = Callable[[RequestRecord], None]
"""A function that is called with the record of each request when it has ended. It must not wait or fail."""

RECORD = "filestore.record"
"""The key of a request for its record."""


def record_of(request: web.Request) -> RequestRecord:
    """Return the record of a request."""
    record: RequestRecord = request[RECORD]
    return record


@contextmanager
def recorded(request: web.Request, address: str, observers: Sequence[Observer]) -> Iterator[None]:
    """Keep a record of the request during the block, and give it to the observers at the end."""
    began = time.monotonic()
    record = RequestRecord(secrets.token_hex(8), request.method, _route(request), address)
    request[RECORD] = record
    try:
        yield
    finally:
        record.seconds = time.monotonic() - began
        for observe in observers:
            observe(record)


def note_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Write the id of a request into the head of its answer, and the status of the answer into the record."""
    record = request.get(RECORD)
    if record is not None:
        response.headers[REQUEST_ID_HEADER] = record.id
        record.status = response.status


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical.replace("/{slashes}", "/")
