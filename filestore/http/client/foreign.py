"""Explain answers that filestore did not make: which program made them, why, and which setting to change.

Between a client and its server there may be a reverse proxy, a forward proxy, or the login page of a network. Each has its own
answers, which must not be taken for answers of a filestore server.
Source: RFC 9110, sections 10.2.4 (Server) and 15 (status codes).
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from filestore.errors import Busy, FilestoreError, ForeignAnswer, QuotaExceeded, ServerError
from filestore.http import wire
from filestore.system.http_answers import Said

SETTINGS_OF_A_PROXY = (
    "client_max_body_size 0; proxy_request_buffering off; proxy_buffering off; proxy_http_version 1.1;"  # nginx's words
)
ROOM_SECONDS = 15.0
"""The longest wait for room on a server. A user who has reached a quota should learn it soon."""
_LIMITED = "the server limits requests"
_FULL = "the server has no room for it now"
_NOT_PASSED_ON = "it does not pass this path on to filestore; check the URL, its port and the path in it"
_REFUSED = "it refuses this client before filestore sees the request; let it pass requests on with their Authorization header"
_NO_ANSWER = (
    "it had no answer from filestore in time; check that a filestore server runs behind it, "
    f"and if it is nginx, set {SETTINGS_OF_A_PROXY}"
)
_TOO_MANY = "it takes no more requests for now; try again later, or raise its limits"
_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: _REFUSED,
    HTTPStatus.FORBIDDEN: _REFUSED,
    HTTPStatus.NOT_FOUND: _NOT_PASSED_ON,
    HTTPStatus.METHOD_NOT_ALLOWED: _NOT_PASSED_ON,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: (
        "it is a proxy that wants a user name and a password; write them into its URL, http://USER:PASSWORD@HOST:PORT"
    ),
    HTTPStatus.REQUEST_TIMEOUT: _NO_ANSWER,
    HTTPStatus.BAD_GATEWAY: _NO_ANSWER,
    HTTPStatus.GATEWAY_TIMEOUT: _NO_ANSWER,
    HTTPStatus.TOO_MANY_REQUESTS: _TOO_MANY,
    HTTPStatus.SERVICE_UNAVAILABLE: _TOO_MANY,
}
_NO_ROUTE = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
_WRONG_PATH = "this is not the address of a filestore server; give the URL without its path"
EARLIER_SERVER = "it does not know what this program asks, so it is an older version of filestore; update the server"
_SHOWN_SIZE = 100


def error_of(url: str, status: int, document: object, said: Said, *, sent_size: int = 0) -> FilestoreError:
    """Return the error to raise for an unsuccessful answer. It is ForeignAnswer if filestore did not make the answer.

    Otherwise it is the error that the server reports. `sent_size` is the number of bytes in the request's body.
    """
    is_ours = isinstance(document, dict) and "type" in document and not said.is_page
    if is_ours and status in _NO_ROUTE and _has_no_such_route(document):
        return ServerError(url, status, _WRONG_PATH if urlsplit(url).path.strip("/") else EARLIER_SERVER)
    error = wire.decode_problem(url, status, document) if is_ours else foreign_answer(url, status, said, sent_size=sent_size)
    error.retry_after_seconds = said.retry_after_seconds
    if is_ours and status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, QuotaExceeded | Busy):
        # A server writes nothing about these two to its log.
        error.request_id = said.request_id
    if status == HTTPStatus.TOO_MANY_REQUESTS and error.retryable:
        # Others would be refused as well.
        error.pauses_all, error.wait_reason = True, _LIMITED
    wait = said.retry_after_seconds
    if status == HTTPStatus.INSUFFICIENT_STORAGE and wait is not None and wait <= ROOM_SECONDS:
        # Room may be made by then, for example by a collection. If not, somebody has to decide what is removed.
        error.retryable, error.is_retried_once, error.wait_reason = True, True, _FULL
    return error


def _has_no_such_route(document: object) -> bool:
    return isinstance(document, dict) and document["type"] == "about:blank"


def foreign_answer(url: str, status: int, said: Said, *, sent_size: int = 0) -> ForeignAnswer:
    """Return the error to raise for an answer that filestore did not make."""
    return ForeignAnswer(url, status, _shown(said.server), _what_to_do(status, said, sent_size))


def _what_to_do(status: int, said: Said, sent_size: int) -> str:
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return (
            f"it does not take a request of {sent_size} bytes, and filestore sends up to {wire.BATCH_LIMIT} bytes in one; "
            f"if it is nginx, set {SETTINGS_OF_A_PROXY}"
        )
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return (
            f"it redirects to {_target(said)}, and a redirect is not followed because the token is for one server only; "
            "if you trust that address, give it as the URL"
        )
    return _ADVICE.get(status, "check the URL and its port, and what is between this machine and filestore")


def _target(said: Said) -> str:
    """Return the target of a redirect in words: the URL of a repository, without the route that was requested."""
    try:
        parts = urlsplit(said.location)
    except ValueError:
        parts = urlsplit("")
    path = parts.path.partition(wire.API)[0].rstrip("/")
    shown = _shown(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}") if parts.netloc else ""
    return repr(shown) if shown else "another address"


def _shown(text: str) -> str:
    """Return text from an unknown server without all that is not safe to show in a sentence."""
    return "".join(letter for letter in text if letter.isascii() and letter.isprintable())[:_SHOWN_SIZE]
