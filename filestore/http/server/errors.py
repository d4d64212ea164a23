"""Answer errors with problem documents (RFC 9457). Facts about the server itself are written only to its log."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler

from filestore.errors import (
    Busy,
    DamagedChunk,
    DamagedRecord,
    FilestoreError,
    IndexDamaged,
    IndexReplaced,
    Interrupted,
    InvalidRange,
    MinFreeReached,
    QuotaExceeded,
    RateLimited,
    RepositoryMoved,
    Stalled,
    StorageFull,
    TooManyGuesses,
    Unauthorized,
    UpstreamFailed,
    redact_signature,
)
from filestore.http import wire
from filestore.http.server.auth import CHALLENGE
from filestore.http.server.outages import OUTAGES
from filestore.http.server.request_record import REQUEST_ID_HEADER, ProblemAnswer, note_error, record_of

logger = logging.getLogger("filestore.server")

# The space of a quota becomes free when somebody removes files, and for the most part only with the next collection.
_RETRY_SECONDS: Mapping[type[Exception], int] = {Busy: 1, TooManyGuesses: 60, QuotaExceeded: 60}
OUT_OF_DESCRIPTORS = "it has as many open files as its limit permits"


@web.middleware
async def as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer each error with a problem document.

    If an answer has begun, its connection is cut, and the problem is not sent.
    """
    try:
        return await handler(request)
    except (Interrupted, Stalled, ConnectionError) as error:
        logger.info("%s %r: %s", request.method, redact_signature(request.path), error)
        note_error(request, error.slug if isinstance(error, FilestoreError) else Interrupted.slug)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=408)
    except web.HTTPException as error:
        return _answer(_protocol_problem(error), {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {})
    except Exception as error:  # noqa: BLE001  # any error ends this request only
        return problem(request, error)


def problem(request: web.Request, error: Exception) -> web.Response:
    """Return the answer for `error`. An error of the server itself is logged, with the id of the request."""
    # Also if the answer has begun, so that this one is not sent.
    note_error(request, error.slug if isinstance(error, FilestoreError) else FilestoreError.slug)
    if isinstance(error, FilestoreError):
        described = wire.encode_problem(error)
        if described.status < 500 or isinstance(error, QuotaExceeded | UpstreamFailed):
            return _answer(described, _headers_of(error))
    if _is_out_of_descriptors(error):
        return problem_answer(Busy("the server", OUT_OF_DESCRIPTORS))
    request_id = record_of(request).id
    if not isinstance(error, FilestoreError) or request.app[OUTAGES].is_first(error):
        log_failure(f"{request.method} {redact_signature(request.path)!r} failed, request {request_id}", error)
    told = _without_secrets(error, request_id)
    return _answer(wire.encode_problem(told), _headers_of(told))


async def answer_or_problem(handler: Handler, request: web.Request) -> web.StreamResponse:
    """Return the answer of a handler, or the problem document of its error. Errors of the connection and of HTTP are raised."""
    try:
        return await handler(request)
    except (Interrupted, Stalled, ConnectionError, web.HTTPException):
        raise
    except Exception as error:  # noqa: BLE001  # any error ends this request only
        return problem(request, error)


def refusal(where: str, reason: str, *, retry_after_seconds: int) -> web.Response:
    """Return the answer for a request that is refused for now, although nothing is wrong with it."""
    return _answer(wire.encode_problem(Busy(where, reason)), {"Retry-After": str(retry_after_seconds)})


def log_failure(what: str, error: BaseException, *, level: int = logging.ERROR) -> None:
    """Log in one line what failed and why. Only a fault in our own code is logged with its traceback."""
    is_ours = not isinstance(error, FilestoreError | OSError)
    logger.log(level, "%s: %s", what, " ".join(str(error).split()), exc_info=error if is_ours else None)


class FailureLog:
    """Log the first failure of work that is repeated, and no further one until the work has succeeded again."""

    def __init__(
        self, what: str, *, level: int = logging.ERROR, quiet_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`what` says what cannot be done. A success counts only if nothing has failed for `quiet_seconds`."""
        self._what = what
        self._level = level
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._is_failing = False
        self._failed_at = 0.0

    def failed(self, error: BaseException) -> None:
        """Note that the work has failed."""
        if not self._is_failing:
            log_failure(self._what, error, level=self._level)
        self._is_failing, self._failed_at = True, self._clock()

    def succeeded(self) -> None:
        """Note that the work has succeeded."""
        if self._is_failing and self._clock() - self._failed_at >= self._quiet_seconds:
            self._is_failing = False


def concerns_us(record: logging.LogRecord) -> bool:
    """Return whether a message of aiohttp belongs in the log. A request that is not HTTP gets a 400 and no log entry."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


def problem_answer(error: FilestoreError) -> web.Response:
    """Return the answer for an error that says nothing secret. It is not logged."""
    return _answer(wire.encode_problem(error), _headers_of(error))


def closing_problem(error: FilestoreError, *, request_id: str) -> bytes:
    """Return a whole HTTP/1.1 answer for an error, for a connection that is closed after it."""
    return _closing_answer(wire.encode_problem(error), {REQUEST_ID_HEADER: request_id, **_headers_of(error)})


def closing_refusal(status: HTTPStatus, detail: str, *, request_id: str) -> bytes:
    """Return a whole HTTP/1.1 answer for a request that is not valid HTTP, for a connection that is closed after it."""
    document: dict[str, object] = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    return _closing_answer(wire.Problem(status.value, document), {REQUEST_ID_HEADER: request_id})


def _closing_answer(described: wire.Problem, headers: Mapping[str, str]) -> bytes:
    body = json.dumps(described.document).encode()
    headers = {"Content-Type": wire.PROBLEM, "Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {described.status} {HTTPStatus(described.status).phrase}", "Server: filestore"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _is_out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether the error, or one that caused it, says that no descriptor is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__
    return False


def _headers_of(error: Exception) -> Mapping[str, str]:
    wait = error.wait_seconds if isinstance(error, RateLimited) else _RETRY_SECONDS.get(type(error))
    if wait is not None:
        return {"Retry-After": str(wait)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": CHALLENGE}
    if isinstance(error, InvalidRange):
        return {"Content-Range": f"bytes */{error.size}"}
    return {}


def _without_secrets(error: Exception, request_id: str) -> FilestoreError:
    """Return an error without paths and other facts about this machine. Keep the kind if the client can act on it."""
    match error:
        case DamagedChunk() | DamagedRecord():
            safe: FilestoreError = error
        case MinFreeReached():
            safe = MinFreeReached("the server's disk", error.needed, error.free, error.limit)
        case StorageFull():
            safe = StorageFull("the server's disk", "no space is left")
        case IndexDamaged():
            safe = IndexDamaged("the server's index", "it is damaged")
        case IndexReplaced():
            safe = IndexReplaced("the server's index", "a file of it was replaced or removed")
        case RepositoryMoved():
            safe = RepositoryMoved("the server's repository", "another place")
        case Busy():
            safe = Busy("the server's repository", "another process holds it, or it does not answer")
        case _:
            safe = FilestoreError(f"the server failed; its log says why, under the request {request_id}")
    return safe


def _protocol_problem(error: web.HTTPException) -> wire.Problem:
    # RFC 9457, section 4.2.1: about:blank means that the status says everything.
    document = {"type": "about:blank", "title": error.reason, "status": error.status, "detail": error.text or error.reason}
    return wire.Problem(error.status, document)


def _answer(problem: wire.Problem, headers: Mapping[str, str]) -> web.Response:
    body = json.dumps(problem.document).encode()
    answer = ProblemAnswer(status=problem.status, body=body, headers=headers, content_type=wire.PROBLEM)
    answer.slug = wire.slug_of(problem)
    return answer
